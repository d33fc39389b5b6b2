"""Tasks: what a decorated function becomes.

A task has two sides: it sends calls (`delay`, `apply_async`), and it runs them (`run`). It is one object per
process and app, shared by all calls. Sending is the app's business, running the executor's; this module
only holds what a task says about itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from keyword import iskeyword
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, Protocol, TypeVar

from localq import clock, moments, rates
from localq.annotations import annotated, attributes_for
from localq.canvas import Signature, chunks, xmap, xstarmap
from localq.context import Context, current_app, entered, request_of
from localq.exceptions import MaxRetriesExceededError, OperationalError, Retry
from localq.message import Message
from localq.publisher import Defaults, Publisher
from localq.recovery import mode_of
from localq.result import AsyncResult, EagerResult

P = ParamSpec("P")
R = TypeVar("R")


class App(Protocol):
    """What a task needs of its app."""

    conf: Any
    main: str | None
    publisher: Publisher

    def send_call(
        self, task: Task[..., Any], args: Any, kwargs: Any, options: Mapping[str, Any] | None
    ) -> AsyncResult[Any]: ...

    def apply_call(
        self, task: Task[..., Any], args: Any, kwargs: Any, options: Mapping[str, Any]
    ) -> EagerResult[Any]: ...

    def AsyncResult(self, id: str, **known: Any) -> AsyncResult[Any]: ...  # noqa: N802

    def retried(
        self, task: Task[..., Any], args: Any, kwargs: Any, options: Mapping[str, Any], when: float
    ) -> Message: ...


class Task(Generic[P, R]):
    """A function that can be called here, later, or elsewhere.

    The class attributes are Celery's options; set them in the decorator or in a class of your own.

    Attributes:
        name: what messages call it.
        typing: check the arguments where `delay` is called.
        max_retries: attempts after the first; None for ever.
        default_retry_delay: seconds before a retry that says nothing else.
        ignore_result: keep no result. None: the setting task_ignore_result.
        acks_late: the message may be run again if this worker dies. None: task_acks_late.
        reject_on_worker_lost: ... also if only the child process dies.
        retry_on_worker_lost: if its process dies it is retried, by max_retries and default_retry_delay, whatever
            the two options above say. None: task_retry_on_worker_lost.
        acks_on_failure, acks_on_timeout: accepted; in Celery, False has the broker reject what failed, which then
            dead-letters it. Here every failed task is kept with its arguments, and is retried by hand.
        track_started: write the state STARTED. None: task_track_started.
        throws: exceptions that are no surprise; logged without a traceback.
        rate_limit: how often it may start, in all workers of the store together: "10/s", "10/m", "10/h", or a number a
            second. None: the setting task_default_rate_limit; 0 or "": as often as it likes.
        queue, exchange, routing_key, priority, serializer, expires: defaults of every call.
    """

    abstract: ClassVar[bool] = True
    name: str = ""
    app: App
    typing: bool | None = None
    max_retries: int | None = 3
    default_retry_delay: float = 180
    ignore_result: bool | None = None
    store_errors_even_if_ignored: bool | None = None
    acks_late: bool | None = None
    reject_on_worker_lost: bool | None = None
    retry_on_worker_lost: bool | None = None
    acks_on_failure: bool | None = None
    acks_on_timeout: bool | None = None
    track_started: bool | None = None
    throws: tuple[type[BaseException], ...] = ()
    queue: Any = None
    exchange: Any = None
    routing_key: str | None = None
    priority: int | None = None
    serializer: str | None = None
    expires: Any = None
    trail: bool = True
    rate_limit: Any = None

    MaxRetriesExceededError = MaxRetriesExceededError
    OperationalError = OperationalError

    #: Derived when the task is bound to its app: nothing to call before and after `run` ...
    is_plain: bool = False
    #: ... and `__call__` is not overridden, so `run` may be called directly.
    calls_run: bool = True
    #: What becomes of a started attempt if its process dies.
    lost_mode: int = 0
    defaults: Defaults = Defaults()
    _check: Callable[..., None] | None = None
    #: Options that this task leaves to the settings.
    _asks: tuple[str, ...] = ()

    if TYPE_CHECKING:

        def run(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    else:

        def run(self, *args: Any, **kwargs: Any) -> Any:
            """Do the work; the body of the task."""
            raise NotImplementedError(f"task {self.name} has no run()")

    def bind(self, app: Any) -> None:
        """Belong to an app."""
        self.__dict__["app"] = app
        check = signature_check(self.run)  # what an annotation wraps it with may take anything
        self.annotate()
        rates.parse(self.rate_limit)  # a mistake is the definition's, not the worker's
        if self.typing is not False:
            self._check = check
        self.settle_options()

    def annotate(self) -> None:
        """Become what the setting `task_annotations` says, in place of what it said before."""
        for name in self._asks:
            self.__dict__.pop(name, None)  # what the settings said, not the task
        kind = getattr(type(self), "_unannotated", type(self))
        said = attributes_for(self.app.conf.task_annotations, self)
        # A class of its own, so that what is said of this task holds for no other, and functions become its methods.
        kind = annotated(kind, {**said, "_unannotated": kind}) if said else kind
        object.__setattr__(self, "__class__", kind)
        self._asks = tuple(name for name in _ASKED if getattr(self, name) is None)

    def settle_options(self) -> None:
        """Take from the app's settings what the task leaves to them, and derive what every call needs.

        Called again when a setting or an option changes: a project may configure its app after its tasks exist.
        """
        own, conf, kind = self.__dict__, self.app.conf, type(self)
        own.update({name: conf.get(f"task_{name}") for name in self._asks})
        where = {"queue": self.queue, "exchange": self.exchange, "routing_key": self.routing_key}
        where = {key: value for key, value in where.items() if value is not None}
        own["defaults"] = Defaults(where, self.priority, self.serializer, bool(self.ignore_result), self.expires)
        own["is_plain"] = all(
            getattr(kind, name) is getattr(Task, name) for name in ("before_start", "on_success", "after_return")
        )
        own["calls_run"] = kind.__call__ is Task.__call__
        own["lost_mode"] = mode_of(self)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value
        if name in _OPTIONS and "app" in self.__dict__:
            self._asks = tuple(asked for asked in self._asks if asked != name)
            self.settle_options()

    # -- Calling -------------------------------------------------------------------------------

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run here and now, as a plain function; no message is sent."""
        with entered(self, Context(args=args, kwargs=kwargs)):
            return self.run(*args, **kwargs)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send a call; a worker runs it. Short for `apply_async(args, kwargs)`."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Send a call with options.

        Args:
            args, kwargs: the call's arguments.
            options: see `localq.publisher.CALL_OPTIONS`; Celery's names.

        Returns:
            A handle on the result.

        Raises:
            TypeError: the arguments do not fit the task, or an option does not exist.
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
        return self.app.send_call(self, args, kwargs, options)

    def apply(
        self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> EagerResult[R]:
        """Run a call here and now, exactly as a worker would, messages and all; return its result."""
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
            f"Can't retry {self.name}[{request.id}] args:{request.args!r} kwargs:{request.kwargs!r}",
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


#: Options that are the app's to decide where a task says None ...
_ASKED = (
    "ignore_result", "store_errors_even_if_ignored", "acks_late", "reject_on_worker_lost", "retry_on_worker_lost",
    "track_started",
)  # fmt: skip
#: ... and all from which something is derived.
_OPTIONS = frozenset({
    *_ASKED, "queue", "exchange", "routing_key", "priority", "serializer", "expires", "max_retries",
    "default_retry_delay",
})  # fmt: skip


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
