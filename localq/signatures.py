"""Signatures: a call that has not happened, as a dict that may travel as JSON and come back.

What is common to all kinds of them: looking at one, making others of it, links, stamps, sending. The kinds that hold
others (`canvas`) register themselves under their `subtask_type`, by which a dict finds its class again. Must not know
apps, tasks or stores: whatever sends is a protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from localq.context import current_app
from localq.message import new_id
from localq.options import check_call_names
from localq.serialization import safe_repr
from localq.stamping import STAMPED, merged

S = TypeVar("S", bound="type[Signature]")
#: Characters of an argument that a repr shows.
SHOWN = 1000
_BLANK: dict[str, Any] = {
    "task": None, "args": (), "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False,
}  # fmt: skip


class Place(NamedTuple):
    """What is known of a signature's place in a workflow when it is given its id; see `Signature.freeze`."""

    id: str | None = None
    group_id: str | None = None
    chord: Any = None
    root_id: str | None = None
    parent_id: str | None = None
    group_index: int | None = None


NOWHERE = Place()
#: Options that a signature has of its place, whatever it had before.
_OF_PLACE = ("root_id", "parent_id", "chord", "group_index")
Args = Iterable[Any] | None
Keys = Mapping[str, Any] | None


class Sender(Protocol):
    """What a signature needs in order to be sent: an app."""

    tasks: Any
    thread_oid: str

    def send(self, signature: Signature) -> Any: ...

    def apply(self, signature: Signature) -> Any: ...

    def promised(self, signature: Signature) -> Any: ...


class Item:
    """An item of a signature as its attribute, or one of its options."""

    def __init__(self, key: str, of_options: bool = False) -> None:
        self._key, self._of_options = key, of_options

    def __get__(self, sig: Any, kind: Any = None) -> Any:
        if sig is None:
            return self
        return sig["options"].get(self._key) if self._of_options else sig[self._key]

    def __set__(self, sig: Any, value: Any) -> None:
        (sig["options"] if self._of_options else sig)[self._key] = value


class Signature(dict[str, Any]):
    """A call that has not happened: task name, arguments, options.

    Args:
        task: a name, a task, or a dict that a signature was turned into.
        options, more: as for `apply_async`.
        immutable: takes no further arguments, and no result of the step before it.
    """

    #: `subtask_type` -> class.
    TYPES: dict[str, type[Signature]] = {}  # noqa: RUF012 - Celery's name for what is shared by all
    #: What nobody may change once it is there: others wait for it.
    _SETTLED = frozenset({"group_id", STAMPED})
    _kind: str | None = None
    #: Options that are no call's.
    _own_options: frozenset[str] = frozenset()
    #: Whether the signatures in this one may be another's too; see `_own`.
    _borrows = False

    task, args, kwargs, options = Item("task"), Item("args"), Item("kwargs"), Item("options")
    subtask_type, immutable = Item("subtask_type"), Item("immutable")
    id, root_id, parent_id = Item("task_id", True), Item("root_id", True), Item("parent_id", True)

    def __init__(
        self,
        task: Any = None,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        subtask_type: str | None = None,
        immutable: bool = False,
        app: Any = None,
        **more: Any,
    ) -> None:
        if isinstance(task, dict):
            super().__init__(task)
            self._take(task, app)
            return
        given = {**(options or {}), **more}
        if given:
            check_call_names(given, self._own_options)
        super().__init__(
            task=getattr(task, "name", task),
            args=tuple(args or ()),
            kwargs=dict(kwargs or {}),
            options=given,
            subtask_type=subtask_type or self._kind,
            immutable=immutable,
        )
        # A task's own app; a signature's `app` falls back to the current one.
        self._app = app if app is not None else getattr(task, "app", None)

    # -- From a dict and back ------------------------------------------------------------------

    @classmethod
    def register_type(cls, name: str | None = None) -> Callable[[S], S]:
        """Return a class decorator: dicts with this `subtask_type` become signatures of that class."""

        def register(kind: S) -> S:
            cls.TYPES[name or kind.__name__] = kind
            return kind

        return register

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], app: Any = None) -> Any:
        """Make a signature of what one was turned into, perhaps by way of JSON.

        Raises:
            KeyError: no class is registered for its `subtask_type`.
            TypeError: it is not what a signature is turned into.
        """
        name = d.get("subtask_type")
        kind = cls._class_of(str(name), d) if name else Signature
        if name and kind.from_dict.__func__ is not Signature.from_dict.__func__ and kind is not cls:  # type: ignore[attr-defined]
            return kind.from_dict(d, app)
        new = kind.__new__(kind)
        dict.__init__(new, d)
        new._take(d, app)
        return new

    @classmethod
    def _class_of(cls, name: str, given: Mapping[str, Any]) -> type[Signature]:
        kind = cls.TYPES.get(name)
        if kind is None:
            raise KeyError(
                f"no kind of signature is called {name!r} (task {given.get('task')!r}): there are "
                f"{', '.join(sorted(cls.TYPES))}; add one with @Signature.register_type({name!r})"
            )
        return kind

    def _take(self, given: Mapping[str, Any], app: Any) -> None:
        """Become what a dict says; what is changed here later does not change the dict."""
        if not isinstance(given.get("task"), str):
            raise TypeError(f"{safe_repr(dict(given), SHOWN)} is no signature: it names no 'task'. Write task.s(...)")
        self.update({key: value for key, value in _BLANK.items() if key not in given})
        self["args"] = tuple(self["args"] or ())
        self["kwargs"], self["options"] = dict(self["kwargs"] or {}), dict(self["options"] or {})
        self._app = app if app is not None else getattr(given, "_app", None)
        self._adopt()

    def _adopt(self) -> None:
        """Make signatures of the dicts within this one."""

    def _with(self, **items: Any) -> Self:
        """Return a signature with other items, which shares whatever is within the rest."""
        new = self.__class__.__new__(self.__class__)
        dict.__init__(new, self, **items)
        new._app, new._borrows = self._app, True
        return new

    def __json__(self) -> dict[str, Any]:
        return dict(self)

    def __reduce__(self) -> Any:
        return signature, (dict(self),)

    def __deepcopy__(self, memo: Any) -> Any:
        new = self._with(**deepcopy(dict(self), memo))
        new._borrows = False
        return new

    # -- Looking at it -------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self["task"]  # type: ignore[no-any-return]

    @property
    def app(self) -> Any:
        """The app that sends it: its own, or one of what is within it, or the current one."""
        app = self._known_app()
        return app if app is not None else current_app()

    def _known_app(self) -> Any:
        return self._app

    @property
    def type(self) -> Any:
        """The task itself, if it is registered here."""
        return self.app.tasks[self["task"]]

    @property
    def AsyncResult(self) -> Any:  # noqa: N802 - Celery's name
        """What makes handles of this task's results."""
        return self.app.AsyncResult

    def reprcall(self, *args: Any, **kwargs: Any) -> str:
        """Return the call as a text, with further arguments, also if it takes none."""
        values = [safe_repr(arg, SHOWN) for arg in (*args, *self.args)]
        values += [f"{key}={safe_repr(value, SHOWN)}" for key, value in {**self.kwargs, **kwargs}.items()]
        return f"{self['task']}({', '.join(values)})"

    def __repr__(self) -> str:
        return self.reprcall()

    # -- Making others of it -------------------------------------------------------------------

    def clone(self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **opts: Any) -> Any:
        """Return a copy with more arguments in front, more keywords and more options; nothing of it is shared."""
        return self._bound(args, kwargs, opts)._apart()

    partial = clone

    def _bound(self, args: Args = None, kwargs: Keys = None, options: Keys = None) -> Self:
        """Return what is sent of it with further arguments and options; it shares whatever is within this one."""
        if self.immutable:
            args = kwargs = None
        return self._with(
            args=(*args, *self.args) if args else self.args,
            kwargs={**self.kwargs, **kwargs} if kwargs else self.kwargs,
            options=self._more(options),
        )

    def _more(self, options: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return its options and these, which win, but over stamps and whatever others wait for."""
        own: dict[str, Any] = self.options
        if not options:
            return own
        settled = self._SETTLED.union(own.get(STAMPED) or ())
        return {**own, **{key: value for key, value in options.items() if key not in settled or key not in own}}

    def _apart(self) -> Self:
        """Copy what this one shares, and return it."""
        self["kwargs"] = dict(self.kwargs)
        self["options"] = deepcopy(self.options) if self.options else {}
        return self

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
        """Say whether it takes no further arguments, and no result of the step before it."""
        self["immutable"] = immutable

    # -- Giving it an id -----------------------------------------------------------------------

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> Any:
        """Give it, and all that is within it, the ids now under which they will be sent.

        Args:
            _id: the id of its end, if it has none yet.
            group_id, group_index, chord: the group it is the end of a member of, for its request.
            root_id, parent_id: for the requests of the tasks in it.

        Returns:
            The result it will have.
        """
        self._settle(Place(_id, group_id, chord, root_id, parent_id, group_index))
        return self.app.promised(self)

    _freeze = freeze

    def _settle(self, place: Place = NOWHERE) -> None:
        options = self.options
        if options.get("task_id") is None:
            options["task_id"] = place.id or new_id()
        options.setdefault("reply_to", self.app.thread_oid)
        if place.group_id:
            options.setdefault("group_id", place.group_id)
        known = place._asdict()
        options.update({key: known[key] for key in _OF_PLACE if known[key] is not None})

    # -- Links ---------------------------------------------------------------------------------

    def link(self, callback: Any) -> Any:
        """Send this signature with the result when the task has succeeded; returns it."""
        return self.append_to_list_option("link", callback)

    def link_error(self, errback: Any) -> Any:
        """Tell this signature when the task has failed; returns it."""
        return self.append_to_list_option("link_error", errback)

    def on_error(self, errback: Any) -> Any:
        """Tell this signature when the task has failed; returns the task's own, to go on with."""
        self.link_error(errback)
        return self

    def append_to_list_option(self, key: str, value: Any) -> Any:
        """Add a signature to an option that is a list of them, unless it is there; returns it.

        Raises:
            TypeError: it is no signature.
        """
        if not isinstance(value, dict):
            raise TypeError(f"{key} takes a signature, got {safe_repr(value, SHOWN)}: write task.s(...)")
        known = each_of(self.options.get(key))
        self.options[key] = known if value in known else [*known, value]
        return value

    def extend_list_option(self, key: str, value: Any) -> None:
        """Add a value, or each of several, to an option that is a list."""
        self.options[key] = [*each_of(self.options.get(key)), *each_of(value)]

    def flatten_links(self) -> list[Any]:
        """Return this signature, its callbacks, and theirs."""
        found, left = [], [self]
        while left:
            found.append(left.pop())
            left += [as_signature(link) for link in reversed(each_of(found[-1].options.get("link")))]
        return found

    # -- Stamps --------------------------------------------------------------------------------

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Any:
        """Write stamps on it and on its links, those given and those that a visitor says; see `stamping`.

        Args:
            visitor: a `StampingVisitor`.
            append_stamps: keep all stamps of the same name, as a list.
        """
        self.stamp_links(visitor, append_stamps, **headers)
        found = visitor.on_signature(self, **headers) or {} if visitor is not None else None
        self.options.update(merged(headers, found, self.options, append_stamps))
        return self

    def stamp_links(self, visitor: Any, append_stamps: bool = False, **headers: Any) -> None:
        """Write stamps on its callbacks and errbacks."""
        for key, ask in (("link", "on_callback"), ("link_error", "on_errback")):
            stamps = headers
            links = [as_signature(link) for link in each_of(self.options.get(key))]
            for link in links:
                found = getattr(visitor, ask)(link, **stamps) or {} if visitor is not None else None
                stamps = merged(stamps, found, {}, append_stamps)
                link.stamp(visitor, append_stamps, **stamps)
            if links:
                self.options[key] = links

    # -- Sending it ----------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the task here and now."""
        new = self._bound(args, kwargs)
        return new.type(*new.args, **new.kwargs)

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """Send it, with these arguments in front."""
        return self.apply_async(args, kwargs)

    def apply_async(self, args: Args = None, kwargs: Keys = None, **options: Any) -> Any:
        """Send it, with these arguments in front and these options."""
        return self.app.send(self._bound(args, kwargs, _said(options)))

    async def adelay(self, *args: Any, **kwargs: Any) -> Any:
        """Send it without blocking the event loop, with these arguments in front."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(self, args: Args = None, kwargs: Keys = None, **options: Any) -> Any:
        """Send it without blocking the event loop, with these arguments in front and these options."""
        return await self.app.aside(lambda: self.apply_async(args, kwargs, **options))

    def apply(self, args: Args = None, kwargs: Keys = None, **options: Any) -> Any:
        """Run it here and now, as a worker would."""
        return self.app.apply(self._bound(args, kwargs, _said(options)))

    def election(self) -> Any:
        """Send it so that one worker alone runs it: here, no message is ever taken by two."""
        return self.apply_async()

    def __invert__(self) -> Any:
        return self.apply_async().get()

    def __or__(self, other: Any) -> Any:
        """Return a chain of this and what comes after it."""
        if not isinstance(other, dict):
            return NotImplemented
        return Signature.TYPES["chain"].joined(self, as_signature(other))  # type: ignore[attr-defined]

    # A dict's would merge the two.
    def __ior__(self, other: Any) -> Any:
        return self | other

    def __ror__(self, other: Any) -> Any:
        return as_signature(other) | self if isinstance(other, dict) else NotImplemented


def _said(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def each_of(given: Any) -> list[Any]:
    """Return what stands for one or several of something: a signature is one."""
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple | set) else [given]


def as_signature(given: Any, app: Any = None) -> Any:
    """Return a signature as it is, and make one of a dict.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(given, Signature):
        return given
    if isinstance(given, dict):
        return Signature.from_dict(given, app)
    raise TypeError(f"{safe_repr(given, SHOWN)} is no signature: write task.s(...)")


def signature(varies: Any, *args: Any, **kwargs: Any) -> Any:
    """Make a signature of a task, a name, or a dict that one was turned into; of a signature, a clone.

    Args:
        args, kwargs: `args`, `kwargs`, `options`, `immutable` and `app`, and further options.
    """
    if isinstance(varies, Signature):
        return varies.clone()
    if isinstance(varies, dict):
        return Signature.from_dict(varies, kwargs.get("app"))
    return Signature(varies, *args, **kwargs)


subtask = signature


def maybe_signature(d: Any, app: Any = None, clone: bool = False) -> Any:
    """Make a signature of a dict; None stays None.

    Args:
        app: whose it is to be.
        clone: of a signature, return a copy.
    """
    if d is None:
        return None
    found = as_signature(d)
    if clone and found is d:
        found = found.clone()
    if app is not None:
        found._app = app
    return found


maybe_subtask = maybe_signature
