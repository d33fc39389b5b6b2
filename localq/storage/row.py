"""One row of a storage that is no database: a message with everything that happened to it.

    begun, opened, made_ready    where it goes when its life begins, when nothing holds it, when it may run
    written, ended               what an outcome makes of it
    indexes_of                   where it is to be found
    claim_of, record_of          what others see of it

Must not change anything: each returns a new row.
"""

from __future__ import annotations

from typing import NamedTuple

from localq import clock
from localq.message import Claim, Message, Outcome, Record, key_of
from localq.serialization import checksum
from localq.states import ENDED, FAILURE, HELD, PENDING, READY, WAITING

#: What an index is sorted by; the second number (seq) makes it unique.
Order = tuple[float, int]


class Row(NamedTuple):
    """A message with everything that happened to it."""

    message: Message
    seq: int
    token: int = 0
    redeliveries: int = 0
    place: str = READY
    hold: str | None = None
    state: str = PENDING
    result: bytes | None = None
    content_type: str | None = None
    checksum: int | None = None
    traceback: str | None = None
    children: str | None = None
    worker: str | None = None
    ended_at: float | None = None
    #: How it ends instead of running again; see `revocation.end_text`.
    revoked: str | None = None


def indexes_of(row: Row | None) -> set[tuple[str, Order]]:
    """Where a row is to be found."""
    if row is None:
        return set()
    message = row.message
    found: set[tuple[str, Order]] = set()
    if row.place == READY:
        found.add((f"ready:{message.queue}", (message.priority, row.seq)))
    elif row.place == WAITING:
        found.add(("waiting", (message.visible_at or 0.0, row.seq)))
    elif row.place == HELD:
        found.add((str(row.hold), (message.priority, row.seq)))
    else:
        found.add(("ended", (0.0, row.seq)))
        if row.state == FAILURE:
            found.add(("failed", (0.0, row.seq)))
    if message.after is not None:
        found.add((f"followers:{message.after}", (0.0, row.seq)))
        if row.place != ENDED:
            found.add((f"behind:{message.after}", (0.0, row.seq)))
    if message.group_id is not None:
        found.add((f"group:{message.group_id}", (message.position or 0, row.seq)))
    return found


def begun(row: Row) -> Row:
    """The row of a message that begins its life: held by what it waits for, or opened."""
    message = row.message
    return row._replace(place=HELD, hold=key_of(message)) if message.waits_for > 0 else opened(row)


def opened(row: Row) -> Row:
    """The row of a message that may run: now, or once it is visible."""
    if (row.message.visible_at or 0.0) > clock.now():
        return row._replace(place=WAITING, hold=None)
    return made_ready(row)


def made_ready(row: Row) -> Row:
    """The row of a message that may run now."""
    return row._replace(place=READY, hold=None)


def written(row: Row, outcome: Outcome) -> Row:
    """The row with an outcome's state and result; without a state, both stay as they are."""
    if outcome.state is None:
        return row
    return row._replace(
        state=outcome.state,
        result=outcome.result,
        content_type=outcome.content_type,
        checksum=outcome.checksum,
        traceback=outcome.traceback,
        children=outcome.children,
        worker=outcome.worker,
    )


def ended(row: Row, outcome: Outcome) -> Row:
    """The row of a message that has ended so."""
    return row._replace(place=ENDED, hold=None, ended_at=outcome.ended_at)


def of_group(failure: Outcome) -> Outcome:
    """What those fail with who wait for the whole group of a failed message."""
    data = failure.group_failure
    if data is None:
        return failure
    return failure._replace(result=data, content_type="application/json", checksum=checksum(data))


def claim_of(row: Row) -> Claim:
    """What its owner gets."""
    return Claim(row.seq, row.token, row.redeliveries, row.message)


def record_of(row: Row, whole: bool) -> Record:
    """How it stands."""
    message = row.message
    record = Record(
        id=message.id,
        name=message.name,
        state=row.state,
        place=row.place,
        result=row.result,
        content_type=row.content_type,
        checksum=row.checksum,
        traceback=row.traceback,
        children=row.children,
        worker=row.worker,
        ended_at=row.ended_at,
        retries=message.retries,
        queue=message.queue,
        group_id=message.group_id,
        position=message.position,
        ignore_result=message.ignore_result,
        hold=row.hold,
    )
    return record._replace(seq=row.seq, redeliveries=row.redeliveries, message=message) if whole else record
