"""Nothing waits behind a long task: what has ended before it is told, what comes after it runs elsewhere.

A long task here is one that waits for a file; it ends when the test is done looking.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from waiting import wait_until

from localq import AsyncResult, LocalQ
from localq.testing.worker import start_worker

#: So many short tasks make a child claim a hundred at once.
WARM_UP = 400
#: Longest that a long task waits for its file, in seconds.
LONG_S = 60.0


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """The file that ends the long task."""
    return tmp_path / "go"


@pytest.fixture
def tasks(app: LocalQ, go: Path):
    class Tasks:
        @app.task
        def short(number):
            return number

        @app.task(name="long")
        def long():
            deadline = time.monotonic() + LONG_S
            while not go.exists() and time.monotonic() < deadline:
                time.sleep(0.005)
            return os.getpid()

        @app.task(name="after")
        def after(id):
            return AsyncResult(id, app=app).get(timeout=LONG_S, disable_sync_subtasks=False)

    return Tasks


def have_ended(results):
    return all(result.ready() for result in results)


def test_short_tasks_behind_a_long_one_all_end_before_it(app, tasks, go):
    before = [tasks.short.delay(number) for number in range(WARM_UP)]
    long = tasks.long.delay()
    behind = [tasks.short.delay(number) for number in range(20)]
    with start_worker(app, "prefork", concurrency=2):
        wait_until(lambda: have_ended(behind), what="the short tasks behind the long one end")
        wait_until(lambda: have_ended(before), what="those before it, in whichever child they are")
        assert not long.ready()
        go.touch()
        long.get(timeout=30)
    assert [result.get(timeout=0) for result in behind] == list(range(20))
    assert redeliveries(app) == 0


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_result_reaches_its_waiter_although_a_long_task_follows(app, tasks, go, pool):
    for number in range(WARM_UP):
        last = tasks.short.delay(number)
    long = tasks.long.delay()
    with start_worker(app, pool, concurrency=1):
        assert last.get(timeout=30) == WARM_UP - 1
        assert not long.ready()
        go.touch()
        long.get(timeout=30)


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_task_that_waits_for_one_of_its_own_batch_gets_it(app, tasks, pool):
    for number in range(WARM_UP):
        last = tasks.short.delay(number)
    waiting = tasks.after.delay(last.id)
    with start_worker(app, pool, concurrency=1):
        assert waiting.get(timeout=30) == WARM_UP - 1


def test_every_task_of_a_recalled_batch_runs_once(app, tasks, go, tmp_path):
    ran = os.open(tmp_path / "ran", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    @app.task
    def noted(number):
        os.write(ran, f"{number}\n".encode())
        time.sleep(0.03 if number % 50 == 49 else 0)  # long enough to be recalled, again and again

    results = [noted.delay(number) for number in range(600)]
    with start_worker(app, "prefork", concurrency=2):
        wait_until(lambda: have_ended(results))
    os.close(ran)
    assert sorted(map(int, (tmp_path / "ran").read_text().split())) == list(range(600))
    assert {result.state for result in results} == {"SUCCESS"}
    assert redeliveries(app) == 0


def test_a_message_given_to_a_child_that_is_stopped_runs_in_another(app, tasks):
    with start_worker(app, "prefork", concurrency=2):
        tasks.short.delay(0).get(timeout=30)
        wait_until(lambda: len(sleeping(app)) == 2, what="both children sleep")
        stopped = sleeping(app)[0]
        # In the gate, so that it is not stopped there: everybody else would wait for it.
        app.storage._session().gate.hold(stop, stopped)
        try:
            results = [tasks.short.delay(number) for number in range(3)]
            assert [result.get(timeout=30) for result in results] == [0, 1, 2]
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert tasks.short.delay(7).get(timeout=30) == 7
    assert redeliveries(app) == 0


def stop(pid):
    """Stop a process, and wait until it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", what=f"{pid} is stopped")


def sleeping(app):
    """The pids of the children that run nothing."""
    return [owner.about["pid"] for owner in app.storage.owners() if owner.doing is not None and not owner.doing.seq]


def redeliveries(app):
    (row,) = app.storage._read("select sum(redeliveries) from messages")
    return row[0]
