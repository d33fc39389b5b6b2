"""A workflow laid out: every message of it, and who waits for whom.

`Plan` turns any tree of signatures into messages-to-be: each step knows which end it waits for and what that end feeds
it, so the store knows the whole workflow as soon as it is sent, every id of it included, and one `put` sends it all or
nothing. A step stands once, however many wait for it: n steps, or n groups in a row, are O(n) messages.

Must not change the signatures, and knows no apps, tasks or stores.
"""

from __future__ import annotations

from typing import Any

from localq.canvas import chain, chord, chunks, group, is_empty_chain, linked, real_steps, xmap, xstarmap
from localq.message import (
    ENTERS,
    LEADS_ANYWAY,
    LEADS_BY_GROUP,
    LEADS_BY_ID,
    LEADS_IF_BAD,
    SHOWS_CAUSE,
    WAITS_ANYWAY,
    WAITS_IF_BAD,
    new_id,
)
from localq.signatures import Signature, as_signature, each_of

#: `Step.feed`, and the header of the same name.
RESULT, RESULTS, ENDS = "result", "results", "ends"
#: The task that tells errbacks of what never ran.
ERRAND = "celery.errbacks"
#: Options of a group that are not its members'.
_GROUPS_OWN = frozenset({"task_id", "group_id", "group_index", "chord", "add_to_parent", "on_done"})


class Step:
    """One message to be.

    Attributes:
        after, waits_for: what it waits for, and how many ends of it.
        feed: what those ends give it as its first argument: one RESULT, the list of RESULTS, the list of ENDS as
            (state, result), or nothing.
        group_id, position: the group it ends a member of, and the place of its result.
        leads: who waits for it, filled when somebody does, and for what it waits: `Message.leads`.
        links: results of its callbacks, as tuples.
    """

    # Not a dataclass: that module costs an importing program 10 ms.
    __slots__ = ("after", "feed", "group_id", "id", "leads", "links", "position", "sig", "waits_for")

    def __init__(self, sig: Signature, id: str) -> None:
        self.sig, self.id = sig, id
        self.after: str | None = None
        self.waits_for = 0
        self.feed: str | None = None
        self.group_id: str | None = None
        self.position: int | None = None
        self.leads = 0
        self.links: list[Any] = []


class Node:
    """What a caller gets for a part of a workflow: a result's id, or a group of them.

    Args:
        parent: what stands before it.
        members: the parts of a group; None for a single task.
        ends: the steps whose ends are this part's end; of a group, those of its members that end in one task.
    """

    __slots__ = ("ends", "id", "members", "parent")

    def __init__(self, id: str, parent: Node | None, members: list[Node] | None, ends: list[Step]) -> None:
        self.id, self.parent, self.members, self.ends = id, parent, members, ends

    @property
    def is_group(self) -> bool:
        return self.members is not None


class Plan:
    """A workflow laid out: its steps in the order they are to be put, and the node of its end.

    Raises:
        ValueError: there is nothing to send, or a chord has no body.
        TypeError: a signature names no task.
    """

    def __init__(self, sig: Signature) -> None:
        self.steps: list[Step] = []
        node = self._lay_sent(sig) if isinstance(sig, group) else self._lay(sig, None)
        if node is None:
            raise ValueError("an empty chain cannot be sent: give it at least one task")
        self.node = node

    def _lay(self, sig: Signature, before: Node | None, is_told: bool = False) -> Node | None:
        """Lay out what stands behind `before`; `is_told`: whose errbacks are told if that fails is seen to already."""
        waiting: list[tuple[Node, Signature]] = []
        # A loop where it could be a call: a body may have a body, and so on.
        while True:
            if before is not None and before.is_group and not is_told:
                waiting.append((before, sig))
            if not isinstance(sig, chord):
                break
            header, sig = sig.sent()
            before, is_told = self._lay_group(header, before), False
        first = len(self.steps)
        node = self._lay_behind(sig, before)
        if waiting and waiting[-1][1] is sig and isinstance(sig, group | chunks) and node is not None and node.is_group:
            for step in self.steps[first:]:
                step.leads |= SHOWS_CAUSE * (step.after == waiting[-1][0].id)
        for header_node, part in waiting:
            if node is not None and header_node.ends:
                self._lay_errands(part, header_node, node)
        return node

    def _lay_behind(self, sig: Signature, before: Node | None) -> Node | None:
        if isinstance(sig, chain):
            for number, each in enumerate(real_steps([sig], look=True)):
                before = self._lay(each, before, is_told=not number)
            return before
        if isinstance(sig, chunks):
            sig = sig.group()
        return self._lay_group(sig, before) if isinstance(sig, group) else self._lay_task(sig, before)

    def _lay_errands(self, part: Signature, header: Node, node: Node) -> None:
        """Have the errbacks told of what cannot run if a task of a group fails: of a group, each member's."""
        parts = [(part, node)]
        if isinstance(part, group):
            parts = list(zip(_parts(part), node.members or (), strict=False))
        for each, its in parts:
            errbacks = _errbacks(each)
            if not errbacks or not its.ends:
                continue
            known = {"lost": its.ends[0].id, "id": its.id, "errbacks": errbacks}
            step = Step(Signature(ERRAND, (), known, {"route_name": _name(each), "ignore_result": True}), new_id())
            step.after, step.waits_for, step.leads = header.id, len(header.ends), WAITS_IF_BAD
            for end in header.ends:
                end.leads |= LEADS_IF_BAD
            self.steps.append(step)

    def _lay_task(self, sig: Signature, before: Node | None) -> Node:
        if not isinstance(sig["task"], str) or not sig["task"]:
            raise TypeError(f"{sig['task']!r} is no name of a task: a signature needs one to be sent")
        if isinstance(sig, xmap | xstarmap) and "route_name" not in sig.options:
            sig = sig._bound(options={"route_name": sig.kwargs["task"]["task"]})
        step = Step(sig, sig.id or new_id())
        if before is not None:
            self._tie(step, before)
        self.steps.append(step)
        node = Node(step.id, before, None, [step])
        for link in each_of(sig.options.get("link")):
            end = self._lay(as_signature(link), node)
            if end is not None and end is not node:
                step.links.append(_as_tuple(end, node))
        return node

    def _lay_sent(self, sig: group) -> Node:
        parts = _parts(sig)
        if len(parts) != 1 or sig.options.get("on_done"):
            return self._lay_group(sig, None)
        node = self._lay(parts[0], None)
        assert node is not None
        # A group of one that ends in a group is that group (F212); as a header, or within others, it is a list of one.
        return node if node.is_group else _grouped(sig, None, [node])

    def _lay_group(self, sig: group, before: Node | None) -> Node:
        parts = _parts(sig)
        if not parts and before is not None:
            # What follows is fed an empty list, but not before what stands here has ended.
            return self._lay_task(Signature("celery.accumulate", task_id=sig.id, immutable=True), before)
        first = len(self.steps)
        members = [self._lay(each, before, is_told=True) for each in parts]
        if before is not None:
            for step in self.steps[first:]:
                step.leads += ENTERS * (step.after == before.id)
        node = _grouped(sig, before, [each for each in members if each is not None])
        for callback in each_of(sig.options.get("on_done")):
            self._lay_done(as_signature(callback), node)
        return node

    def _lay_done(self, callback: Signature, node: Node) -> None:
        if not node.members:
            self._lay(callback._bound(([],)), None)
            return
        self._gather(node)
        first = len(self.steps)
        self._lay(callback, node, is_told=True)
        for step in self.steps[first:]:
            if step.after == node.id:
                step.leads |= WAITS_ANYWAY
                step.feed = ENDS if step.feed else None
        for end in node.ends:
            end.leads |= LEADS_ANYWAY

    def _gather(self, node: Node) -> None:
        """See to it that each member of a group that somebody waits for ends in one task, which has its value."""
        for place, member in enumerate(node.members or ()):
            if not member.is_group:
                continue
            # Its id follows from the group's, so that it is the same however often the workflow is laid out.
            gathered = self._lay_task(Signature("celery.accumulate", task_id=f"{member.id}.list"), member)
            gathered.ends[0].leads |= SHOWS_CAUSE
            node.members[place] = gathered  # type: ignore[index]
        _number(node)

    def _tie(self, step: Step, before: Node) -> None:
        step.after = before.id
        if not before.is_group:
            step.waits_for, step.feed = 1, RESULT
            before.ends[0].leads |= LEADS_BY_ID
        else:
            self._gather(before)
            step.waits_for, step.feed = len(before.ends), RESULTS
            for end in before.ends:
                end.leads |= LEADS_BY_GROUP
        if step.sig.immutable:
            step.feed = None


def _grouped(sig: group, before: Node | None, members: list[Node]) -> Node:
    node = Node(sig.id or new_id(), before, members, [])
    _number(node)
    return node


def _number(node: Node) -> None:
    """Have the tasks in which the members of a group end know it, and their places in it."""
    node.ends = []
    for place, member in enumerate(node.members or ()):
        if not member.is_group:
            (end,) = member.ends
            end.group_id, end.position = node.id, place
            node.ends.append(end)


def _errbacks(part: Signature) -> list[Any]:
    """Return the errbacks given to a part of a workflow itself; a chord's are its body's.

    And those of a chain's first step: whether Celery tells them depends on how the chain was written.
    """
    found = list(each_of(part.options.get("link_error")))
    while isinstance(part, chord | chain):
        steps = [part["kwargs"].get("body")] if isinstance(part, chord) else real_steps([part], look=True)[:1]
        if not steps or steps[0] is None:
            break
        part = as_signature(steps[0])
        found += [each for each in each_of(part.options.get("link_error")) if each not in found]
    return found


def _name(part: Any) -> str:
    """Return the name of the first task of a part."""
    while isinstance(part, chord | chain | group):
        inner = part["kwargs"]["body"] if isinstance(part, chord) else next(iter(part._parts()), None)
        if inner is None:
            return ERRAND
        part = as_signature(inner)
    return str(part["task"])


def _as_tuple(node: Node, until: Node) -> Any:
    """Write the result of a part of a workflow as Celery does, up to what stands before it."""
    path: list[Node] = []
    at: Node | None = node
    while at is not None and at is not until:
        path.append(at)
        at = at.parent
    found: Any = None
    for part in reversed(path):
        members = None if part.members is None else [_as_tuple(each, part.parent or until) for each in part.members]
        found = (part.id, found), members
    return found


def _parts(sig: group) -> list[Any]:
    return [each for each in _flat(sig) if not is_empty_chain(each)]


def _flat(sig: group) -> list[Any]:
    """The members, those of groups within the group in their place.

    The group's options go to each; its links and errbacks stand beside those that a member has itself.
    """
    shared = {key: value for key, value in sig.options.items() if key not in _GROUPS_OWN and value is not None}
    links, errbacks = each_of(shared.pop("link", None)), each_of(shared.pop("link_error", None))
    found: list[Any] = []
    for member in sig["kwargs"]["tasks"]:
        (each,) = linked([member._bound(options=shared) if shared else member], links, errbacks)
        found += _flat(each) if isinstance(each, group) else [each]
    return found
