"""What some users of Celery know and most do not need; nothing of localq imports from here."""
