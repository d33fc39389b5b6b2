"""Workers that tests start for themselves."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from commands import is_gone
from waiting import wait_until

from localq.testing.worker import start_worker

KILLED = """
import os, signal
from localq import LocalQ
from localq.testing.worker import start_worker

app = LocalQ("proj", store="store")

@app.task
def who():
    return os.getpid()

with start_worker(app, "prefork", concurrency=1) as worker:
    print(worker.pid, who.delay().get(timeout=30), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
def test_killed_tests_leave_no_worker_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    worker, child = map(int, done.stdout.split())
    wait_until(lambda: is_gone(worker) and is_gone(child), what="the worker and its child are gone")


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_worker_of_tests_takes_what_celerys_takes(app, pool, tmp_path):
    @app.task
    def add(x, y):
        return x + y

    with start_worker(
        app, concurrency=1, pool=pool, perform_ping_check=False, ping_task_timeout=20.0, shutdown_timeout=20.0,
        without_heartbeat=False, hostname="mine", soft_time_limit=50,
    ) as worker:  # fmt: skip
        assert add.delay(1, 2).get(timeout=30) == 3
    assert (worker.node.partition("@")[0], worker.limits) == ("mine", (None, 50))
    with pytest.raises(TypeError, match="no_such_option"), start_worker(app, no_such_option=1):
        pass


def test_a_worker_of_tests_that_does_not_stop_in_time_is_an_error(app):
    begun, may_end = threading.Event(), threading.Event()

    @app.task
    def waits():
        begun.set()
        may_end.wait(30)

    with pytest.raises(RuntimeError, match="still running"), start_worker(app, shutdown_timeout=0.01):
        waits.delay()
        assert begun.wait(30)
    may_end.set()


LOGGED = """
import logging
from localq import LocalQ
from localq.testing.worker import start_worker

app = LocalQ("proj", store="store")

@app.task
def say():
    logging.getLogger("mine").warning("it runs")

with start_worker(app, loglevel="INFO", logfile="worker.log"):
    say.delay().get(timeout=30)
"""


def test_a_worker_of_tests_logs_where_it_is_told(tmp_path):
    subprocess.run([sys.executable, "-c", LOGGED], cwd=tmp_path, timeout=60, check=True)
    text = (tmp_path / "worker.log").read_text()
    assert "it runs" in text
    assert "ready." in text
