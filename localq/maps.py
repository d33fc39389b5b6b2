"""Many calls of one task in one message, or in few: `task.map`, `task.starmap`, `task.chunks`.

Must not know how a group is laid out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from localq.lazy import Lazy
from localq.serialization import safe_repr
from localq.signatures import Signature, as_signature


class _Map(Signature):
    """One task's call for each item, in one message."""

    _task_name, _form = "", ""

    def __init__(self, task: Any, it: Iterable[Any], app: Any = None, **options: Any) -> None:
        each = as_signature(task if isinstance(task, dict) else task.s())
        kwargs = {"task": each, "it": _items(it)}
        super().__init__(self._task_name, (), kwargs, immutable=True, app=app or each._app, **options)

    def _adopt(self) -> None:
        self["kwargs"]["task"] = as_signature(self["kwargs"]["task"], self._app)

    def __repr__(self) -> str:
        return self._form.format(self["kwargs"]["task"]["task"], safe_repr(self["kwargs"]["it"], 100))


def _items(it: Iterable[Any]) -> Any:
    return it if isinstance(it, list) else Lazy(it) if iter(it) is it else list(it)


@Signature.register_type()
class xmap(_Map):
    """One task's call for each item, one after another, in one message; the result is the list of theirs."""

    _kind, _task_name, _form = "xmap", "celery.map", "[{}(x) for x in {}]"


@Signature.register_type()
class xstarmap(_Map):
    """The same with several arguments: every item is a call's list of them."""

    _kind, _task_name, _form = "xstarmap", "celery.starmap", "[{}(*x) for x in {}]"


@Signature.register_type()
class chunks(Signature):
    """Many calls in few messages: a group of `xstarmap`, each of at most `n` calls."""

    _kind = "chunks"

    def __init__(self, task: Any, it: Iterable[Any], n: int, app: Any = None, **options: Any) -> None:
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"chunks of {n!r} calls cannot be made: give a whole number above 0")
        each = as_signature(task if isinstance(task, dict) else task.s())
        kwargs = {"task": each, "it": _items(it), "n": n}
        super().__init__("celery.chunks", (), kwargs, immutable=True, app=app or each._app, **options)

    def _adopt(self) -> None:
        self["kwargs"]["task"] = as_signature(self["kwargs"]["task"], self._app)

    @classmethod
    def apply_chunks(cls, task: Any, it: Iterable[Any], n: int, app: Any = None) -> Any:
        """Send a task's calls in messages of at most `n` each."""
        return cls(task, it, n, app=app)()

    def group(self) -> Any:
        """Return the group that is sent; if this has an id, it is the group's."""
        task, items, n = (self["kwargs"][name] for name in ("task", "it", "n"))
        parts = [xstarmap(task, items[at : at + n], app=self._app) for at in range(0, len(items), n)]
        if self.id is not None:
            for number, part in enumerate(parts):
                part.id = f"{self.id}.{number}"
        return Signature.TYPES["group"](parts, app=self._app, **self.options)

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> Any:
        """Return the group that is sent, its members to start one after another; see `group.skew`."""
        return self.group().skew(start, stop, step)

    def __call__(self, **options: Any) -> Any:
        return self.apply_async(**options)
