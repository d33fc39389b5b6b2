"""Handles on what tasks return: read-only views of the store, and ways to wait.

    AsyncResult    of one task           ResultSet, GroupResult    of several (groups.py)
    EagerResult    of a task that ran where it was called

A handle holds an id and an app, nothing else: nothing is subscribed, nothing leaks when it is dropped. A task is
`ready` when it has ended; a state written by hand (`update_state(state="SUCCESS")`) is shown, and ends nothing.
Must not change how a task stands, but for `forget`, which removes a result, `retry` and `revoke`, by hand.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Self, TypeVar

from localq import dead, states
from localq.awaitable import AwaitableResult
from localq.backend import Backend, View
from localq.context import allow_join_result as allow_join_result  # noqa: PLC0414 - where Celery has it
from localq.context import check_may_wait, current_app, running
from localq.context import denied_join_result as denied_join_result  # noqa: PLC0414 - where Celery has it
from localq.control import REVOKED, RevocableTask
from localq.exceptions import IncompleteStream, RetryRefused, TaskRevokedError, TimeoutError, UnknownTask
from localq.graph import DependencyGraph, GraphFormatter
from localq.groups import GroupResult, ResultSet
from localq.message import Record
from localq.meta import call_of, meta_of, pending
from localq.recovery import sweep
from localq.sequel import next_of
from localq.serialization import value_of
from localq.storage.base import Bell
from localq.storage.news import News
from localq.tracebacks import with_remote
from localq.waiting import Listener, Look, Wait, keep_promises, promised, timed_out, unknown

__all__ = [
    "AsyncResult", "EagerResult", "GroupResult", "ResultSet", "allow_join_result", "denied_join_result",
    "result_from_tuple",
]  # fmt: skip

R = TypeVar("R")


class AsyncResult(AwaitableResult[R], RevocableTask, View):
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
    __slots__ = (
        "__weakref__", "_asked", "_has_promises", "_name", "_own", "_queue", "_record", "backend", "id", "ignored",
        "parent",
    )  # fmt: skip
    TimeoutError: ClassVar = TimeoutError
    #: Members of a set are read together.
    supports_native_join: ClassVar[bool] = True
    _is_eager: ClassVar[bool] = False

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
        #: `then` was given something that is called at the end.
        self._has_promises = False
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

    def _whole(self) -> Record | None:
        """Read all that the store has of the task, its message too."""
        return self.backend.storage.records((self.id,), whole=True).get(self.id)

    def _meta(self, news: News | None = None) -> dict[str, Any]:
        found = self._whole()
        return pending(self.id) if found is None else meta_of(found, self.backend.conf, news)

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
    def args(self) -> Any:
        """The positional arguments, as sent: without what the step before it gives it; None if it is unknown."""
        found = self._whole()
        return None if found is None else call_of(found, self.backend.conf)[0]

    @property
    def kwargs(self) -> Any:
        """The keyword arguments, as sent."""
        found = self._whole()
        return None if found is None else call_of(found, self.backend.conf)[1]

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
        """The results of its callbacks, of what it has sent itself, and of the step behind it in its chain.

        None as long as there are none; the last two once it has ended, and that step if it has ended well.
        """
        found = self._look()
        known = json.loads(found.children) if found and found.children else []
        if found and found.ended and found.state in states.GOOD_STATES:
            sequel = next_of(self.backend.storage, self.id, known)
            known += [] if sequel is None else [sequel]
        return [self.app.result_of(each) for each in known] or None

    def exists(self) -> bool:
        """Whether the store knows this id: queued, running, or ended and not forgotten."""
        return self._look() is not None

    def ready(self) -> bool:
        """Whether the task has ended."""
        found = self._look()
        return found is not None and found.ended

    def successful(self) -> bool:
        """Whether the task has ended well."""
        found = self._look()
        return found is not None and found.ended and found.state == states.SUCCESS

    def failed(self) -> bool:
        """Whether the task has ended with an exception; one that was revoked has not."""
        found = self._look()
        return found is not None and found.ended and found.state == states.FAILURE

    def leaves(self) -> list[Self]:
        """Return the results of single tasks in this one: itself."""
        return [self]

    # -- Waiting -------------------------------------------------------------------------------

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Wait for the end of the task and return its value.

        Args:
            timeout: seconds to wait at most; None waits as long as it takes.
            propagate: raise the task's exception; False returns it.
            follow_parents: a failure of an earlier step of the chain is raised as that step's.
            callback: called with (id, value).
            on_message: called with a dict (`task_id`, `status`, `result`, `traceback`, `children`, ...) for every
                state of the task, in order and each once: those before this call too, and the end last.
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
        self._wait(timeout, on_interval, self._look_once if on_message is None else Listener(self, on_message))
        if self._has_promises:
            keep_promises(self)
        if propagate and follow_parents:
            self._raise_parents()
        return self.maybe_throw(propagate, callback)  # type: ignore[no-any-return]

    wait = get

    def _is_refused(self) -> bool:
        """Whether `get` will not wait for an id that nobody knows."""
        return self.backend.conf.result_unknown_raises and not self.exists()

    def _wait(self, timeout: float | None, on_interval: Callable[[], Any] | None, look: Look) -> None:
        if self._is_refused():
            raise UnknownTask(unknown(self))
        # Where this thread has its bell already, the look after raising it is the first.
        has_bell = self._own in getattr(self.backend.bells, "kept", ())
        if not has_bell or (timeout is not None and timeout <= 0):
            if look(()):
                return
            if timeout is not None and timeout <= 0:
                raise timed_out(self)
        Wait(self.backend, self._own, timeout, on_interval, self).until(look)

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
        """Return the value; raise it if it is the exception of a task that has ended badly.

        Args:
            callback: called with (id, value) if nothing is raised.
        """
        found = self._look()
        value = None if found is None else value_of(found, self.backend.conf)
        if propagate and found is not None and found.state in states.PROPAGATE_STATES:
            if isinstance(value, BaseException) and self.backend.conf.task_remote_tracebacks:
                value = with_remote(value, found.traceback)
            self.throw(value)
        if callback is not None:
            callback(self.id, value)
        return value

    maybe_reraise = maybe_throw

    def throw(self, value: Any) -> None:
        """Raise what a task ended with."""
        raise value if isinstance(value, BaseException) else Exception(value)

    def then(self, callback: Callable[[Any], Any], on_error: Any = None, weak: bool = False) -> Self:
        """Call something with this result once the task has ended, well or badly.

        At once if it has ended. Else when a `get` of this process sees the end, or from a daemon thread that watches
        for all of this app's; at most some hundred may wait at a time, and what waits when the app is closed is
        dropped. For what must happen, use `link`: that is kept in the store.

        Args:
            on_error: called with what `callback` raises, which else is raised, or logged by the thread.
            weak: forget about it once nobody holds this result.

        Returns:
            This result.

        Raises:
            RuntimeError: too many wait already.
        """
        promised(self, callback, on_error, weak)
        return self

    # -- What came of it ---------------------------------------------------------------------------

    def iterdeps(self, intermediate: bool = False) -> Iterator[tuple[Any, Any]]:
        """Yield (parent, result) of this one and all that it has sent, and they have, breadth first.

        Args:
            intermediate: pass over what has not ended.

        Raises:
            IncompleteStream: one has not ended, so what it will send is not known.
        """
        found: deque[tuple[Any, Any]] = deque([(None, self)])
        while found:
            parent, node = found.popleft()
            yield parent, node
            if node.ready():
                found.extend((node, child) for child in node.children or ())
            elif not intermediate:
                raise IncompleteStream(f"{node!r} has not ended: wait for it first, or ask with intermediate=True")

    def collect(self, intermediate: bool = False, **options: Any) -> Iterator[tuple[Any, Any]]:
        """Yield (result, value) of this one and all that came of it, breadth first; waits for each.

        Args:
            intermediate: wait for what has not ended, and go on to what it has sent.
            options: as for `get`.

        Raises:
            IncompleteStream: as `iterdeps`.
        """
        for _, node in self.iterdeps(intermediate):
            yield node, node.get(**options)

    def get_leaf(self) -> Any:
        """Return the value of the last one that came of this; raises as `iterdeps`."""
        value = None
        for _, node in self.iterdeps():
            value = node.get()
        return value

    def build_graph(self, intermediate: bool = False, formatter: Any = None) -> DependencyGraph:
        """Return the graph of this one and all that came of it; `to_dot` draws it. Raises as `iterdeps`."""
        graph = DependencyGraph(formatter=formatter or GraphFormatter(root=self.id, shape="oval"))
        for parent, node in self.iterdeps(intermediate):
            graph.add_arc(node)
            if parent is not None:
                graph.add_edge(parent, node)
        return graph

    @property
    def graph(self) -> DependencyGraph:
        return self.build_graph()

    def forget(self) -> None:
        """Drop the result, and those of the steps before it; a task that is still queued runs all the same."""
        node: Any = self
        while node is not None:
            leaves = node.leaves()
            node.backend.storage.forget([each.id for each in leaves])
            for each in leaves:
                each._record = None
            node = node.parent

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

    def as_list(self) -> list[str | None]:
        """Return the ids of this task and of the steps before it."""
        return [self.id, *(self.parent.as_list() if self.parent is not None else ())]

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

    _kept: ClassVar = {
        "id": "id", "ret_value": "_value", "state": "_state", "traceback": "_traceback", "name": "_name",
    }  # fmt: skip
    __slots__ = ("_state", "_traceback", "_value")
    supports_native_join: ClassVar[bool] = False
    _is_eager: ClassVar[bool] = True

    def __init__(
        self, id: str, ret_value: Any, state: str, traceback: str | None = None, name: str | None = None
    ) -> None:
        self.id, self.parent, self.ignored, self._own = id, None, False, True
        self._record = self._queue = self._asked = None
        self._name, self._has_promises = name, False
        self._value, self._state, self._traceback = ret_value, state, traceback

    def _look(self) -> Record | None:
        return None  # no store knows it

    _whole = _look

    def _meta(self, news: News | None = None) -> dict[str, Any]:
        known = {"status": self._state, "result": self._value, "traceback": self._traceback, "name": self._name}
        return {**pending(self.id), **known}

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

    def successful(self) -> bool:
        return self._state == states.SUCCESS

    def failed(self) -> bool:
        return self._state == states.FAILURE

    def _wait(self, timeout: float | None, on_interval: Callable[[], Any] | None, look: Look) -> None:
        if isinstance(look, Listener):
            look.tell_end()

    def maybe_throw(self, propagate: bool = True, callback: Any = None) -> Any:
        if self._state in states.PROPAGATE_STATES:
            if propagate:
                self.throw(self._value)
        elif self._state != states.SUCCESS:
            return None  # Ignore and the like: the task gave no value
        if callback is not None:
            callback(self.id, self._value)
        return self._value

    maybe_reraise = maybe_throw

    def forget(self) -> None:
        """Do nothing: no store has it."""

    def revoke(self, *args: Any, **options: Any) -> str:
        """Be as if it had been revoked; what the task did is done."""
        self._state, self._value, self._traceback = states.REVOKED, TaskRevokedError("revoked"), None
        return REVOKED

    def retry(self) -> Self:
        raise RetryRefused(f"task {self.id} ran where it was called, and no store has it; call it once more")


def result_from_tuple(r: Any, app: Any = None) -> Any:
    """Make a handle of what `as_tuple` of one returned, perhaps by way of JSON; a handle is returned as it is.

    Args:
        app: whose store it is in; the current app's if None.
    """
    if isinstance(r, AsyncResult | ResultSet):
        return r
    app = app if app is not None else current_app()
    head, members = r
    id, above = head if isinstance(head, list | tuple) else (head, None)
    parent = result_from_tuple(above, app) if above else None
    if members is None:
        return app.AsyncResult(id, parent=parent)
    return app.GroupResult(id, [result_from_tuple(each, app) for each in members], parent=parent)
