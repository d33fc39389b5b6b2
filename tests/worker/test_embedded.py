"""Workers that tests start for themselves."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import is_gone
from waiting import wait_until

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
