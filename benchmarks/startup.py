"""How long after the start of the worker command is the first task done?

Read: seconds from the fork of the command to the end of a task that was queued before; median of five starts.
Caveats: files are in the page cache and bytecode is compiled, as at any start but the first.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.client import Client, PeerFailed
from benchmarks.question import seconds
from benchmarks.stage import START_LIMIT_S, Stage

TITLE = "Worker start to first task done"
METRICS = {"start to first task": seconds()}


def measure(stage: Stage) -> Iterator[tuple[str, float]]:
    client = stage.client()
    yield "start to first task", statistics.median(_start(stage, client) for _ in range(stage.scale(5, quick=2)))


def _start(stage: Stage, client: Client) -> float:
    client.ask("send", n=1)
    stage.reset_counters(gate_open=True)
    stage.start_worker()
    if not stage.wait_done(1, START_LIMIT_S):
        raise PeerFailed(f"no task done within {START_LIMIT_S:.0f} s")
    elapsed = stage.counters.first_s - stage.worker_started_at
    stage.stop_worker()
    return elapsed
