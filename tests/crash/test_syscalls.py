"""Killed at each call of the system that writes or syncs: what was to be one step has happened or has not.

A program of its own runs under strace, which kills it at the n-th such call; n grows until the program lives. Its
end is part of it: the last to close a store moves the WAL into the database.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import environment
from field import CLEAN, files_in

from localq import LocalQ, chain
from localq.recovery import sweep

STRACE = shutil.which("strace")
#: What a store is changed by; `write` itself is the test's, for what the program wants to say.
CALLS = "pwrite64,pwritev,ftruncate,fdatasync,fsync,rename,unlink"
#: Far more calls than any of these programs makes.
MOST = 200

PUT = """
import os, sys
from localq import LocalQ

app = LocalQ("program", store=sys.argv[1], set_as_current=False)
app.send_task("work", ("x" * 5000,), task_id=sys.argv[2])
os.write(1, b"it returned")
app.close()
"""

SETTLE = """
import os, sys
from localq import LocalQ, clock
from localq.message import Outcome, Want
from localq.recovery import LATE_REJECT

app = LocalQ("program", store=sys.argv[1], set_as_current=False)
owner = app.storage.enlist({"kind": "child"})
(claim,) = app.storage.settle((), Want(owner.name, (sys.argv[2],), 1, clock.now())).claims
owner.begin(claim, LATE_REJECT)
app.storage.settle([Outcome(claim.seq, claim.token, claim.message.id, "SUCCESS", result=b"1", checksum=1,
                            content_type="application/json", ended_at=clock.now(), leads=claim.message.leads)])
os.write(1, b"it returned")
owner.settled()
owner.close()
app.storage.retire(owner.name)
app.close()
"""


def works_here() -> str:
    """Why strace cannot kill anybody here; nothing if it can."""
    if not STRACE:
        return "strace is not installed (apt-get install strace)"
    done = subprocess.run(
        [STRACE, "-f", "-o", os.devnull, "-e", "inject=flock:signal=KILL:when=1", "true"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    return "" if done.returncode == 0 else f"strace does not work here: {done.stderr}"


@pytest.fixture(scope="module", autouse=True)
def _strace():
    why_not = works_here()
    if why_not:
        pytest.skip(why_not)


def run_killed_at(n: int, program: str, *words: str) -> tuple[int, bool]:
    """Run a program that is killed at its n-th call; return its exit code, and whether its step had returned."""
    done = subprocess.run(
        [str(STRACE), "-f", "-o", os.devnull, "-e", f"trace={CALLS}", "-e", f"inject={CALLS}:signal=KILL:when={n}",
         sys.executable, "-c", program, *words],
        env=environment(), capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
    return done.returncode, done.stdout == "it returned"


def sweep_of_kills(store: Path, program: str, prepare: Callable[[LocalQ, str], None],
                   look: Callable[[LocalQ, str], bool]) -> list[bool]:  # fmt: skip
    """Kill at every call, each time in a step of its own; return, for each, whether it had happened."""
    happened: list[bool] = []
    for n in range(1, MOST):
        name = f"step-{n}"
        app = LocalQ("watcher", store=store, set_as_current=False)
        prepare(app, name)
        app.close()
        code, returned = run_killed_at(n, program, str(store), name)
        app = LocalQ("watcher", store=store, set_as_current=False)
        sweep(app.storage)
        assert app.storage._read("pragma integrity_check") == [("ok",)]
        app.send_task("another", queue="others")  # the gate is open
        happened.append(look(app, name))
        assert happened[-1] or not returned, "it returned and was lost"
        assert app.storage.owners() == []
        app.storage._swept_at = float("-inf")
        app.storage.maintain()
        app.close()
        assert files_in(store) == CLEAN
        if code == 0:
            return happened
    raise AssertionError(f"more than {MOST} calls")


def check(happened: list[bool]) -> None:
    """Kills before the step had happened, and afterwards, were both tried."""
    assert happened.count(True) > 1
    assert happened.count(False) > 1
    print(f"killed at {len(happened) - 1} calls, {happened.count(False)} of them before the step had happened")


@pytest.mark.row("P1", "R21")
@pytest.mark.timeout(300)
def test_a_producer_that_is_killed_at_any_call_has_sent_all_of_its_task_or_nothing(tmp_path: Path) -> None:
    def is_there(app: LocalQ, name: str) -> bool:
        record = app.storage.records([name], whole=True).get(name)
        assert record is None or record.message.body == b'[["' + b"x" * 5000 + b'"],{}]'
        return record is not None

    check(sweep_of_kills(tmp_path / "store", PUT, lambda app, name: None, is_there))


@pytest.mark.row("P1", "F065")
@pytest.mark.timeout(300)
def test_a_child_that_is_killed_at_any_call_has_ended_its_task_and_freed_the_next_or_neither(tmp_path: Path) -> None:
    ids: dict[str, list[str]] = {}

    def prepare(app: LocalQ, name: str) -> None:
        step = app.signature("work").set(queue=name)
        last = chain(step, step.clone()).apply_async()
        ids[name] = [last.parent.id, last.id]

    def has_ended(app: LocalQ, name: str) -> bool:
        found = app.storage.records(ids[name], whole=True)
        first, second = (found[id] for id in ids[name])
        how = (first.state, first.place, second.place)
        assert how in {("SUCCESS", "ended", "ready"), ("PENDING", "ready", "held")}
        return first.ended

    check(sweep_of_kills(tmp_path / "store", SETTLE, prepare, has_ended))
