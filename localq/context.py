"""What is running here and now: the current app, the current task and its request.

Kept in context variables, so that threads and coroutines each have their own. Knows apps and
tasks only as objects that somebody else put here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, NamedTuple

from localq.message import Claim
from localq.serialization import decode


class Context:
    """`task.request`: everything a task may want to know about the attempt it is in.

    Attributes that are absent read as Celery's defaults. Filled lazily from the claim, because most
    tasks never look.
    """

    # Celery's class defaults; the instance holds only what differs.
    id: str | None = None
    task: str | None = None
    args: Any = None
    kwargs: Any = None
    retries: int = 0
    is_eager: bool = False
    called_directly: bool = True
    hostname: str | None = None
    origin: str | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    delivery_info: dict[str, Any] | None = None
    eta: str | None = None
    expires: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    group: str | None = None
    group_index: int | None = None
    chord: Any = None
    chain: Any = None
    headers: dict[str, Any] | None = None
    timelimit: Any = None
    callbacks: Any = None
    errbacks: Any = None
    children: list[Any] | None = None
    utc: bool = True
    ignore_result: bool = False
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    shadow: str | None = None
    replaced_task_nesting: int = 0
    properties: dict[str, Any] | None = None
    stamped_headers: Any = None
    stamps: Any = None
    token: int | None = None
    redelivered: int = 0
    loglevel: Any = None
    logfile: Any = None

    def __init__(self, **known: Any) -> None:
        self.__dict__.update(known)

    @property
    def taskset(self) -> str | None:
        return self.group

    def update(self, **known: Any) -> None:
        """Set attributes."""
        self.__dict__.update(known)

    def get(self, key: str, default: Any = None) -> Any:
        """Return an attribute or the default."""
        return getattr(self, key, default)

    def __repr__(self) -> str:
        return f"<Context: {self.__dict__!r}>"


def headers_of(claim: Claim) -> dict[str, Any]:
    """Decode a message's headers."""
    text = claim.message.headers
    return decode(text.encode(), "application/json", ("json",)) if text else {}


class ClaimContext(Context):
    """The request of an attempt that came out of a store; filled at its first use."""

    def __init__(
        self,
        claim: Claim,
        args: Any,
        kwargs: Any,
        hostname: str | None,
        is_eager: bool,
        is_high_first: bool = False,
    ) -> None:
        self._claim, self._is_high_first = claim, is_high_first
        self.args, self.kwargs = args, kwargs
        self.hostname, self.is_eager = hostname, is_eager
        self.called_directly = False

    def __getattribute__(self, name: str) -> Any:
        mine = object.__getattribute__(self, "__dict__")
        if "_filled" not in mine and not name.startswith("_"):
            mine["_filled"] = True
            mine.update(_facts(mine["_claim"], mine["is_eager"], mine["_is_high_first"]))
        return object.__getattribute__(self, name)


def _facts(claim: Claim, is_eager: bool, is_high_first: bool) -> dict[str, Any]:
    message = claim.message
    headers = headers_of(claim)
    priority = 255 - message.priority if is_high_first else message.priority
    delivery: dict[str, Any] = {
        "exchange": "",
        "routing_key": message.queue,
        "priority": priority,
        "redelivered": claim.redeliveries > 0,
        **headers.pop("delivery", {}),
    }
    if is_eager:
        delivery["is_eager"] = True
    facts: dict[str, Any] = {
        "id": message.id,
        "task": message.name,
        "retries": message.retries,
        "origin": message.origin,
        "reply_to": message.reply_to,
        "correlation_id": message.id,
        "root_id": message.id,
        "delivery_info": delivery,
        "group": message.group_id,
        "group_index": message.position,
        "eta": iso(message.visible_at),
        "expires": iso(message.expires_at),
        "ignore_result": bool(message.ignore_result),
        "token": claim.token,
        "redelivered": claim.redeliveries,
        "children": [],
        "properties": {"correlation_id": message.id, "reply_to": message.reply_to, "priority": priority},
    }
    facts.update(headers)
    return facts


def iso(at: float | None) -> str | None:
    """Write a wall time as Celery's headers do; None stays None."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()


class Running(NamedTuple):
    """One task being run or called here, and the one that called it."""

    task: Any
    request: Context
    outer: Running | None


running: ContextVar[Running | None] = ContextVar("localq_running", default=None)


def request_of(task: Any) -> Context:
    """Return the request of the innermost run of `task`, or one that says it was called directly."""
    frame = running.get()
    while frame is not None:
        if frame.task is task:
            return frame.request
        frame = frame.outer
    return Context()


@contextmanager
def entered(task: Any, request: Context) -> Iterator[Context]:
    """Make `task` the current task for the duration of a block."""
    mark = running.set(Running(task, request, running.get()))
    try:
        yield request
    finally:
        running.reset(mark)


def current_task() -> Any:
    """Return the task that is running here, or None."""
    frame = running.get()
    return None if frame is None else frame.task


class _Apps:
    """The apps of this process: the newest is current, unless a context chose another."""

    def __init__(self) -> None:
        self.default: Any = None
        #: Somebody said which is the default; a newer app does not take its place.
        self.is_chosen = False
        self.current: ContextVar[Any] = ContextVar("localq_app", default=None)
        self.all: list[Any] = []
        self.shared: list[Any] = []


apps = _Apps()


def current_app() -> Any:
    """Return the current app.

    Raises:
        RuntimeError: no app has been made in this process.
    """
    app = apps.current.get() or apps.default
    if app is None:
        raise RuntimeError(
            "no app exists in this process: import the module that makes yours, or make one with LocalQ('name')"
        )
    return app
