"""What becomes of the claims of a process that died, or that is busy with something long.

A dead owner is known by its free lock. What it had ended and noted is settled as it noted it; the task it
was running ends by that task's acknowledgement mode; what it had only reserved goes back uncharged, to
where it stood. Every step is a `settle` with the claims' own tokens, so any number of processes may
sweep at once. Must not ask a clock whether anybody lives.

    mode          its child dies                  the whole worker dies
    EARLY         FAILURE, never run twice        the same
    LATE          FAILURE                         back in the queue, charged
    LATE_REJECT   back in the queue, charged      the same
"""

from __future__ import annotations

import logging
import signal
from typing import Any

from localq import clock, faults, states
from localq.exceptions import ChordError, EncodeError, OperationalError, WorkerLostError
from localq.message import LEADS_BY_GROUP, Claim, Outcome
from localq.serialization import checksum, encode, exception_data
from localq.storage.base import Estate, OwnerInfo, Storage
from localq.storage.owners import is_running

logger = logging.getLogger("localq.recovery")

EARLY, LATE, LATE_REJECT = 0, 1, 2
#: A message is not tried again after so many attempts that died (`task_max_redeliveries`).
MAX_REDELIVERIES = 3


def mode_of(task: Any) -> int:
    """Return the acknowledgement mode of a task, as its owner notes it when it begins."""
    if not task.acks_late:
        return EARLY
    return LATE_REJECT if task.reject_on_worker_lost else LATE


def sweep(
    storage: Storage,
    mine: Any = None,
    reasons: dict[int, str] | None = None,
    limit: int = MAX_REDELIVERIES,
    whole_worker: bool = False,
) -> int:
    """Free the claims of every dead owner.

    Args:
        mine: the facts of the worker that sweeps: the dead children of another live worker are left to it.
        reasons: how a process ended, by its pid, where that is known.
        limit: charged attempts after which a message is given up.
        whole_worker: the dead children died because their worker is being stopped.

    Returns:
        How many messages were freed or ended.
    """
    freed = 0
    for owner in storage.owners():
        if owner.alive or _is_anothers(owner, mine):
            continue
        estate = storage.estate(owner.name)
        faults.at("sweep.read")
        reason = (reasons or {}).get(int(str(owner.about.get("pid") or 0)), "its process is gone")
        outcomes = verdicts(estate, _parent_lives(owner) and not whole_worker, reason, limit)
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
    others = [claim for claim in estate.claims if (claim.seq, claim.token) != estate.started]
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


def verdicts(estate: Estate, parent_lives: bool, reason: str, limit: int) -> list[Outcome]:
    """Decide how each of a dead owner's claims ends."""
    ended = {(outcome.seq, outcome.token): outcome for outcome in estate.ended}
    found = []
    for claim in estate.claims:
        key = (claim.seq, claim.token)
        if key in ended:
            found.append(ended[key])
        elif key == estate.started:
            found.append(_verdict(claim, estate.mode, parent_lives, reason, limit))
        else:
            found.append(given_back(claim))
    return found


def given_back(claim: Claim) -> Outcome:
    """The outcome of a claim that was never started: nothing happened, nothing is charged."""
    return Outcome(claim.seq, claim.token, claim.message.id, ended=False)


def _verdict(claim: Claim, mode: int, parent_lives: bool, reason: str, limit: int) -> Outcome:
    runs_again = mode == LATE_REJECT or (mode == LATE and not parent_lives)
    if runs_again and claim.redeliveries < limit:
        return given_back(claim)._replace(charged=1)
    return lost(claim, _lost_text(claim, mode, reason, limit))


def _lost_text(claim: Claim, mode: int, reason: str, limit: int) -> str:
    what = f"Worker exited prematurely: {reason}"
    if claim.redeliveries >= limit:
        return f"{what}. Given up after {claim.redeliveries + 1} attempts that ended so (task_max_redeliveries={limit})"
    if mode == LATE_REJECT:
        return what
    return f"{what}. A task that may run twice can ask for it: acks_late=True, reject_on_worker_lost=True"


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
