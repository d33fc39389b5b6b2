"""`celery` and `kombu`, for programs in Celery's words: each of their modules here is one of localq's.

`install()` puts them in front of a Celery that may be installed. A name that localq does not have is an ImportError
or AttributeError, as it would be for a user who moves a program over; nothing is made up.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

#: Celery's module -> where localq has its names.
MODULES = {
    "celery": "localq",
    "celery.app": "localq",
    "celery.app.task": "localq.task",
    "celery.canvas": "localq.canvas",
    "celery.contrib": "localq.contrib",
    "celery.contrib.abortable": "localq.contrib.abortable",
    "celery.exceptions": "localq.exceptions",
    "celery.result": "localq.result",
    "celery.schedules": "localq.schedules",
    "celery.signals": "localq.signals",
    "celery.states": "localq.states",
    "celery.utils": "localq",
    "celery.utils.log": "localq.log",
    "celery.worker": "localq.worker",
    "celery.worker.request": "localq.worker.request",
    "kombu": "localq.routing",
    "kombu.exceptions": "localq.exceptions",
}
#: The names that are not the same on both sides.
RENAMED = {("celery", "Celery"): "LocalQ"}


class Names(MetaPathFinder, Loader):
    """Finds the modules above, each as a module that asks localq's for its names."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname not in MODULES:
            return None
        return ModuleSpec(fullname, self, is_package=any(name.startswith(f"{fullname}.") for name in MODULES))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        ours = importlib.import_module(MODULES[module.__name__])

        def look_up(name: str) -> Any:
            return getattr(ours, RENAMED.get((module.__name__, name), name))

        module.__getattr__ = look_up  # type: ignore[method-assign]


def install() -> None:
    """Have `import celery` and `import kombu` find localq, in this process."""
    loaded = [name for name in sys.modules if name.partition(".")[0] in {"celery", "kombu"}]
    if not any(isinstance(finder, Names) for finder in sys.meta_path):
        assert not loaded, f"Celery is imported already: {loaded[:3]}"
        sys.meta_path.insert(0, Names())
