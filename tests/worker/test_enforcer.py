"""How a supervisor ends tasks: only those that are late or revoked, whatever their child does meanwhile."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from importlib import import_module

import pytest
from commands import is_gone
from waiting import wait_until

from localq import LocalQ, Task, clock, signals
from localq.exceptions import StoreFull
from localq.message import Claim, Message, Outcome
from localq.storage.base import Started
from localq.storage.owners import Owners
from localq.testing.clock import FakeClock
from localq.testing.worker import start_worker
from localq.worker import enforcer
from localq.worker.enforcer import Enforcer
from localq.worker.soft import OPEN, SoftLimit, is_ours
from localq.worker.terminator import Terminator
from localq.worker.timer import Timer
from localq.worker.watch import WAKE, Post, Watch

LONG_S = 60.0


def claim(number):
    return Claim(number, 1, 0, Message(f"id-{number}", "proj.work", b"[]"))


@pytest.fixture
def line():
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    yield read_end, write_end
    os.close(read_end)
    os.close(write_end)


def woken(read_end):
    try:
        return os.read(read_end, 65536)
    except BlockingIOError:
        return b""


@pytest.fixture
def owners(tmp_path):
    return Owners(tmp_path / "owners")


@pytest.fixture
def owner(owners):
    made = owners.enlist({"kind": "child"}, journal=True)
    made.turn()
    yield made
    made.close()


# -- Who wakes whom ------------------------------------------------------------------------------------


def test_a_child_wakes_its_supervisor_only_if_that_looks_too_late(line, owner):
    watch = Watch(1, line[1])
    post = Post(watch, 1)
    assert post.begin(owner, claim(1), 0, 0, 5.0)
    assert woken(line[0]) == bytes([WAKE])
    watch.plan(clock.monotonic() + 2)
    assert post.begin(owner, claim(2), 0, 0, 5.0)
    assert woken(line[0]) == b""
    assert post.begin(owner, claim(3), 0, 0, 1.0)
    assert woken(line[0]) == bytes([WAKE])
    assert watch.read(1) == (owner.name, 1.0)
    watch.forget(1)
    assert watch.read(1) == ("", 0.0)


def test_a_supervisor_that_is_full_of_calls_does_not_stop_a_child(line, owner):
    post = Post(Watch(1, line[1]), 1)
    while True:
        try:
            os.write(line[1], bytes(4096))
        except BlockingIOError:
            break
    assert post.begin(owner, claim(1), 0, 0, 5.0)


def test_what_a_child_runs_is_in_its_notes_with_its_deadline(line, owner, owners):
    before = clock.monotonic()
    Post(Watch(1, line[1]), 1).begin(owner, claim(7), 3, 0, 5.0)
    (found,) = owners.notes(owner.name, []).started
    assert (found.seq, found.token, found.mode) == (7, 1, 3)
    assert before + 5 <= found.deadline <= clock.monotonic() + 5


# -- Whom it ends --------------------------------------------------------------------------------------


class Child:
    """A process that does nothing, and notes of an owner that say what it runs."""

    def __init__(self, owners, owner, line):
        self.pid = os.fork()
        if not self.pid:
            os.setpgid(0, 0)
            time.sleep(LONG_S)
            os._exit(0)
        os.setpgid(self.pid, self.pid)
        self.owner, self.owners, self.watch = owner, owners, Watch(1, line[1])
        self.post = Post(self.watch, 1)
        self.enforcer = Enforcer(self.watch, lambda: owners.directory.parent)
        self.children = {self.pid: 1}

    def runs(self, number, limit_s):
        assert self.post.begin(self.owner, claim(number), 0, 0, limit_s)

    def state(self):
        with open(f"/proc/{self.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]

    def reason(self):
        (found,) = self.owners.notes(self.owner.name, []).started
        return found.reason


@pytest.fixture
def child(owners, owner, line):
    made = Child(owners, owner, line)
    yield made
    os.kill(made.pid, signal.SIGKILL)
    os.waitpid(made.pid, 0)


def test_who_is_not_late_is_left_alone_and_looked_at_when_it_will_be(child):
    child.runs(1, 30.0)
    child.enforcer.enforce(child.children, is_called=True)
    assert 20 < child.enforcer.pause_s() <= 30
    assert child.state() != "T"
    assert child.reason() == ""


def test_limits_count_the_time_that_goes_by_not_what_the_wall_clock_says(child):
    with FakeClock() as fake:
        child.runs(1, 30.0)
        fake.jump(365 * 86400)  # set forward, or back after a suspended night: no time has gone by
        child.enforcer.enforce(child.children, is_called=True)
        assert child.reason() == ""
        assert child.enforcer.pause_s() == 30
        fake.jump(-2 * 365 * 86400)
        fake.advance(30)
        child.enforcer.enforce(child.children, is_called=False)
        assert child.reason()


def test_a_steady_stream_of_limited_tasks_does_not_keep_its_supervisor_awake(child, line):
    child.runs(1, 30.0)
    assert woken(line[0])
    child.enforcer.enforce(child.children, is_called=True)
    for number in range(2, 1000):
        child.runs(number, 30.0)
    assert woken(line[0]) == b""


def test_who_begins_while_the_supervisor_looks_is_seen(child, line, monkeypatch):
    child.runs(1, 30.0)
    child.enforcer.enforce(child.children, is_called=True)
    woken(line[0])
    notes, begun = Owners.notes, []

    def read(self, name, claims):
        found = notes(self, name, claims)
        if not begun:  # it begins just after its notes were read, and sees the plan there was
            begun.append(1)
            child.watch.plan(0.0)
            child.runs(2, 10.0)
        return found

    monkeypatch.setattr(Owners, "notes", read)
    child.enforcer.enforce(child.children, is_called=True)
    assert woken(line[0]) == b""
    assert child.enforcer.pause_s() <= 10


def test_nobody_is_looked_at_who_has_no_limit(child):
    assert child.owner.begin(claim(1), 0)
    child.enforcer.enforce(child.children, is_called=True)
    assert child.enforcer.pause_s() is None


def test_who_is_late_is_stopped_condemned_and_killed_after_a_grace(child):
    child.runs(1, 0.001)
    time.sleep(0.002)
    child.enforcer.enforce(child.children, is_called=True)
    assert child.state() == "T"
    assert json.loads(child.reason()) == {"why": "time limit", "limit": 0.001}
    assert 0 < child.enforcer.pause_s() <= enforcer.GRACE_S
    # Nobody kills it twice, nor looks at it again.
    wait_until(lambda: child.enforcer.pause_s() == 0)
    child.enforcer.enforce(child.children, is_called=False)
    wait_until(lambda: is_gone(child.pid))
    assert child.enforcer.pause_s() is None
    assert child.enforcer.buried(child.pid, 1) is True
    assert child.enforcer.buried(child.pid, 1) is False


@pytest.mark.row("F192")
def test_who_has_gone_on_to_another_task_before_it_was_stopped_goes_on(child, monkeypatch):
    child.runs(1, 0.001)
    time.sleep(0.002)

    def at(point):
        if point == "limit.stopped":  # what it has done by the time it has stopped
            child.runs(2, 30.0)

    monkeypatch.setattr(enforcer.faults, "at", at)
    child.enforcer.enforce(child.children, is_called=True)
    wait_until(lambda: child.state() != "T", what="it goes on")
    assert child.reason() == ""
    child.enforcer.enforce(child.children, is_called=False)  # looked at again, at once
    assert 20 < child.enforcer.pause_s() <= 30


def test_who_has_ended_meanwhile_is_not_condemned(child, monkeypatch):
    child.runs(1, 0.001)
    time.sleep(0.002)
    monkeypatch.setattr(enforcer.faults, "at", lambda _: child.owner.end(Outcome(1, 1, "id-1", "SUCCESS")))
    child.enforcer.enforce(child.children, is_called=True)
    wait_until(lambda: child.state() != "T")


def test_notes_that_cannot_be_read_are_read_again_later(child, monkeypatch, caplog):
    child.runs(1, 30.0)

    def broken(*_):
        raise OSError("on purpose")

    with monkeypatch.context() as patched:
        patched.setattr(Owners, "notes", broken)
        child.enforcer.enforce(child.children, is_called=True)
    assert 0 < child.enforcer.pause_s() <= enforcer.AGAIN_S
    assert "cannot be read, again in 1 s: on purpose" in caplog.text


@pytest.mark.parametrize("change", [{"pid": 1}, {"owner": "another"}, {"seq": 2}, {"token": 2}])
def test_only_the_task_that_was_revoked_is_terminated(child, change):
    child.runs(1, 30.0)
    said = {"pid": child.pid, "owner": child.owner.name, "seq": 1, "token": 1, "signal": 15, **change}
    child.enforcer.terminate(child.children, said)
    wait_until(lambda: child.state() != "T")
    assert child.reason() == ""
    child.enforcer.terminate(
        child.children, {**said, "pid": child.pid, "owner": child.owner.name, "seq": 1, "token": 1}
    )
    assert json.loads(child.reason()) == {"why": "revoked", "signal": 15}


def test_to_be_told_twice_to_terminate_a_task_is_to_be_told_once(child):
    child.runs(1, 30.0)
    said = {"pid": child.pid, "owner": child.owner.name, "seq": 1, "token": 1, "signal": 15}
    child.enforcer.terminate(child.children, said)
    child.enforcer.terminate(child.children, {**said, "signal": 9})
    assert json.loads(child.reason()) == {"why": "revoked", "signal": 15}
    assert child.enforcer.buried(child.pid, 1)
    child.enforcer.terminate({}, said)  # it has ended, and its place may be another's
    assert child.enforcer.pause_s() is None


# -- Where soft limits strike --------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "name"), sorted(OPEN))
def test_every_place_that_may_be_interrupted_exists(module, name):
    found = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    assert (found.__module__, found.__qualname__) == (module, name)


def frames(*modules):
    """The innermost frame of a stack of functions of these modules, the outermost first, in a run of `around`."""
    found = []

    def innermost():
        found.append(sys._getframe())

    call = innermost
    for module in reversed(modules):
        space = {"__name__": module, "call": call, "sys": sys, "found": found}
        exec("def f(): call()", space)
        call = space["f"]

    def around():
        call()

    around()
    frame = found[0].f_back  # `innermost` is this test's
    return frame, around.__code__


@pytest.mark.parametrize(("modules", "ours"), [
    (["proj"], False), (["proj", "time"], False), (["proj", "localq.app"], True),
    (["proj", "localq.app", "json"], True),
    (["proj", "localq.app", "proj"], False), (["proj", "localq.app", "proj", "json"], False),
    (["proj", "localq.app", "proj", "localq.app"], True), (["localq.app", "diskcache.core"], True),
    (["subprocess", "select"], False), (["localq.retries", "proj"], False), (["localq.retries"], True),
    (["localq.retries", "proj", "localq.app"], True), (["localqish"], False), ([], True),
])  # fmt: skip
def test_code_of_ours_is_not_interrupted(modules, ours):
    frame, around = frames(*modules)
    assert is_ours(frame, around) is ours


def test_code_that_no_task_has_called_is_not_interrupted():
    assert is_ours(sys._getframe(), SoftLimit.__call__.__code__) is True
    assert is_ours(None, SoftLimit.__call__.__code__) is True


def test_a_timer_is_gone_when_its_task_is_and_the_users_handler_is_back():
    mine = []
    before = signal.signal(signal.SIGALRM, lambda *_: mine.append(1))
    try:
        assert SoftLimit(LONG_S, lambda: None)(lambda x, y: x + y, (1,), {"y": 2}) == 3
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        signal.raise_signal(signal.SIGALRM)
        assert mine == [1]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_limit_beyond_what_a_timer_takes_is_as_good_as_none():
    assert SoftLimit(math.inf, lambda: None)(lambda: "done", (), {}) == "done"


# -- Revoked while it runs -----------------------------------------------------------------------------


def running_claim(app, id):
    """The owner, and the slot, of the task that runs under this id."""
    for owner in app.storage.owners():
        estate = app.storage.estate(owner.name)
        for started in estate.started:
            if any((c.seq, c.token, c.message.id) == (started.seq, started.token, id) for c in estate.claims):
                return owner, started
    return None


def ask_to_terminate(app, id):
    owner, started = wait_until(lambda: running_claim(app, id))
    assert isinstance(started, Started)
    said = {"signal": 15, "seq": started.seq, "token": started.token, "owner": owner.name}
    assert app.storage.write(f"terminate:{id}", json.dumps(said), None, clock.now() + 60)


@pytest.mark.parametrize("options", [{}, {"acks_late": True, "reject_on_worker_lost": True}])
def test_a_running_task_that_is_revoked_ends_as_revoked(app: LocalQ, tmp_path, options):
    seen = tmp_path / "seen"

    @app.task(**options)
    def sleeps():
        time.sleep(LONG_S)

    def revoked(sender=None, request=None, terminated=None, signum=None, expired=None, **_):
        seen.write_text(f"{sender.name} {request.id} {terminated} {signum} {expired}")

    signals.task_revoked.connect(revoked, weak=False)
    try:
        with start_worker(app, "prefork", concurrency=1):
            result = sleeps.delay()
            ask_to_terminate(app, result.id)
            exc = result.get(timeout=30, propagate=False)
            assert (result.state, repr(exc)) == ("REVOKED", "TaskRevokedError('terminated')")
            wait_until(seen.exists)
            assert app.storage.entries("terminate:") == []
            wait_until(
                lambda: len([o for o in app.storage.owners() if o.about.get("kind") == "child" and o.alive]) == 1
            )
    finally:
        signals.task_revoked.disconnect(revoked)
    assert seen.read_text() == f"{sleeps.name} {result.id} True 15 False"


@pytest.mark.parametrize("change", [{"signal": 18}, {"signal": 19}, {"signal": 999}, {"seq": "x"}, {"token": None}])
def test_a_word_that_makes_no_sense_ends_nothing(app: LocalQ, tmp_path, change, caplog):
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    mine = {"pid": 1}
    owner = app.storage.enlist({"kind": "child", "parent": mine})
    said = {"signal": 15, "seq": 1, "token": 1, "owner": owner.name}
    terminator = Terminator(app.storage, Timer(), mine, write_end)
    for id, words in (("broken", "["), ("bad", json.dumps({**said, **change})), ("good", json.dumps(said))):
        app.storage.write(f"terminate:{id}", words, None)
    terminator.rung()
    assert [json.loads(text)["seq"] for text in os.read(read_end, 4096).splitlines()] == [1]
    assert "task bad is revoked, and goes on" in caplog.text
    # What is nobody's here stays for its own worker, until it expires.
    assert [entry.key for entry in app.storage.entries("terminate:")] == ["terminate:broken"]
    owner.close()
    os.close(read_end)
    os.close(write_end)


def test_a_word_that_cannot_be_taken_out_now_is_passed_on_and_taken_out_later(app: LocalQ, monkeypatch, caplog):
    read_end, write_end = os.pipe()
    owner = app.storage.enlist({"kind": "child", "parent": {"pid": 1}})
    said = {"signal": 15, "seq": 1, "token": 1, "owner": owner.name}
    app.storage.write("terminate:id", json.dumps(said), None)
    terminator = Terminator(app.storage, Timer(), {"pid": 1}, write_end)

    def full(*_):
        raise StoreFull("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(type(app.storage), "write", full)
        terminator.rung()
    assert "stays in the store for now: the disk is full" in caplog.text
    assert json.loads(os.read(read_end, 4096))["seq"] == 1
    terminator.rung()
    assert app.storage.entries("terminate:") == []
    owner.close()
    os.close(read_end)
    os.close(write_end)


def test_a_word_is_passed_on_although_its_steward_dies_with_it_in_hand(app: LocalQ, monkeypatch):
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    mine, write = {"pid": 1}, type(app.storage).write
    owner = app.storage.enlist({"kind": "child", "parent": mine})
    said = {"signal": 15, "seq": 1, "token": 1, "owner": owner.name}
    app.storage.write("terminate:id", json.dumps(said), None)

    class Died(BaseException):
        pass

    def write_and_die(*what):
        write(*what)
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(type(app.storage), "write", write_and_die)
        with pytest.raises(Died):
            Terminator(app.storage, Timer(), mine, write_end).rung()
    Terminator(app.storage, Timer(), mine, write_end).rung()  # the next steward's
    assert json.loads(os.read(read_end, 4096))["seq"] == 1
    owner.close()
    os.close(read_end)
    os.close(write_end)


def test_a_solo_worker_says_that_it_cannot_end_a_task(app: LocalQ, tmp_path, caplog):
    go = tmp_path / "go"

    class Waits(Task):
        def run(self):
            wait_until(go.exists)
            return "done"

    waits = app.register_task(Waits())
    with start_worker(app, "solo"):
        result = waits.delay()
        ask_to_terminate(app, result.id)
        wait_until(lambda: "the solo pool cannot end a task that runs" in caplog.text)
        go.touch()
        assert result.get(timeout=30) == "done"
