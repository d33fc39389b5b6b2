"""The contract, on SQLite."""

from __future__ import annotations

from pathlib import Path

from localq.storage.base import Storage
from localq.storage.sqlite import SqliteStorage
from localq.testing.contract import StorageContract


class TestSqlite(StorageContract):
    def make(self, directory: Path) -> Storage:
        return SqliteStorage(directory)
