"""Tasks that can be asked to stop."""

from __future__ import annotations

import time

import pytest
from waiting import wait_until

from localq import AsyncResult
from localq.contrib.abortable import ABORTED, AbortableAsyncResult, AbortableTask
from localq.testing.worker import start_worker

pytestmark = pytest.mark.row("N29")


@pytest.fixture
def count(app, tmp_path):
    @app.task(bind=True, base=AbortableTask, name="proj.count")
    def count(self, limit_s=20):
        (tmp_path / "began").touch()
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if self.is_aborted():
                return "stopped"
        return "not asked"

    return count


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_running_task_sees_that_it_was_asked_to_stop(app, count, tmp_path, pool):
    with start_worker(app, pool, concurrency=1):
        result = count.delay()
        wait_until((tmp_path / "began").exists, what="the task has begun")
        assert not result.is_aborted()
        assert result.abort()
        assert result.get(timeout=30) == "stopped"
    assert not result.is_aborted()
    assert not result.abort()
    assert result.state == "SUCCESS"


def test_a_task_that_waits_in_its_queue_sees_it_when_it_runs(app, count):
    app.conf.task_track_started = True
    result = count.apply_async()
    assert count.AsyncResult(result.id).abort()
    assert (result.state, result.is_aborted()) == (ABORTED, True)
    with start_worker(app):
        assert result.get(timeout=30) == "stopped"


def test_nobody_asked_is_nobody_aborted(app, count):
    assert count.apply((0,)).get() == "not asked"
    assert not count.AsyncResult("nobody").abort()
    assert not count.is_aborted("nobody")
    app.conf.task_always_eager = True
    assert count.delay(0).get() == "not asked"


def test_the_handles_are_of_their_own_class(count):
    sent = count.delay()
    assert type(sent) is type(count.AsyncResult(sent.id)) is AbortableAsyncResult
    assert isinstance(sent, AsyncResult)
    assert sent == count.AsyncResult(sent.id)
