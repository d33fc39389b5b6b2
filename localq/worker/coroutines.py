"""Coroutine tasks of one child: an event loop in a thread of its own, beside the thread that claims and settles.

    main thread                                      the loop's thread
    claim -> executor.attempt -> place noted ------> awaits it, with its time limits
    settle <- ended, wake-up <---------------------- outcome noted

Both threads note in the same owner's notes, so each does it under one lock; and what the loop's thread has noted is
the main thread's to settle, or a steward's if that one is busy with a plain task. A place is taken before a coroutine
starts and is free again once its end is settled.
Imported by a child's first coroutine task: asyncio costs what the rest of a child does. Must not open a store.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

from localq import clock
from localq.context import Context, running, shown_name
from localq.exceptions import OperationalError, SoftTimeLimitExceeded, TimeLimitExceeded
from localq.executor import Executor
from localq.message import Claim, Outcome
from localq.recovery import Mode, given_back
from localq.revocation import TERMINATE
from localq.storage.base import Entry, Owner, Storage
from localq.worker.terminator import read
from localq.worker.terms import Attempt as Terms

logger = logging.getLogger("localq.worker.coroutines")

#: Seconds that a coroutine has to end once it was cancelled; then it counts as ended, and its place is free.
GRACE_S = 1.0
#: Seconds between two looks for what was revoked while it runs.
LOOK_S = 1.0
#: Seconds after a hard limit at which the loop itself must be stuck: then only its process can be killed.
STUCK_S = 1.0
#: Seconds that the loop has to end, its own tasks cancelled.
END_S = 5.0

#: Answers how an attempt ended that was taken away from its task; is given its request, if it had begun.
Verdict = Callable[[Context | None], Outcome]


class SoftLimit(SoftTimeLimitExceeded, asyncio.CancelledError):
    """SoftTimeLimitExceeded as a coroutine gets it: task groups and the like must take it for a cancellation."""


# Whoever reads a traceback or a stored error is to find the name that is in the documentation.
SoftLimit.__name__ = SoftLimit.__qualname__ = SoftTimeLimitExceeded.__name__
SoftLimit.__module__ = SoftTimeLimitExceeded.__module__


class Withdrawn(asyncio.CancelledError):
    """The attempt was taken away from its task: what the task makes of it does not count."""

    is_withdrawn = True


class Attempt:
    """One coroutine task that runs, or has ended and is not settled yet.

    Args:
        limits: its time limits in seconds, (hard, soft).
        place: where its owner has noted it.
        terms: who tells the steward of it; None if nobody need hear.
    """

    def __init__(
        self,
        task: Any,
        claim: Claim,
        coroutine: Coroutine[Any, Any, Outcome],
        limits: tuple[float | None, float | None],
        place: int,
        terms: Terms | None = None,
    ) -> None:
        self.task, self.claim, self.coroutine, self.place, self.terms = task, claim, coroutine, place, terms
        self.hard, self.soft = limits
        self.key = (claim.seq, claim.token)
        #: When even the loop has failed to stop it, by the monotonic clock; 0 for never.
        self.deadline = clock.monotonic() + self.hard + STUCK_S if self.hard else 0.0
        #: What to throw in place of the next cancellation.
        self.instead: BaseException | None = None
        self.verdict: Verdict | None = None
        self.context: contextvars.Context | None = None
        self.request: Context | None = None
        self.running: asyncio.Task[None] | None = None
        self.timers: list[asyncio.TimerHandle] = []
        self.has_begun = self.has_ended = False

    def seen_request(self) -> Context | None:
        """The request that the task sees while it runs; None before and after."""
        frame = self.context.get(running) if self.context is not None else None
        while frame is not None and frame.outer is not None:
            frame = frame.outer  # of a task that it calls
        return None if frame is None else frame.request

    def __await__(self) -> Generator[Any, Any, Outcome]:
        """Run the coroutine, a cancellation that is meant for it turned into what it means."""
        step: Callable[[Any], Any] = self.coroutine.send
        value: Any = None
        while True:
            try:
                awaited = step(value)
            except StopIteration as ended:
                return ended.value  # type: ignore[no-any-return]
            try:
                value = yield awaited
                step = self.coroutine.send
            except asyncio.CancelledError as exc:
                step, value, self.instead = self.coroutine.throw, self.instead or exc, None
                if isinstance(value, SoftLimit) and self.running is not None:
                    self.running.uncancel()  # who catches it goes on as one that was not cancelled
            except BaseException as exc:
                step, value = self.coroutine.throw, exc


class Coroutines:
    """The coroutine tasks of one child.

    Args:
        executor: says how attempts end that were taken away.
        storage: tells which of them were revoked.
        owner: whose notes they are in.
        noting: the lock under which both threads note.
        most: how many may run at a time.
        wake: wakes the main thread.
        indescribable: makes the outcome of an attempt of which nothing better can be said.
        expect: told of deadlines at which the loop itself must be stuck; None if nobody can end its process.
    """

    def __init__(
        self,
        executor: Executor,
        storage: Storage,
        owner: Owner,
        noting: threading.Lock,
        most: int,
        wake: Callable[[], None],
        indescribable: Callable[[Any, Claim, Exception], Outcome],
        expect: Callable[[float], None] | None = None,
    ) -> None:
        self._executor, self._storage, self._owner = executor, storage, owner
        self._noting, self._wake = noting, wake
        self._indescribable, self._expect = indescribable, expect
        self._look_at = 0.0
        self._free = list(range(most, 0, -1))
        # By (seq, token), what asks in the store for the end of one that runs.
        self._words: dict[tuple[int, int], Entry] = {}
        #: All that are not settled, by (seq, token).
        self.attempts: dict[tuple[int, int], Attempt] = {}
        self._ended: list[tuple[Attempt, Outcome]] = []
        self._settling: list[Attempt] = []
        self._pid = os.getpid()
        self._is_closing = False
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._life, name="localq-coroutines", daemon=True)
        self._thread.start()
        if not self._is_ready.wait(END_S):
            raise RuntimeError(f"no event loop could be made within {END_S:g} s, so no coroutine task can run here")

    # -- For the main thread ---------------------------------------------------------------------

    @property
    def free(self) -> int:
        """How many more may start once what `ended` has returned is settled."""
        return len(self._free) + len(self._settling)

    @property
    def running(self) -> int:
        """How many have not ended, or not been asked for by `ended`."""
        return len(self.attempts) - len(self._settling)

    def start(
        self,
        task: Any,
        claim: Claim,
        coroutine: Coroutine[Any, Any, Outcome],
        limits: tuple[float | None, float | None],
        terms: Terms | None = None,
    ) -> bool:
        """Note that a coroutine begins, in a place that is free; False if its batch was recalled."""
        attempt = Attempt(task, claim, coroutine, limits, self._free.pop(), terms)
        with self._noting:
            may = self._owner.begin(claim, task.lost_mode, 0, attempt.deadline, attempt.place)
            if not may:
                self._owner.free(attempt.place)
        if attempt.deadline and self._expect is not None:
            self._expect(attempt.deadline)
        if not may:
            coroutine.close()
            self._free.append(attempt.place)
            return False
        self.attempts[attempt.key] = attempt
        if terms is not None:
            terms.tell_accepted()
        return True

    def run(self, claim: Claim) -> None:
        """Have the loop run what was started."""
        attempt = self.attempts[claim.seq, claim.token]
        # A context like the main thread's: the app that is current there is current here.
        context = contextvars.copy_context()
        self._loop.call_soon_threadsafe(self._begin, attempt, context)

    def ended(self) -> list[Outcome]:
        """Return the outcomes that have come since the last time; `settled` must follow."""
        if self.attempts:
            self._cancel_revoked()
        with self._noting:
            news, self._ended = self._ended, []
        for attempt, outcome in news:
            self._settling.append(attempt)
            if attempt.terms is not None:
                attempt.terms.ends(outcome)
        return [outcome for _, outcome in news]

    def settled(self) -> bool:
        """Note that everything that `ended` returned is settled. Returns whether the batch was recalled."""
        with self._noting:
            was_recalled = self._owner.settled()
            for _, outcome in self._ended:
                self._note(outcome)  # it has come since then, and was struck out with the others
            for attempt in self._settling:
                self._owner.free(attempt.place)
        for attempt in self._settling:
            del self.attempts[attempt.key]
            self._free.append(attempt.place)
            if attempt.key in self._words:
                self._forget_word(self._words.pop(attempt.key))
        self._settling = []
        return was_recalled

    def cancel(self, seq: int, token: int) -> bool:
        """Cancel one that runs, from any thread; its outcome is REVOKED. False if it does not run here."""
        attempt = self.attempts.get((seq, token))
        if attempt is None:
            return False
        try:
            self._loop.call_soon_threadsafe(
                self._withdraw, attempt, partial(self._executor.terminated, attempt.task, attempt.claim)
            )
        except RuntimeError:
            return False  # the loop has ended
        return True

    def _forget_word(self, entry: Entry) -> None:
        try:
            self._storage.write(entry.key, None, entry.value)
        except OperationalError:
            logger.debug("%s stays in the store until it expires", entry.key)

    def _cancel_revoked(self) -> None:
        """Cancel those that were revoked, to be stopped while they run; they are looked for now and then."""
        if clock.monotonic() < self._look_at:
            return
        self._look_at = clock.monotonic() + LOOK_S
        for entry in self._storage.entries(TERMINATE):
            said = read(entry.value)
            if said.get("owner") != self._owner.name:
                continue
            seq, token = said.get("seq", 0), said.get("token", 0)
            if self.cancel(seq, token):
                # The word stays until it has ended: if the loop is stuck, the steward has this process killed.
                self._words[seq, token] = entry

    def close(self) -> None:
        """End the loop and its thread. What runs still is cancelled, and ends like what a dead process ran."""
        self._is_closing = True
        try:
            self._loop.call_soon_threadsafe(self._stop.set)
        except RuntimeError:
            return  # it was closed before
        self._thread.join(END_S)
        if self._thread.is_alive():
            logger.warning("the event loop does not end: something in it blocks, or ignores its cancellation")

    # -- In the loop's thread ----------------------------------------------------------------------

    def _life(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._stop = asyncio.Event()
            self._is_ready.set()
            runner.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        await self._stop.wait()

    def _begin(self, attempt: Attempt, context: contextvars.Context) -> None:
        if attempt.verdict is not None:
            attempt.coroutine.close()
            self._end(attempt, None)
            return
        attempt.context = context
        attempt.running = self._loop.create_task(
            self._lived(attempt), name=f"{attempt.task.name}[{attempt.claim.message.id}]", context=context
        )
        if attempt.soft:
            attempt.timers.append(self._loop.call_later(attempt.soft, self._tell, attempt))
        if attempt.hard:
            attempt.timers.append(self._loop.call_later(attempt.hard, self._time_out, attempt, attempt.hard))

    async def _lived(self, attempt: Attempt) -> None:
        attempt.has_begun = True
        outcome: Outcome | None = None
        try:
            outcome = await attempt
        except Withdrawn:
            pass  # there is a verdict
        except Exception as exc:
            outcome = self._indescribable(attempt.task, attempt.claim, exc)
        if os.getpid() != self._pid:
            os._exit(0)  # the task forked, and this is the copy: the original goes on
        self._end(attempt, outcome)

    def _end(self, attempt: Attempt, outcome: Outcome | None) -> None:
        """Note how an attempt ended, once: what comes later is of no account."""
        if attempt.has_ended or self._is_closing:
            return
        attempt.has_ended = True
        for timer in attempt.timers:
            timer.cancel()
        if attempt.verdict is not None:
            try:
                outcome = attempt.verdict(attempt.request)
            except Exception as exc:
                outcome = self._indescribable(attempt.task, attempt.claim, exc)
        assert outcome is not None
        with self._noting:
            self._note(outcome)
            self._ended.append((attempt, outcome))
        self._wake()

    def _note(self, outcome: Outcome) -> None:
        """Write an outcome into the journal; what does not go in there waits for the main thread."""
        try:
            self._owner.end(outcome)
        except ValueError:
            logger.debug("outcome of %s is not plain enough for the journal", outcome.id)

    # -- Ends that come from outside -----------------------------------------------------------------

    def _tell(self, attempt: Attempt) -> None:
        m = attempt.claim.message
        if attempt.verdict is not None:
            return  # it is withdrawn, which nothing may take the place of
        if attempt.terms is None:
            logger.warning("Soft time limit (%ss) exceeded for %s[%s]", attempt.soft, shown_name(m), m.id)
        else:
            attempt.terms.tell_soft(attempt.soft)
        self._throw(attempt, SoftLimit(attempt.soft))

    def _time_out(self, attempt: Attempt, limit: float) -> None:
        m = attempt.claim.message
        logger.error("Hard time limit (%ss) exceeded for %s[%s]", limit, shown_name(m), m.id)
        task, claim = attempt.task, attempt.claim
        if Mode.unpacked(task.lost_mode).again_in_time and claim.redeliveries < task.app.conf.task_max_redeliveries:
            self._withdraw(attempt, lambda _: given_back(claim)._replace(charged=1))
            return
        if attempt.terms is not None and attempt.verdict is None:
            attempt.terms.over_s = limit
        self._withdraw(attempt, partial(self._executor.failed, task, claim, TimeLimitExceeded(limit)))

    def _withdraw(self, attempt: Attempt, verdict: Verdict) -> None:
        """Cancel an attempt whose outcome is known already, whatever it makes of that."""
        if attempt.verdict is not None or attempt.has_ended:
            return
        attempt.verdict, attempt.request = verdict, attempt.seen_request()
        self._throw(attempt, Withdrawn())
        attempt.timers.append(self._loop.call_later(GRACE_S, self._abandon, attempt))

    def _throw(self, attempt: Attempt, exc: BaseException) -> None:
        if attempt.running is None or attempt.has_ended:
            return
        if not attempt.has_begun:
            # Cancelled before its first step, it would never come to where that is handled.
            self._loop.call_soon(self._throw, attempt, exc)
            return
        attempt.instead = exc
        attempt.running.cancel()

    def _abandon(self, attempt: Attempt) -> None:
        m = attempt.claim.message
        logger.error("Task %s[%s] goes on although it was cancelled; it counts as ended", shown_name(m), m.id)
        self._end(attempt, None)
