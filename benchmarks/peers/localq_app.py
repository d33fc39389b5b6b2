"""localq; its durability comes from LOCALQ_DURABILITY, which the peer's entry sets."""

from __future__ import annotations

import os

from benchmarks.peers.celery_words import CeleryWords
from localq import LocalQ, chord, group

app = LocalQ("bench", store=f"{os.environ['BENCH_DIR']}/store", durability=os.environ["LOCALQ_DURABILITY"])
tool = CeleryWords(app, group, chord)
