"""Claim, execute, settle: the loop that runs tasks, plain ones one at a time, coroutines beside them.

The same loop is a prefork child's whole life and a solo worker's main thread. A batch is claimed and settled
in one transaction; it grows only while tasks are short, and its owner's notes say what is running, so that the
steward can settle what has ended and take back what is reserved if one of them turns out to be long. Coroutine
tasks are handed to a loop in another thread (coroutines.py), and claiming goes on as if this one were free.
Must not decide what becomes of tasks when it dies: its notes tell others enough.
"""

from __future__ import annotations

import logging
import math
import os
import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from localq import clock, faults, signals, states
from localq.context import headers_of, shown_name
from localq.exceptions import LocalqError, NotRegistered, OperationalError, StoreBusy, StoreFull
from localq.executor import Executor
from localq.message import Claim, Message, Outcome, Turn, Want
from localq.plan import ENDS, RESULT
from localq.rates import NAME, task_of
from localq.recovery import given_back, settle_each, unwritable
from localq.serialization import checksum, encode, value_of
from localq.storage.base import Bell, Owner, Storage
from localq.worker.holds import needless, parked, rates_of, warn_of_unknown
from localq.worker.terms import Terms

logger = logging.getLogger("localq.worker.child")

#: Seconds a batch should take, and after which it is settled whatever is left of it.
BATCH_S, BATCH_LIMIT_S = 0.01, 0.02
#: Most messages of a batch, and how much larger one may be than the one before it.
BATCH_MOST, BATCH_GROWTH = 128, 4
#: Seconds between two looks of a bell that another thread cannot ring, while there are coroutines.
DEAF_S = 0.005
#: In place of an outcome: the task runs on, and this thread is free.
RUNS_ON = Outcome(0, 0, "")
#: In place of an outcome: it is written already.
DONE = Outcome(0, 0, "")
#: Seconds between two looks for work when no bell rings.
FLOOR_S = 1.0
#: Longest pause between two tries to write to a full store, in seconds.
LONGEST_PAUSE_S = 30.0


class Consumer:
    """Runs the tasks of some queues until it is told to stop.

    Args:
        app: whose tasks.
        queues: where to claim from.
        hostname: the node's name.
        about: facts that others see of this owner.
        terms: how long tasks may take, whom it tells, how long it works.
    """

    def __init__(
        self, app: Any, queues: tuple[str, ...], hostname: str, about: dict[str, object], terms: Terms | None = None
    ) -> None:
        self.app, self.queues, self.hostname = app, queues, hostname
        self._terms = terms or Terms()
        self._is_watched = self._terms.is_watched
        #: It has stopped because it has done enough.
        self.is_worn = False
        self._about = {"kind": "child", "node": hostname, "queues": list(queues), **about}
        self._executor = Executor(app.conf, hostname, store=self._store)
        # The end that was written ahead of its batch, for the sake of the task's own handlers.
        self._stored: Outcome | None = None
        self._rates = rates_of(app.tasks, app.conf, hostname)
        self._limit = self._asked = 1
        # Keys under which nothing need wait any more, and when that was looked up.
        self._frees: tuple[str, ...] = ()
        self._freed_at = -math.inf
        # Coroutine tasks, once there has been one, and what stands in for them before.
        self._beside: Any = None
        self._ended_beside: Callable[[], list[Outcome]] = list
        self._attempts: Mapping[tuple[int, int], object] = {}
        self._raised = 0
        # Held by whoever writes into the owner's notes, once there are coroutines.
        self._noting = threading.Lock()
        self._pid = os.getpid()
        self.executed = 0
        #: Called before every sleep, and before every claim of a busy child: a task may have changed signal handlers.
        self.before_turn: Callable[[], None] = lambda: None
        self.is_stopping = False
        # A signal handler or another thread writes here to end a sleep.
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def stop(self) -> None:
        """Finish the task that is running, give back the rest, and return from `run`. Safe in a signal handler."""
        self.is_stopping = True
        self._wake()

    def cancel(self, seq: int, token: int) -> bool:
        """Cancel a coroutine task that runs here, from any thread; it ends as REVOKED.

        Returns:
            Whether it was running: False for a plain task, and for one that is not here.
        """
        return self._beside is not None and bool(self._beside.cancel(seq, token))

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"!")
        except OSError:
            pass  # it is awake already, or has ended

    def _hear(self) -> None:
        """Take what has woken this thread for heard."""
        try:
            os.read(self._wake_read, 65536)
        except BlockingIOError:
            pass

    def run(self) -> None:
        """Claim, execute and settle until stopped."""
        storage: Storage = self.app.storage
        owner = storage.enlist(self._about)
        self._terms.start(owner, self.app.tasks.values())
        self._bell = bell = storage.bell(self.queues, owner=owner.name)
        self._ask = bell.raise_
        outcomes: list[Outcome] = []
        self._looked_at = clock.monotonic()
        self._is_hungry = True
        try:
            while not self.is_stopping:
                outcomes += self._ended_beside()
                has_looked = not self._goes_first(outcomes)
                if self._is_hungry and has_looked:
                    # Raised before the last look, so that nothing can arrive unseen between look and sleep.
                    self._ask()
                elif not self._is_hungry:
                    self.before_turn()
                with self._noting:
                    was_recalled = owner.turn()
                turn = self._turn(storage, owner, outcomes)
                if turn is None:
                    break
                was_recalled = (self._beside or owner).settled() or was_recalled
                outcomes = []
                if turn.stale and not was_recalled:  # else the steward has settled and given back for us
                    self._report(turn.stale)
                self._tell(turn.held)
                if turn.claims:
                    outcomes = self._claimed(storage, owner, bell, turn.claims)
                elif turn.moved:
                    pass  # behind those that have to wait there may be others
                elif not self._is_hungry:
                    self._is_hungry = True
                elif has_looked:
                    outcomes = self._sleep(storage, owner, bell)
            bell.lower()
            self._finish(storage, owner, outcomes)
            owner.close()
            storage.retire(owner.name)
        finally:
            self._close(bell, owner)

    def _close(self, bell: Bell, owner: Owner) -> None:
        if self._beside is not None:
            self._beside.close()
        bell.close()
        owner.close()
        os.close(self._wake_read)
        self._wake_write, closing = -1, self._wake_write
        os.close(closing)

    def _claimed(self, storage: Storage, owner: Owner, bell: Bell, claims: list[Claim]) -> list[Outcome]:
        """Run what was claimed; what was handed over between flag and claim is for those whose hands are free."""
        faults.at("claim.released")
        bell.lower()
        self._is_hungry = len(claims) < self._asked
        if bell.sleep(0, self._wake_read) or self._should_look():
            self._give_back_unknown(storage, owner, bell, claims)
        return self._batch(storage, owner, claims)

    def _sleep(self, storage: Storage, owner: Owner, bell: Bell) -> list[Outcome]:
        """Sleep until there may be work, and run what was handed over meanwhile."""
        self.before_turn()
        if self._beside is None:
            bell.sleep(FLOOR_S, self._wake_read)
        else:
            bell.sleep(FLOOR_S if storage.shared else DEAF_S, self._wake_read)
            self._hear()
        claims = self._handed(storage, owner, bell)
        if not claims:
            return []
        faults.at("hand.received")
        return self._in_turn(storage, owner, claims)

    def _handed(self, storage: Storage, owner: Owner, bell: Bell) -> list[Claim]:
        """Return what this owner was given while it slept."""
        claims = [Claim(copy[0], copy[1], copy[2], Message(*copy[3:])) for copy in bell.copies()]
        if bell.is_unsure or self._should_look():
            self._give_back_unknown(storage, owner, bell, claims)
        return claims

    def _in_turn(self, storage: Storage, owner: Owner, claims: list[Claim]) -> list[Outcome]:
        """Run what was handed over, but what is another's, or may start only so often and is claimed with a token."""
        rates, back, free = self._rates, [], []
        for claim in claims:
            message = claim.message
            if message.queue not in self.queues:
                back.append(given_back(claim))
            elif message.name in rates:
                back.append(parked(claim, rates[message.name].hold(message.queue)))
            else:
                free.append(claim)
        return self._batch(storage, owner, free) + back

    def _tell(self, held: Sequence[str]) -> None:
        """Tell of what a turn has done: the steward of what is settled, people of what nobody here knows."""
        if self._terms.ended:
            self._terms.tell_ended()
        for key in held:
            if key.startswith(NAME):
                warn_of_unknown(task_of(key), self.app.tasks)

    def _give_back_unknown(self, storage: Storage, owner: Owner, bell: Bell, claims: list[Claim]) -> None:
        """Give back what this owner holds and was not told of in time.

        Never run from here: its producer, or a steward, may be about to give it back as well. Claimed anew by whoever
        comes first, it has a token that none of them knows.
        """
        self._looked_at = clock.monotonic()
        bell.looked()
        known = {(claim.seq, claim.token) for claim in claims}
        known.update(self._attempts)
        unknown = [claim for claim in storage.estate(owner.name).claims if (claim.seq, claim.token) not in known]
        if unknown:
            settle_each(storage, list(map(given_back, unknown)))

    def _should_look(self) -> bool:
        """Whether it is time to see what is held: in a steady trickle of rings no sleep grows unsure."""
        return clock.monotonic() - self._looked_at > FLOOR_S

    def _raise(self) -> None:
        """Ask for work if there is room for it."""
        bell = self._bell
        if not self._beside.free:
            bell.lower()
        elif bell.raised != self._raised or not bell.is_up():
            # Not again while it is up: what is on its way by this raising would come unexpected.
            bell.raise_()
            self._raised = bell.raised

    def _wait_for_coroutines(self, storage: Storage, outcomes: list[Outcome]) -> None:
        """Settle what has ended, until the last coroutine has."""
        while self._attempts or outcomes:
            outcomes += self._beside.ended()
            try:
                stale = settle_each(storage, outcomes)
                outcomes = []
                if not self._beside.settled():  # else the steward has settled for us
                    self._report(stale)
            except (StoreFull, StoreBusy) as exc:
                if not self._beside.running:
                    raise  # they are noted, and whoever sweeps will write them
                logger.warning("%d ended tasks wait to be written: %s", len(outcomes), exc)
            if self._beside.running:
                self.before_turn()
                select.select([self._wake_read], [], [], FLOOR_S)
                self._hear()

    def _finish(self, storage: Storage, owner: Owner, outcomes: list[Outcome]) -> None:
        """Settle what has ended, and give back what was handed over meanwhile."""
        if self._beside is not None:
            if self.is_worn and self._attempts:
                self._terms.leave()
            self._wait_for_coroutines(storage, outcomes)
            outcomes = []
        # Even if nothing has: whoever saw the flag up has put its message by the time this settle is through.
        self._report(settle_each(storage, outcomes))
        owner.settled()
        self._terms.tell_ended()
        settle_each(storage, [given_back(claim) for claim in storage.estate(owner.name).claims])

    def _turn(self, storage: Storage, owner: Owner, outcomes: list[Outcome]) -> Turn | None:
        """Settle and claim, however long the disk is full or the gate shut; None if asked to stop meanwhile."""
        pause_s = FLOOR_S
        while True:
            try:
                return storage.settle(outcomes, self._want(owner, outcomes))
            except (StoreFull, StoreBusy) as exc:
                # What has ended stays in memory and in the notes; nothing new is claimed.
                logger.warning("%d ended tasks wait to be written, again in %g s: %s", len(outcomes), pause_s, exc)
            except OperationalError:
                raise
            except Exception:
                # One of them holds what no store can write: it alone fails.
                return Turn([], settle_each(storage, outcomes))
            select.select([self._wake_read], [], [], pause_s)
            self._hear()
            if self.is_stopping:
                return None
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def _want(self, owner: Owner, outcomes: list[Outcome]) -> Want:
        self._asked = 0 if self._goes_first(outcomes) else self._limit
        if self._beside is not None:
            self._asked = min(self._asked, self._beside.free)
        return Want(owner.name, self.queues, self._asked, clock.now(), self._rates, self._needless())

    def _needless(self) -> tuple[str, ...]:
        """Return the keys to free: asked for once a second, and as long as there are some."""
        if self._asked and (self._frees or clock.monotonic() - self._freed_at > FLOOR_S):
            self._freed_at = clock.monotonic()
            self._frees = needless(self.app.storage, self.app, self.queues)
        return self._frees if self._asked else ()

    def _goes_first(self, outcomes: list[Outcome]) -> bool:
        """Whether somebody may be waiting for this one result, and nothing more is expected: no look for more now."""
        return self._is_hungry and len(outcomes) == 1 and outcomes[0].hold is None

    def _batch(self, storage: Storage, owner: Owner, claims: list[Claim]) -> list[Outcome]:
        """Run claims in order; what there is no time for goes back."""
        started = time.perf_counter()
        outcomes: list[Outcome] = []
        elapsed, done = 0.0, 0
        most = -1 if self._terms.most_tasks is None else self._terms.most_tasks - self.executed
        for at, claim in enumerate(claims):
            if self.is_stopping or elapsed > BATCH_LIMIT_S or done == most:
                outcomes += map(given_back, claims[at:])
                break
            if claim.message.visible_at is not None and claim.message.visible_at > clock.now():
                outcomes.append(given_back(claim))  # it was due by a clock that has been set back since
                continue
            outcome = self._execute(storage, owner, claim, len(claims) - at - 1)
            if os.getpid() != self._pid:
                os._exit(0)  # the task forked, and this is the copy: the original goes on
            if outcome is None:
                outcomes += map(given_back, claims[at:])
                break
            done += 1
            elapsed = time.perf_counter() - started
            if outcome is RUNS_ON or outcome is DONE:
                continue
            outcomes.append(outcome)
            faults.at("end.returned")
            with self._noting:
                is_noted = owner.end(outcome)
            if not is_noted:
                outcomes += map(given_back, claims[at + 1 :])
                break
            faults.at("end.noted")
        self.executed += done
        if self._terms.wears and self._terms.is_worn(self.executed):
            self.is_worn = self.is_stopping = True
        if done:
            self._limit = max(1, min(int(BATCH_S * done / max(elapsed, 1e-6)), self._limit * BATCH_GROWTH, BATCH_MOST))
        return outcomes

    def _execute(self, storage: Storage, owner: Owner, claim: Claim, left: int) -> Outcome | None:
        """Run one of a batch, `left` more being to come; None if the batch was recalled and this must not run."""
        message = claim.message
        tasks = self.app.tasks
        task = tasks.get(message.name) or tasks.aliases.get(message.name)
        if task is None or claim.revoked:
            return self._executor.revoked(task, claim) if claim.revoked else self._unknown(claim)
        if logger.isEnabledFor(logging.INFO) or signals.task_received.receivers:
            logger.info("Task %s[%s] received", shown_name(message), message.id)
            self._executor.received(task, claim)
        fed: tuple[Any, ...] = ()
        if message.after is not None:
            try:
                fed = feed(storage, claim, self.app.conf)
            except LocalqError as exc:
                return self._executor.failed(task, claim, exc)
        if task.is_async:
            return self._start(storage, owner, task, claim, fed)
        attempt = None
        if task.is_watched or self._is_watched or (message.headers and '"timelimit"' in message.headers):
            attempt = self._terms.of(task, claim)
        faults.at("start.reserved")
        # What ends beside this one waits for it as well, unless a steward looks closely.
        left += len(self._attempts)
        with self._noting:
            is_mine = owner.begin(claim, task.lost_mode, left) if attempt is None else attempt.begin(owner, left)
        if not is_mine:
            return None
        faults.at("start.noted")
        if task.track_started and not message.ignore_result:
            self._tell_started(storage, claim)
        try:
            outcome: Outcome = (
                self._executor.attempt(task, claim, fed)  # type: ignore[assignment]  # it is no coroutine's
                if attempt is None
                else attempt.run(self._executor, fed)
            )
            return DONE if outcome is self._stored else outcome
        except Exception as exc:
            return self._indescribable(task, claim, exc)

    def _indescribable(self, task: Any, claim: Claim, exc: Exception) -> Outcome:
        """An exception that cannot even be described (its repr, its notes) must cost its own task only."""
        message = claim.message
        self._executor.broken(task, claim, exc)
        logger.error("Task %s[%s] ended in a way that cannot be described", message.name, message.id, exc_info=exc)
        return unwritable(Outcome(claim.seq, claim.token, message.id, group_id=message.group_id,
                                  leads=message.leads, reply_to=message.reply_to), exc)  # fmt: skip

    def _start(self, storage: Storage, owner: Owner, task: Any, claim: Claim, fed: tuple[Any, ...]) -> Outcome | None:
        """Hand a coroutine task to the loop; None if the batch was recalled."""
        try:
            limits = self._terms.limits_of(task, claim)
            terms = self._terms.beside(task, claim)
            found = self._executor.attempt(task, claim, fed, terms)
        except Exception as exc:
            return self._indescribable(task, claim, exc)
        if isinstance(found, Outcome):
            return found  # it has expired, or cannot be read
        if self._beside is None:
            self._open_loop(owner)
        if not self._beside.free:
            found.close()
            return given_back(claim)
        faults.at("start.reserved")
        if not self._beside.start(task, claim, found, limits, terms):
            return None
        faults.at("start.noted")
        if task.track_started and not claim.message.ignore_result:
            self._tell_started(storage, claim)
        self._beside.run(claim)
        return RUNS_ON

    def _open_loop(self, owner: Owner) -> None:
        """Have a loop for coroutines from now on."""
        from localq.worker.coroutines import Coroutines  # asyncio, 5 MB that a child of plain tasks does not need

        most = self.app.conf.worker_async_concurrency
        post = self._terms.post
        beside = Coroutines(
            self._executor, self.app.storage, owner, self._noting, most, self._wake, self._indescribable,
            None if post is None else post.expect,
        )  # fmt: skip
        self._beside, self._ended_beside, self._attempts = beside, beside.ended, beside.attempts
        self._ask = self._raise

    def _unknown(self, claim: Claim) -> Outcome:
        """What becomes of a message whose task is not registered here; another worker may know it."""
        message = claim.message
        if self.app.conf.task_unknown_policy == "fail":
            return self._executor.unknown(claim)
        exc = NotRegistered(message.name)
        signals.task_unknown.send(None, message=message, exc=exc, name=message.name, id=message.id)
        return parked(claim, f"{NAME}{message.name}@{message.queue}")

    def _store(self, outcome: Outcome) -> bool:
        """Write an end now; returns False if somebody else has ended the task."""
        try:
            stale = settle_each(self.app.storage, [outcome])
        except OperationalError as exc:
            logger.warning("task %s's own handlers are called before its end is written: %s", outcome.id, exc)
            return True
        self._stored = outcome
        self._report(stale)
        return not stale

    def _tell_started(self, storage: Storage, claim: Claim) -> None:
        data, content_type = encode({"pid": os.getpid(), "hostname": self.hostname}, "json")
        started = Outcome(
            claim.seq, claim.token, claim.message.id, states.STARTED, ended=False, worker=self.hostname,
            result=data, content_type=content_type, checksum=checksum(data),
        )  # fmt: skip
        try:
            storage.update(claim.seq, claim.token, started)
        except (StoreFull, StoreBusy) as exc:
            # Nobody sees that it runs; that it ends will be written.
            logger.warning("that task %s has started cannot be written: %s", claim.message.id, exc)

    def _report(self, stale: list[Outcome]) -> None:
        for outcome in stale:
            logger.warning("Task %s was given to another worker meanwhile; this result is dropped", outcome.id)


def feed(storage: Storage, claim: Claim, conf: Any) -> tuple[Any, ...]:
    """Read what a message waited for, as the values that stand before its own arguments."""
    kind = headers_of(claim).get("feed")
    after = claim.message.after
    if kind is None or after is None:
        return ()
    if kind == RESULT:
        found = storage.records((after,)).get(after)
        if found is None:
            raise LocalqError(f"the result of {after}, which this task needs, is gone: it was forgotten or has expired")
        return (value_of(found, conf),)
    members = list(storage.records(group_id=after).values())
    if kind == ENDS:
        return ([(record.state, value_of(record, conf)) for record in members],)
    if len(members) != headers_of(claim).get("feeds", len(members)):
        raise LocalqError(f"results of the group {after}, which this task needs, are gone: they were forgotten")
    return ([value_of(record, conf) for record in members],)
