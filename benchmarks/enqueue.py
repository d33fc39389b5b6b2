"""How many tasks a second does `delay()` send, from one process and from four at once?

Read: tasks per second, from the first call to the last return; no worker runs. The handles are dropped at once.
Caveats: compare durability first (the report's header): what huey-sqlite returns from has been synced, Celery's Redis
syncs nothing. With four processes on two cores the clients share the CPU with redis-server, where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.question import rate
from benchmarks.stage import Stage

TITLE = "Enqueue: `delay()` in a loop"
METRICS = {"1 process": rate(), "4 processes": rate()}
LIMIT_S = 120


def measure(stage: Stage) -> Iterator[tuple[str, float]]:
    yield "1 process", _rate(stage, 1, stage.scale(20_000, quick=3_000))
    with stage.again() as fresh:
        yield "4 processes", _rate(fresh, 4, stage.scale(5_000, quick=1_000))


def _rate(stage: Stage, processes: int, n: int) -> float:
    clients = [stage.client() for _ in range(processes)]
    stage.send_at_once(clients, "send", LIMIT_S, n=20)
    return n * processes / stage.send_at_once(clients, "send", LIMIT_S, n=n)
