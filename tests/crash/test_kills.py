"""Kill anything, lose nothing: producers and a worker under `kill -9`, against an oracle outside the store.

The oracle: ids as `delay` returned them, and a start and an end line of every run, each appended with one write.
The usual run kills a dozen times; `nox -s crash` kills some hundreds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from localq import LocalQ
from localq.storage.base import OwnerInfo

if sys.platform != "linux":
    pytest.skip("finds its victims through /proc", allow_module_level=True)

TASKS = """
import os, time
from localq import LocalQ

app = LocalQ("kills", store=os.environ["KILLS_STORE"])
runs = os.open(os.environ["KILLS_RUNS"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)

def work(self):
    os.write(runs, f"start {self.request.id}\\n".encode())
    time.sleep(0.002)
    os.write(runs, f"end {self.request.id}\\n".encode())

early = app.task(name="early", bind=True)(work)
late = app.task(name="late", bind=True, acks_late=True, reject_on_worker_lost=True)(work)

if __name__ == "__main__":
    ids = os.open(os.environ["KILLS_IDS"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    while True:
        for task in (early, late):
            os.write(ids, f"{task.name} {task.delay().id}\\n".encode())
        time.sleep(0.004)
"""
#: Seconds after the last kill within which everything has ended.
LIMIT_S = 30.0


class Field:
    """Producers and a worker on one store, some of which die."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.file = directory / "kills.py"
        self.file.write_text(TASKS)
        self.ids, self.runs = directory / "ids", directory / "runs"
        self.app = LocalQ("kills", store=directory / "store")
        self.env = {
            **os.environ, "KILLS_STORE": str(directory / "store"),
            "KILLS_RUNS": str(self.runs), "KILLS_IDS": str(self.ids),
        }  # fmt: skip
        self.pick = random.Random(seed)
        self.log = (directory / "log").open("wb")
        self.worker = self.start_worker()
        self.producers = [self.start_producer() for _ in range(2)]

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, *words]
        return subprocess.Popen(
            command, env=self.env, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self.start("-m", "localq", "-A", str(self.file), "worker", "-c", "2", "-l", "ERROR")

    def start_producer(self) -> subprocess.Popen[bytes]:
        return self.start(str(self.file))

    def kill_one(self) -> None:
        """Kill a child, the steward, the supervisor or a producer; start anew what nobody else would."""
        children = Path(f"/proc/{self.worker.pid}/task/{self.worker.pid}/children").read_text().split()
        victim = self.pick.choice(["child"] * 4 + ["supervisor", "group", "producer"])
        if victim == "child" and children:
            os.kill(int(self.pick.choice(children)), signal.SIGKILL)
        elif victim == "supervisor":
            self.worker.kill()
        elif victim == "group":
            os.killpg(self.worker.pid, signal.SIGKILL)
        elif victim == "producer":
            producer = self.producers.pop(0)
            producer.kill()
            producer.wait()
            self.producers.append(self.start_producer())
        if victim in ("supervisor", "group"):
            self.worker.wait()
            self.worker = self.start_worker()

    def stop_producers(self) -> None:
        while self.producers:
            producer = self.producers.pop()
            producer.kill()
            producer.wait()

    def accepted(self) -> dict[str, str]:
        """The ids that `delay` returned -> the task's name."""
        return {id: name for name, id in map(str.split, self.ids.read_text().splitlines())}

    def marks(self, what: str) -> Counter[str]:
        """How often each id has such a line."""
        lines = (line.split() for line in self.runs.read_text().splitlines())
        return Counter(id for kind, id in lines if kind == what)

    def end(self) -> None:
        self.stop_producers()
        if self.worker.poll() is None:
            os.killpg(self.worker.pid, signal.SIGKILL)
        self.worker.wait()
        self.app.close()
        self.log.close()


@contextmanager
def field(directory: Path, seed: int) -> Iterator[Field]:
    found = Field(directory, seed)
    try:
        yield found
    finally:
        found.end()


@pytest.mark.parametrize("kills", [12, pytest.param(300, marks=pytest.mark.crash)])
@pytest.mark.timeout(600)
def test_nothing_accepted_is_lost_and_nothing_ends_twice(tmp_path: Path, kills: int) -> None:
    with field(tmp_path, seed=kills) as there:
        for _ in range(kills):
            time.sleep(there.pick.uniform(0.02, 0.4))
            there.kill_one()
        there.stop_producers()
        accepted = there.accepted()
        assert len(accepted) > kills
        deadline = time.monotonic() + LIMIT_S
        while unfinished(there.app, accepted) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert unfinished(there.app, accepted) == []
        judge(there, accepted, kills)
        assert there.app.storage.records(["nobody"]) == {}


def unfinished(app: LocalQ, ids: dict[str, str]) -> list[str]:
    known = app.storage.records(list(ids))
    return [id for id in ids if id not in known or not known[id].ended]


def judge(there: Field, accepted: dict[str, str], kills: int) -> None:
    """Compare what the store says with what the oracle saw."""
    started, ended = there.marks("start"), there.marks("end")
    charged = redeliveries(there)
    # Killed between the note that a task begins and its first line, or between its last line and the note that it
    # ended: the store says FAILURE, the oracle saw nothing or all of it. Counted, and rare.
    instants = 0
    for id, record in there.app.storage.records(list(accepted)).items():
        if accepted[id] == "early":
            assert started[id] <= 1, "acknowledged early, and run twice"
            if record.state == "FAILURE":
                assert json.loads(record.result or b"")["exc_type"] == "WorkerLostError"
                instants += ended[id] == started[id]
            else:
                assert (record.state, ended[id]) == ("SUCCESS", 1)
        else:
            assert started[id] - 1 <= charged[id]
            # Given up only after three attempts that died.
            assert record.state == "SUCCESS" or charged[id] > 3
    print(f"{len(accepted)} accepted, {sum(charged.values())} redelivered, {instants} killed in an instant")
    assert instants <= 2 + kills // 20


def redeliveries(there: Field) -> Counter[str]:
    rows = there.app.storage._session().read("select id, redeliveries from messages")
    return Counter(dict(rows))


def test_a_dead_workers_traces_are_gone_once_another_has_swept(tmp_path: Path) -> None:
    with field(tmp_path, seed=1) as there:
        time.sleep(0.5)
        there.stop_producers()
        os.killpg(there.worker.pid, signal.SIGKILL)
        there.worker.wait()
        there.worker = there.start_worker()
        deadline = time.monotonic() + LIMIT_S
        while dead(there.app) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert dead(there.app) == []


def dead(app: LocalQ) -> list[OwnerInfo]:
    return [owner for owner in app.storage.owners() if not owner.alive]
