"""The dead list: what failed is kept as it was asked for, and runs again by hand.

    FAILURE, REVOKED --- retry ---> PENDING, in its queue, with the same id and arguments

Nothing is moved to a list when it fails: a failed message stays where it ended until it is forgotten, and an
index finds it. A retry by hand is the one way out of a final state, and one transaction. Whoever waited for
the message failed with it and stays failed: run again, in their turn, by hand as well. Must not run anything
itself, and must not decide what is worth another try.
"""

from __future__ import annotations

from collections.abc import Iterator

from localq import states
from localq.exceptions import RetryRefused
from localq.message import Message, Outcome, Record
from localq.revocation import rule_of_id
from localq.storage.base import Storage
from localq.whereabouts import whereabouts


def failed(storage: Storage) -> Iterator[Record]:
    """Go through the tasks that ended in FAILURE, in the order in which they were sent; whole records.

    Read in steps, so that a million of them take no memory. One that fails again meanwhile does not come twice.
    """
    seq = 0
    while step := storage.records(failed_after=seq, whole=True):
        for record in step.values():
            seq = record.seq
            yield record


def retry(storage: Storage, id: str) -> Record:
    """Let a task that failed, or was revoked, run again; return how it stood.

    Its arguments are those of its last attempt. Retries and charged crashes start at 0; it runs as soon as a
    worker is free, and no `expires` holds any more: the one it had would end it at once. A revoke of its id holds no
    more either; one of a stamp that it has does, for as long as that is remembered.

    Raises:
        RetryRefused: it is unknown, has not ended, has not failed, or waits for what has not succeeded.
    """
    record = whole_record(storage, id)
    message = next_attempt(storage, record)
    _drop_rule(storage, id)
    if not storage.update(0, 0, Outcome(0, 0, id, states.PENDING, ended=False, again=message)):
        raise RetryRefused(f"{_named(record)} was retried or forgotten by somebody else just now")
    return record


def _drop_rule(storage: Storage, id: str) -> None:
    """Forget that it was revoked before it was sent; a stamp that is revoked stays so."""
    rule = rule_of_id(id)
    for entry in storage.entries(rule):
        if entry.key == rule:
            storage.write(rule, None, entry.value)


def whole_record(storage: Storage, id: str) -> Record:
    """Return everything that the store has of a task.

    Raises:
        RetryRefused: the store does not know it.
    """
    found = storage.records((id,), whole=True).get(id)
    if found is None:
        raise RetryRefused(
            f"no task has the id {id!r} in {storage.url}: it was forgotten, or sent to another store; "
            "nothing is kept of it, so send it anew"
        )
    return found


def next_attempt(storage: Storage, record: Record) -> Message:
    """Return the message that a failed task runs again as; decides, and changes nothing.

    Args:
        record: a whole one.

    Raises:
        RetryRefused: see `retry`.
    """
    assert record.message is not None
    refusal = _refusal(record) or _refusal_of_follower(storage, record, record.message)
    if refusal:
        raise RetryRefused(f"{_named(record)} {refusal}")
    return record.message._replace(retries=0, visible_at=None, expires_at=None, waits_for=0)


def _named(record: Record) -> str:
    return f"task {record.name}[{record.id}]"


def _refusal(record: Record) -> str:
    if not record.ended:
        return f"has not ended: it is {record.state} and {whereabouts(record)}; only what failed is retried by hand"
    if record.state == states.SUCCESS:
        return "has succeeded; to run it once more, send it anew"
    if record.state not in states.PROPAGATE_STATES:
        return f"ended as {record.state}: whether it failed was not kept (ignore_result, Ignore); send it anew"
    return ""


def _refusal_of_follower(storage: Storage, record: Record, message: Message) -> str:
    """Say why a task cannot run that failed only because another did; it never had its turn."""
    if not message.waits_for or message.after is None:
        return ""
    ahead = storage.records((message.after,)) or storage.records(group_id=message.after)
    if not ahead:
        return f"failed with {message.after}, which it waited for and which is forgotten; send the workflow anew"
    bad = next((each for each in ahead.values() if not (each.ended and each.state in states.GOOD_STATES)), None)
    if bad is None:
        return ""
    way = "retry that first" if bad.state in states.PROPAGATE_STATES else "retry this when that has succeeded"
    return f"failed before its turn, with {_named(bad)}, which is {bad.state} now: {way}"
