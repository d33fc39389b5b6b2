"""An app's store as the app sees it: where it is, opened at the first use, and this process's bells.

Celery's broker and result backend in one, because here they are one; the latter's names are in `resultstore.py`.
Must not put or claim anything itself.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any, ClassVar

from localq.exceptions import ImproperlyConfigured
from localq.resultstore import ResultStore
from localq.storage import open_storage
from localq.storage.base import Bell, Storage
from localq.storage.location import Location, is_foreign, locate, parse

logger = logging.getLogger("localq.backend")


class Backend(ResultStore):
    """Where an app's messages and results are.

    Args:
        conf: the app's settings.
        app_name: the app's main name.
        made_by: the file whose code made the app.
        made_in: the name of that module; None if it was run as a script.
        given: what the app was told; a path, a URL, or None: the settings broker_url and result_backend decide.

    Attributes:
        storage: the store, opened when it is first asked for. A plain attribute from then on.
        oid: names this process's bell; sent along as `reply_to`.
    """

    storage: Storage
    oid: str
    #: Whose it is.
    app: Any = None
    #: What sends and waits for coroutines (`localq.awaiting`), once any has asked.
    aside: Any = None

    def __init__(
        self,
        conf: Any,
        app_name: str | None,
        made_by: str | None,
        given: str | os.PathLike[str] | None,
        made_in: str | None = None,
    ) -> None:
        self.conf, self.app_name, self.made_by, self.made_in = conf, app_name, made_by, made_in
        self._given = given
        self._location: Location | None = None
        self.start_afresh()

    def start_afresh(self) -> None:
        """Have an identity of this process's own: at the start, and in a forked child."""
        self.oid = os.urandom(16).hex()
        self._opening = threading.Lock()
        self.bells = threading.local()
        #: Calls what `then` was given; made when it is, see `localq.waiting`.
        self.watcher: Any = None
        self.__dict__.pop("aside", None)  # its threads are the parent's

    def __getattr__(self, name: str) -> Any:
        if name != "storage":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        with self._opening:
            if "storage" not in self.__dict__:
                found = self.location
                storage = open_storage(found.scheme, found.path, self.conf.store_durability)
                storage.news_kept_s = self.lifetimes().results_s
                self.storage = storage
        return self.storage

    @property
    def location(self) -> Location:
        """Where the store is; decided at the first use."""
        if self._location is None:
            self._location = self._locate()
        return self._location

    def _locate(self) -> Location:
        given: Any = self._given
        foreign: str | None = None
        for name in ("broker_url", "result_backend"):
            for place in _places(self.conf.get(name)):
                if is_foreign(place) or (name == "result_backend" and _is_class(place)):
                    foreign = foreign or place
                elif given is None:
                    # Relative in a variable means to the current directory.
                    given = parse(place, Path.cwd()) if self.conf.told_by(name) == "environment" else place
        found = given if isinstance(given, Location) else locate(given, self.made_by, self.app_name)
        if found.note:
            logger.warning("%s", found.note)
        if foreign is not None:
            # What stands before the @ may be a password.
            logger.warning("%s is ignored: localq keeps its work in %s", foreign.rpartition("@")[2], found.path)
        return found

    @property
    def url(self) -> str:
        """The store as a URL, without opening it."""
        found = self.location
        return f"{found.scheme}:///{found.path}" if found.path else f"{found.scheme}:"

    def use(self, given: str | os.PathLike[str]) -> None:
        """Use another store from now on; relative means to the current directory.

        Raises:
            ImproperlyConfigured: it names a broker of another system.
        """
        if is_foreign(os.fspath(given)):
            raise ImproperlyConfigured(f"{given} is not a store: localq has no broker; give a directory")
        self.close()
        self._location = parse(given, Path.cwd())

    def follow(self) -> None:
        """Open the store only if it is there: another process of ours has made it already."""
        self.storage.must_exist = True

    def is_there(self) -> bool:
        """Whether the store's directory exists."""
        return not self.location.path or os.path.isdir(self.location.path)

    def bell(self, own: bool) -> Bell:
        """Make this thread's bell: for results of this process's own calls, or of anybody's.

        Kept in `bells.kept[own]` until the thread ends.
        """
        if not hasattr(self.bells, "kept"):
            self.bells.kept = _ThreadBells()
        kept: dict[bool, Bell] = self.bells.kept
        kept[own] = self.storage.bell(replies=self.oid if own else "*")
        return kept[own]

    def close(self) -> None:
        """Let go of the store; the next use opens it again."""
        aside = self.__dict__.pop("aside", None)
        if aside is not None:
            aside.stop()
        storage = self.__dict__.pop("storage", None)
        watcher, self.watcher = self.watcher, None
        if watcher is not None:
            watcher.stop()
        if storage is not None:
            self.bells = threading.local()
            storage.close()


def _places(value: Any) -> list[str]:
    """Return the places in a setting: one, several in a list, or several joined by semicolons."""
    values = value if isinstance(value, list | tuple) else [value] if value else []
    return [place.strip() for each in values for place in os.fspath(each).split(";") if place.strip()]


def _is_class(place: str) -> bool:
    """Whether a result backend is named by a word (`django-db`, `rpc`, `proj.backends:Mine`), not by a place."""
    return "/" not in place and not place.startswith("memory:")


class _ThreadBells(dict[bool, Bell]):
    """The bells of one thread; closed when the thread ends."""

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()

    def __del__(self) -> None:
        if os.getpid() == self._pid:
            for bell in self.values():
                bell.close()


class View:
    """What looks into a backend, as results do; once pickled, into that of the app that is current where it is read."""

    __slots__ = ()
    #: What makes it anew: its class's keywords, and the attributes that have their values.
    _kept: ClassVar[dict[str, str]] = {}

    @property
    def app(self) -> Any:
        """The app whose store is looked into; None if no store is."""
        return getattr(getattr(self, "backend", None), "app", None)

    def as_tuple(self) -> Any:
        """Return the ids in it, as `result_from_tuple` reads them; what a task that returns it has returned.

        Raises:
            TypeError: it has no id of its own.
        """
        raise TypeError(f"{self!r} has no id: return a GroupResult, or the ids of its members")

    def __reduce__(self) -> Any:
        return _view, (type(self), {keyword: getattr(self, name) for keyword, name in self._kept.items()})


def _view(kind: type[View], keywords: dict[str, Any]) -> View:
    return kind(**keywords)
