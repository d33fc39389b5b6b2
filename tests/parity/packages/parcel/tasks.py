"""What autodiscovery finds."""

from celery import shared_task


@shared_task
def packed():
    return "packed"
