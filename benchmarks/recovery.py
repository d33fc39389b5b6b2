"""How long do tasks wait behind a long one, and for whoever dies?

Read, in milliseconds: the 20 short tasks that were queued behind a long one, all done; the result of the task before
it in its waiter's hands (both counted from the start of the long task, worst of all rounds); `kill -9` of a child,
or of a whole worker beside another, to the second start of the task it ran (`acks_late`, `reject_on_worker_lost`),
median of all rounds; `kill -9` of a worker's main process alone, to the end of its last child, worst of all rounds.
What such a process had only reserved comes back in the same transaction.
Caveats: localq alone is asked. Celery on Redis reserves tasks for a busy child, and gives a dead worker's back after
`visibility_timeout`, an hour by default (100 s measured with 5 s).
"""

from __future__ import annotations

import os
import select
import signal
import statistics
import sys
import time
from collections.abc import Iterator

from benchmarks import process
from benchmarks.client import Client, PeerFailed
from benchmarks.question import milliseconds
from benchmarks.stage import REPOSITORY, START_LIMIT_S, Stage

TITLE = "Behind a long task, and after kill -9"
METRICS = {
    "20 short tasks behind a long one": milliseconds(),
    "result of the task before it": milliseconds(),
    "child killed, to restart": milliseconds(),
    "worker killed, to restart": milliseconds(),
    "main process killed, last child gone": milliseconds(),
}
#: Seconds that a held task would take if nobody died.
HOLD_S = 30.0


def measure(stage: Stage) -> Iterator[tuple[str, float]]:
    if stage.peer.name != "localq":
        return
    rounds = stage.scale(10, quick=2)
    behind, before = zip(*(_behind(stage) for _ in range(rounds)), strict=True)
    yield "20 short tasks behind a long one", max(behind) * 1000
    yield "result of the task before it", max(before) * 1000
    stage.start_worker()
    client = stage.ready_client()
    yield "child killed, to restart", statistics.median(_killed(stage, client, False) for _ in range(rounds)) * 1000
    yield "worker killed, to restart", statistics.median(_killed(stage, client, True) for _ in range(rounds)) * 1000
    stage.stop_worker()
    yield "main process killed, last child gone", max(_orphaned(stage) for _ in range(rounds)) * 1000


def _behind(stage: Stage) -> tuple[float, float]:
    client = stage.client()
    client.ask("send_around_hold", n=20)
    stage.start_worker()
    behind, before = client.ask("wait_around_hold", START_LIMIT_S)
    stage.stop_worker()
    client.end()
    return behind, before


def _killed(stage: Stage, client: Client, whole: bool) -> float:
    """Kill whoever runs a held task; return the seconds until another runs it."""
    holds = stage.directory / "holds"
    holds.write_text("")
    client.ask("hold", seconds=HOLD_S)
    pid, _ = _starts(stage, 1)[0]
    if whole:
        log = stage.directory / "other.log"
        other = process.start([sys.executable, *stage.peer.worker], stage.env, log, REPOSITORY)
        time.sleep(1.0)
        assert stage.worker
        killed_at = time.monotonic()
        os.killpg(stage.worker.pid, signal.SIGKILL)
        stage.worker.wait()
        stage.worker = other
    else:
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
    return _starts(stage, 2)[1][1] - killed_at


def _orphaned(stage: Stage) -> float:
    """Kill the main process of a worker; return the seconds until nobody of its family lives."""
    stage.start_worker()
    stage.ready_client().end()
    main, *family = stage.worker_pids()
    deaths = [os.pidfd_open(pid) for pid in family]
    killed_at = time.monotonic()
    os.kill(main, signal.SIGKILL)
    for death in deaths:
        if not select.select([death], [], [], START_LIMIT_S)[0]:
            raise PeerFailed(f"a child outlived its main process by {START_LIMIT_S:.0f} s")
        os.close(death)
    elapsed = time.monotonic() - killed_at
    stage.stop_worker()
    return elapsed


def _starts(stage: Stage, number: int) -> list[tuple[int, float]]:
    """Wait for so many starts of the held task: (pid, when) of each."""
    limit = time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit:
        lines = (stage.directory / "holds").read_text().splitlines()
        if len(lines) >= number:
            return [(int(pid), float(at)) for pid, at in map(str.split, lines)]
        time.sleep(0.001)
    raise PeerFailed(f"the task did not start {number} times within {START_LIMIT_S:.0f} s")
