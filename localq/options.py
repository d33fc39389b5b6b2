"""The options of tasks and of calls: Celery's names, each declared once.

A declaration says where an option may stand (on a task, in `apply_async`, or both), what values it takes, which
setting decides where a task says None, and whether it travels in a message's headers. What `Task` has as attributes,
what `apply_async` accepts, what the headers carry and what errors say comes from here: adding an option touches its
declaration, and whoever obeys it. Must not know tasks, apps or messages, and obeys nothing itself.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from localq import moments, rates
from localq.exceptions import LocalqWarning, SerializerNotInstalled
from localq.queues import TYPES, is_exchange, is_queue
from localq.registry import nearest
from localq.serialization import fault_of_serializer

#: `Option.effect` of what nothing obeys yet.
NOT_YET = "has no effect yet in this version of localq"
#: Where the class of requests is that a task has if it says nothing.
REQUEST = "localq.worker.request:Request"
#: How alike a name must be to one of ours to be a mistake, where other names have a meaning too.
_ALIKE = 0.7
#: ... and where those of the user's own classes stand beside it.
_VERY_ALIKE = 0.8
#: What other task queues call some of ours.
_ELSEWHERE = {
    "exponential_backoff": "retry_backoff", "min_backoff": "default_retry_delay", "max_backoff": "retry_backoff_max",
    "retry_delay": "default_retry_delay", "retries": "max_retries", "max_age": "expires", "queue_name": "queue",
    "job_timeout": "time_limit",
}  # fmt: skip
#: What decorators take besides a task's options; words as short as these need a closer look (`kind` is no `bind`).
_OF_DECORATORS = ("bind", "base", "lazy", "shared", "filter")
_SHORT_ALIKE = 0.85


class Option(NamedTuple):
    """One option.

    Attributes:
        kinds: the types a value may have, None apart, which always means "not said"; empty: whoever obeys it checks.
        check: returns what is wrong with a value, or an empty text.
        default: the task attribute's value if nobody sets it.
        setting: decides where a task says None.
        header: the request's attribute of that name is what the call says.
        effect: what a user must be told who uses it; empty if it is obeyed.
        error: the exception for what `check` finds.
    """

    name: str
    doc: str
    kinds: tuple[type, ...] = ()
    check: Callable[[Any], str] | None = None
    default: Any = None
    on_task: bool = True
    on_call: bool = True
    setting: str | None = None
    header: str | None = None
    effect: str = ""
    error: type[Exception] = ValueError

    def refuse(self, value: Any, whose: str) -> None:
        """Raise an error if this is no value of the option.

        Raises:
            TypeError: it has the wrong type.
            ValueError: it is out of range.
            SerializerNotInstalled: there is no such serializer.
        """
        if value is None or value is self.default:
            return
        is_bool = isinstance(value, bool)
        if self.kinds and (not isinstance(value, self.kinds) or (is_bool and bool not in self.kinds)):
            kinds = " or ".join(kind.__name__ for kind in self.kinds)
            raise TypeError(f"option {self.name}={value!r} of {whose}: expected {kinds} ({self.doc})")
        wrong = self.check(value) if self.check else ""
        if wrong:
            raise self.error(f"option {self.name}={value!r} of {whose}: {wrong} ({self.doc})")

    def warn(self, whose: str, stacklevel: int) -> None:
        """Say what a user must know who has used it."""
        if self.effect:
            warnings.warn(f"option {self.name!r} of {whose} {self.effect}", LocalqWarning, stacklevel=stacklevel + 1)


# -- What is wrong with a value --------------------------------------------------------------------


def _not_negative(value: float) -> str:
    return "" if value >= 0 else "expected 0 or more"


def _finite(value: float) -> str:
    return "" if 0 <= value < float("inf") else "expected 0 or more seconds, and not for ever"


def _priority(value: int) -> str:
    return "" if 0 <= value <= 255 else "it is out of range"


def _rate(value: str | float) -> str:
    try:
        rates.parse(value)
    except ValueError:
        return f"expected {rates.FORMS}"
    return ""


def fault_of_limits(hard: float | None, soft: float | None) -> str:
    """Say why two time limits cannot both hold; empty if they can."""
    if not hard or not soft or soft <= hard:
        return ""
    return (
        f"soft_time_limit ({soft}) must be less than or equal to time_limit ({hard}): "
        "a task is told before it is stopped"
    )


def _classes(value: Any) -> str:
    each = (value,) if isinstance(value, type) else value
    if not isinstance(each, tuple | list | set | frozenset):
        return "expected exception classes: (ValueError, OSError)"
    wrong = [one for one in each if not (isinstance(one, type) and issubclass(one, BaseException))]
    return f"{wrong[0]!r} is no exception class" if wrong else ""


def _queue(value: Any) -> str:
    return "" if isinstance(value, str) or is_queue(value) else "expected the name of a queue, or a Queue"


def _exchange(value: Any) -> str:
    return "" if isinstance(value, str) or is_exchange(value) else "expected the name of an exchange, or an Exchange"


def _exchange_type(value: str) -> str:
    return "" if value in TYPES else f"expected one of {', '.join(TYPES)}{nearest(value, TYPES)}"


def _signatures(value: Any) -> str:
    each = value if isinstance(value, list | tuple) else [value]
    wrong = next((one for one in each if not isinstance(one, Mapping)), None)
    return f"{'it' if wrong is value else repr(wrong)} is no signature: write task.s(...)" if wrong is not None else ""


#: Celery's keys of a retry policy, and their values where nothing else is said.
RETRY_POLICY: dict[str, Any] = {
    "max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 1, "retry_errors": None,
}  # fmt: skip


def _policy(value: Mapping[str, Any]) -> str:
    for key, number in value.items():
        if key not in RETRY_POLICY and key not in ("timeout", "errback"):
            return f"{key!r} is no part of a retry policy{nearest(key, RETRY_POLICY)}"
        if key.startswith("interval") and not isinstance(number, int | float):
            return f"{key} is {number!r}: expected a number of seconds"
        if key == "max_retries" and not isinstance(number, int | None):
            return f"max_retries is {number!r}: expected a whole number, or None for ever"
    return ""


def _retry_kwargs(value: Mapping[str, Any]) -> str:
    for key in value:
        if key == "exc":
            return "exc is what the task has raised"
        known = {*RETRY_ARGUMENTS, *CALL_OPTIONS, *PROPERTIES} - FIXED_IN_RETRY
        if key not in known:
            return f"Task.retry() takes no {key!r}{nearest(key, known)}"
    most = value.get("max_retries")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 0):
        return f"max_retries is {most!r}: expected a whole number, 0 or more; for ever: max_retries=None on the task"
    return ""


#: Options of a call that a retry cannot change: they would make it another one.
FIXED_IN_RETRY = frozenset({"task_id", "group_id", "group_index", "chord", "chain", "link", "retries"})
#: What `Task.retry` takes besides a call's options.
RETRY_ARGUMENTS = ("args", "kwargs", "throw", "eta", "countdown", "max_retries")

# -- The declarations ------------------------------------------------------------------------------

_NUMBER, _FLAG, _TEXT, _WHOLE, _MANY = (int, float), (bool,), (str,), (int,), (tuple, list)
#: One place only: arguments of `Option`.
_TASK: dict[str, Any] = {"on_call": False}
_CALL: dict[str, Any] = {"on_task": False}

OPTIONS: dict[str, Option] = {
    option.name: option
    for option in (
        # Who it is, and what is checked where it is called.
        Option("name", "what messages call it", _TEXT, default="", **_TASK),
        Option("typing", "check the arguments where it is called; None: the app's strict_typing", _FLAG, **_TASK),
        # When it runs again, and what its end means.
        Option("max_retries", "retries after the first attempt; None for ever", _WHOLE, _not_negative, 3, **_TASK),
        Option("default_retry_delay", "seconds before a retry", _NUMBER, _not_negative, 180, **_TASK),
        Option("throws", "exceptions that are no surprise: a class, or a tuple of them", (), _classes, (), **_TASK),
        Option("autoretry_for", "exceptions after which it is retried by itself", (), _classes, (), **_TASK),
        Option("dont_autoretry_for", "... but not after these", (), _classes, (), **_TASK),
        Option("override_max_retries", "the limit of those, whatever else says one", _WHOLE, _not_negative, **_TASK),
        Option("retry_kwargs", "what Task.retry() is given then", (Mapping,), _retry_kwargs, **_TASK),
        Option("retry_backoff", "True, or seconds: doubles with every retry", (bool, *_NUMBER), _finite, False,
               **_TASK),
        Option("retry_backoff_max", "seconds to which it grows", _NUMBER, _finite, 600, **_TASK),
        Option("retry_jitter", "wait anything between 0 and that, by chance", (bool, int), None, True, **_TASK),
        Option("acks_late", "it may run again if its worker dies", _FLAG, setting="task_acks_late", **_TASK),
        Option(
            "reject_on_worker_lost", "... also if only its process dies", _FLAG,
            setting="task_reject_on_worker_lost", **_TASK,
        ),
        Option(
            "retry_on_worker_lost", "it is retried if its process dies", _FLAG,
            setting="task_retry_on_worker_lost", **_TASK,
        ),
        Option("acks_on_failure", "accepted: what fails is kept, and retried by hand", _FLAG, **_TASK),
        Option("acks_on_timeout", "False, with acks_late: it may run again if it ran out of time", _FLAG,
               setting="task_acks_on_timeout", **_TASK),
        Option("acks_on_failure_or_timeout", "what acks_on_timeout is that says nothing", _FLAG,
               setting="task_acks_on_failure_or_timeout", **_TASK),
        # What is kept and shown.
        Option("ignore_result", "keep no result", _FLAG, setting="task_ignore_result"),
        Option(
            "store_errors_even_if_ignored", "keep errors although results are ignored", _FLAG,
            setting="task_store_errors_even_if_ignored", **_TASK,
        ),
        Option(
            "store_eager_result", "an eager run's result is written to the store", _FLAG,
            setting="task_store_eager_result", **_TASK,
        ),
        Option("track_started", "write the state STARTED", _FLAG, setting="task_track_started", **_TASK),
        Option("trail", "results of tasks it sends are its children", _FLAG, None, True, **_TASK),
        Option("send_events", "tell monitors of it", _FLAG, None, True, **_TASK),
        Option("resultrepr_maxsize", "characters of a result in the log", _WHOLE, _not_negative, 1024, **_TASK),
        Option("shadow", "name to show in logs", _TEXT, header="shadow", **_CALL),
        Option("argsrepr", "text to show instead of the positional arguments", _TEXT, header="argsrepr", **_CALL),
        Option("kwargsrepr", "text to show instead of the keyword arguments", _TEXT, header="kwargsrepr", **_CALL),
        # What its arguments are.
        Option("pydantic", "make models of arguments, by their annotations", _FLAG, None, False, **_TASK),
        Option("pydantic_strict", "pydantic's strict mode", _FLAG, **_TASK),
        Option("pydantic_context", "what validators get as their context", (Mapping,), **_TASK),
        Option("pydantic_dump_kwargs", "arguments of model_dump()", (Mapping,), **_TASK),
        # Where and when.
        Option("queue", "wins over routes", (), _queue, error=TypeError),
        Option("exchange", "see localq.routing", (), _exchange, error=TypeError),
        Option("exchange_type", "of an exchange that task_queues does not know", _TEXT, _exchange_type),
        Option("route_name", "the name that routes see instead of the task's", _TEXT, **_CALL),
        Option("routing_key", "what leads from the exchange to queues", _TEXT),
        Option("priority", "a whole number, 0 is first, 255 last; task_priority_order turns it round", _WHOLE,
               _priority),
        Option("delivery_mode", "accepted: every message is on disk", (int, str)),
        Option("mandatory", "accepted: a put is stored or raises", _FLAG, **_CALL),
        Option("immediate", "accepted, see mandatory", _FLAG, **_CALL),
        Option("countdown", "seconds from now before which it must not start", **_CALL),
        Option("eta", "datetime, or ISO text, before which it must not start", **_CALL),
        Option("expires", "seconds from now, datetime or ISO text after which it must not start"),
        Option("expiration", "Celery's name for a broker's own limit", _NUMBER, _not_negative, **_CALL,
               effect="has no effect here: there is no broker; say expires=..."),
        Option("rate_limit", "how often it may start, such as '10/m', in all workers", (str, int, float), _rate,
               setting="task_default_rate_limit", **_TASK),
        Option("time_limit", "seconds after which it is stopped", _NUMBER, _not_negative),
        Option("soft_time_limit", "seconds after which it is told", _NUMBER, _not_negative),
        # How it is written, and put.
        Option("serializer", "what its arguments are written by", _TEXT, fault_of_serializer,
               setting="task_serializer", error=SerializerNotInstalled),
        Option("compression", "name of a compression of the arguments", _TEXT, effect=NOT_YET),
        Option("retry", "try a put again that failed because the store was full or busy", _FLAG, **_CALL),
        Option("retry_policy", "how often, and after how long", (Mapping,), _policy, **_CALL),
        Option("connection", "accepted: there is no broker", **_CALL),
        Option("producer", "accepted: there is no broker", **_CALL),
        # Who it belongs to.
        Option("task_id", "the id; a new UUID if absent", _TEXT, **_CALL),
        Option("root_id", "id of the workflow's first task", _TEXT, header="root_id", **_CALL),
        Option("parent_id", "id of the task that sent this one", _TEXT, header="parent_id", **_CALL),
        Option("group_id", "id of its group, for request.group", _TEXT, header="group", **_CALL),
        Option("group_index", "its place in the group", _WHOLE, header="group_index", **_CALL),
        Option("chord", "body of the chord it is in, for request.chord", header="chord", **_CALL),
        Option("chain", "what comes after it, last first, for request.chain", _MANY, header="chain", **_CALL),
        Option("link", "signature, or list of them, sent with its result", (), _signatures,
               header="callbacks", error=TypeError, **_CALL),
        Option("link_error", "signature, or list of them, called if it fails", (), _signatures,
               header="errbacks", error=TypeError, **_CALL),
        Option("add_to_parent", "be a child of the task that sends it", _FLAG, **_CALL),
        Option("reply_to", "text for request.reply_to", _TEXT, header="reply_to", **_CALL),
        Option("origin", "text for request.origin", _TEXT, header="origin", **_CALL),
        Option("headers", "dict for request.headers", (Mapping,), header="headers", **_CALL),
        Option("retries", "attempts before this one", _WHOLE, _not_negative, **_CALL),
        Option("replaced_task_nesting", "how often it was replaced", _WHOLE, header="replaced_task_nesting", **_CALL),
        Option("stamped_headers", "names of options that are stamps", _MANY, header="stamped_headers", **_CALL),
        Option("stamps", "their values", (Mapping,), header="stamps", **_CALL),
        Option("logfile", "for request.logfile", _TEXT, header="logfile", **_CALL),
        Option("loglevel", "for request.loglevel", (int, str), header="loglevel", **_CALL),
        # What other releases of Celery's have, and this one of localq's does not yet.
        Option("Strategy", "class that receives messages", effect=NOT_YET, **_TASK),
        Option("Request", "class of its requests in the worker, or where it is", default=REQUEST, **_TASK),
        Option("backend", "Celery's own result backend of a task", **_TASK,
               effect="has no effect here: results live with the tasks"),
    )
}  # fmt: skip

TASK_OPTIONS: dict[str, Option] = {name: option for name, option in OPTIONS.items() if option.on_task}
CALL_OPTIONS: dict[str, Option] = {name: option for name, option in OPTIONS.items() if option.on_call}
#: Option of a call -> request attribute it is carried as.
CARRIED: dict[str, str] = {name: option.header for name, option in OPTIONS.items() if option.header}
#: AMQP's own properties of a message: never mistakes for options of ours.
PROPERTIES = frozenset(
    {"app_id", "user_id", "message_id", "cluster_id", "type", "timestamp", "content_type", "content_encoding"}
)


def check_task(name: str, attributes: Mapping[str, Any]) -> None:
    """Refuse a task's attributes that are no values of their options; warn of those that nothing obeys.

    Raises:
        TypeError, ValueError: names the value, the reason and what is right.
    """
    whose = f"task {name!r}"
    wrong = fault_of_limits(attributes.get("time_limit"), attributes.get("soft_time_limit"))
    if wrong:
        raise ValueError(f"{wrong} ({whose})")
    for key, option in TASK_OPTIONS.items():
        value = attributes.get(key)
        refuse_of_task(option, value, whose)
        if value is not None and value != option.default and option.effect:
            option.warn(whose, 5)


def refuse_of_task(option: Option, value: Any, whose: str) -> None:
    """Raise an error if this is no value of a task's option.

    Raises:
        TypeError, ValueError, SerializerNotInstalled: names the value, the reason and what is right.
    """
    option.refuse(value, whose)
    if option.name == "expires" and value is not None:  # a call's is read where it is sent
        try:
            moments.end("expires", value, 0.0, None)
        except (TypeError, ValueError) as exc:
            why = str(exc).removeprefix(f"expires={value!r} is ")
            raise type(exc)(f"option expires={value!r} of {whose}: {why}") from None


def check_names(name: str, given: Iterable[str], known: Callable[[str], bool]) -> None:
    """Refuse options of a decorator that look like mistakes; others are attributes for the user's own classes.

    Args:
        known: whether the task's class has an attribute of this name.
    """
    for key in given:
        hint = "" if key in TASK_OPTIONS or known(key) else _hint(key)
        if hint:
            raise TypeError(f"a task has no option {key!r}{hint} (task {name!r})")


def _hint(key: str) -> str:
    if key in _ELSEWHERE:
        return f"; what other queues call so is {_ELSEWHERE[key]!r} here"
    return nearest(key, TASK_OPTIONS, _ALIKE) or nearest(key, _OF_DECORATORS, _SHORT_ALIKE)


def warn_of_near_misses(kind: type, stacklevel: int) -> None:
    """Warn of attributes in a class of tasks that look like misspelt options; no error, for they may be the user's."""
    for key, value in vars(kind).items():
        if key in TASK_OPTIONS or key.startswith("_") or callable(value) or hasattr(value, "__get__"):
            continue
        hint = "" if any(key in vars(base) for base in kind.__mro__[1:]) else nearest(key, TASK_OPTIONS, _VERY_ALIKE)
        if hint:
            warnings.warn(
                f"class {kind.__qualname__}: a task has no option {key!r}{hint} If not, name it otherwise",
                LocalqWarning, stacklevel=stacklevel + 1,
            )  # fmt: skip


def check_call(options: Mapping[str, Any], whose: str = "a call") -> dict[str, Any]:
    """Refuse options of a call that are no options, or no values of theirs; warn of those that nothing obeys.

    Args:
        whose: who says them, for errors.

    Returns:
        What is no option of ours, and nothing that looks like one: properties of the message.

    Raises:
        TypeError, ValueError: names the option, the reason, and the nearest name.
    """
    properties: dict[str, Any] = {}
    for name, value in options.items():
        option = CALL_OPTIONS.get(name)
        if option is not None:
            if value is not None:
                option.refuse(value, whose)
                option.warn(whose, 5)
            continue
        if name not in (options.get("stamped_headers") or ()):
            refuse_near_miss(name, whose)
        properties[name] = value
    return properties


def refuse_near_miss(name: str, whose: str = "a call") -> None:
    """Raise an error if this is almost the name of a call's option, or the name of a task's.

    Raises:
        TypeError: it is; says what it is, or the nearest name.
    """
    if name in PROPERTIES:
        return
    if name in TASK_OPTIONS:
        raise TypeError(
            f"{name!r} is an option of the task, not of {whose}: set it where the task is made, @app.task({name}=...)"
        )
    hint = nearest(name, CALL_OPTIONS, _ALIKE)
    if hint:
        raise TypeError(f"{whose} takes no option {name!r}{hint}")


def check_call_names(options: Mapping[str, Any], also: Collection[str] = ()) -> None:
    """Refuse names that look like mistakes; their values are judged when the call is sent.

    Args:
        also: further names that are right.

    Raises:
        TypeError: see `refuse_near_miss`.
    """
    for name in options:
        if name not in CALL_OPTIONS and name not in also and name not in (options.get("stamped_headers") or ()):
            refuse_near_miss(name)


def warn_user(text: str) -> None:
    """Warn at the line of the user's that led here, however deep below it this is."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"{text} (this version of localq)", LocalqWarning, stacklevel=level)


_PACKAGE = os.path.dirname(__file__) + os.sep
