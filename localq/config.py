"""`app.conf`: the settings of one app, from everything that gives some.

Who wins, the strongest first:

    1. the program: `LocalQ(broker=..., timezone=..., changes={...})`, `app.conf.update`, `app.conf.x = ...`
    2. `app.add_defaults(...)`, the latest first (Celery's order)
    3. the configuration source: `config_from_object` and its kin, `LocalQ(config_source=...)`; if the program names
       none: LOCALQ_CONFIG_MODULE or LOCALQ_CONFIG_FILE, else CELERY_CONFIG_MODULE
    4. variables: LOCALQ_<NAME>, and CELERY_BROKER_URL and CELERY_RESULT_BACKEND unless there is a LOCALQ_STORE
    5. the defaults (`settings`)

2 to 4 are read at the first look into `app.conf`, which the first task that is defined takes; a source named after
that is read at once. What was read is merged into the object's own `__dict__`, so that from then on `app.conf.x` is
a plain look-up. Must not decide what a name or a value may be (`sources`, `settings`).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

from localq.exceptions import ImproperlyConfigured
from localq.registry import nearest
from localq.settings import FOLLOWS, SETTINGS, Setting
from localq.sources import Source, checked, environment, environment_source, from_words, known_name

#: Names of values that are not shown.
_SECRET = re.compile("api|token|key|secret|pass|signature|database|credential|dsn|private", re.IGNORECASE)
_PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):[^@\s]*@")
_MASK = "********"


class Found(NamedTuple):
    """What `find_option` returns: `worker_pool` is the key `pool` of the namespace `worker`."""

    namespace: str | None
    key: str
    type: Setting


class Settings(MutableMapping[str, Any]):
    """What `app.conf` is: every setting as an attribute and an item, and whatever else was given.

    Every write is checked first; several are set all or none. Names of before Celery 4 work everywhere.

    Args:
        given: what the program sets.
        namespace: the beginning of names that are settings in a source that says nothing else.
        base: the directory that the path of a file is relative to.
    """

    # Its own state is in slots: `__dict__` holds the settings and nothing else, and is empty until they are read.
    __slots__ = (
        "__dict__", "_act", "_added", "_base", "_changes", "_defaults", "_environment", "_here", "_namespace",
        "_promises", "_source", "_values",
    )  # fmt: skip

    def __init__(self, given: Mapping[str, Any] | None = None, namespace: str = "", base: str | None = None) -> None:
        self._hold(
            _namespace=namespace, _base=base, _source=None, _promises=[], _here=threading.local(), _act=lambda: None,
            _changes={}, _added={}, _values={}, _environment={},
            _defaults=_apart({name: setting.default for name, setting in SETTINGS.items()}),
        )  # fmt: skip
        self.update(given or {})

    def _hold(self, **state: Any) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    # -- Reading the sources -----------------------------------------------------------------------

    def read_later(self, given: Any = None) -> None:
        """Start anew with a source, or with the environment's; it is read at the next look."""
        source = environment_source(self._namespace) if given is None else self._source_of(given, False, None)
        self._hold(_source=source)
        vars(self).clear()

    def read_from(
        self, given: Any, silent: bool = False, force: bool = False, namespace: str | None = None
    ) -> Settings | None:
        """Take a source in place of the one there was: now if settings have been read or if forced, else later.

        Returns:
            The settings, if the source was read.

        Raises:
            ConfigNotFound: it does not exist.
            ImproperlyConfigured: there is something wrong with it. Nothing has changed then.
        """
        before = {"_source": self._source, "_namespace": self._namespace}
        source = self._source_of(given, silent, namespace)
        self._hold(_source=source, _namespace=source.namespace)
        if not force and not vars(self):
            return None
        try:
            self._read()
        except BaseException:
            self._hold(**before)
            raise
        return self

    def read_words(self, words: Iterable[str], namespace: str = "") -> None:
        """Set what a command line says."""
        self.update(from_words(words, namespace))

    def add_defaults(self, given: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> None:
        """Give values to what the program leaves open; a function is called when settings are read."""
        if vars(self) or not callable(given):
            self._added.update(self._checked(given() if callable(given) else given))
            self._settle()
        else:
            self._promises.append(given)

    def _source_of(self, given: Any, silent: bool, namespace: str | None) -> Source:
        return Source(given, namespace or self._namespace, self._base, silent)

    def _read(self) -> dict[str, Any]:
        """Read the sources. Two threads may do it at once: a lock could meet the import system's in the other order."""
        if vars(self._here):
            return self._merged()  # a configuration module that looks into the settings sees those that are known
        self._here.is_reading = True
        try:
            known = environment()
            values = self._source.read() if self._source else {}
            self._refuse_methods(values)
            promised = [self._checked(promise()) for promise in self._promises]
        finally:
            del self._here.is_reading
        self._hold(_environment=known, _values=values)
        for each in promised:
            self._added.update(each)
        self._promises.clear()
        self._install()
        return vars(self)

    def _checked(self, given: Mapping[Any, Any]) -> dict[str, Any]:
        found = checked({known_name(name, self._namespace): value for name, value in given.items()})
        self._refuse_methods(found)
        return found

    def _refuse_methods(self, values: Mapping[str, Any]) -> None:
        taken = sorted(name for name in values if hasattr(type(self), name))
        if taken:
            raise ImproperlyConfigured(
                f"no setting can be named {', '.join(taken)}: app.conf has a method of that name"
            )

    def _change(self, changes: dict[str, Any]) -> None:
        """Have the program say this, from now on; or nothing new if that cannot be."""
        before = self._changes
        self._hold(_changes=changes)
        try:
            self._settle()
        except BaseException:
            self._hold(_changes=before)
            raise

    def _settle(self) -> None:
        """Make a change felt; one before the first look needs nothing."""
        if vars(self):
            self._install()

    def _install(self) -> None:
        merged, own = self._merged(), vars(self)
        before = dict(own)
        for name in own.keys() - merged.keys():
            del own[name]
        own.update(merged)
        try:
            self._act()
        except BaseException:
            # What the app cannot live with is not kept; if this was the first look, the next one tells again.
            own.clear()
            own.update(before)
            raise

    def _merged(self) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for layer in (self._defaults, self._environment, self._values, self._added, self._changes):
            merged.update(layer)
        for name, other in FOLLOWS.items():
            if merged[name] is None:
                merged[name] = merged[other]
        return merged

    def on_change(self, act: Callable[[], None]) -> None:
        """Have `act` called after every change, and when settings have been read."""
        self._hold(_act=act)

    # -- Writing -------------------------------------------------------------------------------------

    def update(self, given: Any = (), /, **more: Any) -> None:
        """Set several at once, or none of them.

        Raises:
            ImproperlyConfigured: every fault that was found, in one message.
        """
        self._change({**self._changes, **self._checked({**dict(given), **more})})

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Return a setting that was given; set it first if it was not."""
        if not self.value_set_for(name):
            self.update({name: default})
        return self[name]

    def clear(self) -> None:
        """Take back everything that the program has set."""
        self._change({})

    def __setattr__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __delitem__(self, name: str) -> None:
        key = known_name(name, self._namespace)
        if key not in self._changes:
            raise KeyError(f"the program has not set {name!r}")
        self._change({each: value for each, value in self._changes.items() if each != key})

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError as exc:
            raise AttributeError(exc.args[0]) from None

    # -- Reading -------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        # Only for what is not in __dict__: nothing has been read yet, an old name, or an unknown one.
        if name.startswith("_"):
            raise AttributeError(f"no setting is named {name!r}")
        key = known_name(name, self._namespace)
        found = self._own()
        if key not in found:
            raise AttributeError(f"no setting is named {name!r}{nearest(name, found)}")
        return found[key]

    def _own(self) -> dict[str, Any]:
        return vars(self) or self._read()

    def __getitem__(self, name: str) -> Any:
        try:
            return self._own()[known_name(name, self._namespace)]
        except KeyError:
            raise KeyError(f"no setting is named {name!r}{nearest(name, self._own())}") from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and known_name(name, self._namespace) in self._own()

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._own()))

    def __len__(self) -> int:
        return len(self._own())

    def get(self, name: str, default: Any = None) -> Any:
        """Return a setting, or the default if it is not known."""
        return self._own().get(known_name(name, self._namespace), default)

    def get_by_parts(self, *parts: str) -> Any:
        """Return a setting by the parts of its name: `get_by_parts("worker", "pool")`."""
        return self["_".join(part for part in parts if part)]

    def find_option(self, name: str, namespace: str = "") -> Found:
        """Find a setting by its name without the beginning, in one namespace first and then in all.

        Raises:
            KeyError: there is none; the message gives the nearest.
        """
        word, first = name.lower(), namespace.lower()
        for space in (first, "task", "worker", "result", *sorted({each.partition("_")[0] for each in SETTINGS})):
            if space and f"{space}_{word}" in SETTINGS:
                return Found(space, word, SETTINGS[f"{space}_{word}"])
        if word in SETTINGS:
            return Found(None, word, SETTINGS[word])
        raise KeyError(f"no setting is named {name!r}{nearest(word, SETTINGS)}")

    def find_value_for_key(self, name: str, namespace: str = "celery") -> Any:
        """Return the value of the setting that `find_option` finds."""
        found = self.find_option(name, namespace)
        return self.get_by_parts(found.namespace or "", found.key)

    def copy(self) -> Settings:
        """Return settings that hold the same and change by themselves."""
        self._own()
        twin = type(self)(namespace=self._namespace, base=self._base)
        twin._hold(
            _source=self._source, _values=dict(self._values), _environment=dict(self._environment),
            _added=dict(self._added), _changes=dict(self._changes), _defaults=_apart(self._defaults),
        )  # fmt: skip
        twin._install()
        return twin

    __copy__ = copy

    # -- Telling ---------------------------------------------------------------------------------------

    def value_set_for(self, name: str) -> bool:
        """Whether anybody gave a value, so that it is no default."""
        return self.told_by(name) != "default"

    def told_by(self, name: str) -> str:
        """Say who gave a setting its value: `program`, `add_defaults`, the source, `environment` or `default`."""
        self._own()
        key = known_name(name, self._namespace)
        layers = {"program": self._changes, "add_defaults": self._added, str(self._source): self._values,
                  "environment": self._environment}  # fmt: skip
        return next((who for who, layer in layers.items() if key in layer), "default")

    def without_defaults(self) -> dict[str, Any]:
        """Return what was given, defaults left out."""
        return {name: value for name, value in sorted(self._own().items()) if self.value_set_for(name)}

    def without_effect(self) -> list[str]:
        """Return the names of settings that were given and that nothing here obeys."""
        return [name for name in self.without_defaults() if name in SETTINGS and not SETTINGS[name].is_built]

    def table(self, with_defaults: bool = False, censored: bool = True) -> dict[str, Any]:
        """Return settings as a dict, passwords and keys masked."""
        found = dict(sorted(self._own().items())) if with_defaults else self.without_defaults()
        return _masked(found) if censored else found

    def humanize(self, with_defaults: bool = False, censored: bool = True) -> str:
        """Write settings for people to read, a line for each."""
        return "\n".join(f"{name}: {value!r}" for name, value in self.table(with_defaults, censored).items())

    def __repr__(self) -> str:
        # Never reads: a debugger looks at it too.
        return f"<Settings {self.table() if vars(self) else _masked(self._changes)!r}>"


def _apart(values: Mapping[str, Any]) -> dict[str, Any]:
    """Copy what can be changed in place, so that a default is one app's own."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}


def _masked(values: Mapping[Any, Any]) -> dict[Any, Any]:
    return {name: _mask(name, value) for name, value in values.items()}


def _mask(name: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        return _masked(value)
    if value is not None and _SECRET.search(str(name)) and not str(name).endswith("routing_key"):
        return _MASK
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return type(value)(_mask("", each) for each in value)
    return _PASSWORD.sub(rf"\1:{_MASK}@", value) if isinstance(value, str) else value
