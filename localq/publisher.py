"""Calls to messages, and messages to the store: the sending half of every task.

What a call's options mean is decided here and nowhere else. Must not run tasks, and does not read results.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from localq import clock, routing, signals
from localq.announcement import Announcement
from localq.canvas import Step
from localq.context import running
from localq.exceptions import StoreBusy, StoreError, StoreFull
from localq.message import Message, new_id
from localq.options import CARRIED, OPTIONS, RETRY_POLICY, check_call
from localq.serialization import checksum, decode, encode
from localq.storage.base import Bell, Storage

#: What a put is tried again after, unless the policy's `retry_errors` say otherwise: nothing was written.
PASSING = (StoreFull, StoreBusy)


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
    #: (hard, soft) time limits.
    limits: tuple[float | None, float | None] | None = None


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
        properties = check_call(options) if options else None
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
            OPTIONS["priority"].refuse(priority, f"task {name!r}")
        ignored = get("ignore_result")
        now = clock.now()
        expires = get("expires") if get("expires") is not None else defaults.expires
        headers = self._headers(options, step, defaults.limits, properties)
        return Message(
            (step.id if step else get("task_id")) or new_id(), name, body, queue, priority, content_type, None, None,
            checksum(body), headers, self.origin, self._oid, get("retries") or 0, now,
            self._visible_at(options, now) if options else None,
            None if expires is None else self.moment(expires, now),
            defaults.ignore_result if ignored is None else bool(ignored),
            *((step.after, step.waits_for, step.group_id, step.position, step.leads) if step else ()),
        )  # fmt: skip

    def message_of(self, step: Step, task: Any) -> Message:
        """Build the message of a workflow's step; `task` is None if nobody here knows it."""
        sig = step.sig
        options = {key: value for key, value in sig.options.items() if key != "task_id"}
        if task is None:
            return self.message(sig.task, sig.args, sig.kwargs, NO_DEFAULTS, options, step)
        if not step.feed:
            task.check_arguments(sig.args, sig.kwargs)
        return self.message(sig.task, sig.args, sig.kwargs, task.defaults, options, step)

    def again(
        self, now: Message, args: Any, kwargs: Any, defaults: Defaults, options: Mapping[str, Any], when: float
    ) -> Message:
        """Build the next attempt of a message that is running: the same id, one more retry."""
        options = {name: value for name, value in options.items() if value is not None}
        kept = {"queue": now.queue, "priority": now.priority, **options}
        fresh = self.message(now.name, args, kwargs, defaults, kept)
        headers = _read(now.headers)
        # What it was fed is among its arguments by now.
        before = {key: value for key, value in headers.items() if key not in ("feed", "feeds")}
        inherited = {"root_id", "parent_id"} - options.keys()
        after = {key: value for key, value in _read(fresh.headers).items() if key not in inherited}
        if "timelimit" in before and not options.keys() & {"time_limit", "soft_time_limit"}:
            after.pop("timelimit", None)
        return now._replace(
            body=fresh.body, content_type=fresh.content_type, checksum=fresh.checksum, queue=fresh.queue,
            priority=fresh.priority, retries=now.retries + 1, visible_at=when, headers=_written({**before, **after}),
            expires_at=fresh.expires_at if "expires" in options else now.expires_at,
        )  # fmt: skip

    def put(
        self, storage: Storage, messages: Sequence[Message], options: Mapping[str, Any] | None = None
    ) -> Sequence[Message]:
        """Put messages into the store, all or none, telling the signals' receivers before and after.

        Args:
            options: of the call: `retry`, `retry_policy`.

        Returns:
            The messages as they were put: receivers may change them.

        Raises:
            OperationalError: the store could not take them, however often it was tried; nothing was written.
        """
        told = None
        if signals.before_task_publish.receivers or signals.after_task_publish.receivers or signals.task_sent.receivers:
            told = [Announcement(message, self._policy(options or {})) for message in messages]
            messages = [each.before() for each in told]
        try:
            storage.put(messages)
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
        if not (self._conf.get("task_publish_retry", True) if retry is None else retry):
            return None
        general = self._conf.get("task_publish_retry_policy") or {}
        return {**RETRY_POLICY, **general, **(options.get("retry_policy") or {})}

    def moment(self, when: Any, now: float) -> float:
        """Turn seconds from now, a datetime or ISO text into a wall time."""
        if isinstance(when, int | float) and not isinstance(when, bool):
            return now + when
        if isinstance(when, timedelta):
            return now + when.total_seconds()
        if isinstance(when, str):
            when = datetime.fromisoformat(when)
        if not isinstance(when, datetime):
            raise TypeError(f"{when!r} is no time: give seconds, a datetime or ISO text")
        return (when if when.tzinfo else when.replace(tzinfo=self._zone())).timestamp()

    def _zone(self) -> Any:
        if self._conf.timezone:
            return ZoneInfo(self._conf.timezone)
        return UTC if self._conf.enable_utc else None

    def _visible_at(self, options: Mapping[str, Any], now: float) -> float | None:
        countdown, eta = options.get("countdown"), options.get("eta")
        if countdown:
            return now + float(countdown)
        return self.moment(eta, now) if eta is not None else None

    def _route(self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any]) -> str:
        if self._conf.task_routes is not self._routes_given:
            self.set_routes()
        found = routing.queue_for(self._routers, name, args, kwargs, options) if self._routers else None
        return found or self._conf.task_default_queue

    def _headers(
        self,
        options: Mapping[str, Any] | None,
        step: Step | None,
        limits: tuple[float | None, float | None] | None,
        properties: Mapping[str, Any] | None,
    ) -> str | None:
        found: dict[str, Any] = {}
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
        return encode(found, "json", "headers")[0].decode() if found else None


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
    hard, soft = options.get("time_limit"), options.get("soft_time_limit")
    hard, soft = limits[0] if hard is None else hard, limits[1] if soft is None else soft
    if hard is not None and soft is not None and soft > hard:
        raise ValueError(
            f"soft_time_limit ({soft}) must be less than or equal to time_limit ({hard}): "
            "a task is told before it is stopped"
        )
    return hard, soft


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
