"""One call's way through the house: from floor to floor, and never back up.

A profiler writes down every file that `delay` and `get` enter. The docstrings of `app`, `worker`, `storage.base` and
`states` draw the same way. A floor that is a package (`storage/`) has its rooms in folders: `storage/` and
`storage/sqlite/`; elsewhere a room is a file.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

import localq
from localq import LocalQ
from localq.testing.worker import start_worker

HOUSE = Path(localq.__file__).parent
FLOORS = (
    "exceptions states clock registry signals faults version",
    """serialization message options moments settings sources config rates queues routing context lazy stamping
    signatures maps workflows canvas plan log current annotations revocation parameters retries models wrapping
    tracebacks coroutines""",
    "storage",
    """recovery dead whereabouts remainder sequel meta resultstore waiting graph groups awaitable awaiting result
    announcement errbacks executor publisher backend eager broker""",
    "task makers tasks loader report parts registrar app",
    "worker",
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}


def test_a_call_goes_down_the_floors_and_never_back_up(app: LocalQ) -> None:
    @app.task
    def add(x, y):
        time.sleep(0.1)  # long enough for `get` to have to wait
        return x + y

    with start_worker(app, "prefork", concurrency=1):
        add.delay(1, 1).get(timeout=10)  # the store is open, the bell is made
        steps = walked(lambda: add.delay(2, 2).get(timeout=10))

    assert [f"{caller} -> {called}" for caller, called in steps if floor(caller) < floor(called)] == []
    rooms = defaultdict(dict)
    for file in dict.fromkeys(chain.from_iterable(steps)):
        rooms[floor(file)][room(file)] = file
    # Sending and reading are acts in one room each, and so is waiting.
    most = {FLOOR["result"]: 3}
    assert {number: len(found) for number, found in rooms.items() if len(found) > most.get(number, 2)} == {}
    # In order of first entry: users, acts, data, store, and up again only by returning.
    first = list(dict.fromkeys(file for _, file in steps))
    assert first[0] == "task.py"
    assert first.index("publisher.py") < first.index("serialization.py") < first.index("storage/sqlite/store.py")
    assert first.index("storage/sqlite/store.py") < first.index("result.py")


@pytest.mark.row("F344")
def test_a_call_costs_at_most_sixty_python_calls(app: LocalQ) -> None:
    @app.task
    def add(x, y):
        return x + y

    add.delay(1, 2)
    add.delay(1, 2)
    calls = 0

    def count(frame, event, _):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    add.delay(1, 2)
    sys.setprofile(None)
    assert calls <= 60


def walked(act: Callable[[], object]) -> list[tuple[str, str]]:
    """Return (caller's file, entered file) for every call from one file of the house into another."""
    steps: list[tuple[str, str]] = []

    def note(frame, event, _):
        if event != "call" or frame.f_back is None:
            return
        called, caller = frame.f_code.co_filename, frame.f_back.f_code.co_filename
        if called != caller and called.startswith(str(HOUSE)):
            start = caller if caller.startswith(str(HOUSE)) else str(HOUSE / "task.py")
            steps.append((inside(start), inside(called)))

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return steps


def inside(path: str) -> str:
    return Path(path).relative_to(HOUSE).as_posix()


def floor(file: str) -> int:
    return FLOOR[file.split("/", 1)[0].removesuffix(".py")]


def room(file: str) -> str:
    return file.rpartition("/")[0] or file
