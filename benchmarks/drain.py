"""How many tasks a second do two worker processes complete, results stored and results ignored?

Read: 20,000 `add` tasks are queued first; the rate is (tasks - 1) / (last completion - first completion), counted in
the task, until all are done or for 6 s.
Caveats: both worker processes wait at the counter's gate until the other has arrived (see `counter`), so start-up is
not in the figure; the first task of each process therefore looks long to its tool. huey's way to ignore a result is to
return None. A fast tool ends 20,000 tasks within a second: look at min and max.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.question import rate
from benchmarks.stage import Stage

TITLE = "Drain: 20,000 queued `add` tasks, 2 worker processes"
METRICS = {"results stored": rate(), "results ignored": rate()}
WINDOW_S = 6


def measure(stage: Stage) -> Iterator[tuple[str, float]]:
    yield "results stored", _rate(stage, ignored=False)
    with stage.again() as fresh:
        yield "results ignored", _rate(fresh, ignored=True)


def _rate(stage: Stage, *, ignored: bool) -> float:
    n = stage.scale(20_000, quick=2_000)
    stage.fill(n, ignored=ignored)
    return stage.drain(n, WINDOW_S)
