"""What becomes of the claims of a process that died, or that is busy with something long.

A dead owner is known by its free lock. What it had ended and noted is settled as it noted it; the task it
was running ends by that task's acknowledgement mode; what it had only reserved goes back uncharged, to
where it stood. Every step is a `settle` with the claims' own tokens, so any number of processes may
sweep at once. Must not ask a clock whether anybody lives.

    mode          its child dies                  the whole worker dies
    EARLY         FAILURE, never run twice        the same
    LATE          FAILURE                         back in the queue, charged
    LATE_REJECT   back in the queue, charged      the same
    RETRY         RETRY, charged, by the task's own max_retries and default_retry_delay, whatever the other
                  options say (so does Celery 5.7; unlike there, also if the whole worker dies)

A worker that was stopped at once says nothing against what it ran: that goes back as often as it happens, charged.

Where a supervisor killed the process for the task's sake, it noted why before it did, and that decides instead:

    time limit    FAILURE TimeLimitExceeded; with acks_late and acks_on_timeout=False back in the queue, charged
    revoked       REVOKED

Whoever sweeps may never have heard of the task, so its mode is noted with all that is needed, as one number, and its
errbacks are left to a worker that has them (errbacks.py).
"""

from __future__ import annotations

import json
import logging
import shlex
import signal
from typing import Any, NamedTuple, Protocol

from localq import clock, errbacks, faults, states
from localq.context import headers_of, shown_name
from localq.exceptions import (
    ChordError,
    EncodeError,
    ImproperlyConfigured,
    LocalqError,
    OperationalError,
    Retry,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
)
from localq.message import Claim, Outcome
from localq.serialization import checksum, encode, exception_data
from localq.storage.base import Estate, OwnerInfo, Started, Storage
from localq.storage.owners import is_running

logger = logging.getLogger("localq.recovery")

EARLY, LATE, LATE_REJECT, RETRY = 0, 1, 2, 3
#: Why a process was killed for a task's sake, as its supervisor notes it (`Owners.condemn`): JSON {"why": ...}.
TIME_LIMIT, REVOKED = "time limit", "revoked"
#: Where a mode's parts begin in its number: the kind, whether time may be tried again, whether errors are kept, then
#: max_retries + 1 (0: no limit), the delay in milliseconds.
_AGAIN_AT, _KEEPS_AT, _MOST_AT, _DELAY_AT = 2, 3, 4, 24
#: The largest of each: 1 million retries, 34 years.
_KIND, _MOST, _DELAY = (1 << _AGAIN_AT) - 1, (1 << _DELAY_AT - _MOST_AT) - 1, (1 << 64 - _DELAY_AT) - 1
#: A message is not tried again after so many attempts that died (`task_max_redeliveries`).
MAX_REDELIVERIES = 3
#: Why a process died, where nobody says more.
GONE, STOPPED = "its process is gone", "its worker was stopped at once"
#: Why it died, for those that it ran beside the task that was to be ended.
BESIDE = "its process was killed to end another task that it ran at the same time"


class Mode(NamedTuple):
    """What becomes of a task that has started when its process dies.

    Attributes:
        kind: EARLY, LATE, LATE_REJECT or RETRY.
        max_retries, delay: how RETRY goes on; None is no limit, seconds.
        again_in_time: it goes back into the queue if it has run out of time.
        keeps_errors: its failures are kept although its results are not.
    """

    kind: int
    max_retries: int | None = None
    delay: float = 0.0
    again_in_time: bool = False
    keeps_errors: bool = False

    def packed(self) -> int:
        """Write it as one number of 64 bits; what is too large for its bits is as large as they allow."""
        most = 0 if self.max_retries is None else min(max(self.max_retries, 0) + 1, _MOST)
        delay = round(min(max(self.delay, 0) * 1000, _DELAY))
        flags = self.again_in_time << _AGAIN_AT | self.keeps_errors << _KEEPS_AT
        return self.kind | flags | most << _MOST_AT | delay << _DELAY_AT

    @classmethod
    def unpacked(cls, number: int) -> Mode:
        """Read what `packed` wrote."""
        most = number >> _MOST_AT & _MOST
        flags = bool(number >> _AGAIN_AT & 1), bool(number >> _KEEPS_AT & 1)
        return cls(number & _KIND, most - 1 if most else None, (number >> _DELAY_AT) / 1000, *flags)


def mode_of(task: Any) -> int:
    """Return the mode of a task as a number, as its owner notes it when it begins.

    Raises:
        ImproperlyConfigured: it is to be retried, and its retry options are no numbers.
    """
    flags = bool(task.acks_late) and not _acks_on_timeout(task), bool(task.store_errors_even_if_ignored)
    if task.retry_on_worker_lost:
        try:
            return Mode(RETRY, task.max_retries, task.default_retry_delay, *flags).packed()
        except (TypeError, ValueError) as exc:
            raise ImproperlyConfigured(
                f"task {task.name!r}: with retry_on_worker_lost, max_retries ({task.max_retries!r}) must be a whole "
                f"number or None, and default_retry_delay ({task.default_retry_delay!r}) a number of seconds"
            ) from exc
    if not task.acks_late:
        return Mode(EARLY, None, 0.0, *flags).packed()
    return Mode(LATE_REJECT if task.reject_on_worker_lost else LATE, None, 0.0, *flags).packed()


def _acks_on_timeout(task: Any) -> bool:
    return bool(task.acks_on_failure_or_timeout if task.acks_on_timeout is None else task.acks_on_timeout)


class Herald(Protocol):
    """Whoever calls what the user has to say about tasks that ended here, in a process that knows the tasks."""

    def told(self, claim: Claim, outcome: Outcome, why: dict[str, Any]) -> None:
        """Tell the task's own handlers and the signals' receivers that it has ended so.

        Args:
            why: its process was killed for its sake, see `reason_of`; empty if it died of something else.
        """


def sweep(
    storage: Storage,
    mine: Any = None,
    reasons: dict[int, str] | None = None,
    limit: int = MAX_REDELIVERIES,
    whole_worker: bool = False,
    unexplained: set[str] | None = None,
    herald: Herald | None = None,
) -> int:
    """Free the claims of every dead owner.

    Args:
        mine: the facts of the worker that sweeps: the dead children of another live worker are left to it.
        reasons: how a process ended, by its pid, where that is known.
        limit: charged attempts after which a message is given up.
        whole_worker: the dead children died because their worker is being stopped.
        unexplained: names of own children that were found dead before, and whose main process may still tell of
            what; others found like that are left for the next time, and their names added.
        herald: tells the user's handlers of what ends here; without one, nobody does. Errbacks are told all the same.

    Returns:
        How many messages were freed or ended.
    """
    freed = 0
    for owner in storage.owners():
        if owner.alive or _is_anothers(owner, mine) or _is_awaited(owner, reasons, unexplained):
            continue
        estate = storage.estate(owner.name)
        faults.at("sweep.read")
        lives = _parent_lives(owner)
        # A worker that kills all its children at once has not told of each when the first of them is swept.
        reason = STOPPED if whole_worker and lives else GONE
        reason = (reasons or {}).get(int(str(owner.about.get("pid") or 0)), reason)
        outcomes = verdicts(estate, lives and not whole_worker, reason, limit, storage.url)
        freed += _settled(storage, estate, outcomes, herald)
        faults.at("sweep.settled")
        storage.retire(owner.name)
        if reasons is not None:
            reasons.pop(int(str(owner.about.get("pid") or 0)), None)  # a later process may have this number
        faults.at("sweep.retired")
    return freed


def _settled(storage: Storage, estate: Estate, outcomes: list[Outcome], herald: Herald | None) -> int:
    """Settle a dead owner's outcomes, and tell of those that nobody has told of; returns how many were not stale."""
    if not outcomes:
        return 0
    noted = {(outcome.seq, outcome.token) for outcome in estate.ended}
    why = {(each.seq, each.token): reason_of(each) for each in estate.started}
    fallen = {
        (claim.seq, claim.token): claim for claim in estate.claims if (claim.seq, claim.token) in why.keys() - noted
    }
    outcomes = [_with_errand(outcome, fallen.get((outcome.seq, outcome.token))) for outcome in outcomes]
    unkept = _unkept(estate)
    kept = [_ignored(outcome) if (outcome.seq, outcome.token) in unkept else outcome for outcome in outcomes]
    stale = {(outcome.seq, outcome.token) for outcome in settle_each(storage, kept)}
    for outcome in outcomes:
        key = (outcome.seq, outcome.token)
        if herald is not None and key in fallen and key not in stale and outcome.ended:
            herald.told(fallen[key], outcome, why[key])
    return len(outcomes) - len(stale)


def _unkept(estate: Estate) -> set[tuple[int, int]]:
    """Which of a dead owner's tasks ran out of time and keep nothing of it, as if they had raised.

    Of one that was lost its failure is kept all the same: it is the only trace, and a way to run it again.
    """
    ignored = {(c.seq, c.token) for c in estate.claims if c.message.ignore_result and not c.message.leads}
    return {
        (each.seq, each.token) for each in estate.started
        if reason_of(each).get("why") == TIME_LIMIT and not Mode.unpacked(each.mode).keeps_errors
    } & ignored  # fmt: skip


def _ignored(outcome: Outcome) -> Outcome:
    if outcome.state != states.FAILURE:
        return outcome
    return outcome._replace(state=states.IGNORED, result=None, content_type=None, checksum=0)


def _with_errand(outcome: Outcome, fallen: Claim | None) -> Outcome:
    """Have the errbacks of a task told that fails here: not by this process, which may not have them."""
    if fallen is None or outcome.state != states.FAILURE or outcome.result is None:
        return outcome
    try:
        errand = errbacks.errand(fallen, outcome.result)
    except LocalqError:
        # Its headers cannot be read. It ends all the same, or it would be swept for ever.
        logger.exception("errbacks of %s[%s] cannot be told", fallen.message.name, fallen.message.id)
        return outcome
    return outcome if errand is None else outcome._replace(sends=(errand,))


def recall(storage: Storage, owner: str, batch: int) -> int:
    """Have nothing wait behind a living owner's task: settle what has ended before it, give back what comes after.

    Args:
        batch: what the owner was at when it was found to be long.

    Returns:
        How many messages were freed or ended.
    """
    if not _waiting(storage.estate(owner)):
        return 0
    estate = storage.estate(owner, recalled=batch)
    if estate.batch != batch:
        return 0  # it has gone on by itself
    outcomes = _waiting(estate)
    stale = settle_each(storage, outcomes)
    faults.at("recall.settled")
    return len(outcomes) - len(stale)


def _waiting(estate: Estate) -> list[Outcome]:
    """What can be done with claims of an owner that lives, other than the one that runs."""
    ended = {(outcome.seq, outcome.token): outcome for outcome in estate.ended}
    started = {(each.seq, each.token) for each in estate.started}
    others = [claim for claim in estate.claims if (claim.seq, claim.token) not in started]
    return [ended.get((claim.seq, claim.token)) or given_back(claim) for claim in others]


def settle_each(storage: Storage, outcomes: list[Outcome]) -> list[Outcome]:
    """Settle outcomes, those that no store can write as failures; return the stale ones."""
    try:
        return storage.settle(outcomes).stale
    except OperationalError:
        raise
    except Exception:
        logger.warning("an outcome cannot be written; settling one by one", exc_info=True)
    stale: list[Outcome] = []
    for outcome in outcomes:
        try:
            stale += storage.settle([outcome]).stale
        except OperationalError:
            raise
        except Exception as exc:
            stale += storage.settle([unwritable(outcome, exc)]).stale
    return stale


def unwritable(outcome: Outcome, exc: Exception) -> Outcome:
    """The failure that an outcome becomes if no store can write it."""
    text = f"the outcome of the task cannot be written: {exc}"
    data, content_type = encode(exception_data(EncodeError(text)), "json")
    return Outcome(
        outcome.seq, outcome.token, outcome.id, states.FAILURE, result=data, content_type=content_type,
        checksum=checksum(data), ended_at=clock.now(), group_failure=data, group_id=outcome.group_id,
        leads=outcome.leads, reply_to=outcome.reply_to,
    )  # fmt: skip


def _parent_lives(owner: OwnerInfo) -> bool:
    parent = owner.about.get("parent")
    return isinstance(parent, dict) and is_running(parent)


def _is_anothers(owner: OwnerInfo, mine: Any) -> bool:
    return _parent_lives(owner) and owner.about.get("parent") != mine


def _is_awaited(owner: OwnerInfo, reasons: dict[int, str] | None, unexplained: set[str] | None) -> bool:
    """Whether somebody is about to say of what this owner died."""
    if unexplained is None or not _parent_lives(owner) or owner.about.get("pid") in (reasons or {}):
        return False
    is_new = owner.name not in unexplained
    unexplained.add(owner.name)
    return is_new


def verdicts(estate: Estate, parent_lives: bool, reason: str, limit: int, url: str = "") -> list[Outcome]:
    """Decide how each of a dead owner's claims ends; `url` names the store, to whoever would run them again."""
    ended = {(outcome.seq, outcome.token): outcome for outcome in estate.ended}
    started = {(each.seq, each.token): each for each in estate.started}
    # Of several that ran at the same time, the process was killed for the sake of one: the others did nothing wrong.
    is_beside = any(reason_of(each).get("why") in (TIME_LIMIT, REVOKED) for each in estate.started)
    found = []
    for claim in estate.claims:
        key = (claim.seq, claim.token)
        if key in ended:
            found.append(ended[key])
        elif key in started:
            found.append(
                _sentence(claim, started[key], limit) or (is_beside and _spared(claim, started[key].mode)) or
                _verdict(claim, started[key].mode, parent_lives, BESIDE if is_beside else reason, limit, url)
            )  # fmt: skip
        else:
            found.append(given_back(claim))
    return found


def given_back(claim: Claim) -> Outcome:
    """The outcome of a claim that was never started: nothing happened, nothing is charged."""
    return Outcome(claim.seq, claim.token, claim.message.id, ended=False)


def _spared(claim: Claim, number: int) -> Outcome | None:
    """How a task ends whose process was killed for another's sake: it runs again, if it may, whatever the limit."""
    return given_back(claim)._replace(charged=1) if Mode.unpacked(number).kind in (LATE_REJECT, RETRY) else None


def reason_of(started: Started) -> dict[str, Any]:
    """Read why a process was killed for a task's sake; empty if it was not, or if that cannot be read."""
    try:
        found = json.loads(started.reason or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _sentence(claim: Claim, started: Started, limit: int) -> Outcome | None:
    """How a task ends for whose sake its process was killed; None if it was not."""
    reason = reason_of(started)
    message = claim.message
    if reason.get("why") == REVOKED:
        logger.warning("Task %s[%s] revoked: terminated", shown_name(message), message.id)
        return failed(claim, TaskRevokedError("terminated"), states.REVOKED)
    if reason.get("why") != TIME_LIMIT:
        return None
    limit_s = reason.get("limit") or (headers_of(claim).get("timelimit") or (None,))[0]
    logger.error("Hard time limit (%ss) exceeded for %s[%s]", limit_s, shown_name(message), message.id)
    if Mode.unpacked(started.mode).again_in_time and claim.redeliveries < limit:
        return given_back(claim)._replace(charged=1)
    return failed(claim, TimeLimitExceeded(limit_s))


def _verdict(claim: Claim, number: int, parent_lives: bool, reason: str, limit: int, url: str) -> Outcome:
    mode = Mode.unpacked(number)
    what = f"Worker exited prematurely: {reason}"
    if mode.kind == EARLY or (mode.kind == LATE and parent_lives):
        return lost(claim, f"{what}; {_by_hand(claim, url)}. {_BY_ITSELF[mode.kind]}")
    if reason == STOPPED and mode.kind != RETRY:
        return given_back(claim)._replace(charged=1)  # that its worker was stopped says nothing against a task
    given_up = _given_up(claim, mode, limit)
    if given_up:
        return lost(
            claim, f"{what}. Given up after {given_up}: it may end its process each time; {_by_hand(claim, url)}"
        )
    if mode.kind == RETRY:
        return retried(claim, what, mode.delay)
    return given_back(claim)._replace(charged=1)


def _given_up(claim: Claim, mode: Mode, limit: int) -> str:
    """Say after how many attempts a task that may run again has had enough; nothing if it has not."""
    retries = claim.message.retries
    if mode.kind == RETRY and mode.max_retries is not None and retries >= mode.max_retries:
        return f"{retries} retries (max_retries={mode.max_retries})"
    if claim.redeliveries >= limit:
        return f"{claim.redeliveries + 1} attempts that ended so (task_max_redeliveries={limit})"
    return ""


#: How a task asks to be run again without anybody's hand, by what it has asked for already.
_BY_ITSELF = {
    EARLY: "A task that may run twice does so by itself with acks_late=True, reject_on_worker_lost=True, "
    "or with retry_on_worker_lost=True",
    LATE: "It would do so by itself with reject_on_worker_lost=True as well",
}


def _by_hand(claim: Claim, url: str) -> str:
    id = claim.message.id
    return f"run it again with `{retry_command(id, url)}` or AsyncResult({id!r}).retry()"


def retry_command(id: str, url: str) -> str:
    """Return the command that runs a failed task again, from whatever directory."""
    store = f" -b {shlex.quote(url)}" if url else ""
    return f"localq{store} task retry {shlex.quote(id)}"


def retried(claim: Claim, text: str, delay: float) -> Outcome:
    """The outcome of a task whose process died and that is to be tried again by its own retry options.

    Its `on_retry` is not called: this process may not even have the task.
    """
    message = claim.message
    exc = WorkerLostError(text)
    logger.warning("Task %s[%s] retry: %s", message.name, message.id, Retry(exc=exc, when=delay))
    data, content_type = encode(exception_data(exc), "json")
    again = message._replace(retries=message.retries + 1, visible_at=clock.now() + delay)
    return given_back(claim)._replace(
        state=states.RETRY, again=again, charged=1, result=data, content_type=content_type, checksum=checksum(data),
        group_id=message.group_id, leads=message.leads, reply_to=message.reply_to,
    )  # fmt: skip


def lost(claim: Claim, text: str) -> Outcome:
    """The outcome of a task whose process died: FAILURE with WorkerLostError, for it and those who waited."""
    logger.error("Task %s[%s] lost: %s", claim.message.name, claim.message.id, text)
    return failed(claim, WorkerLostError(text))


def failed(claim: Claim, exc: Exception, state: str = states.FAILURE) -> Outcome:
    """The outcome of a task that was started and is over: an exception for it and for those who waited."""
    message = claim.message
    data, content_type = encode(exception_data(exc), "json")
    group_failure = None
    if message.leads:
        group_failure, _ = encode(exception_data(ChordError(f"Dependency {message.id} raised {exc!r}")), "json")
    return Outcome(
        claim.seq, claim.token, message.id, state, result=data, content_type=content_type,
        checksum=checksum(data), charged=1, ended_at=clock.now(), group_failure=group_failure,
        group_id=message.group_id, leads=message.leads, reply_to=message.reply_to,
    )  # fmt: skip


def exit_reason(status: int) -> str:
    """Say in words how a process ended, from its wait status (negative: the signal)."""
    if status >= 0:
        return f"exitcode {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "unknown"
    hint = ", maybe out of memory" if -status == signal.SIGKILL else ""
    return f"signal {-status} ({name}{hint})"
