"""How `@app.task` looks to a type checker: which functions become tasks of which type.

Nothing here is at work when a program runs. Must not make a task.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from localq.task import Task

P = ParamSpec("P")
R = TypeVar("R")

if TYPE_CHECKING:

    class AsyncTask(Task[P, R]):
        """How the task of an `async def` function looks to a type checker: its results are what it returns at last."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...  # type: ignore[override]

        async def run(self, *args: P.args, **kwargs: P.kwargs) -> R: ...  # type: ignore[override]

    class Maker(Protocol):
        """What `@app.task(...)` is: makes a task of a function."""

        @overload
        def __call__(self, fun: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...

        @overload
        def __call__(self, fun: Callable[P, R], /) -> Task[P, R]: ...

    class BoundMaker(Protocol):
        """The same with `bind=True`: the function's first argument is the task."""

        @overload
        def __call__(self, fun: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...

        @overload
        def __call__(self, fun: Callable[Concatenate[Any, P], R], /) -> Task[P, R]: ...

else:
    AsyncTask, Maker, BoundMaker = Task, Callable, Callable
