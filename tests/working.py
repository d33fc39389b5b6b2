"""A worker without processes, threads or time: claim, execute and settle until nothing is ready."""

from __future__ import annotations

from typing import Any

from localq import clock
from localq.executor import Executor
from localq.message import Claim, Want
from localq.worker.child import feed


def claims_of(app: Any, owner: str, limit: int = 1, queues: tuple[str, ...] = ("celery",)) -> list[Claim]:
    """Claim what is ready now for `owner`."""
    return app.storage.settle((), Want(owner, queues, limit, clock.now())).claims


def work_off(app: Any, queues: tuple[str, ...] = ("celery",)) -> list[str]:
    """Run everything that is ready now, and what becomes ready by it; return the ids in the order they ran."""
    storage, executor, ran = app.storage, Executor(app.conf, "test@here"), []
    owner = storage.enlist({"kind": "test"}, journal=False)
    outcomes: list[Any] = []
    while True:
        claims = storage.settle(outcomes, Want(owner.name, queues, 16, clock.now())).claims
        if not claims:
            break
        outcomes = []
        for claim in claims:
            task = app.tasks[claim.message.name]
            owner.begin(claim, task.lost_mode)
            outcomes.append(executor.execute(task, claim, feed(storage, claim, app.conf)))
            ran.append(claim.message.id)
    owner.close()
    storage.retire(owner.name)
    return ran
