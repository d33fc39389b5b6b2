"""Producers and workers on one store, some of which die, and an oracle that is outside of the store.

The oracle: ids as `delay` returned them; a start and an end line of every run, with a word that the run made up and
returned; ends that were read while processes died. Each line is one write to a file opened with O_APPEND.
"""

from __future__ import annotations

import importlib.util
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
from typing import NamedTuple

from commands import children_of, environment, is_gone, signal_all
from waiting import wait_until

from localq import LocalQ
from localq.message import Record
from localq.recovery import MAX_REDELIVERIES

TASKS = """
import asyncio, ctypes, os, sys, time
from localq import LocalQ

ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: nothing of this outlives the test, whatever becomes of it
# Clocks are set days ahead: what is judged at the end must not have had its time by then.
app = LocalQ("field", store=os.environ["FIELD_STORE"], result_expires=0, result_failure_expires=0)
runs = os.open(os.environ["FIELD_RUNS"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
work_s = float(os.environ.get("FIELD_WORK_S", "0.003"))

def work(self):
    id, run = self.request.id, os.urandom(6).hex()
    os.write(runs, f"start {id} {run}\\n".encode())
    if run[0] < "c":  # every fourth takes no time at all: then a child reserves many at once
        time.sleep(work_s)
    os.write(runs, f"end {id} {run}\\n".encode())
    return run

early = app.task(name="early", bind=True)(work)
late = app.task(name="late", bind=True, acks_late=True, reject_on_worker_lost=True)(work)
kinds = [early, late]

async def work_beside(self):
    id, run = self.request.id, os.urandom(6).hex()
    os.write(runs, f"start {id} {run}\\n".encode())
    if run[0] < "c":
        await asyncio.sleep(work_s * 10)  # so that many of them run at a time
    os.write(runs, f"end {id} {run}\\n".encode())
    return run

if "FIELD_BESIDE" in os.environ:
    kinds.append(app.task(name="early beside", bind=True)(work_beside))
    kinds.append(app.task(name="late beside", bind=True, acks_late=True, reject_on_worker_lost=True)(work_beside))

def produce():
    ids = os.open(os.environ["FIELD_IDS"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    later = "FIELD_LATER" in os.environ
    number = 0
    while True:
        for task in kinds:
            result = task.delay()
            os.write(ids, f"{task.name.split()[0]} {result.id}\\n".encode())
        number += 1
        if later and number % 20 == 0:
            os.write(ids, f"early {early.apply_async(countdown=3600).id}\\n".encode())
        if number % 50 == 0:
            value = result.get(timeout=60, propagate=False)
            os.write(ids, f"saw {result.id} {result.state} {value}\\n".encode())
        time.sleep(0.015)

if __name__ == "__main__":
    produce()
else:
    # A burst of deaths makes a worker pause for a second. That has a test of its own; here it would only take time.
    from localq.worker import supervisor
    supervisor.CRASH_PAUSE_S = 0.01
"""
CONCURRENCY = 2
#: Whom to kill, and how often in comparison. A "worker" is all of its processes.
VICTIMS = {"child": 6, "steward": 3, "supervisor": 2, "worker": 2, "producer": 3}
#: Seconds between two kills.
SHORTEST_S, LONGEST_S = 0.02, 0.17


class Run(NamedTuple):
    """What the oracle saw of one task: the words of its runs, in order, as they began and as they ended."""

    started: list[str]
    ended: list[str]


class Field:
    """Some producers and workers on a store of their own.

    Args:
        seed: of what is left to chance.
        tasks: the program of them all.
        variables: of the environment of every process.
    """

    def __init__(
        self, directory: Path, seed: int, producers: int = 4, workers: int = 1, tasks: str = TASKS, **variables: str
    ) -> None:
        self.store, self._file, self.runs_path = directory / "store", directory / "field.py", directory / "runs"
        self._file.write_text(tasks)
        self.app = LocalQ("watcher", store=self.store, set_as_current=False)
        ids = directory / "ids"
        self._env = environment(
            FIELD_STORE=str(self.store), FIELD_RUNS=str(self.runs_path), FIELD_IDS=str(ids), **variables
        )
        self.pick = random.Random(seed)
        self.log_path = directory / "log"
        self._log = self.log_path.open("wb")
        ids.touch()
        self.runs_path.touch()
        self._ids, self._rest = ids.open(), ""
        #: The ids that `delay` returned -> the task's name.
        self.accepted: dict[str, str] = {}
        self._order: list[str] = []
        #: Ends as this process read them first, and as a producer that waited told of them.
        self.seen: dict[str, Record] = {}
        self.told: dict[str, list[str]] = {}
        #: What producers told of their revokes, by id: words, and when they were said.
        self.answers: dict[str, list[tuple[str, float]]] = {}
        self.kills: Counter[str] = Counter()
        #: Children that died of the kills: each may have been in the middle of one task.
        self.children_killed = 0
        self.app.storage.counts()  # makes the store
        self.workers = [self._start_worker() for _ in range(workers)]
        self.producers = [self._start_producer() for _ in range(producers)]

    # -- Processes ---------------------------------------------------------------------------------

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *words], env=self._env, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            start_new_session=True,
        )  # fmt: skip

    def _start_worker(self) -> subprocess.Popen[bytes]:
        return self._start("-m", "localq", "-A", str(self._file), "worker", "-c", str(CONCURRENCY), "-l", "WARNING")

    def _start_producer(self) -> subprocess.Popen[bytes]:
        return self._start(str(self._file))

    def add_worker(self) -> None:
        self.workers.append(self._start_worker())

    def members(self, worker: subprocess.Popen[bytes], kind: str) -> list[int]:
        """The live processes of a worker that are enlisted as such: its `child`ren, or its steward (`worker`)."""
        family = {pid for pid in children_of(worker.pid) if not is_gone(pid)}
        owners = self.app.storage.owners()
        return [owner.about["pid"] for owner in owners if owner.about.get("kind") == kind
                and owner.about.get("pid") in family]  # fmt: skip

    def alive(self) -> list[int]:
        """Every live process of this field, whoever its parent is by now: found by its environment."""
        mark = f"FIELD_STORE={self.store}\0".encode()
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if mark in environment_of(pid)]

    def choose(self) -> tuple[str, int]:
        """Choose a victim by chance: what it is, and its pid. One of its kind is waited for if there is none yet."""
        (kind,) = self.pick.choices(list(VICTIMS), list(VICTIMS.values()))
        if kind == "producer":
            return kind, self.pick.choice(self.producers).pid
        worker = self.pick.choice(self.workers)
        if kind in ("supervisor", "worker"):
            return kind, worker.pid
        # A worker whose first stewards die three times does not start; so it has children before its steward is killed.
        found = wait_until(lambda: self.members(worker, "child"), what=f"a child of {worker.pid}")
        if kind == "steward":
            found = wait_until(lambda: self.members(worker, "worker"), what=f"a steward of {worker.pid}")
        return kind, self.pick.choice(found)

    def kill_one(self) -> None:
        """Kill somebody; start anew what nobody else would."""
        kind, pid = self.choose()
        family = children_of(pid)
        try:
            signal_all(pid, signal.SIGKILL) if kind == "worker" else os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # its worker has killed it meanwhile, for the sake of its task
        self.kills[kind] += 1
        self.children_killed += {"child": 1, "supervisor": CONCURRENCY, "worker": CONCURRENCY}.get(kind, 0)
        if kind == "producer":
            self.producers = [self._replaced(each, pid, self._start_producer) for each in self.producers]
        elif kind in ("supervisor", "worker"):
            self.workers = [self._replaced(each, pid, self._start_worker) for each in self.workers]
            wait_until(lambda: all(map(is_gone, family)), what="the children die with their supervisor")
        else:
            wait_until(lambda: is_gone(pid))

    @contextmanager
    def stopped_one(self) -> Iterator[str]:
        """Stop somebody, as Ctrl-Z or a debugger does, for as long as the block lasts; yields what it is."""
        kind, pid = self.choose()
        send = signal_all if kind == "worker" else os.kill
        send(pid, signal.SIGSTOP)
        try:
            yield kind
        finally:
            send(pid, signal.SIGCONT)

    def _replaced(self, process, pid, start):
        if process.pid != pid:
            return process
        process.wait()
        return start()

    def kill(self, times: int, tasks: int = 0) -> None:
        """Kill so many, and go on until so many tasks are accepted; look at results all the time."""
        before = self.kills.total()
        while self.kills.total() < before + times or len(self.accepted) < tasks:
            self.pause()
            self.kill_one()

    def pause(self) -> None:
        """Let some time go by, and look how tasks stand. The moment is left to chance; nothing is waited for."""
        time.sleep(self.pick.uniform(SHORTEST_S, LONGEST_S))
        self.look()

    def stop_producers(self) -> None:
        for producer in self.producers:
            producer.kill()
            producer.wait()
        self.producers = []
        self._read_ids()

    def stop_workers(self) -> None:
        """Stop warmly; each must end well, once it has started (SIGTERM means nothing special before)."""
        for worker in self.workers:
            wait_until(lambda worker=worker: len(self.members(worker, "child")) == CONCURRENCY, what="all have started")
            worker.terminate()
        codes = [worker.wait(60) for worker in self.workers]
        assert codes == [0] * len(self.workers), codes
        self.workers = []

    def end(self) -> None:
        """Leave nothing running, whatever happened."""
        for process in (*self.workers, *self.producers):
            process.kill()
            process.wait()
        for pid in self.alive():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.app.close()
        self._ids.close()
        self._log.close()

    # -- The oracle --------------------------------------------------------------------------------

    def _read_ids(self) -> None:
        *lines, self._rest = (self._rest + self._ids.read()).split("\n")
        for line in lines:
            word, id, *more = line.split(" ", 3)
            if word == "saw":
                self.told[id] = more
            elif word == "answer":
                self.answers.setdefault(id, []).append((more[0], float(more[1])))
            else:
                self.accepted[id] = word
                self._order.append(id)

    def look(self) -> None:
        """Read how some tasks stand, old ones and new ones; what has ended must never look otherwise again."""
        self._read_ids()
        new = self._order[-1000:]
        sample = self.pick.sample(new, min(100, len(new))) + self.pick.choices(self._order or [""], k=50)
        for id, record in self.app.storage.records(sample).items():
            if record.ended:
                first = self.seen.setdefault(id, record)
                assert first == record, f"a result was changed: {first} is now {record}"

    def runs(self) -> dict[str, Run]:
        """What ran, by id."""
        found: dict[str, Run] = {}
        for line in self.runs_path.read_text().splitlines():
            what, id, word, *_ = line.split()
            run = found.setdefault(id, Run([], []))
            (run.started if what == "start" else run.ended).append(word)
        return found

    def finish(self) -> None:
        """No more tasks; wait until the workers have run all there are."""
        self.stop_producers()
        wait_until(lambda: not self.unfinished(), timeout=120, what="everything ends once nobody is killed any more")
        self.look()

    def unfinished(self) -> int:
        return sum(count.number for count in self.app.storage.counts() if count.place != "ended")

    def redeliveries(self) -> dict[str, int]:
        """How many attempts of each task died, as the store counted them."""
        return dict(self.app.storage._session().read("select id, redeliveries from messages"))

    def integrity(self) -> list[str]:
        """SQLite's own judgement of the file, through a connection of the library's."""
        return [text for (text,) in self.app.storage._session().read("pragma integrity_check")]


def environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


@contextmanager
def field(directory: Path, seed: int, **how: object) -> Iterator[Field]:
    found = Field(directory, seed, **how)
    try:
        yield found
    except BaseException:
        print(found.log_path.read_text("utf-8", "replace")[-4000:])
        raise
    finally:
        found.end()


# -- Judging ---------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What came of a field.

    Attributes:
        failed: early tasks that ended with their child.
        unseen, complete: of these, how many the oracle never saw begin, and how many it saw end.
        redelivered: attempts of late tasks that died.
        given_up: late tasks that died once too often.
        unknown: tasks that ran though nobody had told of their id: the sender died before it could.
    """

    accepted: int
    failed: int
    unseen: int
    complete: int
    redelivered: int
    given_up: int
    unknown: int

    @property
    def instants(self) -> int:
        """Kills between the slot and the first line, or between the last line and the note that the task ended."""
        return self.unseen + self.complete


def judge(there: Field, at_a_time: int = 1) -> Verdict:
    """Compare what the store says, now that all has ended, with what the oracle saw. Asserts; returns the counts.

    Args:
        at_a_time: how many tasks a child runs at once.
    """
    records = there.app.storage.records(list(there.accepted))
    assert [id for id in there.accepted if id not in records] == [], "accepted and lost"
    assert [id for id, record in records.items() if not record.ended] == [], "not finished"
    runs, charged = there.runs(), there.redeliveries()
    nothing = Run([], [])
    failed = unseen = complete = given_up = 0
    for id, record in records.items():
        run = runs.get(id, nothing)
        if there.accepted[id] == "early":
            assert len(run.started) <= 1, "acknowledged early, and run twice"
            # The death that it failed of is charged like any other.
            assert charged[id] == (record.state == "FAILURE")
        assert len(run.started) - 1 <= charged[id], "run more often than its attempts died"
        if record.state == "SUCCESS":
            # The word of the run that was last: no other's, and none that the oracle did not see end.
            assert json.loads(record.result) == run.ended[-1], "the result of another run"
            continue
        assert record.state == "FAILURE"
        error = json.loads(record.result)
        assert error["exc_type"] == "WorkerLostError"
        if there.accepted[id] == "early":
            failed += 1
            unseen += not run.started
            complete += len(run.ended)
        else:
            given_up += 1
            assert charged[id] == MAX_REDELIVERIES + 1, "given up too early"  # the last death is charged as well
            assert "task_max_redeliveries=3" in str(error)
    assert failed <= there.children_killed * at_a_time, "more than their children ran"
    judge_what_was_read(there, records)
    return Verdict(
        accepted=len(there.accepted), failed=failed, unseen=unseen, complete=complete,
        redelivered=sum(charged.values()), given_up=given_up,
        unknown=len(runs.keys() - there.accepted.keys()),
    )  # fmt: skip


def judge_what_was_read(there: Field, records: dict[str, Record]) -> None:
    """No end that anybody read is another now."""
    assert there.seen
    assert [id for id, record in there.seen.items() if record != records[id]] == []
    for id, (state, value) in there.told.items():
        assert records[id].state == state
        assert state != "SUCCESS" or json.loads(records[id].result) == value


def judge_what_is_left(there: Field) -> None:
    """Nothing of the dead is left once the living have stopped: no process, no file, no damage."""
    assert there.integrity() == ["ok"]
    there.stop_workers()
    wait_until(lambda: not there.alive(), what=f"processes are left: {there.alive()}")
    log = there.log_path.read_text("utf-8", "replace")
    assert "Traceback" not in log
    assert "was given to another worker" not in log, "a live owner was robbed"
    # Pipes of dead sleepers are removed once a minute, what is left of one that died while it enlisted by whoever looks
    # who is there; this process does both now.
    there.app.storage._swept_at = float("-inf")
    there.app.storage.maintain()
    assert there.app.storage.owners() == []
    there.app.close()
    assert files_in(there.store) == CLEAN


#: What there is in a store that nobody has open.
CLEAN = [".gitignore", "bells/board", "gate.lock", "queue.db"]


def files_in(store: Path) -> list[str]:
    """Every file of a store, pipes and hidden ones too."""
    return sorted(path.relative_to(store).as_posix() for path in store.rglob("*") if not path.is_dir())


# -- The clock -------------------------------------------------------------------------------------


class WallClock:
    """A wall clock for other processes that can be set, by libfaketime; the monotonic one goes on as it is.

    Args:
        library: see `faketime`.
    """

    def __init__(self, directory: Path, library: str) -> None:
        self._file, self._next = directory / "clock", directory / "clock.next"
        self.set("+0")
        #: For the environment of whoever lives by this clock.
        self.variables = {
            "LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(self._file), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DISABLE_SHM": "1", "NO_FAKE_STAT": "1",
        }  # fmt: skip

    def set(self, offset: str) -> None:
        """Have everybody's clock differ from the real one by so much: `+1d`, `-1d`, `+0`."""
        self._next.write_text(offset)
        self._next.rename(self._file)


def faketime() -> str:
    """Where libfaketime is: PyPI's package brings the library. Empty if it is not installed, or does not work here."""
    found = importlib.util.find_spec("libfaketime")
    for place in (found and found.submodule_search_locations) or ():
        for library in map(str, Path(place).rglob("libfaketime.so.1")):
            env = {**os.environ, "LD_PRELOAD": library, "FAKETIME": "+2d"}
            command = [sys.executable, "-c", "import time; print(time.time())"]
            said = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
            if said.returncode == 0 and float(said.stdout) > time.time() + 24 * 3600:
                return library
    return ""
