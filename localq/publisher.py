"""Calls to messages, and messages to the store: the sending half of every task.

What a call's options mean is decided here and nowhere else. Must not run tasks, and does not read results.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from localq import clock, moments, signals
from localq.canvas import Step
from localq.context import running
from localq.exceptions import LocalqWarning
from localq.message import Message, new_id
from localq.queues import nodes_serving, own_queue
from localq.registry import nearest
from localq.routing import DESTINATION, Routed, Router
from localq.serialization import checksum, decode, encode
from localq.storage.base import Bell, Storage

logger = logging.getLogger("localq.publisher")

#: Everything `apply_async` takes besides args and kwargs, and what it means.
CALL_OPTIONS: dict[str, str] = {
    "task_id": "the id; a new UUID if absent",
    "countdown": "seconds or timedelta from now before which it must not start; wins over eta",
    "eta": "datetime or ISO text before which it must not start; one without a zone is in the setting timezone",
    "expires": "seconds or timedelta from now, datetime or ISO text; from then on it must not start",
    "queue": "a queue or its name; wins over routes",
    "priority": "0 (first) to 255 (last); see task_priority_order",
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
    "exchange": "an exchange or its name; see routing",
    "exchange_type": "direct, topic or fanout, of an exchange that task_queues does not know",
    "routing_key": "what leads from the exchange to queues",
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
    """What a task says about every call of it.

    Attributes:
        destination: its queue, exchange and routing key, those that it has.
    """

    destination: Mapping[str, Any] | None = None
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
        router: finds the queues; one that knows only the settings if None.
        tasks: the app's tasks by name, for routers that want to look at them.
    """

    def __init__(
        self, conf: Any, oid: str, router: Router | None = None, tasks: Mapping[str, Any] | None = None
    ) -> None:
        self._conf, self._oid = conf, oid
        self._router, self._tasks = router or Router(conf), {} if tasks is None else tasks
        self.origin = f"gen{os.getpid()}@{hostname()}"
        #: Whether a message was ever made that may have to become several.
        self._may_spread = False
        self.settle()

    def settle(self) -> None:
        """Read the settings again."""
        conf = self._conf
        self._is_high_first = conf.task_priority_order == "high_first"
        self._usual_priority = conf.task_default_priority
        if self._is_high_first and "task_default_priority" not in conf.without_defaults():
            self._usual_priority = 0  # RabbitMQ's: a message that says nothing is the last

    def message(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        defaults: Defaults = NO_DEFAULTS,
        options: Mapping[str, Any] | None = None,
        step: Step | None = None,
        above: int | None = None,
    ) -> Message:
        """Build the message of a call.

        Args:
            above: the priority, as stored, of the message it waits for and inherits from.

        Raises:
            EncodeError: an argument cannot be written; names it.
            QueueNotFound: its queue is not among task_queues, and must not be made up.
            ValueError, TypeError: an option's value makes no sense.
        """
        conf = self._conf
        if options:
            check_options(options)
        queue = self._router.plain
        if queue is None or defaults.destination or (options and not DESTINATION.isdisjoint(options)):
            queue, options = self._routed(name, args, kwargs, defaults, options or {})
        get = (options or {}).get
        serializer = get("serializer") or defaults.serializer or conf.task_serializer
        if serializer == "json" and not conf.json_allow_nan:
            serializer = "json-strict"
        body, content_type = encode((args, kwargs), serializer, "(args, kwargs)")
        priority = self._priority(get("priority"), defaults.priority, above)
        ignored = get("ignore_result")
        now = clock.now()
        expires = get("expires", defaults.expires)
        return Message(
            (step.id if step else get("task_id")) or new_id(), name, body, queue, priority, content_type, None, None,
            checksum(body), self._headers(options, step, queue), self.origin, self._oid, get("retries") or 0, now,
            self._visible_at(options, None if step and step.waits_for else now) if options else None,
            None if expires is None else self._expires_at(expires, None if step and step.waits_for else now),
            defaults.ignore_result if ignored is None else bool(ignored),
            *((step.after, step.waits_for, step.group_id, step.position, step.leads) if step else ()),
        )  # fmt: skip

    def messages_of(self, steps: Sequence[Step], task_named: Callable[[str], Any]) -> list[Message]:
        """Build the messages of a workflow's steps, in their order.

        With task_inherit_parent_priority, a step has the priority of what it waits for.
        """
        if not self._conf.task_inherit_parent_priority:
            return [self.message_of(step, task_named(step.sig.task)) for step in steps]
        found: list[Message] = []
        priorities: dict[str, int] = {}
        for step in steps:
            message = self.message_of(step, task_named(step.sig.task), priorities.get(step.after or ""))
            found.append(message)
            for id in filter(None, (message.id, message.group_id)):
                priorities.setdefault(id, message.priority)
        return found

    def message_of(self, step: Step, task: Any, above: int | None = None) -> Message:
        """Build the message of a workflow's step; `task` is None if nobody here knows it."""
        sig = step.sig
        options = {key: value for key, value in sig.options.items() if key not in ("task_id", "link")}
        if task is None:
            return self.message(sig.task, sig.args, sig.kwargs, NO_DEFAULTS, options, step, above)
        if not step.feed:
            task.check_arguments(sig.args, sig.kwargs)
        return self.message(sig.task, sig.args, sig.kwargs, task.defaults, options, step, above)

    def put(self, storage: Storage, messages: Sequence[Message]) -> None:
        """Put messages into the store, all or none, telling the signals' receivers before and after."""
        if self._may_spread:
            messages = self.spread(storage, messages)
        if signals.before_task_publish.receivers:
            _tell(signals.before_task_publish, messages, self._is_high_first)
        storage.put(messages)
        if signals.after_task_publish.receivers:
            _tell(signals.after_task_publish, messages, self._is_high_first)

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

    def _routed(
        self, name: str, args: Any, kwargs: Any, defaults: Defaults, options: Mapping[str, Any]
    ) -> tuple[str, Mapping[str, Any]]:
        """Return a call's queue, and its options with those of its route that neither it nor the task gives."""
        task = self._tasks.get(name)
        queue, more = self._router.route(name, args, kwargs, options, defaults.destination, task)
        self._may_spread = self._may_spread or isinstance(queue, Routed)
        if not more:
            return queue, options
        check_options(more)
        more = {key: more[key] for key in more if getattr(defaults, key, None) in (None, False)}
        return queue, {**more, **{key: value for key, value in options.items() if value is not None}}

    def spread(self, storage: Storage, messages: Sequence[Message]) -> list[Message]:
        """Return these messages and the copies for all other queues they go to.

        A copy's id is made of the first one's, so that sending the same again still makes no second one.
        """
        found: list[Message] = []
        nodes: dict[str, list[str]] = {}
        for message in messages:
            if not isinstance(message.queue, Routed):
                found.append(message)
                continue
            for name in message.queue.broadcasts - nodes.keys():
                nodes[name] = nodes_serving(name, storage.owners(), storage.entries("worker:"))
            first, *others = _queues(message.queue, nodes)
            found.append(message._replace(queue=first))
            found += [_copy(message, queue) for queue in others]
        return found

    def _priority(self, given: Any, own: Any, above: int | None) -> int:
        """Return a message's priority as the store orders it: 0 is first."""
        wanted = own if given is None else given
        if wanted is None and self._conf.task_inherit_parent_priority:
            if above is not None:
                return above
            frame = running.get()
            wanted = ((frame and frame.request.delivery_info) or {}).get("priority")
        if wanted is None:
            wanted = self._usual_priority
        if not isinstance(wanted, int) or isinstance(wanted, bool):
            raise TypeError(f"priority {wanted!r} is no whole number; give one from 0 to 255")
        if not 0 <= wanted <= 255:
            first, last = (255, 0) if self._is_high_first else (0, 255)
            raise ValueError(f"priority {wanted!r} is not within 0 to 255: {first} is first, {last} last")
        return 255 - wanted if self._is_high_first else wanted

    def _headers(self, options: Mapping[str, Any] | None, step: Step | None, queue: str) -> str | None:
        found: dict[str, Any] = {}
        if isinstance(queue, Routed):
            found["delivery"] = {"exchange": queue.exchange, "routing_key": queue.routing_key}
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


def _queues(routed: Routed, nodes: Mapping[str, Sequence[str]]) -> list[str]:
    """Name every queue, in place of a broadcast's those of the live workers that serve it."""
    found: list[str] = []
    for name in (str(routed), *routed.also):
        found += [own_queue(name, node) for node in nodes.get(name, ())] or [name]
    return found


def _copy(message: Message, queue: str) -> Message:
    """Make a message's copy for another queue: a task of its own, in no group, for which nobody waits."""
    headers = {"root_id": message.id, **json.loads(message.headers or "{}")}
    return message._replace(
        id=f"{message.id}.{queue}", queue=queue, headers=json.dumps(headers), group_id=None, position=None, leads=0
    )


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


def _tell(signal: signals.Signal, messages: Sequence[Message], is_high_first: bool) -> None:
    for m in messages:
        headers = {
            **decode((m.headers or "{}").encode(), "application/json", ("json",)),
            "id": m.id,
            "task": m.name,
            "retries": m.retries,
        }
        priority = 255 - m.priority if is_high_first else m.priority
        where = headers.pop("delivery", {"exchange": "", "routing_key": m.queue})
        signal.send(
            m.name, body=m.body, exchange=where["exchange"], routing_key=where["routing_key"], headers=headers,
            properties={"correlation_id": m.id, "reply_to": m.reply_to, "priority": priority},
            declare=[], retry_policy=None,
        )  # fmt: skip
