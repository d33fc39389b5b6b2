"""What waits under a key, as a worker sees it: tasks that may start only so often, names that it does not know.

A child parks what it may not run, and goes on with what it may; the store hands those with a rate limit out again,
one for each token. `Holds` frees what need not wait any more: a name that is known here, a task that has no limit.
Must not decide how often a task may start; `localq.rates` does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from localq import clock, rates
from localq.message import Claim, Outcome, Rate, Want
from localq.rates import BUCKET, NAME, RATE, task_of
from localq.registry import nearest
from localq.storage.base import Storage
from localq.worker.timer import Timer

logger = logging.getLogger("localq.worker.holds")

#: Seconds between two looks for what need not wait any more.
ROUND_S = 1.0
#: Most steps of one look, of some hundreds of messages each: others want to write, too.
STEPS = 50


def rates_of(tasks: Any, conf: Any, node: str) -> dict[str, Rate]:
    """Return the rate limits of an app's tasks, by every name that messages may call them."""
    if conf.worker_disable_rate_limits:
        return {}
    named = {**tasks.aliases, **tasks}
    found = {name: _rate(task, conf, node) for name, task in named.items()}
    return {name: rate for name, rate in found.items() if rate is not None}


def _rate(task: Any, conf: Any, node: str) -> Rate | None:
    period_s = rates.parse(task.rate_limit)
    if period_s is None:
        return None
    shared_by = f"@{node}" if conf.task_rate_limit_scope == "worker" else ""
    return Rate(task.name, f"{BUCKET}{task.name}{shared_by}", period_s)


def parked(claim: Claim, hold: str) -> Outcome:
    """The outcome of a claim whose task may not be run here and now: it waits under a key, uncharged."""
    return Outcome(claim.seq, claim.token, claim.message.id, ended=False, hold=hold)


def warn_of_unknown(name: str, tasks: Any) -> None:
    """Say that messages wait for a task that nobody here knows."""
    hint = nearest(name, [*tasks, *tasks.aliases])
    logger.warning(
        "Task %s is not registered in this worker; its messages are parked until a worker knows it (import its module "
        "with include=, imports or -I, and restart the worker if the task is new)%s", name, hint,
    )  # fmt: skip


class Holds:
    """The service of a worker that frees what need not wait any more.

    Args:
        app: whose tasks this worker knows.
        queues: which it serves; what waits in others is not its to free.
    """

    def __init__(self, app: Any, timer: Timer, queues: Sequence[str]) -> None:
        self._app, self._timer, self._queues = app, timer, frozenset(queues)
        self._storage: Storage = app.storage

    def start(self) -> None:
        self._free()
        self._timer.every(ROUND_S, self._free)

    def rung(self) -> None:
        return

    def look(self, again_in_s: float | None) -> bool:
        return False

    def stop(self) -> None:
        return

    def _free(self) -> None:
        keys = tuple(self._needless())
        for _ in range(STEPS):
            if not keys or not self._storage.settle((), Want("", (), 0, clock.now(), frees=keys)).moved:
                return

    def _needless(self) -> list[str]:
        tasks = self._app.tasks
        names, waiting = self._storage.entries(NAME), self._storage.entries(RATE)
        limited = {rate.task for rate in rates_of(tasks, self._app.conf, "").values()} if waiting else ()
        served = [key for key, _, _ in (*names, *waiting) if key.rpartition("@")[2] in self._queues]
        return [
            key for key in served
            if is_known(task_of(key), tasks) and not (key.startswith(RATE) and task_of(key) in limited)
        ]  # fmt: skip


def is_known(name: str, tasks: Any) -> bool:
    """Whether a worker with these tasks may run messages of this name."""
    return name in tasks or name in tasks.aliases
