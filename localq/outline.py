"""The whole workflow that a task is a step of, as the store has it: read from any of its ids, and laid out to be drawn.

The store knows what waits for what, not what was written: `chain(a, group(b, c), d)` is four messages. `read` collects
them, with whatever they have sent themselves; `_Layout` finds the sequences and groups again. Nothing here recurses: a
workflow may be as deep as it is long. Who sent the first step is not climbed to, for a task that sends itself again
and again has no end.

Must not read arguments or results, nor know how it is drawn.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from typing import Any

from localq.message import LEADS_BY_GROUP, LEADS_BY_ID, Record
from localq.storage.base import STEP, Storage

#: Steps that are read of one workflow at most.
MOST = 200_000


class Step:
    """One task of a workflow.

    Attributes:
        after: what it waits for, or waited: another's id or a group's.
        sent_by: the task that sent it while it ran.
        links: how many callbacks it was given.
        next: what comes behind it in its sequence.
        callbacks, sent: what runs beside that, and what it has sent itself; each the first of a sequence.
    """

    __slots__ = (
        "after", "callbacks", "group_id", "id", "leads", "links", "name", "next", "position", "sent", "sent_by", "seq",
        "state",
    )  # fmt: skip

    def __init__(self, record: Record) -> None:
        message = record.message
        assert message is not None
        self.seq, self.id, self.name, self.state = record.seq, record.id, record.name, record.state
        self.after, self.group_id, self.position = message.after, record.group_id, record.position
        self.leads = message.leads
        self.sent_by, self.links = _headers(message.headers)
        self.next: Part | None = None
        self.callbacks: list[Part] = []
        self.sent: list[Part] = []


class Group:
    """The members of a group.

    Attributes:
        ends: the last step of each member, in the order of their places.
        members: the first part of each member.
        next: what comes behind the group in its sequence.
    """

    __slots__ = ("ends", "id", "members", "next")

    def __init__(self, id: str) -> None:
        self.id = id
        self.ends: list[Step] = []
        self.members: list[Part] = []
        self.next: Part | None = None


Part = Step | Group


class Outline:
    """A workflow laid out.

    Attributes:
        steps, groups: all of it, by id.
        tops: what it begins with, each the first part of a sequence.
        is_whole: there are not more steps than are read.
    """

    def __init__(self, steps: dict[str, Step], groups: dict[str, Group], tops: list[Part], is_whole: bool) -> None:
        self.steps, self.groups, self.tops, self.is_whole = steps, groups, tops, is_whole


def read(storage: Storage, id: str, most: int = MOST) -> Outline | None:
    """Read the workflow that a task or a group is part of; None if the store knows no such id.

    Args:
        most: how many steps to read at most.
    """
    reader = _Reader(storage, most)
    reader.read(id)
    if not reader.steps:
        return None
    steps = {step.id: step for step in sorted(reader.steps.values(), key=lambda step: step.seq)}
    layout = _Layout(steps)
    return Outline(steps, layout.groups, layout.tops, not reader.is_full)


def sequence(part: Part | None) -> Iterator[Part]:
    """Go through a part and those behind it."""
    while part is not None:
        yield part
        part = part.next


def inner(part: Part) -> list[Part]:
    """Return the first parts of the sequences that are drawn below a part."""
    return [*part.callbacks, *part.sent] if isinstance(part, Step) else part.members


def whole(parts: Iterable[Part]) -> Iterator[Part]:
    """Go through the sequences that begin with these, and whatever is in them."""
    left = list(parts)
    while left:
        for part in sequence(left.pop()):
            yield part
            left += inner(part)


def counts(parts: Iterable[Part]) -> Counter[str]:
    """Count steps by their state."""
    return Counter(part.state for part in parts if isinstance(part, Step))


def _headers(text: str | None) -> tuple[str | None, int]:
    """Return who sent a message, and how many callbacks it has."""
    if not text or ('"parent_id"' not in text and '"links"' not in text):
        return None, 0
    try:
        headers = json.loads(text)
        return headers.get("parent_id"), len(headers.get("links") or ())
    except (ValueError, TypeError, AttributeError):
        return None, 0  # damaged; whoever runs it says so


class _Reader:
    """Collects the steps that hang together, some hundreds at a time."""

    def __init__(self, storage: Storage, most: int) -> None:
        self._storage, self._most = storage, most
        self.steps: dict[str, Step] = {}
        self.is_full = False
        self._ids: deque[str] = deque()
        self._keys: deque[tuple[str, bool]] = deque()
        self._asked: set[tuple[str, str]] = set()

    def read(self, id: str) -> None:
        self._want_ids(id)
        self._want("members", id)
        while (self._ids or self._keys) and not self.is_full:
            if self._ids:
                some = [self._ids.popleft() for _ in range(min(STEP, len(self._ids)))]
                self._note(self._storage.records(some, whole=True).values())
                continue
            self._read_pages(*self._keys.popleft())

    def _read_pages(self, key: str, of_group: bool) -> None:
        which: dict[str, Any] = {"group_id" if of_group else "follows": key}
        start, after = 0, -1
        while start != after and not self.is_full:
            records = list(self._storage.records(**which, start=start, whole=True).values())
            self._note(records)
            if len(records) < STEP:
                return
            # A place that two steps share may be cut by the end of a page, so it is read once more with the next.
            after, start = start, (records[-1].position or 0) if of_group else records[-1].seq + 1

    def _want_ids(self, *ids: str | None) -> None:
        for id in ids:
            if id is not None and id not in self.steps and ("id", id) not in self._asked:
                self._asked.add(("id", id))
                self._ids.append(id)

    def _want(self, what: str, key: str | None) -> None:
        if key is not None and (what, key) not in self._asked:
            self._asked.add((what, key))
            self._keys.append((key, what == "members"))

    def _note(self, records: Iterable[Record]) -> None:
        for record in records:
            if record.id in self.steps:
                continue
            if len(self.steps) >= self._most:
                self.is_full = True
                return
            step = self.steps[record.id] = Step(record)
            # It waits for one task or for a group: only the store knows which.
            self._want_ids(step.after, *_ids_in(record.children))
            self._want("members", step.after)
            self._want("members", step.group_id)
            if step.leads & LEADS_BY_ID:
                self._want("followers", step.id)
            if step.leads & LEADS_BY_GROUP:
                self._want("followers", step.group_id)


def _ids_in(children: str | None) -> list[str]:
    """Return the ids of tasks in what a task has noted of those it sent: results as tuples, in each other."""
    found: list[str] = []
    try:
        left: list[Any] = list(json.loads(children)) if children else []
    except (ValueError, TypeError):
        return found  # damaged
    while left:
        each = left.pop()
        if isinstance(each, list | tuple):
            left += each
        elif isinstance(each, str):
            found.append(each)
    return found


class _Layout:
    """Finds sequences and groups again in what waits for what.

    Every part is *in* the group whose member it is a part of, or in none. Those that wait for the same end are what
    comes next in the sequence, callbacks, or the first steps of the members of a group; the latter are known by being
    in the same one. So a group is put together where several of its members begin, the innermost first, and parts are
    visited from the last to the first.
    """

    def __init__(self, steps: dict[str, Step]) -> None:
        self._steps = steps
        self.groups: dict[str, Group] = {}
        self._followers: dict[str, list[Part]] = {}
        for step in steps.values():
            if step.group_id is not None:
                self.groups.setdefault(step.group_id, Group(step.group_id)).ends.append(step)
        for group in self.groups.values():
            group.ends.sort(key=lambda end: (end.position or 0, end.seq))
        for step in steps.values():
            if step.after in steps or step.after in self.groups:
                self._followers.setdefault(str(step.after), []).append(step)
        self._in: dict[str, str | None] = {}
        order = self._ordered()
        self._rank = {id: rank for rank, id in enumerate(order)}
        for id in reversed(order):
            self._lay(id)
        self.tops = self._begin()

    def _ordered(self) -> list[str]:
        """Return the ids of all parts, each behind what it waits for."""
        ahead = {id: len(group.ends) for id, group in self.groups.items()}
        ahead |= {id: int(step.after in self._steps or step.after in self.groups) for id, step in self._steps.items()}
        ready = [id for id, number in ahead.items() if not number]
        found: list[str] = []
        while ready:
            id = ready.pop()
            found.append(id)
            behind = [step.id for step in self._followers.get(id, ()) if isinstance(step, Step)]
            group_id = self._steps[id].group_id if id in self._steps else None
            for each in behind if group_id is None else [*behind, group_id]:
                ahead[each] -= 1
                if not ahead[each]:
                    ready.append(each)
        return found

    def _lay(self, id: str) -> None:
        """Put what waits for a part where it belongs: behind it, or beside that."""
        parts = self._gathered(self._followers.get(id, []), forced=False)
        step = self._steps.get(id)
        if step is None:
            self.groups[id].next = parts.pop() if parts else None
            self._in[id] = self._home(self.groups[id].next)
            # One that nobody wrote, for a group has no callbacks; shown all the same.
            for part in parts:
                _last(part).next, self.groups[id].next = self.groups[id].next, part
            return
        if step.group_id is None and len(parts) > step.links:
            step.next = parts.pop()
        step.callbacks = parts
        self._in[id] = step.group_id if step.group_id is not None else self._home(step.next)

    def _home(self, part: Part | None) -> str | None:
        return None if part is None else self._in.get(part.id)

    def _gathered(self, parts: list[Part], forced: bool) -> list[Part]:
        """Replace members of groups that begin here by their groups.

        Args:
            forced: nothing stands before these, so what is in a group begins it.
        """
        by_home: dict[str | None, list[Part]] = {}
        homes: list[tuple[int, str]] = []

        def add(part: Part) -> None:
            home = self._home(part)
            if home is not None and home not in by_home:
                heappush(homes, (self._rank.get(home, 0), home))
            by_home.setdefault(home, []).append(part)

        for each in parts:
            add(each)
        while homes:
            _, home = heappop(homes)
            group = self.groups[home]
            # One alone goes on with the member that this is a part of, unless it is all of a group.
            is_all = len(group.ends) == 1 and by_home[home][0] is group.ends[0]
            if forced or len(by_home[home]) > 1 or is_all:
                is_new = not group.members
                group.members += by_home.pop(home)
                if is_new:
                    add(group)
        return sorted((part for found in by_home.values() for part in found), key=_seq)

    def _begin(self) -> list[Part]:
        """Return the parts that nothing stands before; those that a task has sent are put beside it."""
        sent: dict[str | None, list[Part]] = {}
        for step in self._steps.values():
            if step.id not in self._rank or not (step.after in self._steps or step.after in self.groups):
                by = step.sent_by if step.sent_by in self._steps and step.sent_by != step.id else None
                sent.setdefault(by, []).append(step)
        tops = self._gathered(sent.pop(None, []), forced=True)
        for by, parts in sent.items():
            self._steps[str(by)].sent += self._gathered(parts, forced=True)
        for group in self.groups.values():
            group.members.sort(key=_seq)
        seen = {part.id for part in whole(tops)}
        for step in self._steps.values():
            if step.id not in seen:  # what has sent each other, or was damaged
                tops.append(step)
                seen |= {part.id for part in whole([step])}
        return tops


def _seq(part: Part) -> int:
    return part.seq if isinstance(part, Step) else part.ends[0].seq


def _last(part: Part) -> Part:
    *_, last = sequence(part)
    return last
