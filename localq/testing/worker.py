"""A real worker for the duration of a block.

`solo` runs in a thread of the test's own process; `prefork` is a forked copy of it, so it knows every task
the test has defined so far, without importing anything.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from localq.worker import Worker
from localq.worker.supervisor import die_with

#: Seconds a worker may take to start, and to stop, if nobody says so.
LIMIT_S = 30.0
#: What workers of Celery's may be told to leave out, and these have not.
_OF_CELERY = frozenset({"without_heartbeat", "without_mingle", "without_gossip"})


@contextmanager
def start_worker(
    app: Any,
    pool: str = "solo",
    concurrency: int = 2,
    queues: Sequence[str] | None = None,
    *,
    loglevel: int | str | None = None,
    logfile: str | None = None,
    perform_ping_check: bool = True,
    ping_task_timeout: float = LIMIT_S,
    shutdown_timeout: float = LIMIT_S,
    **options: Any,
) -> Iterator[Worker]:
    """Run a worker of `app` until the block ends; it has been told to stop and is gone afterwards.

    Args:
        pool: `solo` (a thread) or `prefork` (processes).
        concurrency: child processes of `prefork`.
        queues: what it serves; the default queue if None.
        loglevel, logfile: have the app set up logging like this; None for both: leave it as the tests have it.
        perform_ping_check: accepted for Celery's sake: the block never begins before the worker is ready.
        ping_task_timeout, shutdown_timeout: seconds it may take to get ready, and to stop.
        options: as of `localq.worker.Worker`; Celery's `without_heartbeat` and its like are dropped.

    Raises:
        RuntimeError: it did not start or stop in time, or ended with an error.
        TypeError: a worker has no such option.
    """
    if loglevel is not None or logfile is not None:
        app.log.setup(logging.WARNING if loglevel is None else loglevel, logfile)
    given = {name: value for name, value in options.items() if name not in _OF_CELERY}
    make = partial(Worker, app, queues, concurrency, pool, quiet=True, **given)
    run = _in_thread if pool == "solo" else _in_process
    with run(make, ping_task_timeout, shutdown_timeout) as worker:
        yield worker


@contextmanager
def _in_thread(make: Callable[..., Worker], start_s: float, stop_s: float) -> Iterator[Worker]:
    ready = threading.Event()
    worker = make(on_ready=ready.set)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(worker.run()), name="localq-solo", daemon=True)
    thread.start()
    deadline = time.monotonic() + start_s
    while not ready.wait(0.01):
        if not thread.is_alive() or time.monotonic() > deadline:
            worker.stop()
            raise RuntimeError(f"the worker did not get ready: it ended with {codes}, or takes over {start_s:g} s")
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(stop_s)
    if codes != [0]:
        raise RuntimeError(f"the worker ended with {codes or 'nothing: it is still running'}")


@contextmanager
def _in_process(make: Callable[..., Worker], start_s: float, stop_s: float) -> Iterator[Worker]:
    read_end, write_end = os.pipe()

    def tell() -> None:
        os.write(write_end, b"!")

    worker = make(on_ready=tell)
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
        if not select.select([read_end], [], [], start_s)[0]:
            raise RuntimeError(f"the worker did not get ready: it takes over {start_s:g} s")
        if os.read(read_end, 1) != b"!":
            raise RuntimeError(f"the worker ended before it was ready: {_reaped(pid, stop_s)}")
        worker.pid = pid
        yield worker
    finally:
        os.close(read_end)
        code = _stopped(pid, stop_s)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the worker ended with {code}")


def _stopped(pid: int, limit_s: float) -> int:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    return _reaped(pid, limit_s)


def _reaped(pid: int, limit_s: float) -> int:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise RuntimeError(f"the worker {pid} did not stop within {limit_s:g} s and was killed")
