"""Runs one task: a claim in, an outcome out.

    decode -> before_start -> run -> encode -> handlers and signals -> Outcome

Every way of running a task calls this one: prefork child, solo, eager mode, `Task.apply`. It does no
I/O of its own and never opens a store; whoever calls it brings what the task is fed and writes what
comes out.

What runs a task is itself a coroutine, so that plain tasks and `async def` ones have one way through it. That of a
plain task never waits: its first step is its last.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any, NamedTuple, Protocol

from localq import clock, errbacks, signals, states
from localq.backend import View
from localq.context import ClaimContext, Context, Running, current_app, headers_of, running, shown_name
from localq.exceptions import (
    ChordError,
    DecodeError,
    EncodeError,
    Ignore,
    LocalqError,
    NotRegistered,
    Reject,
    Retry,
    TaskRevokedError,
)
from localq.message import Claim, Message, Outcome
from localq.retries import classes
from localq.serialization import (
    checksum,
    decode,
    encode,
    exception_data,
    safe_repr,
    traceback_text,
)

logger = logging.getLogger("localq.task.trace")

#: Reads an attribute of a request past its own look-up, which is a Python call and may fill it.
_facts_of = object.__getattribute__


class Runnable(Protocol):
    """What the executor needs of a task."""

    name: str
    throws: Any
    acks_late: bool | None
    resultrepr_maxsize: int
    store_errors_even_if_ignored: bool | None
    is_plain: bool
    calls_run: bool
    is_async: bool

    @property
    def run(self) -> Any: ...


class Einfo(NamedTuple):
    """What handlers get as `einfo`: an exception with its traceback as text."""

    exception: BaseException
    traceback: str

    #: Celery's name for a mistake of the worker's own, which this is not.
    internal: bool = False

    @property
    def type(self) -> type[BaseException]:
        return type(self.exception)

    @property
    def tb(self) -> Any:
        return self.exception.__traceback__

    @property
    def exc_info(self) -> tuple[Any, BaseException, Any]:
        return self.type, self.exception, self.tb

    def __str__(self) -> str:
        return self.traceback


class Executor:
    """Runs tasks for one process.

    Args:
        conf: the app's settings.
        hostname: the node name, for `request.hostname`.
        is_eager: the task runs where it was sent.
        store: writes an end before the task's own handlers hear of it, as in Celery: what they send may read it. It
            returns False if somebody else has ended the task meanwhile: then they hear nothing. A process that dies
            in a handler has ended its task all the same.
    """

    def __init__(
        self,
        conf: Any,
        hostname: str | None = None,
        is_eager: bool = False,
        store: Callable[[Outcome], bool] | None = None,
    ) -> None:
        self.hostname, self.is_eager, self._store = hostname, is_eager, store
        self._repr_levels = conf.get("task_repr_maxlevels", 3)
        self._accept = tuple(conf.accept_content)
        self._serializer = conf.result_serializer
        self._is_high_first = conf.task_priority_order == "high_first"
        if self._serializer == "json" and not conf.json_allow_nan:
            self._serializer = "json-strict"

    def execute(self, task: Runnable, claim: Claim, fed: tuple[Any, ...] = ()) -> Outcome:
        """Run a task, a coroutine task as well, and say how its attempt ended.

        Args:
            fed: values that stand before the message's own arguments (a chain's previous result).
        """
        found = self.attempt(task, claim, fed)
        if isinstance(found, Outcome):
            return found
        from localq.awaiting import run_here  # it imports asyncio, and most processes run no coroutine

        return run_here(found)

    def attempt(
        self, task: Runnable, claim: Claim, fed: tuple[Any, ...] = (), around: Any = None
    ) -> Outcome | Coroutine[Any, Any, Outcome]:
        """Run a plain task and say how its attempt ended; raises nothing but what stops the process.

        Of a coroutine task that may start, return what runs it: whoever called awaits that, in a context of its own.

        Args:
            fed: see `execute`.
            around: called with the task's function, args and kwargs, in its place.
        """
        message = claim.message
        if message.expires_at is not None and clock.now() >= message.expires_at:
            return self.revoked(task, claim, "expired")
        try:
            args, kwargs = call_of(decode(message.body, message.content_type, self._accept, message.checksum))
        except LocalqError as exc:
            if signals.task_rejected.receivers:
                signals.task_rejected.send(task, message=message, exc=exc)
            return self._failure(task, claim, exc, self._request(claim))
        if fed:
            args = [*fed, *args]
        request = ClaimContext(
            claim, args, kwargs, self.hostname, self.is_eager, self._repr_levels, self._is_high_first
        )
        if task.is_async:
            return self._awaited(task, claim, request, args, kwargs, around)
        mark = running.set(Running(task, request, running.get()))
        try:
            self._run(task, claim, request, args, kwargs, around).send(None)
        except StopIteration as ended:
            outcome: Outcome = ended.value
        finally:
            running.reset(mark)
        return outcome

    async def _awaited(
        self, task: Any, claim: Claim, request: ClaimContext, args: Any, kwargs: Any, around: Any
    ) -> Outcome:
        mark = running.set(Running(task, request, running.get()))
        try:
            return await self._run(task, claim, request, args, kwargs, around)
        finally:
            running.reset(mark)

    def _request(self, claim: Claim) -> ClaimContext:
        """The request of a message whose arguments are not known."""
        return ClaimContext(claim, (), {}, self.hostname, self.is_eager, self._repr_levels)

    async def _run(
        self, task: Any, claim: Claim, request: ClaimContext, args: Any, kwargs: Any, around: Any
    ) -> Outcome:
        id = claim.message.id
        if signals.task_prerun.receivers:
            signals.task_prerun.send(task, task_id=id, task=task, args=args, kwargs=kwargs)
        started, state = time.perf_counter(), states.SUCCESS
        try:
            if not task.is_plain:
                task.before_start(id, args, kwargs)
            is_direct = task.calls_run and around is None
            value = task.run(*args, **kwargs) if is_direct else _through(around, task, request, args, kwargs)
            if task.is_async or type(value) is CoroutineType:
                value = await _answer(task, value)
            outcome = self._success(claim, request, value)
        except BaseException as exc:
            value, outcome = self._ended_by(task, claim, exc, request)
            state = _named(value, outcome)
        else:
            tells = not task.is_plain and self._has_stored(task, outcome)
            if tells:
                self._tell(task.on_success, value, id, args, kwargs)
            if signals.task_success.receivers or logger.isEnabledFor(logging.INFO):
                self._tell_success(task, claim.message, value, time.perf_counter() - started)
            if tells:
                self._tell(task.after_return, states.SUCCESS, value, id, args, kwargs, None)
        if signals.task_postrun.receivers:
            signals.task_postrun.send(task, task_id=id, task=task, args=args, kwargs=kwargs, retval=value, state=state)
        return outcome

    def _has_stored(self, task: Any, outcome: Outcome) -> bool:
        """Write an end before the handlers hear of it, where that can be; returns whether they are to hear of it."""
        # A coroutine's end is written by the thread beside its loop.
        return self._store is None or task.is_async or self._store(outcome)

    def _tell_success(self, task: Any, m: Message, value: Any, took_s: float) -> None:
        if signals.task_success.receivers:
            signals.task_success.send(task, result=value, runtime=took_s)
        if logger.isEnabledFor(logging.INFO):
            shown = safe_repr(value, task.resultrepr_maxsize)
            logger.info("Task %s[%s] succeeded in %ss: %s", shown_name(m), m.id, took_s, shown)

    # -- How an attempt can end ----------------------------------------------------------------

    def _success(self, claim: Claim, request: ClaimContext, value: Any) -> Outcome:
        if "_retry" in _facts_of(request, "__dict__"):
            raise request._retry
        m = claim.message
        if m.ignore_result and not self.is_eager and not m.leads and m.group_id is None:
            return Outcome(
                claim.seq, claim.token, m.id, states.IGNORED, True, ended_at=clock.now(), reply_to=m.reply_to
            )
        try:
            data, content_type = encode(value, self._serializer, "the result")
        except EncodeError:
            if not isinstance(value, View):
                raise
            # A task that returns a handle on others: its ids, as in Celery.
            data, content_type = encode(value.as_tuple(), self._serializer, "the result")
        children = _children(request, m)
        return Outcome(
            claim.seq, claim.token, m.id, states.SUCCESS, True, None, 0, data, content_type, checksum(data), None,
            children, self.hostname, clock.now(), None, (), m.group_id, m.leads, m.reply_to,
        )  # fmt: skip

    def _ended_by(
        self, task: Any, claim: Claim, exc: BaseException, request: ClaimContext
    ) -> tuple[BaseException, Outcome]:
        """Return what ended an attempt, and how it ended."""
        # A task's SystemExit, CancelledError and the like end the task, not the process; but Ctrl-C is the user's, and
        # an attempt that was taken away from its task ends as the taker says.
        if (self.is_eager and isinstance(exc, KeyboardInterrupt)) or getattr(exc, "is_withdrawn", False):
            raise exc
        asked = _facts_of(request, "__dict__").get("_retry")
        if asked is not None and not (isinstance(exc, Retry) and exc.sig is not None):
            # It has asked for its next attempt, `retry(throw=False)`, and went wrong afterwards.
            asked.exc, asked.__cause__ = asked.exc or exc, exc
            exc = asked
        if isinstance(exc, Retry) and exc.sig is not None:
            return exc, self._retry(task, claim, exc, request)
        if isinstance(exc, Ignore):
            logger.info("Task %s[%s] ignored", shown_name(claim.message), claim.message.id)
            return exc, _ends(claim)._replace(ended_at=clock.now())
        if isinstance(exc, Reject):
            logger.warning("Task %s[%s] %r", shown_name(claim.message), claim.message.id, exc)
            if exc.requeue and task.acks_late:
                return exc, _requeued(claim)
        return exc, self._failure(task, claim, exc, request)

    def _retry(self, task: Any, claim: Claim, exc: Retry, request: ClaimContext) -> Outcome:
        again: Message = exc.sig
        cause = exc.exc if exc.exc is not None else exc
        einfo = Einfo(exc, traceback_text(exc))
        self._tell(task.on_retry, exc.exc, claim.message.id, request.args, request.kwargs, einfo)
        if signals.task_retry.receivers:
            signals.task_retry.send(task, request=request, reason=exc, einfo=einfo)
        logger.info("Task %s[%s] retry: %s", shown_name(claim.message), claim.message.id, exc)
        data, content_type = encode(exception_data(cause), "json")
        return _ends(claim)._replace(
            state=states.RETRY, ended=False, again=again, result=data, content_type=content_type,
            checksum=checksum(data), traceback=einfo.traceback, worker=self.hostname,
        )  # fmt: skip

    def _failure(self, task: Any, claim: Claim, exc: BaseException, request: ClaimContext) -> Outcome:
        m = claim.message
        einfo = Einfo(exc, traceback_text(exc))
        args, kwargs = request.args, request.kwargs
        outcome = self._failed(task, claim, exc, request, einfo)
        # As in Celery, a task's handlers hear nothing of a message that it refused.
        tells = task is not None and not isinstance(exc, Reject) and (task.is_plain or self._has_stored(task, outcome))
        if tells:
            self._tell(task.on_failure, exc, m.id, args, kwargs, einfo)
        if signals.task_failure.receivers:
            signals.task_failure.send(
                task, task_id=m.id, exception=exc, args=args, kwargs=kwargs, traceback=exc.__traceback__, einfo=einfo
            )
        if not isinstance(exc, Reject):
            self._log_failure(task, m, exc, einfo)
        if tells:
            self._tell(task.after_return, states.FAILURE, exc, m.id, args, kwargs, einfo)
        return outcome

    def _failed(self, task: Any, claim: Claim, exc: BaseException, request: ClaimContext, einfo: Einfo) -> Outcome:
        m = claim.message
        sends = self._tell_errbacks(task, m, request, einfo)
        if m.ignore_result and not m.leads and not getattr(task, "store_errors_even_if_ignored", False):
            return _ends(claim)._replace(state=states.IGNORED, ended_at=clock.now(), sends=sends)
        data, content_type = encode(exception_data(exc), "json")
        return _ends(claim)._replace(
            state=states.FAILURE, result=data, content_type=content_type, checksum=checksum(data),
            traceback=einfo.traceback, worker=self.hostname, ended_at=clock.now(), group_failure=_group_failure(m, exc),
            sends=sends, children=_children(request, m),
        )  # fmt: skip

    def _tell_errbacks(self, task: Any, m: Message, request: Context, einfo: Einfo) -> tuple[Message, ...]:
        if m.headers is None or '"errbacks"' not in m.headers:
            return ()
        app = current_app() if task is None else task.app
        return errbacks.told(app, request, einfo.exception, einfo.traceback)

    def _log_failure(self, task: Any, m: Message, exc: BaseException, einfo: Einfo) -> None:
        name = shown_name(m)
        if task is not None and isinstance(exc, classes(task.throws)):
            logger.info("Task %s[%s] raised expected: %r", name, m.id, exc)
        else:
            logger.error("Task %s[%s] raised unexpected: %s\n%s", name, m.id, safe_repr(exc), einfo.traceback)

    def revoked(self, task: Any, claim: Claim, reason: str = "revoked") -> Outcome:
        """The outcome of a message that must not run any more; `task` is None if nobody here knows it."""
        m = claim.message
        logger.info("Discarding revoked task: %s[%s]", shown_name(m), m.id)
        if signals.task_revoked.receivers:
            request, expired = self._request(claim), reason == "expired"
            signals.task_revoked.send(task, request=request, terminated=False, signum=None, expired=expired)
        return _revoked(claim, reason)

    # -- For whoever claims --------------------------------------------------------------------

    def received(self, task: Any, claim: Claim) -> None:
        """Tell the receivers of `task_received` that a message is in this process's hands."""
        if signals.task_received.receivers:
            request, m = self._request(claim), claim.message
            # Celery's receivers get the consumer's request, which has these names too.
            request.update(name=m.name, task_name=m.name, task_id=m.id)
            signals.task_received.send(task, request=request)

    def unknown(self, claim: Claim) -> Outcome:
        """The outcome of a message whose task is not registered here."""
        m = claim.message
        logger.error("Received unregistered task of type %r (id %s); import the module that defines it", m.name, m.id)
        exc = NotRegistered(m.name)
        if signals.task_unknown.receivers:
            signals.task_unknown.send(None, message=m, exc=exc, name=m.name, id=m.id)
        return self._failure(None, claim, exc, self._request(claim))

    def terminated(self, task: Any, claim: Claim, request: Context | None) -> Outcome:
        """The outcome of a coroutine task that was revoked while it ran; no request if it had not begun."""
        m = claim.message
        logger.info("Terminated task: %s[%s]", shown_name(m), m.id)
        if signals.task_revoked.receivers:
            request = request or self._request(claim)
            signals.task_revoked.send(task, request=request, terminated=True, signum=None, expired=False)
        return _revoked(claim, "terminated")

    def failed(self, task: Any, claim: Claim, exc: Exception, request: Any = None) -> Outcome:
        """The outcome of a message that could not even be given to its task, or of an attempt that was stopped."""
        return self._failure(task, claim, exc, request or self._request(claim))

    def broken(self, task: Any, claim: Claim, exc: Exception) -> None:
        """Tell the receivers of `task_internal_error` that `execute` itself has raised."""
        if signals.task_internal_error.receivers:
            signals.task_internal_error.send(
                task, task_id=claim.message.id, args=(), kwargs={}, request=self._request(claim), exception=exc,
                traceback=exc.__traceback__, einfo=Einfo(exc, traceback_text(exc)),
            )  # fmt: skip

    def _tell(self, handler: Any, *what: Any) -> None:
        """Call one of the task's own handlers; its mistakes are logged, or raised where the task was sent."""
        try:
            handler(*what)
        except Exception:
            if self.is_eager:
                raise
            frame, name = running.get(), getattr(handler, "__qualname__", handler)
            whose = "" if frame is None else f" {frame.request.task}[{frame.request.id}]"
            logger.exception("%s of task%s failed; its state stays", name, whose)


def _through(around: Any, task: Any, request: ClaimContext, args: Any, kwargs: Any) -> Any:
    """Run a task in a way that is not the plain one."""
    if around is None:
        return _through_call(task, request, args, kwargs)
    if task.calls_run:
        return around(task.run, args, kwargs)
    return around(_through_call, (task, request, args, kwargs), {})


def _through_call(task: Any, request: ClaimContext, args: Any, kwargs: Any) -> Any:
    """Run a task by its own `__call__`, whose `super()` must not take this for a call of another's."""
    request.__dict__["_is_entering"] = True
    return task(*args, **kwargs)


async def _answer(task: Any, value: Any) -> Any:
    """Await what a task has returned."""
    if task.is_async:
        # A `__call__` of the user's may have had the answer at hand.
        return await value if hasattr(value, "__await__") else value
    value.close()
    raise TypeError(
        f"task {task.name!r} returned a coroutine, which nothing awaits, for it is no `async def` function itself: "
        "make it one, or mark what wraps it by inspect.markcoroutinefunction"
    )


def _revoked(claim: Claim, why: str) -> Outcome:
    exc = TaskRevokedError(why)
    data, content_type = encode(exception_data(exc), "json")
    return _ends(claim)._replace(
        state=states.REVOKED, result=data, content_type=content_type, checksum=checksum(data), ended_at=clock.now(),
        group_failure=_group_failure(claim.message, exc),
    )  # fmt: skip


def _children(request: Context, m: Message) -> str | None:
    """Write the results of what an attempt has sent, its callbacks first; None if there are none."""
    links = headers_of(Claim(0, 0, 0, m)).get("links", ()) if m.headers and '"links"' in m.headers else ()
    sent = request.children if "children" in _facts_of(request, "__dict__") else ()
    if not links and not sent:
        return None
    return encode([*links, *(each.as_tuple() for each in sent)], "json", "children")[0].decode()


def call_of(body: Any) -> tuple[Any, dict[str, Any]]:
    """Take a message's body apart; another program may have written it."""
    if isinstance(body, list | tuple) and len(body) == 2:
        args, kwargs = body
        if isinstance(args, list | tuple) and isinstance(kwargs, dict):
            return args, kwargs
    raise DecodeError(f"the body is not [args, kwargs] but {safe_repr(body, 100)}")


def _ends(claim: Claim) -> Outcome:
    m = claim.message
    return Outcome(claim.seq, claim.token, m.id, group_id=m.group_id, leads=m.leads, reply_to=m.reply_to)


#: The longest pause before a message that is rejected time and again, in seconds; and the first.
LONGEST_PAUSE_S, FIRST_PAUSE_S = 1.0, 0.01


def _requeued(claim: Claim) -> Outcome:
    """The outcome of a message that goes back to its queue, and knows it when it comes again.

    At once the first time. Then after a pause that grows to a second: it stands before all that came later, and a task
    that always refuses must neither keep those waiting nor a processor busy.
    """
    headers = headers_of(claim)
    times = headers.get("requeued", 0)
    headers["requeued"] = times + 1
    again = claim.message._replace(headers=encode(headers, "json", "headers")[0].decode())
    if times:
        again = again._replace(visible_at=clock.now() + min(FIRST_PAUSE_S * 2 ** min(times, 10), LONGEST_PAUSE_S))
    return _ends(claim)._replace(state=states.PENDING, ended=False, again=again)


def _named(exc: BaseException, outcome: Outcome) -> str:
    """Name the end of an attempt that did not return, as Celery's `task_postrun` does."""
    if isinstance(exc, Reject):
        return states.REJECTED
    return states.IGNORED if isinstance(exc, Ignore) else outcome.state or states.FAILURE


def _group_failure(m: Message, exc: BaseException) -> bytes | None:
    if not m.leads:
        return None
    return encode(exception_data(ChordError(f"Dependency {m.id} raised {safe_repr(exc)}")), "json")[0]
