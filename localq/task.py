"""Tasks: what a decorated function becomes.

A task has two sides: it sends calls (`delay`, `apply_async`), and it runs them (`run`). It is one object per
process and app, shared by all calls. Sending is the app's business, running the executor's; this module
only holds what a task says about itself.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from types import GenericAlias
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    NoReturn,
    ParamSpec,
    Protocol,
    TypeVar,
)

from localq import clock, coroutines, moments, wrapping
from localq.annotations import annotated, attributes_for
from localq.canvas import Signature, chunks, xmap, xstarmap
from localq.context import Context, Running, current_app, entered, request_of, running
from localq.exceptions import LocalqWarning, MaxRetriesExceededError, OperationalError, Reject, Retry
from localq.message import Message
from localq.options import (
    FIXED_IN_RETRY,
    NOT_YET,
    REQUEST,
    TASK_OPTIONS,
    check_call,
    check_task,
    refuse_of_task,
    warn_of_near_misses,
)
from localq.parameters import arguments, signature_check
from localq.publisher import Defaults, Publisher
from localq.recovery import mode_of
from localq.result import AsyncResult, EagerResult
from localq.resultstore import keep
from localq.retries import reason

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
    throws: Any
    autoretry_for: Any
    dont_autoretry_for: Any
    retry_kwargs: Mapping[str, Any] | None
    retry_backoff: float
    retry_backoff_max: float
    retry_jitter: bool
    override_max_retries: int | None
    pydantic: bool
    pydantic_strict: bool | None
    pydantic_context: Mapping[str, Any] | None
    pydantic_dump_kwargs: Mapping[str, Any] | None
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
    Request: Any

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
    #: (hard, soft) in seconds, if it has any of its own; the message's win, a worker's come last.
    limits: tuple[float | None, float | None] | None = None
    #: Its requests have a class of the user's own, which is told how its attempts go.
    has_request: bool = False
    #: Either: not a plain call for whoever runs it.
    is_watched: bool = False
    defaults: Defaults = Defaults()
    _check: Callable[..., None] | None = None
    #: Writes models among a call's arguments as data, for tasks that have some.
    _dumped: Callable[..., Any] | None = None
    #: A function with the parameters of `run`, whether or not calls are checked.
    _signature: Callable[..., None] | None = None
    #: Options that this task leaves to the settings, by name; the values are names of settings.
    _asks: ClassVar[dict[str, str]] = {}
    #: Whether the task names its calls for people.
    _has_shadow_name: bool = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        warn_of_near_misses(cls, 2)

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
        # What an annotation wraps it with may take anything.
        self._signature = signature_check(self.__dict__.get("_plain_run", self.run))
        self.annotate()
        said = {name: getattr(self, name, None) for name in TASK_OPTIONS}
        if self.typing is not False:
            self._check = self._signature
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
        wrapping.unwrap(self)
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
        own["limits"] = None if limits == (None, None) else limits
        own["has_request"] = self.Request != REQUEST
        own["is_watched"] = own["limits"] is not None or own["has_request"]
        own["defaults"] = Defaults(
            where, self.priority, self.serializer, bool(self.ignore_result), self.expires, own["limits"]
        )
        own["is_plain"] = all(
            name not in own and getattr(kind, name) is getattr(Task, name)
            for name in ("before_start", "on_success", "after_return")
        )
        own["calls_run"] = kind.__call__ is Task.__call__
        own["is_async"] = coroutines.is_function(self.run) or coroutines.is_function(kind.__call__)
        coroutines.check(self)
        own["lost_mode"] = mode_of(self)
        own["_has_shadow_name"] = kind.shadow_name is not Task.shadow_name or "shadow_name" in own
        wrapping.wrap(self)

    def __setattr__(self, name: str, value: Any) -> None:
        option = TASK_OPTIONS.get(name)
        if option is not None and "app" in self.__dict__:
            refuse_of_task(option, value, f"task {self.name!r}")
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
        if self._dumped is not None:
            args, kwargs = self._dumped(args, kwargs)
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
        args, kwargs = tuple(args or ()), dict(kwargs or {})
        if self._dumped is not None:
            args, kwargs = self._dumped(args, kwargs)
        return self.app.apply_call(self, args, kwargs, options)

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

        No state by hand ends a task that was sent. What it returns or raises does, and takes its place, whatever it
        was; only after `raise Ignore()` it stays. In a task that runs eagerly it is kept if its results are (the option
        `store_eager_result`).

        Raises:
            TypeError: the state is no text.
            ValueError: there is no task id, or no state; or the state stands for an exception, and meta does not.
            EncodeError: the meta cannot be written.
        """
        request = self.request
        id = task_id or request.id
        if id is None or not state:
            raise ValueError(f"update_state needs a task and a state, got id {id!r} and state {state!r}")
        backend, meta = self.app.backend, {**(meta or {}), **more} if more else meta
        claim = request.__dict__.get("_claim") if id == request.id else None
        if claim is None:
            backend.store_result(id, meta, state)
            return
        said = backend.said(id, state, meta)
        if not request.is_eager:
            said = said._replace(seq=claim.seq, token=claim.token, worker=request.hostname)
            backend.storage.update(claim.seq, claim.token, said)
        elif self.store_eager_result:
            keep(backend.storage, claim.message, said)

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
        exc: BaseException | type[BaseException] | None = None,
        throw: bool = True,
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """End this attempt and run the task again, under the same id: `raise self.retry(exc=exc)`.

        The state change and the next attempt are one transaction, made when the attempt ends.

        Args:
            args, kwargs: other arguments for the next attempt; of those of this one, what still fits is kept.
            exc: why; raised when there are no attempts left. An exception, or a class of them.
            throw: if False, return instead, to do something else first. The attempt ends in RETRY all the same,
                whatever the task returns or raises then.
            countdown, eta: when; `default_retry_delay` seconds from now otherwise.
            max_retries: overrides the task's, for this attempt.
            options: as in `apply_async`; the next attempt keeps what is not given.

        Raises:
            Retry: to end the attempt.
            MaxRetriesExceededError: there are none left and no `exc` was given.
            Reject: the next attempt cannot be written; the task fails.
            TypeError, ValueError: an option does not exist or has no such value, or would make it another call; a class
                cannot be made an exception without arguments.
        """
        request, why = self.request, reason(exc)
        if request.called_directly:
            _raise(why if isinstance(why, BaseException) else Retry("Task can be retried", None))
        fixed = FIXED_IN_RETRY.intersection(options)
        if fixed:
            raise TypeError(f"retry() takes no {', '.join(sorted(fixed))}: the next attempt is the same call, with its "
                            "id, its callbacks and its place in a workflow; send another with apply_async")  # fmt: skip
        check_call(options)
        again = arguments(self._signature, (request.args, request.kwargs), args, kwargs)
        if max_retries is not None:
            request.update(_max_retries=max_retries)
        limit = self.max_retries if max_retries is None else max_retries
        if limit is not None and request.retries >= limit:
            self._give_up(request, why, again)
        if not eta and countdown is None:
            countdown = self.default_retry_delay
        at = self._next_attempt(countdown, eta)
        try:
            if args is not None or kwargs is not None:
                again = self._dumped(*again) if self._dumped is not None else again
                self.check_arguments(*again)
            message = self.app.retried(self, *again, options, at)
        except Exception as error:
            raise Reject(error, requeue=False) from error
        signal = Retry(exc=why, when=eta or countdown, is_eager=request.is_eager, sig=message)
        if throw:
            raise signal
        request.update(_retry=signal)
        return signal

    def _next_attempt(self, countdown: float | None, eta: Any) -> float:
        now = clock.now()
        return self.app.publisher.moment(eta, now) if eta else moments.later("countdown", countdown, now)

    def _give_up(self, request: Context, exc: Any, again: tuple[Any, Any]) -> NoReturn:
        if isinstance(exc, BaseException):
            _raise(exc)
        # As the request has them: the call may hide something.
        what = f"{self.name}[{request.id}] args:{request.argsrepr} kwargs:{request.kwargsrepr}"
        raise MaxRetriesExceededError(
            f"Can't retry {what}" + (f": {exc}" if exc else ""), task_args=again[0], task_kwargs=again[1]
        )

    # -- Handlers, for subclasses ------------------------------------------------------------------

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Called before the task runs; an exception here is the task's failure."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Called when the task has returned."""

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when the task has failed."""

    def on_retry(self, exc: BaseException | None, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when the task is to be run again; `exc` is what `retry(exc=...)` was given."""

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when the task has ended, well or badly."""

    def __repr__(self) -> str:
        return f"<@task: {self.name} of {getattr(getattr(self, 'app', None), 'main', None)} at 0x{id(self):x}>"

    def __reduce__(self) -> Any:
        return _task_named, (self.name, type(self).__module__)


def _raise(exc: BaseException) -> NoReturn:
    """Raise an exception, as caused by the one that is being handled."""
    current = sys.exception()
    if current is None or current is exc:
        raise exc
    raise exc from current


#: Methods from which something is derived.
_HANDLERS = frozenset({"before_start", "on_success", "on_failure", "on_retry", "after_return", "shadow_name", "run"})

for _option in TASK_OPTIONS.values():
    setattr(Task, _option.name, _option.default)


def _task_named(name: str, module: str) -> Any:
    import_module(module)
    return current_app().tasks[name]
