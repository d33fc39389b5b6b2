"""Tells the user's own code, in the steward, how attempts went whose process cannot: what Celery's main process does.

    swept      a task that ended here, since its process is dead: its request's `on_failure`; with a time limit
               `on_timeout` as well, and through it the task's handlers and the signal
    noticed    what children tell: a soft limit was used up; how a task went that has a Request of its own

Handlers are called after the end is in the store. One that raises costs a line in the log, and one that takes long
keeps the steward from its other work, as it keeps Celery's main process. Errbacks are told elsewhere (errbacks.py).
Must not decide how anything ends.
"""

from __future__ import annotations

import logging
from typing import Any

from localq import states
from localq.context import entered
from localq.exceptions import LocalqError, Retry, TimeLimitExceeded
from localq.executor import Einfo, call_of
from localq.message import Claim, Outcome
from localq.recovery import REVOKED, TIME_LIMIT
from localq.registry import symbol
from localq.serialization import decode, exception_from
from localq.worker.child import feed
from localq.worker.notices import ACCEPTED, SOFT, Notice, Notices
from localq.worker.request import Request

logger = logging.getLogger("localq.worker.herald")

#: How many attempts are remembered that have begun and not ended.
MOST = 1000


class Herald:
    """Calls handlers for one steward.

    Args:
        app: whose tasks.
        hostname: the node's name.
        notices: what children tell; None if they tell nothing.
    """

    def __init__(self, app: Any, hostname: str, notices: Notices | None) -> None:
        self._app, self._hostname, self._notices = app, hostname, notices
        self._requests: dict[tuple[int, int], Request] = {}

    # -- A service ---------------------------------------------------------------------------------

    def start(self) -> None:
        for task in self._app.tasks.values():
            if task.has_request:
                self._safely(_class_of, task)

    def rung(self) -> None:
        return

    def look(self, again_in_s: float | None) -> bool:
        for notice in self._notices.heard() if self._notices is not None else ():
            self._safely(self._noticed, notice)
        return False

    def stop(self) -> None:
        self.look(None)

    # -- What was swept (recovery.Herald) ----------------------------------------------------------

    def told(self, claim: Claim, outcome: Outcome, why: dict[str, Any]) -> None:
        self._safely(self._told, claim, outcome, why)

    def _told(self, claim: Claim, outcome: Outcome, why: dict[str, Any]) -> None:
        request = self._request(claim, is_over=True)
        if request is None:
            return
        exc = self._value(outcome.result, outcome.content_type, True)
        if why.get("why") == REVOKED:
            request._signum = why.get("signal")
        with entered(request.task, request._context):
            self._safely(request.on_failure, Einfo(exc, f"{type(exc).__name__}: {exc}"))
            if why.get("why") == TIME_LIMIT and isinstance(exc, TimeLimitExceeded):
                self._safely(request.on_timeout, False, why.get("limit"))

    # -- What children tell ------------------------------------------------------------------------

    def _noticed(self, notice: Notice) -> None:
        facts = notice.facts
        request = self._request(notice.claim, is_over=notice.kind not in (ACCEPTED, SOFT))
        if request is None:
            return
        with entered(request.task, request._context):
            if notice.kind == ACCEPTED:
                self._requests[notice.claim.seq, notice.claim.token] = request
                request.on_accepted(facts["pid"], facts["at"])
            elif notice.kind == SOFT:
                request.on_timeout(True, facts["limit"])
            else:
                self._ended(request, facts)

    def _ended(self, request: Request, facts: dict[str, Any]) -> None:
        # The process that ran it lives, and has told handlers and signals; a request of the user's hears all the same.
        request._is_told = True
        state = facts["state"]
        if state == states.SUCCESS:
            request.on_success((False, self._value(facts["value"], facts["content_type"], False), facts["runtime"]))
            return
        exc = self._value(facts["value"], facts["content_type"], True)
        if state == states.RETRY:
            exc = Retry(exc=exc)
        einfo = Einfo(exc, facts["traceback"] or str(exc))
        if state == states.REVOKED or facts["over"]:
            request.on_failure(einfo)
            if facts["over"]:
                request.on_timeout(False, facts["over"])
            return
        request.on_success((True, einfo, facts["runtime"]))

    # -- Requests ----------------------------------------------------------------------------------

    def _request(self, claim: Claim, is_over: bool) -> Request | None:
        """Return the request of an attempt: the one that was told of it before, if there is one."""
        key = (claim.seq, claim.token)
        request = self._requests.pop(key, None) if is_over else self._requests.get(key)
        if request is None:
            task = self._task(claim)
            if task is None:
                return None  # whoever sweeps need not know every task: it ends all the same
            request = _class_of(task)(claim, task, self._app, *self._arguments(claim), hostname=self._hostname)
        while len(self._requests) > MOST:
            self._requests.pop(next(iter(self._requests)))  # its end was not told
        return request

    def _task(self, claim: Claim) -> Any:
        tasks, name = self._app.tasks, claim.message.name
        return tasks.get(name) or tasks.aliases.get(name)

    def _arguments(self, claim: Claim) -> tuple[Any, dict[str, Any]]:
        """Read what a task was called with; nothing if that cannot be read any more."""
        message, conf = claim.message, self._app.conf
        try:
            args, kwargs = call_of(decode(message.body, message.content_type, conf.accept_content, message.checksum))
            fed = feed(self._app.storage, claim, conf) if message.after is not None else ()
        except LocalqError as exc:
            logger.warning("the arguments of %s[%s] cannot be read: %s", message.name, message.id, exc)
            return (), {}
        return [*fed, *args], kwargs

    def _value(self, data: bytes | None, content_type: str | None, is_error: bool) -> Any:
        conf = self._app.conf
        if data is None:
            return LocalqError("the task ignores its results") if is_error else None
        value = decode(data, content_type or "application/json", conf.result_accept_content or conf.accept_content)
        return exception_from(value) if is_error else value

    def _safely(self, handler: Any, *what: Any) -> None:
        try:
            handler(*what)
        except Exception:
            logger.exception("%s failed; the task's end stays", getattr(handler, "__qualname__", handler))


def _class_of(task: Any) -> Any:
    return symbol(task.Request) if isinstance(task.Request, str) else task.Request
