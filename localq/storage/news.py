"""What a task went through before its end: each state that is no end, kept as an entry of the store.

    state:<task id>:<number>    the state with its data; numbers rise by one, and sort as text

A storage writes them in the transaction that writes the state itself, so that whoever reads them later misses none.
An end is not among them: that is the record. Nor are the states of a task that only ends: it pays nothing for this.
Of each task the last KEPT are there, so a loop that says how far it is fills no disk: who reads too late misses the
first ones, never the order. They go when they expire, at the latest with the result. A PENDING among them is a retry
by hand: a life that begins anew. Must not know how entries are kept.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from localq.message import Outcome
from localq.storage.base import Entry

#: What their keys begin with, and how many digits their numbers have.
NEWS, DIGITS = "state:", 10
#: How many of a task's states are kept.
KEPT = 100
#: Characters of a traceback that are kept with each of them, its last ones.
TRACEBACK_LIMIT = 2000


class News(NamedTuple):
    """One state that is no end, as the store keeps it; the fields are those of `Record`."""

    number: int
    state: str
    result: bytes | None
    content_type: str | None
    checksum: int | None
    traceback: str | None
    worker: str | None


def news_key(id: str, number: int) -> str:
    """Return the key of a task's state of this number, the first being 1."""
    return f"{NEWS}{id}:{number:0{DIGITS}d}"


def news_text(outcome: Outcome) -> str:
    """Write a state as an entry's value; its bytes as Latin-1 text, one character each."""
    result = None if outcome.result is None else outcome.result.decode("latin-1")
    traceback = outcome.traceback
    if traceback is not None and len(traceback) > TRACEBACK_LIMIT:
        traceback = f"... ({len(traceback) - TRACEBACK_LIMIT} characters) ...\n{traceback[-TRACEBACK_LIMIT:]}"
    return json.dumps(
        [outcome.state, result, outcome.content_type, outcome.checksum, traceback, outcome.worker],
        ensure_ascii=False,
    )


def news_of(id: str, entry: Entry) -> News | None:
    """Read an entry; None if it is another task's, whose id only begins like this one and a colon."""
    number = entry.key.removeprefix(f"{NEWS}{id}:")
    if len(number) != DIGITS or not number.isdigit():
        return None
    state, result, *more = json.loads(entry.value)
    return News(int(number), state, None if result is None else result.encode("latin-1"), *more)
