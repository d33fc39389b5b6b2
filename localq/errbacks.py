"""What a call's `link_error` comes to when its task has failed.

Celery has two kinds. One that takes more than an id, besides what its signature gives it, is called here, in the
process that ran the task, with the request, the exception and the traceback. Any other (one argument, bound, or not
registered here) is sent as a task of its own, with the failed task's id; its message is part of the failure's
transaction. An errback's own mistakes are logged and change nothing. Must not decide how the failed task ends.
"""

from __future__ import annotations

import logging
from typing import Any

from localq.context import Context
from localq.message import Message
from localq.plan import Plan
from localq.signatures import Signature, signature

logger = logging.getLogger("localq.errbacks")

_RULE = (
    "it is called with (request, exc, traceback) if it takes more than one argument and is not bound, and else sent as "
    "a task with the id of the one that failed"
)


def told(app: Any, request: Context, exc: BaseException, traceback: str) -> tuple[Message, ...]:
    """Tell the errbacks of a failed attempt.

    Returns:
        The messages of those that are tasks of their own.
    """
    sends: list[Message] = []
    for each in request.errbacks or ():
        try:
            errback = signature(each, app=app)
            if _takes_failure(app, errback):
                errback(request, exc, traceback)
            else:
                sends += _sent(app, request, errback)
        except Exception:
            logger.exception("errback %r of task %s[%s] failed; %s", each, request.task, request.id, _RULE)
    return tuple(sends)


def _takes_failure(app: Any, errback: Signature) -> bool:
    """Whether it is to be called with (request, exc, traceback)."""
    task = app.tasks.get(errback.task) or app.tasks.aliases.get(errback.task)
    run = getattr(task, "run", None)
    if run is None or hasattr(run, "__func__"):
        return False  # somebody else's, or bound: it would need a request of its own
    while hasattr(run, "__wrapped__"):
        run = run.__wrapped__
    code = getattr(run, "__code__", None)
    return code is not None and (bool(code.co_flags & 4) or len(_left_to_fill(code, errback)) > 1)


def _left_to_fill(code: Any, errback: Signature) -> list[str]:
    """Return the parameters that the signature's own arguments leave; those behind a keyword's are no places either."""
    names = list(code.co_varnames[: code.co_argcount])
    if errback.immutable:
        return names
    names = names[len(errback.args) :]
    return names[: next((at for at, name in enumerate(names) if name in errback.kwargs), None)]


def _sent(app: Any, request: Context, errback: Signature) -> list[Message]:
    """Return the messages of an errback that is a task; eager ones run now and leave none."""
    call = errback.clone((request.id,), root_id=request.root_id, parent_id=request.id)
    if request.is_eager:
        app.apply(call)
        return []
    messages = app.publisher.messages_of(Plan(call).steps, app.tasks.get)
    return list(app.publisher.spread(app.storage, messages))
