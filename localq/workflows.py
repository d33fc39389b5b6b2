"""Signatures that hold others: what is common to chains, groups and chords, and how they are shown.

Must not know which kinds there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Self

from localq.lazy import Lazy, is_waiting
from localq.serialization import safe_repr
from localq.signatures import SHOWN, Signature, as_signature

#: Members that a repr shows.
MEMBERS_SHOWN = 50


class Workflow(Signature):
    """A signature that holds others."""

    def _parts(self) -> Iterable[Any]:
        """Return the signatures in it."""
        return ()

    def _own(self) -> None:
        """Copy the signatures in it that may be another's too: somebody is about to look at them."""
        if self._borrows:
            self._apart()

    def _known_app(self) -> Any:
        if self._app is not None:
            return self._app
        apps = (part._known_app() for part in self._parts())
        return next((app for app in apps if app is not None), None)

    def _apart(self) -> Self:
        self._borrows = False
        return super()._apart()


class Members(Workflow):
    """A workflow with one list of signatures."""

    @property
    def tasks(self) -> Any:
        """The signatures in it."""
        self._own()
        return self["kwargs"]["tasks"]

    @tasks.setter
    def tasks(self, tasks: Any) -> None:
        self["kwargs"]["tasks"] = tasks

    def _parts(self) -> Any:
        return self["kwargs"]["tasks"]

    def _lend(self) -> Any:
        """Return the signatures in it for another to hold as well."""
        self._borrows = True
        return self["kwargs"]["tasks"]

    def _adopt(self) -> None:
        tasks = self["kwargs"].get("tasks") or ()
        self["kwargs"]["tasks"] = tasks if is_waiting(tasks) else [as_signature(each, self._app) for each in tasks]

    def _apart(self) -> Self:
        super()._apart()
        self["kwargs"]["tasks"] = clones(self["kwargs"]["tasks"])
        return self


def clones(tasks: Any) -> Any:
    """Return copies of signatures; of a generator's, when somebody looks."""
    return Lazy(tasks, Signature.clone) if is_waiting(tasks) else [each.clone() for each in tasks]


def given(tasks: tuple[Any, ...], app: Any = None) -> Any:
    """Return the signatures that a constructor was given, one by one or as one iterable."""
    if len(tasks) == 1 and not isinstance(tasks[0], dict):
        try:
            found = iter(tasks[0])
        except TypeError:
            raise TypeError(f"{safe_repr(tasks[0], SHOWN)} is no signature: write task.s(...)") from None
        if found is tasks[0]:
            return Lazy(found, lambda each: as_signature(each, app))
        tasks = tasks[0]
    return [as_signature(each, app) for each in tasks]


# -- Showing them ---------------------------------------------------------------------------------


class Text(str):
    """A text that stands for itself in a repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def shown(members: Iterable[Any]) -> list[str]:
    """Return the reprs of so many members, and how many there are besides."""
    each = iter(members)
    found = [repr(member) for member in islice(each, MEMBERS_SHOWN)]
    left = sum(1 for _ in each)
    return [*found, f"... {left} more"] if left else found


def said_once(task: Any, text: str) -> str:
    """Return the text with a task's module in it only where it stands first."""
    module = str(task).rpartition(".")[0]
    if not module:
        return text
    head, found, tail = text.partition(f"{module}.")
    return head + found + tail.replace(f"{module}.", "")
