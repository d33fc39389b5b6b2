"""Handles on what tasks return: read-only views of the store, and ways to wait.

A handle holds an id and an app, nothing else: nothing is subscribed, nothing leaks when it is dropped.
Must not change how a task stands, but for `forget`, which removes a result, and `retry`, by hand.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Self, TypeVar

from localq import clock, dead, states
from localq.awaitable import AwaitableGroup, AwaitableResult
from localq.backend import Backend, View
from localq.context import allow_join_result as allow_join_result  # noqa: PLC0414 - where Celery has it
from localq.context import check_may_wait, current_app, running
from localq.context import denied_join_result as denied_join_result  # noqa: PLC0414 - where Celery has it
from localq.exceptions import RetryRefused, TimeoutError, UnknownTask
from localq.message import Record
from localq.recovery import sweep
from localq.serialization import value_of
from localq.storage.base import Bell, Storage
from localq.whereabouts import lacking, whereabouts

logger = logging.getLogger("localq.result")

R = TypeVar("R")

#: Seconds between two looks at the store when no bell rings: the first, and the longest.
FIRST_LOOK_S, LONGEST_LOOK_S = 0.05, 1.0
#: Seconds between two sweeps of a wait, and before it asks whether there is any worker at all.
PATIENCE_S = 2.0
#: How many results are read at once once the first of them is there.
READ_AHEAD = 200


class AsyncResult(AwaitableResult[R], View):
    """The result of one task.

    Args:
        id: the task's id.
        backend: whose store to look in; the current app's if None.
        task_name, queue: what is known of the task, for as long as the store does not know it.
        app: the app, instead of its backend.
        parent: the result of the step before it in a chain.
        ignored: the caller knows that no result will be kept.
        own: this process sent the task, so its own bell rings at the end.
    """

    _kept: ClassVar = {"id": "id", "task_name": "_name", "parent": "parent", "ignored": "ignored", "queue": "_queue"}
    __slots__ = ("_asked", "_name", "_own", "_queue", "_record", "backend", "id", "ignored", "parent")

    def __init__(
        self,
        id: str,
        backend: Backend | None = None,
        task_name: str | None = None,
        app: Any = None,
        parent: AsyncResult[Any] | GroupResult | None = None,
        ignored: bool = False,
        own: bool = False,
        queue: str | None = None,
    ) -> None:
        if not id:
            raise ValueError(f"AsyncResult needs a task's id, got {id!r}")
        self.id, self.parent, self.ignored = id, parent, ignored
        self.backend: Backend = backend if backend is not None else (app or current_app()).backend
        self._own, self._name, self._queue = own, task_name, queue
        self._record: Record | None = None
        #: This thread's bell and which raising of it came before the call was sent, if it has one.
        self._asked: tuple[Bell, int] | None = None

    # -- How it stands -------------------------------------------------------------------------

    def _look(self) -> Record | None:
        """Read the task's record; one that has ended is kept."""
        if self._record is None:
            found = self.backend.storage.records((self.id,)).get(self.id)
            if found is None or not found.ended:
                return found
            self._record = found
        return self._record

    @property
    def task_id(self) -> str:
        return self.id

    @property
    def state(self) -> str:
        """The state; PENDING for an id that the store does not know (`exists` tells)."""
        found = self._look()
        return states.PENDING if found is None else found.state

    status = state

    @property
    def result(self) -> Any:
        """The value, the exception, a custom state's meta, or None."""
        found = self._look()
        return None if found is None else value_of(found, self.backend.conf)

    info = result

    @property
    def traceback(self) -> str | None:
        found = self._look()
        return None if found is None else found.traceback

    @property
    def date_done(self) -> datetime | None:
        found = self._look()
        return datetime.fromtimestamp(found.ended_at, UTC) if found and found.ended_at else None

    @property
    def name(self) -> str | None:
        found = self._look()
        return self._name if found is None else found.name

    @property
    def queue(self) -> str | None:
        found = self._look()
        return self._queue if found is None else found.queue

    @property
    def retries(self) -> int | None:
        found = self._look()
        return None if found is None else found.retries

    @property
    def worker(self) -> str | None:
        found = self._look()
        return None if found is None else found.worker

    @property
    def children(self) -> list[Any] | None:
        """The results of its callbacks, and of what it has sent itself; None as long as there are none."""
        found = self._look()
        return [self.app.result_of(each) for each in json.loads(found.children)] if found and found.children else None

    def exists(self) -> bool:
        """Whether the store knows this id: queued, running, or ended and not forgotten."""
        return self._look() is not None

    def ready(self) -> bool:
        """Whether the task has ended."""
        found = self._look()
        return found is not None and found.ended

    def successful(self) -> bool:
        return self.state == states.SUCCESS

    def failed(self) -> bool:
        return self.state == states.FAILURE

    # -- Waiting -------------------------------------------------------------------------------

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Wait for the end of the task and return its value.

        Args:
            timeout: seconds to wait at most; None waits as long as it takes.
            propagate: raise the task's exception; False returns it.
            follow_parents: a failure of an earlier step of the chain is raised as that step's.
            callback: called with (id, value).
            on_interval: called at every look that found no end.
            disable_sync_subtasks: refuse to wait inside a task.
            interval, no_ack: accepted for Celery's sake.

        Raises:
            TimeoutError: the time is over; the task goes on.
            UnknownTask: the store does not know it, and the setting result_unknown_raises says not to wait.
            Exception: what the task raised.
        """
        if disable_sync_subtasks and running.get() is not None:
            check_may_wait()
        if self.ignored:
            return None  # type: ignore[return-value]  # nothing is kept, as the caller asked
        self._wait(timeout, on_interval)
        if propagate and follow_parents:
            self._raise_parents()
        value = self.maybe_throw(propagate)
        if callback is not None:
            callback(self.id, value)
        return value  # type: ignore[no-any-return]

    wait = get

    def _is_refused(self) -> bool:
        """Whether `get` will not wait for an id that nobody knows."""
        return self.backend.conf.result_unknown_raises and not self.exists()

    def _wait(self, timeout: float | None, on_interval: Callable[[], Any] | None = None) -> None:
        if self._is_refused():
            raise UnknownTask(_unknown(self))
        # Where this thread has its bell already, the look after raising it is the first.
        has_bell = self._own in getattr(self.backend.bells, "kept", ())
        if not has_bell or (timeout is not None and timeout <= 0):
            if self._look_once():
                return
            if timeout is not None and timeout <= 0:
                raise _timed_out(self)
        Wait(self.backend, self._own, timeout, on_interval, self).until(self._look_once)

    def _look_once(self, brought: Sequence[Record] = ()) -> bool:
        for record in brought:
            if record.id == self.id and record.ended:
                self._record = record
                return True
        found = self._look()
        return found is not None and found.ended

    def _raise_parents(self) -> None:
        above: list[AsyncResult[Any] | GroupResult] = []
        node = self.parent
        while node is not None:
            above.append(node)
            node = node.parent
        for each in reversed(above):
            each.maybe_throw()

    def maybe_throw(self, propagate: bool = True, callback: Any = None) -> Any:
        """Return the value; raise it if it is the exception of a task that has ended badly."""
        found = self._look()
        if found is None:
            return None
        value = value_of(found, self.backend.conf)
        if propagate and found.state in states.PROPAGATE_STATES and isinstance(value, BaseException):
            raise value
        return value

    maybe_reraise = maybe_throw

    def forget(self) -> None:
        """Drop the result, and those of the steps before it; a task that is still queued runs all the same."""
        node: Any = self
        while node is not None:
            node.backend.storage.forget([node.id] if isinstance(node, AsyncResult) else [r.id for r in node.results])
            node = node.parent
        self._record = None

    def retry(self) -> Self:
        """Run a task that failed, or was revoked, once more, by hand: `result.retry().get()`.

        Its message goes back to its queue, with the same id and arguments. Its result is cleared and its state is
        PENDING; its retries and the crashes charged to it start at 0. It runs as soon as a worker is free, whatever
        its ETA was, and without its `expires`, which would end it at once. Those that waited for it (chain steps,
        callbacks, the body of a chord) failed with it and stay failed: retry them when it has succeeded. Another
        handle that has read the failure already keeps it.

        Returns:
            This handle, which waits for the new end.

        Raises:
            RetryRefused: the task is unknown or forgotten, has not ended or has not failed, or it failed with
                another, which has not succeeded since. Says which, and what to do.
            OperationalError: the store could not do it; nothing was changed.
        """
        sweep(self.backend.storage, limit=self.backend.conf.task_max_redeliveries)  # it may be a dead worker's still
        dead.retry(self.backend.storage, self.id)
        self._record = None
        return self

    # -- Being a value -------------------------------------------------------------------------

    def as_tuple(self) -> tuple[Any, Any]:
        """Celery's serialized form: ((id, parent), None)."""
        return (self.id, self.parent and self.parent.as_tuple()), None

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AsyncResult):
            return bool(self.id == other.id)
        return self.id == other if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"


class EagerResult(AsyncResult[R]):
    """The result of a task that ran here and now."""

    _kept: ClassVar = {"id": "id", "value": "_value", "state": "_state", "traceback": "_traceback"}
    __slots__ = ("_state", "_traceback", "_value")

    def __init__(self, id: str, value: Any, state: str, traceback: str | None = None) -> None:
        self.id, self.parent, self.ignored, self._own = id, None, False, True
        self._record = self._name = self._queue = self._asked = None
        self._value, self._state, self._traceback = value, state, traceback

    def _look(self) -> Record | None:
        return None  # no store knows it

    @property
    def state(self) -> str:
        return self._state

    status = state

    @property
    def result(self) -> Any:
        return self._value

    info = result

    @property
    def traceback(self) -> str | None:
        return self._traceback

    def ready(self) -> bool:
        return True

    def exists(self) -> bool:
        return True

    def _wait(self, timeout: float | None, on_interval: Callable[[], Any] | None = None) -> None:
        return

    def maybe_throw(self, propagate: bool = True, callback: Any = None) -> Any:
        if propagate and self._state in states.PROPAGATE_STATES and isinstance(self._value, BaseException):
            raise self._value
        return self._value

    maybe_reraise = maybe_throw

    def forget(self) -> None:
        self._state, self._value = states.PENDING, None

    def retry(self) -> Self:
        raise RetryRefused(f"task {self.id} ran where it was called, and no store has it; call it once more")


class GroupResult(AwaitableGroup, View):
    """The results of a group, in the order of its members."""

    _kept: ClassVar = {"id": "id", "results": "results", "parent": "parent"}

    def __init__(
        self,
        id: str,
        results: Iterable[Any],
        backend: Backend | None = None,
        parent: AsyncResult[Any] | GroupResult | None = None,
        app: Any = None,
    ) -> None:
        self.id, self.results, self.parent = id, list(results), parent
        self.backend: Backend = backend if backend is not None else (app or current_app()).backend

    @property
    def children(self) -> list[Any]:
        return self.results

    def _refresh(self) -> None:
        """Read the members that are not known to have ended, in as few queries as there can be."""
        open_ones = [r for r in self.leaves() if r._record is None and not isinstance(r, EagerResult)]
        found = self.backend.storage.records([r.id for r in open_ones]) if open_ones else {}
        for each in open_ones:
            record = found.get(each.id)
            each._record = record if record is not None and record.ended else None

    def leaves(self) -> list[AsyncResult[Any]]:
        """Return the results of single tasks, groups within this group opened up."""
        return [leaf for r in self.results for leaf in (r.leaves() if isinstance(r, GroupResult) else [r])]

    def ready(self) -> bool:
        self._refresh()
        return all(_has_ended(r) for r in self.leaves())

    def successful(self) -> bool:
        self._refresh()
        return all(_has_ended(r) and r.successful() for r in self.leaves())

    def failed(self) -> bool:
        self._refresh()
        return any(_has_ended(r) and r.failed() for r in self.leaves())

    def waiting(self) -> bool:
        return not self.ready()

    def completed_count(self) -> int:
        """How many members have succeeded."""
        self._refresh()
        return sum(_has_ended(r) and r.successful() for r in self.leaves())

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        callback: Callable[[str, Any], Any] | None = None,
        no_ack: bool = True,
        on_interval: Callable[[], Any] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> list[Any]:
        """Wait for all members; return their values in order.

        Args:
            timeout: seconds for all of them together.
            propagate: raise the first member's exception, in order; False returns exceptions as values.
            callback: called with (id, value) for each; then an empty list is returned, as Celery does.
        """
        if disable_sync_subtasks and running.get() is not None:
            check_may_wait()
        self._wait_all(timeout, propagate, on_interval)
        return self._values(propagate, callback)

    join = join_native = get

    def _values(self, propagate: bool, callback: Callable[[str, Any], Any] | None) -> list[Any]:
        values = []
        for each in self.results:
            value = each.get(timeout=0, propagate=propagate, disable_sync_subtasks=False)
            if callback is not None:
                callback(each.id, value)
            else:
                values.append(value)
        return values

    def _wait_all(self, timeout: float | None, propagate: bool, on_interval: Callable[[], Any] | None) -> None:
        left = [r for r in self.leaves() if not r.ignored and not isinstance(r, EagerResult)]
        left.reverse()
        own = all(r._own for r in left)
        look = _Front(self.backend.storage, left, propagate)
        if not look() and left:
            Wait(self.backend, own, timeout, on_interval, left[-1]).until(look)

    def maybe_throw(self, propagate: bool = True, callback: Any = None) -> list[Any]:
        return [r.maybe_throw(propagate) for r in self.results]

    def forget(self) -> None:
        self.backend.storage.forget([r.id for r in self.leaves()])
        for each in self.leaves():
            each._record = None

    def as_tuple(self) -> tuple[Any, Any]:
        return (self.id, self.parent and self.parent.as_tuple()), [r.as_tuple() for r in self.results]

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.results)

    def __getitem__(self, index: int) -> Any:
        return self.results[index]

    def __bool__(self) -> bool:
        return bool(self.id or self.results)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GroupResult):
            return NotImplemented
        return (other.id, other.results) == (self.id, self.results)

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"<GroupResult: {self.id} [{', '.join(str(r) for r in self.results)}]>"


class _Front:
    """Looks at the first members that have not ended: one row while it runs, many once it has ended."""

    def __init__(self, storage: Storage, left: list[AsyncResult[Any]], propagate: bool) -> None:
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


class Wait:
    """One wait for something in the store: sleeps on a bell, looks at each ring and now and then.

    Args:
        what: the result waited for, named in errors and hints.
    """

    def __init__(
        self,
        backend: Backend,
        own: bool,
        timeout: float | None,
        on_interval: Callable[[], Any] | None,
        what: AsyncResult[Any],
    ) -> None:
        self._backend, self._own, self._what, self._on_interval = backend, own, what, on_interval
        self._started = clock.monotonic()
        self._deadline = None if timeout is None else self._started + timeout
        self._next_scan = self._started + PATIENCE_S
        self._has_hinted = False

    def until(self, look: Callable[[Sequence[Record]], bool]) -> None:
        """Return once `look` is true, which is given the records that rings brought.

        Raises:
            TimeoutError: the time is over.
        """
        try:
            bell: Bell = self._backend.bells.kept[self._own]
        except (AttributeError, KeyError):
            bell = self._backend.bell(self._own)
        pause = FIRST_LOOK_S
        brought: list[Record] = []
        # Up since before it was sent: no call of this process has ended since, so there is nothing to see yet.
        has_looked = self._what._asked == (bell, bell.raised) and bell.is_up()
        try:
            while True:
                if not has_looked:
                    bell.raise_()
                    if look(brought):
                        return
                has_looked = False
                rang = bell.sleep(self._pause(pause))
                brought = [Record(*copy) for copy in bell.copies()]
                if not rang:
                    pause = min(pause * 1.5, LONGEST_LOOK_S)
                    self._scan()
                if self._on_interval is not None:
                    self._on_interval()
        finally:
            bell.lower()

    def _pause(self, pause: float) -> float:
        if self._deadline is None:
            return pause
        left = self._deadline - clock.monotonic()
        if left <= 0:
            raise _timed_out(self._what)
        return min(pause, left)

    def _scan(self) -> None:
        """What a quiet wait does for everybody: free the claims of the dead, and ask once whether anyone works."""
        now = clock.monotonic()
        if now < self._next_scan:
            return
        self._next_scan = now + PATIENCE_S
        storage = self._backend.storage
        sweep(storage, limit=self._backend.conf.task_max_redeliveries)
        if self._has_hinted:
            return
        self._has_hinted = True
        record = storage.records((self._what.id,)).get(self._what.id)
        lack = record and lacking(record, self._backend)
        if record is not None and lack:
            logger.warning("task %s[%s] waits in %s: %s", record.name, record.id, storage.url, lack)


def _has_ended(result: AsyncResult[Any]) -> bool:
    return result._record is not None or isinstance(result, EagerResult)


def _timed_out(result: AsyncResult[Any]) -> TimeoutError:
    record = result._look()
    if record is None:
        return TimeoutError(f"The operation timed out: {_unknown(result)}")
    why = lacking(record, result.backend) or whereabouts(record)
    return TimeoutError(f"The operation timed out: task {result.id} is {record.state}, and {why}")


def _unknown(result: AsyncResult[Any]) -> str:
    return f"no task {result.id} is in {result.backend.storage.url}: it was sent elsewhere, or forgotten"
