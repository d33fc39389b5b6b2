"""Celery with Redis as broker and result backend."""

from __future__ import annotations

import os

from celery import Celery, chord, group

from benchmarks.peers.celery_words import CeleryWords

app = Celery("bench", broker=f"{os.environ['BENCH_REDIS']}/0", backend=f"{os.environ['BENCH_REDIS']}/1")
app.conf.broker_connection_retry_on_startup = True
tool = CeleryWords(app, group, chord, {"interval": 0.005})
