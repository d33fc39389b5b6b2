"""What a workflow comes to, in plain Python: no store, no processes, no ids, no localq.

A workflow is plain data (`Call`, `Chain`, `Group`, `Chord`, `Map`, `Chunks`); `model(flow)` says what it comes to: the
value or the exceptions its result shows, every execution with its arguments, and everybody who is told. It is meant to
be read as the specification, and each function states one rule. Where the rows are silent the rules are what Celery
5.7 with Redis was seen to do; where Celery hangs, what the neighbouring case does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

#: What a task can do, and the exception it ends with, if any.
DEEDS = {
    "returns": None, "is silent": None, "retries": None,
    "fails": "ValueError", "breaks": "KeyError", "gives up": "LookupError", "runs out": "MaxRetriesExceededError",
}  # fmt: skip
#: How often a task with this deed runs, where that is not once.
TIMES = {"retries": 3, "gives up": 2, "runs out": 2}


# -- Workflows as data -------------------------------------------------------------------------------


class Call(NamedTuple):
    """One task: it notes what it is given, and returns [tag, *what it was given], or fails.

    Attributes:
        deed: one of DEEDS. A task that is silent ignores its result.
        args: its own arguments, behind those it is fed.
        immutable: it is fed nothing.
        links: calls that are fed its value.
        told: its errbacks: (tag, style), the style "old" (a task with an id) or "new" (request, exception, traceback).
        becomes: what it replaces itself with.
    """

    tag: str
    deed: str = "returns"
    args: tuple[Any, ...] = ()
    immutable: bool = False
    links: tuple[Call, ...] = ()
    told: tuple[tuple[str, str], ...] = ()
    becomes: Any = None


class Chain(NamedTuple):
    """Steps one after another; written with bars, or as chain(...)."""

    steps: tuple[Any, ...]
    bar: bool = False
    links: tuple[Call, ...] = ()
    told: tuple[tuple[str, str], ...] = ()


class Group(NamedTuple):
    """Members side by side."""

    members: tuple[Any, ...]
    links: tuple[Call, ...] = ()
    told: tuple[tuple[str, str], ...] = ()


class Chord(NamedTuple):
    """A body that is fed the list of what the members of its header come to."""

    header: tuple[Any, ...]
    body: Any
    links: tuple[Call, ...] = ()
    told: tuple[tuple[str, str], ...] = ()


class Map(NamedTuple):
    """One message that calls its task for each item; with `star`, each item is a list of arguments.

    Attributes:
        fails_at: the item that fails; -1 for none.
    """

    tag: str
    items: int
    star: bool = False
    fails_at: int = -1
    links: tuple[Call, ...] = ()
    told: tuple[tuple[str, str], ...] = ()


class Chunks(NamedTuple):
    """As many messages as it takes, each a starmap of at most `size` items."""

    tag: str
    items: int
    size: int
    fails_at: int = -1
    links: tuple[Call, ...] = ()
    told: tuple[tuple[str, str], ...] = ()


# -- What it comes to --------------------------------------------------------------------------------


class Good(NamedTuple):
    """It ended well.

    Attributes:
        is_kept: its task does not ignore its result.
    """

    value: Any
    is_kept: bool = True


class Bad(NamedTuple):
    """It ended with an exception.

    Attributes:
        exc: the type, as `get(propagate=False)` returns it.
        raised: the type that `get()` raises: that of the first before it that failed.
        ran: it failed itself, or its header did; or else a step before it in its chain.
        is_kept: it is no task's that ignores its result.
    """

    exc: str
    raised: str
    ran: bool = True
    is_kept: bool = True


class Many(NamedTuple):
    """It ended as a group: what each member came to.

    Attributes:
        ran: it was not lost as a whole, by what stood before it.
    """

    ends: tuple[Any, ...]
    ran: bool = True


End = Good | Bad | Many


class Seen(NamedTuple):
    """All that can be seen of a workflow from outside; both sides of every comparison.

    Attributes:
        value: what `get(propagate=False)` returns, exceptions as ["!", their type].
        raised: the type of what `get()` raises; "" if it returns.
        runs: every execution, (tag, arguments as JSON), sorted.
        told: every errback's call, (its tag, exception's type or "", tag of the task that failed or ""), sorted.
    """

    value: Any
    raised: str
    runs: tuple[Any, ...]
    told: tuple[Any, ...]


def model(flow: Any, *fed: Any, keeps_all: bool = False) -> Seen:
    """Say what a workflow comes to that is sent with these arguments.

    Args:
        keeps_all: values that tasks ignore can be read as well: they are at hand, for it ran here and now.
    """
    world = World()
    end = world.end_of(unrolled(flow), fed)
    return Seen(read(end, keeps_all), raised_by(end, keeps_all), tuple(sorted(world.runs)), tuple(sorted(world.told)))


def rules(flow: Any, *fed: Any) -> frozenset[str]:
    """Return the names of the rules by which a workflow comes to what it comes to, those with a name."""
    world = World()
    end = world.end_of(unrolled(flow, world.rules), fed)
    if isinstance(end, Many) and has_failed(end) and first_failed(end).raised != own_exception(end):
        world.rules.add("read: a group, of which a member failed by what stood before it")
    return frozenset(world.rules)


def shown(end: End) -> Any:
    """Return an end as others are fed it, or as `get(propagate=False)` returns it."""
    if isinstance(end, Many):
        return [shown(each) for each in end.ends]
    return end.value if isinstance(end, Good) else ["!", end.exc]


def read(end: End, keeps_all: bool) -> Any:
    """Return what the sender reads: None of a task that ignores its result, though others were fed it."""
    if isinstance(end, Many):
        return [read(each, keeps_all) for each in end.ends]
    return shown(end) if end.is_kept or keeps_all else None


def raised_by(end: End, keeps_all: bool) -> str:
    """Return the type of what `get()` raises: of several members, what the first that failed shows itself."""
    if isinstance(end, Many):
        members = (raised_by(each, keeps_all) and own_exception(each) for each in end.ends)
        return next(filter(None, members), "")
    return end.raised if isinstance(end, Bad) and (end.is_kept or keeps_all) else ""


def has_failed(end: End) -> bool:
    return any(map(has_failed, end.ends)) if isinstance(end, Many) else isinstance(end, Bad)


class World:
    """Runs a workflow's rules one after another, and keeps what was run, who was told, and which rules it took."""

    def __init__(self) -> None:
        self.rules: set[str] = set()
        self.runs: list[tuple[str, str]] = []
        self.told: list[tuple[str, str, str]] = []

    def end_of(self, flow: Any, fed: Sequence[Any]) -> End:
        if isinstance(flow, Call):
            return self.call(flow, fed)
        if isinstance(flow, Chain):
            return self.chain(flow, fed)
        if isinstance(flow, Group):
            return self.group(flow, fed)
        if isinstance(flow, Chord):
            return self.chord(flow, fed)
        if isinstance(flow, Map):
            return self.map(flow, range(flow.items))
        return self.chunks(flow)

    def call(self, call: Call, fed: Sequence[Any]) -> End:
        """A task runs once, and once more for each retry; always with the same arguments.

        What it is fed stands before its own arguments, unless it is immutable. When it has succeeded, its callbacks
        run with its value; when it has failed, its errbacks are told, once.
        """
        args = [*([] if call.immutable else fed), *call.args]
        self.runs += [(call.tag, json.dumps(args))] * TIMES.get(call.deed, 1)
        if call.becomes is not None:
            return self.replaced(call)
        exc = DEEDS[call.deed]
        if exc is not None:
            self.tell(call.told, exc, call.tag)
            return Bad(exc, exc)
        value = [call.tag, *args]
        for link in call.links:
            self.end_of(link, (value,))
        return Good(value, call.deed != "is silent")

    def replaced(self, call: Call) -> End:
        """A task that replaces itself comes to what the other comes to, which also gets its callbacks and errbacks.

        A group in a task's place is the header of a chord whose body, here of no name, returns its one list.
        """
        self.rules.add(f"replaced by: {type(call.becomes).__name__.lower()}")
        if not isinstance(call.becomes, Group):
            return self.end_of(linked(call.becomes, call.links, call.told), ())
        header = self.group(call.becomes, ())
        if has_failed(header):
            self.tell(call.told, "ChordError", "")
            return Bad("ChordError", own_exception(header))
        for link in call.links:
            self.end_of(link, (shown(header),))
        return Good(shown(header))

    def chain(self, chain: Chain, fed: Sequence[Any]) -> End:
        """Each step is fed the value of the one before it; what ends in a group feeds the list.

        A step that fails is the end: those behind it do not run, tell nobody, and show the same exception.
        """
        end: End = Good(fed[0] if fed else None)
        for step in folded(chain, self.rules):
            if has_failed(end):
                end = self.lost(step, end)
            else:
                end = self.end_of(step, fed)
            fed = (shown(end),)
        return end

    def group(self, group: Group, fed: Sequence[Any]) -> End:
        """Each member is fed the same; all run, whatever becomes of the others; the value is the list, in order.

        A group's callback runs once its first task has succeeded, and is fed nothing; its errbacks are every member's.
        """
        ends = tuple(self.end_of(each, fed) for each in members_of(group, self.rules))
        if any(isinstance(end, Many) and has_failed(end) for end in ends):
            self.rules.add("member: ends in a group that failed")
        if any(isinstance(end, Many) and read(end, True) != read(end, False) for end in ends):
            self.rules.add("member: ends in a group with a silent one")
        return Many(ends)

    def chord(self, chord: Chord, fed: Sequence[Any]) -> End:
        """The body runs once, fed the list of the header's values, when every member has succeeded.

        If one fails, the others run all the same, and the body does not: it shows a ChordError, `get()` raises the
        member's own exception, and its errbacks are told.
        """
        members = (linked(each, (), chord.told) if isinstance(each, Chord) else each for each in chord.header)
        header = self.group(Group(tuple(members)), fed)
        body = linked(chord.body, chord.links, chord.told)
        if not has_failed(header):
            return self.end_of(body, (shown(header),))
        return self.body_lost(body, header)

    def body_lost(self, body: Any, header: Many) -> End:
        """What a body comes to whose header has failed.

        It shows ChordError, and tells the errbacks given to the body itself: those of a chain and of its first step.
        If it is a group, each member shows the exception of the member of the header that failed, and tells its
        errbacks and the group's.
        """
        own = own_exception(header)
        raised = own if header.ran else first_failed(header).raised
        if own != first_failed(header).raised:
            self.rules.add("read: a group, of which a member failed by what stood before it")
        if any(isinstance(end, Bad) and not end.ran for end in header.ends):
            self.rules.add("header: member that never ran")
        self.note_rules(body, "chunks" if isinstance(body, Chunks) else "group" if isinstance(body, Group) else "body")
        members = members_of(body) if isinstance(body, Group) else []
        if isinstance(body, Group | Chunks) and len({own_exception(end) for end in header.ends if has_failed(end)}) > 1:
            self.rules.add("lost: a group behind several failures, of which the first in time counts")
        if any(map(own_errbacks, (body, *members))):
            self.rules.add("lost: errbacks of a body")
        if isinstance(body, Group) and not ends_empty(body):
            for each in members:
                self.tell(own_errbacks(each), own, "")
            return Many(tuple(spread_over(each, Bad(own, raised)) for each in members), False)
        if isinstance(body, Chunks):
            self.tell(own_errbacks(body), own, "")
            return spread_over(body, Bad(own, raised))
        self.tell(own_errbacks(body), "ChordError", "")
        return spread_over(body, Bad("ChordError", raised))

    def lost(self, step: Any, end: End) -> End:
        """What a step comes to that never runs, since one before it has failed."""
        if isinstance(end, Many):
            if end.ran:
                return self.body_lost(step, end)
            end = first_failed(end)
        assert isinstance(end, Bad)
        self.note_rules(step, "step")
        return spread_over(step, end._replace(ran=False, is_kept=True))

    def note_rules(self, lost: Any, kind: str) -> None:
        """Note the rules of a part that does not run: those it would take, and those of its being lost."""
        would = World()
        would.end_of(lost, ())
        self.rules |= would.rules
        self.rules.add(f"lost: {kind}")
        ends = spread_over(lost, Bad("", ""))
        if isinstance(ends, Many) and any(isinstance(end, Many) for end in ends.ends):
            self.rules.add("member: ends in a group that failed")

    def map(self, map: Map, items: Sequence[int]) -> End:
        """The items' calls run one after another, fed nothing; the first that fails ends them, and is its failure."""
        for item in items:
            self.runs.append((map.tag, json.dumps([item])))
            if item == map.fails_at:
                self.tell(map.told, "ValueError", "")
                return Bad("ValueError", "ValueError")
        value = [item * 10 for item in items]
        for link in map.links:
            self.end_of(link, (value,))
        return Good(value)

    def chunks(self, chunks: Chunks) -> End:
        """Chunks are the group of their starmaps; their callbacks and errbacks are each one's."""
        each = Map(chunks.tag, 0, True, chunks.fails_at, chunks.links, chunks.told)
        parts = (range(chunks.items)[at : at + chunks.size] for at in range(0, chunks.items, chunks.size))
        return Many(tuple(self.map(each, part) for part in parts))

    def tell(self, told: Sequence[tuple[str, str]], exc: str, failed: str) -> None:
        """An old-style errback gets the id of the task that failed, a new-style one its exception as well."""
        self.told += [(tag, exc if style == "new" else "", failed) for tag, style in told]


# -- How workflows are written -----------------------------------------------------------------------


def folded(chain: Chain, rules: set[str] | None = None) -> list[Any]:
    """Return a chain's steps as they run.

    Chains in it stand for their steps. A group followed by a step is a chord with that step as its body. Groups
    without members are dropped, but one, if there is nothing else; but `group() | x` is a chord. A group of one is its
    member, unless it follows a group, whose body it is; but `group(a) | x` is a chord. A chain's callbacks are its last
    step's, or those of each member of a group that is last; its errbacks are every step's.
    """
    used = set() if rules is None else rules
    found = _folded(chain, used)
    if not found and _has_group(chain):
        return [Group(())]
    found = [linked(each, (), chain.told) for each in found]
    if found and chain.links:
        found[-1] = _link_ends(found[-1], chain.links)
    return found


def _folded(chain: Chain, used: set[str]) -> list[Any]:
    found: list[Any] = []
    for position, step in enumerate(chain.steps):
        if isinstance(step, Chain):
            inner = folded(step, used) if _folded(step, set()) else []
        elif isinstance(step, Group) and not (position == 0 and chain.bar and len(chain.steps) > 1):
            inner = _as_step(step, bool(found) and isinstance(found[-1], Group), used)
        else:
            inner = [step]
        for each in inner:
            _append(found, each, used)
    return found


def _has_group(chain: Chain) -> bool:
    return any(isinstance(step, Group) or (isinstance(step, Chain) and _has_group(step)) for step in chain.steps)


def _link_ends(step: Any, links: tuple[Call, ...]) -> Any:
    if isinstance(step, Group):
        return step._replace(members=tuple(_link_ends(each, links) for each in step.members))
    return linked(step, links, ())


def _as_step(group: Group, keeps: bool, used: set[str]) -> list[Any]:
    if is_void(group):
        used.add("group in a chain: empty")
        return []
    if keeps or len(group.members) > 1:
        return [group]
    used.add("group in a chain: of one")
    member = linked(group.members[0], tuple(link._replace(immutable=True) for link in group.links), group.told)
    if isinstance(member, Group):
        return _as_step(member, keeps, used)
    return folded(member, used) if isinstance(member, Chain) else [member]


def is_void(flow: Any) -> bool:
    """Whether there is no task in it."""
    parts = flow.members if isinstance(flow, Group) else flow.steps if isinstance(flow, Chain) else (None,)
    return all(part is not None and is_void(part) for part in parts)


def _append(found: list[Any], step: Any, used: set[str]) -> None:
    if found and isinstance(found[-1], Group):
        found[-1] = Chord(tuple(members_of(found[-1], used)), step)
    elif found and isinstance(found[-1], Chord) and isinstance(last_of(found[-1]), Group):
        found[-1] = _with_body(found[-1], step)
    else:
        found.append(step)


def _with_body(chord: Chord, step: Any) -> Chord:
    """A chord that ends in a group, followed by a step: the group becomes a chord with that step."""
    body = chord.body
    if isinstance(body, Group):
        return chord._replace(body=Chord(tuple(members_of(body)), step))
    if isinstance(body, Chord):
        return chord._replace(body=_with_body(body, step))
    return chord._replace(body=Chain((*body.steps, step)))


def flat(members: Sequence[Any], used: set[str] | None = None) -> list[Any]:
    """Return a group's members, those of groups in it in their place; chains without steps are none."""
    found: list[Any] = []
    for each in members:
        if isinstance(each, Group):
            found += members_of(each, used)
        elif not isinstance(each, Chain) or folded(each):
            found.append(each)
        elif used is not None:
            used.add("member: empty chain")
    return found


def members_of(group: Group, used: set[str] | None = None) -> list[Any]:
    """Return a group's members with the group's callbacks (the first's, fed nothing) and errbacks."""
    members = [linked(each, (), group.told) for each in flat(group.members, used)]
    if members and group.links:
        members[0] = linked(members[0], tuple(link._replace(immutable=True) for link in group.links), ())
    return members


def unrolled(flow: Any, used: set[str] | None = None) -> Any:
    """A group that is sent and has one member, which ends in a group, is that member (F212)."""
    if isinstance(flow, Group):
        members = members_of(flow)
        if (
            len(members) == 1
            and isinstance(last_of(members[0]), Group | Chunks)
            and (is_void(members[0]) or not ends_empty(members[0]))
        ):
            if used is not None:
                used.add("sent: a group of one that ends in a group")
            return members[0]
    return flow


def last_of(flow: Any) -> Any:
    """Return the part whose end is the end of a workflow: a task or a group."""
    if isinstance(flow, Chain):
        steps = folded(flow)
        return last_of(steps[-1]) if steps else None
    return last_of(flow.body) if isinstance(flow, Chord) else flow


def ends_empty(flow: Any) -> bool:
    """Whether its end is a group without members: it can fail as a task can, and its list is a value like others."""
    last = last_of(flow)
    return isinstance(last, Group) and not flat(last.members)


def linked(flow: Any, links: tuple[Call, ...], told: tuple[tuple[str, str], ...]) -> Any:
    """Return a workflow with more callbacks and errbacks; what stands there already is not there twice."""
    if not links and not told:
        return flow
    return flow._replace(
        links=tuple(dict.fromkeys((*flow.links, *links))), told=tuple(dict.fromkeys((*flow.told, *told)))
    )


def own_errbacks(flow: Any) -> tuple[tuple[str, str], ...]:
    """Return the errbacks given to a workflow itself; a chord's are its body's, a chain's its first step's, too."""
    found = list(flow.told)
    while isinstance(flow, Chord | Chain):
        steps = [flow.body] if isinstance(flow, Chord) else folded(flow)[:1]
        if not steps:
            break
        (flow,) = steps
        found += [each for each in flow.told if each not in found]
    return tuple(found)


def own_exception(end: End) -> str:
    """Return the type that a failed member shows itself; of a group, its first failed member's."""
    return first_failed(end).exc


def first_failed(end: End) -> Bad:
    if isinstance(end, Many):
        return first_failed(next(each for each in end.ends if has_failed(each)))
    assert isinstance(end, Bad)
    return end


def spread_over(flow: Any, end: Any) -> End:
    """Return what a part shows that never ran: each of its ends the same failure."""
    last = last_of(flow)
    if isinstance(last, Group) and not ends_empty(last):
        return Many(tuple(spread_over(each, end) for each in flat(last.members)), False)
    if isinstance(last, Chunks):
        return Many((end,) * -(-last.items // last.size), False)
    return end._replace(is_kept=False) if isinstance(last, Call) and last.deed == "is silent" else end
