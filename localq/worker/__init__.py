"""The worker: what takes tasks out of the store and runs them.

    prefork                                        solo
    supervisor  forks, waits, answers signals      one process:
      +- steward    upkeep, sweep, due             main thread   claim -> execute -> settle
      +- child 1..N claim -> execute -> settle     a thread      the steward's services
                    a thread: the event loop       a thread      the event loop of coroutine tasks

    supervisor.py solo.py   the pools       child.py        the loop both of them run
    steward.py timer.py     the services    coroutines.py   `async def` tasks, in a thread beside it
    watch.py enforcer.py    hard limits     terms.py soft.py   limits, as the child keeps them
    banner.py               its first words notices.py herald.py request.py   what the steward tells the user's own code

`Worker` only holds the options and picks the pool. Must not touch the store itself.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from localq import signals
from localq.exceptions import ImproperlyConfigured
from localq.publisher import hostname as host_name
from localq.registry import Registry
from localq.settings import POOLS_LATER
from localq.worker import banner
from localq.worker.solo import Solo
from localq.worker.supervisor import Supervisor

logger = logging.getLogger("localq.worker")

#: Pool name -> class with run() and, for embedded use, stop().
pools: Registry[Callable[[Any], Any]] = Registry("pool", "localq.pools", ImproperlyConfigured, POOLS_LATER)
pools.register("prefork", Supervisor, "processes")
pools.register("solo", Solo)


class Worker:
    """A worker with its options; `run` makes it work.

    Args:
        app: whose tasks to run.
        queues: queues to serve, as names or as a text with commas; if empty, those of `app.select_queues`, else all
            of task_queues, else the default queue.
        exclude_queues: queues of those not to serve.
        concurrency: child processes; the CPUs this process may use if None.
        pool: `prefork` or `solo`.
        hostname: the node's name, `name@host`; `localq@<this host>` if None, with a number added
            if a running worker has that already. `%h` is the host's name.
        loglevel: a name or number of the logging module.
        on_ready: called when the worker is about to claim.
        quiet: no banner.
        time_limit, soft_time_limit: seconds that tasks may take which say nothing themselves; None: the settings.
        max_tasks_per_child, max_memory_per_child: tasks, or KiB, after which a child is replaced; None: the settings.
    """

    def __init__(
        self,
        app: Any,
        queues: Any = None,
        concurrency: int | None = None,
        pool: str | None = None,
        hostname: str | None = None,
        loglevel: str | int = "INFO",
        on_ready: Callable[[], None] | None = None,
        quiet: bool = False,
        version: str = "",
        exclude_queues: Any = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        max_tasks_per_child: int | None = None,
        max_memory_per_child: int | None = None,
    ) -> None:
        self.app = app
        #: What it serves; `queues` is what it claims from.
        self.served: tuple[str, ...] = app.router.queues.chosen(queues, exclude_queues)
        self.pool = pool or app.conf.worker_pool
        self.concurrency = 1 if self.pool == "solo" else concurrency or app.conf.worker_concurrency or cpus()
        self.node_may_vary = hostname is None
        self.node = node_name(hostname)
        self.loglevel = loglevel
        #: The main process, where it is not this one.
        self.pid = os.getpid()
        self._on_ready, self._quiet, self._version = on_ready, quiet, version
        conf = app.conf
        #: (hard, soft) of tasks that have no limits of their own.
        self.limits = (time_limit or conf.task_time_limit or None, soft_time_limit or conf.task_soft_time_limit or None)
        self.max_tasks_per_child = max_tasks_per_child or conf.worker_max_tasks_per_child
        self.max_memory_per_child = max_memory_per_child or conf.worker_max_memory_per_child
        self._running = pools.get(self.pool)(self)

    @property
    def hostname(self) -> str:
        return self.node

    @property
    def queues(self) -> tuple[str, ...]:
        """What it claims from, the queues of its node's own among them: final once its node has its name."""
        found: tuple[str, ...] = self.app.router.queues.claimed(self.served, self.node)
        return found

    @property
    def facts(self) -> dict[str, object]:
        """What others see of it in the store, beside its process and its node's name."""
        return {
            "concurrency": self.concurrency, "pool": self.pool, "queues": list(self.served),
            "broadcasts": self.app.router.queues.broadcasts(self.served),
        }  # fmt: skip

    def run(self) -> int:
        """Work until told to stop; return the exit code.

        Raises:
            ImproperlyConfigured: the pool cannot work with the store.
        """
        if self.app.backend.location.scheme == "memory" and self.pool != "solo":
            raise ImproperlyConfigured(
                f"a memory: store cannot be shared by the processes of the {self.pool} pool; "
                "use -P solo, or another store"
            )
        self.app.set_current()
        self.app.finalize()
        return int(self._running.run())

    start = run

    def stop(self) -> None:
        """Stop warmly, from another thread; for embedded workers."""
        self._running.stop()

    def tell_ready(self) -> None:
        """Say that the worker is ready, to people and to receivers of `worker_ready`."""
        if not self._quiet and sys.stdout is not None and sys.stdout.isatty():
            print(banner.banner(self, self._version), flush=True)
        else:
            for name, fact in banner.facts(self, self._version).items():
                if name not in ("now", "node", "version", "queues"):
                    logger.info("%s: %s", name, fact)
            logger.info("queues: %s", ", ".join(self.queues))
            logger.info("tasks: %s", ", ".join(banner.names(self)))
        if not banner.names(self):
            logger.warning("no task is registered: is the module that defines them imported? (include=, imports, -I)")
        idle = self.app.conf.without_effect()
        if idle:
            logger.warning("these settings have no effect here: %s", ", ".join(idle))
        logger.info("Connected to %s", self.app.backend.url)
        logger.info("%s ready.", self.node)
        signals.worker_ready.send(self)
        if self._on_ready is not None:
            self._on_ready()

    def say(self, text: str) -> None:
        """Tell whoever watches that the worker is stopping."""
        _print(text)

    def say_error(self, text: str, code: str = "LQ020") -> None:
        """Tell whoever watches why the worker cannot work."""
        _print(f"error[{code}]: {text}")


def _print(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass  # nobody listens any more; stopping goes on


def configure_logging(app: Any, level: int) -> None:
    """Configure logging for a worker's processes, unless a receiver of `setup_logging` does."""
    app.log.setup_logging_subsystem(level)


def node_name(hostname: str | None) -> str:
    """Complete a node name: `w1` and `w1@%h` become `w1@<this host>`."""
    host = host_name()
    if not hostname:
        return f"localq@{host}"
    name, at, rest = hostname.partition("@")
    return f"{name}@{(rest if at else host).replace('%h', host)}"


def cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
