"""A request: one attempt at a task, as the worker sees it from outside of the process that runs it.

Tasks may name a class of their own (`class MyTask(Task): Request = MyRequest`); its handlers are called in the steward,
so that they can tell of attempts whose process is dead. What Celery's requests do besides, the store does
here: a request neither runs, nor acknowledges, nor ends its task, and says so to whoever asks it to.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from localq import clock, signals, states
from localq.context import ClaimContext
from localq.exceptions import LocalqError, Retry, TaskRevokedError, TimeLimitExceeded
from localq.executor import Einfo
from localq.message import Claim
from localq.serialization import safe_repr

logger = logging.getLogger("localq.worker.request")

#: Attributes that a request takes from `task.request`.
_OF_CONTEXT = frozenset({
    "argsrepr", "kwargsrepr", "delivery_info", "root_id", "parent_id", "correlation_id", "reply_to",
    "replaced_task_nesting", "stamped_headers", "stamps", "group", "group_index", "chord", "errbacks", "callbacks",
    "ignore_result", "utc", "shadow", "properties",
})  # fmt: skip


class Request:
    """One attempt at a task.

    Args:
        claim: what is run.
        task: the task itself.
        app: whose task it is.
        args, kwargs: what it was called with.
        hostname: the node that runs it.
    """

    acknowledged: bool = False
    eventer: Any = None
    on_ack: Any = None
    on_reject: Any = None
    #: When the attempt began, as wall time, and in which process; None before that.
    time_start: float | None = None
    worker_pid: int | None = None

    def __init__(
        self, claim: Claim, task: Any, app: Any, args: Any = (), kwargs: Any = None, hostname: str | None = None
    ) -> None:
        self.message = message = claim.message
        self.task, self.app, self.hostname = task, app, hostname
        self.id = self.task_id = message.id
        self.name = self.task_name = self.type = message.name
        self.args, self.kwargs = args, kwargs or {}
        self.body, self.content_type = message.body, message.content_type
        self.content_encoding = "utf-8" if message.content_type.endswith("json") else "binary"
        self._context = ClaimContext(claim, self.args, self.kwargs, hostname, False)

    def __getattr__(self, name: str) -> Any:
        if name in _OF_CONTEXT:
            return getattr(self._context, name)
        raise AttributeError(f"a request has no attribute {name!r}")

    @property
    def request_dict(self) -> dict[str, Any]:
        """What `task.request` has, as a dict."""
        self._context.id  # noqa: B018 - the first look fills it
        return {name: value for name, value in vars(self._context).items() if not name.startswith("_")}

    @property
    def eta(self) -> datetime | None:
        """Before which it must not start."""
        return _moment(self.message.visible_at)

    @property
    def expires(self) -> datetime | None:
        """From when on it must not start."""
        return _moment(self.message.expires_at)

    @property
    def time_limits(self) -> tuple[float | None, float | None]:
        """The call's (hard, soft)."""
        found: tuple[float | None, float | None] = self._context.timelimit
        return found

    @property
    def groups(self) -> list[str]:
        """Ids of the groups it is in."""
        return [self.message.group_id] if self.message.group_id else []

    @property
    def store_errors(self) -> bool:
        """Whether a failure is kept."""
        return not self.message.ignore_result or bool(self.task.store_errors_even_if_ignored)

    @property
    def tzlocal(self) -> Any:
        """The app's time zone."""
        return self.app.timezone

    # -- Handlers ----------------------------------------------------------------------------------

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """A process has begun; `time_accepted` is by the monotonic clock."""
        self.worker_pid = pid
        self.time_start = clock.now() - (clock.monotonic() - time_accepted)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """It has used up its soft limit and was told, or its hard limit and is over: then `on_failure` came before."""
        if soft:
            logger.warning("Soft time limit (%ss) exceeded for %s[%s]", timeout, self._shown_name(), self.id)
            return
        if self._is_told:
            return
        # That the limit is exceeded is in the log already, by whoever decided it.
        exc = TimeLimitExceeded(timeout)
        einfo = _einfo(exc)
        self.task.on_failure(exc, self.id, self.args, self.kwargs, einfo)
        self.task.after_return(states.FAILURE, exc, self.id, self.args, self.kwargs, einfo)
        self._tell_failure(einfo)

    def on_success(self, failed__retval__runtime: tuple[Any, Any, float], **kwargs: Any) -> None:
        """It has ended by itself: (whether it failed, its value or exc_info, seconds)."""
        failed, value, _ = failed__retval__runtime
        if failed:
            self.on_failure(value, return_ok=True)

    def on_retry(self, exc_info: Any) -> None:
        """It will run again."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """It has failed: by itself (`return_ok`), or its process is gone."""
        exc = exc_info.exception
        if isinstance(exc, Retry):
            self.on_retry(exc_info)
        elif self._is_told:
            return
        elif isinstance(exc, TaskRevokedError):
            told = {"terminated": True, "signum": self._signum, "expired": False}
            signals.task_revoked.send(self.task, request=self._context, **told)
        elif not return_ok and not isinstance(exc, TimeLimitExceeded):
            self._tell_failure(exc_info)

    _signum: int | None = None
    #: Whether the process that ran it has told its handlers and the signals itself.
    _is_told = False

    def _tell_failure(self, einfo: Any) -> None:
        exc = einfo.exception
        signals.task_failure.send(
            self.task, task_id=self.id, exception=exc, args=self.args, kwargs=self.kwargs, traceback=exc.__traceback__,
            einfo=einfo,
        )  # fmt: skip

    # -- What is not a request's to do here --------------------------------------------------------

    def acknowledge(self) -> None:
        """Do nothing: an attempt's end and its acknowledgement are one transaction of the store."""

    def send_event(self, type: str, **fields: Any) -> None:
        """Do nothing: there are no events of tasks."""

    def maybe_expire(self) -> bool:
        """Whether its time to start is over."""
        return self.message.expires_at is not None and clock.now() >= self.message.expires_at

    def revoked(self) -> bool:
        """Whether it must not be run any more."""
        state: str = self.app.AsyncResult(self.id).state
        return state == states.REVOKED

    def execute(self, *_: Any, **__: Any) -> Any:
        """Refuse: the child has run it."""
        raise self._refusal("execute")

    execute_using_pool = execute

    def reject(self, requeue: bool = False) -> None:
        """Refuse: how an attempt ends is settled before its request is told."""
        raise self._refusal("reject")

    def terminate(self, pool: Any = None, signal: Any = None) -> None:
        """Refuse; `AsyncResult.revoke(terminate=True)` does it."""
        raise self._refusal("terminate")

    cancel = terminate

    def _refusal(self, what: str) -> LocalqError:
        return LocalqError(
            f"Request.{what}() of {self.name}[{self.id}] has no effect here: a request only tells what has happened; "
            f"to end a task, use AsyncResult({self.id!r}).revoke(terminate=True)"
        )

    # -- For people --------------------------------------------------------------------------------

    def info(self, safe: bool = False) -> dict[str, Any]:
        """Return what there is to know, as plain data."""
        return {
            "id": self.id, "name": self.name, "type": self.type, "hostname": self.hostname,
            "args": self.argsrepr if safe else self.args, "kwargs": self.kwargsrepr if safe else self.kwargs,
            "time_start": self.time_start, "acknowledged": self.acknowledged, "delivery_info": self.delivery_info,
            "worker_pid": self.worker_pid,
        }  # fmt: skip

    def humaninfo(self) -> str:
        """Return a line for people."""
        return f"{self.name}[{self.id}]"

    def _shown_name(self) -> str:
        return str(self._context.shadow or self.name)

    def __str__(self) -> str:
        eta = f" ETA:[{self.eta}]" if self.eta else ""
        expires = f" expires:[{self.expires}]" if self.expires else ""
        return f"{self.humaninfo()}{eta}{expires}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.humaninfo()} {safe_repr(self.args)} {safe_repr(self.kwargs)}>"


def _moment(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, UTC)


def _einfo(exc: BaseException) -> Einfo:
    return Einfo(exc, f"{type(exc).__name__}: {exc}")
