"""A stage: one peer in a fresh directory, with what it needs, for one measurement; nothing survives the `with`.

    stage = directory + counters [+ redis-server] [+ worker] [+ clients]

Fresh means: no purge to trust, no file grown by the measurement before.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from benchmarks import counter, process
from benchmarks.client import Client, PeerFailed, last_words
from benchmarks.peers import WORKERS, Peer

REPOSITORY = Path(__file__).resolve().parent.parent
#: The time a worker gets to start and run its first task, unless the question says otherwise.
START_LIMIT_S = 30.0


class Stage:
    """Where a question finds its peer."""

    def __init__(self, peer: Peer, *, quick: bool, first_run: bool = True) -> None:
        self.peer = peer
        self.quick = quick
        self.first_run = first_run

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix=f"bench-{self.peer.name}-"))
        self.env = {
            **os.environ,
            **self.peer.env,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
            "BENCH_DIR": str(self.directory),
            counter.VARIABLE: str(self.directory / "counters"),
        }
        self.worker: subprocess.Popen[bytes] | None = None
        self.worker_started_at = 0.0
        self._clients: list[Client] = []
        self._redis: subprocess.Popen[bytes] | None = None
        self.reset_counters(gate_open=True)
        try:
            if self.peer.redis:
                self._start_redis()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of this stage and remove its directory."""
        self.stop_worker()
        for client in self._clients:
            client.process.kill()
            client.process.wait()
        if self._redis:
            process.stop(self._redis)
        shutil.rmtree(self.directory, ignore_errors=True)

    def again(self) -> Stage:
        """Return another stage for the same peer, as fresh as this one was."""
        return Stage(self.peer, quick=self.quick, first_run=self.first_run)

    def scale(self, full: int, quick: int) -> int:
        """Return the size to use in this run."""
        return quick if self.quick else full

    # --- the worker -------------------------------------------------------------------------------------------------

    def start_worker(self) -> None:
        argv = [sys.executable, *self.peer.worker]
        self.worker_started_at = time.monotonic()
        self.worker = process.start(argv, self.env, self.directory / "worker.log", REPOSITORY)

    def stop_worker(self) -> None:
        if self.worker:
            process.stop(self.worker)
        self.worker = None

    def worker_pids(self) -> list[int]:
        assert self.worker
        return process.tree(self.worker.pid)

    def check_worker(self) -> None:
        """Raise if the worker should run and does not, with its last words."""
        if self.worker and self.worker.poll() is not None:
            raise PeerFailed(f"worker exited with {self.worker.returncode}: {self._words('worker')}")

    # --- clients ----------------------------------------------------------------------------------------------------

    def client(self) -> Client:
        """Return a new client process, which imports the peer at once."""
        client = Client(self.peer.app, self.env, self.directory / "client.log", REPOSITORY, self.check_worker)
        self._clients.append(client)
        return client

    def ready_client(self, warm_up: int = 20) -> Client:
        """Return a client whose round trips the running worker has answered `warm_up` times."""
        client = self.client()
        client.ask("round_trip", START_LIMIT_S, n=warm_up)
        return client

    def send_at_once(self, clients: list[Client], verb: str, limit_s: float, **arguments: int) -> float:
        """Let all clients send at the same time; return the seconds from the first start to the last end."""
        for client in clients:
            client.tell(verb, **arguments)
        spans = [client.hear(limit_s) for client in clients]
        return max(end for _, end in spans) - min(start for start, _ in spans)

    def fill(self, n: int, verb: str = "send", limit_s: float = 900, **arguments: int) -> None:
        """Queue `n` tasks from two processes, which then end."""
        clients = [self.client(), self.client()]
        self.send_at_once(clients, verb, limit_s, n=n // 2, **arguments)
        for client in clients:
            client.end()

    # --- counted tasks ----------------------------------------------------------------------------------------------

    def reset_counters(self, *, gate_open: bool) -> None:
        """Start counting anew; with the gate closed the first task of each worker process waits for `open_gate`."""
        path = Path(self.env[counter.VARIABLE])
        path.unlink(missing_ok=True)
        self.counters = counter.Counters(path, gate_open=gate_open)

    def wait_done(self, n: int, limit_s: float) -> bool:
        """Wait until `n` tasks are done; return whether they were within the limit."""
        return self._wait(lambda: self.counters.done >= n, limit_s)

    def drain(self, n: int, window_s: float) -> float:
        """Start a worker on `n` queued tasks; return the tasks per second until all are done or the window ends."""
        self.reset_counters(gate_open=False)
        self.start_worker()
        if not self._wait(lambda: self.counters.arrived > 0, START_LIMIT_S):
            raise PeerFailed(f"no task started within {START_LIMIT_S:.0f} s: {self._words('worker')}")
        self._wait(lambda: self.counters.arrived >= WORKERS, 3)
        self.counters.open_gate()
        self.wait_done(n, window_s)
        rate = self.counters.rate()
        self.stop_worker()
        return rate

    def _wait(self, condition: Callable[[], bool], limit_s: float) -> bool:
        limit = time.monotonic() + limit_s
        while not condition():
            self.check_worker()
            if time.monotonic() > limit:
                return False
            time.sleep(0.005)
        return True

    # --- redis ------------------------------------------------------------------------------------------------------

    def _start_redis(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        log = self.directory / "redis.log"
        self._redis = process.start([*argv, "--dir", str(self.directory)], dict(os.environ), log, self.directory)
        self.env["BENCH_REDIS"] = f"redis://127.0.0.1:{port}"
        limit = time.monotonic() + 10
        while time.monotonic() < limit and self._redis.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.01)
        raise PeerFailed(f"redis-server did not start: {self._words('redis')}")

    def _words(self, log: str) -> str:
        return last_words(self.directory / f"{log}.log")
