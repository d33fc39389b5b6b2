"""What is running here and now: the current app, the current task and its request.

Kept in context variables, so that threads and coroutines each have their own. Knows apps and
tasks only as objects that somebody else put here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

from localq.message import Claim, Message
from localq.serialization import brief_repr, decode


class Context:
    """`task.request`: everything a task may want to know about the attempt it is in.

    Attributes that are absent read as Celery's defaults. A header of the user's own is an attribute too.
    """

    # Celery's class defaults; the instance holds only what differs.
    id: str | None = None
    task: str | None = None
    lang: str = "py"
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
    #: (hard, soft), as the call or the task says.
    timelimit: tuple[float | None, float | None] = (None, None)
    callbacks: Any = None
    errbacks: Any = None
    utc: bool = True
    ignore_result: bool = False
    shadow: str | None = None
    replaced_task_nesting: int = 0
    properties: dict[str, Any] | None = None
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None
    token: int | None = None
    redelivered: int = 0
    loglevel: Any = None
    logfile: Any = None

    def __init__(self, **known: Any) -> None:
        self.__dict__.update(known)

    @property
    def taskset(self) -> str | None:
        return self.group

    @property
    def time_limit(self) -> float | None:
        return self.timelimit[0]

    @property
    def soft_time_limit(self) -> float | None:
        return self.timelimit[1]

    @cached_property
    def argsrepr(self) -> str:
        """The positional arguments for people: as the caller says, else in short."""
        return brief_repr(tuple(self.args or ()), levels=self._levels)

    @cached_property
    def kwargsrepr(self) -> str:
        """The keyword arguments for people: as the caller says, else in short."""
        return brief_repr(dict(self.kwargs or {}), levels=self._levels)

    _levels: int = 3

    @cached_property
    def children(self) -> list[Any]:
        """The results of what this attempt has sent."""
        return []

    def update(self, *known: Any, **more: Any) -> None:
        """Set attributes."""
        self.__dict__.update(*known, **more)

    def get(self, key: str, default: Any = None) -> Any:
        """Return an attribute or the default."""
        return getattr(self, key, default)

    def as_execution_options(self) -> dict[str, Any]:
        """Return the options with which `apply_async` would send this very call again."""
        return {
            "task_id": self.id, "root_id": self.root_id, "parent_id": self.parent_id, "group_id": self.group,
            "group_index": self.group_index, "shadow": self.shadow, "chord": self.chord, "chain": self.chain,
            "link": self.callbacks, "link_error": self.errbacks, "expires": self.expires,
            "soft_time_limit": self.soft_time_limit, "time_limit": self.time_limit,
            # Brokers' own notes on dead letters, of a message that came from Celery.
            "headers": {k: v for k, v in self.headers.items() if k != "x-death"} if self.headers else self.headers,
            "retries": self.retries, "reply_to": self.reply_to, "replaced_task_nesting": self.replaced_task_nesting,
            "origin": self.origin, **self._stamp_options(),
        }  # fmt: skip

    def _stamp_options(self) -> dict[str, Any]:
        names, stamps = self.stamped_headers, self.stamps
        if names is None or stamps is None:
            return {}
        return {"stamped_headers": names, **{name: stamps[name] for name in names if name in stamps}}

    def __repr__(self) -> str:
        return f"<Context: {self.__dict__!r}>"


def headers_of(claim: Claim) -> dict[str, Any]:
    """Decode a message's headers."""
    text = claim.message.headers
    return decode(text.encode(), "application/json", ("json",)) if text else {}


def shown_name(message: Message) -> str:
    """Return the name that people see: the call's `shadow`, else the task's."""
    text = message.headers
    if text is None or '"shadow"' not in text:
        return message.name
    return str(decode(text.encode(), "application/json", ("json",)).get("shadow") or message.name)


class ClaimContext(Context):
    """The request of an attempt that came out of a store; filled at its first use, because most tasks never look."""

    def __init__(
        self,
        claim: Claim,
        args: Any,
        kwargs: Any,
        hostname: str | None,
        is_eager: bool,
        levels: int = 3,
        is_high_first: bool = False,
    ) -> None:
        self._claim, self._levels, self._is_high_first = claim, levels, is_high_first
        self.args, self.kwargs = args, kwargs
        self.hostname, self.is_eager = hostname, is_eager
        self.called_directly = False

    def __getattribute__(self, name: str) -> Any:
        mine = object.__getattribute__(self, "__dict__")
        if "_filled" not in mine and not name.startswith("_"):
            mine["_filled"] = True
            for key, value in _facts(mine["_claim"], mine["is_eager"], mine["_is_high_first"]).items():
                mine.setdefault(key, value)
        if name in _WORKFLOW and name not in mine:
            mine[name] = self._workflow(name)
        return object.__getattribute__(self, name)

    def _workflow(self, name: str) -> Any:
        """Look up what the store has of the workflow behind this attempt, if it runs here and came out of a store."""
        frame = running.get()
        while frame is not None and frame.request is not self:
            frame = frame.outer
        return None if frame is None or self.is_eager else frame.task.app.workflow_of(self._claim.message, name)


#: Attributes that no message carries.
_WORKFLOW = frozenset(("chain", "chord"))


def _facts(claim: Claim, is_eager: bool, is_high_first: bool) -> dict[str, Any]:
    message = claim.message
    headers = headers_of(claim)
    times = claim.redeliveries + headers.pop("requeued", 0)
    priority = 255 - message.priority if is_high_first else message.priority
    delivery: dict[str, Any] = {
        "exchange": "",
        "routing_key": message.queue,
        "priority": priority,
        "redelivered": times > 0,
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
        "root_id": message.id,
        "delivery_info": delivery,
        "group": message.group_id,
        "group_index": message.position,
        "eta": iso(message.visible_at),
        "expires": iso(message.expires_at),
        "ignore_result": bool(message.ignore_result),
        "token": claim.token,
        "redelivered": times,
    }
    facts.update(headers)
    if "timelimit" in headers:
        facts["timelimit"] = tuple(headers["timelimit"])
    facts["properties"] = {
        "correlation_id": message.id, "reply_to": facts["reply_to"], "priority": priority,
        "delivery_mode": 2, **headers.get("properties", {}),
    }  # fmt: skip
    facts["correlation_id"] = facts["properties"]["correlation_id"]
    own = {key: value for key, value in (headers.get("headers") or {}).items() if not hasattr(Context, key)}
    return {**own, **facts}


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


def note_child(result: Any) -> None:
    """Let the task that runs here, if there is one and it keeps a trail, know the result of what it has sent."""
    frame = running.get()
    if frame is not None and frame.task.trail:
        frame.request.children.append(result)


def check_may_wait() -> None:
    """Refuse to wait for a result inside a task.

    Raises:
        RuntimeError: a worker's task is running here, and waits may end in all workers waiting for each other.
    """
    frame = running.get()
    if frame is not None and not frame.request.called_directly and not _joins_allowed.get():
        raise RuntimeError(
            f"Never call result.get() within a task: all workers may end up waiting for each other. {frame.task.name} "
            "can chain what it needs, use allow_join_result() or get(disable_sync_subtasks=False), or be `async def` "
            "and await result.aget()"
        )


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Let tasks wait for results for the duration of a block."""
    mark = _joins_allowed.set(True)
    try:
        yield
    finally:
        _joins_allowed.reset(mark)


@contextmanager
def denied_join_result() -> Iterator[None]:
    """Have tasks not wait for results for the duration of a block, whatever is said around it."""
    mark = _joins_allowed.set(False)
    try:
        yield
    finally:
        _joins_allowed.reset(mark)


_joins_allowed: ContextVar[bool] = ContextVar("localq_joins_allowed", default=False)


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
