"""What of a workflow is still to come behind a task, as Celery has it in `request.chain` and `request.chord`.

No message carries the steps behind it: the store has them, each once, held by what they wait for. So this is read when
a task looks, and costs nothing when none does. Must not change anything.
"""

from __future__ import annotations

from typing import Any

from localq.message import LEADS_BY_GROUP, LEADS_BY_ID, Message, Record
from localq.plan import RESULT
from localq.serialization import decode
from localq.storage.base import Storage


def rest_of_chain(storage: Storage, message: Message) -> list[dict[str, Any]] | None:
    """Return the signatures of the steps behind a message, the next one last; None if there are none."""
    found: list[dict[str, Any]] = []
    step = _behind(storage, message.id, len(_headers(message).get("links", ()))) if message.leads & LEADS_BY_ID else []
    while step:
        first = step[0]
        if len(step) == 1:
            found.append(_signature(first))
            key = first.id if first.leads & LEADS_BY_ID else None
        else:
            found.append(_group(step))
            key = first.group_id if first.leads & LEADS_BY_GROUP else None
        step = _behind(storage, key) if key is not None else []
    return found[::-1] or None


def body_of_chord(storage: Storage, message: Message) -> dict[str, Any] | None:
    """Return the signature of the body that waits for a message's whole group; None if none does."""
    if message.group_id is None or not message.leads & LEADS_BY_GROUP:
        return None
    bodies = _behind(storage, message.group_id)
    return _signature(bodies[0]) if bodies else None


def _behind(storage: Storage, key: str, links: int = 0) -> list[Message]:
    """Return the messages of the step that waits for an end; callbacks were put before it."""
    records: list[Record] = sorted(storage.records(hold=f"after:{key}", whole=True).values(), key=lambda r: r.seq)
    return [record.message for record in records if record.message is not None][links:]


def _headers(message: Message) -> dict[str, Any]:
    return decode(message.headers.encode(), "application/json", ("json",)) if message.headers else {}


def _signature(message: Message) -> dict[str, Any]:
    args, kwargs = decode(message.body, message.content_type, (message.content_type,), message.checksum)
    return {
        "task": message.name, "args": args, "kwargs": kwargs, "options": {"task_id": message.id},
        "subtask_type": None, "immutable": _headers(message).get("feed") != RESULT,
    }  # fmt: skip


def _group(messages: list[Message]) -> dict[str, Any]:
    return {
        "task": "celery.group", "args": (), "kwargs": {"tasks": [_signature(each) for each in messages]},
        "options": {"task_id": messages[0].group_id}, "subtask_type": "group", "immutable": False,
    }  # fmt: skip
