"""A real worker for the duration of a block.

`solo` runs in a thread of the test's own process; `prefork` is a forked copy of it, so it knows every task
the test has defined so far, without importing anything.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from localq.worker import Worker
from localq.worker.supervisor import die_with

#: Seconds a worker may take to start, and to stop.
LIMIT_S = 30.0


@contextmanager
def start_worker(
    app: Any, pool: str = "solo", concurrency: int = 2, queues: Sequence[str] | None = None
) -> Iterator[Worker]:
    """Run a worker of `app` until the block ends; it has been told to stop and is gone afterwards.

    Args:
        pool: `solo` (a thread) or `prefork` (processes).
        concurrency: child processes of `prefork`.
        queues: what it serves; the default queue if None.

    Raises:
        RuntimeError: it did not start or stop in time, or ended with an error.
    """
    run = _in_thread if pool == "solo" else _in_process
    with run(app, pool, concurrency, queues) as worker:
        yield worker


@contextmanager
def _in_thread(app: Any, pool: str, concurrency: int, queues: Sequence[str] | None) -> Iterator[Worker]:
    ready = threading.Event()
    worker = Worker(app, queues, concurrency, pool, on_ready=ready.set, quiet=True)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(worker.run()), name="localq-solo", daemon=True)
    thread.start()
    deadline = time.monotonic() + LIMIT_S
    while not ready.wait(0.01):
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError(f"the worker did not get ready: it ended with {codes}, or takes over {LIMIT_S:g} s")
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(LIMIT_S)
    if codes != [0]:
        raise RuntimeError(f"the worker ended with {codes or 'nothing: it is still running'}")


@contextmanager
def _in_process(app: Any, pool: str, concurrency: int, queues: Sequence[str] | None) -> Iterator[Worker]:
    read_end, write_end = os.pipe()

    def tell() -> None:
        os.write(write_end, b"!")

    worker = Worker(app, queues, concurrency, pool, on_ready=tell, quiet=True)
    tests = os.getpid()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.close(read_end)
            die_with(tests)  # killed tests leave no worker behind
            os.setsid()  # a group of its own: Ctrl-C in the terminal stops the tests, and they stop the worker
            code = worker.run()
        finally:
            os._exit(code)
    os.close(write_end)
    try:
        if os.read(read_end, 1) != b"!":
            raise RuntimeError(f"the worker ended before it was ready: {_reaped(pid)}")
        worker.pid = pid
        yield worker
    finally:
        os.close(read_end)
        code = _stopped(pid)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the worker ended with {code}")


def _stopped(pid: int) -> int:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    return _reaped(pid)


def _reaped(pid: int) -> int:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise RuntimeError(f"the worker {pid} did not stop within {LIMIT_S:g} s and was killed")
