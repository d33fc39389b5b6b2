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

Whoever sweeps may never have heard of the task, so its mode is noted with all that is needed, as one number.
"""

from __future__ import annotations

import logging
import shlex
import signal
from typing import Any, NamedTuple

from localq import clock, faults, states
from localq.exceptions import ChordError, EncodeError, ImproperlyConfigured, OperationalError, Retry, WorkerLostError
from localq.message import LEADS_BY_GROUP, Claim, Outcome
from localq.serialization import checksum, encode, exception_data
from localq.storage.base import Estate, OwnerInfo, Storage
from localq.storage.owners import is_running

logger = logging.getLogger("localq.recovery")

EARLY, LATE, LATE_REJECT, RETRY = 0, 1, 2, 3
#: Where a mode's parts begin in its number: the kind, max_retries + 1 (0: no limit), the delay in milliseconds.
_MOST_AT, _DELAY_AT = 2, 24
#: The largest of each: 4 million retries, 34 years.
_KIND, _MOST, _DELAY = (1 << _MOST_AT) - 1, (1 << _DELAY_AT - _MOST_AT) - 1, (1 << 64 - _DELAY_AT) - 1
#: A message is not tried again after so many attempts that died (`task_max_redeliveries`).
MAX_REDELIVERIES = 3
#: Why a process died, where nobody says more.
GONE, STOPPED = "its process is gone", "its worker was stopped at once"


class Mode(NamedTuple):
    """What becomes of a task that has started when its process dies.

    Attributes:
        kind: EARLY, LATE, LATE_REJECT or RETRY.
        max_retries, delay: how RETRY goes on; None is no limit, seconds.
    """

    kind: int
    max_retries: int | None = None
    delay: float = 0.0

    def packed(self) -> int:
        """Write it as one number of 64 bits; what is too large for its bits is as large as they allow."""
        most = 0 if self.max_retries is None else min(max(self.max_retries, 0) + 1, _MOST)
        delay = round(min(max(self.delay, 0) * 1000, _DELAY))
        return self.kind | most << _MOST_AT | delay << _DELAY_AT

    @classmethod
    def unpacked(cls, number: int) -> Mode:
        """Read what `packed` wrote."""
        most = number >> _MOST_AT & _MOST
        return cls(number & _KIND, most - 1 if most else None, (number >> _DELAY_AT) / 1000)


def mode_of(task: Any) -> int:
    """Return the mode of a task as a number, as its owner notes it when it begins.

    Raises:
        ImproperlyConfigured: it is to be retried, and its retry options are no numbers.
    """
    if task.retry_on_worker_lost:
        try:
            return Mode(RETRY, task.max_retries, task.default_retry_delay).packed()
        except (TypeError, ValueError) as exc:
            raise ImproperlyConfigured(
                f"task {task.name!r}: with retry_on_worker_lost, max_retries ({task.max_retries!r}) must be a whole "
                f"number or None, and default_retry_delay ({task.default_retry_delay!r}) a number of seconds"
            ) from exc
    if not task.acks_late:
        return EARLY
    return LATE_REJECT if task.reject_on_worker_lost else LATE


def sweep(
    storage: Storage,
    mine: Any = None,
    reasons: dict[int, str] | None = None,
    limit: int = MAX_REDELIVERIES,
    whole_worker: bool = False,
    unexplained: set[str] | None = None,
) -> int:
    """Free the claims of every dead owner.

    Args:
        mine: the facts of the worker that sweeps: the dead children of another live worker are left to it.
        reasons: how a process ended, by its pid, where that is known.
        limit: charged attempts after which a message is given up.
        whole_worker: the dead children died because their worker is being stopped.
        unexplained: names of own children that were found dead before, and whose main process may still tell of
            what; others found like that are left for the next time, and their names added.

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
        if outcomes:
            freed += len(outcomes) - len(settle_each(storage, outcomes))
        faults.at("sweep.settled")
        storage.retire(owner.name)
        faults.at("sweep.retired")
    return freed


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
    found = []
    for claim in estate.claims:
        key = (claim.seq, claim.token)
        if key in ended:
            found.append(ended[key])
        elif key in started:
            found.append(_verdict(claim, started[key].mode, parent_lives, reason, limit, url))
        else:
            found.append(given_back(claim))
    return found


def given_back(claim: Claim) -> Outcome:
    """The outcome of a claim that was never started: nothing happened, nothing is charged."""
    return Outcome(claim.seq, claim.token, claim.message.id, ended=False)


def _verdict(claim: Claim, number: int, parent_lives: bool, reason: str, limit: int, url: str) -> Outcome:
    mode = Mode.unpacked(number)
    what = f"Worker exited prematurely: {reason}"
    if mode.kind == EARLY or (mode.kind == LATE and parent_lives):
        return lost(claim, f"{what}; {_by_hand(claim, url)}. {_BY_ITSELF[mode.kind]}")
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
    message = claim.message
    logger.error("Task %s[%s] lost: %s", message.name, message.id, text)
    data, content_type = encode(exception_data(WorkerLostError(text)), "json")
    group_failure = None
    if message.leads & LEADS_BY_GROUP:
        group_failure, _ = encode(exception_data(ChordError(f"Dependency {message.id} raised {text!r}")), "json")
    return Outcome(
        claim.seq, claim.token, message.id, states.FAILURE, result=data, content_type=content_type,
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
