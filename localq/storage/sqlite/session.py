"""One thread's connection to a store: opened under the gate, checked before every write, never shared.

The only place that opens `queue.db`, and the only place where SQLite's errors become localq's.
Rules of SQLite's own book are kept here (howtocorrupt.html): nobody but SQLite opens the database;
connections close only under the gate; a WAL that is not ours any more is neither read nor written.

SQLite keeps its locks and its wal-index once a process and file, whatever the number of connections. So a
connection that is merely forgotten poisons the next one on the same file: it would think itself locked, or
use a wal-index that is unlinked. Therefore a forked child closes what it inherited before anything else,
which harms nobody because `lock` kept every connection idle during the fork; and when the WAL has been
replaced, every connection of the process is closed before one is opened anew.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from localq.exceptions import (
    OutcomeUnknown,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreReplaced,
    StoreUntrusted,
    StoreVersionError,
)
from localq.storage.gate import Closed, Gate
from localq.storage.place import MARK, file_fault, make_file, open_file, removed
from localq.storage.sqlite.queries import HERE

T = TypeVar("T")

#: "lclq": says that a database is a store of ours.
APPLICATION_ID = 0x6C636C71
#: The schema's version: how many migrations there are.
VERSION = len(list((HERE / "migrations").glob("*.sql")))
#: Small pages: a put touches five of them, and the WAL gets them whole (put 22 us, with 4096 bytes 40 us).
PAGE_SIZE = 1024
#: Bytes of WAL after which a writer checkpoints if no steward has.
WAL_LIMIT = 16 * 1024 * 1024
#: Ending of a WAL that is out of the way for a moment.
ASIDE = ".aside"
#: Milliseconds to wait for writers that do not know the gate (a sqlite3 shell).
FOREIGN_WAIT_MS = 5000


class Gone(Exception):
    """The WAL at its path is not the one this connection writes to."""


class Session:
    """A connection with its gate and its WAL."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "queue.db"
        self._wal_path = str(directory / "queue.db-wal")
        #: Held while the connection is in use, so that nobody forks or closes in the middle.
        self.lock = threading.RLock()
        self.is_closed = False
        try:
            self.gate = Gate(directory / MARK)
            self.connection: sqlite3.Connection = self.gate.hold(self._connect)
        except FileNotFoundError:
            raise removed(directory) from None
        self.execute = self.connection.execute

    def _connect(self) -> sqlite3.Connection:
        bring_back(self._wal_path)
        if not self.path.exists():
            # Made by us, 0600, before SQLite sees it; it gives -wal and -shm the same mode.
            make_file(self.path)
        else:
            _look_at(self.path)
        try:
            connection = self._open()
        except sqlite3.Error as exc:
            raise translated(exc, self.path) from exc
        self.wal_fd = open_file(Path(self._wal_path), os.O_RDONLY)
        found = os.fstat(self.wal_fd)
        self._wal_id = (found.st_dev, found.st_ino)
        self.database_id = _identity(self.path)
        return connection

    def _open(self) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=256,
            timeout=FOREIGN_WAIT_MS / 1000,
        )  # fmt: skip
        try:
            self._set_up(connection)
        except BaseException:
            connection.close()  # here, inside the gate; the garbage collector would do it anywhere
            raise
        return connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        # Before anything is set: a journal mode is written into the file.
        tables, version = _look_inside(connection, self.path)
        # Memory maps and checkpoints of SQLite's own accord are off: the gate decides (reliability.md 0.3).
        for pragma in (
            f"page_size={PAGE_SIZE}", "journal_mode=wal", "synchronous=normal", "wal_autocheckpoint=0", "mmap_size=0",
            "trusted_schema=off", "cell_size_check=on", "temp_store=memory",
        ):  # fmt: skip
            connection.execute(f"pragma {pragma}")
        if version < VERSION:
            _bring_up(connection, tables, version)

    def write(self, work: Callable[..., T], *args: Any) -> T:
        """Run `work(*args)` under the gate.

        Raises:
            Gone: the store's files are others now; nothing was written.
            StoreError: what SQLite said, in our words.
        """
        try:
            result: T = self.gate.hold(self._checked, work, args)
        except Closed:
            raise Gone from None
        except sqlite3.Error as exc:
            raise translated(exc, self.path) from exc
        return result

    def _checked(self, work: Callable[..., T], args: tuple[Any, ...]) -> T:
        with self.lock:
            size = self._wal_size()
            result = work(*args)
            if size > WAL_LIMIT:
                self._checkpoint()
            return result

    def _checkpoint(self) -> None:
        """Move what can be moved; inside the gate, so no reader is waited for: everybody would wait with us."""
        self.execute("pragma busy_timeout = 0")
        try:
            self.execute("pragma wal_checkpoint(truncate)")
        finally:
            self.execute(f"pragma busy_timeout = {FOREIGN_WAIT_MS}")

    def _wal_size(self) -> int:
        """Return the size of the WAL, having made sure that it is ours.

        2 us. If this process opened and closed the store's files, SQLite's locks are gone, the WAL may have
        been deleted by the last close elsewhere, and an INSERT would say ok into an unlinked file.
        """
        try:
            found = os.stat(self._wal_path)
        except FileNotFoundError:
            raise Gone from None
        if self.is_closed or (found.st_dev, found.st_ino) != self._wal_id:
            raise Gone
        try:
            mine = os.fstat(self.wal_fd)
        except OSError:
            mine = None
        if mine is None or (mine.st_dev, mine.st_ino) != self._wal_id:
            # SQLite would write its pages into whatever file of the user's has the number now.
            raise StoreCorrupt(f"code of this process closed descriptors of {self.path}; nothing more is written by it")
        return found.st_size

    def transact(self, work: Callable[..., T], *args: Any) -> T:
        """Run `work(*args)` in one transaction under the gate: all of it happens or nothing."""
        result: T = self.write(self.transaction, work, *args)
        return result

    def transaction(self, work: Callable[..., T], *args: Any) -> T:
        """Run `work(*args)` in one transaction; the gate is held already."""
        self.execute("begin immediate")
        try:
            result = work(*args)
            self.execute("commit")
        except BaseException:
            # After SQLITE_FULL the transaction is rolled back already.
            if self.connection.in_transaction:
                self.execute("rollback")
            raise
        return result

    def read(self, sql: str, *args: Any) -> list[Any]:
        """Return the rows of a query; a reader needs no gate.

        Raises:
            Gone: the store's files are others now.
        """
        try:
            with self.lock:
                self._wal_size()
                return self.execute(sql, args).fetchall()
        except sqlite3.Error as exc:
            raise translated(exc, self.path) from exc

    def checkpoint(self, limit: int) -> None:
        """Move the WAL into the database if it is larger than `limit` bytes."""
        with self.lock:
            if self.is_closed:
                raise Gone
            is_large = os.fstat(self.wal_fd).st_size > limit
        if is_large:
            self.write(self._checkpoint)

    def is_current(self) -> bool:
        """Whether the files at the store's path are the ones this connection has open."""
        return self.is_database_current() and _identity(Path(self._wal_path)) == self._wal_id

    def is_database_current(self) -> bool:
        """Whether the database at the store's path is the one this connection has open."""
        return _identity(self.path) == self.database_id

    def close(self) -> None:
        """Close under a gate, as whatever stands at the store's path now allows."""
        with self.lock:
            if self.is_closed:
                return
            self.is_closed = True
            if not self.is_database_current():
                # Another store, or none, is at this path: nothing of it may be touched, and SQLite's close would
                # delete a WAL by its name. Never closed, at exit neither; another file is not poisoned by it.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.connection))
            elif _identity(Path(self._wal_path)) == self._wal_id:
                self.connection.close()
            else:
                self._close_beside_another_wal()
            os.close(self.wal_fd)
            self.gate.close()

    def _close_beside_another_wal(self) -> None:
        """Close while the WAL at our path is not ours: out of the way with it, since a close deletes by name."""
        aside = Path(self._wal_path + ASIDE)
        try:
            os.rename(self._wal_path, aside)
        except FileNotFoundError:
            pass
        self.connection.close()
        bring_back(self._wal_path)


def bring_back(wal_path: str) -> None:
    """Put a WAL back in its place, also one whose mover died; called inside the gate."""
    if os.path.exists(wal_path + ASIDE) and not os.path.exists(wal_path):
        os.rename(wal_path + ASIDE, wal_path)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _look_at(path: Path) -> None:
    """Check the database file without opening it."""
    found = os.lstat(path)
    fault = file_fault(found, path)
    if fault or not stat.S_ISREG(found.st_mode):
        raise StoreUntrusted(f"{path} is not a file of a store: {fault}")


def _look_inside(connection: sqlite3.Connection, path: Path) -> tuple[int, int]:
    """Count the tables and read the schema's version; refuse what is no store of ours, and write nothing."""
    (version,) = connection.execute("pragma user_version").fetchone()
    (application,) = connection.execute("pragma application_id").fetchone()
    tables = connection.execute("select count(*) from sqlite_master").fetchone()[0]
    if tables and application != APPLICATION_ID:
        raise StoreUntrusted(f"{path} is a database of another program; choose another directory with store=")
    if version > VERSION:
        raise StoreVersionError(
            f"{path} was written by a newer localq (schema {version}, this one knows {VERSION}); upgrade this localq"
        )
    return tables, version


def _bring_up(connection: sqlite3.Connection, tables: int, version: int) -> None:
    """Make the tables of a new store, or bring an old one up to date."""
    steps = migrations()[version:] if tables else [(HERE / "schema.sql").read_text("utf-8")]
    marks = f"pragma application_id = {APPLICATION_ID}; pragma user_version = {VERSION};"
    connection.executescript(f"begin immediate; {' '.join(steps)} {marks} commit;")


def migrations() -> list[str]:
    """Return the numbered steps from an empty database to today's schema."""
    return [step.read_text("utf-8") for step in sorted((HERE / "migrations").glob("*.sql"))]


_FULL, _BUSY, _IO, _CORRUPT, _NOT_A_DB = 13, (5, 6), 10, 11, 26
_READ_ONLY, _CANNOT_OPEN = 8, 14


def translated(exc: sqlite3.Error, path: Path) -> Exception:
    """Say in our words what SQLite said; the one place where that is done."""
    if isinstance(exc, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.DataError | sqlite3.InterfaceError):
        return ValueError(f"a value cannot be written: {exc}")  # about the message, not about the store
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    what = f"{path}: {exc}"
    if code == _FULL:
        return StoreFull(f"{what}; nothing was written: free some space and send it again")
    if code in _BUSY:
        return StoreBusy(f"{what}: a program that does not use localq's gate holds the database (a sqlite3 shell?)")
    if code in (_READ_ONLY, _CANNOT_OPEN):
        if not path.exists():
            return StoreReplaced(f"{path} was removed while in use; nothing was written")
        return StoreReadOnly(f"{what}; nothing was written: check mode, owner and mount of {path.parent}")
    if code in (_CORRUPT, _NOT_A_DB):
        return StoreCorrupt(f"{what}; the file is left as it is: restore a copy, or move {path.parent} away")
    if code == _IO:
        return OutcomeUnknown(
            f"{what}: the disk failed and the write may have happened or not; sending the same id is safe"
        )
    return StoreError(what)
