"""The app: what ties tasks, settings and a store together.

    your code            app                                    the store
    ---------            ---                                    ---------
    add.delay(2, 2) ---> send_call --> publisher.message ----->  storage.put
    result.get()    <--- AsyncResult <------------------------   storage.records
                                                                   ^
    localq worker   ---> worker (supervisor, steward, children): claim -> executor.execute -> settle

An app knows its tasks and where its store is; it opens the store at the first call, never before.
Must not run tasks in any other way than the executor, nor write to the store other than by its verbs.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar, overload

from localq import canvas
from localq.backend import Backend
from localq.config import Settings
from localq.context import apps, note_child, running
from localq.eager import Eager
from localq.exceptions import AlwaysEagerIgnored, DuplicateTaskNameWarning, NotRegistered
from localq.message import Message
from localq.options import OPTIONS, check_names
from localq.publisher import Publisher, expect
from localq.result import AsyncResult, EagerResult, GroupResult
from localq.storage.base import Storage
from localq.task import Task as BaseTask

logger = logging.getLogger("localq.app")

P = ParamSpec("P")
R = TypeVar("R")

_PACKAGE = str(Path(__file__).parent) + os.sep


class TaskRegistry(dict[str, BaseTask[..., Any]]):
    """Tasks by name. A task may have further names, which are found but not listed."""

    def __init__(self) -> None:
        super().__init__()
        self.aliases: dict[str, BaseTask[..., Any]] = {}

    def __missing__(self, name: str) -> BaseTask[..., Any]:
        try:
            return self.aliases[name]
        except KeyError:
            raise NotRegistered(name) from None

    def register(self, task: BaseTask[..., Any]) -> None:
        """Add a task under its own name."""
        self[task.name] = task

    def unregister(self, name: str) -> None:
        """Take a task out."""
        if name not in self:
            raise NotRegistered(name)
        del self[name]


class LocalQ:
    """An application: tasks, settings, one store.

    Args:
        main: the name of tasks of a file that is run as a script (`main.func`).
        store: a path or URL of the store; see README for where it is if you do not say.
        broker, backend: Celery's keywords; a path or URL of ours means the same as `store`, one of
            another system is ignored with a warning.
        include: modules that a worker imports.
        durability: what a power cut may lose: `standard` (the last 50 ms) or `full` (nothing).
        set_as_current: be the app that `current_app()` returns.
        conf: further settings.
    """

    #: The class that tasks of this app are made of; Celery users set or subclass it.
    Task: type[BaseTask[..., Any]] = BaseTask

    def __init__(
        self,
        main: str | None = None,
        *,
        store: str | os.PathLike[str] | None = None,
        broker: str | None = None,
        backend: str | None = None,
        include: Iterable[str] | None = None,
        durability: str | None = None,
        task_cls: type[BaseTask[..., Any]] | None = None,
        set_as_current: bool = True,
        strict_typing: bool = True,
        loader: Any = None,
        amqp: Any = None,
        events: Any = None,
        log: Any = None,
        control: Any = None,
        tasks: Any = None,
        config_source: Any = None,
        fixups: Any = None,
        autofinalize: bool = True,
        namespace: str | None = None,
        changes: Mapping[str, Any] | None = None,
        **conf: Any,
    ) -> None:
        self.main = main
        self.made_by = _caller()
        self.conf = Settings({**(changes or {}), **conf})
        if include:
            self.conf.update(include=tuple(include))
        if durability or os.environ.get("LOCALQ_DURABILITY"):
            self.conf.update(store_durability=durability or os.environ["LOCALQ_DURABILITY"])
        self.strict_typing = strict_typing
        if task_cls is not None:
            self.Task = task_cls
        self.tasks = TaskRegistry()
        self.conf.on_change(self._settle_options)
        self.backend = Backend(self.conf, main, self.made_by, store, (broker, backend))
        self._start_afresh()
        _register_builtins(self)
        if set_as_current:
            self.set_default()
        apps.all.append(weakref.ref(self))
        for name, options, function in apps.shared:
            self._task_of(function, {**options, "name": name})
        self.on_init()

    def __class_getitem__(cls, _: Any) -> type[Self]:
        """Allow `LocalQ[...]` in annotations, as Celery does."""
        return cls

    def on_init(self) -> None:
        """Called at the end of `__init__`; for subclasses."""

    def _start_afresh(self) -> None:
        """Have an identity of this process's own: at the start, and in a forked child."""
        self.backend.start_afresh()
        self.publisher = Publisher(self.conf, self.backend.oid)

    # -- The store -------------------------------------------------------------------------------

    @property
    def storage(self) -> Storage:
        """The store, opened now if it is not open."""
        return self.backend.storage

    @property
    def oid(self) -> str:
        """The name of this process, as messages carry it in `reply_to`."""
        return self.backend.oid

    def close(self) -> None:
        """Let go of the store; the next call opens it again."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_current(self) -> None:
        """Be the current app of this thread or coroutine."""
        apps.current.set(self)

    def set_default(self) -> None:
        """Be the current app wherever no other was chosen."""
        apps.default = self

    # -- Tasks -------------------------------------------------------------------------------------

    @overload
    def task(self, fun: Callable[P, R], /) -> BaseTask[P, R]: ...

    @overload
    def task(
        self, *, bind: Literal[True], **options: Any
    ) -> Callable[[Callable[Concatenate[Any, P], R]], BaseTask[P, R]]: ...

    @overload
    def task(self, *, bind: Literal[False] = ..., **options: Any) -> Callable[[Callable[P, R]], BaseTask[P, R]]: ...

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
        if args:
            return self._task_of(args[0], options)
        return lambda function: self._task_of(function, options)

    def _task_of(self, function: Callable[..., Any], options: Mapping[str, Any]) -> BaseTask[..., Any]:
        options = dict(options)
        name = options.pop("name", None) or self.gen_task_name(function.__name__, function.__module__)
        known = self.tasks.get(name)
        if known is not None:
            if not _is_same(known, function):
                warnings.warn(
                    f"task {name!r} exists already; the first one stays", DuplicateTaskNameWarning, stacklevel=4
                )
            return known
        kind = _class_of(function, name, options.pop("base", None) or self.Task, options)
        task = kind()
        self._register(task)
        self._add_aliases(task, function)
        return task

    def register_task(self, task: Any, **options: Any) -> BaseTask[..., Any]:
        """Register a task class of yours, or an object of one."""
        task = task(**options) if isinstance(task, type) else task
        if not task.name:
            task.name = self.gen_task_name(type(task).__name__, type(task).__module__)
        known = self.tasks.get(task.name)
        if known is not None and known is not task:
            warnings.warn(
                f"task {task.name!r} exists already; the first one stays", DuplicateTaskNameWarning, stacklevel=2
            )
            return known
        self._register(task)
        return task  # type: ignore[no-any-return]

    def _register(self, task: BaseTask[..., Any]) -> None:
        if task.typing is None:
            task.typing = self.strict_typing
        task.bind(self)
        self.tasks.register(task)

    def _settle_options(self) -> None:
        for task in self.tasks.values():
            task.settle_options()

    def _add_aliases(self, task: BaseTask[..., Any], function: Callable[..., Any]) -> None:
        """Let one file be both a script and a worker's module: its tasks answer to both of its names."""
        file = getattr(getattr(function, "__code__", None), "co_filename", None)
        if file is None or file != self.made_by:
            return
        module = Path(file).stem if function.__module__ == "__main__" else function.__module__
        for name in (f"{module}.{function.__name__}", f"{self.main or '__main__'}.{function.__name__}"):
            self.tasks.aliases.setdefault(name, task)

    def gen_task_name(self, name: str, module: str) -> str:
        """Name a task of a function; override it to have other names."""
        if module == "__main__" and self.main:
            module = self.main
        return f"{module}.{name}"

    # -- Sending -----------------------------------------------------------------------------------

    def send_call(
        self, task: BaseTask[..., Any], args: Any, kwargs: Any, options: Mapping[str, Any] | None
    ) -> AsyncResult[Any]:
        """Send a call of a task; what `Task.apply_async` does once the arguments are checked."""
        if self.conf.task_always_eager:
            ran = self.apply_call(task, args, kwargs, options or {})
            if not options or options.get("add_to_parent") is not False:
                note_child(ran)
            return ran
        if options and options.get("link"):
            OPTIONS["link"].refuse(options["link"], "a call")
            return self.send(task.signature(args, kwargs, **options))  # type: ignore[no-any-return]
        message = self.publisher.message(task.name, args, kwargs, task.defaults, options)
        asked = expect(self.backend)
        (message,) = self.publisher.put(self.backend.storage, (message,), options)
        result: AsyncResult[Any] = AsyncResult(
            message.id, self.backend, message.name, None, None, bool(message.ignore_result), True, message.queue
        )
        result._asked = asked
        if running.get() is not None and (not options or options.get("add_to_parent") is not False):
            note_child(result)
        return result

    def _handle(self, message: Message) -> AsyncResult[Any]:
        return AsyncResult(
            message.id, self.backend, message.name, None, None, bool(message.ignore_result), True, message.queue
        )

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> AsyncResult[Any]:
        """Send a call by name; the task need not be registered here."""
        if self.conf.task_always_eager:
            warnings.warn(f"task_always_eager has no effect on send_task({name!r})", AlwaysEagerIgnored, stacklevel=2)
        task = self.tasks.get(name)
        options = {key: value for key, value in options.items() if value is not None}
        defaults = task.defaults if task is not None else BaseTask.defaults
        if options.get("link"):
            return self.send(canvas.Signature(name, args, kwargs, options, app=self))  # type: ignore[no-any-return]
        message = self.publisher.message(name, tuple(args or ()), kwargs or {}, defaults, options)
        (message,) = self.publisher.put(self.backend.storage, (message,), options)
        result = self._handle(message)
        if options.get("add_to_parent") is not False:
            note_child(result)
        return result

    def send(self, signature: canvas.Signature) -> Any:
        """Send a signature: one task, or a whole workflow in one transaction."""
        if self.conf.task_always_eager:
            return self.apply(signature)
        plan = canvas.Plan(signature)
        messages = [self.publisher.message_of(step, self._task_named(step.sig.task)) for step in plan.steps]
        if messages:
            messages = list(self.publisher.put(self.backend.storage, messages, signature.options))
        result = self._result_of(plan.node, {m.id: self._handle(m) for m in messages})
        if messages and signature.options.get("add_to_parent") is not False:
            note_child(result)
        return result

    def _task_named(self, name: str) -> BaseTask[..., Any] | None:
        return self.tasks.get(name) or self.tasks.aliases.get(name)

    def _result_of(self, node: canvas.Node, handles: Mapping[str, Any]) -> Any:
        """Build the caller's view of a workflow, from its first part to its last."""
        path: list[canvas.Node] = []
        at: canvas.Node | None = node
        while at is not None:
            path.append(at)
            at = at.parent
        parent: Any = None
        for part in reversed(path):
            if part.members is None:
                found = handles[part.id]
                found.parent = parent
            else:
                members = [self._result_of(_cut(member, part.parent), handles) for member in part.members]
                found = GroupResult(part.id, members, self.backend, parent)
            parent = found
        return parent

    # -- Running here and now ------------------------------------------------------------------------

    def apply_call(
        self, task: BaseTask[..., Any], args: Any, kwargs: Any, options: Mapping[str, Any]
    ) -> EagerResult[Any]:
        """Run a call here and now; what `Task.apply` does."""
        return Eager(self.conf, self.tasks, self.backend).call(self.publisher, task, args, kwargs, options)

    def apply(self, signature: canvas.Signature) -> Any:
        """Run a signature here and now, a workflow step by step in the order of its plan."""
        plan = canvas.Plan(signature)
        found = self._result_of(plan.node, Eager(self.conf, self.tasks, self.backend).workflow(self.publisher, plan))
        if self.conf.task_eager_propagates:
            found.get()
        return found

    def retried(
        self, task: BaseTask[..., Any], args: Any, kwargs: Any, options: Mapping[str, Any], when: float
    ) -> Message:
        """Build the next attempt of the call that is running: the same id, one more retry."""
        request: Any = task.request
        now: Message = request._claim.message
        return self.publisher.again(now, args, kwargs, task.defaults, options, when)

    # -- Handles and helpers -------------------------------------------------------------------------

    def AsyncResult(self, id: str, **known: Any) -> AsyncResult[Any]:  # noqa: N802 - Celery's name
        """Return a handle on the task with this id."""
        return AsyncResult(id, self.backend, **known)

    def GroupResult(self, id: str, results: Iterable[Any] = (), **known: Any) -> GroupResult:  # noqa: N802
        """Return a handle on a group."""
        return GroupResult(id, results, self.backend, **known)

    def signature(self, *args: Any, **kwargs: Any) -> Any:
        """Make a signature bound to this app."""
        return canvas.signature(*args, **{**kwargs, "app": self})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.main or '__main__'} at 0x{id(self):x}>"


def shared_task(*args: Any, **options: Any) -> Any:
    """Make a task of every app there is and will be; the returned object is the current app's."""

    def share(function: Callable[..., Any]) -> SharedTask:
        name = options.get("name") or f"{function.__module__}.{function.__name__}"
        apps.shared.append((name, options, function))
        for reference in apps.all:
            app = reference()
            if app is not None:
                app._task_of(function, {**options, "name": name})
        return SharedTask(name)

    return share(args[0]) if args else share


class SharedTask:
    """Stands for the current app's task of this name."""

    def __init__(self, name: str) -> None:
        self.__dict__["name"] = name

    def _target(self) -> BaseTask[..., Any]:
        app = apps.current.get() or apps.default
        if app is None:
            raise RuntimeError(f"shared task {self.name!r} needs an app: make one with LocalQ('name')")
        return app.tasks[self.name]  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._target()(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<shared task {self.name}>"


def _caller() -> str | None:
    """Return the file whose code is making an app; None if it is not a file."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    file = frame.f_code.co_filename
    return os.path.abspath(file) if os.path.isfile(file) else None


def _is_same(task: BaseTask[..., Any], function: Callable[..., Any]) -> bool:
    known: Any = getattr(task, "__wrapped__", None)
    return known is function or (
        getattr(known, "__code__", None) is not None
        and known.__module__ == function.__module__
        and known.__qualname__ == function.__qualname__
        and known.__code__.co_filename == function.__code__.co_filename
        and known.__code__.co_firstlineno == function.__code__.co_firstlineno
    )


def _class_of(
    function: Callable[..., Any], name: str, base: type[BaseTask[..., Any]], options: Mapping[str, Any]
) -> type[BaseTask[..., Any]]:
    bound = options.get("bind", False)
    attributes: dict[str, Any] = {key: value for key, value in options.items() if key != "bind"}
    check_names(name, attributes, lambda key: hasattr(base, key))
    return type(function.__name__, (base,), {
        "name": name, "run": function if bound else staticmethod(function), "__wrapped__": function,
        "__doc__": function.__doc__, "__module__": function.__module__, "__qualname__": function.__qualname__,
        "abstract": False, **attributes,
    })  # fmt: skip


def _cut(node: canvas.Node, above: canvas.Node | None) -> canvas.Node:
    """A member's own part of the path: what stands above the whole group is the group's parent, not its."""
    chain: list[canvas.Node] = []
    at: canvas.Node | None = node
    while at is not None and at is not above:
        chain.append(at)
        at = at.parent
    parent: canvas.Node | None = None
    for each in reversed(chain):
        parent = canvas.Node(each.id, parent, each.members, each.ends)
    assert parent is not None
    return parent


def _register_builtins(app: LocalQ) -> None:
    @app.task(name="celery.accumulate")
    def accumulate(*values: Any) -> list[Any]:
        """Gather the results of a group into one."""
        return list(values[0]) if len(values) == 1 and isinstance(values[0], list) else list(values)

    @app.task(name="celery.ping")
    def ping() -> str:
        """Answer `pong`."""
        return "pong"


def _start_children_afresh() -> None:
    for reference in list(apps.all):
        app = reference()
        if app is not None:
            app._start_afresh()


os.register_at_fork(after_in_child=_start_children_afresh)
