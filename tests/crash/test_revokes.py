"""Revokes beside workers that claim and are killed: no answer is ever wrong, and no revoke is lost.

The oracle is outside of the store: a line with a time for every start of a run, and for every answer of a revoke. The
times are of CLOCK_MONOTONIC, which all processes share. An answer of

    revoked        means: no run begins after it
    noted          means: none ever does
    running        means: at most the run that had begun
    ended          means: it had ended
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import pytest
from commands import environment
from waiting import wait_until

from localq import LocalQ, states

if sys.platform != "linux":
    pytest.skip("its workers are killed by PR_SET_PDEATHSIG if the test is", allow_module_level=True)

TASKS = """
import ctypes, os, random, sys, time
from localq import LocalQ

ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: nothing of this outlives the test, whatever becomes of it
app = LocalQ("revokes", store=os.environ["REVOKES_STORE"])
lines = os.open(os.environ["REVOKES_LINES"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)

def say(*words):
    os.write(lines, " ".join([*map(str, words), repr(time.monotonic())]).encode() + b"\\n")

def work(self, number):
    say("start", self.request.id)
    if number % 4 == 0:  # the others take no time: then a child reserves many at once
        time.sleep(0.004)
    if number % 7 == 0 and not self.request.retries:
        raise self.retry(countdown=0.01)
    return number

early = app.task(name="early", bind=True)(work)
late = app.task(name="late", bind=True, acks_late=True, reject_on_worker_lost=True)(work)

def send(numbers):
    for number in numbers:
        stamps = {"stamped_headers": ["lot"], "lot": number // 100} if number % 3 == 0 else {}
        say("sending", f"t{number}")
        (early, late)[number % 2].apply_async((number,), task_id=f"t{number}", **stamps)
        say("sent", f"t{number}")
        if number % 10 == 0:
            time.sleep(0.03)

def revoke(numbers, lots):
    pick = random.Random(len(numbers))
    for at, number in enumerate(numbers):
        for id, answer in app.control.revoke([f"t{number}"]).items():
            say(answer, id)
        if at % 50 == 0 and lots:
            lot = lots.pop()
            say("lot", lot)
            for id, answer in app.control.revoke_by_stamped_headers({"lot": lot}).items():
                say(answer, id)
            say("lotted", lot)
        time.sleep(pick.random() * 0.02)

def chase(count):
    # Right behind those who send and start: where a revoke and a claim, or a start, meet.
    sent = starts = 0
    with open(os.environ["REVOKES_LINES"]) as file:
        while sent < count:
            line = file.readline()
            word, id = (line.split() + ["", ""])[:2]
            sent += word == "sent"
            starts += word == "start"
            if not line:
                time.sleep(0.0005)
            elif (word == "sent" and int(id[1:]) % 5 == 1) or (word == "start" and starts % 10 == 0):
                for id, answer in app.control.revoke(id).items():
                    say(answer, id)

if __name__ == "__main__":
    kind, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if kind == "chase":
        sys.exit(chase(count))
    pick = random.Random(seed)
    numbers = pick.sample(range(count), count if kind == "send" else count // 3)
    send(numbers) if kind == "send" else revoke(numbers, list(range(seed, count // 100, 3)))
"""


class Place:
    """Processes on one store, and what they said."""

    def __init__(self, directory: Path) -> None:
        self.store, self._lines, self._file = directory / "store", directory / "lines", directory / "revokes.py"
        self._file.write_text(TASKS)
        self._lines.touch()
        self._env = environment(REVOKES_STORE=str(self.store), REVOKES_LINES=str(self._lines))
        self._log = (directory / "log").open("wb")
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, *words], env=self._env, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            start_new_session=True,
        )  # fmt: skip
        self._processes.append(process)
        return process

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                kill(process)
        self._log.close()

    def play(self, kind: str, count: int, seed: int) -> subprocess.Popen[bytes]:
        return self.start(str(self._file), kind, str(count), str(seed))

    def worker(self) -> subprocess.Popen[bytes]:
        return self.start("-m", "localq", "-A", str(self._file), "worker", "-c", "2", "-l", "WARNING")

    def said(self) -> dict[str, dict[str, list[float]]]:
        """Return what was said of each id (or lot), and when."""
        found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for line in self._lines.read_text().splitlines():
            word, id, at = line.split()
            found[id][word].append(float(at))
        return found


def kill(worker: subprocess.Popen[bytes]) -> None:
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


@pytest.mark.row("F167", "R9")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("count", "kills"), [(900, 4), pytest.param(20_000, 60, marks=pytest.mark.crash)])
def test_no_answer_is_wrong_and_no_revoke_is_lost(tmp_path: Path, count: int, kills: int) -> None:
    with closing(Place(tmp_path)) as place, LocalQ("watcher", store=place.store, set_as_current=False) as app:
        app.storage.counts()  # makes the store
        play(place, app, count, kills)


def play(place: Place, app: LocalQ, count: int, kills: int) -> None:
    pick = random.Random(count)
    kinds = ("chase", "revoke", "revoke", "send")
    others = [place.play(kind, count, seed) for seed, kind in enumerate(kinds)]
    worker = place.worker()
    for _ in range(kills):
        time.sleep(0.3 + pick.random())
        kill(worker)
        worker = place.worker()
    assert [other.wait(120) for other in others] == [0, 0, 0, 0]
    ids = [f"t{number}" for number in range(count)]
    wait_until(lambda: all(each.place == states.ENDED for each in app.storage.counts()), 120, "everything has ended")
    records = app.storage.records(ids)
    said = place.said()
    for id in ids:
        judge(said[id], records[id].state, id)
    judge_lots(said, ids)
    tell(said, ids)


def judge(words: dict[str, list[float]], state: str, id: str) -> None:
    starts = words["start"]
    assert state in states.READY_STATES
    assert not words["terminating"]
    for at in words["noted"]:
        assert (starts, state) == ([], "REVOKED"), f"{id} was noted at {at}, and is {state}: {words}"
    for at in words["revoked"]:
        assert state == "REVOKED", f"{id} was revoked at {at}, and is {state}: {words}"
        assert [start for start in starts if start > at] == [], f"{id} began after it was revoked: {words}"
    for at in words["running"]:
        assert len([start for start in starts if start > at]) <= 1, f"{id} was run again: {words}"
        assert starts or state == "REVOKED", f"{id} never ran, and is {state}"
    for at in words["ended"]:
        assert [start for start in starts if start > at] == [], f"{id} began after it had ended: {words}"
    # Killed between the note that it begins and its first line, an early one has failed.
    assert starts or state in ("REVOKED", "FAILURE"), f"{id} is {state} and never ran"


def judge_lots(said: dict[str, dict[str, list[float]]], ids: list[str]) -> None:
    """What has a stamp and was sent once that was revoked, never began."""
    for id in ids:
        number = int(id[1:])
        lot = said[str(number // 100)]["lotted"]
        if number % 3 == 0 and lot and min(lot) < min(said[id]["sending"]):
            starts = said[id]["start"]
            assert [start for start in starts if start > min(lot)] == [], f"{id} has a stamp that was revoked"


def tell(said: dict[str, dict[str, list[float]]], ids: list[str]) -> None:
    words = ("revoked", "noted", "running", "ended", "start")
    found = {word: sum(len(said[id][word]) for id in ids) for word in words}
    print(found)
    assert found["revoked"], "no revoke came before its task began: nothing was tried"
    assert found["noted"], "no revoke came before its task was sent: nothing was tried"
