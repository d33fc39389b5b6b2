"""On what terms a child runs tasks: how long each may take, whom it tells, and when the child itself is worn out.

Most tasks have no terms, and their child does not come by here: it looks at `Task.is_watched` and the message's
headers, and runs them. Must not run anything itself but through the executor.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
from collections.abc import Iterable
from typing import Any

from localq import clock, states
from localq.context import headers_of
from localq.exceptions import Ignore, Reject, TimeLimitExceeded
from localq.executor import Executor
from localq.message import Claim, Outcome
from localq.serialization import encode, exception_data
from localq.storage.base import Owner
from localq.worker.notices import ACCEPTED, ENDED, SOFT, Notices
from localq.worker.soft import SoftLimit, may_strike
from localq.worker.watch import Post

logger = logging.getLogger("localq.worker")

#: (hard, soft), in seconds; None for no limit.
Limits = tuple[float | None, float | None]
NO_LIMITS: Limits = (None, None)
#: How a task's attempt went of which nobody need hear.
_UNHEARD = (Ignore, Reject)


class Terms:
    """What holds for all tasks of one child.

    Args:
        limits: of tasks that have none of their own.
        notices: the line to the steward.
        post: where hard limits are known to whoever enforces them; None if nobody does.
        most_tasks, most_kib: after so many tasks, or with so much memory, the child is to be replaced.
    """

    def __init__(
        self,
        limits: Limits = NO_LIMITS,
        notices: Notices | None = None,
        post: Post | None = None,
        most_tasks: int | None = None,
        most_kib: int | None = None,
    ) -> None:
        self._limits, self.notices, self.post = limits, notices, post
        self.most_tasks, self._most_kib = most_tasks or None, most_kib or None
        self.is_watched = limits != NO_LIMITS
        self.wears = self.most_tasks is not None or self._most_kib is not None
        #: Attempts with a Request of their own whose ends are not in the store yet.
        self.ended: list[Attempt] = []
        self._said: set[str] = set()

    def start(self, owner: Owner, tasks: Iterable[Any]) -> None:
        """Begin to work as this owner; say which limits will not be kept."""
        if self.post is not None:
            self.post.introduce(owner)
        for limits in [self._limits, *(task.limits or NO_LIMITS for task in tasks if not task.is_async)]:
            self.warn(*limits)

    def of(self, task: Any, claim: Claim) -> Attempt | None:
        """Return the terms of an attempt; None if it has none."""
        hard, soft = self.limits_of(task, claim)
        self.warn(hard, soft)
        has_request = task.has_request and self.notices is not None
        return Attempt(self, task, claim, hard, soft) if hard or soft or has_request else None

    def beside(self, task: Any, claim: Claim) -> Attempt | None:
        """Return what tells the steward of a coroutine task's attempt; None if nobody need hear."""
        return Attempt(self, task, claim, None, None) if task.has_request and self.notices is not None else None

    def limits_of(self, task: Any, claim: Claim) -> Limits:
        """Return the limits of an attempt: its call's, else its task's, else those of all tasks here."""
        called = _limits_in(headers_of(claim).get("timelimit"))
        own, general = task.limits or NO_LIMITS, self._limits
        return called[0] or own[0] or general[0] or None, called[1] or own[1] or general[1] or None

    def warn(self, hard: float | None, soft: float | None) -> None:
        """Say, once, that a limit is not kept here."""
        if hard and self.post is None:
            self._say("time_limit has no effect here: the solo pool cannot stop a task that runs; use -P prefork")
        if soft and not may_strike():
            self._say("soft_time_limit has no effect here: tasks run beside the main thread, where no timer interrupts")

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)

    def tell_ended(self) -> None:
        """Tell the steward of what is in the store now."""
        ended, self.ended = self.ended, []
        for attempt in ended:
            attempt.tell_ended()

    def leave(self) -> None:
        """Say that no more tasks are taken here, although some go on."""
        if self.post is not None:
            self.post.leave()

    def is_worn(self, executed: int) -> bool:
        """Whether a child has done enough."""
        if self.most_tasks is not None and executed >= self.most_tasks:
            logger.info("this process has run %d tasks; another takes its place", executed)
            return True
        used_kib = peak_kib() if self._most_kib is not None else 0
        if self._most_kib is not None and used_kib > self._most_kib:
            logger.warning("this process used %d KiB of %d; another takes its place", used_kib, self._most_kib)
            return True
        return False


class Attempt:
    """One attempt that has terms; what is around the run of its task's function.

    Of a coroutine task it only tells the steward: its limits are kept in the loop.
    """

    def __init__(self, terms: Terms, task: Any, claim: Claim, hard: float | None, soft: float | None) -> None:
        self._terms, self._task, self._claim, self._hard, self._soft = terms, task, claim, hard, soft
        self._raised: BaseException | None = None
        self._outcome: Outcome | None = None
        self._started, self._took_s = time.perf_counter(), 0.0
        #: The hard limit that a coroutine was over.
        self.over_s: float | None = None

    def begin(self, owner: Owner, left: int) -> bool:
        """See `Owner.begin`."""
        mode, post = self._task.lost_mode, self._terms.post
        if self._hard and post is not None:
            may_run = post.begin(owner, self._claim, mode, left, self._hard)
        else:
            may_run = owner.begin(self._claim, mode, left)
        if may_run and self._task.has_request:
            self.tell_accepted()
        return may_run

    def run(self, executor: Executor, fed: tuple[Any, ...]) -> Outcome:
        """Execute it on its terms."""
        self._started = time.perf_counter()
        outcome = executor.attempt(self._task, self._claim, fed, self)
        assert isinstance(outcome, Outcome)  # it is no coroutine's
        if self._task.has_request:
            self.ends(outcome)
        return outcome

    def ends(self, outcome: Outcome) -> None:
        """Take note of how it went, to be told once that is in the store."""
        self._outcome, self._took_s = outcome, time.perf_counter() - self._started
        self._terms.ended.append(self)

    def __call__(self, run: Any, args: Any, kwargs: Any) -> Any:
        if self._task.is_async:
            return self._awaited(run, args, kwargs)
        try:
            if self._soft and may_strike():
                return SoftLimit(self._soft, self.tell_soft)(run, args, kwargs)
            return run(*args, **kwargs)
        except BaseException as exc:
            self._raised = exc
            raise

    async def _awaited(self, run: Any, args: Any, kwargs: Any) -> Any:
        try:
            answer = run(*args, **kwargs)
            return await answer if hasattr(answer, "__await__") else answer
        except BaseException as exc:
            self._raised = exc
            raise

    def tell_accepted(self) -> None:
        """Tell the steward that it begins."""
        if self._terms.notices is not None:
            self._terms.notices.tell(ACCEPTED, self._claim, pid=os.getpid(), at=clock.monotonic())

    def tell_soft(self, limit_s: float | None = None) -> None:
        """Tell the steward that it is over its soft limit."""
        if self._terms.notices is not None:
            self._terms.notices.tell(SOFT, self._claim, limit=limit_s or self._soft)

    def tell_ended(self) -> None:
        """Tell the steward how it went."""
        outcome = self._outcome
        raised = TimeLimitExceeded(self.over_s) if self.over_s else self._raised
        if outcome is None or self._terms.notices is None or isinstance(raised, _UNHEARD):
            return
        state, value, content_type = outcome.state, outcome.result, outcome.content_type
        if state == states.IGNORED:  # nothing is kept of it, but its request is told all the same
            state = states.SUCCESS if raised is None else states.FAILURE
            if raised is not None:
                value, content_type = encode(exception_data(raised), "json")
        was_terminated = state == states.REVOKED and self._task.is_async  # what has expired did not begin
        if state in (states.SUCCESS, states.RETRY, states.FAILURE) or was_terminated:
            self._terms.notices.tell(
                ENDED, self._claim, state=state, value=value, content_type=content_type, traceback=outcome.traceback,
                runtime=self._took_s, over=self.over_s,
            )  # fmt: skip


def _limits_in(header: Any) -> Limits:
    """Read a message's limits, which another program may have written; what is no limit is none."""
    if not isinstance(header, list) or len(header) != len(NO_LIMITS):
        return NO_LIMITS
    hard, soft = [each if isinstance(each, int | float) and each > 0 else None for each in header]
    return hard, soft


def peak_kib() -> int:
    """Return the most memory this process has had at once, in KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak
