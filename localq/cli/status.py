"""`localq status`: which workers run, and what waits in the store, with a worker up or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import click

from localq.cli.main import merged
from localq.cli.task import opened
from localq.rates import NAME, RATE, task_of
from localq.registry import nearest
from localq.resultstore import by_queue
from localq.states import ENDED, HELD, READY, WAITING
from localq.storage.base import STEP, OwnerInfo, Storage

#: What the places of messages are called in the table.
PLACES = {READY: "ready", WAITING: "scheduled", HELD: "held", ENDED: "ended"}


@click.command(epilog="\b\nExamples:\n  localq -A tasks status\n  localq -b /srv/jobs status")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Show the workers that run, the queues, and the tasks that are parked.

    A parked task has a name that no worker knew when it met it: it runs once one does.
    """
    app = opened(merged(ctx, options))
    storage = app.storage
    lines = [*_workers(storage.owners()), "", *_queues(storage), *_waiting(storage, app.tasks)]
    click.echo("\n".join(lines))


def _workers(owners: Iterable[OwnerInfo]) -> Iterator[str]:
    nodes = sorted(
        (str(owner.about.get("node")), owner.about) for owner in owners
        if owner.alive and owner.about.get("kind") == "worker"
    )  # fmt: skip
    for node, about in nodes:
        queues = about.get("queues")
        yield f"-> {node}: OK  (queues: {', '.join(map(str, queues if isinstance(queues, list) else ()))})"
    yield f"{len(nodes)} node{'' if len(nodes) == 1 else 's'} online."


def _queues(storage: Storage) -> Iterator[str]:
    counts, others = by_queue(storage.counts())
    if others:
        yield f"{others} result{'' if others == 1 else 's'} of tasks that no worker ran: eagerly, or written by hand"
    elif not counts:
        yield "no task is in the store"
    if not counts:
        return
    numbers = Counter({(count.queue, count.place): count.number for count in counts})
    width = max(len("queue"), *(len(count.queue) for count in counts))
    yield "  ".join(["queue".ljust(width), *(name.rjust(9) for name in PLACES.values())])
    for queue in dict.fromkeys(count.queue for count in counts):
        yield "  ".join([queue.ljust(width), *(str(numbers[queue, place]).rjust(9) for place in PLACES)])


def _waiting(storage: Storage, tasks: Any) -> Iterator[str]:
    """Name the tasks whose messages wait under a key, and why."""
    reasons = {NAME: "parked: no worker that met them knows this task{}", RATE: "limited: they wait for their turn"}
    for prefix, reason in reasons.items():
        for key, _, _ in storage.entries(prefix):
            name = task_of(key)
            number = len(storage.records(hold=key))
            more = " or more" if number == STEP else ""
            yield f"{number}{more} of {name} are {reason.format(nearest(name, tasks) if name not in tasks else '')}"
