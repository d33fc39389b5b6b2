"""Tasks that can be asked to stop: `result.abort()` here, `self.is_aborted()` there.

    @app.task(bind=True, base=AbortableTask)
    def count(self, to):
        for number in range(to):
            if self.is_aborted():
                return number

The question is a state in the store (ABORTED), so it waits for a task that is still queued, and it is the task that
answers it: nothing is interrupted. Whatever state the task writes afterwards takes its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from localq.message import Outcome
from localq.result import AsyncResult, EagerResult
from localq.task import Task

__all__ = ["ABORTED", "AbortableAsyncResult", "AbortableTask"]

P = ParamSpec("P")
R = TypeVar("R")

#: The task has been asked to stop.
ABORTED = "ABORTED"


class AbortableAsyncResult(AsyncResult[R]):
    """The result of a task that can be asked to stop."""

    __slots__ = ()

    def is_aborted(self) -> bool:
        """Whether the task has been asked to stop and has not ended since."""
        return self.state == ABORTED

    def abort(self) -> bool:
        """Ask the task to stop; it does so when it next looks, if it looks at all.

        Returns:
            Whether it was asked: False if it has ended, or nobody knows it.
        """
        return self.backend.storage.update(0, 0, Outcome(0, 0, self.id, ABORTED, ended=False))


class AbortableTask(Task[P, R]):
    """A task that can be asked to stop, and looks now and then whether it was."""

    abstract = True
    #: STARTED would take the place of an ABORTED that came before the task began.
    track_started = False

    def AsyncResult(self, task_id: str, **known: Any) -> AbortableAsyncResult[R]:  # noqa: N802 - Celery's name
        """Return a handle on a call of this task, by its id."""
        return AbortableAsyncResult(task_id, app=self.app, task_name=self.name, **known)

    def apply_async(
        self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, *more: Any, **options: Any
    ) -> AbortableAsyncResult[R]:
        """Send a call; see `Task.apply_async`."""
        sent = super().apply_async(args, kwargs, *more, **options)
        if not isinstance(sent, EagerResult):  # that has ended already
            sent.__class__ = AbortableAsyncResult
        return sent  # type: ignore[return-value]

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AbortableAsyncResult[R]:
        """Send a call; see `Task.delay`."""
        return self.apply_async(args, kwargs)

    def is_aborted(self, task_id: str | None = None) -> bool:
        """Whether this attempt, or the task of this id, has been asked to stop. Reads the store each time."""
        request = self.request
        task_id = task_id or (None if request.is_eager else request.id)
        return task_id is not None and self.AsyncResult(task_id).is_aborted()
