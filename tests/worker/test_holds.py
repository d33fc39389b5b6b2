"""Tasks that may start only so often, and tasks that a worker does not know, with real workers."""

from __future__ import annotations

import logging
import math
from collections import Counter
from pathlib import Path

import pytest
from commands import localq, python, worker
from waiting import wait_until

from localq import LocalQ
from localq.exceptions import ImproperlyConfigured, NotRegistered, TimeoutError, UnknownTask
from localq.rates import parse
from localq.testing.worker import start_worker

WORKER = ("-A", "tasks", "worker", "-c", "2")
LIMITED = """
import os, time
from localq import LocalQ

app = LocalQ("proj")

def note(word):
    with open("ran", "ab", buffering=0) as file:
        file.write(f"{word} {time.monotonic()}\\n".encode())

@app.task(rate_limit="20/s")
def slow(number):
    note("slow")
    return number

@app.task(rate_limit="1/h")
def rare():
    note("rare")

@app.task
def free(number):
    note("free")
    return number
"""


def starts_of(directory: Path, word: str) -> list[float]:
    lines = (directory / "ran").read_text().splitlines() if (directory / "ran").exists() else []
    return [float(line.split()[1]) for line in lines if line.startswith(f"{word} ")]


@pytest.mark.row("F038", "R10", "F138")
def test_two_workers_keep_one_limit_together_and_nothing_waits_behind_it(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(LIMITED)
    send = "from tasks import slow, free; [slow.delay(i) for i in range(30)]; [free.delay(i) for i in range(40)]"
    assert python("-c", send, cwd=tmp_path) == ""
    with worker(*WORKER, "-n", "a", cwd=tmp_path), worker(*WORKER, "-n", "b", cwd=tmp_path):
        wait_until(lambda: len(starts_of(tmp_path, "slow")) == 30, what="all have run")
    slow, free = starts_of(tmp_path, "slow"), starts_of(tmp_path, "free")
    # The first token is there at once, every further one 50 ms later. A start can be late, and never early.
    assert slow[-1] - slow[0] >= 29 * 0.05 - 0.05
    assert len(free) == 40
    assert max(free) < slow[-1]


@pytest.mark.row("F038", "R10")
def test_a_limit_by_the_hour_lets_one_start(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(LIMITED)
    with worker(*WORKER, cwd=tmp_path):
        send = "from tasks import rare, free; r = [rare.delay() for i in range(5)]; print(r[4].id)\n"
        send += "[free.delay(i).get(timeout=30) for i in range(20)]"
        id = python("-c", send, cwd=tmp_path).strip()
    assert len(starts_of(tmp_path, "rare")) == 1
    shown = localq("-A", "tasks", "task", "show", id, cwd=tmp_path)
    assert "waits for its turn (rate_limit of tasks.rare)" in shown.stdout


@pytest.mark.row("F038", "F136")
@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_limit_for_all_tasks_and_none_for_one(app: LocalQ, pool: str) -> None:
    app.conf.task_default_rate_limit = "1/h"

    @app.task
    def limited() -> str:
        return "ran"

    @app.task(rate_limit=0)
    def unlimited() -> str:
        return "ran"

    with start_worker(app, pool):
        assert [app.send_task("celery.ping").get(timeout=30) for _ in range(3)] == ["pong"] * 3
        assert [unlimited.delay().get(timeout=30) for _ in range(5)] == ["ran"] * 5
        results = [limited.delay(), limited.delay()]
        wait_until(lambda: any(result.ready() for result in results))
        (second,) = (result for result in results if not result.ready())
        with pytest.raises(TimeoutError, match="waits for its turn"):
            second.get(timeout=0.2)
    # Whoever has no limit runs what waited.
    app.conf.worker_disable_rate_limits = True
    with start_worker(app, pool):
        assert second.get(timeout=30) == "ran"


@pytest.mark.row("R10")
def test_each_worker_may_have_a_limit_of_its_own(app: LocalQ) -> None:
    app.conf.task_rate_limit_scope = "worker"

    @app.task(rate_limit="1/h")
    def limited() -> str:
        return "ran"

    results = [limited.delay() for _ in range(5)]
    ran = lambda: sum(result.ready() for result in results)
    with start_worker(app):
        wait_until(lambda: ran() == 1)
        with start_worker(app):
            wait_until(lambda: ran() == 2)
    assert Counter(result.state for result in results) == {"SUCCESS": 2, "PENDING": 3}


@pytest.mark.row("F137")
def test_a_limited_task_with_a_countdown_starts_at_the_later_of_both(app: LocalQ) -> None:
    @app.task(rate_limit="1/h")
    def limited() -> str:
        return "ran"

    later = limited.apply_async(countdown=0.2)
    with start_worker(app, "solo"):
        assert limited.delay().get(timeout=30) == "ran"
        wait_until(lambda: app.storage.records((later.id,))[later.id].hold == f"rate:{limited.name}@celery")
    assert later.state == "PENDING"


@pytest.mark.row("F038")
@pytest.mark.parametrize(
    ("limit", "period_s"),
    [("100/s", 0.01), ("100/m", 0.6), ("120/h", 30), ("10", 0.1), (4, 0.25), (0.5, 2), (None, None), (0, None),
     ("", None), ("0/m", None)],
)  # fmt: skip
def test_a_limit_is_read_as_celery_writes_it(limit: object, period_s: float | None) -> None:
    found = parse(limit)
    assert found == period_s if period_s is None else found is not None and math.isclose(found, period_s)


@pytest.mark.row("F038")
@pytest.mark.parametrize("limit", ["fast", "10/d", "-1/s", -3, "/s", "nan", True, [10]])
def test_a_limit_that_cannot_be_read_is_an_error_where_it_is_given(app: LocalQ, limit: object) -> None:
    with pytest.raises((ValueError, TypeError), match=r"rate_limit=.*10/m|rate_limit=.*'100/m'"):
        app.task(name="limited", rate_limit=limit)(lambda: None)
    with pytest.raises(ImproperlyConfigured, match="task_default_rate_limit"):
        app.conf.task_default_rate_limit = limit


# -- Unknown names -----------------------------------------------------------------------------------


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "localq")
    return caplog


@pytest.mark.row("R25", "F015")
def test_a_name_that_the_worker_does_not_know_is_parked_with_one_warning(app: LocalQ, log) -> None:
    @app.task(name="proj.add")
    def add(x: int, y: int) -> int:
        return x + y

    lost = [app.send_task("proj.ad", (1, 2)) for _ in range(3)]
    with start_worker(app, "solo"):
        assert add.delay(1, 2).get(timeout=30) == 3
        with pytest.raises(TimeoutError, match=r"it is parked, because no worker knows a task 'proj\.ad'"):
            lost[0].get(timeout=0.2)
    assert [(each.state, each.ready(), each.exists()) for each in lost] == [("PENDING", False, True)] * 3
    warnings = [each.getMessage() for each in log.records if "proj.ad " in each.getMessage()]
    assert len(warnings) == 1
    assert "did you mean 'proj.add'" in warnings[0]
    assert "restart the worker if the task is new" in warnings[0]


@pytest.mark.row("R25")
@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_worker_that_knows_the_name_frees_what_was_parked(app: LocalQ, pool: str) -> None:
    results = [app.send_task("proj.new", (number,)) for number in range(5)]
    with start_worker(app, pool):
        wait_until(lambda: {count.place for count in app.storage.counts()} == {"held"})

    @app.task(name="proj.new")
    def new(number: int) -> int:
        return number

    with start_worker(app, pool):
        assert [result.get(timeout=30) for result in results] == list(range(5))
    assert app.storage.entries("name:") == []


@pytest.mark.row("R25")
def test_workers_that_know_different_tasks_share_a_queue(app: LocalQ, tmp_path: Path) -> None:
    """Whichever of them meets a task first, the one that knows it runs it."""
    other = LocalQ("other", store=tmp_path / "store", set_as_current=False)
    app.task(name="proj.mine")(lambda number: f"mine {number}")
    other.task(name="proj.its")(lambda number: f"its {number}")
    with start_worker(app), start_worker(other):
        results = [app.send_task(name, (number,)) for number in range(10) for name in ("proj.mine", "proj.its")]
        assert [result.get(timeout=30) for result in results] == [
            f"{who} {number}" for number in range(10) for who in ("mine", "its")
        ]
    other.close()


@pytest.mark.row("R25", "F006", "F331")
def test_a_policy_lets_unknown_names_fail_as_in_celery(app: LocalQ) -> None:
    app.conf.task_unknown_policy = "fail"
    result = app.send_task("proj.nobody")
    with start_worker(app, "solo"), pytest.raises(NotRegistered, match=r"proj\.nobody"):
        result.get(timeout=30)
    assert result.state == "FAILURE"


@pytest.mark.row("R25")
def test_the_command_line_says_that_a_task_is_parked(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(LIMITED)
    with worker(*WORKER, cwd=tmp_path):
        send = "from tasks import app; print(app.send_task('tasks.fre').id)"
        id = python("-c", send, cwd=tmp_path).strip()
        wait_until(lambda: "is parked" in localq("-A", "tasks", "task", "show", id, cwd=tmp_path).stdout)
    status = localq("-A", "tasks", "status", cwd=tmp_path)
    assert "tasks.fre" in status.stdout
    assert "parked" in status.stdout


# -- Unknown ids -------------------------------------------------------------------------------------


@pytest.mark.row("R7")
def test_an_id_that_the_store_does_not_know_is_pending_and_does_not_exist(app: LocalQ) -> None:
    result = app.AsyncResult("nobody")
    assert (result.state, result.exists()) == ("PENDING", False)
    with pytest.raises(TimeoutError, match="sent elsewhere, or forgotten"):
        result.get(timeout=0.05)


@pytest.mark.row("R7")
def test_an_unknown_id_raises_at_once_where_that_was_asked_for(app: LocalQ) -> None:
    app.conf.result_unknown_raises = True
    with pytest.raises(UnknownTask, match="sent elsewhere, or forgotten"):
        app.AsyncResult("nobody").get()
    with pytest.raises(TimeoutError):
        app.send_task("proj.known").get(timeout=0.05)
