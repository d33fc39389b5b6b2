"""An app's results under the names that Celery's result backends have: `app.backend.get_task_meta(id)` and the like.

    get_*, task_result_exists, reload_*    read the store, each time: nothing is kept in memory (`result_cache_max`)
    store_result, mark_as_*                write a state by hand
    save_group, restore_group              groups by their id, as entries `group:<id>`
    forget_old                             drops what `result_expires` says, a step at a time

By hand, a state that is no end is as one of `update_state`. An end is one only for a task that was never sent here: it
is made known, as what ran eagerly is. A task that is queued or runs ends by itself, whatever is said of it meanwhile;
and what has ended stays as it ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from localq import clock, states
from localq.exceptions import TaskRevokedError
from localq.message import Message, Outcome, Record
from localq.meta import meta_of, pending
from localq.serialization import checksum, encode, exception_data
from localq.states import EXCEPTION_STATES
from localq.storage.base import Count, Forgotten, Old, Storage

#: The queue of results that are written without having waited for a worker: nobody serves it.
EAGER_QUEUE = "@eager"
GROUP = "group:"


class Lifetimes(NamedTuple):
    """How many seconds results are kept after the end; None: until somebody forgets them."""

    results_s: float | None
    failures_s: float | None


class ResultStore:
    """The part of a backend that is about results; see `localq.backend.Backend`, which is one."""

    conf: Any
    app: Any
    storage: Storage

    @property
    def url(self) -> str:
        """The store as a URL, without opening it."""
        raise NotImplementedError

    #: Celery's words for what it does without polling.
    is_async = True
    supports_native_join = True
    supports_autoexpire = True
    persistent = True
    READY_STATES = states.READY_STATES
    UNREADY_STATES = states.UNREADY_STATES
    EXCEPTION_STATES = states.EXCEPTION_STATES

    # -- Reading -----------------------------------------------------------------------------------

    def get_task_meta(self, task_id: str, cache: bool = True) -> dict[str, Any]:
        """Describe how a task stands; see `localq.meta`."""
        found = self.storage.records((task_id,), whole=True).get(task_id)
        return pending(task_id) if found is None else meta_of(found, self.conf)

    def get_state(self, task_id: str) -> str:
        """Return a task's state; PENDING if the store does not know it."""
        return str(self.get_task_meta(task_id)["status"])

    get_status = get_state

    def get_result(self, task_id: str) -> Any:
        """Return a task's value, exception or meta."""
        return self.get_task_meta(task_id)["result"]

    def get_traceback(self, task_id: str) -> Any:
        """Return a failed task's traceback."""
        return self.get_task_meta(task_id)["traceback"]

    def get_children(self, task_id: str) -> Any:
        """Return the results of what a task has sent, as tuples."""
        return self.get_task_meta(task_id)["children"]

    def task_result_exists(self, task_id: str) -> bool:
        """Whether the store knows a task."""
        return bool(self.storage.records((task_id,)))

    def reload_task_result(self, task_id: str) -> None:
        """Do nothing: whoever asks reads the store."""

    reload_group_result = reload_task_result

    def is_cached(self, task_id: str) -> bool:
        """Whether a result is kept in memory: never."""
        return False

    def as_uri(self, include_password: bool = False) -> str:
        """Return the store's URL, which has no password."""
        return self.url

    # -- Writing -----------------------------------------------------------------------------------

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **_: Any
    ) -> Any:
        """Write a state by hand; see the module for what that means.

        Args:
            result: a value, an exception, or for another state its meta.

        Returns:
            The result.

        Raises:
            TypeError: the state is no text.
            ValueError: a state that stands for an exception is given something else.
            EncodeError: the result cannot be written.
        """
        said = self.said(task_id, state, result)
        outcome = said._replace(traceback=traceback, ended=state in states.READY_STATES)
        keep(self.storage, Message(task_id, str(getattr(request, "task", None) or ""), b"[[], {}]"), outcome)
        return result

    def said(self, id: str, state: str, value: Any) -> Outcome:
        """Write a state and its data as an outcome that ends nothing.

        Raises:
            TypeError, ValueError, EncodeError: as `store_result`.
        """
        if not isinstance(state, str):
            raise TypeError(
                f"the state of task {id!r} is {state!r}: expected text. The first argument is a task's id: "
                "update_state(state=..., meta=...) is of the running one"
            )
        if isinstance(value, BaseException):
            value = exception_data(value)
        elif state in EXCEPTION_STATES and not _is_exception(value):
            raise ValueError(
                f"state {state} of task {id} stands for an exception: give one, or a dict with exc_type and "
                f"exc_message, not {value!r}"
            )
        data, content_type = encode(value, self.conf.result_serializer, "the meta")
        return Outcome(
            0, 0, id, state, False, result=data, content_type=content_type, checksum=checksum(data),
        )  # fmt: skip

    def mark_as_started(self, task_id: str, **meta: Any) -> Any:
        """Write STARTED with this meta."""
        return self.store_result(task_id, meta, states.STARTED)

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, state: str = states.SUCCESS
    ) -> None:
        """Write a value."""
        if store_result:
            self.store_result(task_id, result, state, request=request)

    def mark_as_failure(
        self, task_id: str, exc: BaseException, traceback: str | None = None, request: Any = None,
        store_result: bool = True, call_errbacks: bool = True, state: str = states.FAILURE,
    ) -> None:  # fmt: skip
        """Write an exception. Errbacks and those that wait are told by the end of a task only, not by hand."""
        if store_result:
            self.store_result(task_id, exc, state, traceback, request)

    def mark_as_revoked(
        self, task_id: str, reason: str = "", request: Any = None, store_result: bool = True,
        state: str = states.REVOKED,
    ) -> None:  # fmt: skip
        """Write that a task was revoked."""
        if store_result:
            self.store_result(task_id, TaskRevokedError(reason), state, request=request)

    def mark_as_retry(
        self, task_id: str, exc: BaseException, traceback: str | None = None, request: Any = None,
        store_result: bool = True, state: str = states.RETRY,
    ) -> Any:  # fmt: skip
        """Write that a task is to be tried again; it is not."""
        return self.store_result(task_id, exc, state, traceback, request) if store_result else None

    def forget(self, task_id: str) -> None:
        """Drop a result; a task that is still queued runs all the same."""
        self.storage.forget((task_id,))

    # -- Groups ------------------------------------------------------------------------------------

    def save_group(self, group_id: str, result: Any) -> Any:
        """Keep a group, so that its id is enough to find its members; as long as results are kept."""
        kept_s = self.lifetimes().results_s
        self._write_group(group_id, json.dumps(result.as_tuple()), None if kept_s is None else clock.now() + kept_s)
        return result

    def restore_group(self, group_id: str, cache: bool = True) -> Any:
        """Return a group that was saved; None if there is none."""
        text = self._group_text(group_id)
        return None if text is None else self.app.result_of(json.loads(text))

    def get_group_meta(self, group_id: str, cache: bool = True) -> dict[str, Any] | None:
        """Return {"result": group} of a group that was saved; None if there is none."""
        found = self.restore_group(group_id)
        return None if found is None else {"result": found}

    def delete_group(self, group_id: str) -> None:
        """Take back what `save_group` did."""
        self._write_group(group_id, None, None)

    def _write_group(self, group_id: str, text: str | None, until: float | None) -> None:
        # Whoever writes last is right, so a loser of the race tries again.
        while not self.storage.write(f"{GROUP}{group_id}", text, self._group_text(group_id), until):
            pass

    def _group_text(self, group_id: str) -> str | None:
        key = f"{GROUP}{group_id}"
        return next((entry.value for entry in self.storage.entries(key) if entry.key == key), None)

    # -- What has had its time ---------------------------------------------------------------------

    def lifetimes(self) -> Lifetimes:
        """Return how long results are kept, by the settings."""
        results_s = _seconds(self.conf.result_expires)
        failures = self.conf.result_failure_expires
        return Lifetimes(results_s, results_s if failures is None else _seconds(failures))

    def forget_old(self, after: int = 0) -> Forgotten:
        """Drop results that have had their time: one step, in one short transaction.

        Args:
            after: where the last step said to look on; 0 to begin.
        """
        now = clock.now()
        before = [0.0 if kept_s is None else now - kept_s for kept_s in self.lifetimes()]
        return self.storage.forget(old=Old(after, *before))

    def cleanup(self) -> int:
        """Drop every result that has had its time; return how many results and entries are gone."""
        step = self.forget_old()
        number = step.number
        while step.seq or step.number:
            step = self.forget_old(step.seq)
            number += step.number
        return number

    def process_cleanup(self) -> None:
        """Do nothing: a thread's connection closes with it."""


def keep(storage: Storage, message: Message, outcome: Outcome) -> bool:
    """Write a state of a task that no worker runs; returns whether it was written.

    Args:
        message: what the task is known by if the store does not know it.
        outcome: what is written; without a state, what was written before is the end.
    """
    # In a queue of its own: no worker runs it.
    queue = f"{EAGER_QUEUE}.{message.id}"
    known = storage.records((message.id,)).get(message.id)
    if known is None and outcome.state is not None:
        new = message._replace(queue=queue, visible_at=None, after=None, waits_for=0)
        if outcome.ended:
            return storage.update(0, 0, _end(outcome)._replace(again=new))
        storage.put((new,))
    elif known is not None and known.queue == queue and outcome.ended:
        return storage.update(0, 0, _end(outcome if outcome.state is not None else _as_it_stands(outcome, known)))
    if outcome.state is None:
        return False
    return storage.update(0, 0, outcome._replace(seq=0, token=0, ended=False, ended_at=None))


def take_over(storage: Storage, messages: Sequence[Message]) -> bool:
    """Put messages of whose ids states were written before they were sent; these stay what they show.

    Returns:
        False if none of the ids is known so: somebody else's call has one of them, and nothing was put.
    """
    found = storage.records([message.id for message in messages])
    early = [each for each in found.values() if each.queue == f"{EAGER_QUEUE}.{each.id}" and not each.ended]
    if not early:
        return False
    for each in early:
        # What has not ended is not forgotten.
        storage.update(0, 0, _end(_as_it_stands(Outcome(0, 0, each.id, ended_at=clock.now()), each)))
    storage.forget([each.id for each in early])
    storage.put(messages)
    for each in early:
        storage.update(0, 0, Outcome(0, 0, each.id, each.state, result=each.result, content_type=each.content_type,
                                     checksum=each.checksum, ended=False))  # fmt: skip
    return True


def by_queue(counts: Iterable[Count]) -> tuple[list[Count], int]:
    """Tell the messages of queues, which workers serve, from those that `keep` put in queues of their own.

    Returns:
        The counts of queues, and how many others there are.
    """
    queues: list[Count] = []
    others = 0
    for count in counts:
        if count.queue.startswith(f"{EAGER_QUEUE}."):
            others += count.number
        else:
            queues.append(count)
    return queues, others


def _end(outcome: Outcome) -> Outcome:
    return outcome._replace(seq=0, token=0, ended_at=outcome.ended_at or clock.now())


def _as_it_stands(outcome: Outcome, known: Record) -> Outcome:
    return outcome._replace(
        state=known.state, result=known.result, content_type=known.content_type, checksum=known.checksum
    )


def _is_exception(value: Any) -> bool:
    """Whether an exception can be made of a value again."""
    return isinstance(value, dict) and {"exc_type", "exc_message"} <= value.keys()


def _seconds(span: Any) -> float | None:
    """Read a setting; 0 and None mean for ever."""
    seconds = span.total_seconds() if isinstance(span, timedelta) else span
    return float(seconds) if seconds else None
