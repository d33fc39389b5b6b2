"""What waits under a key, as a worker sees it: tasks that may start only so often, names that it does not know.

A child parks what it may not run, and goes on with what it may; the store hands those with a rate limit out again,
one for each token. What need not wait any more (a name that is known here, a task that has no limit) a child frees in
the transaction in which it claims: freed beforehand, it might be parked again by a worker that does not know it, and
so for ever. Must not decide how often a task may start; `localq.rates` does.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from localq import rates
from localq.message import Claim, Outcome, Rate
from localq.rates import BUCKET, NAME, RATE, task_of
from localq.registry import nearest
from localq.storage.base import Storage

logger = logging.getLogger("localq.worker.holds")


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


def needless(storage: Storage, app: Any, queues: Collection[str]) -> tuple[str, ...]:
    """Return the keys in these queues under which nothing need wait any more: its name is known, or has no limit."""
    tasks = app.tasks
    names, waiting = storage.entries(NAME), storage.entries(RATE)
    limited = {rate.task for rate in rates_of(tasks, app.conf, "").values()} if waiting else ()
    served = [key for key, _, _ in (*names, *waiting) if key.rpartition("@")[2] in queues]
    return tuple(
        key for key in served
        if is_known(task_of(key), tasks) and not (key.startswith(RATE) and task_of(key) in limited)
    )  # fmt: skip


def is_known(name: str, tasks: Any) -> bool:
    """Whether a worker with these tasks may run messages of this name."""
    return name in tasks or name in tasks.aliases
