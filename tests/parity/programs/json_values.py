"""What JSON carries to a task and back."""

import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum

from celery import Celery
from kombu.exceptions import EncodeError
from observing import outcome, shows, value

app = Celery("json_values")

VALUES = [
    None,
    True,
    0,
    -1,
    2**70,
    1.5,
    "",
    "text",
    "\u00fc \u4e16 \U0001f600",
    [],
    [1, [2]],
    {},
    {"a": {"b": None}},
    (1, 2),
    {2: "two", None: "none", True: "true"},
    datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    datetime(2026, 1, 2, 3, 4, 5),
    datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=2))),
    date(2026, 1, 2),
    time(3, 4, 5),
    Decimal("1.10"),
    uuid.UUID(int=5),
    b"bytes",
    b"\xff\x00",
]


class Colour(Enum):
    RED = "red"


class Described:
    def __json__(self):
        return {"described": 1}


@app.task
def tell(x):
    return f"{type(x).__name__}: {x!r}"


@app.task
def give(index):
    return VALUES[index]


def refused(x):
    try:
        tell.delay(x)
    except EncodeError:
        return "EncodeError"
    except Exception as exc:
        return type(exc).__name__
    return "sent"


@shows("F118")
def what_a_task_is_given():
    return [value(tell.delay(each)) for each in VALUES]


@shows("F118")
def what_a_caller_gets_back():
    return [repr(value(give.delay(index))) for index in range(len(VALUES))]


@shows("F118")
def a_json_method_is_asked():
    return value(tell.delay(Described()))


@shows("F118")
def what_json_cannot_say_is_refused_where_it_is_sent():
    return [refused(each) for each in (object(), lambda: None, {"deep": [object()]})]


@shows("F118")
def a_result_that_json_cannot_say_is_a_failure():
    return outcome(give_object.delay())[:2]


@app.task
def give_object():
    return object()


@shows("F118")
def an_enum_is_refused():
    return refused(Colour.RED)
