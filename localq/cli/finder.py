"""Finds the app that a command is about: `-A`, a variable, pyproject.toml, or the obvious file.

Imports the user's code, and nothing else does.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

from localq.app import LocalQ
from localq.cli.errors import Mistake
from localq.registry import nearest

#: Files looked into when nothing names an app.
OBVIOUS = ("tasks.py", "app.py", "celery.py")
#: Attributes and submodules that usually are or hold the app.
ATTRIBUTES = ("app", "localq", "celery")
SUBMODULES = ("localq", "tasks", "celery", "app")


def find_app(spec: str | LocalQ | None) -> LocalQ:
    """Return the app that `spec` names: `module`, `module:attribute`, a package, or `path/to/file.py[:attribute]`.

    An app itself is returned as it is.

    Raises:
        Mistake: there is none, or its module cannot be imported.
    """
    if isinstance(spec, LocalQ):
        return spec
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    spec = spec or os.environ.get("LOCALQ_APP") or os.environ.get("CELERY_APP") or _configured() or _obvious()
    place, _, attribute = spec.partition(":")
    module = _load(place)
    if attribute:
        return _attribute(module, attribute, spec)
    found = _in_module(module)
    if found is None and hasattr(module, "__path__"):
        found = next((app for name in SUBMODULES if (app := _in_submodule(module, name)) is not None), None)
    if found is None:
        raise Mistake("LQ003", f"module {module.__name__} ({module.__file__}) makes no app",
                      hint="make one in it: app = LocalQ('name'); or name another: -A module:attribute")  # fmt: skip
    return found


def app_or_store(spec: str | LocalQ | None, store: str | None) -> LocalQ:
    """Return the app that `spec` names, with the store if one is named; without a spec, that is enough.

    For commands that only look into a store: those need no code of the user's.

    Raises:
        Mistake: neither is named, nor found.
        ImproperlyConfigured: the store is one of another system.
    """
    try:
        app = find_app(spec) if spec or not store else LocalQ("localq", set_as_current=False)
    except Mistake as exc:
        if exc.code != "LQ001" or not os.environ.get("LOCALQ_STORE"):
            raise
        app = LocalQ("localq", set_as_current=False)
    if store:
        app.backend.use(store)
    return app


def _configured() -> str | None:
    file = Path("pyproject.toml")
    if not file.is_file():
        return None
    try:
        tool = tomllib.loads(file.read_text("utf-8")).get("tool", {})
    except tomllib.TOMLDecodeError as exc:
        raise Mistake("LQ002", f"{file.absolute()} is not valid TOML: {exc}") from exc
    found = tool.get("localq", {}).get("app")
    return str(found) if found else None


def _obvious() -> str:
    """Return the one obvious file of the current directory that makes an app."""
    present = [name for name in OBVIOUS if Path(name).is_file()]
    if len(present) == 1:
        return present[0]
    if present:
        raise Mistake("LQ001", f"which app? {' and '.join(present)} could both make one",
                      hint=f"name it: -A {present[0].removesuffix('.py')}")  # fmt: skip
    raise Mistake("LQ001", f"no app is named, and none of {', '.join(OBVIOUS)} is in {os.getcwd()}",
                  hint="name the module that makes it: localq -A module worker (or set LOCALQ_APP)")  # fmt: skip


def _load(place: str) -> ModuleType:
    if place.endswith(".py") or os.sep in place:
        return _load_file(Path(place))
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as exc:
        if exc.name is None or not (place == exc.name or place.startswith(f"{exc.name}.")):
            raise
        files = [file.stem for file in Path().glob("*.py")]
        files += [file.parent.name for file in Path().glob("*/__init__.py")]
        raise Mistake(
            "LQ003",
            f"no module is named {place!r} here ({os.getcwd()}){nearest(place, files)}",
            hint="-A takes a module name (proj, proj.tasks), module:attribute, or a path to a .py file",
        ) from exc


def _load_file(file: Path) -> ModuleType:
    """Import a file; one inside a package under its full name, so that it is the same module to everybody."""
    if not file.is_file():
        raise Mistake("LQ003", f"there is no file {file}", hint="-A takes a module name or a path to a .py file")
    file = file.resolve()
    folder, names = file.parent, [file.stem]
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    name = ".".join(names).removesuffix(".__init__")
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) != str(file):
        return _load_alone(file, name)
    return importlib.import_module(name)


def _load_alone(file: Path, name: str) -> ModuleType:
    """Import a file whose name belongs to another module already."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _attribute(module: ModuleType, path: str, spec: str) -> LocalQ:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    if isinstance(found, LocalQ):
        return found
    if isinstance(found, ModuleType) and (inner := _in_module(found)) is not None:
        return inner
    what = "has no such attribute" if found is None else f"{path} is a {type(found).__name__}, not an app"
    apps = [name for name, value in vars(module).items() if isinstance(value, LocalQ)]
    hint = (
        f"{module.__name__} defines {', '.join(apps)}: localq -A {module.__name__}:{apps[0]} worker" if apps else None
    )
    raise Mistake("LQ004", f"cannot load app {spec!r}: module {module.__name__} {what}", hint=hint)


def _in_module(module: ModuleType) -> LocalQ | None:
    for name in ATTRIBUTES:
        found = getattr(module, name, None)
        if isinstance(found, LocalQ):
            return found
        if isinstance(found, ModuleType) and (inner := _in_module(found)) is not None:
            return inner
    return next((value for value in vars(module).values() if isinstance(value, LocalQ)), None)


def _in_submodule(package: ModuleType, name: str) -> LocalQ | None:
    full = f"{package.__name__}.{name}"
    if importlib.util.find_spec(full) is None:
        return None
    return _in_module(importlib.import_module(full))
