"""Calls to messages, and messages to the store: the sending half of every task.

What a call's options mean is decided here and nowhere else. Must not run tasks, and does not read results.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from localq import clock, moments, signals
from localq.announcement import Announcement
from localq.context import running
from localq.exceptions import DuplicateTaskId, StoreBusy, StoreError, StoreFull
from localq.message import Message, new_id
from localq.options import CARRIED, RETRY_POLICY, check_call, fault_of_limits
from localq.plan import Step
from localq.queues import nodes_serving, own_queue
from localq.resultstore import take_over
from localq.routing import DESTINATION, Routed, Router
from localq.serialization import checksum, decode, encode
from localq.storage.base import Bell, Storage

logger = logging.getLogger("localq.publisher")

#: What a put is tried again after, unless the policy's `retry_errors` say otherwise: nothing was written.
PASSING = (StoreFull, StoreBusy)


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
    #: (hard, soft) time limits.
    limits: tuple[float | None, float | None] | None = None


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
        properties = check_call(options) if options else None
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
        headers = self._headers(options, step, queue, defaults.limits, properties)
        return Message(
            (step.id if step else get("task_id")) or new_id(), name, body, queue, priority, content_type, None, None,
            checksum(body), headers, self.origin, self._oid, get("retries") or 0, now,
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
        options = {key: value for key, value in sig.options.items() if key != "task_id"}
        if task is None:
            return self.message(sig.task, sig.args, sig.kwargs, NO_DEFAULTS, options, step, above)
        args, kwargs = sig.args, sig.kwargs
        if task._dumped is not None:
            args, kwargs = task._dumped(args, kwargs, fed=1 if step.feed else 0)
        if not step.feed:
            task.check_arguments(args, kwargs)
        return self.message(sig.task, args, kwargs, task.defaults, options, step, above)

    def again(
        self, now: Message, args: Any, kwargs: Any, defaults: Defaults, options: Mapping[str, Any], when: float
    ) -> Message:
        """Build the next attempt of a message that is running: the same id, one more retry."""
        options = {name: value for name, value in options.items() if value is not None or name == "expires"}
        moves = not DESTINATION.isdisjoint(options)
        where = {} if moves else {"queue": Routed(now.queue)}  # routed once already
        fresh = self.message(now.name, args, kwargs, defaults, {**where, **options})
        headers = _read(now.headers)
        # What it was fed is among its arguments by now.
        stays = {"feed", "feeds", "requeued"} | ({"delivery"} if moves else set())
        before = {key: value for key, value in headers.items() if key not in stays}
        inherited = {"root_id", "parent_id", *(() if moves else ("delivery",))} - options.keys()
        after = {key: value for key, value in _read(fresh.headers).items() if key not in inherited}
        if "timelimit" in before and not options.keys() & {"time_limit", "soft_time_limit"}:
            after.pop("timelimit", None)
        return now._replace(
            body=fresh.body, content_type=fresh.content_type, checksum=fresh.checksum, queue=str(fresh.queue),
            priority=now.priority if options.get("priority") is None else fresh.priority, retries=now.retries + 1,
            visible_at=when, headers=_written({**before, **after}),
            expires_at=fresh.expires_at if "expires" in options else now.expires_at,
        )  # fmt: skip

    def put(
        self, storage: Storage, messages: Sequence[Message], options: Mapping[str, Any] | None = None
    ) -> Sequence[Message]:
        """Put messages into the store, all or none, telling the signals' receivers before and after.

        Args:
            options: of the call: `retry`, `retry_policy`.

        Returns:
            The messages as they were put: receivers may change them, and a copy for another queue follows its first.

        Raises:
            OperationalError: the store could not take them, however often it was tried; nothing was written.
        """
        if self._may_spread:
            messages = self.spread(storage, messages)
        told = None
        if signals.before_task_publish.receivers or signals.after_task_publish.receivers or signals.task_sent.receivers:
            told = [Announcement(message, self._policy(options or {}), self._is_high_first) for message in messages]
            messages = [each.before() for each in told]
        try:
            storage.put(messages)
        except DuplicateTaskId:
            if not take_over(storage, messages):
                raise
        except StoreError as exc:
            self._put_again(storage, messages, options or {}, exc)
        for each in told or ():
            each.after()
        return messages

    def _put_again(
        self, storage: Storage, messages: Sequence[Message], options: Mapping[str, Any], exc: StoreError
    ) -> None:
        """Try a put again that failed for a reason that may pass, as often as the policy says."""
        policy = self._policy(options)
        if policy is None:
            raise exc
        errors = policy["retry_errors"] or PASSING
        most, pause_s = policy["max_retries"], policy["interval_start"]
        tries = 0
        while isinstance(exc, errors) and (most is None or tries < most):
            clock.sleep(min(pause_s, policy["interval_max"]))
            pause_s += policy["interval_step"]
            tries += 1
            try:
                storage.put(messages)
            except StoreError as failure:
                exc = failure
            else:
                return
        if not tries or not isinstance(exc, errors):
            raise exc
        what = messages[0].name if len(messages) == 1 else f"{len(messages)} messages"
        raise type(exc)(
            f"{what} could not be put into {storage.url}, tried {tries + 1} times: {exc}. Nothing was written. "
            "Try later, or longer with retry_policy={'max_retries': ...}"
        ) from exc

    def _policy(self, options: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return how a failed put is tried again; None if it is not."""
        retry = options.get("retry")
        if not (self._conf.get("task_publish_retry") if retry is None else retry):
            return None
        general = self._conf.get("task_publish_retry_policy") or {}
        return {**RETRY_POLICY, **general, **(options.get("retry_policy") or {})}

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
            ago = timedelta(seconds=math.ceil(now - at))
            logger.warning("expires=%r was %s ago: this call is sent to end as REVOKED", expires, ago)
        return at

    def _routed(
        self, name: str, args: Any, kwargs: Any, defaults: Defaults, options: Mapping[str, Any]
    ) -> tuple[str, Mapping[str, Any]]:
        """Return a call's queue, and its options with those of its route that neither it nor the task gives."""
        task = self._tasks.get(name)
        queue, more = self._router.route(
            options.get("route_name") or name, args, kwargs, options, defaults.destination, task
        )
        self._may_spread = self._may_spread or isinstance(queue, Routed)
        if not more:
            return queue, options
        check_call(more, f"the route of task {name!r} in task_routes")
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
        return 255 - wanted if self._is_high_first else int(wanted)

    def _headers(
        self,
        options: Mapping[str, Any] | None,
        step: Step | None,
        queue: str,
        limits: tuple[float | None, float | None] | None,
        properties: Mapping[str, Any] | None,
    ) -> str | None:
        found: dict[str, Any] = {}
        if isinstance(queue, Routed):
            found["delivery"] = {"exchange": queue.exchange, "routing_key": queue.routing_key}
        frame = running.get()
        if frame is not None and frame.request.id is not None:
            found["parent_id"] = frame.request.id
            found["root_id"] = frame.request.root_id or frame.request.id
        if options:
            found.update(_carried(options, properties or {}))
        if limits is not None or (options and ("time_limit" in options or "soft_time_limit" in options)):
            found["timelimit"] = _limits(options or {}, limits or (None, None))
        if step is not None and step.feed:
            found["feed"] = step.feed
            found["feeds"] = step.waits_for
        if step is not None and step.links:
            found["links"] = step.links
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


def _carried(options: Mapping[str, Any], properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a call's options travels in the headers, by the request's attribute."""
    found = {CARRIED[name]: value for name, value in options.items() if value is not None and name in CARRIED}
    for key in ("callbacks", "errbacks"):
        if isinstance(found.get(key), Mapping):
            found[key] = [found[key]]
    stamped = found.get("stamped_headers") or ()
    stamps = {**found.get("stamps", {}), **{name: properties[name] for name in stamped if name in properties}}
    if stamps:
        found["stamps"] = stamps
    extra = {name: value for name, value in properties.items() if name not in stamped}
    mode = options.get("delivery_mode")
    if mode is not None:
        extra["delivery_mode"] = {"transient": 1, "persistent": 2}.get(mode, mode)
    if extra:
        found["properties"] = extra
    return found


def _limits(options: Mapping[str, Any], limits: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    """Return a call's time limits, (hard, soft); the call's own win over the task's."""
    said = options.get("time_limit"), options.get("soft_time_limit")
    # Where each says one of them, whatever they are, the one that comes first strikes.
    for pair in (limits, said):
        wrong = fault_of_limits(*pair)
        if wrong:
            raise ValueError(wrong)
    return limits[0] if said[0] is None else said[0], limits[1] if said[1] is None else said[1]


def _read(headers: str | None) -> dict[str, Any]:
    found: dict[str, Any] = decode(headers.encode(), "application/json", ("json",)) if headers else {}
    return found


def _written(headers: dict[str, Any]) -> str | None:
    return encode(headers, "json", "headers")[0].decode() if headers else None


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
