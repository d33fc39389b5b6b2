"""How an app comes by its tasks: one by one, as they are decorated, and then complete.

    @app.task, register_task     at once
    built-in and shared tasks    when the app is finalized: when somebody first asks for `app.tasks`, or a worker starts
    autodiscover_tasks           then as well

Must not send or run tasks.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Coroutine, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, overload

from localq.annotations import attributes_for
from localq.config import Settings
from localq.context import apps
from localq.exceptions import DuplicateTaskNameWarning, LocalqWarning
from localq.loader import Packages
from localq.makers import AsyncTask, BoundMaker, Maker
from localq.options import check_names
from localq.parts import named
from localq.signals import Signal
from localq.task import Task as BaseTask
from localq.tasks import BUILTINS, TaskRegistry, check_base, class_of, is_same, share

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=BaseTask[..., Any])


class Registrar:
    """The part of an app that makes and keeps tasks; see `localq.app.LocalQ`, which is one."""

    conf: Settings
    loader: Any
    main: str | None
    made_by: str | None
    strict_typing: bool
    autofinalize: bool
    _tasks: TaskRegistry
    _fixups: list[Any]
    #: The class that tasks of this app are made of, or its dotted name; for subclasses.
    task_cls: Any = BaseTask
    #: The tasks by name. Asking for them finalizes the app.
    tasks: TaskRegistry

    @cached_property
    def Task(self) -> type[BaseTask[..., Any]]:  # noqa: N802
        """The class that tasks of this app are made of, which knows its app; set it, or `task_cls`, to have another."""
        kind: type[BaseTask[..., Any]] = named(self.task_cls)
        same = {name: getattr(kind, name) for name in ("__doc__", "__module__", "__qualname__")}
        return type(kind.__name__, (kind,), {"app": self, "abstract": True, **same})

    # -- Becoming complete -------------------------------------------------------------------------

    #: A method in subclasses, as Celery before 4 had it; otherwise a signal.
    on_configure: Any = None

    def _make_hooks(self) -> None:
        self.finalized = self.configured = self._has_told = False
        self._duplicates: set[str] = set()
        if self.on_configure is None:
            self.on_configure = Signal("app.on_configure")
        self.on_after_configure = Signal("app.on_after_configure", ("source",))
        self.on_after_finalize = Signal("app.on_after_finalize")
        self.on_after_fork = Signal("app.on_after_fork")

    def _unlock(self) -> None:
        """Have a lock of this process's own: another thread of the parent may hold the one that was forked."""
        self._finalizing = threading.RLock()

    def finalize(self, auto: bool = False) -> None:
        """Complete the tasks, once; it need not be called.

        In this order: `on_configure` and `on_after_configure` are told, built-in and shared tasks are added, what
        `autodiscover_tasks` looks for is imported, `on_after_finalize` is told.

        Args:
            auto: the app does it by itself, because somebody asks for its tasks.

        Raises:
            RuntimeError: it may not do it by itself.
            Exception: what a module raised that was imported; the next time all is tried again.
        """
        if self.finalized or getattr(self._here, "is_finalizing", False):
            return  # a module that is imported here may look at the tasks there are so far
        if auto and not self.autofinalize:
            raise RuntimeError("Contract breach: app not finalized: it has autofinalize=False, so call finalize()")
        self._here.is_finalizing = True
        try:
            self._tell_configured()
            self._fill()
            # Without our lock: another thread may be importing one of these modules, which looks at the tasks.
            self.loader.discover()
        finally:
            self._here.is_finalizing = False
        # First this, then the rest: what is shared from now on comes by itself.
        self.finalized = True
        self._fill()
        with self._finalizing:
            # A plain attribute from now on: whoever runs tasks looks here for each of them.
            self.tasks = self._tasks
            is_news, self._has_told = not self._has_told, True
        if is_news:
            self.on_after_finalize.send(self)

    def _fill(self) -> None:
        """Add built-in and shared tasks that are not there yet."""
        self.conf.get("task_routes")  # settings are read before the lock is taken: that may import a module
        with self._finalizing:
            for name, function, own in BUILTINS:
                self._task_of(
                    function, {"name": name, "rate_limit": 0, **own}
                )  # no setting limits the steps of workflows
            for function, options in list(apps.shared):
                self._task_of(function, options)

    def _leave(self) -> None:
        """Be finalized no more, so that shared tasks are added when the tasks are asked for again."""
        if self.autofinalize:
            self.finalized = False
            self.__dict__.pop("tasks", None)

    def _tell_configured(self) -> None:
        if self.configured:
            return
        self.configured = True
        if isinstance(self.on_configure, Signal):
            self.on_configure.send(self)
        else:
            self.on_configure()
        self.on_after_configure.send(self, source=self.conf)

    def __getattr__(self, name: str) -> Any:
        if name != "tasks":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        self.finalize(auto=True)
        return self._tasks

    def autodiscover_tasks(
        self, packages: Packages | None = None, related_name: str | None = "tasks", force: bool = False
    ) -> None:
        """Have the task modules of packages imported: `app.autodiscover_tasks(["shop"])` finds `shop.tasks`.

        It is done when a worker starts, or the app is finalized.

        Args:
            packages: their names, or a function that returns them.
            related_name: the modules' name; if empty, the packages themselves are meant.
            force: do it now.

        Raises:
            ModuleNotFoundError: a package does not exist. That it has no such module is no error.
        """
        if packages is None:
            packages = [name for each in self._fixups if hasattr(each, "autodiscover_tasks")
                        for name in each.autodiscover_tasks()]  # fmt: skip
            if not packages:
                warnings.warn(
                    "autodiscover_tasks() finds nothing: name the packages, as in app.autodiscover_tasks(['shop'])",
                    LocalqWarning, stacklevel=2,
                )  # fmt: skip
        if force:
            self.loader.autodiscover_tasks(packages, related_name)
        else:
            self.loader.look_for(packages, related_name)

    @overload
    def task(self, fun: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...

    @overload
    def task(self, fun: Callable[P, R], /) -> BaseTask[P, R]: ...

    @overload
    def task(self, *, bind: Literal[True], **options: Any) -> BoundMaker: ...

    @overload
    def task(self, *, bind: Literal[False] = ..., **options: Any) -> Maker: ...

    def task(self, *args: Any, **options: Any) -> Any:
        """Make a task of a function: `@app.task`, or `@app.task(bind=True, max_retries=5)`.

        Args:
            name: what messages call it; `module.function` if absent.
            bind: pass the task itself as the first argument.
            base: the class it becomes an object of.
            options: attributes of the task; see `localq.task.Task`.

        Raises:
            TypeError: this is no function.
        """
        if len(args) > 1:
            raise TypeError(f"@task takes 0 or 1 positional arguments, {len(args)} were given")
        if args and not callable(args[0]):
            raise TypeError(f"argument 1 to @task() must be a callable, got {args[0]!r}")
        return self._decorated(args[0], options) if args else lambda function: self._decorated(function, options)

    def _decorated(self, function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
        options = dict(options)
        options.pop("lazy", None)  # a task is made at once, and it costs less than a promise of one
        is_shared, change = options.pop("shared", False), options.pop("filter", None)
        task = self._task_of(function, options)
        if is_shared:
            share(function, options)
        return change(task) if change is not None else task

    def _task_of(self, function: Callable[..., Any], options: Mapping[str, Any]) -> BaseTask[..., Any]:
        options = dict(options)
        name = options.pop("name", None) or self.gen_task_name(function.__name__, function.__module__)
        known = self._tasks.get(name)
        if known is not None:
            if not is_same(known, function):
                self._warn_of_duplicate(name, "the first one stays", 5)
            return known
        base = options.pop("base", None) or self.Task
        check_base(name, base)
        task = class_of(function, name, base, options)()
        # A class keeps these to itself.
        task.__dict__["__qualname__"] = getattr(function, "__qualname__", function.__name__)
        task.__dict__["__annotations__"] = getattr(function, "__annotations__", {})  # noqa: RUF063 - this one is set
        self._register(task)
        self._add_aliases(task, function)
        return task

    def register_task(self, task: T | type[T], **options: Any) -> T:
        """Register a task class of yours, or an object of one.

        Args:
            options: attributes to set on it.

        Returns:
            The task, which takes the place of another of its name.
        """
        made: T = task() if isinstance(task, type) else task
        if not made.name:
            made.name = self.gen_task_name(type(made).__name__, type(made).__module__)
        check_names(made.name, options, lambda key: hasattr(made, key))
        for name, value in options.items():
            setattr(made, name, value)
        if self._tasks.get(made.name, made) is not made:
            self._warn_of_duplicate(made.name, "the new one takes its place", 3)
        self._register(made)
        return made

    def _warn_of_duplicate(self, name: str, what_then: str, level: int) -> None:
        if name not in self._duplicates:
            self._duplicates.add(name)
            warnings.warn(f"task {name!r} exists already; {what_then}", DuplicateTaskNameWarning, stacklevel=level)

    def _register(self, task: BaseTask[..., Any]) -> None:
        self._bind(task)
        self._tasks.register(task)

    def _bind(self, task: BaseTask[..., Any]) -> None:
        if task.typing is None:
            task.typing = self.strict_typing
        task.bind(self)

    def _bind_all(self) -> None:
        """Bind the tasks that are there, and have those settle that come, whenever a setting changes."""
        # Not looked up yet: that would read the settings, which may still be named.
        self._annotations: Any = None
        for task in self._tasks.values():
            self._bind(task)
        self.conf.on_change(self._settle_options)

    def _settle_options(self) -> None:
        are_new = self.conf.task_annotations is not self._annotations
        self._annotations = self.conf.task_annotations
        self.router.settle()
        self.publisher.settle()
        if are_new:
            for task in self._tasks.values():
                attributes_for(self._annotations, task)  # an error here leaves every task as it was
        for task in self._tasks.values():
            if are_new:
                task.annotate()
            task.settle_options()

    def _add_aliases(self, task: BaseTask[..., Any], function: Callable[..., Any]) -> None:
        """Let one file be both a script and a worker's module: its tasks answer to both of its names."""
        file = getattr(getattr(function, "__code__", None), "co_filename", None)
        if file is None or file != self.made_by:
            return
        module = Path(file).stem if function.__module__ == "__main__" else function.__module__
        for name in (f"{module}.{function.__name__}", f"{self.main or '__main__'}.{function.__name__}"):
            self._tasks.aliases.setdefault(name, task)

    def gen_task_name(self, name: str, module: str) -> str:
        """Name a task of a function; override it to have other names."""
        if module == "__main__" and self.main:
            module = self.main
        return f"{module}.{name}"
