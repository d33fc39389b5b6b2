"""potatoq with its SQLite broker."""

from __future__ import annotations

import os

from potatoq import Potatoq, chord, group

from benchmarks.peers.celery_words import CeleryWords

app = Potatoq("bench", broker=f"sqlite:///{os.environ['BENCH_DIR']}/potatoq.db")
tool = CeleryWords(app, group, chord)
