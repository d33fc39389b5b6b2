"""localq: Celery's tasks on one machine, with no broker and no server.

Re-exports only. The map of the house:

    exceptions states clock registry signals faults version      words
    serialization message options moments settings sources       data
    config rates queues routing context current lazy stamping
    signatures maps workflows canvas plan annotations log
    revocation parameters retries models tracebacks wrapping
    coroutines
    storage/                                                     where work is kept
    recovery dead whereabouts meta resultstore backend waiting   acts
    graph control awaitable awaiting groups result executor
    eager publisher announcement errbacks broker
    task makers tasks loader report parts registrar app                 what users hold
    worker/                                                      what runs tasks
    cli/ testing/ contrib/                                       faces
"""

from typing import Any

from localq.app import LocalQ, app_or_default, shared_task
from localq.canvas import (
    Signature,
    chain,
    chord,
    chunks,
    group,
    maybe_signature,
    signature,
    subtask,
    xmap,
    xstarmap,
)  # fmt: skip
from localq.current import current_app, current_task
from localq.message import new_id as uuid
from localq.result import AsyncResult, EagerResult, GroupResult
from localq.task import Task
from localq.version import VERSION, __version__

__all__ = [
    "VERSION", "AsyncResult", "EagerResult", "GroupResult", "LocalQ", "Signature", "Task", "__version__",
    "app_or_default", "bugreport", "chain", "chord", "chunks", "current_app", "current_task", "group",
    "maybe_signature", "shared_task", "signature", "subtask", "uuid", "xmap", "xstarmap",
]  # fmt: skip


def bugreport(app: Any = None) -> str:
    """Describe an app, the current one if None; see `LocalQ.bugreport`."""
    return str(app_or_default(app).bugreport())
