"""Workflows: signatures that hold others, before they are sent.

    chain  a | b | c           one after another, each fed the result before it
    group  (a, b)              side by side
    chord  group | body        the body is fed the list of the results of the group
    xmap, xstarmap, chunks     many calls of one task in one message, or in few

All are dicts of Celery's form. A chain is kept flat: the steps of chains within it are its own, an empty group in it is
nothing, a group of one is that one, and what follows a group is the body of a chord. `|` shares the signatures it
joins, until somebody looks at them (`tasks`): so joining n steps takes n steps. `plan` lays all of this out.

Must not know apps, tasks, stores or plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from localq.lazy import Lazy, is_waiting
from localq.maps import chunks, xmap, xstarmap
from localq.message import new_id
from localq.signatures import (
    NOWHERE,
    Args,
    Keys,
    Place,
    Signature,
    as_signature,
    each_of,
    maybe_signature,
    maybe_subtask,
    signature,
    subtask,
)
from localq.stamping import StampingVisitor, merged
from localq.workflows import Members, Text, Workflow, clones, given, said_once, shown

__all__ = [
    "Signature", "StampingVisitor", "chain", "chord", "chunks", "group", "maybe_signature", "maybe_subtask",
    "signature", "subtask", "xmap", "xstarmap",
]  # fmt: skip

#: Options of a chain that are not its first task's, and of a chord that are not its members' and body's.
_CHAINS_OWN = frozenset({
    "chord", "group_id", "group_index", "link", "link_error", "parent_id", "root_id", "task_id",
})  # fmt: skip


@Signature.register_type("chain")
class chain(Members):
    """Steps one after another, each fed the result of the one before it.

    Args:
        tasks: signatures, or one iterable of them.
        options: the first task's; `link` is the last one's, `link_error` every one's, `task_id` the last one's.
    """

    _kind = "chain"

    def __init__(self, *tasks: Any, app: Any = None, **options: Any) -> None:
        steps: list[Any] = []
        for step in real_steps(given(tasks, app)):
            _add(steps, step)
        super().__init__("celery.chain", (), {"tasks": steps}, app=app, **options)
        self._borrows = True

    @classmethod
    def joined(cls, first: Signature, second: Signature) -> Any:
        """Return `first | second`."""
        kind = type(first) if isinstance(first, chain) else cls
        steps = [*first._spliced()] if isinstance(first, chain) else [first]
        more = real_steps([second])
        if not steps and len(more) == 1 and isinstance(more[0], group):
            return more[0]
        for step in more:
            _add(steps, step)
        new = kind(app=first._app)
        new["kwargs"]["tasks"] = steps
        new._borrows = True
        return new

    def _spliced(self) -> list[Any]:
        """Return the steps for another to hold as well, with what this chain's options mean for each."""
        steps: list[Any] = self._lend()
        options = self.options
        if not options or not steps:
            return steps
        first = {key: value for key, value in options.items() if key not in _CHAINS_OWN and value is not None}
        root_id, errbacks = options.get("root_id"), each_of(options.get("link_error"))
        last = {key: options[key] for key in ("chord", "group_id", "group_index") if options.get(key) is not None}
        if options.get("task_id") is not None and steps[-1].id is None:
            last["task_id"] = options["task_id"]
        if options.get("parent_id") is not None:
            first["parent_id"] = options["parent_id"]
        every = {} if root_id is None else {"root_id": root_id}
        steps = [step._bound(options=every) for step in steps] if every else [*steps]
        steps[0] = steps[0]._bound(options=first) if first else steps[0]
        steps[-1] = steps[-1]._bound(options=last) if last else steps[-1]
        return linked(steps, each_of(options.get("link")), errbacks)

    def _bound(self, args: Args = None, kwargs: Keys = None, options: Keys = None) -> Self:
        steps = self["kwargs"]["tasks"]
        if (args or kwargs) and not self.immutable:
            at = next((at for at, step in enumerate(steps) if not _is_void(step)), None)
            if at is not None:
                steps = [*steps[:at], steps[at]._bound(args, kwargs), *steps[at + 1 :]]
        return self._with(kwargs={**self.kwargs, "tasks": steps}, options=self._more(options))

    def set_immutable(self, immutable: bool) -> None:
        """Say whether its first task takes further arguments."""
        self["immutable"] = immutable
        for first in self.tasks[:1]:
            first.set_immutable(immutable)

    def unchain_tasks(self) -> list[Any]:
        """Return copies of the steps, with its links on the last, and its errbacks on each."""
        links, errbacks = (each_of(self.options.get(key)) for key in ("link", "link_error"))
        return linked([step.clone() for step in self._parts()], links, errbacks)

    def _settle(self, place: Place = NOWHERE) -> None:
        steps = self.tasks
        real = [step for step in steps if not _is_void(step)] or steps
        for step in real[:-1]:
            step._settle(Place(root_id=place.root_id))
        for last in real[-1:]:
            last._settle(place._replace(id=self.id or place.id, parent_id=None))
            self.id = last.id

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Any:
        """Write stamps on every step; see `Signature.stamp`."""
        found = visitor.on_chain_start(self, **headers) or {} if visitor is not None else None
        stamps = merged(headers, found, self.options, append_stamps)
        self.stamp_links(visitor, append_stamps, **stamps)
        for step in self.tasks:
            step.stamp(visitor, append_stamps, **stamps)
        if visitor is not None:
            visitor.on_chain_end(self, **stamps)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.apply_async(args, kwargs)

    def apply_async(self, args: Args = None, kwargs: Keys = None, **options: Any) -> Any:
        """Send it; returns the last task's result, or None if it is empty."""
        return super().apply_async(args, kwargs, **options) if real_steps(self._parts()) else None

    def apply(self, args: Args = None, kwargs: Keys = None, **options: Any) -> Any:
        """Run it here and now; returns the last task's result, or None if it is empty."""
        return super().apply(args, kwargs, **options) if real_steps(self._parts()) else None

    def __repr__(self) -> str:
        steps = self._parts()
        if not steps:
            return f"<{type(self).__name__}@{id(self):#x}: empty>"
        return said_once(steps[0]["task"], " | ".join(shown(steps)))


def linked(steps: list[Any], links: list[Any], errbacks: list[Any]) -> list[Any]:
    """Return the steps with callbacks on the last, and errbacks on each; those that get any are copies.

    A group that others follow is a chord's header: it gets none, as the members of a chord's header do not.
    """
    if errbacks:
        steps = [step.clone() for step in steps]
        for step in [step for step in steps[:-1] if not isinstance(step, group)] + steps[-1:]:
            for errback in errbacks:
                step.link_error(errback)
    if links and steps:
        steps = [*steps[:-1], steps[-1].clone()]
        for link in links:
            _link_end(steps[-1], link)
    return steps


def _link_end(step: Any, link: Any) -> None:
    if isinstance(step, group):
        # It is the chain's callback, not the group's: each member's, and with its result.
        for each in step.tasks:
            _link_end(each, link)
    elif isinstance(step, chord):
        _link_end(step.body, link)
    else:
        step.link(link)


@Signature.register_type("group")
class group(Members):
    """Members side by side.

    Args:
        tasks: signatures, or one iterable of them; a generator is not asked for them before somebody looks.
        options: every member's.
    """

    _kind = "group"

    def __init__(self, *tasks: Any, app: Any = None, **options: Any) -> None:
        if len(tasks) == 1 and isinstance(tasks[0], dict) and tasks[0].get("subtask_type") == "group":
            tasks = (as_signature(tasks[0], app)._lend(),)
            self._borrows = True
        members = tasks[0] if len(tasks) == 1 and is_waiting(tasks[0]) else given(tasks, app)
        super().__init__("celery.group", (), {"tasks": members}, app=app, **options)

    @property
    def is_waiting(self) -> bool:
        """Whether it is a generator's, and nobody has looked at it yet."""
        return is_waiting(self["kwargs"]["tasks"])

    def _bound(self, args: Args = None, kwargs: Keys = None, options: Keys = None) -> Self:
        members = self["kwargs"]["tasks"]
        if (args or kwargs) and not self.immutable:
            args = tuple(args or ())
            members = [each._bound(args, kwargs) for each in members]
        return self._with(kwargs={**self.kwargs, "tasks": members}, options=self._more(options))

    def apply_async(self, args: Args = None, kwargs: Keys = None, **options: Any) -> Any:
        """Send all members in one transaction, with these arguments and options.

        Raises:
            TypeError: `link` or `link_error` are given: a group's end is nobody's.
        """
        if options.get("link") is not None:
            raise TypeError("Cannot add link to group: use a chord")
        if options.get("link_error") is not None:
            raise TypeError("Cannot add link to group: do that on individual tasks")
        return super().apply_async(args, kwargs, **options)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.apply_async(args, **options)

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> Self:
        """Have the members start one after another: seconds from now, the last one's again for all from `stop` on."""
        countdown = start
        for number, member in enumerate(self.tasks):
            if number and (not stop or countdown + step <= stop):
                countdown += step
            member.set(countdown=countdown)
        return self

    def link(self, callback: Any) -> Any:
        """Send this signature when the first member has succeeded, without its result; see `chord` for all of them."""
        for first in (each for each in self.tasks if not _is_void(each) and not is_empty_chain(each)):
            return first.link(as_signature(callback).clone().set(immutable=True))
        raise ValueError("an empty group has no task that could be linked to")

    def link_error(self, errback: Any) -> Any:
        """Tell this signature of every member that fails."""
        return tuple(each.link_error(as_signature(errback).clone()) for each in self.tasks)

    def on_done(self, callback: Any) -> Self:
        """Send this signature once when all members have ended, well or badly; returns the group.

        It is fed one list, in the members' order, of (state, result) pairs; the result of a member that failed is its
        exception. Beyond Celery.
        """
        self.append_to_list_option("on_done", callback)
        return self

    def set_immutable(self, immutable: bool) -> None:
        """Say whether its members take further arguments."""
        for each in self.tasks:
            each.set_immutable(immutable)

    def _settle(self, place: Place = NOWHERE) -> None:
        if self.id is None:
            self.id = place.id or new_id()
        for index, each in enumerate(each for each in self.tasks if not is_empty_chain(each)):
            each._settle(place._replace(id=None, group_index=index))

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Any:
        """Write stamps on every member; see `Signature.stamp`."""
        found = visitor.on_group_start(self, **headers) or {} if visitor is not None else None
        stamps = merged(headers, found, self.options, append_stamps)
        self.stamp_links(visitor, append_stamps, **stamps)
        self.tasks = _stamped(self.tasks, visitor, append_stamps, stamps)
        if visitor is not None:
            visitor.on_group_end(self, **stamps)
        return self

    def __or__(self, other: Any) -> Any:
        if not isinstance(other, dict):
            return NotImplemented
        other = as_signature(other)
        if isinstance(other, group) and not other.is_waiting and not other._parts():
            return self
        return chord(self, body=other, app=self._app)

    def __len__(self) -> int:
        return len(self["kwargs"]["tasks"])

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        members = self._parts()
        return said_once(members[0]["task"], f"group([{', '.join(shown(members))}])") if members else "group(<empty>)"


def _stamped(tasks: Any, visitor: Any, append_stamps: bool, stamps: Mapping[str, Any]) -> Any:
    if is_waiting(tasks):
        return Lazy(tasks, lambda each: each.stamp(visitor, append_stamps, **stamps))
    for each in tasks:
        each.stamp(visitor, append_stamps, **stamps)
    return tasks


@Signature.register_type("chord")
class chord(Workflow):
    """A body that runs once, with the list of the results of every member of its header.

    Args:
        header: a group, or any iterable of signatures.
        options: the members' and the body's; `countdown` and `eta` are the members' alone, links and `task_id` the
            body's.
    """

    _kind = "chord"
    #: For Celery's polling of the members, of which there is none here.
    _own_options = frozenset({"interval", "max_retries"})

    def __init__(self, header: Any, body: Any = None, app: Any = None, **options: Any) -> None:
        if isinstance(header, dict):
            header = as_signature(header, app)
        if isinstance(header, Members):
            members = header._lend()
            header = header if isinstance(header, group) and header.options else members
            self._borrows = True
        elif not is_waiting(header):
            header = given((header,), app)
        body = None if body is None else as_signature(body, app)
        super().__init__("celery.chord", (), {"kwargs": {}, "header": header, "body": body}, app=app, **options)

    @property
    def tasks(self) -> Any:
        """The header: a list of signatures, or a group once it has an id or options."""
        self._own()
        return self["kwargs"]["header"]

    @tasks.setter
    def tasks(self, tasks: Any) -> None:
        self["kwargs"]["header"] = tasks

    @property
    def body(self) -> Any:
        """What is fed their results; None if it is still to be given."""
        self._own()
        return self["kwargs"]["body"]

    @body.setter
    def body(self, body: Any) -> None:
        self["kwargs"]["body"] = body

    @property
    def header(self) -> group:
        """The header as a group, which it is from now on."""
        if not isinstance(self.tasks, group):
            self.tasks = group(self.tasks, app=self._app)
        found: group = self.tasks
        return found

    def _members(self) -> Any:
        header = self["kwargs"]["header"]
        return header._parts() if isinstance(header, group) else header

    def _own_members(self) -> Any:
        tasks = self.tasks
        return tasks.tasks if isinstance(tasks, group) else tasks

    def _parts(self) -> Iterable[Any]:
        yield from self._members()
        if self["kwargs"]["body"] is not None:
            yield self["kwargs"]["body"]

    def _adopt(self) -> None:
        kwargs = self["kwargs"]
        header = kwargs.get("header") or ()
        if isinstance(header, dict):
            kwargs["header"] = as_signature(header, self._app)
        elif not is_waiting(header):
            kwargs["header"] = [as_signature(each, self._app) for each in header]
        body = kwargs.get("body")
        kwargs["body"] = None if body is None else as_signature(body, self._app)

    def _apart(self) -> Self:
        super()._apart()
        header, body = self["kwargs"]["header"], self["kwargs"]["body"]
        self["kwargs"]["header"] = header.clone() if isinstance(header, group) else clones(header)
        self["kwargs"]["body"] = None if body is None else body.clone()
        return self

    def _bound(self, args: Args = None, kwargs: Keys = None, options: Keys = None) -> Self:
        kwargs = dict(kwargs or {})
        header, body = self["kwargs"]["header"], kwargs.pop("body", None) or self["kwargs"]["body"]
        if (args or kwargs) and not self.immutable:
            args = tuple(args or ())
            is_group = isinstance(header, group)
            header = header._bound(args, kwargs) if is_group else [each._bound(args, kwargs) for each in header]
        return self._with(kwargs={**self.kwargs, "header": header, "body": body}, options=self._more(options))

    def sent(self) -> tuple[group, Any]:
        """Return the group and the body that are sent, with what this chord's options mean for each.

        Raises:
            ValueError: it has no body.
        """
        header, body = self["kwargs"]["header"], self["kwargs"]["body"]
        if body is None:
            raise ValueError(f"{self!r} cannot be sent: give it a body, chord(header, body) or chord(header)(body)")
        if not isinstance(header, group):
            header = group(header, app=self._app)
        if not self.options:
            return header, body
        both = {key: value for key, value in self.options.items() if key not in _CHAINS_OWN | self._own_options}
        whose = {key: self.options[key] for key in ("root_id",) if self.options.get(key) is not None}
        first = {key: self.options[key] for key in ("parent_id",) if self.options.get(key) is not None}
        last = {key: self.options[key] for key in ("group_id", "group_index") if self.options.get(key) is not None}
        if self.options.get("task_id") is not None and body.id is None:
            last["task_id"] = self.options["task_id"]
        later = {key: value for key, value in both.items() if key not in ("countdown", "eta")}
        body = body._bound(options={**later, **whose, **last})
        (body,) = linked([body], *(each_of(self.options.get(key)) for key in ("link", "link_error")))
        return header._bound(options={**both, **whose, **first}), body

    def link(self, callback: Any) -> Any:
        """Send this signature with the body's result."""
        self._with_body().link(callback)
        return callback

    def link_error(self, errback: Any) -> Any:
        """Tell this signature when the body has failed; with task_allow_error_cb_on_chord_header, the members too."""
        errback = as_signature(errback)
        for each in self._own_members():
            if isinstance(each, chord):
                each.link_error(errback)
            elif self.app.conf.task_allow_error_cb_on_chord_header:
                each.link_error(errback.clone().set(immutable=True))
        self._with_body().link_error(errback)
        return errback

    def _with_body(self) -> Any:
        if self.body is None:
            raise ValueError(f"{self!r} has no body that could be linked to: give it one first")
        return self.body

    def set_immutable(self, immutable: bool) -> None:
        """Say whether the members of its header take further arguments; the body always takes their results."""
        for each in self._own_members():
            each.set_immutable(immutable)

    def _settle(self, place: Place = NOWHERE) -> None:
        self.header._settle(Place(root_id=place.root_id, parent_id=place.parent_id))
        body = self._with_body()
        body._settle(place._replace(id=self.id or place.id, parent_id=None))
        self.id = body.id

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Any:
        """Write stamps on every member, and, if there is a visitor, on the body; see `Signature.stamp`."""
        found = visitor.on_chord_header_start(self, **headers) or {} if visitor is not None else None
        stamps = merged(headers, found, self.options, append_stamps)
        self.stamp_links(visitor, append_stamps, **stamps)
        owner = self.tasks if isinstance(self.tasks, group) else self
        owner.tasks = _stamped(owner.tasks, visitor, append_stamps, stamps)
        if visitor is not None:
            visitor.on_chord_header_end(self, **stamps)
            if self.body is not None:
                found = visitor.on_chord_body(self, **stamps) or {}
                self.body.stamp(visitor, append_stamps, **merged(stamps, found, self.options, append_stamps))
        return self

    def apply_async(self, args: Args = None, kwargs: Keys = None, **options: Any) -> Any:
        """Send it; returns the body's result, whose parent is the group's.

        Args:
            kwargs: a `body` among them is the body.
        """
        return super().apply_async(args, kwargs, **options)

    def __call__(self, body: Any = None, **options: Any) -> Any:
        return self.apply_async((), {} if body is None else {"body": as_signature(body)}, **options)

    def __or__(self, other: Any) -> Any:
        if not isinstance(other, dict):
            return NotImplemented
        steps = real_steps([as_signature(other)])
        body = self["kwargs"]["body"]
        if len(steps) != 1 or isinstance(other, chain) or isinstance(steps[0], group) or body is None:
            return super().__or__(other)
        return self._joined(steps[0])

    def _joined(self, step: Any) -> chord:
        """Return the chord whose body goes on with a step."""
        self._borrows = True
        return self._with(kwargs={**self.kwargs, "body": self["kwargs"]["body"] | step})

    def __length_hint__(self) -> int:
        return len(self._members())

    def __repr__(self) -> str:
        members = Text(f"[{', '.join(shown(self._members()))}]")
        body = self["kwargs"]["body"]
        if body is None:
            return f"<chord without body: {members!r}>"
        if not isinstance(body, chain) or not body._parts():
            return said_once(body["task"], f"%{body.reprcall(members)}")
        first, *rest = body._parts()
        return said_once(first["task"], f"%({' | '.join((first.reprcall(members), *shown(rest)))})")


# -- What is one step of a chain -------------------------------------------------------------------


def real_steps(steps: Iterable[Any], look: bool = False) -> list[Any]:
    """Return the steps that a chain of these comes to: flat, without empty groups (but one, if there is nothing else).

    Args:
        look: also at the groups of generators.
    """
    found: list[Any] = []
    empty: list[Any] = []
    left = [*steps][::-1]
    while left:
        step = left.pop()
        if isinstance(step, chain):
            left += step._spliced()[::-1]
        elif not isinstance(step, group) or (step.is_waiting and not look):
            found.append(step)
        elif _is_void(step):
            empty.append(step)
        elif len(step._parts()) == 1 and not (found and isinstance(found[-1], group)):
            options = {key: value for key, value in step.options.items() if key not in _CHAINS_OWN}
            member = step._lend()[0]
            left.append(member._bound(options=options) if options else member)
        else:
            found.append(step)
    return found or empty[:1]


def _add(steps: list[Any], step: Any) -> None:
    """Append a step to those of a chain: to a group before it, it is the body of a chord."""
    last = steps[-1] if steps else None
    if isinstance(last, group) and not last.is_waiting and len(last._parts()) == 1:
        # It was a generator's when it was added; alone in a chain, it is what it holds.
        steps[-1:] = real_steps([last])
        last = steps[-1]
    if last is None or isinstance(step, group):
        if last is None or not _is_void(step):
            steps[:] = [] if len(steps) == 1 and _is_void(last) else steps
            steps.append(step)
    elif isinstance(last, group) and not last.is_waiting:
        steps[-1:] = [step] if _is_void(last) else [chord(last, body=step, app=last._app)]
    elif isinstance(last, chord) and last["kwargs"]["body"] is not None and not isinstance(step, Workflow):
        steps[-1] = last._joined(step)
    else:
        steps.append(step)


def _is_void(step: Any) -> bool:
    """Whether nothing would be sent of it; a generator is not looked at."""
    left = [step]
    while left:
        step = left.pop()
        if not isinstance(step, Members) or (isinstance(step, group) and step.is_waiting):
            return False
        left += step._parts()
    return True


def is_empty_chain(step: Any) -> bool:
    """Whether it is a chain of which nothing would be sent."""
    return isinstance(step, chain) and not real_steps(step._parts())
