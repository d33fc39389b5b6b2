"""Tasks for later: never before their time, once, whatever becomes of the clock, and at no cost while they wait.

The clock of these workers can be set, without a process noticing. What ran, and when by the clock of that moment, is
written down by the tasks themselves, outside of the store.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from waiting import wait_until

from localq import LocalQ, clock
from localq.exceptions import StoreBusy, TaskRevokedError
from localq.message import Want
from localq.storage.base import DUE_BELL, Storage
from localq.storage.memory import MemoryStorage
from localq.storage.sqlite import SqliteStorage
from localq.testing.clock import FakeClock
from localq.testing.contract.words import PATIENCE_S, message
from localq.testing.worker import start_worker
from localq.worker import child
from localq.worker.steward import NEAR, ROUND_S, Due
from localq.worker.timer import IDLE_S, Timer

DAY_S = 86400.0
YEAR_S = 366 * DAY_S
POOLS = pytest.mark.parametrize("pool", ["solo", "prefork"])


class Wall:
    """A wall clock that can be set, for this process and all it forks; the monotonic one goes on as it is."""

    def __init__(self) -> None:
        self._ahead_s = mmap.mmap(-1, 8)

    def now(self) -> float:
        return time.time() + struct.unpack_from("=d", self._ahead_s)[0]

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def set(self, ahead_s: float) -> None:
        struct.pack_into("=d", self._ahead_s, 0, ahead_s)


class Run(NamedTuple):
    """One run of a task: its id, when it was to begin and when it began, by the clock of that moment."""

    id: str
    eta: float
    at: float


class Notes:
    """What the tasks write down."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR)

    def write(self, request) -> None:
        eta = datetime.fromisoformat(request.eta).timestamp() if request.eta else 0.0
        os.write(self._fd, f"{request.id} {eta!r} {clock.now()!r}\n".encode())

    def read(self) -> list[Run]:
        text = os.pread(self._fd, os.fstat(self._fd).st_size, 0).decode()
        return [Run(id, float(eta), float(at)) for id, eta, at in map(str.split, text.splitlines())]


@pytest.fixture
def wall() -> Iterator[Wall]:
    wall = Wall()
    clock.install(wall)
    yield wall
    clock.restore()


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "ran")


@pytest.fixture
def tasks(app: LocalQ, wall: Wall, notes: Notes):
    class Tasks:
        @app.task(bind=True)
        def note(self, number):
            notes.write(self.request)
            return number

        @app.task
        def set_clock(ahead_s):
            wall.set(ahead_s)

        @app.task
        def ping():
            return "pong"

    return Tasks


@pytest.fixture
def only_rung(monkeypatch) -> None:
    """Children that do not look for work unless they are rung."""
    monkeypatch.setattr(child, "FLOOR_S", 3600.0)


@pytest.fixture(params=["memory", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    made = MemoryStorage() if request.param == "memory" else SqliteStorage(tmp_path / "store")
    yield made
    made.close()


# -- Never before the time -------------------------------------------------------------------------


@POOLS
@pytest.mark.row("F097", "F346")
def test_a_thousand_tasks_start_once_and_none_before_its_time(app, tasks, notes, pool):
    pick = random.Random(346)
    expected = {}
    with start_worker(app, pool):
        for number in range(1000):
            countdown = pick.choice([0, pick.uniform(0, 2), pick.uniform(0, 0.05)])
            earliest = clock.now() + countdown
            expected[tasks.note.apply_async((number,), countdown=countdown).id] = earliest
        wait_until(lambda: len(notes.read()) >= len(expected), what="all run")
    runs = notes.read()
    assert Counter(run.id for run in runs) == Counter(expected.keys())
    assert [run for run in runs if run.at < expected[run.id] or run.at < run.eta] == []


@POOLS
@pytest.mark.row("F098")
def test_a_sleeping_worker_is_woken_when_the_time_has_come(app, tasks, only_rung, pool):
    with start_worker(app, pool):
        assert tasks.note.apply_async((1,), countdown=0.2).get(timeout=PATIENCE_S) == 1
        far = tasks.note.apply_async((2,), countdown=YEAR_S)
        assert tasks.note.apply_async((3,), countdown=0.2).get(timeout=PATIENCE_S) == 3
        assert far.state == "PENDING"


@pytest.mark.row("F099")
def test_what_has_expired_is_revoked_and_not_run(app, running):
    @app.task
    def work():
        raise AssertionError("it was run")

    with running():
        result = work.apply_async(expires=0)
        with pytest.raises(TaskRevokedError, match=r"^expired$"):
            result.get(timeout=PATIENCE_S)
        assert result.state == "REVOKED"
        if running.mode != "eager":
            result = work.apply_async(countdown=0.2, expires=0.1)
            with pytest.raises(TaskRevokedError):
                result.get(timeout=PATIENCE_S)


# -- Whatever becomes of worker and clock ----------------------------------------------------------


@pytest.mark.row("F347", "R3")
def test_what_waits_a_year_outlives_workers_and_runs_once(app, wall, tasks, notes):
    results = [tasks.note.apply_async((number,), countdown=YEAR_S - 3600) for number in range(1000)]
    with start_worker(app, "prefork", concurrency=2) as worker:
        assert tasks.ping.delay().get(timeout=PATIENCE_S) == "pong"
        os.killpg(worker.pid, signal.SIGKILL)
    with start_worker(app, "prefork", concurrency=2):
        assert tasks.ping.delay().get(timeout=PATIENCE_S) == "pong"
    assert notes.read() == []
    wall.set(YEAR_S)
    with start_worker(app, "prefork", concurrency=2):
        assert [result.get(timeout=PATIENCE_S) for result in results] == list(range(1000))
    wall.set(0)
    with start_worker(app, "prefork", concurrency=2):
        assert tasks.ping.delay().get(timeout=PATIENCE_S) == "pong"
    wall.set(2 * YEAR_S)
    with start_worker(app, "prefork", concurrency=2):
        assert tasks.ping.delay().get(timeout=PATIENCE_S) == "pong"
    assert sorted(run.id for run in notes.read()) == sorted(result.id for result in results)


@POOLS
@pytest.mark.row("F346")
def test_a_sleeping_worker_notices_that_the_clock_was_set_forward(app, wall, tasks, only_rung, pool):
    with start_worker(app, pool):
        result = tasks.note.apply_async((1,), countdown=DAY_S)
        assert tasks.ping.delay().get(timeout=PATIENCE_S) == "pong"
        wall.set(2 * DAY_S)
        assert result.get(timeout=PATIENCE_S) == 1


@POOLS
@pytest.mark.row("F346")
def test_a_clock_that_jumps_a_day_loses_nothing_and_repeats_nothing(app, wall, tasks, notes, pool):
    """One child, whose tasks set the clock: so nothing can happen between a task's start and its look at the clock."""
    pick = random.Random(pool)
    sent = []
    for number in range(600):
        kind = pick.random()
        if kind < 0.05:
            tasks.set_clock.delay(pick.choice([-DAY_S, 0.0, DAY_S]))
        else:
            how = {} if kind < 0.4 else {"countdown": pick.choice([1, 3600, DAY_S / 2, 1.5 * DAY_S])}
            sent.append(tasks.note.apply_async((number,), **how))
    with start_worker(app, pool, concurrency=1):
        plain = [result for result in sent if not _eta(app, result)]
        assert all(result.get(timeout=PATIENCE_S) is not None for result in plain)
        for ahead_s in (-DAY_S, DAY_S, 0.0, 4 * DAY_S):
            tasks.set_clock.delay(ahead_s).get(timeout=PATIENCE_S)
            assert tasks.ping.delay().get(timeout=PATIENCE_S) == "pong"
        numbers = [result.get(timeout=PATIENCE_S) for result in sent]
    runs = notes.read()
    assert sorted(run.id for run in runs) == sorted(result.id for result in sent)
    assert [run for run in runs if run.at < run.eta] == []
    assert (len(set(numbers)), numbers) == (len(sent), sorted(numbers))
    assert {result.state for result in sent} == {"SUCCESS"}


def _eta(app, result):
    return app.storage.records((result.id,), whole=True)[result.id].message.visible_at


@pytest.mark.row("F346")
def test_what_was_due_by_a_clock_that_is_set_back_waits_again(app, wall, tasks, notes):
    """All of them are claimed in one batch; the first to run sets the clock back."""
    warm_up = [tasks.ping.delay() for _ in range(200)]
    tasks.set_clock.apply_async((-DAY_S,), priority=9)
    late = [tasks.note.apply_async((number,), countdown=60, priority=9) for number in range(20)]
    wall.set(3600)
    with start_worker(app, "solo"):
        assert [each.get(timeout=PATIENCE_S) for each in warm_up] == ["pong"] * 200
        wait_until(lambda: wall.now() < time.time())
        assert tasks.ping.delay().get(timeout=PATIENCE_S) == "pong"
        assert ([each.state for each in late], notes.read()) == (["PENDING"] * 20, [])
        wall.set(3600)
        assert [each.get(timeout=PATIENCE_S) for each in late] == list(range(20))
    assert sorted(run.id for run in notes.read()) == sorted(each.id for each in late)


# -- What waiting costs ----------------------------------------------------------------------------


def fill(storage: Storage, number: int, at: float) -> None:
    """Have so many messages wait, due in the course of a year."""
    for start in range(0, number, 5000):
        storage.put([message(f"m{each}", visible_at=at + each * 7919 % number) for each in range(start, start + 5000)])


@pytest.mark.row("R3")
@pytest.mark.parametrize("number", [100_000, pytest.param(1_000_000, marks=[pytest.mark.soak])])
@pytest.mark.timeout(600)
def test_of_all_that_wait_a_steward_keeps_one_time_in_memory(tmp_path, monkeypatch, number):
    storage = SqliteStorage(tmp_path / "store")
    with FakeClock() as clock:
        fill(storage, number, clock.now() + 3600)
        asked = []
        due = storage.due
        monkeypatch.setattr(storage, "due", lambda limit: asked.append(limit) or due(limit))
        timer = Timer()
        service = Due(storage, timer)
        service.start()
        tracemalloc.start()
        for _ in range(50):
            service.rung()
            service.look(None)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (len(timer), set(asked), timer.tick()) == (1, {NEAR}, 3600)
        assert most < 100_000
        clock.advance(3600 + 3)
        assert timer.tick() == 1
        assert (len(timer), {each.place: each.number for each in storage.counts()}) == (
            1, {"ready": 4, "waiting": number - 4})  # fmt: skip
    storage.close()


# -- The service that wakes ------------------------------------------------------------------------


@pytest.fixture
def waiting(storage: Storage):
    """A service beside a storage, by a fake clock: (clock, timer, service)."""
    with FakeClock() as clock:
        timer = Timer()
        service = Due(storage, timer)
        service.start()
        yield clock, timer, service


def places(storage: Storage) -> dict[str, int]:
    return {each.place: each.number for each in storage.counts()}


def test_where_nothing_waits_nothing_is_planned(waiting):
    _, timer, _ = waiting
    assert (len(timer), timer.tick()) == (0, IDLE_S)


def test_a_nearer_time_that_comes_later_is_planned_instead(storage, waiting):
    clock, timer, service = waiting
    bell = storage.bell((DUE_BELL,))
    for after in (YEAR_S, 3600, 7200, 1):
        bell.raise_()
        storage.put([message(visible_at=clock.now() + after)])
        assert bell.sleep(PATIENCE_S)
        service.rung()
    bell.close()
    assert (len(timer), timer.tick()) == (1, 1)
    clock.advance(1)
    timer.tick()
    assert (places(storage), timer.tick()) == ({"ready": 1, "waiting": 3}, 3599)


def test_a_sleeper_is_rung_when_a_time_has_come_and_not_before(storage, waiting):
    clock, timer, service = waiting
    storage.put([message("a", visible_at=clock.now() + 10)])
    service.rung()
    bell = storage.bell(("celery",))
    bell.raise_()
    clock.advance(9.5)
    assert timer.tick() == 0.5
    assert bell.is_up()
    clock.advance(0.5)
    timer.tick()
    assert not bell.is_up()
    bell.close()


@pytest.mark.parametrize("seconds", [DAY_S, 11.0])
def test_a_clock_that_was_set_forward_is_noticed_at_the_next_look(storage, waiting, seconds):
    clock, timer, service = waiting
    storage.put([message("a", visible_at=clock.now() + 10)])
    service.rung()
    clock.jump(seconds)
    service.look(None)
    timer.tick()
    assert places(storage) == {"ready": 1}


def test_a_clock_that_was_set_back_makes_a_time_come_later(storage, waiting):
    clock, timer, service = waiting
    storage.put([message("a", visible_at=clock.now() + 10)])
    service.rung()
    clock.jump(-DAY_S)
    clock.advance(10)
    timer.tick()
    assert (places(storage), timer.tick()) == ({"waiting": 1}, DAY_S)


def test_a_clock_that_nobody_sets_makes_nobody_look(storage, waiting, monkeypatch):
    clock, _, service = waiting
    storage.put([message("a", visible_at=clock.now() + 1000)])
    service.rung()
    monkeypatch.setattr(storage, "due", None)
    for _ in range(100):
        clock.advance(1)
        service.look(1.0)


def test_many_that_are_due_at_once_come_in_steps_and_the_loop_goes_on_between(storage, waiting):
    clock, timer, service = waiting
    storage.put([message(visible_at=clock.now() + 10) for _ in range(1200)])
    service.rung()
    clock.advance(10)
    assert [(timer.tick(), places(storage).get("ready")) for _ in range(3)] == [(0, 500), (0, 1000), (IDLE_S, 1200)]


def test_a_store_that_is_busy_is_asked_again_a_round_later(storage, waiting, monkeypatch):
    clock, timer, service = waiting
    storage.put([message(visible_at=clock.now() + 10)])
    service.rung()

    def busy(*_):
        raise StoreBusy("the gate is shut")

    settle = storage.settle
    monkeypatch.setattr(storage, "settle", busy)
    clock.advance(10)
    assert (timer.tick(), places(storage)) == (ROUND_S, {"waiting": 1})
    monkeypatch.setattr(storage, "settle", settle)
    clock.advance(ROUND_S)
    assert (timer.tick(), places(storage)) == (IDLE_S, {"ready": 1})


def test_whatever_goes_wrong_when_a_time_has_come_it_is_tried_again(storage, waiting, monkeypatch, caplog):
    clock, timer, service = waiting
    storage.put([message(visible_at=clock.now() + 10)])
    service.rung()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "settle", lambda *_: 1 / 0)
        clock.advance(10)
        assert timer.tick() == ROUND_S
    assert "ZeroDivisionError" in caplog.text
    clock.advance(ROUND_S)
    assert (timer.tick(), places(storage)) == (IDLE_S, {"ready": 1})


def test_who_stops_leaves_nothing_planned(storage, waiting):
    clock, timer, service = waiting
    storage.put([message(visible_at=clock.now() + 10)])
    service.rung()
    service.stop()
    assert len(timer) == 0


@pytest.mark.row("R3")
def test_a_claim_takes_what_is_due_and_leaves_all_that_waits_where_it_is(storage):
    with FakeClock() as clock:
        storage.put([message(f"m{number}", visible_at=clock.now() + 60 + number) for number in range(3000)])
        owner = storage.enlist({"kind": "child"})
        clock.advance(62)
        claims = storage.settle((), Want(owner.name, ("celery",), 10, clock.now())).claims
        assert [claim.message.id for claim in claims] == ["m0", "m1", "m2"]
        assert places(storage) == {"held": 3, "waiting": 2997}
        owner.close()
