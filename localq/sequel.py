"""What came next in its chain of a task that has ended well, as `AsyncResult.children` has it in Celery.

A task does not send the step behind it: that is in the store already. So no task writes it down, and it is read when
somebody asks. Must not change anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from localq.message import Record
from localq.storage.base import STEP, Storage


def next_of(storage: Storage, id: str, known: Any) -> Any:
    """Return the step behind a task as its result's `as_tuple`; None if there is none.

    Args:
        known: tuples of the results of its callbacks, which wait for it as well.
    """
    callbacks = set(_ids(known))
    step = [each for each in _followers(storage, id) if each.id not in callbacks]
    if not step:
        return None
    first, last = step[0], step[-1]
    if first is last:
        return (first.id, None), None
    # Members of one group, in their order; the first and the last may be in groups within it.
    homes = dict.fromkeys(_homes(storage, first))
    group_id = next((home for home in _homes(storage, last) if home in homes), None)
    if group_id is None:
        return (last.id, None), None
    return (group_id, None), [((member, None), None) for member in storage.records(group_id=group_id)]


def _followers(storage: Storage, key: str) -> list[Record]:
    found: list[Record] = []
    start = 0
    while True:
        page = list(storage.records(follows=key, start=start, whole=True).values())
        found += page
        if len(page) < STEP:
            return found
        start = page[-1].seq + 1


def _homes(storage: Storage, record: Record) -> Iterator[str]:
    """Go through the groups that a step may be in, from the inside to the outside."""
    at: Record | None = record
    seen: set[str] = set()
    while at is not None and at.id not in seen:
        seen.add(at.id)
        if at.group_id is not None:
            yield at.group_id
        behind = _followers(storage, at.group_id or at.id)
        at = behind[-1] if behind else None


def _ids(found: Any) -> Iterator[str]:
    left = [found]
    while left:
        each = left.pop()
        if isinstance(each, list | tuple):
            left += each
        elif isinstance(each, str):
            yield each
