"""How long does a group of 1,000 take: until sent, and until all its results are read?

Read: seconds from the call; median of three groups after a smaller one to warm up. The results are compared.
Caveats: the worker runs while the group is sent, so for tools that send task by task "sent" includes its competition
for the CPU. huey's group is a loop of enqueues.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.question import seconds
from benchmarks.stage import Stage

TITLE = "Group of 1,000 `add` tasks"
METRICS = {"sent": seconds(), "sent and all results read": seconds()}
LIMIT_S = 60


def measure(stage: Stage) -> Iterator[tuple[str, float]]:
    stage.start_worker()
    client = stage.ready_client()
    client.ask("group", LIMIT_S, n=50)
    n = stage.scale(1_000, quick=200)
    samples = [client.ask("group", LIMIT_S, n=n) for _ in range(3)]
    yield "sent", statistics.median(sent for sent, _ in samples)
    yield "sent and all results read", statistics.median(read for _, read in samples)
