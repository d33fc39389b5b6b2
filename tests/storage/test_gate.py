"""The gate: one at a time, across threads and processes, whatever happens inside."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from forking import Line, ended, forked

from localq.exceptions import StoreBusy
from localq.storage import gate as gate_module
from localq.storage.gate import BLOCKED, Gate, holder
from localq.storage.place import make_file


@pytest.fixture
def path(tmp_path):
    make_file(tmp_path / "gate.lock")
    return tmp_path / "gate.lock"


@pytest.fixture
def gate(path):
    made = Gate(path)
    yield made
    made.close()


@pytest.fixture
def impatient(monkeypatch):
    """Waiting has an end soon."""
    monkeypatch.setattr(gate_module, "WAIT_LIMIT_S", 0.2)


class Holder:
    """Another process that is inside the gate until it is let go or killed."""

    def __init__(self, path):
        inside, self._go = Line(), Line()

        def hold():
            inside.say()
            self._go.hear()

        self.pid = forked(lambda: Gate(path).hold(hold))
        inside.hear()

    def end(self, number=None):
        if number is not None:
            os.kill(self.pid, number)
        self._go.say()
        os.waitpid(self.pid, 0)


def test_it_returns_what_the_work_returns(gate):
    assert gate.hold(lambda x, y: x + y, 1, 2) == 3


def test_an_error_of_the_work_comes_out_and_the_gate_is_open_again(gate, path):
    with pytest.raises(ZeroDivisionError):
        gate.hold(lambda: 1 / 0)
    other = Gate(path)
    assert other.hold(lambda: "free") == "free"
    other.close()


def test_work_that_would_block_is_an_error_and_not_a_shut_gate(gate, impatient):
    calls = []

    def work():
        calls.append(1)
        raise BlockingIOError("the work's own")

    with pytest.raises(BlockingIOError, match="the work's own"):
        gate.hold(work)
    assert calls == [1]


def test_threads_pass_one_at_a_time(path):
    inside, most = [], []

    def work():
        inside.append(1)
        most.append(len(inside))
        inside.pop()

    def pass_often():
        mine = Gate(path)
        for _ in range(200):
            mine.hold(work)
        mine.close()

    threads = [threading.Thread(target=pass_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 800
    assert set(most) == {1}


def test_processes_pass_one_at_a_time(path, tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count():
        counter.write_text(str(int(counter.read_text()) + 1))

    def pass_often():
        mine = Gate(path)
        for _ in range(100):
            mine.hold(count)

    pids = [forked(pass_often) for _ in range(4)]
    assert [ended(pid) for pid in pids] == [0] * 4
    assert counter.read_text() == "400"


def test_who_waits_too_long_is_told_who_holds_it(gate, path, impatient):
    other = Holder(path)
    try:
        with pytest.raises(StoreBusy, match=f"process {other.pid}") as raised:
            gate.hold(lambda: None)
        assert str(path) in str(raised.value)
        assert holder(path) == f"process {other.pid}"
    finally:
        other.end()
    assert gate.hold(lambda: "free") == "free"


def test_a_stopped_holder_is_waited_for_and_never_broken_open(gate, path, impatient):
    other = Holder(path)
    os.kill(other.pid, signal.SIGSTOP)
    os.waitpid(other.pid, os.WUNTRACED)
    with pytest.raises(StoreBusy):
        gate.hold(lambda: None)
    os.kill(other.pid, signal.SIGCONT)
    other.end()
    assert gate.hold(lambda: "free") == "free"


def test_a_killed_holder_leaves_the_gate_open(gate, path):
    Holder(path).end(signal.SIGKILL)
    assert gate.hold(lambda: "free") == "free"


def test_a_forked_child_that_closes_its_copy_leaves_the_parent_inside(gate, path, impatient):
    def work():
        assert ended(forked(gate.close)) == 0
        other = Gate(path)
        try:
            with pytest.raises(StoreBusy):
                other.hold(lambda: None)
        finally:
            other.close()

    gate.hold(work)


# -- Signals ---------------------------------------------------------------------------------------


class FromHandler(Exception):
    pass


@pytest.fixture
def raising():
    """A handler of the user's that raises, as KeyboardInterrupt does."""

    def handler(number, frame):
        raise FromHandler

    before = signal.signal(signal.SIGUSR1, handler)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_that_comes_inside_is_answered_outside(gate, path, raising):
    done = []

    def work():
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # this thread: another might take the process's
        done.append("the work is whole")

    with pytest.raises(FromHandler):
        gate.hold(work)
    assert done == ["the work is whole"]
    other = Gate(path)
    assert other.hold(lambda: "free") == "free"
    other.close()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGALRM", "SIGTSTP", "SIGHUP", "SIGCHLD", "SIGUSR2"])
def test_inside_these_signals_are_blocked_and_afterwards_as_before(gate, name):
    number = getattr(signal, name)
    assert number in BLOCKED
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert number in gate.hold(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_signal_that_the_caller_had_blocked_stays_blocked(gate):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        gate.hold(lambda: None)
        assert signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_who_waits_at_the_gate_can_still_be_interrupted(gate, path, raising):
    other = Holder(path)
    ring = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        with pytest.raises(FromHandler):
            ring.start()
            gate.hold(lambda: None)
    finally:
        ring.join()
        other.end()
    assert gate.hold(lambda: "free") == "free"
