"""How messages come in: rows that anybody may claim, or that one who sleeps is given at once.

Called inside the gate; says who is to be rung once it is left, and with what. Must not ring itself, and must
not take down the flag of somebody who is given nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from localq import clock, faults, states
from localq.exceptions import DuplicateTaskId
from localq.storage.base import DUE_BELL
from localq.storage.bells import Bells, Sleeper
from localq.storage.sqlite.queries import query, with_rows
from localq.storage.sqlite.settlement import MESSAGE_COLUMNS, chunks

#: A message's columns, its place and what holds it there.
Columns = tuple[Any, ...]
#: Who was given a message, and the fields of the claim.
Given = tuple[Sleeper, tuple[Any, ...]]

#: Bytes of body that may be handed to a sleeper together with its ring (a pipe takes 4 KiB at once).
MOST_HANDED = 2048


def put_one(bells: Bells, execute: Callable[..., Any], row: Columns) -> tuple[Given | None, list[int]]:
    """Insert one message in a statement that is its own transaction.

    Returns:
        To whom it was given and with what, and the slots to ring.

    Raises:
        DuplicateTaskId: the id belongs to another call.
    """
    faults.at("put.held")
    place = row[-2]
    taker = bells.taker(row[3]) if place == states.READY and len(row[2]) < MOST_HANDED else None
    if taker is not None:
        return _give(bells, execute, row, taker)
    if place == states.WAITING:
        # Before the statement, which commits: a death between must not leave the board more hopeful than the store.
        bells.note_due(row[14])
    if not execute(with_rows("put", 1, MESSAGE_COLUMNS), row).rowcount:
        _check_twin(execute, row)
        return None, []
    faults.at("put.written")
    if place == states.READY:
        return None, bells.idle(row[3], 1)
    return None, bells.idle(DUE_BELL, 64) if place == states.WAITING else []


def _give(bells: Bells, execute: Callable[..., Any], row: Columns, taker: Sleeper) -> tuple[Given | None, list[int]]:
    """Insert a message as claimed by somebody who sleeps, which saves it the claim."""
    held = (*row[:-2], states.HELD, f"owner:{taker.name}")
    # Taken first: if we die after the statement, the flag that is down and no ring tell the sleeper to look.
    bells.take(taker)
    rows = execute(with_rows("hand", 1, MESSAGE_COLUMNS), held).fetchall()
    faults.at("put.written")
    if not rows:
        bells.leave(taker)
        _check_twin(execute, row)
        return None, []
    seq, token, has_rules = rows[0]
    if has_rules:
        # Something is revoked that was not there, and this may be it. A claim asks that; nobody has been told of this
        # one yet, and a death between the two statements is like one before the ring.
        bells.leave(taker)
        execute(query("give_back"), (clock.now(), 0, seq, token)).fetchall()
        return None, bells.idle(row[3], 1)
    return (taker, (seq, token, 0, *row[:-2])), []


def put_all(bells: Bells, execute: Callable[..., Any], rows: list[Columns]) -> list[int]:
    """Insert many messages, inside a transaction; returns the slots to ring."""
    faults.at("put.held")
    for chunk in chunks(rows):
        sql = with_rows("put", len(chunk), MESSAGE_COLUMNS)
        if execute(sql, [value for row in chunk for value in row]).rowcount < len(chunk):
            for row in chunk:
                _check_twin(execute, row)
    faults.at("put.written")
    waiting = [row[14] for row in rows if row[-2] == states.WAITING]
    if waiting:
        bells.note_due(min(waiting))
    ready = Counter(row[3] for row in rows if row[-2] == states.READY)
    return wake(bells, ready + Counter({DUE_BELL: 64} if waiting else {}))


def wake(bells: Bells, ready: Counter[str]) -> list[int]:
    """Return the slots to ring when so many messages of these queues became ready."""
    return [slot for queue, number in ready.items() for slot in bells.idle(queue, number)]


def _check_twin(execute: Callable[..., Any], row: Columns) -> None:
    id, name, body, total = row[0], row[1], row[2], row[8]
    same = execute(query("twin"), (name, total, body, id)).fetchone()
    if same is not None and not same[0]:
        raise DuplicateTaskId(
            f"task_id {id!r} is in use by another call; nothing was sent. "
            "Choose another id, or forget() that result first"
        )
