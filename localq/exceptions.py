"""Every exception of localq, in one tree.

Celery's names keep Celery's meaning, so that `except` clauses carry over. Three branches matter:
what ends an attempt on purpose (`TaskPredicate`), what a task or a result can end in (`TaskError`),
and what the store can answer (`StoreError`, all of them `OperationalError` to a Celery user).
Knows nothing of stores, tasks or apps: it only names what can go wrong.
"""

from __future__ import annotations

from typing import Any, NoReturn


class LocalqError(Exception):
    """Root of all errors that localq raises."""


#: Celery's name for the root, so that `except CeleryError` carries over.
CeleryError = LocalqError


class LocalqWarning(UserWarning):
    """Root of all warnings that localq gives."""


CeleryWarning = LocalqWarning


class AlwaysEagerIgnored(LocalqWarning):
    """`send_task` sends although `task_always_eager` is set: it has no function to run here."""


class DuplicateTaskNameWarning(LocalqWarning):
    """A second task was given a name that is taken; the first one stays."""


class DuplicateNodenameWarning(LocalqWarning):
    """Celery's name for two workers of one name; here the second does not start. For `except` and filters only."""


class FixupWarning(LocalqWarning):
    """A part of another framework cannot be used as it is set up."""


class NotConfigured(LocalqWarning):
    """Celery's name for a program without settings, which is in order here. For `except` and filters only."""


class SecurityWarning(LocalqWarning):
    """Something is allowed that may be dangerous."""


class CPendingDeprecationWarning(PendingDeprecationWarning):
    """Something will be deprecated; Celery's name."""


class CDeprecationWarning(DeprecationWarning):
    """Something will go away; Celery's name."""


class ImproperlyConfigured(LocalqError):
    """A setting, an app or a store place cannot be used as given."""


class ConfigNotFound(ImproperlyConfigured, ImportError):
    """A module, attribute or file with settings does not exist; an ImportError, as it is in Celery."""


class SecurityError(LocalqError):
    """Something in the store asked for what it must not get."""


# -- What ends an attempt on purpose -------------------------------------------------------------


class TaskPredicate(LocalqError):
    """Raised in a task to say how its attempt ends."""


class Ignore(TaskPredicate):
    """The attempt ends without any state being written."""


class Reject(TaskPredicate):
    """The message is refused, and put back when `requeue` is true and the task acknowledges late."""

    def __init__(self, reason: object = None, requeue: bool = False) -> None:
        self.reason = reason
        self.requeue = requeue
        super().__init__(reason, requeue)

    def __repr__(self) -> str:
        return f"reject requeue={self.requeue}: {self.reason}"


class Retry(TaskPredicate):
    """The attempt ends and the task runs again.

    `Task.retry` makes them; one that a program makes itself carries no next attempt, and the task fails with it.

    Args:
        message: words for the log.
        exc: the exception behind it, kept as the RETRY state's result; or words.
        when: seconds from now, or the datetime of the next attempt.
        sig: the next attempt.
    """

    def __init__(
        self,
        message: str | None = None,
        exc: BaseException | str | None = None,
        when: Any = None,
        is_eager: bool = False,
        sig: Any = None,
    ) -> None:
        self.message = message
        self.exc = None if isinstance(exc, str) else exc
        #: The reason in words.
        self.excs = exc if isinstance(exc, str) else _words(exc)
        self.when = when
        self.is_eager = is_eager
        self.sig = sig
        super().__init__(message, exc, when)

    def humanize(self) -> str:
        """Say when the next attempt is due: `in 5s`, or `at <datetime>`."""
        if isinstance(self.when, int | float):
            return f"in {self.when}s"
        return f"at {self.when}"

    def __str__(self) -> str:
        if self.message:
            return self.message
        if self.excs:
            return f"Retry {self.humanize()}: {self.excs}"
        return f"Retry {self.humanize()}"

    def __reduce__(self) -> Any:
        return type(self), (self.message, self.exc or self.excs, self.when)


#: Celery's old name.
RetryTaskError = Retry


def _words(exc: BaseException | None) -> str | None:
    try:
        return None if exc is None else repr(exc)
    except Exception:
        return f"<{type(exc).__name__} without words>"


# -- What a task or a result ends in -------------------------------------------------------------


class TaskError(LocalqError):
    """Something is wrong with a task or its result."""


class NotRegistered(KeyError, TaskError):
    """No task of this name is registered in this process."""

    def __repr__(self) -> str:
        return f"{self.args[0]!r} is not registered"

    def __str__(self) -> str:
        return repr(self)


class AlreadyRegistered(TaskError):
    """A name is taken by another object."""


class QueueNotFound(KeyError, TaskError):
    """A queue is not among `task_queues`, and `task_create_missing_queues` is off."""

    def __str__(self) -> str:
        return str(self.args[0])  # not in quotes, as a KeyError's


class TimeoutError(TaskError):
    """The time given to wait for a result is over; the task itself goes on."""


class IncompleteStream(TaskError):
    """What came of a task is not all known yet, because one of its children has not ended."""


class MaxRetriesExceededError(TaskError):
    """The task has used up its `max_retries`."""

    def __init__(self, *args: object, **kwargs: Any) -> None:
        self.task_args: Any = kwargs.pop("task_args", [])
        self.task_kwargs: Any = kwargs.pop("task_kwargs", {})
        super().__init__(*args)


class TaskRevokedError(TaskError):
    """The task was revoked, or was not started before it expired."""


class InvalidTaskError(TaskError):
    """A message cannot be understood as a task."""


class ChordError(TaskError):
    """A header task failed, so the body of its chord does not run."""


class DuplicateTaskId(TaskError):
    """This `task_id` is in use by a message with another payload."""


class RetryRefused(TaskError):
    """A task cannot be run again by hand: it has not ended, has not failed, or is not known."""


class UnknownTask(TaskError, LookupError):
    """The store knows no task with this id, and `result_unknown_raises` asks to be told at once."""


class WorkerLostError(LocalqError):
    """The process that ran the task ended before the task did."""


class SoftTimeLimitExceeded(LocalqError):
    """The task has used up its soft time limit; raised in it, where it may clean up or go on."""

    def __str__(self) -> str:
        return f"SoftTimeLimitExceeded{self.args}"


class TimeLimitExceeded(LocalqError):
    """The task has used up its hard time limit and was stopped."""

    def __str__(self) -> str:
        return f"TimeLimitExceeded{self.args}"


class Terminated(LocalqError):
    """The process that ran the task was ended because somebody asked for it."""


# -- What Celery's result backends raise; here the store's own errors say what went wrong -----------


class BackendError(LocalqError):
    """Root of what Celery's result backends raise."""


class BackendGetMetaError(BackendError):
    """A task's state could not be read."""

    def __init__(self, *args: object, **kwargs: Any) -> None:
        self.task_id: str = kwargs.pop("task_id", "")
        super().__init__(*args)

    def __repr__(self) -> str:
        return f"{super().__repr__()} task_id:{self.task_id}"


class BackendStoreError(BackendError):
    """A task's state could not be written."""

    def __init__(self, *args: object, **kwargs: Any) -> None:
        self.state: str = kwargs.pop("state", "")
        self.task_id: str = kwargs.pop("task_id", "")
        super().__init__(*args)

    def __repr__(self) -> str:
        return f"{super().__repr__()} state:{self.state} task_id:{self.task_id}"


# -- What cannot be written or read as data ------------------------------------------------------


class EncodeError(LocalqError):
    """A value cannot be written by the serializer in use."""


class DecodeError(LocalqError):
    """A payload cannot be read."""


class ContentDisallowed(DecodeError):
    """A payload's content type is not accepted here."""


class PayloadCorrupt(DecodeError):
    """A payload does not have the checksum it was written with."""


class SerializerNotInstalled(LocalqError):
    """No serializer of this name is known, or its package is not installed."""


# -- What the store answers ----------------------------------------------------------------------


class OperationalError(LocalqError):
    """The store could not do what was asked. Celery users know the name from kombu."""


class StoreError(OperationalError):
    """Root of the store's own errors; each names the store and the way out."""


class StoreBusy(StoreError):
    """Another process has held the store's gate for longer than the caller would wait."""


class StoreFull(StoreError):
    """The disk is full: nothing was written."""


class StoreReadOnly(StoreError):
    """The store is on a file system, or behind permissions, that forbid writing."""


class StoreUntrusted(StoreError):
    """The directory or one of its files is not what a store of this user looks like."""


class StoreVersionError(StoreError):
    """The store was written by a newer localq."""


class StoreReplaced(StoreError):
    """The store's files were removed or replaced while in use: nothing was written."""


class StoreCorrupt(StoreError):
    """The database is damaged; it is left as it is."""


class OutcomeUnknown(StoreError):
    """The disk failed during a commit: it may have happened or not. Sending the same id again is safe."""


class StaleClaim(StoreError):
    """The claim was given to somebody else meanwhile, so its outcome is refused."""


# -- How a worker stops --------------------------------------------------------------------------


class WorkerShutdown(SystemExit):
    """Raised to stop the worker warmly."""


class WorkerTerminate(SystemExit):
    """Raised to stop the worker at once."""


#: Celery's old name.
SystemTerminate = WorkerTerminate


# -- Celery's own tools ----------------------------------------------------------------------------


def reraise(tp: Any, value: BaseException, tb: Any = None) -> NoReturn:
    """Raise an exception once more, with this traceback."""
    raise value if value.__traceback__ is tb else value.with_traceback(tb)


def __getattr__(name: str) -> Any:
    if name != "CeleryCommandException":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Made when it is asked for: who only sends tasks need not wait for click.
    from click import ClickException

    def init(self: Any, message: str, exit_code: int) -> None:
        ClickException.__init__(self, message)
        self.exit_code = exit_code

    made = type(name, (ClickException,), {
        "__init__": init, "__module__": __name__, "__doc__": "A command ends, with these words and this exit code.",
    })  # fmt: skip
    return globals().setdefault(name, made)
