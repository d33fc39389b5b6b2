"""What a bug report, or a puzzled user, needs to know of an app: versions, place, contents, settings.

The text of `app.bugreport()` and of `localq report`. Must not show secrets, arguments or results, nor make a store.
"""

from __future__ import annotations

import platform
import sqlite3
from pathlib import Path
from typing import Any

from localq.resultstore import by_queue
from localq.storage.place import filesystem
from localq.version import __version__


def bugreport(app: Any) -> str:
    """Describe an app, its store and its settings, secrets masked."""
    settings = app.conf.table()
    system, machine, release = platform.system(), platform.machine(), platform.release()
    lines = [
        f"software -> localq:{__version__} py:{platform.python_version()} sqlite:{sqlite3.sqlite_version}",
        f"platform -> system:{system} arch:{machine} kernel:{release} imp:{platform.python_implementation()}",
        f"app      -> {app.main or '__main__'} made by {app.made_by or 'no file'}",
        f"store    -> {app.backend.url} durability:{app.conf.store_durability}",
        *(f"            {row}" for row in _contents(app)),
        f"settings -> {'' if settings else 'all defaults'}".rstrip(),
        *(f"{name}: {value!r}" for name, value in settings.items()),
    ]
    return "\n".join(lines)


def _contents(app: Any) -> list[str]:
    path = Path(app.backend.location.path)
    if app.backend.location.scheme != "sqlite" or not (path / "queue.db").exists():
        return ["(nothing has been sent yet)"]
    counts, others = by_queue(app.storage.counts())
    rows = [f"queue {count.queue}: {count.number} {count.place}" for count in counts]
    rows += [f"{others} result(s) of tasks that no worker ran"] if others else []
    alive = sum(owner.alive and owner.about.get("kind") == "worker" for owner in app.storage.owners())
    kind = filesystem(path.stat().st_dev)
    return [f"file system {kind or 'unknown'}, {alive} live worker(s)", *rows]
