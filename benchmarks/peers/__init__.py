"""The tools measured: how each is started and what it promises. Data only; importing this imports no peer.

The tasks and the calls of each peer stand in its `*_app.py`, which only worker and client processes import.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata, util

#: Worker processes of every peer.
WORKERS = 2


@dataclass(frozen=True, slots=True)
class Peer:
    """One tool with one set of settings."""

    name: str
    #: Distributions whose versions the report names; the first is the tool itself.
    packages: tuple[str, ...]
    #: The module that holds its tasks, and `tool`.
    app: str
    #: What follows `python` to start its worker.
    worker: tuple[str, ...]
    #: The line a user's module begins with.
    import_line: str
    settings: str
    durability: str
    redis: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    #: The questions it takes part in; empty means all.
    only: frozenset[str] = frozenset()

    def missing(self) -> str | None:
        """Return why the peer cannot be measured here, or None."""
        if self.redis and not shutil.which("redis-server"):
            return "redis-server is not on PATH (apt-get install redis-server)"
        if not util.find_spec(self.packages[0]):
            return f"{self.packages[0]} is not installed (pip install -r benchmarks/requirements.txt)"
        return None

    def versions(self) -> str:
        return ", ".join(f"{package} {_version(package)}" for package in self.packages)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(source tree)"


LOCALQ = Peer(
    name="localq",
    packages=("localq",),
    app="benchmarks.peers.localq_app",
    worker=("-m", "localq", "-A", "benchmarks.peers.localq_app", "worker", "-c", str(WORKERS), "-l", "WARNING"),
    import_line="from localq import LocalQ",
    settings="defaults, `-c 2`",
    durability="standard: survives the death of any process; a power cut may lose the last 50 ms",
    env={"LOCALQ_DURABILITY": "standard"},
)

LOCALQ_FULL = Peer(
    name="localq-full",
    packages=LOCALQ.packages,
    app=LOCALQ.app,
    worker=LOCALQ.worker,
    import_line=LOCALQ.import_line,
    settings="the same with `durability=full`; only where durability matters",
    durability="full: whatever returned survives a power cut",
    env={"LOCALQ_DURABILITY": "full"},
    only=frozenset({"enqueue", "drain", "roundtrip"}),
)

CELERY = Peer(
    name="celery",
    packages=("celery", "kombu", "billiard", "redis"),
    app="benchmarks.peers.celery_app",
    worker=(
        *("-m", "celery", "-A", "benchmarks.peers.celery_app", "worker", "-P", "prefork", "-c", str(WORKERS)),
        *("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING"),
    ),
    import_line="from celery import Celery",
    settings=(
        "Redis broker and backend, prefork `-c 2 --without-gossip --without-mingle --without-heartbeat`, prefetch "
        "multiplier 4 and early ack (defaults), `get(interval=0.005)`"
    ),
    durability="none: Redis memory, no sync (`--save '' --appendonly no`); a killed worker loses its tasks",
    redis=True,
)

POTATOQ = Peer(
    name="potatoq",
    packages=("potatoq",),
    app="benchmarks.peers.potatoq_app",
    worker=("-m", "potatoq", "-A", "benchmarks.peers.potatoq_app", "worker", "-c", str(WORKERS), "-l", "WARNING"),
    import_line="from potatoq import Potatoq",
    settings="SQLite broker, defaults (children recycled every 1,000 tasks), `-c 2`",
    durability="SQLite WAL, synchronous=NORMAL: survives any process; a power cut may lose the last commits",
)


def _huey(storage: str, settings: str, durability: str) -> Peer:
    return Peer(
        name=f"huey-{storage}",
        packages=("huey", "redis") if storage == "redis" else ("huey",),
        app="benchmarks.peers.huey_app",
        worker=(
            *("-m", "huey.bin.huey_consumer", "benchmarks.peers.huey_app.huey", "-w", str(WORKERS), "-k", "process"),
            *("-n", "-q", "-d", "0.005", "-m", "0.01", "-b", "1.0"),
        ),
        import_line="from huey import SqliteHuey" if storage == "sqlite" else "from huey import RedisHuey",
        settings=f"{settings}, `-w 2 -k process -n -d 0.005 -m 0.01 -b 1.0` and results polled every 5 ms (tuned)",
        durability=durability,
        redis=storage == "redis",
        env={"BENCH_HUEY": storage},
    )


HUEY_SQLITE = _huey(
    "sqlite",
    "SqliteHuey defaults (WAL)",
    "SQLite WAL, synchronous=FULL: enqueue survives a power cut; a killed worker loses its tasks",
)
HUEY_REDIS = _huey("redis", "RedisHuey (blocking pop)", "none: Redis memory, no sync; a killed worker loses its tasks")

PEERS = {peer.name: peer for peer in (LOCALQ, LOCALQ_FULL, CELERY, HUEY_SQLITE, HUEY_REDIS, POTATOQ)}
