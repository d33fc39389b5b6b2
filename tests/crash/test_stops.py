"""SIGSTOP, and CONT later: who is stopped is slow and not dead, nobody robs it, and what it does too late is refused.

A live owner's claims are given to nobody (its liveness is a lock, which a stopped process keeps). To see what would
happen if they were, the tests here declare a stopped owner dead, by putting another file in the place of its own.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter

import pytest
from commands import is_gone, signal_all, worker
from field import field, judge, judge_what_is_left
from forking import Line, ended, forked
from waiting import wait_until

from localq import LocalQ, clock
from localq.exceptions import StoreBusy
from localq.message import Message, Outcome, Want
from localq.recovery import EARLY, LATE_REJECT, sweep
from localq.storage import gate
from localq.storage.sqlite import SqliteStorage
from localq.storage.sqlite.delivery import put_all
from localq.storage.sqlite.settlement import place_of
from localq.worker.child import Consumer

if sys.platform != "linux":
    pytest.skip("finds the processes of a worker through /proc", allow_module_level=True)

TASKS = """
import os, time
from localq import LocalQ
from localq.storage import gate

app = LocalQ("proj")
gate.WAIT_LIMIT_S = float(os.environ.get("STOPS_LIMIT_S", "30"))

def hold(self, name):
    with open("ran", "ab", buffering=0) as file:
        file.write(f"{name} {self.request.redelivered} {os.getpid()}\\n".encode())
    while not os.path.exists(f"{name}.{self.request.redelivered}.go"):
        time.sleep(0.01)
    return f"run {self.request.redelivered}"

early = app.task(name="early", bind=True)(hold)
late = app.task(name="late", bind=True, acks_late=True, reject_on_worker_lost=True)(hold)

@app.task(name="add")
def add(x, y):
    return x + y
"""
WORKER = ("-A", "tasks", "worker")
ROUNDS = 100


@pytest.fixture
def here(tmp_path):
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


@pytest.fixture
def client(here):
    app = LocalQ("client", store=here / ".localq", set_as_current=False)
    yield app
    app.close()


def runs_of(here, name):
    """(redelivered, pid) of each run of a task that holds."""
    file = here / "ran"
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [(int(run), int(pid)) for found, run, pid in lines if found == name]


def held(here, client, kind, name="a"):
    """Send a task that holds, and wait until it runs; returns the result and the pid that runs it."""
    result = client.send_task(kind, (name,))
    wait_until(lambda: runs_of(here, name), what=f"{name} runs")
    return result, runs_of(here, name)[-1][1]


def let_go(here, name="a", run=0):
    (here / f"{name}.{run}.go").touch()


def stop(pid):
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: state_of(pid) == "T", what=f"{pid} is stopped")


def go_on(pid):
    os.kill(pid, signal.SIGCONT)


def state_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def declare_dead(storage, pid):
    """Make everybody believe that a process is dead: a file that is not locked and names nobody, instead of its own."""
    (owner,) = [owner for owner in storage.owners() if owner.about.get("pid") == pid]
    path = storage.directory / "owners" / owner.name
    new = path.with_name(f".{owner.name}.new")
    new.write_text("{}")
    new.chmod(0o600)
    new.replace(path)


# -- At random -------------------------------------------------------------------------------------


@pytest.mark.row("R4")
@pytest.mark.parametrize("stops", [30, pytest.param(400, marks=pytest.mark.crash)])
@pytest.mark.timeout(600)
def test_whoever_is_stopped_and_goes_on_later_every_task_runs_once_and_succeeds(tmp_path, stops):
    """No process dies here, so nothing may be run again, and nothing may fail."""
    with field(tmp_path, seed=stops, workers=2) as there:
        victims = Counter()
        for _ in range(stops):
            with there.stopped_one() as kind:
                victims[kind] += 1
                there.pause()
        there.finish()
        verdict = judge(there)
        print(f"{verdict.accepted} accepted, {stops} stops ({dict(victims)}); {verdict}")
        assert verdict[1:6] == (0, 0, 0, 0, 0)
        assert {len(run.started) for run in there.runs().values()} == {1}
        judge_what_is_left(there)


# -- A child, a steward, a worker ------------------------------------------------------------------


@pytest.mark.row("R4")
def test_a_stopped_child_is_not_taken_for_dead_and_the_other_goes_on(here, client):
    with worker(*WORKER, "-c", "2", cwd=here) as running:
        result, pid = held(here, client, "late")
        stop(pid)
        for number in range(20):
            assert client.send_task("add", (number, 1)).get(timeout=30) == number + 1
        assert sweep(client.storage) == 0
        assert not result.ready()
        go_on(pid)
        let_go(here)
        assert result.get(timeout=30) == "run 0"
        assert pid in running.children()
    assert len(runs_of(here, "a")) == 1


def test_while_a_steward_is_stopped_tasks_run_and_what_is_due_becomes_due(here, client):
    with worker(*WORKER, "-c", "1", cwd=here) as running:
        assert client.send_task("add", (1, 1)).get(timeout=30) == 2
        steward = steward_of(client)
        stop(steward)
        assert client.send_task("add", (2, 2)).get(timeout=30) == 4
        assert client.send_task("add", (3, 3), countdown=0.1).get(timeout=30) == 6
        go_on(steward)
        running.send(signal.SIGTERM)
        assert running.ended() == 0


def test_a_stopped_steward_settles_for_a_dead_child_when_it_goes_on(here, client):
    with worker(*WORKER, "-c", "1", cwd=here):
        result, pid = held(here, client, "early")
        steward = steward_of(client)
        stop(steward)
        os.kill(pid, signal.SIGKILL)
        # The supervisor needs no steward to put another child in the place of the dead one.
        assert client.send_task("add", (1, 1)).get(timeout=30) == 2
        assert not result.ready()
        go_on(steward)
        result.get(timeout=30, propagate=False)
        assert result.state == "FAILURE"
        assert "signal 9 (SIGKILL" in str(result.result)


def steward_of(client):
    (found,) = [owner.about["pid"] for owner in client.storage.owners() if owner.about["kind"] == "worker"]
    return found


@pytest.mark.row("R4")
@pytest.mark.parametrize("kind", ["early", "late"])
def test_a_stopped_worker_is_not_robbed_and_another_runs_what_is_queued(here, client, kind):
    with worker(*WORKER, "-c", "1", cwd=here) as first:
        result, pid = held(here, client, kind)
        queued = [client.send_task("add", (number, 1)) for number in range(20)]
        signal_all(first.pid, signal.SIGSTOP)
        wait_until(lambda: state_of(pid) == "T")
        with worker(*WORKER, "-c", "1", cwd=here):
            assert [each.get(timeout=30) for each in queued] == [number + 1 for number in range(20)]
            assert sweep(client.storage) == 0
            assert not result.ready()
            signal_all(first.pid, signal.SIGCONT)
            let_go(here)
            assert result.get(timeout=30) == "run 0"
    assert len(runs_of(here, "a")) == 1


@pytest.mark.row("F271", "F289")
def test_a_stopped_child_dies_with_its_supervisor_and_its_task_goes_on_elsewhere(here, client):
    with worker(*WORKER, "-c", "1", cwd=here) as first:
        result, pid = held(here, client, "late")
        stop(pid)
        first.send(signal.SIGKILL)
        first.ended()
        wait_until(lambda: is_gone(pid), what="a stopped child dies, too")
    let_go(here, run=1)
    with worker(*WORKER, "-c", "1", cwd=here):
        assert result.get(timeout=30) == "run 1"
    assert [run for run, _ in runs_of(here, "a")] == [0, 1]


# -- The gate --------------------------------------------------------------------------------------


class Inside:
    """Another process that is stopped in the middle of its transaction: its message is written, not committed."""

    def __init__(self, directory):
        row = Message("in-the-middle", "add", b"[[1, 1], {}]", checksum=0)

        def live():
            storage = SqliteStorage(directory)
            session = storage._session()

            def work():
                put_all(storage._bells, session.execute, [(*row, *place_of(row, 0.0))])
                os.kill(os.getpid(), signal.SIGSTOP)

            session.transact(work)
            storage.close()

        self.pid = forked(live)
        assert os.WIFSTOPPED(os.waitpid(self.pid, os.WUNTRACED)[1])

    def go_on(self):
        go_on(self.pid)
        assert ended(self.pid) == 0


def test_who_meets_a_stopped_holder_of_the_gate_is_told_its_name_and_has_sent_nothing(client, monkeypatch):
    monkeypatch.setattr(gate, "WAIT_LIMIT_S", 0.2)
    before = client.send_task("add", (1, 1)).id
    inside = Inside(client.storage.directory)
    try:
        with pytest.raises(StoreBusy, match=f"locked for 0.2 s by process {inside.pid}"):
            client.send_task("add", (2, 2), task_id="refused")
        # Readers need no gate, and see what is committed.
        assert set(client.storage.records([before, "refused", "in-the-middle"])) == {before}
    finally:
        inside.go_on()
    after = client.send_task("add", (3, 3)).id
    assert set(client.storage.records([before, "refused", "in-the-middle", after])) == {before, "in-the-middle", after}


def test_a_worker_outlasts_a_stopped_holder_of_the_gate(here, client):
    """What ends meanwhile is kept, no child dies of it, and what is sent afterwards runs."""
    with worker(*WORKER, "-c", "1", cwd=here, STOPS_LIMIT_S="0.2") as running:
        result, _ = held(here, client, "early")
        family = running.children()
        inside = Inside(client.storage.directory)
        try:
            let_go(here)
            running.saw("1 ended tasks wait to be written")
            assert not result.ready()
        finally:
            inside.go_on()
        assert result.get(timeout=30) == "run 0"
        assert client.send_task("add", (2, 2)).get(timeout=30) == 4
        assert running.children() == family
    assert len(runs_of(here, "a")) == 1


def test_a_steward_outlasts_a_stopped_holder_of_the_gate(here, client):
    with worker(*WORKER, "-c", "1", cwd=here, STOPS_LIMIT_S="0.2") as running:
        assert client.send_task("add", (1, 1)).get(timeout=30) == 2
        family = running.children()
        result = client.send_task("add", (2, 2), countdown=0.5)
        inside = Inside(client.storage.directory)
        try:
            running.saw("the steward waits")
        finally:
            inside.go_on()
        assert result.get(timeout=30) == 4
        assert running.children() == family


def test_a_task_whose_started_state_cannot_be_written_runs_all_the_same(app, monkeypatch):
    @app.task(track_started=True)
    def tracked():
        return "done"

    def shut(*_):
        raise StoreBusy("the gate is shut")

    storage, result = app.storage, tracked.delay()
    monkeypatch.setattr(storage, "update", shut)
    consumer = Consumer(app, ("celery",), "test@here", {})
    tracked_run = tracked.run

    def run():
        consumer.stop()
        return tracked_run()

    monkeypatch.setattr(tracked, "run", run)
    consumer.run()
    assert result.get(timeout=5) == "done"


# -- Too late --------------------------------------------------------------------------------------


def test_too_late_a_stopped_child_finds_its_task_failed_and_does_not_change_that(here, client):
    with worker(*WORKER, "-c", "1", cwd=here) as first:
        result, pid = held(here, client, "early")
        signal_all(first.pid, signal.SIGSTOP)
        wait_until(lambda: state_of(pid) == "T")
        declare_dead(client.storage, pid)
        assert sweep(client.storage) == 1
        (before,) = client.storage.records([result.id]).values()
        assert before.state == "FAILURE"
        signal_all(first.pid, signal.SIGCONT)
        let_go(here)
        first.saw(f"Task {result.id} was given to another worker meanwhile; this result is dropped")
        assert client.storage.records([result.id]) == {result.id: before}
        assert client.send_task("add", (1, 1)).get(timeout=30) == 2
    assert len(runs_of(here, "a")) == 1


@pytest.mark.parametrize("who_ends_first", ["the late one", "the new one"])
def test_too_late_a_stopped_child_loses_to_the_one_that_has_its_task_now(here, client, who_ends_first):
    with worker(*WORKER, "-c", "1", cwd=here) as first:
        result, pid = held(here, client, "late")
        signal_all(first.pid, signal.SIGSTOP)
        wait_until(lambda: state_of(pid) == "T")
        declare_dead(client.storage, pid)
        with worker(*WORKER, "-c", "1", cwd=here):
            wait_until(lambda: len(runs_of(here, "a")) == 2, what="another worker runs it again")
            if who_ends_first == "the new one":
                let_go(here, run=1)
                assert result.get(timeout=30) == "run 1"
            signal_all(first.pid, signal.SIGCONT)
            let_go(here)
            first.saw(f"Task {result.id} was given to another worker meanwhile; this result is dropped")
            let_go(here, run=1)
            assert result.get(timeout=30) == "run 1"
            (record,) = client.storage.records([result.id]).values()
            first.send(signal.SIGTERM)
            assert first.ended() == 0
        assert client.storage.records([result.id]) == {result.id: record}
    assert [run for run, _ in runs_of(here, "a")] == [0, 1]


def test_a_hundred_times_too_late_and_never_a_second_result(tmp_path):
    """Two owners and one message; the first is stopped, declared dead, and settles in the end all the same."""
    storage = SqliteStorage(tmp_path / "store")
    mine = storage.enlist({"kind": "test"})
    pick = random.Random(ROUNDS)
    late = 0
    for turn in range(ROUNDS):
        id, mode = f"id-{turn}", pick.choice([EARLY, LATE_REJECT])
        storage.put([Message(id, "proj.work", b"[]", checksum=1)])
        said = Line()
        pid = forked(lambda mode=mode, said=said: claim_and_settle_late(storage, mode, said))
        assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        declare_dead(storage, pid)
        assert sweep(storage) == 1
        claims = take(storage, mine.name)
        assert len(claims) == (mode == LATE_REJECT)
        settles_first = pick.random() < 0.5
        if claims and settles_first:
            settle(storage, claims[0], b'"new"')
        go_on(pid)
        assert ended(pid) == 0
        late += said.hear() == "refused"
        if claims and not settles_first:
            assert storage.records([id])[id].place == "held"
            settle(storage, claims[0], b'"new"')
        record = storage.records([id])[id]
        assert (record.state, record.ended) == ("SUCCESS" if claims else "FAILURE", True)
        assert (record.result == b'"new"') == bool(claims)
    assert late == ROUNDS
    storage.close()


def claim_and_settle_late(storage, mode, said):
    owner = storage.enlist({"kind": "child"})
    (claim,) = take(storage, owner.name)
    owner.begin(claim, mode)
    os.kill(os.getpid(), signal.SIGSTOP)
    progress = Outcome(claim.seq, claim.token, claim.message.id, "PROGRESS", ended=False)
    is_written = storage.update(claim.seq, claim.token, progress)
    turn = settle(storage, claim, b'"late"')
    said.say("refused" if [each.id for each in turn.stale] == [claim.message.id] and not is_written else "written")


def take(storage, owner):
    return storage.settle((), Want(owner, ("celery",), 1, clock.now())).claims


def settle(storage, claim, result):
    return storage.settle([
        Outcome(claim.seq, claim.token, claim.message.id, "SUCCESS", result=result, content_type="application/json",
                checksum=1, ended_at=clock.now()),
    ])  # fmt: skip
