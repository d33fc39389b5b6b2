"""What a parity program says: which rows a function shows, and what was seen in the worker.

A program is a script in Celery's words. Each function marked `@shows(rows)` returns what a user would see, as plain
data; its name is the sentence. Knows neither Celery nor localq: both run the same file.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

#: Seconds that anything a program waits for may take.
LIMIT_S = 5.0

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Shown(NamedTuple):
    """One observation of a program."""

    rows: tuple[str, ...]
    name: str
    look: Callable[[], Any]


observations: list[Shown] = []


def shows(*rows: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Mark a function that returns an observation, with the rows it shows."""

    def mark(look: Callable[[], Any]) -> Callable[[], Any]:
        observations.append(Shown(rows, look.__name__, look))
        return look

    return mark


def plain(value: Any) -> Any:
    """Return an answer as JSON has it, ids numbered in the order they appear, this host by one name."""
    text = json.dumps(value)
    ids = {found: f"<id {number}>" for number, found in enumerate(dict.fromkeys(_ID.findall(text)), 1)}
    return json.loads(_ID.sub(lambda found: ids[found[0]], text).replace(socket.gethostname(), "<host>"))


# -- Looking -------------------------------------------------------------------------------------


def value(result: Any) -> Any:
    """Wait for a result's value; raises what the task raised."""
    return result.get(timeout=LIMIT_S)


def outcome(result: Any) -> list[Any]:
    """Wait for the end of a task: its state, and its value, or its exception's type and text."""
    got = result.get(timeout=LIMIT_S, propagate=False)
    return [result.state, *described(got)] if isinstance(got, BaseException) else [result.state, got]


def raised(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Return the name of the type of what a call raises."""
    try:
        call(*args, **kwargs)
    except Exception as exc:
        return type(exc).__name__
    return "nothing"


def described(exc: BaseException) -> list[str]:
    return [type(exc).__name__, str(exc)]


def until(look: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    """Return the first true answer, or the last one when time is up."""
    deadline = time.monotonic() + limit_s
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


# -- What tasks, handlers and receivers leave behind ---------------------------------------------


def note(*what: Any) -> None:
    """Write something down, in whatever process this is."""
    with open(os.environ["PARITY_NOTES"], "a", encoding="utf-8") as file:
        file.write(json.dumps(what) + "\n")  # one write of one line: O_APPEND keeps it whole


def noted(number: int, kind: str | None = None) -> list[Any]:
    """Wait for that many notes (of this first word) and return them, and whatever else there is; then forget them."""
    path = Path(os.environ["PARITY_NOTES"])

    def read() -> list[Any]:
        lines = map(json.loads, path.read_text("utf-8").splitlines()) if path.exists() else ()
        return [line for line in lines if kind is None or line[0] == kind]

    until(lambda: len(read()) >= number)
    found = read()
    path.unlink(missing_ok=True)
    return found


def logged(pattern: str, number: int = 1) -> list[Any]:
    """Wait until the worker has logged something, and return all that the pattern finds."""
    path = Path(os.environ["PARITY_LOG"])
    find = re.compile(pattern, re.MULTILINE)
    until(lambda: len(find.findall(path.read_text("utf-8", "replace"))) >= number)
    return find.findall(path.read_text("utf-8", "replace"))


def ordered(values: Iterable[Any]) -> list[Any]:
    return sorted(values, key=repr)
