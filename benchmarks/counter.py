"""Counters of completed tasks in a mapped file, and a gate; knows no queue.

Each worker process counts in 64 bytes of its own, so counting costs about 0.5 us and no lock, and is the same for every
tool. The clock is CLOCK_MONOTONIC, which all processes of a machine share.

The gate stands before the first task of each process. Closed, it holds that task back until the runner has seen all
processes arrive. Otherwise a fast tool would finish a short queue before its second process has started.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from pathlib import Path

VARIABLE = "BENCH_COUNTERS"
SLOTS = 4096
WORDS = 8
ARRIVED, DONE, FIRST, LAST = range(4)
GATE_OPEN, NEXT_SLOT = range(2)
#: A closed gate lets through after this many seconds, so that no worker outlives a dead runner.
GATE_LIMIT_S = 60.0

_slot: memoryview | None = None


def _map(path: Path) -> memoryview:
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("q")


def _take_slot() -> memoryview:
    path = Path(os.environ[VARIABLE])
    words = _map(path)
    with path.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        number = words[NEXT_SLOT]
        words[NEXT_SLOT] = number + 1
    slot = words[number * WORDS : (number + 1) * WORDS]
    slot[ARRIVED] = 1
    limit = time.monotonic() + GATE_LIMIT_S
    while not words[GATE_OPEN] and time.monotonic() < limit:
        time.sleep(0.0005)
    slot[FIRST] = time.monotonic_ns()
    return slot


def _forget() -> None:
    global _slot
    _slot = None


os.register_at_fork(after_in_child=_forget)


def count() -> None:
    """Count one completed task of this process; tasks call it as their last act."""
    global _slot
    if _slot is None:
        _slot = _take_slot()
    _slot[DONE] += 1
    _slot[LAST] = time.monotonic_ns()


class Counters:
    """The runner's side: makes the file, reads what all worker processes counted."""

    def __init__(self, path: Path, *, gate_open: bool) -> None:
        path.write_bytes(bytes(SLOTS * WORDS * 8))
        self._words = _map(path)
        self._words[NEXT_SLOT] = 1  # the header takes the place of slot 0
        self._words[GATE_OPEN] = int(gate_open)

    def open_gate(self) -> None:
        self._words[GATE_OPEN] = 1

    def _column(self, word: int) -> list[int]:
        used = self._words[NEXT_SLOT]
        return [self._words[number * WORDS + word] for number in range(1, used)]

    @property
    def arrived(self) -> int:
        return sum(self._column(ARRIVED))

    @property
    def done(self) -> int:
        return sum(self._column(DONE))

    @property
    def first_s(self) -> float:
        return min(first for first in self._column(FIRST) if first) / 1e9

    def rate(self) -> float:
        """Return tasks per second between the first completion and the last."""
        return (self.done - 1) / (max(self._column(LAST)) / 1e9 - self.first_s)
