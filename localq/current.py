"""What is current, as objects to import once: `current_app.send_task(...)`, `current_task.request.id`.

Each stands for whatever is current at the moment it is used; called, it returns that itself. Must not make an
app where there is none: its store would be a place that no worker reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from localq import context


class Current:
    """Stands for what `find` returns at the moment it is used.

    Args:
        find: returns it, or None.
        missing: what an attribute's absence means if there is none.
    """

    __slots__ = ("_find", "_missing")

    def __init__(self, find: Callable[[], Any], missing: str) -> None:
        object.__setattr__(self, "_find", find)
        object.__setattr__(self, "_missing", missing)

    def __call__(self) -> Any:
        """Return the thing itself."""
        return self._find()

    def __getattr__(self, name: str) -> Any:
        found = self._find()
        if found is None:
            raise AttributeError(f"{name!r}: {self._missing}")
        return getattr(found, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._find(), name, value)

    def __bool__(self) -> bool:
        return self._find() is not None

    def __eq__(self, other: object) -> bool:
        return bool(self._find() == (other() if isinstance(other, Current) else other))

    def __hash__(self) -> int:
        return hash(self._find())

    def __repr__(self) -> str:
        return repr(self._find())


current_app = Current(context.current_app, "no app is current")
current_task = Current(context.current_task, "no task is running here")


def current_worker_task() -> Any:
    """Return the task that a worker runs here, whatever tasks it calls as functions; None outside of one."""
    frame = context.running.get()
    while frame is not None and frame.request.called_directly:
        frame = frame.outer
    return None if frame is None else frame.task


def app_or_default(app: Any = None) -> Any:
    """Return this app, or the current one if None."""
    return context.current_app() if app is None else app
