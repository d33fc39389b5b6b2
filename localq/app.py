"""The app: what ties tasks, settings and a store together.

    your code            app                                    the store
    ---------            ---                                    ---------
    add.delay(2, 2) ---> send_call --> publisher.message ----->  storage.put
    result.get()    <--- AsyncResult <------------------------   storage.records
                                                                   ^
    localq worker   ---> worker (supervisor, steward, children): claim -> executor.execute -> settle

An app knows its tasks and where its store is; it opens the store at the first call, never before. Its tasks are
complete (`finalize`) when somebody first asks for `app.tasks`, or a worker starts: built-in and shared ones are there,
and what is looked for in packages is imported. What the app has besides, it makes at the first use.
Must not run tasks in any other way than the executor, nor write to the store other than by its verbs.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import GenericAlias
from typing import Any, ParamSpec, Self, TypeVar

from localq import canvas, current
from localq.backend import Backend
from localq.config import Settings
from localq.context import apps, current_task, note_child, running
from localq.current import app_or_default
from localq.eager import Eager
from localq.exceptions import AlwaysEagerIgnored, ImproperlyConfigured, LocalqWarning
from localq.groups import GroupResult, Groups, ResultSet
from localq.message import Message, new_id
from localq.options import OPTIONS, check_call
from localq.parts import Parts, named
from localq.plan import Node, Plan
from localq.publisher import Publisher, expect
from localq.registrar import Registrar
from localq.remainder import body_of_chord, rest_of_chain
from localq.result import AsyncResult, EagerResult, result_from_tuple
from localq.routing import Router
from localq.storage.base import Storage
from localq.task import Task as BaseTask
from localq.tasks import SharedTask, TaskRegistry, shared_task

__all__ = ["LocalQ", "SharedTask", "TaskRegistry", "app_or_default", "shared_task"]

logger = logging.getLogger("localq.app")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=BaseTask[..., Any])

_PACKAGE = str(Path(__file__).parent) + os.sep


class LocalQ(Registrar, Parts):
    """An application: tasks, settings, one store.

    Args:
        main: the name of tasks of a file that is run as a script (`main.func`).
        store: a path or URL of the store; see README for where it is if you do not say.
        broker, backend: Celery's keywords; a path or URL of ours means the same as `store`, one of
            another system is ignored with a warning.
        include: modules that a worker imports.
        config_source, namespace: as `config_from_object` takes them.
        changes: settings by name, as `conf`.
        durability: what a power cut may lose: `standard` (the last 50 ms) or `full` (nothing).
        task_cls: the class that tasks are made of, or its dotted name.
        set_as_current: be the app that `current_app()` returns: here from now on, and elsewhere as long as none was
            chosen by `set_default`.
        autofinalize: complete the tasks when they are first asked for; False leaves it to `finalize()`.
        strict_typing: check the arguments of calls where they are made, unless a task says otherwise.
        amqp, control, events, log: classes, or dotted names of classes, of what the app has under these names.
        tasks: tasks to begin with, by name.
        fixups: functions, or dotted names, called with the app at the end.
        loader: Celery's; any but its own two gives a warning, for here is one kind, `app.loader`.
        conf: further settings.
    """

    __class_getitem__: Any = classmethod(GenericAlias)

    def __init__(
        self,
        main: str | None = None,
        *,
        store: str | os.PathLike[str] | None = None,
        broker: str | None = None,
        backend: str | None = None,
        include: Iterable[str] | None = None,
        durability: str | None = None,
        task_cls: Any = None,
        set_as_current: bool = True,
        strict_typing: bool = True,
        loader: Any = None,
        amqp: Any = None,
        events: Any = None,
        log: Any = None,
        control: Any = None,
        tasks: Mapping[str, BaseTask[..., Any]] | None = None,
        config_source: Any = None,
        fixups: Iterable[Any] | None = None,
        autofinalize: bool = True,
        namespace: str | None = None,
        changes: Mapping[str, Any] | None = None,
        **conf: Any,
    ) -> None:
        self.main = main
        self.made_by, made_in = _caller()
        self.conf = Settings(changes, namespace or "", os.path.dirname(self.made_by) if self.made_by else None)
        modules = include if include is None or isinstance(include, str) else tuple(include)
        given = {"broker_url": broker, "result_backend": backend, "include": modules, "store_durability": durability}
        self.conf.update({name: value for name, value in given.items() if value is not None}, **conf)
        self.strict_typing, self.autofinalize = strict_typing, autofinalize
        classes = {"task": task_cls, "amqp": amqp, "events": events, "log": log, "control": control}
        self.__dict__.update({f"{name}_cls": kind for name, kind in classes.items() if kind is not None})
        if loader not in (None, "app", "default"):
            warnings.warn(
                f"loader={loader!r} has no effect: name settings by config_from_object, and modules by include=",
                LocalqWarning, stacklevel=2,
            )  # fmt: skip
        self._make_hooks()
        self._tasks = tasks if isinstance(tasks, TaskRegistry) else TaskRegistry(tasks)
        #: Finds the queues of calls; `router.queues` are the app's queues.
        self.router = Router(self.conf)
        self._bind_all()
        self.backend = Backend(self.conf, main, self.made_by, store, made_in)
        self.backend.app = self
        self._start_afresh()
        if set_as_current:
            self._become_current()
        apps.all.append(weakref.ref(self, apps.all.remove))
        self.fixups = tuple(fixups or ())
        self._fixups = [named(each)(self) for each in self.fixups]
        self.conf.read_later(config_source)
        self.on_init()

    def on_init(self) -> None:
        """Called at the end of `__init__`; for subclasses."""

    def _start_afresh(self) -> None:
        """Have an identity of this process's own: at the start, and in a forked child."""
        self.backend.start_afresh()
        self.publisher = Publisher(self.conf, self.backend.oid, self.router, self._tasks)
        self._here = threading.local()
        self._unlock()

    # -- Settings ----------------------------------------------------------------------------------

    def config_from_object(
        self, obj: Any, silent: bool = False, force: bool = False, namespace: str | None = None
    ) -> Settings | None:
        """Take settings from an object, a class, a mapping, a module or its name, `module:attribute`, a TOML file.

        Args:
            obj: where they are; the path of a file is relative to the file that made the app.
            silent: it need not exist.
            force: read it now; otherwise when settings are first looked at.
            namespace: the beginning of the names that are settings (`CELERY`), others are somebody else's.

        Returns:
            The settings if they were read now, else None.
        """
        return self.conf.read_from(obj, silent, force, namespace)

    def config_from_envvar(self, variable_name: str, silent: bool = False, force: bool = False) -> Any:
        """Take settings from the module or file that a variable names; False if it names none and may be silent."""
        name = os.environ.get(variable_name)
        if name:
            return self.conf.read_from(name, silent, force)
        if silent:
            return False
        raise ImproperlyConfigured(
            f"variable {variable_name} is not set: set it to a module with settings, as {variable_name}=proj.settings"
        )

    def config_from_cmdline(self, argv: Iterable[str], namespace: str = "") -> None:
        """Set what words like `worker.concurrency=4` say."""
        self.conf.read_words(argv, namespace)

    def add_defaults(self, fun: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> None:
        """Give settings for what the program leaves open, or a function that returns some when they are needed."""
        self.conf.add_defaults(fun)

    # -- The store -------------------------------------------------------------------------------

    @property
    def storage(self) -> Storage:
        """The store, opened now if it is not open."""
        return self.backend.storage

    @property
    def oid(self) -> str:
        """The name of this process, as messages carry it in `reply_to`."""
        return self.backend.oid

    @property
    def thread_oid(self) -> str:
        """The name of this thread of this process."""
        if not hasattr(self._here, "oid"):
            self._here.oid = new_id()
        return str(self._here.oid)

    def close(self) -> None:
        """Let go of the store, and be told of no more shared tasks; whoever uses the app again has both again."""
        self.backend.close()
        self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_current(self) -> None:
        """Be the current app of this thread or coroutine."""
        apps.current.set(self)

    def set_default(self) -> None:
        """Be the current app of every thread and coroutine that has chosen no other."""
        apps.default, apps.is_chosen = self, True

    def _become_current(self) -> None:
        self.set_current()
        if not apps.is_chosen:
            apps.default = self

    @property
    def current_task(self) -> Any:
        """The task that is running here, or None."""
        return current_task()

    @property
    def current_worker_task(self) -> Any:
        """The task that a worker runs here, whatever tasks it calls as functions; or None."""
        return current.current_worker_task()

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
        message = self.publisher.put(self.backend.storage, (message,), options)[0]
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

    def select_queues(self, queues: Any = None) -> None:
        """Have workers of this app serve only these queues, unless they are told others."""
        self.router.queues.select(queues)

    def send_task(
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: Any = None,
        task_id: str | None = None,
        result_cls: type[AsyncResult[Any]] | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Send a call by name; the task need not be registered here. If it is, its options count where none is given.

        Args:
            name: the task's name.
            args, kwargs: the call's arguments.
            countdown, eta, task_id, options: as for `Task.apply_async`.
            result_cls: the class of the handle.

        Raises:
            TypeError: the name is none, an option does not exist, or the arguments are no list and mapping.
            OperationalError: the store could not take it; nothing was written.
        """
        if not isinstance(name, str) or not name:
            hint = "; to send a task itself, call its apply_async()" if isinstance(name, BaseTask) else ""
            raise TypeError(f"send_task takes the name of a task, got {name!r}{hint}")
        if self.conf.task_always_eager:
            warnings.warn(f"task_always_eager has no effect on send_task({name!r})", AlwaysEagerIgnored, stacklevel=2)
        if not isinstance(args or (), tuple | list) or not isinstance(kwargs or {}, Mapping):
            raise TypeError(f"send_task({name!r}) takes a list or tuple and a mapping, got {args!r} and {kwargs!r}")
        given = {**options, "countdown": countdown, "eta": eta, "task_id": task_id}
        given = {key: value for key, value in given.items() if value is not None}
        if given.get("link"):
            check_call(given)
            return self._sent(canvas.Signature(name, args, kwargs, given, app=self))  # type: ignore[no-any-return]
        task = self._task_named(name)
        defaults = task.defaults if task is not None else BaseTask.defaults
        message = self.publisher.message(name, tuple(args or ()), kwargs or {}, defaults, given)
        message = self.publisher.put(self.backend.storage, (message,), given)[0]
        found = self._handle(message)
        if options.get("add_to_parent") is not False:
            note_child(found)
        return found if result_cls is None else result_cls(found.id, self.backend, found.name, queue=found.queue)

    def send(self, signature: canvas.Signature) -> Any:
        """Send a signature: one task, or a whole workflow in one transaction."""
        return self.apply(signature) if self.conf.task_always_eager else self._sent(signature)

    async def aside(self, send: Callable[[], Any]) -> Any:
        """Call what sends in a thread, for a coroutine: what `adelay` and `aapply_async` do.

        Another process may be writing, or the disk be full and the policy say to try again: no event loop waits that
        long. Signals of sending are told in that thread. Cancelled, the call may have been sent or not.
        """
        from localq.awaiting import sent  # it imports asyncio, and most processes run no coroutine

        return await sent(self.backend, send)

    def _sent(self, signature: canvas.Signature) -> Any:
        plan = Plan(signature)
        messages = self.publisher.messages_of(plan.steps, self._task_named)
        if messages:
            messages = list(self.publisher.put(self.backend.storage, messages, signature.options))
        result = self._result_of(plan.node, {m.id: self._handle(m) for m in messages})
        if messages and signature.options.get("add_to_parent") is not False:
            note_child(result)
        return result

    def promised(self, signature: canvas.Signature) -> Any:
        """Return the result that a signature will have which has its ids; what `Signature.freeze` returns."""
        plan = Plan(signature)
        return self._result_of(plan.node, {step.id: self.AsyncResult(step.id) for step in plan.steps})

    def _task_named(self, name: str) -> BaseTask[..., Any] | None:
        tasks = self.tasks
        return tasks.get(name) or tasks.aliases.get(name)

    def _result_of(self, node: Node, handles: Mapping[str, Any], above: Node | None = None) -> Any:
        """Build the caller's view of a workflow, from its first part, or from below `above`, to its last."""
        path: list[Node] = []
        at: Node | None = node
        while at is not None and at is not above:
            path.append(at)
            at = at.parent
        parent: Any = None
        for part in reversed(path):
            if part.members is None:
                found = handles[part.id]
                found.parent = parent
            else:
                # What stands above the whole group is the group's parent, not its members'.
                members = [self._result_of(member, handles, part.parent) for member in part.members]
                found = GroupResult(part.id, members, parent, self.backend)
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
        plan = Plan(signature)
        found = self._result_of(plan.node, Eager(self.conf, self.tasks, self.backend).workflow(self.publisher, plan))
        if self.conf.task_eager_propagates:
            found.get(disable_sync_subtasks=False)
        return found

    def retried(
        self, task: BaseTask[..., Any], args: Any, kwargs: Any, options: Mapping[str, Any], when: float
    ) -> Message:
        """Build the next attempt of the call that is running: the same id, one more retry."""
        request: Any = task.request
        now: Message = request._claim.message
        return self.publisher.again(now, args, kwargs, task.defaults, options, when)

    def workflow_of(self, message: Message, name: str) -> Any:
        """Return what is still to come behind a message: `chain`, its further steps, or `chord`, the body."""
        return (rest_of_chain if name == "chain" else body_of_chord)(self.backend.storage, message)

    def result_of(self, found: Any) -> Any:
        """Make a handle of what `as_tuple` of one returned, perhaps by way of JSON."""
        return result_from_tuple(found, self)

    # -- Handles and helpers -------------------------------------------------------------------------

    def AsyncResult(self, id: str, **known: Any) -> AsyncResult[Any]:  # noqa: N802 - Celery's name
        """Return a handle on the task with this id."""
        return AsyncResult(id, self.backend, **known)

    @property
    def GroupResult(self) -> Groups:  # noqa: N802
        """Makes handles on groups, `app.GroupResult(id, results)`; finds saved ones, `app.GroupResult.restore(id)`."""
        return Groups(self)

    def ResultSet(self, results: Iterable[Any] = ()) -> ResultSet:  # noqa: N802
        """Return a handle on results that were not sent as one group."""
        return ResultSet(results, backend=self.backend)

    def signature(self, *args: Any, **kwargs: Any) -> Any:
        """Make a signature bound to this app."""
        return canvas.signature(*args, **{**kwargs, "app": self})

    # -- Being a value -------------------------------------------------------------------------------

    def __reduce_keys__(self) -> dict[str, Any]:
        """Return the keywords that make this app anew in another process, where it is not the current one."""
        named = ("task_cls", "amqp_cls", "control_cls", "events_cls", "log_cls")
        kinds = {name.removesuffix("_cls"): self.__dict__[name] for name in named if name in self.__dict__}
        kinds.update({"task_cls": kinds.pop("task")} if "task" in kinds else {})
        return {
            "main": self.main, "store": self.backend.url, "changes": self.conf.without_defaults(),
            "strict_typing": self.strict_typing, "autofinalize": self.autofinalize, "fixups": self.fixups, **kinds,
        }  # fmt: skip

    def __reduce__(self) -> Any:
        return _again, (type(self), self.__reduce_keys__())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.main or '__main__'} at 0x{id(self):x}>"


def _again(kind: type[LocalQ], keywords: dict[str, Any]) -> LocalQ:
    return kind(set_as_current=False, **keywords)


def _caller() -> tuple[str | None, str | None]:
    """Return the file whose code is making an app, None if it is not a file; and its module's name if it has one."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    file = frame.f_code.co_filename
    spec, name = frame.f_globals.get("__spec__"), frame.f_globals.get("__name__")
    if name == "__main__":
        name = spec.name if spec is not None else None  # python -m shop.app; a script has none
    return (os.path.abspath(file), name) if os.path.isfile(file) else (None, None)


def _start_children_afresh() -> None:
    for reference in list(apps.all):
        app = reference()
        if app is not None:
            app._start_afresh()
            app.on_after_fork.send(app)


os.register_at_fork(after_in_child=_start_children_afresh)
