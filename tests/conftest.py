"""The ground all behaviour tests stand on: one app per test, run in three ways.

`app` is an app with a store of its own. `running` runs the same test body three times: eagerly, with a solo
worker in a thread, and with a prefork worker on a temporary store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from localq import LocalQ
from localq.testing.worker import start_worker

pytest.register_assert_rewrite("localq.testing.contract")

# How long an example takes is this machine's affair.
settings.register_profile("localq")
settings.load_profile("localq")

MODES = ("eager", "solo", "prefork")


@pytest.fixture
def app(tmp_path: Path) -> Iterator[LocalQ]:
    """An app on a store of its own."""
    made = LocalQ("proj", store=tmp_path / "store", set_as_current=True)
    yield made
    made.close()


@pytest.fixture(params=MODES)
def running(request: pytest.FixtureRequest, app: LocalQ) -> Callable[[], AbstractContextManager[Any]]:
    """Return a context manager that makes the app's tasks run, in each of the three ways.

    Enter it once the test has defined its tasks. `running.mode` says which way it is.
    """
    return Running(app, request.param)


class Running:
    """See the fixture `running`."""

    def __init__(self, app: LocalQ, mode: str) -> None:
        self.app, self.mode = app, mode

    def __call__(self) -> AbstractContextManager[Any]:
        if self.mode == "eager":
            self.app.conf.task_always_eager = True
            return nullcontext()
        return start_worker(self.app, self.mode)
