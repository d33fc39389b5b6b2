"""Does the drain rate hold when the queue is deep?

Read: tasks per second of two worker processes, results ignored, with 1,000, 100,000 and 1,000,000 queued: the first
5 s of work. The 1,000 are drained five times (median), as a fast tool needs milliseconds for them.
Caveats: as in `drain`. The million is measured in the first run only, and given up for a peer that has not queued it
within 15 minutes. The first task of each process waits for the other, which weighs most at 1,000.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.question import rate
from benchmarks.stage import Stage

TITLE = "Drain rate by queue depth"
METRICS = {"1,000 queued": rate(), "100,000 queued": rate(), "1,000,000 queued": rate()}
WINDOW_S = 5


def measure(stage: Stage) -> Iterator[tuple[str, float]]:
    repeats = stage.scale(5, quick=1)
    yield "1,000 queued", statistics.median(_rate(stage, 1_000) for _ in range(repeats))
    yield "100,000 queued", _rate(stage, stage.scale(100_000, quick=2_000))
    if stage.first_run:
        yield "1,000,000 queued", _rate(stage, stage.scale(1_000_000, quick=3_000))


def _rate(stage: Stage, depth: int) -> float:
    with stage.again() as fresh:
        fresh.fill(depth, ignored=True)
        return fresh.drain(depth, WINDOW_S)
