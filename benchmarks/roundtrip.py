"""How long does one `delay().get()` take on an idle box?

Read: milliseconds from the call of `delay()` to the result in hand, 300 samples, one at a time, with random pauses of
5 to 15 ms between, in which the worker falls idle.
Caveats: the pollers run tuned (huey every 5 to 10 ms; its defaults give 50 ms); Celery's `get` is given interval=0.005.
p99 of 300 samples is the third worst: on a busy machine it measures the machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.question import milliseconds
from benchmarks.stage import Stage

TITLE = "Round trip: `delay().get()`, idle worker"
METRICS = {"p50": milliseconds(), "p99": milliseconds()}
LIMIT_S = 120


def measure(stage: Stage) -> Iterator[tuple[str, float]]:
    stage.start_worker()
    client = stage.ready_client()
    samples = client.ask("round_trip", LIMIT_S, n=stage.scale(300, quick=50))
    yield "p50", statistics.median(samples) * 1000
    yield "p99", statistics.quantiles(samples, n=100, method="inclusive")[98] * 1000
