"""What a call's `link_error` comes to when its task has failed.

Celery has two kinds. One that takes more than an id, besides what its signature gives it, is called here, in the
process that ran the task, with the request, the exception and the traceback. Any other (one argument, bound, or not
registered here) is sent as a task of its own, with the failed task's id; its message is part of the failure's
transaction. An errback's own mistakes are logged and change nothing.

Whoever ends a task whose process is dead may be a client, a command or a worker of another program, which has neither
the failed task nor its errbacks. It sends an errand with the failure, in its transaction and to the queue of the failed
task: there a worker does what the dead process would have done. Must not decide how the failed task ends.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from localq import clock
from localq.context import ClaimContext, Context, headers_of, running
from localq.exceptions import InvalidTaskError
from localq.message import Claim, Message, new_id
from localq.plan import ERRAND, Plan
from localq.serialization import exception_from, value_of
from localq.signatures import Signature, signature

logger = logging.getLogger("localq.errbacks")

_RULE = (
    "it is called with (request, exc, traceback) if it takes more than one argument and is not bound, and else sent as "
    "a task with the id of the one that failed"
)

#: Columns of a failed message that its errand has as its own.
_SHARED = frozenset({"body", "content_type", "compression", "signature", "checksum"})


def errand(claim: Claim, failure: bytes) -> Message | None:
    """Make the message that has the errbacks of a failed attempt told by a worker; None if there are none.

    Args:
        failure: its exception, as it is written.
    """
    failed = claim.message
    if failed.headers is None or '"errbacks"' not in failed.headers:
        return None
    headers = headers_of(claim)
    if not headers.get("errbacks"):
        return None
    told = {name: value for name, value in failed._asdict().items() if name not in _SHARED}
    # What was fed to it is fed to its errand: an errback may look at `request.args`.
    carried: dict[str, Any] = {name: headers[name] for name in ("feed", "feeds") if name in headers}
    carried["failed"] = {"message": told, "redeliveries": claim.redeliveries, "exc": failure.decode()}
    return failed._replace(
        id=new_id(), name=ERRAND, headers=json.dumps(carried), ignore_result=1, sent_at=clock.now(), retries=0,
        reply_to=None, visible_at=None, expires_at=None, waits_for=0, group_id=None, position=None, leads=0,
    )  # fmt: skip


def run_errand(*args: Any, **kwargs: Any) -> None:
    """Tell the errbacks of a task whose process died, with whose arguments this is called, or of one that never ran."""
    frame = running.get()
    claim = getattr(frame.request, "_claim", None) if frame is not None else None
    failed = headers_of(claim).get("failed") if claim is not None else None
    if frame is not None and "lost" in kwargs and failed is None:
        _run_for_lost(frame.task.app, **kwargs)
        return
    if frame is None or claim is None or failed is None:
        raise InvalidTaskError(f"{ERRAND} is localq's own and tells of a task that has failed: it cannot be sent")
    app = frame.task.app
    shared = {name: getattr(claim.message, name) for name in _SHARED}
    message = Message(**failed["message"], **shared)
    attempt = Claim(claim.seq, claim.token, failed["redeliveries"], message)
    exc = exception_from(json.loads(failed["exc"]))
    sends = told(app, ClaimContext(attempt, list(args), kwargs, frame.request.hostname, False), exc, str(exc))
    if sends:
        app.storage.put(sends)


def _run_for_lost(app: Any, lost: str, id: str, errbacks: list[Any]) -> None:
    record = app.storage.records((lost,)).get(lost)
    if record is None:
        logger.warning("errbacks of %s are not told: its failure was forgotten, or has expired", id)
        return
    sends = told_of_lost(app, record.name, id, errbacks, value_of(record, app.conf))
    if sends:
        app.storage.put(sends)


def told_of_lost(
    app: Any, name: str, id: str, errbacks: list[Any], exc: BaseException, is_eager: bool = False
) -> tuple[Message, ...]:
    """Tell errbacks of a body that never ran, since a task of its header failed.

    Returns:
        The messages of those that are tasks of their own.
    """
    request = Context(id=id, task=name, errbacks=errbacks, called_directly=False, is_eager=is_eager)
    return told(app, request, exc, str(exc))


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
