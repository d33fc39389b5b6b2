"""The modules in which an app's tasks are: named in its settings, or looked for in packages.

    app.autodiscover_tasks(["shop", "mail"])    shop.tasks and mail.tasks, when they are needed
    include=["reports"]                         reports, in a worker

A worker imports all of them before it runs anything. There is one kind of loader, and it reads no settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from types import ModuleType
from typing import Any

from localq import signals

Packages = Iterable[str] | Callable[[], Iterable[str]]


class Loader:
    """Imports the modules of one app; `app.loader`.

    Attributes:
        task_modules: names of the modules that were found by looking for them.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.task_modules: set[str] = set()
        self._searches: list[tuple[Packages, str | None]] = []

    def import_default_modules(self) -> None:
        """Import everything that a worker needs.

        What receivers of `import_modules` import, then what is looked for, then the settings `imports` and `include`.

        Raises:
            Exception: what importing one of them raised.
        """
        for _, answer in signals.import_modules.send(self.app):
            if isinstance(answer, Exception):
                raise answer
        self.discover()
        for name in self.default_modules:
            self.import_task_module(name)

    @property
    def default_modules(self) -> tuple[str, ...]:
        """The modules of the settings `imports` and `include`."""
        conf = self.app.conf
        return (*_names(conf.imports), *_names(conf.include))

    def import_task_module(self, module: str) -> ModuleType:
        """Import one module."""
        return import_module(module)

    import_module = import_from_cwd = import_task_module

    def look_for(self, packages: Packages, related_name: str | None) -> None:
        """Look for the modules of this name in these packages later, at `discover`."""
        self._searches.append((packages, related_name))

    def discover(self) -> None:
        """Import now what is to be looked for; what fails is looked for again the next time."""
        # Left in the list until it is done: a thread that asks meanwhile imports too, and so waits for the modules.
        searches = list(self._searches)
        for packages, related_name in searches:
            self.autodiscover_tasks(packages, related_name)
        self._searches = [each for each in self._searches if each not in searches]

    def autodiscover_tasks(self, packages: Packages, related_name: str | None = "tasks") -> None:
        """Import the module of this name from each package that has one; the packages themselves if the name is empty.

        Raises:
            ModuleNotFoundError: a package does not exist.
            Exception: what a module raised while it was imported.
        """
        for package in _names(packages() if callable(packages) else packages):
            found = related_module(package, related_name)
            if found is not None:
                self.task_modules.add(found.__name__)


def related_module(package: str, related_name: str | None) -> ModuleType | None:
    """Import a package's module of this name; None if it has no such module."""
    try:
        home = import_module(package)
    except ModuleNotFoundError as exc:
        home = _module_of_attribute(package, exc)
    if not related_name:
        return home
    full = f"{home.__name__}.{related_name}"
    try:
        return import_module(full)
    except ModuleNotFoundError as exc:
        if exc.name == full:
            return None
        raise  # it exists, and something that it imports does not


def _module_of_attribute(path: str, error: ModuleNotFoundError) -> ModuleType:
    """Return the package that holds what `shop.apps.ShopConfig` names."""
    place, _, attribute = path.rpartition(".")
    if error.name != path or not place:
        raise error
    module = import_module(place)
    if not hasattr(module, attribute):
        raise error
    return import_module(module.__package__ or place)


def _names(given: Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
