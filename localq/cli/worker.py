"""`localq worker`."""

from __future__ import annotations

import logging
import sys
from typing import Any

import click

from localq import __version__
from localq.cli.errors import Mistake
from localq.cli.finder import find_app
from localq.cli.main import merged
from localq.exceptions import ImproperlyConfigured
from localq.options import fault_of_limits
from localq.registry import nearest
from localq.worker import Worker, configure_logging, pools

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "FATAL")


def _level(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """Read a log level, in any case."""
    if value.upper() not in LEVELS:
        raise Mistake("LQ102", f"no log level is named {value!r}{nearest(value.upper(), LEVELS)}",
                      hint=f"levels are {', '.join(LEVELS)}")  # fmt: skip
    return int(getattr(logging, value.upper()))


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()] if value else []


@click.command(
    epilog="\b\nExamples:\n  localq -A tasks worker\n  localq -A proj worker -c 4 -Q mail,celery -l WARNING\n"
    "  localq -A path/to/file.py worker -P solo"
)
@click.option("-c", "--concurrency", type=click.IntRange(min=1), help="Child processes; default: the CPUs it may use.")
@click.option(
    "--async-concurrency",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Coroutine tasks that a child runs at a time.  [default: 100]",
)
@click.option("-Q", "--queues", "--queue", callback=_names, metavar="A,B", help="Queues to take tasks from.")
@click.option("-X", "--exclude-queues", callback=_names, metavar="A,B", help="Queues not to take tasks from.")
@click.option("-P", "--pool", metavar="POOL", help="prefork (default) or solo.")
@click.option("-n", "--hostname", metavar="NAME", help="Node name; %h is this host. Default: localq@%h.")
@click.option(
    "-l", "-L", "--loglevel", callback=_level, metavar="LEVEL", default="INFO", show_default=True, help="Log level."
)
@click.option("--time-limit", type=click.FloatRange(min=0), metavar="S", help="Seconds after which a task is killed.")
@click.option(
    "--soft-time-limit",
    type=click.FloatRange(min=0),
    metavar="S",
    help="Seconds after which SoftTimeLimitExceeded is raised in a task.",
)
@click.option(
    "--max-tasks-per-child", type=click.IntRange(min=0), metavar="N", help="Tasks after which a child is replaced."
)
@click.option(
    "--max-memory-per-child",
    type=click.IntRange(min=0),
    metavar="KIB",
    help="Memory (KiB) after which a child is replaced, once its task has ended.",
)
@click.option("-I", "--include", callback=_names, metavar="A,B", help="More modules to import.")
@click.option("--without-gossip", is_flag=True, hidden=True)
@click.option("--without-mingle", is_flag=True, hidden=True)
@click.option("--without-heartbeat", is_flag=True, hidden=True)
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Run the tasks of an app until stopped (Ctrl-C once: finish what runs; twice: stop at once)."""
    given = merged(ctx, options)
    if given["pool"]:
        try:
            pools.get(given["pool"])
        except ImproperlyConfigured as exc:
            raise Mistake("LQ103", str(exc)) from exc
    wrong = fault_of_limits(given["time_limit"], given["soft_time_limit"])
    if wrong:
        raise click.UsageError(wrong)
    app = find_app(given["app_spec"])
    if given["store"]:
        app.backend.use(given["store"])
    if given["no_color"]:
        app.conf.worker_log_color = False
    if given["async_concurrency"]:
        app.conf.worker_async_concurrency = given["async_concurrency"]
    configure_logging(app, given["loglevel"])
    app.set_default()
    app.loader.import_default_modules()
    for name in given["include"]:
        app.loader.import_task_module(name)
    worker = Worker(
        app, queues=given["queues"], exclude_queues=given["exclude_queues"], concurrency=given["concurrency"],
        pool=given["pool"], hostname=given["hostname"], loglevel=given["loglevel"], quiet=given["quiet"],
        version=__version__, time_limit=given["time_limit"], soft_time_limit=given["soft_time_limit"],
        max_tasks_per_child=given["max_tasks_per_child"], max_memory_per_child=given["max_memory_per_child"],
    )  # fmt: skip
    sys.exit(worker.run())
