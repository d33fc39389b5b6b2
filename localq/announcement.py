"""What receivers of `before_task_publish` see of a message, and what becomes of the changes they make.

They see what a message of Celery's looks like: a body `(args, kwargs, embed)`, headers with the user's own among them,
properties. Whatever they change there is changed in the message, or is refused. Made only if there are receivers.
Must not put anything.
"""

from __future__ import annotations

from copy import deepcopy
from datetime import datetime
from typing import Any

from localq import signals
from localq.context import Context, iso, shown_name
from localq.message import Message
from localq.serialization import brief_repr, checksum, decode, encode, serializer_of

#: Headers of Celery's that are columns of a message.
_COLUMNS = {"retries": "retries", "ignore_result": "ignore_result", "task": "name"}
_TIMES = {"eta": "visible_at", "expires": "expires_at"}
#: Headers that travel under their own name.
_OURS = (
    "shadow", "group", "group_index", "root_id", "parent_id", "timelimit", "argsrepr", "kwargsrepr", "origin",
    "replaced_task_nesting", "stamped_headers", "stamps",
)  # fmt: skip
#: What of the body's third part travels in our headers.
_EMBED = ("callbacks", "errbacks", "chain", "chord")


class Announcement:
    """One message on its way, as receivers see it.

    Args:
        policy: how a failed put is tried again.
        is_high_first: the user's sense of priorities is not the store's.
    """

    def __init__(self, message: Message, policy: dict[str, Any] | None, is_high_first: bool = False) -> None:
        self._message, self._policy, self._is_high_first = message, policy, is_high_first
        self._carried: dict[str, Any] = (
            decode(message.headers.encode(), "application/json", ("json",)) if message.headers else {}
        )
        args, kwargs = decode(message.body, message.content_type, (message.content_type,), message.checksum)
        self.body = (args, kwargs, {key: self._carried.get(key) for key in _EMBED})
        self.headers = {**self._standard(args, kwargs), **(self._carried.get("headers") or {})}
        self.properties = {
            "correlation_id": message.id, "reply_to": self._carried.get("reply_to") or message.reply_to,
            "priority": self._turned(message.priority), "delivery_mode": 2, **(self._carried.get("properties") or {}),
        }  # fmt: skip

    def _turned(self, priority: int) -> int:
        return 255 - priority if self._is_high_first else priority

    def _where(self) -> dict[str, str]:
        return self._carried.get("delivery") or {"exchange": "", "routing_key": self._message.queue}

    def _standard(self, args: Any, kwargs: Any) -> dict[str, Any]:
        m, carried = self._message, self._carried
        return {
            "lang": "py", "task": m.name, "id": m.id, "shadow": None, "eta": iso(m.visible_at),
            "expires": iso(m.expires_at), "group": m.group_id, "group_index": m.position, "retries": m.retries,
            "timelimit": [None, None], "root_id": m.id, "parent_id": None, "argsrepr": brief_repr(tuple(args)),
            "kwargsrepr": brief_repr(kwargs), "origin": m.origin, "ignore_result": bool(m.ignore_result),
            "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
            **{key: carried[key] for key in _OURS if key in carried},
        }  # fmt: skip

    def before(self) -> Message:
        """Tell the receivers, and return the message with their changes.

        Raises:
            ValueError: a receiver has changed what cannot change.
        """
        if signals.before_task_publish.receivers:
            seen = deepcopy((self.body, self.headers, self.properties))
            signals.before_task_publish.send(
                self._message.name, body=self.body, headers=self.headers, properties=self.properties, declare=[],
                retry_policy=self._policy, **self._where(),
            )  # fmt: skip
            if (self.body, self.headers, self.properties) != seen:
                self._message = self._changed(*seen)
        return self._message

    def after(self) -> None:
        """Tell the receivers that it is put."""
        m = self._message
        if signals.after_task_publish.receivers:
            signals.after_task_publish.send(m.name, body=self.body, headers=self.headers, **self._where())
        if signals.task_sent.receivers:
            signals.task_sent.send(
                m.name, task_id=m.id, task=shown_name(m), args=self.body[0], kwargs=self.body[1],
                eta=self.headers.get("eta"), taskset=self.headers.get("group"),
            )  # fmt: skip

    def _changed(self, body: Any, headers: dict[str, Any], properties: dict[str, Any]) -> Message:
        """Return the message with whatever differs from what the receivers saw first."""
        m, carried = self._message, self._carried
        new = {key: value for key, value in self.headers.items() if key not in headers or headers[key] != value}
        if self.body[2].get("callbacks") != body[2].get("callbacks"):
            raise ValueError(
                f"a receiver of before_task_publish has changed the callbacks of {m.id}: those are messages already; "
                "give the call a link instead"
            )
        columns = self._columns(new)
        if self.properties.get("priority") != properties.get("priority"):
            columns["priority"] = self._turned(self.properties["priority"])
        if self.body != body:
            data, content_type = encode(list(self.body[:2]), serializer_of(m.content_type), "(args, kwargs)")
            columns.update(body=data, content_type=content_type, checksum=checksum(data))
            for key, value in self.body[2].items():
                if value is None:
                    carried.pop(key, None)
                else:
                    carried[key] = value
        carried.update({key: new[key] for key in _OURS if key in new})
        self._carry_own(new, headers.keys() - self.headers.keys())
        extra = {key: value for key, value in self.properties.items() if properties.get(key) != value}
        extra.pop("priority", None)
        if extra:
            carried["properties"] = {**(carried.get("properties") or {}), **extra}
        text = encode(carried, "json", "headers")[0].decode() if carried else None
        return m._replace(headers=text, **columns)

    def _columns(self, new: dict[str, Any]) -> dict[str, Any]:
        if "id" in new:
            raise ValueError(
                f"a receiver of before_task_publish has changed the id of {self._message.id}: the caller has a handle "
                "on that id already; give the call a task_id instead"
            )
        found = {column: new[key] for key, column in _COLUMNS.items() if key in new}
        for key, column in _TIMES.items():
            if key in new:
                found[column] = None if new[key] is None else datetime.fromisoformat(new[key]).timestamp()
        return found

    def _carry_own(self, new: dict[str, Any], gone: set[str]) -> None:
        own = dict(self._carried.get("headers") or {})
        own.update({key: value for key, value in new.items() if key in own or not _is_standard(key)})
        for key in gone:
            own.pop(key, None)
        if own:
            self._carried["headers"] = own
        else:
            self._carried.pop("headers", None)


def _is_standard(key: str) -> bool:
    return key in _COLUMNS or key in _TIMES or hasattr(Context, key)
