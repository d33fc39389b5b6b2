"""What does an idle worker cost: memory of all its processes, and CPU?

Read: MB of PSS (shared pages counted once) summed over every process of the worker, after 20 tasks and a second of
rest; CPU time of all of them in percent of one core, over 5 s.
Caveats: redis-server (12 to 15 MB, and its own CPU) is not in the figures of the peers that need it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks import process
from benchmarks.question import Metric, megabytes
from benchmarks.stage import Stage

TITLE = "Idle worker with 2 worker processes"
METRICS = {"memory (PSS)": megabytes(), "CPU": Metric("% of a core", lower_is_better=True)}


def measure(stage: Stage) -> Iterator[tuple[str, float]]:
    stage.start_worker()
    stage.ready_client().end()
    time.sleep(1)
    yield "memory (PSS)", process.pss_mb(stage.worker_pids())
    yield "CPU", 100 * _idle_cpu(stage, stage.scale(5, quick=2))


def _idle_cpu(stage: Stage, seconds: float) -> float:
    pids = stage.worker_pids()
    used, start = process.cpu_s(pids), time.monotonic()
    time.sleep(seconds)
    stage.check_worker()
    return (process.cpu_s(pids) - used) / (time.monotonic() - start)
