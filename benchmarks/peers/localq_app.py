"""localq; its durability comes from LOCALQ_DURABILITY, which the peer's entry sets."""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks.peers.celery_words import CeleryWords
from localq import LocalQ, chord, group

app = LocalQ("bench", store=f"{os.environ['BENCH_DIR']}/store", durability=os.environ["LOCALQ_DURABILITY"])


@app.task(bind=True, name="bench.hold", acks_late=True, reject_on_worker_lost=True)
def hold(self: Any, seconds: float) -> float:
    """Note who runs this and since when; take long, unless somebody has died of it before."""
    started = time.monotonic()
    with open(f"{os.environ['BENCH_DIR']}/holds", "a", buffering=1) as file:
        file.write(f"{os.getpid()} {started}\n")
    if not self.request.redelivered:
        time.sleep(seconds)
    return started


class LocalqWords(CeleryWords):
    """The tool, with what only localq is asked for."""

    def hold(self, seconds: float) -> Any:
        return hold.delay(seconds)


tool = LocalqWords(app, group, chord)
