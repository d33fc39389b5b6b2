"""What an end means to those that wait for it, in the storages over rows: they go on, or end with it.

The SQL storage has the same in `storage.sqlite.settlement`. Must not know how rows are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from localq import clock
from localq.message import (
    ENTERS,
    LEADS_ANYWAY,
    LEADS_BY_GROUP,
    LEADS_BY_ID,
    LEADS_IF_BAD,
    SHOWS_CAUSE,
    Message,
    Outcome,
    released,
)
from localq.states import FAILURE, GOOD_STATES
from localq.storage.row import Row, ended, of_group, opened, written


class Rows(Protocol):
    """A transaction's rows."""

    replies: set[str | None]

    def rows(self, index: str) -> list[Row]: ...

    def move(self, old: Row | None, new: Row | None) -> None: ...


def follow(at: Rows, message: Message, outcome: Outcome) -> None:
    """Let those who waited for this message go on, or fail with it."""
    at.replies.add(message.reply_to)
    if outcome.state in GOOD_STATES:
        _succeed_behind(at, message)
    elif outcome.state is not None:
        _fail_behind(at, message, outcome._replace(state=FAILURE, children=None, worker=None))
    elif message.leads & LEADS_ANYWAY:
        _progress(at, f"ends:{message.group_id}")


def _succeed_behind(at: Rows, message: Message) -> None:
    if message.leads & LEADS_BY_ID:
        _progress(at, f"after:{message.id}")
    if message.leads & LEADS_BY_GROUP:
        _progress(at, f"after:{message.group_id}")
    if message.leads & LEADS_ANYWAY:
        _progress(at, f"ends:{message.group_id}")
    if message.leads & LEADS_IF_BAD:
        for row in at.rows(f"fails:{message.group_id}"):
            _release(at, row, _dropped)  # all went well: what it waited for will not come


def _fail_behind(at: Rows, message: Message, failure: Outcome) -> None:
    group = of_group(failure)
    # A list and no recursion: a chain may be longer than Python's stack.
    left = [(message, failure, 0)]
    while left:
        message, failure, lost = left.pop()
        if message.leads & LEADS_BY_ID:
            left += _failed_behind(at, f"after:{message.id}", failure, failure, lost)
        if message.leads & LEADS_BY_GROUP:
            shown = failure if lost else group
            left += _failed_behind(at, f"after:{message.group_id}", shown, failure, max(lost - 1, 0))
        if message.leads & LEADS_IF_BAD:
            for row in at.rows(f"fails:{message.group_id}"):
                _release(at, row, _dropped if lost else opened, at_once=True)
        if message.leads & LEADS_ANYWAY:
            _progress(at, f"ends:{message.group_id}")


def _failed_behind(
    at: Rows, key: str, failure: Outcome, cause: Outcome, lost: int
) -> list[tuple[Message, Outcome, int]]:
    """End those who waited under a key.

    Args:
        lost: so many of the groups that they are in have failed as a whole.

    Returns:
        Each, how it ended, and `lost` for those who wait for it.
    """
    found = []
    for row in at.rows(key):
        shown = cause if row.message.leads & SHOWS_CAUSE else failure
        at.move(row, ended(written(row, shown), shown))
        at.replies.add(row.message.reply_to)
        found.append((row.message, shown, lost + row.message.leads // ENTERS))
    return found


def _progress(at: Rows, key: str) -> None:
    for row in at.rows(key):
        _release(at, row, opened)


def _release(at: Rows, row: Row, then: Callable[[Row], Row | None], at_once: bool = False) -> None:
    left = row.message.waits_for - 1
    if left > 0 and not at_once:
        at.move(row, row._replace(message=row.message._replace(waits_for=left)))
    else:
        at.move(row, then(row._replace(message=released(row.message, clock.now()))))


def _dropped(row: Row) -> None:
    return None
