"""Handles on several results: a set of any, or a group that has an id and can be saved.

Read-only views, as single results are, and read together: many members cost one query. Must not know what kinds of
single results there are; a member that is a group counts as all of its leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Self

from localq import clock, states
from localq.awaitable import AwaitableGroup
from localq.backend import Backend, View
from localq.context import check_may_wait, current_app, running
from localq.control import RevocableGroup
from localq.message import Record
from localq.waiting import (
    FIRST_LOOK_S,
    READ_AHEAD,
    Listener,
    Wait,
    has_ended,
    keep_promises,
    promised,
    refresh,
    timed_out,
)


class ResultSet(AwaitableGroup, RevocableGroup, View):
    """Several results, in an order.

    Args:
        results: the members; single results or groups.
        app: whose store they are in; the first member's if None.
        backend: the same, more directly.
        ready_barrier: Celery's; there is nothing here to count.
    """

    _kept: ClassVar = {"results": "results"}
    _has_promises = False
    parent: Any = None

    def __init__(
        self, results: Iterable[Any], app: Any = None, ready_barrier: Any = None, backend: Backend | None = None
    ) -> None:
        self.results = list(results)
        if backend is None:
            backend = app.backend if app is not None else next(filter(None, map(_backend_of, self.results)), None)
        self.backend: Backend = backend if backend is not None else current_app().backend

    # -- Its members -------------------------------------------------------------------------------

    def add(self, result: Any) -> None:
        """Add a result, unless it is a member."""
        if result not in self.results:
            self.results.append(result)

    def remove(self, result: Any) -> None:
        """Take a result out, given by itself or its id.

        Raises:
            KeyError: it is no member.
        """
        try:
            self.results.remove(result)
        except ValueError:
            raise KeyError(result) from None

    def discard(self, result: Any) -> None:
        """Take a result out if it is a member."""
        if result in self.results:
            self.results.remove(result)

    def update(self, results: Iterable[Any]) -> None:
        """Add results, but those that are members."""
        for each in results:
            self.add(each)

    def clear(self) -> None:
        """Take all results out; the list stays the same one."""
        self.results.clear()

    def leaves(self) -> list[Any]:
        """Return the results of single tasks, groups within this one opened up."""
        return [leaf for each in self.results for leaf in each.leaves()]

    # -- How it stands -----------------------------------------------------------------------------

    def _read(self) -> list[Any]:
        leaves = self.leaves()
        refresh(self.backend, leaves)
        return leaves

    def ready(self) -> bool:
        """Whether all have ended."""
        return all(map(has_ended, self._read()))

    def waiting(self) -> bool:
        """Whether any has not ended."""
        return not self.ready()

    def successful(self) -> bool:
        """Whether all have succeeded."""
        return all(has_ended(each) and each.successful() for each in self._read())

    def failed(self) -> bool:
        """Whether any has failed."""
        return any(has_ended(each) and each.failed() for each in self._read())

    def completed_count(self) -> int:
        """How many have succeeded."""
        return sum(has_ended(each) and each.successful() for each in self._read())

    @property
    def supports_native_join(self) -> bool | None:
        """Whether members are read together; None if there are none."""
        return self.results[0].supports_native_join if self.results else None

    # -- Waiting -----------------------------------------------------------------------------------

    def join(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        callback: Callable[[str, Any], Any] | None = None,
        no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
        disable_sync_subtasks: bool = True,
        on_interval: Callable[[], Any] | None = None,
    ) -> list[Any]:
        """Wait for all members; return their values in order.

        Args:
            timeout: seconds for all of them together.
            propagate: raise the first member's exception, in order; False returns exceptions as values.
            callback: called with (id, value) for each; then an empty list is returned, as Celery does.
            on_message: called with every state of every member; see `AsyncResult.get`.
            on_interval: called at every look that found something missing.
            disable_sync_subtasks: refuse to wait inside a task.
            interval, no_ack: accepted for Celery's sake.

        Raises:
            TimeoutError: the time is over; the tasks go on.
            Exception: what a task raised.
        """
        if disable_sync_subtasks and running.get() is not None:
            check_may_wait()
        self._wait_all(timeout, propagate, on_interval, on_message)
        if self._has_promises:
            keep_promises(self)
        return self._values(propagate, callback)

    def _values(self, propagate: bool, callback: Callable[[str, Any], Any] | None) -> list[Any]:
        values = []
        for each in self.results:
            value = each.get(timeout=0, propagate=propagate, disable_sync_subtasks=False)
            if callback is not None:
                callback(each.id, value)
            else:
                values.append(value)
        return values

    def join_native(self, *args: Any, **options: Any) -> list[Any] | None:
        """Wait for all members, as `join`; with a `callback`, None is returned, as Celery does."""
        values = self.join(*args, **options)
        return None if options.get("callback") or (len(args) > 3 and args[3]) else values

    get = join_native

    def _wait_all(self, timeout: float | None, propagate: bool, on_interval: Any, on_message: Any) -> None:
        left = [each for each in self.leaves() if not each.ignored and not each._is_eager]
        left.reverse()
        if not left:
            return
        own = all(each._own for each in left)
        front = _Front(self.backend.storage, left, propagate)
        look = front if on_message is None else self._story(left, propagate, on_message)
        if not look():
            Wait(self.backend, own, timeout, on_interval, left).until(look)

    def _story(self, left: list[Any], propagate: bool, tell: Callable[[dict[str, Any]], Any]) -> _Story:
        """Return what tells the states of members; with those that have ended taken out of `left`, from its end."""
        return _Story(self.backend.storage, left, propagate, tell)

    def iter_native(
        self,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Yield (id, meta) of each member as it ends; of a group within this one, (id, its results).

        Args:
            timeout: seconds for all of them together.
        """
        deadline = None if timeout is None else clock.monotonic() + timeout
        left = list(self.results)
        leaves = self.leaves() if on_message is not None else []
        listeners = [Listener(each, on_message) for each in leaves if on_message and not each._is_eager]
        found: list[Any] = []

        def look(_: Sequence[Record] = ()) -> bool:
            refresh(self.backend, [leaf for each in left for leaf in each.leaves()])
            listeners[:] = [listener for listener in listeners if not listener()]
            found[:] = [each for each in left if all(map(has_ended, each.leaves()))]
            return bool(found)

        while left:
            if not look():
                waited = next(leaf for each in left for leaf in each.leaves() if not has_ended(leaf))
                left_s = None if deadline is None else deadline - clock.monotonic()
                if left_s is not None and left_s <= 0:
                    raise timed_out(waited)
                Wait(self.backend, all(each._own for each in self.leaves()), left_s, on_interval, waited).until(look)
            left = [each for each in left if each not in found]
            yield from [(each.id, each.results if isinstance(each, ResultSet) else each._meta()) for each in found]

    def as_completed(self, timeout: float | None = None) -> Iterator[Any]:
        """Yield the results of the members as they end, well or badly, the earliest first.

        Sleeps on a bell between them; what a member returned is `each.get()`. For a progress bar:
        `tqdm(result.as_completed(), total=len(result))`; of a chord, it is `result.parent` that has the members.

        Args:
            timeout: seconds for all of them together.

        Raises:
            TimeoutError: the time is over; the tasks go on.
            RuntimeError: this is inside a task, where waiting for others may block them.
        """
        if running.get() is not None:
            check_may_wait()
        deadline = None if timeout is None else clock.monotonic() + timeout
        open_ones = list(self.results)
        ended: list[Any] = []
        while open_ones:
            if not _take(open_ones, ended, self.backend):
                waited = next(leaf for leaf in open_ones[0].leaves() if not has_ended(leaf))
                left_s = None if deadline is None else deadline - clock.monotonic()
                if left_s is not None and left_s <= 0:
                    raise timed_out(waited)
                own = all(leaf._own for each in open_ones for leaf in each.leaves())
                Wait(self.backend, own, left_s, None, waited).until(lambda _: _take(open_ones, ended, self.backend))
            yield from ended
            ended.clear()

    def then(self, callback: Callable[[Any], Any], on_error: Any = None, weak: bool = False) -> Self:
        """Call something with this set once all have ended; see `AsyncResult.then`."""
        promised(self, callback, on_error, weak)
        return self

    def maybe_throw(self, callback: Callable[[str, Any], Any] | None = None, propagate: bool = True) -> None:
        """Raise the exception of the first that has failed; call `callback` with (id, value) of each before it."""
        self._read()
        for each in self.results:
            if isinstance(each, ResultSet):
                each.maybe_throw(callback, propagate)
            else:
                each.maybe_throw(propagate, callback)

    maybe_reraise = maybe_throw

    def forget(self) -> None:
        """Drop the results of all members; tasks that are still queued run all the same."""
        leaves = self.leaves()
        self.backend.storage.forget([each.id for each in leaves if not each._is_eager])
        for each in leaves:
            each._record = None

    # -- Being a value -----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.results)

    def __getitem__(self, index: int) -> Any:
        return self.results[index]

    def __eq__(self, other: object) -> bool:
        return self.results == other.results if isinstance(other, ResultSet) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # its members change

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: [{', '.join(each.id for each in self.results)}]>"


class GroupResult(ResultSet):
    """The results of a group, in the order of its members.

    Args:
        id: the group's id.
        results: its members.
        parent: the result of the step before it in a chain.
        backend, app: whose store they are in.
    """

    _kept: ClassVar = {"id": "id", "results": "results", "parent": "parent"}

    def __init__(
        self,
        id: str | None = None,
        results: Iterable[Any] | None = None,
        parent: Any = None,
        backend: Backend | None = None,
        app: Any = None,
    ) -> None:
        super().__init__(results or (), app, None, backend)
        self.id, self.parent = id, parent

    @property
    def children(self) -> list[Any]:
        return self.results

    def save(self, backend: Any = None) -> None:
        """Keep the ids of the members, so that `restore` finds them by the group's; as long as results are kept."""
        (backend or self.backend).save_group(str(self.id), self)

    def delete(self, backend: Any = None) -> None:
        """Take back what `save` did; the results stay."""
        (backend or self.backend).delete_group(str(self.id))

    @classmethod
    def restore(cls, id: str, backend: Any = None, app: Any = None) -> GroupResult | None:
        """Return a group that was saved, in any process; None if there is none."""
        found: GroupResult | None = (backend or (app or current_app()).backend).restore_group(id)
        return found

    def as_tuple(self) -> tuple[Any, Any]:
        """Celery's serialized form: ((id, parent), members)."""
        return (self.id, self.parent and self.parent.as_tuple()), [each.as_tuple() for each in self.results]

    def as_list(self) -> list[str | None]:
        """Return the group's id and those of the steps before it."""
        return [self.id, *(self.parent.as_list() if self.parent is not None else ())]

    def __bool__(self) -> bool:
        return bool(self.id or self.results)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GroupResult):
            return (other.id, other.results, other.parent) == (self.id, self.results, self.parent)
        return self.id == other if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:  # type: ignore[override]  # its id does not change
        return hash(self.id)

    def __str__(self) -> str:
        return str(self.id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id} [{', '.join(str(each) for each in self.results)}]>"


class Groups:
    """What `app.GroupResult` is: makes groups of one app, and restores them."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, id: str | None = None, results: Iterable[Any] | None = None, **known: Any) -> GroupResult:
        return GroupResult(id, results, **{"backend": self._app.backend, **known})

    def restore(self, id: str, backend: Any = None) -> GroupResult | None:
        """Return a group that was saved; None if there is none."""
        return GroupResult.restore(id, backend, self._app)


class _Front:
    """Looks at the first members that have not ended: one row while it runs, many once it has ended.

    Args:
        left: the members, last first; those that have ended are taken out.
    """

    def __init__(self, storage: Any, left: list[Any], propagate: bool) -> None:
        self._storage, self._left, self._propagate = storage, left, propagate

    def __call__(self, brought: Sequence[Record] = ()) -> bool:
        left = self._left
        ahead = 1
        while left:
            front = left[-ahead:]
            found = self._storage.records([r.id for r in front])
            for each in reversed(front):
                record = found.get(each.id)
                if record is None or not record.ended:
                    return False
                each._record = record
                left.pop()
                if self._propagate and record.state in states.PROPAGATE_STATES:
                    return True  # get() raises it now, without waiting for the rest
            ahead = READ_AHEAD
        return True


class _Story:
    """Tells the states of many members; reads in full only those that stand otherwise than at the last look.

    Args:
        left: as of `_Front`.
    """

    def __init__(self, storage: Any, left: list[Any], propagate: bool, tell: Any) -> None:
        self._storage, self._left, self._propagate = storage, left, propagate
        self._listeners = {each.id: Listener(each, tell) for each in left}
        self._seen: dict[str, Record] = {}

    def __call__(self, brought: Sequence[Record] = ()) -> bool:
        ids = list(self._listeners)
        for at in range(0, len(ids), READ_AHEAD):
            for id, record in self._storage.records(ids[at : at + READ_AHEAD]).items():
                if record != self._seen.get(id):
                    self._seen[id] = record
                    if self._listeners[id]():
                        del self._listeners[id]
        while self._left and has_ended(self._left[-1]):
            first = self._left.pop()
            if self._propagate and first._record.state in states.PROPAGATE_STATES:
                return True
        return not self._left


def _take(open_ones: list[Any], ended: list[Any], backend: Backend) -> bool:
    """Move those that have ended from one list into another, the earliest first; returns whether any has."""
    started = clock.monotonic()
    refresh(backend, [leaf for each in open_ones for leaf in each.leaves()])
    found = [each for each in open_ones if all(map(has_ended, each.leaves()))]
    if found:
        ended += sorted(found, key=_ended_at)
        gone = {id(each) for each in found}
        open_ones[:] = [each for each in open_ones if id(each) not in gone]
    elif len(open_ones) > READ_AHEAD:
        # A look at ten thousand takes a while; it must not be all that this process does.
        clock.sleep(min(clock.monotonic() - started, FIRST_LOOK_S))
    return bool(found)


def _ended_at(result: Any) -> float:
    return max((leaf._record.ended_at or 0.0 for leaf in result.leaves() if leaf._record is not None), default=0.0)


def _backend_of(result: Any) -> Any:
    return getattr(result, "backend", None)
