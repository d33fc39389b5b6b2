"""The default storage: one SQLite database in WAL mode, in a directory of its own (DESIGN.md 4).

    store.py     the sixteen verbs
    writes.py    small transactions: states, entries, what is dropped
    session.py   a thread's connection, its gate, its errors
    sync.py      when a commit is on the disk
    queries.py   the statements of queries.sql; schema.sql and migrations/ are the tables

Must not know what a payload means, nor run anything of the user's.
"""

from localq.storage.sqlite.store import SqliteStorage, open_url

__all__ = ["SqliteStorage", "open_url"]
