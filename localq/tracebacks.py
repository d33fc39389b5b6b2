"""The traceback of a worker's exception as one that Python can show and debuggers can walk.

For the setting `task_remote_tracebacks`; needs tblib. Must not change what is raised, only what it brings along.
"""

from __future__ import annotations

import warnings
from typing import TypeVar

from localq.exceptions import LocalqWarning

E = TypeVar("E", bound=BaseException)
_HEAD = "Traceback (most recent call last):"


def with_remote(exc: E, text: str | None) -> E:
    """Give an exception the traceback that stands in a text; it keeps its own if there is none in it.

    A text may be of several exceptions, one the cause of the other: the last one's counts.
    """
    try:
        # Optional: who does not set the setting needs no tblib.
        from tblib import Traceback, TracebackParseError
    except ModuleNotFoundError:
        warnings.warn(
            "task_remote_tracebacks has no effect without tblib: pip install 'localq[tblib]'",
            LocalqWarning, stacklevel=4,
        )  # fmt: skip
        return exc
    _, head, last = (text or "").rpartition(_HEAD)
    try:
        return exc.with_traceback(Traceback.from_string(head + last).as_traceback()) if head else exc
    except TracebackParseError:
        return exc  # its middle was cut out
