"""Calls to messages, and messages to the store: the sending half of every task.

What a call's options mean is decided here and nowhere else. Must not run tasks, and does not read results.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from localq import clock, moments, routing, signals
from localq.canvas import Step
from localq.context import running
from localq.exceptions import LocalqWarning
from localq.message import Message, new_id
from localq.registry import nearest
from localq.serialization import checksum, decode, encode
from localq.storage.base import Bell, Storage

logger = logging.getLogger("localq.publisher")

#: Everything `apply_async` takes besides args and kwargs, and what it means.
CALL_OPTIONS: dict[str, str] = {
    "task_id": "the id; a new UUID if absent",
    "countdown": "seconds or timedelta from now before which it must not start; wins over eta",
    "eta": "datetime or ISO text before which it must not start; one without a zone is in the setting timezone",
    "expires": "seconds or timedelta from now, datetime or ISO text; from then on it must not start",
    "queue": "queue name; wins over routes",
    "priority": "0 (first) to 255 (last)",
    "serializer": "name of the serializer of the arguments",
    "ignore_result": "keep no result",
    "headers": "dict for request.headers",
    "shadow": "name to show in logs",
    "argsrepr": "text to show instead of the positional arguments",
    "kwargsrepr": "text to show instead of the keyword arguments",
    "link": "signature, or list of them, to send with the result on success",
    "root_id": "id of the workflow's first task",
    "parent_id": "id of the task that sent this one",
    "retries": "attempts before this one",
    "retry": "accepted: a put either happens or raises",
    "retry_policy": "accepted, see retry",
    "connection": "accepted: there is no broker",
    "producer": "accepted: there is no broker",
    "add_to_parent": "accepted",
    "exchange": "accepted: names lead to queues directly",
    "routing_key": "accepted, see exchange",
    "delivery_mode": "accepted: every message is on disk",
}
#: Options of Celery's whose meaning is not built yet: using one gives a warning, never silence.
NOT_YET = frozenset({
    "link_error", "time_limit", "soft_time_limit", "compression", "autoretry_for", "dont_autoretry_for",
    "retry_backoff", "retry_kwargs", "reply_to", "chain", "chord", "group_id", "group_index", "stamped_headers",
})  # fmt: skip
_IN_HEADERS = ("shadow", "argsrepr", "kwargsrepr", "headers")


def hostname() -> str:
    """Return this host's name."""
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "localhost")


class Defaults(NamedTuple):
    """What a task says about every call of it."""

    queue: str | None = None
    priority: int | None = None
    serializer: str | None = None
    ignore_result: bool = False
    expires: Any = None


NO_DEFAULTS = Defaults()
_NONE: dict[bool, Bell] = {}


class Publisher:
    """Builds and puts the messages of one app.

    Args:
        oid: the name of this process's bell, sent along as `reply_to`.
    """

    def __init__(self, conf: Any, oid: str) -> None:
        self._conf, self._oid = conf, oid
        self.origin = f"gen{os.getpid()}@{hostname()}"
        self.set_routes()

    def set_routes(self) -> None:
        """Read `task_routes` again."""
        self._routes_given = self._conf.task_routes
        self._routers = routing.compiled(self._routes_given)

    def message(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        defaults: Defaults = NO_DEFAULTS,
        options: Mapping[str, Any] | None = None,
        step: Step | None = None,
    ) -> Message:
        """Build the message of a call.

        Raises:
            EncodeError: an argument cannot be written; names it.
            ValueError, TypeError: an option's value makes no sense.
        """
        conf = self._conf
        if options:
            check_options(options)
        get = (options or {}).get
        serializer = get("serializer") or defaults.serializer or conf.task_serializer
        if serializer == "json" and not conf.json_allow_nan:
            serializer = "json-strict"
        body, content_type = encode((args, kwargs), serializer, "(args, kwargs)")
        queue = get("queue") or defaults.queue
        if queue is None:
            queue = self._route(name, args, kwargs, options or {})
        elif not isinstance(queue, str):
            raise TypeError(f"queue {queue!r} is no name of a queue: give text")
        priority = get("priority")
        if priority is None:
            priority = conf.task_default_priority if defaults.priority is None else defaults.priority
        if not isinstance(priority, int) or not 0 <= priority <= 255:
            raise ValueError(f"priority {priority!r} is out of range: 0 is first, 255 last, whole numbers between")
        ignored = get("ignore_result")
        now = clock.now()
        expires = get("expires", defaults.expires)
        return Message(
            (step.id if step else get("task_id")) or new_id(), name, body, queue, priority, content_type, None, None,
            checksum(body), self._headers(options, step), self.origin, self._oid, get("retries") or 0, now,
            self._visible_at(options, None if step and step.waits_for else now) if options else None,
            None if expires is None else self._expires_at(expires, None if step and step.waits_for else now),
            defaults.ignore_result if ignored is None else bool(ignored),
            *((step.after, step.waits_for, step.group_id, step.position, step.leads) if step else ()),
        )  # fmt: skip

    def message_of(self, step: Step, task: Any) -> Message:
        """Build the message of a workflow's step; `task` is None if nobody here knows it."""
        sig = step.sig
        options = {key: value for key, value in sig.options.items() if key not in ("task_id", "link")}
        if task is None:
            return self.message(sig.task, sig.args, sig.kwargs, NO_DEFAULTS, options, step)
        if not step.feed:
            task.check_arguments(sig.args, sig.kwargs)
        return self.message(sig.task, sig.args, sig.kwargs, task.defaults, options, step)

    def put(self, storage: Storage, messages: Sequence[Message]) -> None:
        """Put messages into the store, all or none, telling the signals' receivers before and after."""
        if signals.before_task_publish.receivers:
            _tell(signals.before_task_publish, messages)
        storage.put(messages)
        if signals.after_task_publish.receivers:
            _tell(signals.after_task_publish, messages)

    def moment(self, when: Any, now: float | None) -> float:
        """Turn an eta into a wall time: a datetime, ISO text or a timedelta; see `moments.later` for no now."""
        return moments.moment("eta", when, now, moments.zone_of(self._conf))

    def _visible_at(self, options: Mapping[str, Any], now: float | None) -> float | None:
        countdown, eta = options.get("countdown"), options.get("eta")
        if countdown is not None and moments.seconds("countdown", countdown):
            return moments.later("countdown", countdown, now)
        return None if eta is None else self.moment(eta, now)

    def _expires_at(self, expires: Any, now: float | None) -> float:
        at = moments.end("expires", expires, now, moments.zone_of(self._conf))
        if now is not None and at < now:
            logger.warning("expires=%r was %g s ago: this call is sent to end as REVOKED", expires, now - at)
        return at

    def _route(self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any]) -> str:
        if self._conf.task_routes is not self._routes_given:
            self.set_routes()
        found = routing.queue_for(self._routers, name, args, kwargs, options) if self._routers else None
        return found or self._conf.task_default_queue

    def _headers(self, options: Mapping[str, Any] | None, step: Step | None) -> str | None:
        found: dict[str, Any] = {}
        frame = running.get()
        if frame is not None and frame.request.id is not None:
            found["parent_id"] = frame.request.id
            found["root_id"] = frame.request.root_id or frame.request.id
        if options:
            found.update({key: options[key] for key in ("root_id", "parent_id") if options.get(key)})
            found.update({key: options[key] for key in _IN_HEADERS if options.get(key) is not None})
        if step is not None and step.feed:
            found["feed"] = step.feed
            found["feeds"] = step.waits_for
        return encode(found, "json", "headers")[0].decode() if found else None


def expect(backend: Any) -> tuple[Bell, int] | None:
    """Raise this thread's bell before a call of its own is sent, so that `get` need not look before it sleeps.

    Returns:
        The bell, and which raising that was; None if this thread has never waited and has no bell.
    """
    bell: Bell | None = getattr(backend.bells, "kept", _NONE).get(True)
    if bell is None:
        return None
    bell.raise_()
    return bell, bell.raised


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse an option that looks like a mistake; warn of one that is not built yet."""
    for name in options:
        if name in CALL_OPTIONS:
            continue
        if name in NOT_YET:
            warn_not_yet(name)
            continue
        raise TypeError(f"apply_async takes no option {name!r}{nearest(name, CALL_OPTIONS)}")


def warn_not_yet(name: str, task: str = "a call") -> None:
    """Say that an option of Celery's has no effect yet."""
    warnings.warn(f"option {name!r} of {task} has no effect yet in this version of localq", LocalqWarning, stacklevel=4)


def _tell(signal: signals.Signal, messages: Sequence[Message]) -> None:
    for m in messages:
        headers = {
            **decode((m.headers or "{}").encode(), "application/json", ("json",)),
            "id": m.id,
            "task": m.name,
            "retries": m.retries,
        }
        signal.send(
            m.name, body=m.body, exchange="", routing_key=m.queue, headers=headers,
            properties={"correlation_id": m.id, "reply_to": m.reply_to, "priority": m.priority},
            declare=[], retry_policy=None,
        )  # fmt: skip
