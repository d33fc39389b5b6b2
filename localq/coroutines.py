"""What of a task may be `async def`: its `run`, and nothing else.

Found out when a task is bound, by the marks that Python leaves on functions: importing inspect or asyncio for that
would cost every process more than its tasks. Must not run anything.
"""

from __future__ import annotations

from typing import Any

#: Bits of `co_flags`.
_COROUTINE, _ASYNC_GENERATOR = 0x80, 0x200
#: What inspect.markcoroutinefunction leaves, and, before Python 3.12 had it, asyncio's own and asgiref's.
_MARKS = ("_is_coroutine_marker", "_is_coroutine")
#: A task's methods that are called, and whose answer nobody looks at.
HANDLERS = ("before_start", "on_success", "on_failure", "on_retry", "after_return")


def is_function(function: Any) -> bool:
    """Whether calling this gives a coroutine: it is `async def`, or marked by `inspect.markcoroutinefunction`."""
    function = _plain(function)
    return bool(_flags(function) & _COROUTINE) or any(hasattr(function, mark) for mark in _MARKS)


def check(task: Any) -> None:
    """Refuse what nothing would await.

    Raises:
        TypeError: `run` is an asynchronous generator, or one of the handlers is `async def`.
    """
    if _flags(_plain(task.run)) & _ASYNC_GENERATOR:
        raise TypeError(f"task {task.name!r} is an asynchronous generator, and a task returns once: return a list")
    for name in HANDLERS:
        if is_function(getattr(task, name, None)):
            raise TypeError(
                f"task {task.name!r}: {name} is `async def`, and handlers are called, not awaited. Make it a plain "
                "function, and await what it needs in the task itself, or in a task sent by link or link_error"
            )


def _plain(function: Any) -> Any:
    """Take methods and partials apart."""
    while True:
        inner = getattr(function, "__func__", None) or (
            getattr(function, "func", None) if hasattr(function, "keywords") else None
        )
        if inner is None:
            return function
        function = inner


def _flags(function: Any) -> int:
    return int(getattr(getattr(function, "__code__", None), "co_flags", 0))
