"""Every step of a task's life x the death of everybody near it: what is true afterwards, to the last run.

A cell of the table halts the first process that comes to a fault point (`localq.faults`), kills its victim, lets the
halted one go on if it still lives, brings another worker if the victim took the first one with it, and compares how
every task stands with what DESIGN.md 5 says: its state, how often it ran (as the tasks themselves wrote down, outside
of the store), how often it was charged. Then nothing may be left: no process, no owner, no file but the store's own,
no damage in it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
from commands import Running, environment, is_gone, worker
from field import CLEAN, files_in
from forking import ended, forked
from waiting import LIMIT_S, wait_until

from localq import LocalQ, clock, faults
from localq.message import Want

if sys.platform != "linux":
    pytest.skip("finds its victims through /proc, and children die with their parent by Linux", allow_module_level=True)

TASKS = f"""
import os, signal, sys, time
from localq import LocalQ, group
from localq.worker import child, steward

app = LocalQ("proj")
ran = os.open("ran", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
child.BATCH_S = 1e6  # what is queued makes one batch, however slow the machine
if not os.environ.get("RECALLS"):
    steward.LONG_S = steward.UNNOTICED_S = 1e6  # nor is anybody taken for long

def run(name, act="", more=""):
    with open("ran") as file:
        is_first = name not in file.read().split()
    os.write(ran, f"{{name}}\\n".encode())
    if is_first and "arm" in act:
        os.mkdir("fault")
    if is_first and "die" in act:
        os.kill(os.getpid(), signal.SIGKILL)
    deadline = time.monotonic() + {LIMIT_S}
    while "hold" in act and not os.path.exists("release") and time.monotonic() < deadline:
        time.sleep(0.002)

early = app.task(name="early")(run)
late = app.task(name="late", acks_late=True)(run)
reject = app.task(name="reject", acks_late=True, reject_on_worker_lost=True)(run)
retry = app.task(name="retry", retry_on_worker_lost=True, default_retry_delay=0)(run)

@app.task(name="again", bind=True)
def again(self, *what):
    run(*what)
    if not self.request.retries:
        raise self.retry(countdown=0)

if __name__ == "__main__":
    if sys.argv[1] == "many":
        group(early.s(name).set(task_id=name) for name in sys.argv[2:])()
    else:
        early.apply_async((sys.argv[2], "", "x" * int(sys.argv[1])), task_id=sys.argv[2])
"""
#: More than is handed over together with a ring.
BIG = "5000"

CHILD, STEWARD, SUPERVISOR, GROUP, PRODUCER = "child", "steward", "supervisor", "group", "producer"
WORKERS = (CHILD, STEWARD, SUPERVISOR, GROUP)
#: Of these, nothing of the worker is left.
ALL_OF_IT = (SUPERVISOR, GROUP)


class Cell(NamedTuple):
    """Who dies when somebody is where, and how the work came there; the mode is that of the task called `marked`."""

    point: str
    way: str
    victim: str
    mode: str = "early"

    def __str__(self) -> str:
        return "-".join(self)


class End(NamedTuple):
    """How a task stands when all is over."""

    state: str
    runs: int
    redeliveries: int


DONE = End("SUCCESS", 1, 0)


def step(name: str) -> list[str]:
    """The points of one step."""
    return [point for point in faults.POINTS if point.startswith(f"{name}.")]


def cells(points: Sequence[str], way: str, victims: Sequence[str] = WORKERS, *modes: str) -> list[Cell]:
    return [Cell(*each) for each in product(points, [way], victims, modes or ["early"])]


TABLE = [
    *cells(step("put"), "rung", (*WORKERS, PRODUCER)),
    *cells(step("put"), "given", (*WORKERS, PRODUCER)),
    *cells(step("put"), "many", [PRODUCER]),
    *cells(step("hand"), "idle"),
    *cells(step("claim"), "first"),
    *cells(step("claim"), "batch", [CHILD]),
    *cells(step("start") + step("end"), "batch"),
    *cells(["start.noted", "end.returned"], "batch", [CHILD, SUPERVISOR, GROUP], "late", "reject", "retry"),
    *cells(step("settle"), "idle"),
    *cells(step("settle"), "batch", [CHILD]),
    *cells(step("recall"), "long"),
    *cells(step("sweep"), "lost", WORKERS, "reject"),
]
#: The same for a task that retries once.
RETRIES = cells([*step("end"), *step("settle"), "start.noted"], "batch", [CHILD], "again")


def test_the_table_has_every_point_and_for_each_every_victim():
    # Where a supervisor kills, it is halted itself: tests/worker/test_limits.py.
    points = set(faults.POINTS) - {*step("limit")}
    assert {cell.point for cell in TABLE} == points
    assert {(cell.point, cell.victim) for cell in TABLE} >= set(product(points, WORKERS))
    assert {cell.point for cell in TABLE if cell.victim == PRODUCER} == set(step("put"))


@pytest.mark.row("F046", "F048", "F049", "F065", "F283", "F289", "R5", "R21", "P1")
@pytest.mark.parametrize("cell", TABLE, ids=str)
def test_what_is_true_after(cell: Cell, field: Field) -> None:
    assert_what_is_true_after(cell, field)


@pytest.mark.row("R6", "X7")
@pytest.mark.parametrize("cell", RETRIES, ids=str)
def test_a_retry_is_written_with_its_next_attempt_or_not_at_all(cell: Cell, field: Field) -> None:
    assert_what_is_true_after(cell, field)


def assert_what_is_true_after(cell: Cell, field: Field) -> None:
    field.bring_to_the_point(cell)
    field.kill(cell.victim)
    field.go_on(cell)
    field.wait_for_ends(cell)
    field.wait_for("after")  # the way is free again
    found = field.closed()
    assert found == {**expected(cell), "after": DONE}


# -- What is expected ------------------------------------------------------------------------------


def expected(cell: Cell) -> dict[str, End]:
    """How the tasks of a cell end, by name."""
    found = dict.fromkeys(NAMES[cell.way], DONE)
    if cell.victim == PRODUCER and not is_written(cell):
        return {}
    if cell.way == "lost":  # its child has died already, and is charged for it once, whoever sweeps
        return {**found, "marked": End("SUCCESS", 2, 1)}
    if cell.victim == STEWARD or cell.victim == PRODUCER:
        return found
    if cell.way == "long" or cell.point in ("start.noted", "end.returned"):
        runs = 0 if cell.point == "start.noted" else 1
        runs_again = cell.mode in ("reject", "retry") or (cell.mode == "late" and cell.victim in ALL_OF_IT)
        found["marked"] = End("SUCCESS", runs + 1, 1) if runs_again else End("FAILURE", runs, 1)
    elif cell.mode == "again":
        found["marked"] = End("SUCCESS", 2, 0)
    return found


def is_written(cell: Cell) -> bool:
    """Whether a put has happened when its process dies: many are committed together, after the last was written."""
    return cell.point == "put.released" or (cell.point == "put.written" and cell.way != "many")


#: The tasks of each way to a point, in the order in which they are sent.
NAMES = {
    "rung": ["marked"],  # put for a child that sleeps, too big to be given to it
    "given": ["marked"],  # put into the hands of a child that sleeps
    "many": ["marked", "b", "c"],
    "idle": ["marked"],  # given to a child that sleeps
    "first": ["marked", "behind"],  # there before the worker is
    "batch": ["before", "marked", "b", "c"],  # `before` alone, then the others at once
    "long": ["before", "quick", "marked", "b", "c"],  # `marked` runs on and on, with others around it
    "lost": ["before", "marked", "b", "c"],  # `marked` kills its child the first time
}


# -- How it is done --------------------------------------------------------------------------------


class Field:
    """A store, a worker on it, perhaps a producer, perhaps another worker; and the test's own view."""

    def __init__(self, here: Path, stack: ExitStack) -> None:
        self.here, self._stack = here, stack
        self.fault = here / "fault"
        (here / "tasks.py").write_text(TASKS)
        self.client = LocalQ("client", store=here / ".localq", set_as_current=False)
        # Has somebody look for what is due, so that nobody has to later: a claim alone is a statement, no transaction.
        self.client.storage.settle((), Want("", (), 0, clock.now()))
        self.workers: list[Running] = []
        self.producer: subprocess.Popen[bytes] | None = None

    # -- To the point

    def bring_to_the_point(self, cell: Cell) -> None:
        """Have somebody halt at the cell's point."""
        asked = f"{cell.point}:{self.fault}"
        if cell.way in ("rung", "given", "many"):
            self.start_worker()
            self.wait_for_a_sleeper()
            self.fault.mkdir()
            self.start_producer(cell, asked)
        elif cell.way == "idle":
            self.start_worker(LOCALQ_FAULT=asked)
            self.wait_for_a_sleeper()
            self.fault.mkdir()
            self.send("marked", cell.mode)
        else:
            self.send_queued(cell)
            self.start_worker(LOCALQ_FAULT=asked, RECALLS="yes" if cell.way == "long" else "")
        halted = wait_until(self.halted, what=f"somebody comes to {cell.point}; {self.logs()}")
        assert halted == self.pid_of(who_comes_to(cell.point))
        if cell.point in ("sweep.settled", "sweep.retired"):
            self.wait_for_ends(cell)  # what was freed runs on, and nothing else shall die of this

    def send_queued(self, cell: Cell) -> None:
        """Send the tasks of a worker that is not there yet, and say which of them makes the point count."""
        acts = {"long": "hold arm", "lost": "arm die"}.get(cell.way, "")
        if cell.way == "first":
            self.fault.mkdir()
        by = "before" if cell.point.startswith(("claim", "start")) else "marked"
        for name in NAMES[cell.way]:
            act = "arm" if cell.way == "batch" and name == by else acts if name == "marked" else ""
            self.send(name, cell.mode if name == "marked" else "early", act)

    def halted(self) -> int:
        """The process that halts at the point; 0 as long as nobody does."""
        files = list(self.fault.glob("*.*"))
        return int(files[0].read_text() or 0) if files else 0

    def wait_for_a_sleeper(self) -> None:
        bells = self.client.storage._bells
        wait_until(lambda: bells.taker("celery"), what=f"a child sleeps; {self.logs()}")

    def send(self, name: str, mode: str = "early", act: str = "") -> None:
        self.client.send_task(mode, (name, act), task_id=name)

    def start_worker(self, **variables: str) -> None:
        words = ("-A", "tasks", "worker", "-c", "1", "-l", "WARNING")
        self.workers.append(self._stack.enter_context(worker(*words, cwd=self.here, ready=False, **variables)))

    def start_producer(self, cell: Cell, asked: str) -> None:
        size = {"rung": BIG, "given": "0", "many": "many"}[cell.way]
        self.producer = subprocess.Popen(
            [sys.executable, "tasks.py", size, *NAMES[cell.way]],
            cwd=self.here, env=environment(LOCALQ_FAULT=asked), start_new_session=True,
        )  # fmt: skip
        self._stack.callback(self.producer.wait, LIMIT_S)
        self._stack.callback(self.producer.kill)

    # -- Deaths

    def kill(self, victim: str) -> None:
        """Kill somebody and wait until it, and who dies with it, is gone."""
        first = self.workers[0]
        if victim == PRODUCER:
            self.producer.kill()
            assert self.producer.wait(LIMIT_S) == -signal.SIGKILL
        elif victim in ALL_OF_IT:
            (os.killpg if victim == GROUP else os.kill)(first.pid, signal.SIGKILL)
            first.ended()
            wait_until(lambda: not processes_of(first.pid), what="nobody outlives the supervisor")
        else:
            pid = wait_until(lambda: self.pid_of(victim), what=f"there is a {victim}; {self.logs()}")
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: is_gone(pid))

    def pid_of(self, victim: str) -> int:
        if victim == PRODUCER:
            return self.producer.pid
        kind = {CHILD: "child", STEWARD: "worker"}[victim]
        owners = [owner for owner in self.client.storage.owners() if owner.alive]
        return next((owner.about["pid"] for owner in owners if owner.about.get("kind") == kind), 0)

    # -- And after

    def go_on(self, cell: Cell) -> None:
        """Let whoever halted, or holds, go on; if there is no worker any more, bring another."""
        (self.fault / "go").touch()
        (self.here / "release").touch()
        if cell.victim in ALL_OF_IT:
            self.start_worker()
        if self.producer is not None and cell.victim != PRODUCER:
            assert self.producer.wait(LIMIT_S) == 0

    def wait_for_ends(self, cell: Cell) -> None:
        names = list(expected(cell))
        wait_until(lambda: self.have_ended(names), what=f"all have ended; {self.logs()}")

    def wait_for(self, name: str) -> None:
        """Have one more task run."""
        self.send(name)
        wait_until(lambda: self.have_ended([name]), what=f"another task runs; {self.logs()}")

    def have_ended(self, names: list[str]) -> bool:
        records = self.client.storage.records(names)
        return all(name in records and records[name].ended for name in names)

    def has_steward(self) -> bool:
        owners = self.client.storage.owners()
        return any(owner.alive and owner.about.get("kind") == "worker" for owner in owners)

    def closed(self) -> dict[str, End]:
        """Stop everything, see that nothing is left, and return how each task stands."""
        # A worker that is stopped before it has a steward again leaves the dead one's file to the next worker.
        wait_until(self.has_steward, what="the worker has a steward")
        self.workers[-1].send(signal.SIGTERM)
        assert self.workers[-1].ended() == 0
        assert [pid for each in self.workers for pid in processes_of(each.pid)] == []
        rows = self.client.storage._read("select id, state, redeliveries from messages")
        assert self.client.storage.owners() == []
        self.client.storage._swept_at = float("-inf")  # pipes of dead sleepers are removed once a minute
        self.client.storage.maintain()
        self.client.close()
        assert ended(forked(lambda: examine(self.here / ".localq"))) == 0
        assert files_in(self.here / ".localq") == CLEAN
        runs = Counter((self.here / "ran").read_text().split())
        return {id: End(state, runs[id], redeliveries) for id, state, redeliveries in rows}

    def logs(self) -> str:
        return "\n".join(each.text for each in self.workers)


@pytest.fixture
def field(tmp_path: Path) -> Iterator[Field]:
    with ExitStack() as stack:
        made = Field(tmp_path, stack)
        stack.callback(made.client.close)
        yield made


def who_comes_to(point: str) -> str:
    return {"put": PRODUCER, "recall": STEWARD, "sweep": STEWARD}.get(point.partition(".")[0], CHILD)


def processes_of(session: int) -> list[int]:
    """The live processes of a worker's session."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, _, _, its_session = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == session and state not in "ZX":
            found.append(int(entry))
    return found


def examine(store: Path) -> None:
    """Look for damage; in a process of its own, since everybody else has closed the store."""
    app = LocalQ("examiner", store=store, set_as_current=False)
    assert app.storage._read("pragma integrity_check") == [("ok",)]
    app.close()
