"""An app's tasks by name, and how functions become tasks: what `@app.task` and `@shared_task` do.

Must not send or run anything, and knows apps only as objects that have tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import WRAPPER_ASSIGNMENTS
from typing import Any, Literal, ParamSpec, TypeVar, overload

from localq import errbacks
from localq.context import apps, current_app, current_task, running
from localq.exceptions import InvalidTaskError, NotRegistered
from localq.makers import AsyncTask, BoundMaker, Maker
from localq.options import check_names
from localq.plan import ERRAND
from localq.signatures import signature
from localq.task import Task

P = ParamSpec("P")
R = TypeVar("R")
AnyTask = Task[..., Any]


class TaskRegistry(dict[str, AnyTask]):
    """Tasks by name. A task may have further names, which are found but not listed."""

    NotRegistered = NotRegistered

    def __init__(self, tasks: Mapping[str, AnyTask] | None = None) -> None:
        super().__init__(tasks or {})
        self.aliases: dict[str, AnyTask] = {}

    def __missing__(self, name: str) -> AnyTask:
        try:
            return self.aliases[name]
        except KeyError:
            raise NotRegistered(name) from None

    def register(self, task: Any) -> None:
        """Add a task, or an object made of a task class, under its own name.

        Raises:
            InvalidTaskError: it has none.
        """
        task = task() if isinstance(task, type) else task
        if not task.name:
            raise InvalidTaskError(f"task {task!r} has no name to be registered by: give its class one (name = '...')")
        self[task.name] = task

    def unregister(self, name: Any) -> None:
        """Take out a task, given by its name or itself.

        Raises:
            NotRegistered: it is not in here.
        """
        name = getattr(name, "name", name)
        if name not in self:
            raise NotRegistered(name)
        del self[name]

    def regular(self) -> dict[str, AnyTask]:
        """Return the tasks that are not periodic ones of old."""
        return self.filter_types("regular")

    def periodic(self) -> dict[str, AnyTask]:
        """Return the tasks whose class says `type = "periodic"`."""
        return self.filter_types("periodic")

    def filter_types(self, type: str) -> dict[str, AnyTask]:
        """Return the tasks of this `type`; a task that says nothing is `regular`."""
        return {name: task for name, task in self.items() if getattr(task, "type", "regular") == type}


def check_base(name: str, base: Any) -> None:
    """Refuse a `base` that tasks cannot be made of.

    Raises:
        TypeError: it is no class of tasks.
    """
    if not (isinstance(base, type) and issubclass(base, Task)):
        raise TypeError(f"base={base!r} of task {name!r} is no class of tasks: give a subclass of localq.Task")


# -- From a function to a task ---------------------------------------------------------------------


def class_of(function: Callable[..., Any], name: str, base: type[AnyTask], options: Mapping[str, Any]) -> type[AnyTask]:
    """Make the class of a function's task.

    Args:
        options: its attributes, and `bind`.

    Raises:
        TypeError: an option looks like a misspelt one.
    """
    attributes: dict[str, Any] = {key: value for key, value in options.items() if key != "bind"}
    check_names(name, attributes, lambda key: hasattr(base, key))
    return type(function.__name__, (base,), {
        "name": name, "run": function if options.get("bind", False) else staticmethod(function),
        "__name__": function.__name__, "__wrapped__": staticmethod(function),
        "__doc__": function.__doc__, "__module__": function.__module__,
        "__qualname__": function.__qualname__, "abstract": False, "__evaluated__": staticmethod(_is_made), **attributes,
    })  # fmt: skip


def _is_made() -> bool:
    """Answer what Celery's lazy tasks are asked: this one is made."""
    return True


def is_same(task: AnyTask, function: Callable[..., Any]) -> bool:
    """Whether a task was made of this function, perhaps by an earlier import of its file."""
    known: Any = getattr(task, "__wrapped__", None)
    return known is function or (
        getattr(known, "__code__", None) is not None
        and known.__module__ == function.__module__
        and known.__qualname__ == function.__qualname__
        and known.__code__.co_filename == function.__code__.co_filename
        and known.__code__.co_firstlineno == function.__code__.co_firstlineno
    )


def accumulate(*values: Any) -> list[Any]:
    """Gather the results of a group into one."""
    return list(values[0]) if len(values) == 1 and isinstance(values[0], list) else list(values)


def ping() -> str:
    """Answer `pong`."""
    return "pong"


def backend_cleanup() -> int:
    """Drop every result that has had its time; return how many. Workers do it by themselves, a little at a time."""
    return int(current_task().app.backend.cleanup())


def mapped(task: Mapping[str, Any], it: Iterable[Any]) -> list[Any]:
    """Call a task for each item."""
    return _each(_task_of(task), ((item,) for item in it))


def starmapped(task: Mapping[str, Any], it: Iterable[Any]) -> list[Any]:
    """Call a task for each list of arguments."""
    return _each(_task_of(task), it)


def _task_of(found: Mapping[str, Any]) -> Any:
    """Return the task of a signature in the arguments of a running one, which belong to the same app."""
    frame = running.get()
    return signature(found, app=None if frame is None else frame.task.app).type


def _each(task: AnyTask, items: Iterable[Iterable[Any]]) -> list[Any]:
    if not task.is_async:
        return [task(*item) for item in items]
    from localq.awaiting import run_here  # it imports asyncio, and most processes run no coroutine

    async def one_after_another() -> list[Any]:
        return [await task(*item) for item in items]

    return run_here(one_after_another())


#: Tasks that every app has: (name, function, options).
BUILTINS: tuple[tuple[str, Callable[..., Any], Mapping[str, Any]], ...] = (
    ("celery.accumulate", accumulate, {}), ("celery.backend_cleanup", backend_cleanup, {}),
    ("celery.map", mapped, {}), ("celery.starmap", starmapped, {}), ("celery.ping", ping, {}),
    # Rather twice than never.
    (ERRAND, errbacks.run_errand, {"acks_late": True, "reject_on_worker_lost": True}),
)  # fmt: skip


# -- Shared tasks ------------------------------------------------------------------------------------


@overload
def shared_task(fun: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...


@overload
def shared_task(fun: Callable[P, R], /) -> Task[P, R]: ...


@overload
def shared_task(*, bind: Literal[True], **options: Any) -> BoundMaker: ...


@overload
def shared_task(*, bind: Literal[False] = ..., **options: Any) -> Maker: ...


def shared_task(*args: Any, **options: Any) -> Any:
    """Make a task of every app there is and will be: `@shared_task`, or `@shared_task(max_retries=5)`.

    For libraries, which do not know the app they will be part of.

    Args:
        options: as for `@app.task`.

    Returns:
        What stands for the current app's task of that name.

    Raises:
        TypeError: this is no function, or a shared task already.
    """
    if len(args) > 1 or (args and not callable(args[0])):
        raise TypeError(f"@shared_task takes a function, or options by their names; got {args!r}")
    return share(args[0], options) if args else lambda function: share(function, options)


def share(function: Callable[..., Any], options: Mapping[str, Any]) -> SharedTask:
    """Give a function to every app, those that have their tasks already and those that are still to come."""
    if isinstance(function, SharedTask):
        raise TypeError(f"{function!r} is shared already: remove one of the two @shared_task")
    if not callable(function):
        raise TypeError(f"@shared_task needs a function, got {function!r}")
    if options.get("base") is not None:
        check_base(options.get("name") or function.__name__, options["base"])
    apps.shared.append((function, options))
    for reference in list(apps.all):
        app = reference()
        if app is not None and app.finalized:
            app._task_of(function, options)
    return SharedTask(function, options)


class SharedTask:
    """Stands for the current app's task of this function."""

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
        self.__dict__.update({name: getattr(function, name, None) for name in WRAPPER_ASSIGNMENTS})
        self.__dict__.update(__wrapped__=function, _options=options)

    def _target(self) -> AnyTask:
        app = current_app()
        function: Any = self.__wrapped__
        name = self._options.get("name") or app.gen_task_name(function.__name__, function.__module__)
        return app.tasks[name]  # type: ignore[no-any-return]

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """What it stands for is a task, so it passes for one; it need not look which, nor is there an app at import."""
        return self._options.get("base") or Task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._target(), name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._target()(*args, **kwargs)

    def __reduce__(self) -> Any:
        return self._target().__reduce__()

    def __repr__(self) -> str:
        return f"<@shared_task: {self.__module__}.{self.__qualname__}>"
