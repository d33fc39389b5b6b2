"""How long does a chord of 1,000 take, to the result of its body?

Read: seconds from the call to the body's result (the sum of all) in hand; median of three chords after a smaller one to
warm up. The sum is checked.
Caveats: how a lost header task would end is not measured here; see the crash tests.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.question import seconds
from benchmarks.stage import Stage

TITLE = "Chord of 1,000 `add` tasks and a sum"
METRICS = {"to the body's result": seconds()}
LIMIT_S = 60


def measure(stage: Stage) -> Iterator[tuple[str, float]]:
    stage.start_worker()
    client = stage.ready_client()
    client.ask("chord", LIMIT_S, n=50)
    n = stage.scale(1_000, quick=200)
    yield "to the body's result", statistics.median(client.ask("chord", LIMIT_S, n=n)[0] for _ in range(3))
