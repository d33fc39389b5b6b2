"""Stamps: what a caller writes on a signature to find its task by later, and visitors that write on whole workflows.

A stamp is an option that `stamped_headers` names. Whatever of a workflow is stamped keeps its stamps: they travel in
the message's headers, through every retry, and are `request.stamps`. Walking a workflow is done by its own kinds
(`canvas`), here is what they ask the visitor, and how stamps are merged. Must not know signatures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

#: The option that names those that are stamps.
STAMPED = "stamped_headers"


class StampingVisitor(ABC):
    """Is led through a workflow, and says what is to be written on each part of it.

    Every method is given the part and the stamps that come down to it, and returns further ones, by name; all of them
    are stamps, or those that its own `stamped_headers` lists. What an `..._end` method returns is not looked at.
    """

    @abstractmethod
    def on_signature(self, sig: Any, **headers: Any) -> Mapping[str, Any] | None:
        """Return the stamps of one task."""

    def on_group_start(self, group: Any, **headers: Any) -> Mapping[str, Any] | None:
        """Return the stamps of every member of a group."""
        return {}

    def on_group_end(self, group: Any, **headers: Any) -> None:  # noqa: B027 - whoever wants to be told overrides it
        """Be told that a group's members are stamped."""

    def on_chain_start(self, chain: Any, **headers: Any) -> Mapping[str, Any] | None:
        """Return the stamps of every step of a chain."""
        return {}

    def on_chain_end(self, chain: Any, **headers: Any) -> None:  # noqa: B027
        """Be told that a chain's steps are stamped."""

    def on_chord_header_start(self, sig: Any, **header: Any) -> Mapping[str, Any] | None:
        """Return the stamps of a chord's members and body; unless overridden, those of its header as a group."""
        return self.on_group_start(sig.header, **header)

    def on_chord_header_end(self, sig: Any, **header: Any) -> None:
        """Be told that a chord's members are stamped."""
        self.on_group_end(sig.header, **header)

    def on_chord_body(self, sig: Any, **header: Any) -> Mapping[str, Any] | None:
        """Return the stamps of a chord's body."""
        return {}

    def on_callback(self, callback: Any, **header: Any) -> Mapping[str, Any] | None:
        """Return the stamps of a signature that is sent with a result."""
        return {}

    def on_errback(self, errback: Any, **header: Any) -> Mapping[str, Any] | None:
        """Return the stamps of a signature that is told of a failure."""
        return {}


def merged(
    given: Mapping[str, Any], found: Mapping[str, Any] | None, own: Mapping[str, Any], append: bool
) -> dict[str, Any]:
    """Return the stamps of a part of a workflow, ready to be set as its options.

    Where two have the same name, what comes down from the caller wins over what the visitor says, and both over what
    is written on it already; lists are joined, and dicts merged.

    Args:
        given: what comes down to it.
        found: what the visitor says of it.
        own: the options it has.
        append: make a list of stamps of the same name, instead of choosing.
    """
    stamps = _listed(given)
    if found is not None:
        stamps = _both(stamps, _listed(found), append)
    names = _names([*stamps[STAMPED], *(own.get(STAMPED) or ())])
    stamps[STAMPED] = names
    return {**_both(stamps, {name: own[name] for name in names if name in own}, append), STAMPED: names}


def _listed(stamps: Mapping[str, Any]) -> dict[str, Any]:
    """Return stamps that say which of them are stamps: all, if they did not."""
    names = stamps.get(STAMPED)
    return {**stamps, STAMPED: list(stamps) if names is None else _names(names)}


def _names(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _both(first: Mapping[str, Any], second: Mapping[str, Any], append: bool) -> dict[str, Any]:
    return {**second, **{name: _one(value, second, name, append) for name, value in first.items()}}


def _one(value: Any, second: Mapping[str, Any], name: str, append: bool) -> Any:
    if name not in second:
        return value
    other = second[name]
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return _both(value, other, append)
    if isinstance(value, list) and isinstance(other, list):
        return _names([*value, *other]) if name == STAMPED else [*value, *other]
    if not append:
        return value
    values = [] if value is None else list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
    return [*values, *other] if isinstance(other, list) else [*values, other]
