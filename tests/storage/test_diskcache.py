"""The contract, on diskcache, and what keeps diskcache from losing or running anything."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from localq.exceptions import ImproperlyConfigured, SecurityError, StoreFull, StoreReplaced, StoreUntrusted
from localq.storage.base import Storage
from localq.storage.diskcache import DiskcacheStorage, open_url
from localq.testing.contract import StorageContract
from localq.testing.contract.words import message, places


class TestDiskcache(StorageContract):
    def make(self, directory: Path) -> Storage:
        return DiskcacheStorage(directory)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[DiskcacheStorage]:
    storage = DiskcacheStorage(tmp_path / "store")
    storage.put([message("a")])
    yield storage
    storage.close()


def change(directory: Path, sql: str, *values: object) -> None:
    """Change the database of a store that is closed."""
    connection = sqlite3.connect(directory / "cache.db")
    with connection:
        connection.execute(sql, values)
    connection.close()


def test_a_pickled_value_is_refused_and_not_read(storage: DiskcacheStorage) -> None:
    storage.close()
    bomb = b"cposix\n_exit\n(I3\ntR."
    change(storage.directory, "UPDATE Cache SET mode = 4, value = ? WHERE key = 'row:a'", bomb)
    with pytest.raises(SecurityError, match="did not write"):
        storage.records(["a"])


def test_a_value_in_a_file_is_refused(storage: DiskcacheStorage) -> None:
    storage.close()
    change(storage.directory, "UPDATE Cache SET mode = 2, filename = '../../etc/passwd' WHERE key = 'row:a'")
    with pytest.raises(SecurityError, match="did not write"):
        storage.records(["a"])


def test_everything_is_in_the_database_and_private(storage: DiskcacheStorage) -> None:
    storage.put([message("big", body=bytes(3_000_000))])
    files = {path.name for path in storage.directory.iterdir()}
    assert {name for name in files if not name.startswith("cache.db")} == {
        ".gitignore", "gate.lock", "bells", "owners",
    }  # fmt: skip
    assert all(os.stat(storage.directory / name).st_mode & 0o077 == 0 for name in files)


def test_a_full_disk_puts_nothing_and_the_store_goes_on(storage: DiskcacheStorage) -> None:
    connection = storage._open().cache.connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 5}")
    with pytest.raises(StoreFull):
        storage.put([message("b", body=bytes(100_000))])
    connection.execute("PRAGMA max_page_count = 1000000")
    storage.put([message("c")])
    assert list(storage.records(["a", "b", "c"])) == ["a", "c"]


def test_a_store_that_was_removed_is_not_written_to(storage: DiskcacheStorage) -> None:
    (storage.directory / "cache.db").rename(storage.directory / "elsewhere")
    with pytest.raises(StoreReplaced, match="nothing was written"):
        storage.put([message("b")])
    assert storage.records(["a", "b"]) == {}
    storage.put([message("b")])
    assert places(storage, "b") == ["ready"]


def test_maintenance_says_when_the_store_was_replaced(storage: DiskcacheStorage) -> None:
    (storage.directory / "cache.db").rename(storage.directory / "elsewhere")
    (storage.directory / "cache.db").touch(0o600)
    with pytest.raises(StoreReplaced):
        storage.maintain()


def test_a_sqlite_store_is_not_mixed_with_this_one(tmp_path: Path) -> None:
    (tmp_path / "gate.lock").touch(0o600)
    (tmp_path / "queue.db").touch(0o600)
    with pytest.raises(StoreUntrusted, match="sqlite"):
        DiskcacheStorage(tmp_path).put([message()])


def test_a_path_that_diskcache_would_expand_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImproperlyConfigured, match="expand"):
        open_url(str(tmp_path / "$HOME"), "standard").put([message()])
