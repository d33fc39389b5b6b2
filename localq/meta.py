"""How a task stands, as Celery writes it down: the dict that `on_message` and `backend.get_task_meta` give.

    task_id status result traceback children date_done     always
    group_id parent_id                                     if it has them
    name args kwargs worker retries queue, and stamps      with the setting result_extended

Must not read a store: it is given a record.
"""

from __future__ import annotations

import json
from typing import Any

from localq.context import iso
from localq.message import Message, Record
from localq.serialization import decode, value_of
from localq.states import PENDING
from localq.storage.news import News


def meta_of(record: Record, conf: Any, news: News | None = None) -> dict[str, Any]:
    """Describe a task as it stands, or as it stood when it told this news.

    Args:
        record: a whole one.
    """
    at = record if news is None else news
    has_ended = news is None and record.ended
    meta: dict[str, Any] = {
        "task_id": record.id,
        "status": at.state,
        "result": value_of(at, conf),
        "traceback": at.traceback,
        "children": json.loads(record.children) if has_ended and record.children else [],
        "date_done": iso(record.ended_at) if has_ended else None,
    }
    headers = headers_of(record.message)
    known = {"group_id": record.group_id, "parent_id": headers.get("parent_id")}
    meta.update({name: value for name, value in known.items() if value})
    if conf.result_extended:
        meta.update(_extended(record, conf, headers))
    return meta


def pending(id: str) -> dict[str, Any]:
    """Describe a task of which the store knows nothing."""
    return {"task_id": id, "status": PENDING, "result": None, "traceback": None, "children": [], "date_done": None}


def call_of(record: Record, conf: Any) -> tuple[Any, Any]:
    """Return the arguments a task was sent with: without what the step before it gives it."""
    message = record.message
    if message is None:
        return None, None
    args, kwargs = decode(message.body, message.content_type, tuple(conf.accept_content), message.checksum)
    return args, kwargs


def headers_of(message: Message | None) -> dict[str, Any]:
    """Return what a message has besides a plain one; nothing if there is no message."""
    if message is None or message.headers is None:
        return {}
    found: dict[str, Any] = decode(message.headers.encode(), "application/json", ("json",))
    return found


def _extended(record: Record, conf: Any, headers: dict[str, Any]) -> dict[str, Any]:
    args, kwargs = call_of(record, conf)
    stamped = headers.get("stamped_headers")
    stamps = headers.get("stamps") or {}
    return {
        "name": record.name, "args": args, "kwargs": kwargs, "worker": record.worker, "retries": record.retries,
        "queue": record.queue, **({"stamped_headers": stamped} if stamped else {}),
        **{name: stamps[name] for name in stamped or () if name in stamps},
    }  # fmt: skip
