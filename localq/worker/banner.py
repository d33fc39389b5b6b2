"""What a worker says of itself when it starts: Celery's banner on a terminal, the same facts as log lines elsewhere."""

from __future__ import annotations

import platform
from datetime import datetime
from typing import Any

_ART = """\
 -------------- {node} v{version}
--- ***** -----
-- ******* ---- {platform} {now}
- *** --- * ---
- ** ---------- [config]
- ** ---------- .> app:         {app}
- ** ---------- .> store:       {store}
- ** ---------- .> durability:  {durability}
- *** --- * --- .> concurrency: {concurrency} ({pool})
-- ******* ---- .> task events: OFF
--- ***** -----
 -------------- [queues]
{queues}
"""


def facts(worker: Any, version: str) -> dict[str, str]:
    """Gather what a worker tells about itself."""
    app = worker.app
    return {
        "node": worker.node,
        "version": version,
        "platform": platform.platform(),
        "now": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        "app": f"{app.main or '__main__'}:0x{id(app):x}",
        "store": app.backend.url,
        "durability": app.conf.store_durability,
        "concurrency": str(worker.concurrency),
        "pool": worker.pool,
        "queues": "\n".join(map(_line, map(app.router.queues.known, worker.queues))),
    }


def _line(queue: Any) -> str:
    exchange = queue.exchange
    return f"                .> {queue.name:<16} exchange={exchange.name}({exchange.type}) key={queue.routing_key}"


def banner(worker: Any, version: str) -> str:
    """Return the banner."""
    return (
        _ART.format(**facts(worker, version))
        + "\n[tasks]\n"
        + "\n".join(f"  . {name}" for name in names(worker))
        + "\n"
    )


def names(worker: Any) -> list[str]:
    """Return the names of the user's tasks."""
    return sorted(name for name in worker.app.tasks if not name.startswith("celery."))
