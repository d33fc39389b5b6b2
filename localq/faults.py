"""Fault points: named places in the code where a test can halt a process, to kill it or its neighbours there.

    LOCALQ_FAULT=<point>:<directory>    read once, at import

The first process to arrive at that point, once the directory exists, writes its pid to `<directory>/<point>` and
halts until there is `<directory>/go`; every other one passes. Without the variable a point is a call of a C function
that does nothing. Must not log, nor take a lock: some points lie inside the gate.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from localq.exceptions import ImproperlyConfigured

#: Every point, and where it lies. Those of a kind are in the order in which a task passes them.
POINTS: dict[str, str] = {
    "put.held": "a producer holds the gate and has written nothing",
    "put.written": "the message is written, the gate held; of several at once: before the commit",
    "put.released": "the gate is open again; nobody is rung, nothing handed over yet",
    "hand.received": "a sleeping child has its copy of a message",
    "claim.held": "a child holds the gate and has claimed nothing",
    "claim.written": "its claims are written, the gate held; with ends to settle: before the commit",
    "claim.released": "the gate is open again, nothing has begun",
    "start.reserved": "a task is about to be noted as started",
    "start.noted": "it is noted, its function not called",
    "end.returned": "the function has returned, the journal does not know",
    "end.noted": "the journal knows how it ended",
    "settle.held": "the gate is held, no outcome written",
    "settle.written": "outcomes are written, the gate held; of several at once: before the commit",
    "settle.released": "the gate is open again, nobody is rung",
    "recall.word": "a steward has written the word that recalls a batch",
    "recall.settled": "it has settled what had ended and given back what had not begun",
    "limit.stopped": "a supervisor has stopped the child of a task that is to end, and noted nothing",
    "limit.noted": "it has noted why that child is killed, and not killed it",
    "sweep.read": "a dead owner is found and its estate read",
    "sweep.settled": "the estate is settled",
    "sweep.retired": "the owner's traces are gone",
}
#: Longest halt, in seconds.
LIMIT_S = 60.0
_LOOK_S = 0.002


def armed(asked: str | None) -> Callable[[str], object]:
    """Return what `at` shall be: a halt at the point that is asked for, or next to nothing.

    Raises:
        ImproperlyConfigured: what is asked for is no point and directory.
    """
    if not asked:
        return len  # a C function costs 57 ns and is no Python call
    point, _, directory = asked.partition(":")
    if point not in POINTS or not directory:
        raise ImproperlyConfigured(f"LOCALQ_FAULT={asked!r} is not <point>:<directory>; points: {', '.join(POINTS)}")

    def at(reached: str) -> None:
        if reached not in POINTS:
            raise ValueError(f"no fault point is named {reached!r}")
        if reached == point and _is_first(os.path.join(directory, point)):
            _halt(os.path.join(directory, "go"))

    return at


def _is_first(path: str) -> bool:
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except (FileExistsError, FileNotFoundError):
        return False  # somebody has halted here before, or it is not time yet
    os.write(fd, str(os.getpid()).encode())
    os.close(fd)
    return True


def _halt(go: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not os.path.exists(go) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)


#: Pass a point, by its name.
at = armed(os.environ.get("LOCALQ_FAULT"))
