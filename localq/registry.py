"""Names for things that can be plugged in: serializers, storages, pools.

One class for all of them: a name, its aliases, and an entry-point group that third parties may
add to. Imports nothing of what it names until somebody asks for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def nearest(name: str, known: Iterable[str], alike: float = 0.6) -> str:
    """Say which known name was probably meant, as the tail of an error; empty if none is so much alike (0 to 1)."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=alike)
    return f"; did you mean {close[0]!r}?" if close else ""


class Registry(Generic[T]):
    """Objects by name.

    Args:
        kind: the word for one of them in errors (`serializer`).
        group: the entry-point group that adds to it (`localq.serializers`).
        error: the exception for an unknown name.
        later: names that Celery knows, and this version of localq does not yet.
    """

    def __init__(self, kind: str, group: str, error: type[Exception] = LookupError, later: Iterable[str] = ()) -> None:
        self.kind, self.group, self.error, self.later = kind, group, error, frozenset(later)
        self._found: dict[str, T] = {}
        self._places: dict[str, str] = {}

    def register(self, name: str, thing: T, *aliases: str) -> None:
        """Make `thing` known by a name and its aliases; a later registration wins."""
        for each in (name, *aliases):
            self._found[each] = thing

    def place(self, name: str, where: str, *aliases: str) -> None:
        """Say where a thing is (`module:attribute`) without importing it."""
        for each in (name, *aliases):
            self._places[each] = where

    def get(self, name: str) -> T:
        """Return the thing of this name, importing it on first use.

        Raises:
            error: nothing has this name; the message gives the nearest that exists.
        """
        try:
            return self._found[name]
        except KeyError:
            pass
        load = self._loader(name)
        if load is None:
            raise self.error(self._absent(name))
        self._found[name] = thing = load()
        return thing

    def names(self) -> list[str]:
        """List every name that is known without looking at entry points."""
        return sorted({*self._found, *self._places})

    def _absent(self, name: str) -> str:
        known = ", ".join(each for each in self.names() if "/" not in each)
        if name in self.later:
            return f"{self.kind} {name!r} is not built yet in this version of localq; there is {known}"
        return f"no {self.kind} is named {name!r}{nearest(name, self.names()) or f'; there is {known}'}"

    def _loader(self, name: str) -> Callable[[], T] | None:
        if name in self._places:
            return lambda: symbol(self._places[name])
        # Imported here: it costs 30 ms, and only names that nobody knows get this far.
        from importlib import metadata

        for point in metadata.entry_points(group=self.group, name=name):
            return point.load
        return None


def symbol(path: str) -> Any:
    """Return the object that `module:attribute` or `module.attribute` names."""
    module, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    return getattr(import_module(module), attribute)
