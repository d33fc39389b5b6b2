"""Work kept in the memory of one process: for tests, examples and threads beside their app.

A lock makes the verbs one at a time, and a list of undo steps makes them whole: what a failed one
had done is taken back in reverse. Nothing is written anywhere, and nothing outlives the process.
Must not be used to reach another process: a forked child has a copy that nobody else sees.
"""

from __future__ import annotations

import secrets
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from localq.message import Claim, Outcome
from localq.storage.base import DUE_BELL, SYNC_BELL, Doing, Estate, OwnerInfo, Started
from localq.storage.row import Order
from localq.storage.rows import RowStorage, Transaction

T = TypeVar("T")

#: Entries that may have left an index before the list gives their room back.
_SLACK = 1024


class MemoryStorage(RowStorage):
    """A storage of one process; any of its threads may use it.

    Args:
        name: tells stores of one process apart; only part of the URL.
    """

    shared = False

    def __init__(self, name: str = "") -> None:
        self.url = f"memory:{name}"
        # Reentrant, because a signal handler of the main thread may send a task while the main thread is inside.
        self._lock = threading.RLock()
        self._table = _MemoryTable()
        self._owners: dict[str, MemoryOwner] = {}
        self._bells: list[MemoryBell] = []

    def _run(self, act: Callable[[Transaction], T]) -> T:
        with self._lock:
            transaction = Transaction(self._table)
            mark = self._table.mark()
            try:
                result = act(transaction)
                transaction.finish()
            except BaseException:
                self._table.undo(mark)
                raise
            self._table.keep(mark)
            self._ring(transaction)
            return result

    def _ring(self, transaction: Transaction) -> None:
        for queue in (*transaction.ready.values(), *transaction.turns):
            idle = next((bell for bell in self._bells if bell.is_idle and queue in bell.queues), None)
            if idle is not None:
                idle.ring()
        for bell in self._bells:
            if bell.is_idle and bell.is_for(transaction):
                bell.ring()

    def enlist(self, about: dict[str, object], journal: bool = True) -> MemoryOwner:
        owner = MemoryOwner(about, journal)
        with self._lock:
            self._owners[owner.name] = owner
        return owner

    def owners(self) -> list[OwnerInfo]:
        with self._lock:
            return [OwnerInfo(o.name, o.is_alive, dict(o.about), o.doing()) for o in self._owners.values()]

    def retire(self, owner: str) -> None:
        with self._lock:
            self._owners.pop(owner, None)

    def _notes(self, owner: str, claims: list[Claim]) -> Estate:
        with self._lock:
            known = self._owners.get(owner)
            return Estate(claims, known.started(), list(known.ended), known.batch) if known else Estate(claims)

    def _recall(self, owner: str, batch: int) -> None:
        with self._lock:
            known = self._owners.get(owner)
            if known:
                known.recalled = batch

    def bell(self, queues: Sequence[str] = (), replies: str | None = None, owner: str | None = None) -> MemoryBell:
        bell = MemoryBell(self, queues, replies)
        with self._lock:
            self._bells.append(bell)
        return bell

    def drop_bell(self, bell: MemoryBell) -> None:
        """Ring this bell no more."""
        with self._lock:
            if bell in self._bells:
                self._bells.remove(bell)

    def close(self) -> None:
        """Nothing to let go of: the work lives as long as this object."""


class MemoryOwner:
    """A right to hold claims; see `localq.storage.base.Owner`. It lives until it is closed."""

    def __init__(self, about: dict[str, object], journal: bool) -> None:
        self.name, self.about, self.is_alive = secrets.token_hex(8), dict(about), True
        self._journal = journal
        #: What runs, by its place.
        self.places: dict[int, Started] = {}
        self.ended: list[Outcome] = []
        self.left = self.batch = 0
        self.recalled: int | None = None

    def turn(self) -> bool:
        was_recalled = self.recalled == self.batch
        self.batch += 1
        self.left = 0
        self.places.pop(0, None)
        return was_recalled

    def begin(self, claim: Claim, mode: int, left: int = 0, deadline: float = 0.0, place: int = 0) -> bool:
        if self._journal:
            self.places[place] = Started(claim.seq, claim.token, mode, deadline, place=place)
            self.left = self.left if place else left
        return self.recalled != self.batch

    def free(self, place: int) -> None:
        self.places.pop(place, None)

    def started(self) -> tuple[Started, ...]:
        """What runs, and has not ended."""
        over = {(outcome.seq, outcome.token) for outcome in self.ended}
        return tuple(each for each in self.places.values() if (each.seq, each.token) not in over)

    def doing(self) -> Doing | None:
        """What it is at; None without a journal."""
        if not self._journal:
            return None
        alone = self.places.get(0, Started(0, 0))
        return Doing(self.batch, alone.seq, alone.token, self.left, len(self.ended))

    def end(self, outcome: Outcome) -> bool:
        if self._journal:
            self.ended.append(outcome)
        return self._journal

    def settled(self) -> bool:
        self.ended, self.left = [], 0
        self.places.pop(0, None)
        return self.recalled == self.batch

    def close(self) -> None:
        self.is_alive = False


class MemoryBell:
    """A bell of one thread, which brings no copies; see `localq.storage.base.Bell`."""

    is_unsure = False

    def __init__(self, storage: MemoryStorage, queues: Sequence[str], replies: str | None) -> None:
        self._storage, self.queues, self.replies = storage, frozenset(queues), replies
        self._rung = threading.Event()
        #: Raised and not rung since: only such a bell is chosen, so that two messages wake two sleepers.
        self.is_idle = False
        self.raised = 0

    def raise_(self) -> None:
        self._rung.clear()
        self.raised += 1
        self.is_idle = True

    def is_up(self) -> bool:
        return self.is_idle

    def lower(self) -> None:
        self.is_idle = False
        self._rung.clear()

    def is_for(self, transaction: Transaction) -> bool:
        """Whether it is to be rung for more than one ready message."""
        if (transaction.waits and DUE_BELL in self.queues) or (transaction.reserves and SYNC_BELL in self.queues):
            return True
        news = transaction.replies
        return bool(news) if self.replies == "*" else self.replies is not None and self.replies in news

    def ring(self) -> None:
        """End the sleep, or the next one if nobody sleeps yet."""
        self.is_idle = False
        self._rung.set()

    def sleep(self, timeout_s: float, also: int | None = None) -> bool:
        rung = self._rung.wait(max(0.0, timeout_s))
        self._rung.clear()
        return rung

    def looked(self) -> None:
        """Nothing is ever given here."""

    def copies(self) -> list[tuple[Any, ...]]:
        return []

    def close(self) -> None:
        self._storage.drop_bell(self)


class _MemoryTable:
    """Dicts and sorted lists, with a list of steps back. See `localq.storage.rows.Table`."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, Any]] = {"row": {}, "entry": {}, "number": {}}
        self._indexes: dict[str, _Sorted] = {}
        self._steps_back: list[Callable[[], None]] = []

    def mark(self) -> int:
        """Return where the steps of a transaction begin: above 0 if it runs inside another one."""
        return len(self._steps_back)

    def undo(self, mark: int) -> None:
        """Take back what was done since `mark`."""
        while len(self._steps_back) > mark:
            self._steps_back.pop()()

    def keep(self, mark: int) -> None:
        """Let what was done since `mark` stand; inside another transaction, as long as that one does."""
        if not mark:
            self._steps_back.clear()

    def get(self, kind: str, key: str) -> Any:
        return self._values[kind].get(key)

    def set(self, kind: str, key: str, value: Any) -> None:
        values = self._values[kind]
        self._steps_back.append(partial(_assign, values, key, values.get(key)))
        _assign(values, key, value)

    def items(self, kind: str, prefix: str) -> Iterable[tuple[str, Any]]:
        return [(key, value) for key, value in self._values[kind].items() if key.startswith(prefix)]

    def add(self, index: str, order: Order, id: str) -> None:
        self._steps_back.append(partial(self._take_out, index, order, id))
        self._put_in(index, order, id)

    def remove(self, index: str, order: Order, id: str) -> None:
        self._steps_back.append(partial(self._put_in, index, order, id))
        self._take_out(index, order, id)

    def first(self, index: str, limit: int | None, start: Order | None = None) -> list[tuple[Order, str]]:
        found = self._indexes.get(index)
        return found.first(limit, start) if found else []

    def _put_in(self, index: str, order: Order, id: str) -> None:
        self._indexes.setdefault(index, _Sorted()).add((order, id))

    def _take_out(self, index: str, order: Order, id: str) -> None:
        entries = self._indexes.get(index)
        if entries is None:
            return
        entries.remove((order, id))
        if not entries:
            del self._indexes[index]


class _Sorted:
    """A sorted set whose first entry leaves without moving the others: 100,000 of them cost a claim nothing.

    Adding what is there and removing what is not do nothing, so that a step back is right even if
    Ctrl-C came between noting it and the step itself.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[Order, str]] = []
        self._head = 0

    def __len__(self) -> int:
        return len(self._entries) - self._head

    def add(self, entry: tuple[Order, str]) -> None:
        at = bisect_left(self._entries, entry, lo=self._head)
        if self._entries[at : at + 1] != [entry]:
            self._entries.insert(at, entry)

    def remove(self, entry: tuple[Order, str]) -> None:
        at = bisect_left(self._entries, entry, lo=self._head)
        if self._entries[at : at + 1] != [entry]:
            return
        if at > self._head:
            del self._entries[at]
            return
        self._head += 1
        if self._head > _SLACK and self._head > len(self._entries) // 2:
            del self._entries[: self._head]
            self._head = 0

    def first(self, limit: int | None, start: Order | None = None) -> list[tuple[Order, str]]:
        at = self._head if start is None else bisect_left(self._entries, (start, ""), lo=self._head)
        return self._entries[at : None if limit is None else at + limit]


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    if value is None:
        values.pop(key, None)
    else:
        values[key] = value


_named: WeakValueDictionary[str, MemoryStorage] = WeakValueDictionary()


def open_url(rest: str, durability: str) -> MemoryStorage:
    """Open `memory:` (a new store each time) or `memory:name` (the same one for all who name it)."""
    if not rest:
        return MemoryStorage()
    return _named.setdefault(rest, MemoryStorage(rest))
