"""localq: Celery's tasks on one machine, with no broker and no server.

Re-exports only. The map of the house:

    exceptions states clock registry signals faults   words
    serialization message config queues routing       data
    context canvas
    storage/                                          where work is kept
    recovery dead result executor publisher           acts
    task app                                          what users hold
    worker/                                           what runs tasks
    cli/ testing/                                     faces
"""

from localq.app import LocalQ, shared_task
from localq.canvas import Signature, chain, chord, group, maybe_signature, signature, subtask
from localq.context import current_app, current_task
from localq.message import new_id as uuid
from localq.result import AsyncResult, EagerResult, GroupResult
from localq.task import Task

__version__ = "0.1.0"
__all__ = [
    "AsyncResult", "EagerResult", "GroupResult", "LocalQ", "Signature", "Task", "__version__", "chain", "chord",
    "current_app", "current_task", "group", "maybe_signature", "shared_task", "signature", "subtask", "uuid",
]  # fmt: skip
