"""When a task runs again by itself, and how soon.

    countdown       2 ** retries, up to a most, by chance between 0 and that
    retrying        a task's `run` that turns exceptions into retries; Celery's rules for which

Must not make messages, and knows tasks only by their options and their `retry`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from localq.exceptions import Ignore, Retry

#: `inspect.CO_COROUTINE`, of a module that is not imported for it.
_IS_COROUTINE = 0x80
#: Choose a whole number from 0 to n - 1.
Draw = Callable[[int], int]


def draw(n: int) -> int:
    """Choose a whole number from 0 to n - 1, by the kernel's chance: no two processes draw alike."""
    return int.from_bytes(os.urandom(8)) % n


def countdown(retries: int, factor: float, most: float, draw: Draw | None = None) -> int:
    """Return the seconds before the next attempt: factor, 2 * factor, 4 * factor ... up to `most`.

    Args:
        retries: how often it was tried again already.
        factor: the first delay, in whole seconds; at least 1.
        most: the longest delay.
        draw: full jitter: chooses anything from 0 up to that delay; None: exactly that.
    """
    longest = int(most)
    # No further than it takes to pass the longest: 2 ** 1_000_000 would be a number of 300,000 digits.
    seconds = min(longest, int(max(1.0, factor)) << min(retries, longest.bit_length()))
    return draw(seconds + 1) if draw else seconds


def wanted(task: Any, retries: int, draw: Draw = draw) -> dict[str, Any]:
    """Return the arguments of the `retry` that a task's options ask for."""
    given = dict(task.retry_kwargs or {})
    if task.retry_backoff:
        given["countdown"] = countdown(
            retries, task.retry_backoff, task.retry_backoff_max, draw if task.retry_jitter else None
        )
    return given


def reason(exc: Any) -> Any:
    """Return what `retry(exc=...)` was given; of a class of exceptions, one without arguments, as `raise` makes it.

    Raises:
        TypeError: it wants arguments, or is no class of exceptions.
    """
    if not isinstance(exc, type):
        return exc
    try:
        made = exc()
    except Exception as error:
        raise TypeError(
            f"retry(exc={exc.__name__}): give an exception; of the class none can be made: {error}"
        ) from error
    if not isinstance(made, BaseException):
        raise TypeError(f"retry(exc={exc.__name__}): expected an exception")
    return made


class Retrying:
    """A block in which what a task's `autoretry_for` names becomes a retry; in a plain call it stays what it is.

    The options are read when something goes wrong, so they may change at any time.
    """

    def __init__(self, task: Any) -> None:
        self._task = task

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, traceback: object) -> None:
        task = self._task
        if exc is None or isinstance(exc, (Ignore, Retry, *classes(task.dont_autoretry_for))):
            return
        if not isinstance(exc, classes(task.autoretry_for)):
            return
        request = task.request
        given = wanted(task, request.retries)
        # What a `retry(max_retries=...)` in this attempt has said, if it is that which gave up: it holds here too.
        most = request.get("_max_retries", task.override_max_retries)
        if most is not None:
            given["max_retries"] = most
        raise task.retry(exc=exc, **given) from exc


def retrying(task: Any, run: Any) -> Callable[..., Any]:
    """Make a `run` that retries what the task's options name; a coroutine function if it was one."""

    async def later(*args: Any, **kwargs: Any) -> Any:
        with Retrying(task):
            return await run(*args, **kwargs)

    def now(*args: Any, **kwargs: Any) -> Any:
        with Retrying(task):
            return run(*args, **kwargs)

    made: Any = later if getattr(run, "__code__", now.__code__).co_flags & _IS_COROUTINE else now
    made.__name__, made.__qualname__ = "run", f"{type(task).__qualname__}.run"
    made.__doc__, made.__wrapped__ = run.__doc__, run
    return made  # type: ignore[no-any-return]


def classes(value: Any) -> tuple[type[BaseException], ...]:
    """Return exception classes as `except` takes them; one alone may stand for itself."""
    return (value,) if isinstance(value, type) else tuple(value or ())
