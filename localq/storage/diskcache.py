"""Work kept in a diskcache: the whole contract through `get`, `set` and `delete`, without SQL of ours but one.

A `diskcache.Cache` forgets by default (eviction), pickles what it does not know, and shares no gate.
So: nothing is ever evicted or expired by it; its values are JSON text in the database and never
files, and a pickle found there is refused, not read; every call is inside the gate, reads too; and each
commit is synced (`synchronous=FULL`), because nobody here syncs later. It keeps the contract, not the
speed: use it where diskcache is in place already.

Rows are JSON with their few binary columns as Latin-1 text: one character a byte, readable where the body
is JSON, and unlike marshal safe to read whatever is in the file. An index entry is a key whose text sorts
like its numbers; diskcache's own `peek` does the same, but shows only the first one.

Must not use what diskcache pops destructively (`pull`, `Deque`): the taker's death would lose the task.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import sqlite3
import struct
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import diskcache

from localq.exceptions import ImproperlyConfigured, SecurityError, StoreCorrupt, StoreReplaced, StoreUntrusted
from localq.message import Claim, Message
from localq.storage import place
from localq.storage.base import DUE_BELL, SYNC_BELL, Bell, Entry, Estate, Owner, OwnerInfo
from localq.storage.bells import Bells
from localq.storage.gate import Gate
from localq.storage.owners import Owners
from localq.storage.row import Order, Row
from localq.storage.rows import RowStorage, Transaction
from localq.storage.sqlite.session import FOREIGN_WAIT_MS, translated

T = TypeVar("T")

#: Nothing may be dropped, written beside the database, or mapped; every commit is synced (reliability.md 3.11).
SETTINGS = {
    "eviction_policy": "none",
    "cull_limit": 0,
    "statistics": 0,
    "size_limit": 2**62,
    "sqlite_synchronous": 2,
    "sqlite_mmap_size": 0,
    "disk_min_file_size": 2**30,
}
#: Sleepers that hear of a message that began to wait for its time.
_ALL = 64


class DiskcacheStorage(RowStorage):
    """A storage in a directory, shared by the processes that open it.

    Args:
        directory: made 0700 if it is not there.
    """

    shared = True

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.url = f"diskcache:///{self.directory}"
        self._path = self.directory / "cache.db"
        self._forget()
        _stores.add(self)

    # -- opening and closing -----------------------------------------------------------------

    def _forget(self) -> None:
        self._opening = threading.Lock()
        self._opened: _Opened | None = None
        self._gates: dict[threading.Thread, Gate] = {}

    def _open(self) -> _Opened:
        opened = self._opened
        if opened is None:
            with self._opening:
                opened = self._opened = self._opened or self._open_anew()
        return opened

    def _open_anew(self) -> _Opened:
        _check_place(self.directory, self.must_exist)
        place.make_file(self._path)
        fault = place.file_fault(os.lstat(self._path), self._path)
        if fault:
            raise StoreUntrusted(f"{self._path} is not a file of a store: {fault}")
        gate = Gate(self.directory / place.MARK)
        try:
            cache = gate.hold(self._open_cache)
        finally:
            gate.close()
        bells, owners = Bells(self.directory / "bells"), Owners(self.directory / "owners")
        return _Opened(cache, _CacheTable(cache, self._path), bells, owners, _identity(self._path))

    def _open_cache(self) -> _Cache:
        try:
            return _Cache(str(self.directory), disk=_Disk, **SETTINGS)
        except (sqlite3.Error, diskcache.Timeout) as exc:
            raise translated(_first_cause(exc), self._path) from exc

    def _gate(self) -> Gate:
        """Return this thread's gate; close those of threads that have ended."""
        thread = threading.current_thread()
        gate = self._gates.get(thread)
        if gate is None:
            with self._opening:
                for ended in [each for each in self._gates if not each.is_alive()]:
                    self._gates.pop(ended).close()
                gate = self._gates[thread] = Gate(self.directory / place.MARK)
        return gate

    def close(self) -> None:
        opened = self._opened
        if opened is None:
            return
        # The last close checkpoints, so it is done under the gate; and never into files that are not ours any more.
        if _identity(self._path) == opened.identity:
            self._gate().hold(opened.cache.connection.close)
        else:
            _leak(opened.cache.connection)
        opened.bells.close()
        self._drop_gates()
        self._forget()

    def after_fork(self) -> None:
        """In the child: forget the parent's connection without closing it."""
        self._drop_gates()
        self._lose()

    def _lose(self) -> None:
        if self._opened is not None:
            _leak(self._opened.cache.connection)
        self._forget()

    def _drop_gates(self) -> None:
        for gate in self._gates.values():
            gate.close()

    # -- transactions ------------------------------------------------------------------------

    def _run(self, act: Callable[[Transaction], T]) -> T:
        opened = self._open()
        try:
            result: T = self._gate().hold(self._inside, opened, act)
        except StoreReplaced:
            # Without closing anything: other threads may be at their gates.
            self._lose()
            raise
        return result

    def _inside(self, opened: _Opened, act: Callable[[Transaction], T]) -> T:
        if _identity(self._path) != opened.identity:
            raise StoreReplaced(f"{self._path} was removed or replaced while in use; nothing was written")
        transaction = Transaction(opened.table)
        caller_handles = sys.exc_info()[1]
        try:
            # No `retry`: under the gate there is nobody to wait for, and it would retry a full disk for ever.
            with opened.cache.transact():
                result = act(transaction)
                transaction.finish()
        except (sqlite3.Error, diskcache.Timeout) as exc:
            # diskcache does not roll back a commit that failed.
            if opened.cache.connection.in_transaction:
                opened.cache.connection.rollback()
            raise translated(_first_cause(exc, caller_handles), self._path) from exc
        _ring(opened.bells, transaction)
        return result

    # -- owners and bells --------------------------------------------------------------------

    def enlist(self, about: dict[str, object], journal: bool = True) -> Owner:
        return self._open().owners.enlist(about, journal)

    def owners(self) -> list[OwnerInfo]:
        return self._open().owners.infos()

    def retire(self, owner: str) -> None:
        self._open().owners.retire(owner)

    def _notes(self, owner: str, claims: list[Claim]) -> Estate:
        return self._open().owners.notes(owner, claims)

    def _recall(self, owner: str, batch: int) -> None:
        self._open().owners.recall(owner, batch)

    def bell(self, queues: Sequence[str] = (), replies: str | None = None, owner: str | None = None) -> Bell:
        bells = self._open().bells
        return self._gate().hold(bells.bell, queues, replies)


class _Disk(diskcache.Disk):  # type: ignore[misc]  # untyped
    """Text and numbers as they are, in the database; nothing pickled goes in or comes out."""

    def put(self, key: Any) -> tuple[str, bool]:
        if type(key) is not str:
            raise TypeError(f"{key!r} is no key of a store")
        return key, True

    def get(self, key: Any, raw: bool) -> str:
        if not raw or type(key) is not str:
            raise SecurityError("a pickled key was found in the store; it is not read")
        return key

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, None, str | int]:
        if type(value) not in (str, int):
            raise TypeError(f"{type(value).__name__} is no value of a store")
        return 0, diskcache.core.MODE_RAW, None, value

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> str | int:
        if mode != diskcache.core.MODE_RAW or type(value) not in (str, int):
            raise SecurityError("a value that localq did not write was found in the store; it is not read")
        found: str | int = value
        return found


class _Cache(diskcache.Cache):  # type: ignore[misc]  # untyped
    """A Cache with one connection, which the gate hands from thread to thread.

    diskcache's own has one for each thread, closed when the thread ends or the process forks: a close
    outside the gate, or with the parent's locks. Whoever opened this one closes it, or leaks it.
    """

    connection: sqlite3.Connection

    @property
    def _con(self) -> sqlite3.Connection:
        if "connection" not in self.__dict__:
            path = os.path.join(self._directory, diskcache.core.DBNAME)
            wait_s = FOREIGN_WAIT_MS / 1000
            self.connection = sqlite3.connect(path, timeout=wait_s, isolation_level=None, check_same_thread=False)
        return self.connection

    def close(self) -> None:
        """Nothing: `__init__` calls it to change the time-out, and a subclass has no other way to stay open."""

    def span(self, prefix: str, limit: int | None = None, start: str = "") -> list[tuple[str, str | int]]:
        """Return keys and values under keys that begin with `prefix`, from the key `start` on, in their order."""
        rows = self._sql(
            "SELECT key, mode, value FROM Cache WHERE ? <= key AND key < ? AND raw = 1 ORDER BY key LIMIT ?",
            (start or prefix, prefix + "\U0010ffff", -1 if limit is None else limit),
        ).fetchall()
        return [(key, self._disk.fetch(mode, None, value, False)) for key, mode, value in rows]


class _Opened(NamedTuple):
    """What is open while the storage is."""

    cache: _Cache
    table: _CacheTable
    bells: Bells
    owners: Owners
    identity: tuple[int, int] | None


class _CacheTable:
    """Rows, entries, numbers and indexes as keys of one cache. See `localq.storage.rows.Table`."""

    def __init__(self, cache: _Cache, path: Path) -> None:
        self._cache, self._path = cache, path

    def get(self, kind: str, key: str) -> Any:
        return self._decoded(kind, self._cache.get(f"{kind}:{key}"))

    def set(self, kind: str, key: str, value: Any) -> None:
        if value is None:
            self._cache.delete(f"{kind}:{key}")
        else:
            self._cache.set(f"{kind}:{key}", _encoders[kind](value))

    def items(self, kind: str, prefix: str) -> Iterable[tuple[str, Any]]:
        found = self._cache.span(f"{kind}:{prefix}")
        return [(key[len(kind) + 1 :], self._decoded(kind, value)) for key, value in found]

    def add(self, index: str, order: Order, id: str) -> None:
        self._cache.set(_index_key(index, order), json.dumps([order[0], order[1], id]))

    def remove(self, index: str, order: Order, id: str) -> None:
        self._cache.delete(_index_key(index, order))

    def first(self, index: str, limit: int | None, start: Order | None = None) -> list[tuple[Order, str]]:
        found = self._cache.span(_index_prefix(index), limit, _index_key(index, start) if start else "")
        entries = (json.loads(str(value)) for _, value in found)
        return [((order, seq), id) for order, seq, id in entries]

    def _decoded(self, kind: str, value: str | int | None) -> Any:
        if value is None:
            return None
        try:
            return _decoders[kind](value)
        except (ValueError, TypeError, IndexError) as exc:
            raise StoreCorrupt(f"{self._path}: a {kind} cannot be read ({exc}); the file is left as it is") from exc


def _index_prefix(index: str) -> str:
    # Quoted, so that a queue of any name ends where the slash is.
    return f"index:{quote(index, safe='')}/"


def _index_key(index: str, order: Order) -> str:
    # The bytes of a positive double sort like its value.
    return f"{_index_prefix(index)}{struct.pack('>d', order[0]).hex()}{order[1]:016x}"


_BODY, _SIGNATURE = Message._fields.index("body"), Message._fields.index("signature")
_RESULT = Row._fields.index("result")


def _row_text(row: Row) -> str:
    message = list(row.message)
    message[_BODY], message[_SIGNATURE] = _text(row.message.body), _text(row.message.signature)
    columns = [message, *row[1:]]
    columns[_RESULT] = _text(row.result)
    return json.dumps(columns, ensure_ascii=False)


def _as_row(text: str) -> Row:
    columns = json.loads(text)
    message = columns[0]
    message[_BODY], message[_SIGNATURE] = _bytes(message[_BODY]), _bytes(message[_SIGNATURE])
    columns[_RESULT] = _bytes(columns[_RESULT])
    return Row(Message(*message), *columns[1:])


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("latin-1")


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode("latin-1")


_encoders: dict[str, Callable[[Any], str | int]] = {"row": _row_text, "entry": json.dumps, "number": int}
_decoders: dict[str, Callable[[Any], Any]] = {
    "row": _as_row,
    "entry": lambda text: Entry(*json.loads(text)),
    "number": int,
}


def _ring(bells: Bells, transaction: Transaction) -> None:
    for queue, number in Counter((*transaction.ready.values(), *transaction.turns)).items():
        bells.ring_idle(queue, number)
    if transaction.waits:
        bells.ring_idle(DUE_BELL, _ALL)
    if transaction.reserves:
        bells.ring_idle(SYNC_BELL, 1)
    if transaction.replies:
        bells.ring_replies(transaction.replies)


def _check_place(directory: Path, must_exist: bool) -> None:
    # diskcache would expand both, and open another directory than the one that was checked.
    if os.path.expandvars(os.path.expanduser(directory)) != str(directory):
        raise ImproperlyConfigured(f"diskcache would expand {str(directory)!r}; choose a path without ~ and variables")
    place.prepare(directory, must_exist)
    if (directory / "queue.db").exists():
        raise StoreUntrusted(f"{directory} is a sqlite store; open it with sqlite:, or choose another directory")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _first_cause(exc: BaseException, caller_handles: BaseException | None = None) -> sqlite3.Error:
    """What SQLite said first; diskcache hides it behind a Timeout or behind a rollback that failed as well.

    Whoever sends a task from an `except` has an exception of its own at the far end of the chain.
    """
    found: sqlite3.Error = sqlite3.OperationalError(str(exc))
    link: BaseException | None = exc
    while link is not None and link is not caller_handles:
        if isinstance(link, sqlite3.Error):
            found = link
        link = link.__context__
    return found


def _leak(connection: sqlite3.Connection) -> None:
    """Keep SQLite from ever closing a connection: not in a forked child, not over files that were replaced."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def open_url(rest: str, durability: str) -> DiskcacheStorage:
    """Open the store in a directory. Every commit is synced, so both durabilities are `full` here."""
    return DiskcacheStorage(Path(rest))


_stores: weakref.WeakSet[DiskcacheStorage] = weakref.WeakSet()


def _each(act: Callable[[DiskcacheStorage], None]) -> Callable[[], None]:
    def on_all() -> None:
        for store in list(_stores):
            act(store)

    return on_all


os.register_at_fork(after_in_child=_each(DiskcacheStorage.after_fork))
atexit.register(_each(DiskcacheStorage.close))
