"""What do 100,000 tasks that are due in one hour cost the worker, and a task that is due now?

Read: "first fresh task" is the seconds from the start of a worker on that backlog to the result of a task sent at the
same moment; "round trip after" the p50 of `delay().get()` from then on; "memory growth" the worker's PSS over that of
a worker which did the same without a backlog.
Caveats: fresh tasks are sent to the same queue as the backlog. Celery on Redis does not answer within the limit of two
minutes at the full size (42 s at 50,000), and its memory is then still growing. Below 1 MB growth is noise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from benchmarks import process
from benchmarks.client import PeerFailed
from benchmarks.question import megabytes, milliseconds, seconds
from benchmarks.stage import Stage

TITLE = "Backlog of 100,000 tasks due in one hour"
METRICS = {"first fresh task": seconds(), "round trip after, p50": milliseconds(), "memory growth": megabytes()}
LIMIT_S = 120
HOUR_S = 3600


def measure(stage: Stage) -> Iterator[tuple[str, float]]:
    with stage.again() as empty:
        list(_fresh_tasks(empty))
        base_mb = process.pss_mb(empty.worker_pids())
    stage.fill(stage.scale(100_000, quick=1_000), "send_later", seconds=HOUR_S)
    failure = None
    try:
        yield from _fresh_tasks(stage)
    except PeerFailed as error:
        failure = error
    yield "memory growth", process.pss_mb(stage.worker_pids()) - base_mb
    if failure:
        raise failure


def _fresh_tasks(stage: Stage) -> Iterator[tuple[str, float]]:
    client = stage.client()
    client.ask("send", n=0)  # it has imported its peer before the worker starts
    stage.start_worker()
    client.ask("round_trip", LIMIT_S, n=1)
    yield "first fresh task", time.monotonic() - stage.worker_started_at
    yield "round trip after, p50", 1000 * statistics.median(client.ask("round_trip", LIMIT_S, n=50))
