"""Tasks: what a decorated function becomes.

A task has two sides: it sends calls (`delay`, `apply_async`), and it runs them (`run`). It is one object per
process and app, shared by all calls. Sending is the app's business, running the executor's; this module
only holds what a task says about itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Coroutine, Iterable, Mapping
from importlib import import_module
from keyword import iskeyword
from types import GenericAlias
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from localq import clock, coroutines, moments
from localq.annotations import annotated, attributes_for
from localq.canvas import Signature, chunks, xmap, xstarmap
from localq.context import Context, Running, current_app, entered, request_of, running
from localq.exceptions import LocalqWarning, MaxRetriesExceededError, OperationalError, Retry
from localq.message import Message, Outcome
from localq.options import NOT_YET, TASK_OPTIONS, check_task
from localq.publisher import Defaults, Publisher
from localq.recovery import mode_of
from localq.result import AsyncResult, EagerResult
from localq.serialization import checksum, encode, exception_data

P = ParamSpec("P")
R = TypeVar("R")


class App(Protocol):
    """What a task needs of its app."""

    conf: Any
    main: str | None
    publisher: Publisher
    backend: Any

    def send_call(
        self, task: Task[..., Any], args: Any, kwargs: Any, options: Mapping[str, Any] | None
    ) -> AsyncResult[Any]: ...

    def apply_call(
        self, task: Task[..., Any], args: Any, kwargs: Any, options: Mapping[str, Any]
    ) -> EagerResult[Any]: ...

    async def aside(self, send: Callable[[], Any]) -> Any: ...

    def AsyncResult(self, id: str, **known: Any) -> AsyncResult[Any]: ...  # noqa: N802

    def retried(
        self, task: Task[..., Any], args: Any, kwargs: Any, options: Mapping[str, Any], when: float
    ) -> Message: ...


class Task(Generic[P, R]):
    """A function that can be called here, later, or elsewhere; an `async def` one runs beside others in an event loop.

    The class attributes are Celery's options; set them in the decorator or in a class of your own.

    Their meanings, values and defaults are declared in `localq.options`. Where an option is None, the setting that its
    declaration names decides.
    """

    abstract: ClassVar[bool] = True
    app: App
    name: str
    typing: bool | None
    max_retries: int | None
    default_retry_delay: float
    throws: tuple[type[BaseException], ...]
    acks_late: bool | None
    reject_on_worker_lost: bool | None
    retry_on_worker_lost: bool | None
    acks_on_failure: bool | None
    acks_on_timeout: bool | None
    acks_on_failure_or_timeout: bool | None
    ignore_result: bool | None
    store_errors_even_if_ignored: bool | None
    store_eager_result: bool | None
    track_started: bool | None
    trail: bool
    send_events: bool
    resultrepr_maxsize: int
    queue: Any
    exchange: Any
    exchange_type: str | None
    routing_key: str | None
    priority: int | None
    delivery_mode: int | str | None
    expires: Any
    rate_limit: str | float | None
    time_limit: float | None
    soft_time_limit: float | None
    serializer: str | None
    compression: str | None

    MaxRetriesExceededError = MaxRetriesExceededError
    OperationalError = OperationalError

    #: Derived when the task is bound to its app: nothing to call before and after `run` ...
    is_plain: bool = False
    #: ... and `__call__` is not overridden, so `run` may be called directly.
    calls_run: bool = True
    #: `run` is an `async def` function, so what calls it awaits it.
    is_async: bool = False
    #: What becomes of a started attempt if its process dies.
    lost_mode: int = 0
    defaults: Defaults = Defaults()
    _check: Callable[..., None] | None = None
    #: Options that this task leaves to the settings, by name; the values are names of settings.
    _asks: ClassVar[dict[str, str]] = {}
    #: Whether the task names its calls for people.
    _has_shadow_name: bool = False

    if not TYPE_CHECKING:
        # As in Celery, whatever stands in the brackets: Generic would count it.
        __class_getitem__ = classmethod(GenericAlias)

    if TYPE_CHECKING:

        def run(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    else:

        def run(self, *args: Any, **kwargs: Any) -> Any:
            """Do the work; the body of the task."""
            raise NotImplementedError(f"task {self.name} has no run()")

    def bind(self, app: Any) -> None:
        """Belong to an app.

        Raises:
            TypeError, ValueError, ImproperlyConfigured: an option has a value that makes no sense.
        """
        self.__dict__["app"] = app
        check = signature_check(self.run)  # what an annotation wraps it with may take anything
        self.annotate()
        said = {name: getattr(self, name, None) for name in TASK_OPTIONS}
        if self.typing is not False:
            self._check = check
        self.settle_options()
        check_task(self.name, said)
        self.on_bound(app)

    def on_bound(self, app: Any) -> None:
        """Called when the task belongs to an app; for subclasses, which may make it a class method as in Celery."""

    @classmethod
    def add_around(cls, attr: str, around: Callable[[Any], Any]) -> None:
        """Replace a method by what `around` makes of it."""
        original = getattr(cls, attr)
        original = getattr(original, "__wrapped__", None) or original
        method = around(original)
        method.__wrapped__ = original
        setattr(cls, attr, method)

    def annotate(self) -> None:
        """Become what the setting `task_annotations` says, in place of what it said before."""
        for name in self._asks:
            self.__dict__.pop(name, None)  # what the settings said, not the task
        kind = getattr(type(self), "_unannotated", type(self))
        said = attributes_for(self.app.conf.task_annotations, self)
        # A class of its own, so that what is said of this task holds for no other, and functions become its methods.
        kind = annotated(kind, {**said, "_unannotated": kind}) if said else kind
        object.__setattr__(self, "__class__", kind)
        self.__dict__["_asks"] = {
            name: option.setting
            for name, option in TASK_OPTIONS.items()
            if option.setting is not None and getattr(self, name, None) is None
        }

    def settle_options(self) -> None:
        """Take from the app's settings what the task leaves to them, and derive what every call needs.

        Called again when a setting or an option changes: a project may configure its app after its tasks exist.
        """
        own, conf, kind = self.__dict__, self.app.conf, type(self)
        own.update({name: conf.get(setting) for name, setting in self._asks.items()})
        where = {"queue": self.queue, "exchange": self.exchange, "routing_key": self.routing_key}
        where = {key: value for key, value in where.items() if value is not None}
        limits = (self.time_limit, self.soft_time_limit)
        own["defaults"] = Defaults(
            where, self.priority, self.serializer, bool(self.ignore_result), self.expires,
            None if limits == (None, None) else limits,
        )  # fmt: skip
        own["is_plain"] = all(
            name not in own and getattr(kind, name) is getattr(Task, name)
            for name in ("before_start", "on_success", "after_return")
        )
        own["calls_run"] = kind.__call__ is Task.__call__
        own["is_async"] = coroutines.is_function(self.run) or coroutines.is_function(kind.__call__)
        coroutines.check(self)
        own["lost_mode"] = mode_of(self)
        own["_has_shadow_name"] = kind.shadow_name is not Task.shadow_name or "shadow_name" in own

    def __setattr__(self, name: str, value: Any) -> None:
        option = TASK_OPTIONS.get(name)
        if option is not None and "app" in self.__dict__:
            option.refuse(value, f"task {self.name!r}")
        self.__dict__[name] = value
        if "app" not in self.__dict__ or (option is None and name not in _HANDLERS):
            return
        self.__dict__["_asks"] = {asked: setting for asked, setting in self._asks.items() if asked != name}
        self.settle_options()

    # -- Calling -------------------------------------------------------------------------------

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run here and now, as a plain function, or a coroutine to be awaited; no message is sent."""
        frame = running.get()
        if frame is not None and frame.task is self and frame.request.__dict__.pop("_is_entering", False):
            # A `__call__` of the user's, called by the executor, has come to its `super()`: this is the same run.
            value: R = self.run(*args, **kwargs)
            return value
        if self.is_async:
            return self._awaited(args, kwargs)  # type: ignore[return-value]  # a coroutine is what it returns
        with entered(self, Context(args=args, kwargs=kwargs)):
            return self.run(*args, **kwargs)

    async def _awaited(self, args: Any, kwargs: Any) -> Any:
        with entered(self, Context(args=args, kwargs=kwargs)):
            return await self.run(*args, **kwargs)  # type: ignore[misc]  # it is async, or nobody would call this

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send a call; a worker runs it. Short for `apply_async(args, kwargs)`."""
        return self.apply_async(args, kwargs)

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send a call without blocking the event loop. Short for `aapply_async(args, kwargs)`."""
        return await self.aapply_async(args, kwargs)

    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> AsyncResult[R]:
        """Send a call with options.

        Args:
            args, kwargs: the call's arguments.
            task_id, link, link_error, shadow, options: see `localq.options`; Celery's names. A name that is no option
                and not nearly one is a property of the message, seen in `request.properties`.

        Returns:
            A handle on the result.

        Raises:
            TypeError: the arguments do not fit the task, an option has a wrong type or looks like a mistake.
            ValueError: an option's value is out of range.
            EncodeError: an argument cannot be written.
            DuplicateTaskId: the id given belongs to another call.
            OperationalError: the store could not take it; nothing was written.
        """
        if args is None:
            args = ()
        elif not isinstance(args, tuple | list):
            raise TypeError(f"task args must be a list or tuple, got {args!r}")
        if kwargs is None:
            kwargs = {}
        elif not isinstance(kwargs, dict | Mapping):
            raise TypeError(f"task kwargs must be a mapping, got {kwargs!r}")
        if self._check is not None:
            self._check(*args, **kwargs)
        if shadow is None and self._has_shadow_name:
            shadow = self.shadow_name(args, kwargs, options)
        if task_id is not None or link is not None or link_error is not None or shadow is not None:
            options.update(task_id=task_id, link=link, link_error=link_error, shadow=shadow)
        return self.app.send_call(self, args, kwargs, options)

    async def aapply_async(
        self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Send a call with options without blocking the event loop, as long as the store may take; see `apply_async`.

        Cancelled, it may have been sent or not.
        """
        result: AsyncResult[R] = await self.app.aside(lambda: self.apply_async(args, kwargs, **options))
        return result

    def shadow_name(self, args: Any, kwargs: Any, options: Mapping[str, Any]) -> str | None:
        """Name a call for people, in logs; for subclasses. None: the task's own name."""
        return None

    def apply(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        link: Any = None,
        link_error: Any = None,
        task_id: str | None = None,
        retries: int | None = None,
        throw: bool | None = None,
        logfile: str | None = None,
        loglevel: int | str | None = None,
        headers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> EagerResult[R]:
        """Run a call here and now, exactly as a worker would, messages and all; return its result.

        Args:
            throw: raise the task's exception; None: as the setting task_eager_propagates says.
            link, link_error, task_id, retries, headers, logfile, loglevel, options: as in `apply_async`.
        """
        given = {
            "link": link, "link_error": link_error, "task_id": task_id, "retries": retries, "throw": throw,
            "logfile": logfile, "loglevel": loglevel, "headers": headers,
        }  # fmt: skip
        options.update({name: value for name, value in given.items() if value is not None})
        return self.app.apply_call(self, tuple(args or ()), dict(kwargs or {}), options)

    def check_arguments(self, args: Any, kwargs: Any) -> None:
        """Raise Python's own TypeError if the task cannot be called like this."""
        if self._check is not None:
            self._check(*args, **kwargs)

    def AsyncResult(self, task_id: str, **known: Any) -> AsyncResult[R]:  # noqa: N802 - Celery's name
        """Return a handle on a call of this task, by its id."""
        return self.app.AsyncResult(task_id, task_name=self.name, **known)

    def s(self, *args: Any, **kwargs: Any) -> Signature:
        """Make a signature: a call to be sent later, perhaps with more arguments."""
        return Signature(self, args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Signature:
        """Make a signature that takes no further arguments."""
        return Signature(self, args, kwargs, immutable=True)

    def signature(self, args: Any = None, kwargs: Any = None, **options: Any) -> Signature:
        """Make a signature with options."""
        immutable = bool(options.pop("immutable", False))
        return Signature(self, args, kwargs, options, immutable=immutable)

    subtask = signature

    def map(self, it: Iterable[Any]) -> xmap:
        """Make a signature of one message that calls the task for each item, one after another."""
        return xmap(self.s(), it)

    def starmap(self, it: Iterable[Any]) -> xstarmap:
        """Make a signature of one message that calls the task for each list of arguments, one after another."""
        return xstarmap(self.s(), it)

    def chunks(self, it: Iterable[Any], n: int) -> chunks:
        """Make a signature of many calls in messages of at most `n` each."""
        return chunks(self.s(), it, n)

    # -- Inside a run --------------------------------------------------------------------------

    @property
    def request(self) -> Context:
        """What is known of the attempt that is running."""
        return request_of(self)

    def push_request(self, *known: Any, **more: Any) -> None:
        """Be in a run with this request, until `pop_request`: for tests of tasks, and what runs them by hand."""
        running.set(Running(self, Context(**dict(*known, **more)), running.get()))

    def pop_request(self) -> None:
        """Leave the run that `push_request` began.

        Raises:
            RuntimeError: the innermost run is not of this task.
        """
        frame = running.get()
        if frame is None or frame.task is not self:
            raise RuntimeError(f"no request of {self.name} was pushed here")
        running.set(frame.outer)

    def update_state(self, task_id: str | None = None, state: str | None = None, meta: Any = None, **more: Any) -> None:
        """Write a state of your own, seen by `AsyncResult.state` and `.info` until the next one.

        Args:
            task_id: another task's id; the running one's if None.
            meta: the state's data: something to encode, or an exception.
            more: further keys for meta, if that is a dict.

        Raises:
            ValueError: there is no task id, or no state.
            EncodeError: the meta cannot be written.
        """
        request = self.request
        id = task_id or request.id
        if id is None or not state:
            raise ValueError(f"update_state needs a task and a state, got id {id!r} and state {state!r}")
        if request.is_eager:
            return  # nobody can look before it has ended
        if more:
            meta = {**(meta or {}), **more}
        value = exception_data(meta) if isinstance(meta, BaseException) else meta
        data, content_type = encode(value, self.app.conf.result_serializer, "the meta")
        claim = request.__dict__.get("_claim") if id == request.id else None
        seq, token = (claim.seq, claim.token) if claim is not None else (0, 0)
        self.app.backend.storage.update(seq, token, Outcome(
            seq, token, id, state, False, result=data, content_type=content_type, checksum=checksum(data),
            worker=request.hostname if claim is not None else None,
        ))  # fmt: skip

    def send_event(self, type_: str, retry: bool = True, retry_policy: Any = None, **fields: Any) -> None:
        """Tell monitors something about the running task."""
        warnings.warn(f"send_event({type_!r}) {NOT_YET}", LocalqWarning, stacklevel=2)

    def signature_from_request(
        self,
        request: Context | None = None,
        args: Any = None,
        kwargs: Any = None,
        queue: str | None = None,
        **extra_options: Any,
    ) -> Signature:
        """Make a signature of the call that is running, under the same id."""
        request = self.request if request is None else request
        options = {name: value for name, value in request.as_execution_options().items() if value is not None}
        delivery = request.delivery_info or {}
        options["queue"] = queue or delivery.get("routing_key") or self.queue
        options["priority"] = delivery.get("priority", self.priority)
        return self.signature(
            request.args if args is None else args, request.kwargs if kwargs is None else kwargs,
            **{**{name: value for name, value in options.items() if value is not None}, **extra_options},
        )  # fmt: skip

    subtask_from_request = signature_from_request

    def retry(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """End this attempt and run the task again, under the same id: `raise self.retry(exc=exc)`.

        The state change and the next attempt are one transaction.

        Args:
            args, kwargs: other arguments for the next attempt.
            exc: why; raised when there are no attempts left.
            countdown, eta: when; `default_retry_delay` seconds from now otherwise.
            max_retries: overrides the task's.

        Raises:
            Retry: to end the attempt.
            MaxRetriesExceededError: there are none left and no `exc` was given.
        """
        request = self.request
        if request.called_directly:
            raise exc if exc is not None else Retry("Task can be retried", None)
        limit = self.max_retries if max_retries is None else max_retries
        if limit is not None and request.retries >= limit:
            self._give_up(request, exc)
        when = self._next_attempt(countdown, eta)
        again = self.app.retried(
            self, request.args if args is None else args, request.kwargs if kwargs is None else kwargs, options, when
        )
        signal = Retry(exc=exc, when=round(when - clock.now(), 3), is_eager=request.is_eager, sig=again)
        if throw:
            raise signal
        return signal

    def _next_attempt(self, countdown: float | None, eta: Any) -> float:
        now = clock.now()
        if eta is not None:
            return self.app.publisher.moment(eta, now)
        if countdown is None:
            return moments.later("default_retry_delay", self.default_retry_delay, now)
        return moments.later("countdown", countdown, now)

    def _give_up(self, request: Context, exc: BaseException | None) -> None:
        if exc is not None:
            raise exc
        raise MaxRetriesExceededError(
            f"Can't retry {request.shadow or self.name}[{request.id}] args:{request.argsrepr} "
            f"kwargs:{request.kwargsrepr}",
            task_args=request.args, task_kwargs=request.kwargs,
        )  # fmt: skip

    # -- Handlers, for subclasses ------------------------------------------------------------------

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Called before the task runs; an exception here is the task's failure."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Called when the task has returned."""

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when the task has failed."""

    def on_retry(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when the task is to be run again."""

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when the task has ended, well or badly."""

    def __repr__(self) -> str:
        return f"<@task: {self.name} of {getattr(getattr(self, 'app', None), 'main', None)} at 0x{id(self):x}>"

    def __reduce__(self) -> Any:
        return _task_named, (self.name, type(self).__module__)


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

#: Methods from which something is derived.
_HANDLERS = frozenset({"before_start", "on_success", "on_failure", "on_retry", "after_return", "shadow_name", "run"})

for _option in TASK_OPTIONS.values():
    setattr(Task, _option.name, _option.default)


def _task_named(name: str, module: str) -> Any:
    import_module(module)
    return current_app().tasks[name]


def signature_check(run: Callable[..., Any]) -> Callable[..., None] | None:
    """Make a function that takes what `run` takes and does nothing; None if nobody can tell.

    Calling it raises Python's own TypeError for arguments that do not fit, at the price of one call
    (`inspect.Signature.bind`: thirty, and the import of inspect).
    """
    function, skip = getattr(run, "__func__", run), int(hasattr(run, "__func__"))
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    scope: dict[str, Any] = {}
    name = _plain_name(run)
    # Only parameter names of a function that exists get into this text.
    exec(f"def {name}({_parameters(function, code, skip)}): pass", scope)  # noqa: S102
    return scope[name]  # type: ignore[no-any-return]


def _parameters(function: Any, code: Any, skip: int) -> str:
    """Write a function's parameters, every default as None, leaving out the first `skip`."""
    names = code.co_varnames
    plain, keyword_only = code.co_argcount, code.co_kwonlyargcount
    optional = plain - len(function.__defaults__ or ())
    parts = [f"{each}=None" if at >= optional else each for at, each in enumerate(names[:plain])]
    if code.co_posonlyargcount:
        parts.insert(code.co_posonlyargcount, "/")
    parts = parts[skip:] if parts[skip : skip + 1] != ["/"] else parts[skip + 1 :]
    has_star, has_stars = bool(code.co_flags & 4), bool(code.co_flags & 8)
    after = plain + keyword_only
    if has_star or keyword_only:
        parts.append(f"*{names[after]}" if has_star else "*")
    defaults = function.__kwdefaults__ or {}
    parts += [f"{each}=None" if each in defaults else each for each in names[plain : plain + keyword_only]]
    if has_stars:
        parts.append(f"**{names[after + has_star]}")
    return ", ".join(parts)


def _plain_name(run: Callable[..., Any]) -> str:
    name = getattr(run, "__name__", "task")
    return name if name.isidentifier() and not iskeyword(name) else "task"
