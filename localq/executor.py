"""Runs one task: a claim in, an outcome out.

    decode -> before_start -> run -> encode -> handlers and signals -> Outcome

Every way of running a task calls this one: prefork child, solo, eager mode, `Task.apply`. It does no
I/O of its own and never opens a store; whoever calls it brings what the task is fed and writes what
comes out.
"""

from __future__ import annotations

import logging
import time
from typing import Any, NamedTuple, Protocol

from localq import clock, signals, states
from localq.context import ClaimContext, Running, running
from localq.exceptions import (
    ChordError,
    DecodeError,
    Ignore,
    LocalqError,
    NotRegistered,
    Reject,
    Retry,
    TaskRevokedError,
)
from localq.message import LEADS_BY_GROUP, Claim, Message, Outcome
from localq.serialization import (
    checksum,
    decode,
    encode,
    exception_data,
    safe_repr,
    traceback_text,
)

logger = logging.getLogger("localq.task.trace")

#: Characters of a result or of arguments in a log line.
REPR_LIMIT = 1024


class Runnable(Protocol):
    """What the executor needs of a task."""

    name: str
    throws: tuple[type[BaseException], ...]
    acks_late: bool | None
    store_errors_even_if_ignored: bool | None
    is_plain: bool
    calls_run: bool

    @property
    def run(self) -> Any: ...


class Einfo(NamedTuple):
    """What handlers get as `einfo`: an exception with its traceback as text."""

    exception: BaseException
    traceback: str

    @property
    def type(self) -> type[BaseException]:
        return type(self.exception)

    def __str__(self) -> str:
        return self.traceback


class Executor:
    """Runs tasks for one process.

    Args:
        conf: the app's settings.
        hostname: the node name, for `request.hostname`.
        is_eager: the task runs where it was sent.
    """

    def __init__(self, conf: Any, hostname: str | None = None, is_eager: bool = False) -> None:
        self.hostname, self.is_eager = hostname, is_eager
        self._accept = tuple(conf.accept_content)
        self._serializer = conf.result_serializer
        self._is_high_first = conf.task_priority_order == "high_first"
        if self._serializer == "json" and not conf.json_allow_nan:
            self._serializer = "json-strict"

    def execute(self, task: Runnable, claim: Claim, fed: tuple[Any, ...] = ()) -> Outcome:
        """Run a task and say how its attempt ended; raises nothing but what stops the process.

        Args:
            fed: values that stand before the message's own arguments (a chain's previous result).
        """
        message = claim.message
        if message.expires_at is not None and clock.now() >= message.expires_at:
            return self._expired(claim)
        try:
            args, kwargs = _call(decode(message.body, message.content_type, self._accept, message.checksum))
        except LocalqError as exc:
            return self._failure(task, claim, exc, (), {})
        if fed:
            args = [*fed, *args]
        request = ClaimContext(claim, args, kwargs, self.hostname, self.is_eager, self._is_high_first)
        mark = running.set(Running(task, request, running.get()))
        try:
            return self._run(task, claim, args, kwargs)
        finally:
            running.reset(mark)

    def _run(self, task: Any, claim: Claim, args: Any, kwargs: Any) -> Outcome:
        id = claim.message.id
        if signals.task_prerun.receivers:
            signals.task_prerun.send(task, task_id=id, task=task, args=args, kwargs=kwargs)
        started = time.perf_counter()
        try:
            if not task.is_plain:
                task.before_start(id, args, kwargs)
            value = task.run(*args, **kwargs) if task.calls_run else task(*args, **kwargs)
            outcome = self._success(claim, value)
        except BaseException as exc:
            # A task's SystemExit, CancelledError and the like end the task, not the process; but Ctrl-C is the user's.
            if self.is_eager and isinstance(exc, KeyboardInterrupt):
                raise
            value, outcome = exc, self._ended_by(task, claim, exc, args, kwargs)
        else:
            if not task.is_plain:
                self._tell(task.on_success, value, id, args, kwargs)
                self._tell(task.after_return, states.SUCCESS, value, id, args, kwargs, None)
            if signals.task_success.receivers:
                signals.task_success.send(task, result=value)
            if logger.isEnabledFor(logging.INFO):
                took = time.perf_counter() - started
                logger.info("Task %s[%s] succeeded in %ss: %s", task.name, id, took, safe_repr(value, REPR_LIMIT))
        if signals.task_postrun.receivers:
            signals.task_postrun.send(
                task, task_id=id, task=task, args=args, kwargs=kwargs, retval=value, state=outcome.state
            )
        return outcome

    # -- How an attempt can end ----------------------------------------------------------------

    def _success(self, claim: Claim, value: Any) -> Outcome:
        m = claim.message
        if m.ignore_result and not m.leads and m.group_id is None:
            return Outcome(
                claim.seq, claim.token, m.id, states.IGNORED, True, ended_at=clock.now(), reply_to=m.reply_to
            )
        data, content_type = encode(value, self._serializer, "the result")
        return Outcome(
            claim.seq, claim.token, m.id, states.SUCCESS, True, None, 0, data, content_type, checksum(data), None,
            None, self.hostname, clock.now(), None, (), m.group_id, m.leads, m.reply_to,
        )  # fmt: skip

    def _ended_by(self, task: Any, claim: Claim, exc: BaseException, args: Any, kwargs: Any) -> Outcome:
        if isinstance(exc, Retry) and exc.sig is not None:
            return self._retry(task, claim, exc, args, kwargs)
        if isinstance(exc, Ignore):
            logger.info("Task %s[%s] ignored", task.name, claim.message.id)
            return _ends(claim)
        if isinstance(exc, Reject) and exc.requeue and task.acks_late:
            return _ends(claim)._replace(ended=False)
        return self._failure(task, claim, exc, args, kwargs)

    def _retry(self, task: Any, claim: Claim, exc: Retry, args: Any, kwargs: Any) -> Outcome:
        again: Message = exc.sig
        cause = exc.exc if exc.exc is not None else exc
        einfo = Einfo(cause, traceback_text(exc))
        self._tell(task.on_retry, cause, claim.message.id, args, kwargs, einfo)
        if signals.task_retry.receivers:
            signals.task_retry.send(task, request=task.request, reason=exc, einfo=einfo)
        logger.info("Task %s[%s] retry: %s", task.name, claim.message.id, exc)
        data, content_type = encode(exception_data(cause), "json")
        return _ends(claim)._replace(
            state=states.RETRY, ended=False, again=again, result=data, content_type=content_type,
            checksum=checksum(data), traceback=einfo.traceback, worker=self.hostname,
        )  # fmt: skip

    def _failure(self, task: Any, claim: Claim, exc: BaseException, args: Any, kwargs: Any) -> Outcome:
        m = claim.message
        einfo = Einfo(exc, traceback_text(exc))
        self._log_failure(task, m, exc, einfo)
        if task is not None:
            self._tell(task.on_failure, exc, m.id, args, kwargs, einfo)
            self._tell(task.after_return, states.FAILURE, exc, m.id, args, kwargs, einfo)
        if signals.task_failure.receivers:
            signals.task_failure.send(
                task, task_id=m.id, exception=exc, args=args, kwargs=kwargs, traceback=exc.__traceback__, einfo=einfo
            )
        if m.ignore_result and not m.leads and not getattr(task, "store_errors_even_if_ignored", False):
            return _ends(claim)._replace(state=states.IGNORED, ended_at=clock.now())
        data, content_type = encode(exception_data(exc), "json")
        return _ends(claim)._replace(
            state=states.FAILURE, result=data, content_type=content_type, checksum=checksum(data),
            traceback=einfo.traceback, worker=self.hostname, ended_at=clock.now(), group_failure=_group_failure(m, exc),
        )  # fmt: skip

    def _log_failure(self, task: Any, m: Message, exc: BaseException, einfo: Einfo) -> None:
        if task is not None and isinstance(exc, tuple(task.throws)):
            logger.info("Task %s[%s] raised expected: %r", m.name, m.id, exc)
        else:
            logger.error("Task %s[%s] raised unexpected: %s\n%s", m.name, m.id, safe_repr(exc), einfo.traceback)

    def _expired(self, claim: Claim) -> Outcome:
        m = claim.message
        logger.info("Discarding revoked task: %s[%s]", m.name, m.id)
        data, content_type = encode(exception_data(TaskRevokedError("expired")), "json")
        return _ends(claim)._replace(
            state=states.REVOKED, result=data, content_type=content_type, checksum=checksum(data),
            ended_at=clock.now(), group_failure=_group_failure(m, TaskRevokedError("expired")),
        )  # fmt: skip

    def unknown(self, claim: Claim) -> Outcome:
        """The outcome of a message whose task is not registered here."""
        m = claim.message
        logger.error("Received unregistered task of type %r (id %s); import the module that defines it", m.name, m.id)
        return self._failure(None, claim, NotRegistered(m.name), (), {})

    def failed(self, task: Any, claim: Claim, exc: Exception) -> Outcome:
        """The outcome of a message that could not even be given to its task."""
        return self._failure(task, claim, exc, (), {})

    def _tell(self, handler: Any, *what: Any) -> None:
        """Call one of the task's own handlers; its mistakes are logged, or raised where the task was sent."""
        try:
            handler(*what)
        except Exception:
            if self.is_eager:
                raise
            logger.exception("%s of the task failed; its state stays", getattr(handler, "__qualname__", handler))


def _call(body: Any) -> tuple[Any, dict[str, Any]]:
    """Take a message's body apart; another program may have written it."""
    if isinstance(body, list | tuple) and len(body) == 2:
        args, kwargs = body
        if isinstance(args, list | tuple) and isinstance(kwargs, dict):
            return args, kwargs
    raise DecodeError(f"the body is not [args, kwargs] but {safe_repr(body, 100)}")


def _ends(claim: Claim) -> Outcome:
    m = claim.message
    return Outcome(claim.seq, claim.token, m.id, group_id=m.group_id, leads=m.leads, reply_to=m.reply_to)


def _group_failure(m: Message, exc: BaseException) -> bytes | None:
    if not m.leads & LEADS_BY_GROUP:
        return None
    return encode(exception_data(ChordError(f"Dependency {m.id} raised {safe_repr(exc)}")), "json")[0]
