"""Lists whose items an iterator still has: a group may be made of a generator that costs something to run.

Looks like a list to everybody, JSON and pickle included. Must not know what the items are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any


class Lazy(list[Any]):
    """The items of an iterator that is not asked for them before somebody looks.

    Args:
        make: what becomes of each item.
    """

    def __init__(self, source: Iterable[Any], make: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self._source: Iterable[Any] | None = _made(source, make) if make else source

    @property
    def is_waiting(self) -> bool:
        """Whether nobody has looked yet."""
        return self._source is not None

    def _look(self) -> None:
        source, self._source = self._source, None
        if source is None:
            return
        try:
            found = list(source)
        except BaseException as exc:
            # A generator that has raised is at its end: what was looked at again would be a part of it.
            self._source = _raising(exc)
            raise
        list.extend(self, found)

    def __reduce_ex__(self, _: Any) -> Any:
        return list, (list(self),)

    def __radd__(self, other: list[Any]) -> list[Any]:
        return other + list(self)


def _made(source: Iterable[Any], make: Callable[[Any], Any]) -> Iterator[Any]:
    # Not `map`: it would ask the source for its iterator now, and the source may be a `Lazy` itself.
    for each in source:
        yield make(each)


def _raising(exc: BaseException) -> Iterator[Any]:
    yield _raise(exc)


def _raise(exc: BaseException) -> Any:
    raise exc


def _looking(name: str) -> Any:
    method = getattr(list, name)

    def look(self: Lazy, *args: Any, **kwargs: Any) -> Any:
        self._look()
        return method(self, *args, **kwargs)

    return look


for _name, _method in vars(list).items():
    if callable(_method) and _name not in ("__init__", "__new__", "__getattribute__", "__class_getitem__"):
        setattr(Lazy, _name, _looking(_name))


def is_waiting(items: Any) -> bool:
    """Whether these are an iterator's items, and nobody has looked at them yet."""
    return isinstance(items, Lazy) and items.is_waiting
