"""A workflow laid out: every message of it, and who waits for whom.

`Plan` turns any tree of signatures into messages-to-be: each step knows which end it waits for and what that end feeds
it, so the store knows the whole workflow as soon as it is sent, every id of it included, and one `put` sends it all or
nothing. A step stands once, however many wait for it: n steps, or n groups in a row, are O(n) messages.

Must not change the signatures, and knows no apps, tasks or stores.
"""

from __future__ import annotations

from typing import Any

from localq.canvas import chain, chord, chunks, group, is_empty_chain, linked, real_steps, xmap, xstarmap
from localq.message import LEADS_BY_GROUP, LEADS_BY_ID, new_id
from localq.options import warn_user
from localq.signatures import Signature, as_signature, each_of

#: `Step.feed`, and the header of the same name.
RESULT, RESULTS = "result", "results"
NOT_TOLD = "link_error of a chord's body is told if the body fails, and not yet if a task of its header does"
#: Options of a group that are not its members'.
_GROUPS_OWN = frozenset({"task_id", "group_id", "group_index", "chord", "add_to_parent"})


class Step:
    """One message to be.

    Attributes:
        after, waits_for: what it waits for, and how many ends of it.
        feed: what those ends give it as its first argument: one RESULT, the list of RESULTS, or nothing.
        group_id, position: the group it ends a member of, and the place of its result.
        leads: who waits for it; filled when somebody does.
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
        ends: the steps whose ends are this part's end.
    """

    __slots__ = ("ends", "id", "members", "parent")

    def __init__(self, id: str, parent: Node | None, members: list[Node] | None, ends: list[Step]) -> None:
        self.id, self.parent, self.members, self.ends = id, parent, members, ends


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

    def _lay(self, sig: Signature, before: Node | None) -> Node | None:
        # A loop where it could be a call: a body may have a body, and so on.
        while isinstance(sig, chord):
            header, sig = sig.sent()
            if sig.options.get("link_error"):
                warn_user(NOT_TOLD)
            before = self._lay_group(header, before)
        if isinstance(sig, chain):
            for each in real_steps([sig], look=True):
                before = self._lay(each, before)
            return before
        if isinstance(sig, chunks):
            sig = sig.group()
        return self._lay_group(sig, before) if isinstance(sig, group) else self._lay_task(sig, before)

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
        if len(parts) != 1:
            return self._lay_group(sig, None)
        node = self._lay(parts[0], None)
        assert node is not None
        # A group of one that ends in a group is that group (F212); as a header, or within others, it is a list of one.
        return node if node.members is not None else _grouped(sig, None, [node])

    def _lay_group(self, sig: group, before: Node | None) -> Node:
        parts = _parts(sig)
        if not parts and before is not None:
            # What follows is fed an empty list, but not before what stands here has ended.
            return self._lay_task(Signature("celery.accumulate", task_id=sig.id, immutable=True), before)
        # A member's last step is put before the next member's first: the ends are in the order of their places.
        return _grouped(sig, before, [self._with_one_end(self._lay(each, before)) for each in parts])

    def _with_one_end(self, node: Node | None) -> Node:
        assert node is not None
        if node.members is None:
            return node
        # A member that ends in a group: one more step gathers its list. Its id follows from the group's, so that it is
        # the same however often the workflow is laid out.
        return self._lay_task(Signature("celery.accumulate", task_id=f"{node.id}.list"), node)

    def _tie(self, step: Step, before: Node) -> None:
        step.after = before.id
        if before.members is None:
            step.waits_for, step.feed = 1, RESULT
            before.ends[0].leads |= LEADS_BY_ID
        else:
            step.waits_for, step.feed = len(before.ends), RESULTS
            for end in before.ends:
                end.leads |= LEADS_BY_GROUP
        if step.sig.immutable:
            step.feed = None


def _grouped(sig: group, before: Node | None, members: list[Node]) -> Node:
    group_id = sig.id or new_id()
    ends = [end for member in members for end in member.ends]
    for position, end in enumerate(ends):
        end.group_id, end.position = group_id, position
    return Node(group_id, before, members, ends)


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
