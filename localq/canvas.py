"""Signatures and workflows: what to run, before it is sent.

A signature is a plain dict (JSON-able, as Celery's). `plan` turns any tree of signatures into
messages-to-be: each step knows which end it waits for and what that end feeds it, so the store knows the
whole workflow as soon as it is sent, every id of it included, and one `put` sends it all or nothing.

    chain  a | b | c           b waits for a, c waits for b; each is fed the result before it
    group  (a, b)              nobody waits
    chord  group | body        body waits for every member of the group, and is fed the list of results

Must not know apps, tasks or stores; "something that sends" is a protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Protocol

from localq.context import current_app
from localq.message import LEADS_BY_GROUP, LEADS_BY_ID, new_id
from localq.options import check_call_names, warn_user
from localq.serialization import safe_repr

#: `Step.feed`, and the header of the same name.
RESULT, RESULTS = "result", "results"


class Sender(Protocol):
    """What a signature needs in order to be sent."""

    tasks: Any

    def send(self, signature: Signature) -> Any: ...

    def apply(self, signature: Signature) -> Any: ...


class Signature(dict[str, Any]):
    """A call that has not happened: task name, arguments, options.

    Args:
        task: a name, a task, or a dict that a signature was turned into.
        immutable: takes no further arguments, and no result of the step before it.
    """

    subtask_type: str | None = None
    #: Options that are no call's.
    _own_options: frozenset[str] = frozenset()

    def __init__(
        self,
        task: Any = None,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        immutable: bool = False,
        app: Any = None,
        **more: Any,
    ) -> None:
        if isinstance(task, dict):
            super().__init__(task)
        else:
            given = {**(options or {}), **more}
            if given:
                check_call_names(given, self._own_options)
            super().__init__(
                task=getattr(task, "name", task),
                args=tuple(args or ()),
                kwargs=dict(kwargs or {}),
                options=given,
                subtask_type=self.subtask_type,
                immutable=immutable,
            )
        # A signature's `app` falls back to the current one, which is not its own.
        self._app = app if app is not None else getattr(task, "_app" if isinstance(task, dict) else "app", None)

    # -- Looking at it -------------------------------------------------------------------------

    @property
    def task(self) -> str:
        return str(self["task"])

    name = task

    @property
    def args(self) -> Any:
        return self["args"]

    @property
    def kwargs(self) -> Any:
        return self["kwargs"]

    @property
    def options(self) -> dict[str, Any]:
        return self["options"]  # type: ignore[no-any-return]

    @property
    def immutable(self) -> bool:
        return bool(self.get("immutable"))

    @property
    def id(self) -> str | None:
        return self.options.get("task_id")

    @property
    def app(self) -> Any:
        return self._app if self._app is not None else current_app()

    @property
    def type(self) -> Any:
        """The task itself, if it is registered here."""
        return self.app.tasks[self.task]

    # -- Making others of it -------------------------------------------------------------------

    def clone(self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Return a copy with more arguments in front, more keywords and more options."""
        new = _typed(self)(dict(self), app=self._app)
        if not self.immutable:
            new["args"] = (*args, *self.args)
            new["kwargs"] = {**self.kwargs, **(kwargs or {})}
        kept = deepcopy(self.options) if self.options else {}
        new["options"] = {**kept, **{k: v for k, v in options.items() if v is not None}}
        return new

    partial = clone

    def replace(self, args: Any = None, kwargs: Any = None, options: Any = None) -> Any:
        """Return a copy with other arguments, keywords or options."""
        new = self.clone()
        for key, value in (("args", args), ("kwargs", kwargs), ("options", options)):
            if value is not None:
                new[key] = value
        return new

    def set(self, immutable: bool | None = None, **options: Any) -> Any:
        """Set options on this signature and return it."""
        if immutable is not None:
            self.set_immutable(immutable)
        check_call_names(options, self._own_options)
        self.options.update(options)
        return self

    def set_immutable(self, immutable: bool) -> None:
        self["immutable"] = immutable

    def freeze(self, _id: str | None = None) -> Any:
        """Give the signature its id now, and return the result it will have."""
        self.options.setdefault("task_id", _id or new_id())
        return self.app.AsyncResult(self.options["task_id"])

    def link(self, callback: Any) -> Any:
        """Send this signature with the result when the task has succeeded; returns it."""
        return self._append("link", callback)

    def link_error(self, errback: Any) -> Any:
        """Tell this signature when the task has failed; returns it."""
        return self._append("link_error", errback)

    def on_error(self, errback: Any) -> Any:
        """Tell this signature when the task has failed; returns the task's own, to go on with."""
        self.link_error(errback)
        return self

    def _append(self, name: str, given: Any) -> Any:
        if not isinstance(given, Mapping):
            raise TypeError(f"{name} takes a signature, got {given!r}: write task.s(...)")
        known = self.options.get(name) or []
        each = [known] if isinstance(known, dict) else list(known)
        if given not in each:
            self.options[name] = [*each, given]
        return given

    def flatten_links(self) -> list[Any]:
        """Return this signature, its callbacks, and theirs."""
        links = self.options.get("link") or []
        each = [links] if isinstance(links, dict) else links
        return [self, *(found for link in each for found in signature(link).flatten_links())]

    # -- Sending it ----------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the task here and now."""
        new = self.clone(args, kwargs)
        return new.type(*new.args, **new.kwargs)

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """Send it, with these arguments in front."""
        return self.apply_async(args, kwargs)

    def apply_async(self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Send it, with these arguments in front and these options."""
        return self.app.send(self.clone(args or (), kwargs, **options))

    async def adelay(self, *args: Any, **kwargs: Any) -> Any:
        """Send it without blocking the event loop, with these arguments in front."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(
        self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """Send it without blocking the event loop, with these arguments in front and these options."""
        return await self.app.aside(lambda: self.apply_async(args, kwargs, **options))

    def apply(self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run it here and now, as a worker would."""
        return self.app.apply(self.clone(args or (), kwargs, **options))

    def __invert__(self) -> Any:
        return self.apply_async().get()

    def __or__(self, other: Any) -> Any:
        if not isinstance(other, Signature):
            return NotImplemented
        return joined(self, other)

    def __deepcopy__(self, memo: Any) -> Any:
        return _typed(self)(deepcopy(dict(self), memo), app=self._app)

    def __reduce__(self) -> Any:
        return signature, (dict(self),)

    def __repr__(self) -> str:
        values = [repr(arg) for arg in self.args] + [f"{k}={v!r}" for k, v in self.kwargs.items()]
        return f"{self.task}({', '.join(values)})"


def _typed(sig: Mapping[str, Any]) -> Callable[..., Any]:
    kinds = {"chain": chain, "group": group, "chord": chord, "xmap": xmap, "xstarmap": xstarmap, "chunks": chunks}
    return kinds.get(str(sig.get("subtask_type")), Signature)


class chain(Signature):
    """Steps one after another, each fed the result of the one before it."""

    subtask_type = "chain"

    def __init__(self, *tasks: Any, app: Any = None, **options: Any) -> None:
        if len(tasks) == 1 and isinstance(tasks[0], dict) and tasks[0].get("subtask_type") == "chain":
            super().__init__(tasks[0], app=app)
            return
        steps: list[Signature] = []
        for step in _members(tasks):
            steps += step.tasks if isinstance(step, chain) else [step]
        super().__init__("celery.chain", (), {"tasks": _with_chords(steps)}, app=app or _app_of(steps), **options)

    @property
    def tasks(self) -> list[Signature]:
        return [signature(each) for each in self.kwargs["tasks"]]

    def clone(self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> chain:
        new: chain = super().clone((), None, **options)
        steps = self.tasks
        if steps:
            steps[0] = steps[0].clone(args, kwargs)
        new["kwargs"] = {"tasks": steps}
        return new

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.apply_async(args, kwargs)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.tasks))


class group(Signature):
    """Members side by side."""

    subtask_type = "group"

    def __init__(self, *tasks: Any, app: Any = None, **options: Any) -> None:
        if len(tasks) == 1 and isinstance(tasks[0], dict) and tasks[0].get("subtask_type") == "group":
            super().__init__(tasks[0], app=app)
            return
        members = _members(tasks)
        super().__init__("celery.group", (), {"tasks": members}, app=app or _app_of(members), **options)

    @property
    def tasks(self) -> list[Signature]:
        return [signature(each) for each in self.kwargs["tasks"]]

    def clone(self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> group:
        new: group = super().clone((), None, **options)
        args = tuple(args)
        if args or kwargs:
            new["kwargs"] = {"tasks": [each.clone(args, kwargs) for each in self.tasks]}
        return new

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.apply_async(args, kwargs)

    def __len__(self) -> int:
        return len(self.kwargs["tasks"])

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"group({', '.join(map(repr, self.tasks))})" if len(self) else "group(<empty>)"


class chord(Signature):
    """A body that runs once, with the list of the results of every member of its header."""

    subtask_type = "chord"
    #: Of Celery's polling, which is not done here.
    _own_options = frozenset({"interval", "max_retries"})

    def __init__(self, header: Any, body: Any = None, app: Any = None, **options: Any) -> None:
        if isinstance(header, dict) and header.get("subtask_type") == "chord":
            super().__init__(header, app=app)
            return
        head = group(*(header.tasks if isinstance(header, group | chain) else _members((header,))))
        super().__init__("celery.chord", (), {"header": head, "body": body}, app=app or _app_of(head.tasks), **options)

    @property
    def header(self) -> group:
        return group(self.kwargs["header"])

    @property
    def body(self) -> Signature:
        body: Signature = signature(self.kwargs["body"])
        return body

    def clone(self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> chord:
        new: chord = super().clone((), None, **options)
        new["kwargs"] = {"header": self.header.clone(args, kwargs), "body": self.kwargs["body"]}
        return new

    def __call__(self, body: Any = None, **options: Any) -> Any:
        new = self.clone(**options)
        if body is not None:
            new["kwargs"]["body"] = body
        return new.app.send(new)

    def __repr__(self) -> str:
        return f"%{self.kwargs['body']!r}({self.header.tasks!r})"


class xmap(Signature):
    """One task's call for each item, one after another, in one message; the result is the list of theirs."""

    subtask_type, _task_name = "xmap", "celery.map"

    def __init__(self, task: Any, it: Iterable[Any] | None = None, app: Any = None, **options: Any) -> None:
        if it is None:
            super().__init__(task, app=app)
            return
        each = signature(task if isinstance(task, dict) else task.s())
        kwargs = {"task": each, "it": list(it)}
        super().__init__(self._task_name, (), kwargs, immutable=True, app=app or each._app, **options)

    def __repr__(self) -> str:
        return f"[{self.kwargs['task']['task']}(x) for x in {safe_repr(self.kwargs['it'])}]"


class xstarmap(xmap):
    """The same with several arguments: every item is a call's list of them."""

    subtask_type, _task_name = "xstarmap", "celery.starmap"

    def __repr__(self) -> str:
        return f"[{self.kwargs['task']['task']}(*x) for x in {safe_repr(self.kwargs['it'])}]"


class chunks(Signature):
    """Many calls in few messages: a group of `xstarmap`, each of at most `n` calls."""

    subtask_type = "chunks"

    def __init__(self, task: Any, it: Any = None, n: int = 0, app: Any = None, **options: Any) -> None:
        if it is None:
            super().__init__(task, app=app)
            return
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"chunks of {n!r} calls cannot be made: give a whole number above 0")
        each = signature(task if isinstance(task, dict) else task.s())
        kwargs = {"task": each, "it": list(it), "n": n}
        super().__init__("celery.chunks", (), kwargs, immutable=True, app=app or each._app, **options)

    def group(self) -> group:
        """Return the group that is sent."""
        task, items, n = (self.kwargs[name] for name in ("task", "it", "n"))
        parts = [xstarmap(signature(task), items[at : at + n], app=self._app) for at in range(0, len(items), n)]
        return group(*parts, app=self._app)

    def apply_async(self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        return self.group().apply_async(args, kwargs, **options)

    def apply(self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        return self.group().apply(args, kwargs, **options)

    def __call__(self, **options: Any) -> Any:
        return self.apply_async(**options)


def signature(task: Any, args: Any = None, kwargs: Any = None, app: Any = None, **options: Any) -> Any:
    """Make a signature of a task, a name, or a dict that one was turned into."""
    if isinstance(task, dict):
        return task if isinstance(task, Signature) else _typed(task)(task, app=app)
    return Signature(task, args, kwargs, app=app, **options)


subtask = signature


def maybe_signature(found: Any, app: Any = None) -> Any:
    """Make a signature of a dict; None stays None."""
    return None if found is None else signature(found, app=app)


def joined(first: Signature, second: Signature) -> Any:
    """`first | second`: a chain, or a chord if a group is followed by something."""
    steps = [step for each in (first, second) for step in (each.tasks if isinstance(each, chain) else [each])]
    steps = _with_chords(steps)
    return steps[0] if len(steps) == 1 else chain(*steps, app=first._app)


def _with_chords(steps: list[Signature]) -> list[Signature]:
    """A group that is followed by a step becomes a chord with that step as its body."""
    found: list[Signature] = []
    for step in steps:
        if found and isinstance(found[-1], group):
            header = found.pop()
            found.append(chord(header, body=step, app=header._app))
        else:
            found.append(step)
    return found


def _members(tasks: Sequence[Any]) -> list[Signature]:
    if len(tasks) == 1 and not isinstance(tasks[0], dict):
        tasks = list(tasks[0])
    return [signature(each) for each in tasks]


def _app_of(steps: Iterable[Signature]) -> Any:
    return next((step._app for step in steps if step._app is not None), None)


# -- Planning ------------------------------------------------------------------------------------


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
    """A workflow laid out: its steps in the order they are to be put, and the node of its end."""

    def __init__(self, sig: Signature) -> None:
        self.steps: list[Step] = []
        self.node = self._lay(sig, None)

    def _lay(self, sig: Signature, before: Node | None) -> Node:
        if isinstance(sig, chain):
            return self._lay_chain(sig, before)
        if isinstance(sig, chord):
            _warn_of_lost(sig)
            # When a chord is to begin is when its header is.
            when = {key: sig.options[key] for key in ("countdown", "eta") if key in sig.options}
            return self._lay(sig.body, self._lay(sig.header.clone(**when) if when else sig.header, before))
        if isinstance(sig, chunks):
            return self._lay(sig.group(), before)
        if isinstance(sig, group):
            return self._lay_group(sig, before)
        if not isinstance(sig["task"], str) or not sig["task"]:
            raise TypeError(f"{sig['task']!r} is no name of a task: a signature needs one to be sent")
        step = Step(sig, sig.id or new_id())
        self._wait_for(step, before)
        self.steps.append(step)
        node = Node(step.id, before, None, [step])
        links = sig.options.get("link") or ()
        for link in [links] if isinstance(links, dict) else links:
            step.links.append(_as_tuple(self._lay(signature(link), node), node))
        return node

    def _lay_chain(self, sig: chain, before: Node | None) -> Node:
        steps = _with_options(sig, sig.tasks)
        if not steps:
            raise ValueError("an empty chain cannot be sent: give it at least one task")
        if len(steps) > 1 and sig.options.get("link_error"):
            warn_user(
                "link_error of a chain is told if its first task fails, and not yet of the others: give it to each "
                "task, as task.s(...).on_error(errback)"
            )
        for each in steps:
            before = self._lay(each, before)
        assert before is not None
        return before

    def _lay_group(self, sig: group, before: Node | None) -> Node:
        group_id = sig.options.get("task_id") or new_id()
        members = [self._lay_member(each, before) for each in _flat(sig)]
        ends = [end for member in members for end in member.ends]
        for position, end in enumerate(ends):
            end.group_id, end.position = group_id, position
        return Node(group_id, before, members, ends)

    def _lay_member(self, sig: Signature, before: Node | None) -> Node:
        node = self._lay(sig, before)
        if node.members is None:
            return node
        # A member that ends in a group: one more step gathers its list, so that each member has one end.
        return self._lay(Signature("celery.accumulate", app=sig._app), node)

    def _wait_for(self, step: Step, before: Node | None) -> None:
        if before is None:
            return
        self._tie(step, before)
        if step.sig.immutable:
            step.feed = None

    def _tie(self, step: Step, before: Node) -> None:
        if before.members is None:
            step.after, step.waits_for, step.feed = before.id, 1, RESULT
            before.ends[0].leads |= LEADS_BY_ID
        else:
            step.after, step.waits_for, step.feed = before.id, len(before.ends), RESULTS
            for end in before.ends:
                end.leads |= LEADS_BY_GROUP


def _warn_of_lost(sig: chord) -> None:
    """Warn of what a chord's options ask for, and nobody does yet."""
    if sig.options.get("link_error"):
        warn_user(
            "link_error of a chord is not told yet: give it to the tasks of its header, and to its body, as "
            "task.s(...).on_error(errback)"
        )
    lost = sorted(name for name in sig.options.keys() - _OF_CHORDS if sig.options[name] is not None)
    if lost:
        warn_user(f"options of a chord have no effect yet: {', '.join(lost)}; set them on its body, body.set(...)")
    if sig.body.options.get("link_error"):
        warn_user("link_error of a chord's body is told if the body fails, and not yet if a task of its header does")


#: Options of a chord that are obeyed, or warned of by themselves.
_OF_CHORDS = chord._own_options | {"countdown", "eta", "link_error", "task_id", "add_to_parent"}


def _as_tuple(node: Node, until: Node) -> Any:
    """Write the result of a part of a workflow as Celery does, up to what stands before it."""
    above = None if node.parent is until or node.parent is None else _as_tuple(node.parent, until)
    members = None if node.members is None else [_as_tuple(each, until) for each in node.members]
    return (node.id, above), members


def _flat(sig: group) -> list[Signature]:
    """The members, those of groups within the group in their place; the group's options go to each."""
    shared = {k: v for k, v in sig.options.items() if k != "task_id"}
    found: list[Signature] = []
    for each in sig.tasks:
        found += _flat(each) if isinstance(each, group) else [_given(each, shared) if shared else each]
    return found


def _with_options(sig: Signature, steps: list[Signature]) -> list[Signature]:
    """A chain's options are its first task's, its id is its last task's."""
    options = dict(sig.options)
    task_id = options.pop("task_id", None)
    if steps and options:
        steps[0] = _given(steps[0], options)
    if steps and task_id is not None:
        steps[-1] = steps[-1].clone(task_id=task_id)
    return steps


def _given(sig: Signature, options: Mapping[str, Any]) -> Signature:
    """Return a copy with the options of the workflow it is in; errbacks of its own stay beside the workflow's."""
    new: Signature = sig.clone(**{name: value for name, value in options.items() if name != "link_error"})
    errbacks = options.get("link_error") or ()
    for each in [errbacks] if isinstance(errbacks, Mapping) else errbacks:
        new.link_error(each)
    return new
