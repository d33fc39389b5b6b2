"""The kill loop once more, with tasks that retry, run out of time and are revoked: nothing is lost, nothing ends twice.

What must come of a task is known by its name and its id alone, and by what revokes answered, each with its time (of
CLOCK_MONOTONIC, which all processes share); nothing is asked of the store but how the tasks ended and what it charged.
The usual run kills 100 times, `nox -s crash` 1,000 times.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from field import Field, Run, environment_of, field, judge_what_is_left, judge_what_was_read
from waiting import wait_until

from localq.message import Record
from localq.recovery import MAX_REDELIVERIES

if sys.platform != "linux":
    pytest.skip("finds its victims through /proc", allow_module_level=True)

TASKS = """
import asyncio, ctypes, os, random, subprocess, sys, time, uuid
from localq import LocalQ
from localq.exceptions import MaxRetriesExceededError, SoftTimeLimitExceeded

ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: nothing of this outlives the test, whatever becomes of it
app = LocalQ("field", store=os.environ["FIELD_STORE"])
runs = os.open(os.environ["FIELD_RUNS"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
LIMIT_S = 0.3
LAST_S = 2.5  # a revoke that the dead have asked for arrives within

class Sour(Exception):
    pass

def start(self):
    run = os.urandom(6).hex()
    os.write(runs, f"start {self.request.id} {run} {time.monotonic()!r}\\n".encode())
    return run

def end(self, run):
    os.write(runs, f"end {self.request.id} {run}\\n".encode())
    return run

def tries(self):
    return int(self.request.id[-1], 16) % 6

def company(run):
    # Every other one has a process of its own, which looks after itself no better than any.
    if int(run[-1], 16) % 2:
        return subprocess.Popen(["sleep", "60"], env={**os.environ, "FIELD_RUN": run})

def plain(self):
    run = start(self)
    if run[0] < "c":
        time.sleep(0.003)
    return end(self, run)

def again(self):
    run = start(self)
    if self.request.retries < tries(self):
        raise self.retry(countdown=0)
    return end(self, run)

def auto(self):
    run = start(self)
    if self.request.retries < tries(self):
        raise Sour(run)
    return end(self, run)

def over(self):
    run = start(self)
    other = company(run)
    time.sleep(60)
    return end(self, run)

def brink(self):
    run = start(self)
    time.sleep(LIMIT_S - 0.01 + int(run[0], 16) / 800)
    return end(self, run)

def soft(self):
    run = start(self)
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        return end(self, run)

def stay(self, producer):
    run = start(self)
    other = company(run)
    while os.path.exists(f"/proc/{producer}"):  # else nobody would ever end it
        time.sleep(0.02)
    time.sleep(LAST_S)
    if other:
        other.kill()
        other.wait()
    return end(self, run)

async def beside(self):
    run = start(self)
    if run[0] < "c":
        await asyncio.sleep(0.05)
    return end(self, run)

async def beside_again(self):
    run = start(self)
    await asyncio.sleep(0.005)
    if self.request.retries < tries(self):
        raise self.retry(countdown=0)
    return end(self, run)

async def beside_over(self):
    run = start(self)
    await asyncio.sleep(60)
    return end(self, run)

async def beside_stay(self, producer):
    run = start(self)
    while os.path.exists(f"/proc/{producer}"):
        await asyncio.sleep(0.02)
    await asyncio.sleep(LAST_S)
    return end(self, run)

tasks = {}
def add(function, name, **options):
    tasks[f"{name}-early"] = app.task(name=f"{name}-early", bind=True, **options)(function)
    late = {"acks_late": True, "reject_on_worker_lost": True}
    tasks[f"{name}-late"] = app.task(name=f"{name}-late", bind=True, **late, **options)(function)

add(plain, "plain")
add(again, "again", throws=(MaxRetriesExceededError,))
add(auto, "auto", autoretry_for=(Sour,), retry_backoff=1, retry_backoff_max=1, throws=(Sour,))
add(over, "over", time_limit=LIMIT_S)
add(over, "called")
add(over, "over-again", time_limit=LIMIT_S, acks_on_timeout=False)
add(brink, "brink", time_limit=LIMIT_S)
add(plain, "in-time", time_limit=50, soft_time_limit=40)
add(soft, "soft", soft_time_limit=0.1)
add(stay, "stay", track_started=True)
add(plain, "tried", retry_on_worker_lost=True, default_retry_delay=0)
add(beside, "beside")
add(beside_over, "beside-over", time_limit=LIMIT_S)
add(beside_stay, "beside-stay", track_started=True)
add(beside_again, "beside-again", throws=(MaxRetriesExceededError,))

ids = os.open(os.environ["FIELD_IDS"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
pick = random.Random(os.urandom(8))
CALLED = {"called": {"time_limit": LIMIT_S}}

def send(name, *args, **options):
    name, mode = name, pick.choice(("early", "late"))
    result = tasks[f"{name}-{mode}"].apply_async(args, **CALLED.get(name, {}), **options)
    os.write(ids, f"{name}-{mode} {result.id}\\n".encode())
    return result

def tell(answers):
    for id, answer in answers.items():
        os.write(ids, f"answer {id} {answer} {time.monotonic()!r}\\n".encode())

def revoke(id, **how):
    tell({id: "asked"})
    tell(app.control.revoke(id, **how))

def some():
    return pick.choice(("plain", "plain", "tried", "again", "auto", "beside", "beside-again"))

def revoke_waiting():
    revoke(send(some(), countdown=3).id)

def revoke_at_once():
    revoke(send(some()).id)

def revoke_soon():
    result = send(some())
    time.sleep(pick.random() * 0.02)
    revoke(result.id)

def revoke_unknown():
    id = str(uuid.uuid4())
    revoke(id)
    send(some(), task_id=id)

def revoke_by_stamp():
    lot = uuid.uuid4().hex
    stamps = {"stamped_headers": ["lot"], "lot": lot}
    two = [str(uuid.uuid4()) for _ in range(2)]
    tell(dict.fromkeys(two, "asked"))
    for id in two:
        send(some(), task_id=id, **stamps)
    tell(app.control.revoke_by_stamped_headers({"lot": lot}))
    third = str(uuid.uuid4())
    tell({third: "asked"})
    tell({third: "noted"})
    send(some(), task_id=third, **stamps)

def terminate():
    result = send(pick.choice(("stay", "stay", "beside-stay")), os.getpid())
    until = time.monotonic() + 10
    while result.state == "PENDING" and time.monotonic() < until:
        time.sleep(0.005)
    revoke(result.id, terminate=True, signal=pick.choice(("TERM", "KILL", "USR1")))

def collect():
    result = send(some())
    value = result.get(timeout=60, propagate=False)
    os.write(ids, f"saw {result.id} {result.state} {value}\\n".encode())

ACTIONS = {
    "plain": 30, "again": 10, "auto": 6, "tried": 10, "over": 1, "called": 1, "over-again": 0.3, "brink": 1,
    "in-time": 6, "soft": 2, "beside": 5, "beside-again": 3, "beside-over": 1,
    revoke_waiting: 4, revoke_at_once: 4, revoke_soon: 4, revoke_unknown: 3, revoke_by_stamp: 3, terminate: 2,
    collect: 4,
}

def produce():
    while True:
        (action,) = pick.choices(list(ACTIONS), list(ACTIONS.values()))
        action() if callable(action) else send(action)
        time.sleep(0.015)

if __name__ == "__main__":
    produce()
else:
    # A burst of deaths makes a worker pause for a second. That has a test of its own; here it would only take time.
    from localq.worker import supervisor
    supervisor.CRASH_PAUSE_S = 0.01
"""
#: What there must have been.
TRIED = (
    "retries", "killed at its limit", "ended by force", "soft SUCCESS", "stay REVOKED", "tried SUCCESS",
    "answer revoked", "answer noted", "answer running", "answer terminating",
)  # fmt: skip
#: Retries that a task has if nobody says more (Celery's max_retries).
MOST = 3
OVER = ("over", "called", "over-again", "beside-over")
#: Tasks that ask to be tried again, and those that are; a word in a name says whether it is a coroutine.
ASKING = ("again", "auto", "beside-again")
RETRYING, BESIDE = (*ASKING, "tried"), "beside"


@pytest.mark.row("F044", "F151", "F167", "P1", "R9", "X7")
@pytest.mark.parametrize("kills", [100, pytest.param(1000, marks=pytest.mark.crash)])
@pytest.mark.timeout(1800)
def test_retries_limits_and_revokes_lose_nothing_and_end_nothing_twice(tmp_path: Path, kills: int) -> None:
    with field(tmp_path, seed=kills + 2, workers=2, tasks=TASKS) as there:
        there.kill(kills)
        there.finish()
        judged = Judge(there)
        judged.judge_all()
        left = left_over(there, judged)
        tell(there, judged, left)
        for name in TRIED:
            assert judged.found[name], f"{name}: nothing was tried"
        # Each of these is a kill in one instant: too many of them would be no accident.
        assert judged.found["killed before the first line"] + judged.found["killed after the last"] <= 2 + kills // 10
        assert judged.found["got away"] <= 1 + kills // 100
        assert left <= 1 + kills // 200
        judge_what_is_left(there)


class Judge:
    """Compares how each task ended with what the oracle saw of it, and counts what there was."""

    def __init__(self, there: Field) -> None:
        self._there = there
        self.found: Counter[str] = Counter()
        self.runs = there.runs()
        self.records = there.app.storage.records([*there.accepted, *there.answers])
        self._counts = {id: (charged, retries) for id, charged, retries in there.app.storage._session().read(
            "select id, redeliveries, retries from messages")}  # fmt: skip
        self._begun: dict[str, list[float]] = defaultdict(list)
        for line in there.runs_path.read_text().splitlines():
            word, id, _, *at = line.split()
            if word == "start":
                self._begun[id].append(float(at[0]))

    def judge_all(self) -> None:
        """Assert."""
        accepted = self._there.accepted
        assert [id for id in accepted if id not in self.records] == [], "accepted and lost"
        assert [id for id, record in self.records.items() if not record.ended] == [], "not finished"
        judge_what_was_read(self._there, self.records)
        for id, record in self.records.items():
            try:
                self._judge(id, record)
            except AssertionError as exc:
                runs, words = self.runs.get(id), self._there.answers.get(id)
                exc.add_note(f"{record}, {self._counts[id]}, {runs}, {self._begun[id]}, {words}")
                raise
        killed = self._there.children_killed
        assert self.found["lost"] <= killed + self.found["coroutines ended by force"], "more than their children ran"
        assert self.found["charged"] <= killed + self.found["ended by force"], "charged more often than they died"

    def _judge(self, id: str, record: Record) -> None:
        # An id whose sender died before it told is known by what was revoked.
        kind, _, mode = (self._there.accepted.get(id) or record.name).rpartition("-")
        run, (charged, retries) = self.runs.get(id) or Run([], []), self._counts[id]
        assert len(run.started) - 1 <= retries + charged, "run more often than it was tried again or its attempts died"
        assert kind in RETRYING or retries == 0
        if mode == "early":
            assert len(run.started) <= 1 + retries, "acknowledged early, and run again"
        if record.state == "SUCCESS":
            assert kind not in OVER, "its limit was not kept"
            assert run.started[-1] == run.ended[-1] == json.loads(record.result), "the result of another run"
            assert kind not in ASKING or retries == tries(id)
        elif record.state == "REVOKED":
            assert self._there.answers.get(id), "nobody has revoked it"
            self.found["ended by force"] += is_forced(record.result)
            self.found["coroutines ended by force"] += is_forced(record.result) and kind.startswith(BESIDE)
        else:
            assert record.state == "FAILURE"
            self._judge_failure(id, kind, mode, record, run)
        if kind in OVER:
            assert run.ended == [], "over its limit, and ended by itself"
        for word, at in self._there.answers.get(id, ()):
            self._judge_answer(word, [start for start in self._begun[id] if start > at], kind, mode, record, run)
        self.found[f"{kind} {record.state}"] += 1
        self.found["retries"] += retries
        if not kind.startswith(BESIDE):  # these also die with a neighbour whose time is up
            self.found["charged"] += charged

    def _judge_failure(self, id: str, kind: str, mode: str, record: Record, run: Run) -> None:
        error = json.loads(record.result)
        charged, retries = self._counts[id]
        self.found[error["exc_type"]] += 1
        if error["exc_type"] == "TimeLimitExceeded":
            assert kind in (*OVER, "brink")
            assert charged or kind == "beside-over"  # whose process goes on
            assert kind != "over-again" or mode == "early" or charged == MAX_REDELIVERIES + 1, "given up too early"
            if kind != "beside-over":
                self.found["ended by force"] += charged
                self.found["killed at its limit"] += 1
        elif error["exc_type"] in ("MaxRetriesExceededError", "Sour"):
            assert error["exc_type"] == "Sour" if kind == "auto" else kind in ASKING
            assert retries == MOST < tries(id), "given up too early"
        elif mode == "late" or kind == "tried":
            assert error["exc_type"] == "WorkerLostError"
            # The last death is charged as well; what a coroutine died of for a neighbour's sake is counted, and is no
            # reason to give it up, until a death of its own.
            assert charged > MAX_REDELIVERIES, "given up too early"
            assert charged == MAX_REDELIVERIES + 1 or kind.startswith(BESIDE), "given up too late"
            self.found["given up"] += 1
        else:
            assert error["exc_type"] == "WorkerLostError"
            assert charged == 1
            # Coroutines also die with a neighbour that is over its limit.
            self.found["coroutines lost" if kind.startswith(BESIDE) else "lost"] += 1
            self.found["killed before the first line"] += not run.started
            self.found["killed after the last"] += len(run.ended)

    def _judge_answer(self, word: str, after: list[float], kind: str, mode: str, record: Record, run: Run) -> None:
        self.found[f"answer {word}"] += 1
        if word == "noted":
            assert (run.started, record.state) == ([], "REVOKED"), "noted, and had its way"
        elif word == "revoked":
            assert (after, record.state) == ([], "REVOKED"), "revoked, and had its way"
            assert mode == "late" or kind in RETRYING or run.started == [], "it had begun"
        elif word in ("running", "terminating"):
            assert len(after) <= 1, "run again"
            assert not (word == "running" and kind.endswith("stay"))
            self.found["got away"] += word == "terminating" and record.state == "SUCCESS"
        elif word == "ended":
            assert after == [], "begun after its end"


def tries(id: str) -> int:
    """How often a task of this id asks to be tried again; the tasks know it the same way."""
    return int(id[-1], 16) % 6


def is_forced(result: bytes | None) -> bool:
    """Whether a task was revoked while it ran, and its process killed for that."""
    return b"terminated" in (result or b"")


def left_over(there: Field, judged: Judge) -> int:
    """Count what tasks had started and lives although they were killed for their own sake; the rest is killed here.

    Nobody kills what a task had started if it was us who killed its process, as with Celery.
    """
    ends = {run.started[-1]: judged.records[id] for id, run in judged.runs.items() if id in judged.records}
    left = 0
    for pid in there.alive():
        run = next((each[10:].decode() for each in environment_of(pid).split(b"\0") if each[:10] == b"FIELD_RUN="), "")
        if run:
            record = ends.get(run)
            ended = (record and record.result) or b""
            left += is_forced(ended) or b"TimeLimitExceeded" in ended
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not [pid for pid in there.alive() if b"\0FIELD_RUN=" in environment_of(pid)])
    return left


def tell(there: Field, judged: Judge, left: int) -> None:
    kills = ", ".join(f"{number} {kind}s" for kind, number in there.kills.items())
    print(
        f"{len(there.accepted)} accepted, {there.kills.total()} kills ({kills}); lost 0, double 0 of "
        f"{len(there.seen)} read; {left} processes of killed tasks left;",
        ", ".join(f"{name}: {number}" for name, number in sorted(judged.found.items())),
    )
