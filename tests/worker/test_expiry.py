"""Any worker forgets results that had their time, a little at a time."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from waiting import wait_until
from working import work_off

from localq.exceptions import StoreBusy
from localq.storage.base import STEP
from localq.testing.clock import FakeClock
from localq.testing.contract.words import message, outcome, take
from localq.testing.worker import start_worker
from localq.worker import expiry
from localq.worker.expiry import Expiry
from localq.worker.steward import patiently
from localq.worker.timer import Timer

DAY_S = 86_400


@pytest.fixture
def clock():
    with FakeClock() as clock:
        yield clock


@pytest.fixture
def nothing(app):
    @app.task(name="proj.nothing")
    def nothing():
        return None

    return nothing


@pytest.fixture
def service(app):
    """The service and its timer, which goes on when `go_on` says so."""
    timer = Timer()
    service = Expiry(app.backend, timer, patiently)
    service.start()
    yield service
    service.stop()
    assert len(timer) == 0


def go_on(clock, service, seconds):
    for _ in range(seconds):
        clock.advance(1)
        service._timer.tick()


def number(app):
    return sum(each.number for each in app.storage.counts())


@pytest.mark.row("F180", "R8")
def test_a_worker_forgets_what_had_its_time_without_beat(app, clock, nothing, service):
    for _ in range(3):
        nothing.delay()
    work_off(app)
    clock.advance(DAY_S - 60)
    nothing.delay()
    go_on(clock, service, 30)
    assert number(app) == 4
    go_on(clock, service, 60)
    assert number(app) == 1


@pytest.mark.row("F180", "R8")
def test_much_is_forgotten_in_small_steps_over_several_rounds(app, clock, nothing, service, monkeypatch):
    monkeypatch.setattr(expiry, "BUDGET_S", 0.0)  # a step is made all the same
    for _ in range(3 * STEP + 50):
        nothing.delay()
    work_off(app)
    clock.advance(DAY_S + 1)
    left = [number(app)]
    for _ in range(30):
        go_on(clock, service, 1)
        left.append(number(app))
    assert max(before - after for before, after in pairwise(left)) <= STEP
    assert left[-1] == 0


@pytest.mark.row("F180")
def test_a_store_that_cannot_be_written_is_tried_again(app, clock, nothing, service, monkeypatch):
    nothing.delay()
    work_off(app)
    clock.advance(DAY_S + 1)

    def busy(_):
        raise StoreBusy("somebody is at it")

    with monkeypatch.context() as patched:
        patched.setattr(app.backend, "forget_old", busy)
        go_on(clock, service, 10)
    assert number(app) == 1
    go_on(clock, service, 10)
    assert number(app) == 0


@pytest.mark.row("F180", "R8")
@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_real_worker_does_it(app, nothing, pool):
    app.conf.result_expires = 0.001
    with start_worker(app, pool):
        assert nothing.delay().get(timeout=30) is None
        wait_until(lambda: number(app) == 0)


def open_files(directory):
    """Which files below a directory this process has open; what else it has open is not this test's."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # that of the listing
        found += [target] if target.startswith(str(directory)) else []
    return found


@pytest.mark.row("F179", "R8")
def test_a_hundred_thousand_results_that_nobody_gets_leave_the_file_as_large_as_a_fifth_of_them(app, clock, tmp_path):
    storage = app.storage
    owner = storage.enlist({}, journal=False)
    sizes, files = [], []
    for _ in range(5):
        storage.put([message(sent_at=clock.now()) for _ in range(20_000)])
        while claims := take(storage, owner, 1000):
            storage.settle([outcome(claim, result=b"[1, 2, 3]") for claim in claims])
        clock.advance(DAY_S + 1)
        assert app.backend.cleanup() == 20_000
        sizes.append(storage._read("pragma page_count")[0][0])
        files.append(len(open_files(tmp_path)))
    owner.close()
    assert max(sizes) <= 1.05 * sizes[0]
    assert 0 < files[-1] < files[0] + len(files) - 1  # not one more each time; another thread may have one open now
