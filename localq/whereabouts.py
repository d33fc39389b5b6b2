"""Where a task is that has not ended, and what it lacks, in words: for errors, hints and the command line.

Must not be needed by a call that goes well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from localq import states
from localq.backend import Backend
from localq.message import Record
from localq.queues import DIRECT_END, own_queue
from localq.rates import NAME
from localq.storage.base import Storage


def whereabouts(record: Record) -> str:
    """Say in words where a message is that has not ended."""
    if record.place == states.READY:
        return f"waits for a worker in queue {record.queue!r}"
    if record.place == states.WAITING:
        return "waits for its time"
    kind, _, key = (record.hold or "").partition(":")
    what = key if kind == "after" else key.rpartition("@")[0]
    return _HELD.get(kind, "is in the hands of a worker").format(what)


_HELD = {
    "after": "waits for the end of {}",
    "name": "is parked: no worker that met it knows a task {!r}",
    "rate": "waits for its turn (rate_limit of {})",
}


def is_served(storage: Storage, queue: str) -> bool:
    """Whether a live worker reads this queue."""
    for owner in storage.owners():
        queues = owner.about.get("queues")
        if owner.alive and isinstance(queues, Sequence) and queue in queues:
            return True
    return False


def lacking(record: Record, backend: Backend) -> str:
    """Say what somebody has to do before a task can run; nothing if that is only a question of time."""
    if record.place == states.READY and not is_served(backend.storage, record.queue):
        return f"no live worker reads queue {record.queue!r}; start one: {worker_hint(record.queue, backend)}"
    if (record.hold or "").startswith(NAME):
        return (
            f"it is parked, because no worker knows a task {record.name!r}; import its module in a worker "
            "(include=, imports, -I) and restart that"
        )
    return ""


def worker_hint(queue: str, backend: Backend) -> str:
    """Return the command that starts a worker for the app of this store and a queue."""
    return f"localq -A {_module(backend)} worker{_choice(queue, backend)}"


def _module(backend: Backend) -> str:
    """Name the module that makes the app, as -A wants it: `shop.app` for `shop/app.py`."""
    if backend.made_in is not None:
        return backend.made_in
    if backend.made_by is None:
        return "your_module"
    file = Path(backend.made_by)
    names, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    return ".".join(names).removesuffix(".__init__").removesuffix(".__main__")


def _choice(queue: str, backend: Backend) -> str:
    """Say which worker serves a queue, in flags: a queue of one node's own is served by that node only."""
    if queue == backend.conf.task_default_queue:
        return ""
    if queue.endswith(DIRECT_END):
        remark = "" if backend.conf.worker_direct else " (with worker_direct = True)"
        return f" -n {queue.removesuffix(DIRECT_END)}{remark}"
    known = backend.app.router.queues if backend.app is not None else {}
    for name in known:
        if known[name].is_broadcast and queue.startswith(own_queue(name, "")):
            return f" -Q {name} -n {queue.removeprefix(own_queue(name, ''))}"
    return f" -Q {queue}"
