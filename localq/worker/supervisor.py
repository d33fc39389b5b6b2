"""The main process of a prefork worker: forks, waits, restarts, answers signals.

    supervisor --fork--> steward      its services, see steward.py
               --fork--> child 1..N   claim -> execute -> settle, see child.py

Single-threaded, and its own code never opens the store, so nothing the store does can stop it, and forking
is safe at any time. Signal handlers only note the signal; the loop does what it means. It tells the
steward over a pipe which children died and of what; children whose supervisor dies are killed by the kernel.
Each child leads a process group of its own, so that what a task has started can be killed with it. One that is worn
and waits for its last coroutines has its successor beside it, within limits.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import select
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from localq import log, signals
from localq.exceptions import (
    LocalqError,
    StoreCorrupt,
    StoreReadOnly,
    StoreReplaced,
    StoreUntrusted,
    StoreVersionError,
)
from localq.recovery import STOPPED, exit_reason
from localq.storage.gate import set_mask
from localq.storage.owners import identity
from localq.worker.child import Consumer
from localq.worker.enforcer import CAN_PEEK, Enforcer
from localq.worker.notices import Notices
from localq.worker.steward import Steward
from localq.worker.terms import Terms
from localq.worker.watch import WAKE, Post, Watch

logger = logging.getLogger("localq.worker")

#: Exit codes, as the README lists them (sysexits.h where it has one).
EX_OK, EX_CONFIG, EX_STORE, EX_NODE = 0, 2, 74, 73
#: The exit code of a child that has done enough and is to be replaced.
WORN = 77
#: How many children there may be for each that takes tasks: the others are worn, and wait for their last coroutines.
MOST_EACH = 4
#: Signals that the supervisor answers.
ANSWERED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD, signal.SIGHUP, signal.SIGTSTP)
#: What no restart mends: the store cannot be used any more.
UNUSABLE = (StoreReplaced, StoreUntrusted, StoreCorrupt, StoreReadOnly, StoreVersionError)
#: So many deaths in so many seconds are a crash loop; then a new child waits.
CRASHES, CRASH_WINDOW_S, CRASH_PAUSE_S = 5, 10.0, 1.0
#: Seconds between two requests to a child to stop.
ASK_AGAIN_S = 1.0
#: How often a first steward is started that dies without a word.
STEWARD_TRIES = 3
#: Seconds the steward may take to open the store, and to finish.
STEWARD_LIMIT_S = 35.0


class Supervisor:
    """Runs a prefork worker until it is told to stop.

    Args:
        worker: its options, and what to do when it is ready.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._mine: dict[str, object] = {}
        self._children: dict[int, int] = {}
        self._steward = 0
        self._line = -1
        self._seen: deque[int] = deque()
        self._crashes: deque[float] = deque(maxlen=CRASHES)
        self._resume_at = 0.0
        self._stopped_by = 0
        #: Why this process itself killed the children, if it did.
        self._killed_because = ""
        self._exit_code = EX_OK

    # -- The loop --------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until stopped; return the exit code."""
        self._mine = identity()  # only now: whoever made this may have forked since
        signals.worker_init.send(self._worker)
        self._listen()
        try:
            return self._work()
        finally:
            self._notices.close()

    def _work(self) -> int:
        ready = self._start_steward(first=True)
        if ready is None:
            return self._exit_code
        self._worker.node = ready["node"]
        log.process_name = "MainProcess"
        for index in range(1, self._worker.concurrency + 1):
            self._fork_child(index)
        self._worker.tell_ready()
        while self._children or not self._stopped_by:
            self._wait()
            self._answer()
            self._refill()
        self._finish_steward()
        signals.worker_shutdown.send(self._worker)
        return self._exit_code

    def _listen(self) -> None:
        self._read_end, write_end = os.pipe()
        self._asked, self._ask = os.pipe()
        for fd in (self._read_end, write_end, self._asked):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        self._notices = Notices()
        self._watch = Watch(MOST_EACH * self._worker.concurrency, write_end)
        self._enforcer = Enforcer(self._watch, lambda: Path(self._worker.app.backend.location.path))
        for number in ANSWERED:
            if number in (signal.SIGHUP, signal.SIGTSTP) and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup, or a shell without job control: the terminal is not ours
            signal.signal(number, lambda got, _: self._seen.append(got))

    def _wait(self) -> None:
        """Wait until there is something to do; see to what has run for too long."""
        pause = max(0.0, self._resume_at - time.monotonic()) if self._resume_at else None
        if self._stopped_by:
            # A task may have ignored or blocked SIGTERM while it ran: ask again until the child is gone.
            pause = ASK_AGAIN_S
            self._signal_children(signal.SIGTERM)
        pauses = [each for each in (pause, self._enforcer.pause_s()) if each is not None]
        select.select([self._read_end, self._asked], [], [], min(pauses, default=None))
        is_called = WAKE in _read_all(self._read_end)
        for text in _read_all(self._asked).splitlines():
            self._enforcer.terminate(self._children, json.loads(text))
        self._enforcer.enforce(self._children, is_called)

    def _answer(self) -> None:
        """Do what the signals that came mean."""
        while self._seen:
            number = self._seen.popleft()
            if number in (signal.SIGTERM, signal.SIGHUP) or (number == signal.SIGINT and not self._stopped_by):
                self._stop_warmly(number)
            elif number in (signal.SIGINT, signal.SIGQUIT):
                self._stop_cold(number)
            elif number == signal.SIGTSTP:
                self._suspend()
        self._reap()

    # -- Stopping --------------------------------------------------------------------------------

    def _stop_warmly(self, number: int) -> None:
        if self._stopped_by:
            return
        self._stopped_by = number
        signals.worker_shutting_down.send(self._worker, sig=signal.Signals(number).name, how="Warm", exitcode=EX_OK)
        how = "again to stop at once" if number == signal.SIGINT else "SIGQUIT to stop at once"
        self._signal_children(signal.SIGTERM)
        self._worker.say(f"worker: Warm shutdown (MainProcess): running tasks end first; {how}")

    def _stop_cold(self, number: int) -> None:
        self._stopped_by = number
        self._exit_code = 128 + number
        signals.worker_shutting_down.send(
            self._worker, sig=signal.Signals(number).name, how="Cold", exitcode=self._exit_code
        )
        self._killed_because = STOPPED
        self._tell({"cold": True})
        self._signal_children(signal.SIGKILL, os.killpg)
        self._worker.say("worker: Cold shutdown (MainProcess): running tasks are stopped, reserved ones go back")

    def _suspend(self) -> None:
        """Stop until somebody says go on; so do the children, whom the terminal does not reach."""
        self._signal_children(signal.SIGTSTP)
        os.kill(os.getpid(), signal.SIGSTOP)
        for pid in self._children:
            if not self._enforcer.is_doomed(pid):
                os.kill(pid, signal.SIGCONT)

    def _signal_children(self, number: int, how: Callable[[int, int], None] = os.kill) -> None:
        for pid in self._children:
            how(pid, number)

    def _finish_steward(self) -> None:
        """Let the steward sweep once more and end."""
        if not self._steward:
            return
        self._tell({"stop": True})
        deadline = time.monotonic() + STEWARD_LIMIT_S
        while self._steward and time.monotonic() < deadline:
            self._reap()
            if self._steward:
                time.sleep(0.002)
        if self._steward:
            os.kill(self._steward, signal.SIGKILL)

    # -- Children --------------------------------------------------------------------------------

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(self._peek(), os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid == self._steward:
                self._steward_ended(code)
            elif pid in self._children:
                self._child_ended(pid, code)

    def _peek(self) -> int:
        """See whether a process has ended, before it is reaped and its number may be another's; -1 if none is seen."""
        if not CAN_PEEK:
            return -1
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return -1
        if found.si_pid in self._children:
            self._enforcer.ended(found.si_pid, found.si_code != os.CLD_EXITED)
        return found.si_pid

    def _child_ended(self, pid: int, code: int) -> None:
        index = self._children.pop(pid)
        was_killed = self._enforcer.buried(pid, index)
        if code == EX_STORE and not self._worker.app.backend.is_there():
            self._store_is_gone()
        # A child ends well when it is told to; a task that calls os._exit(0) is a loss like any other.
        if code != EX_OK or not self._stopped_by:
            reason = self._killed_because or exit_reason(code)
            self._tell({"died": pid, "reason": reason})
            if was_killed:
                logger.info("child %d (pid %d) was killed with its task; another takes its place", index, pid)
            elif not self._stopped_by and code != WORN:
                logger.error("child %d (pid %d) ended: %s; another takes its place", index, pid, reason)
                self._crashes.append(time.monotonic())

    def _refill(self) -> None:
        """Fork what is missing; after a burst of deaths, after a pause."""
        self._resume_at = 0.0
        if self._stopped_by:
            return
        places = set(self._children.values())
        missing = self._worker.concurrency - sum(not self._watch.leaves(index) for index in places)
        if (missing or not self._steward) and self._is_crash_loop():
            self._resume_at = time.monotonic() + CRASH_PAUSE_S
            self._crashes.popleft()
            return
        if not self._steward:
            self._start_steward(first=False)
        free = (index for index in range(1, MOST_EACH * self._worker.concurrency + 1) if index not in places)
        for index in islice(free, missing):
            self._fork_child(index)

    def _is_crash_loop(self) -> bool:
        return len(self._crashes) == CRASHES and time.monotonic() - self._crashes[0] < CRASH_WINDOW_S

    def _fork_child(self, index: int) -> None:
        pid = self._fork(f"ForkPoolWorker-{index}", lambda: self._child_life(index))
        _lead_group(pid)  # here as well: it may be killed before it has come to it
        self._children[pid] = index

    def _child_life(self, index: int) -> int:
        _lead_group(0)
        # In the background of a terminal: a task that reads from it gets an error, and is not stopped for ever.
        signal.signal(signal.SIGTTIN, signal.SIG_IGN)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        self._worker.app.backend.follow()
        about: dict[str, object] = {"steward": True, "parent": self._mine}
        worker, post = self._worker, Post(self._watch, index)
        terms = Terms(worker.limits, self._notices, post, worker.max_tasks_per_child, worker.max_memory_per_child)
        consumer = Consumer(worker.app, worker.queues, worker.node, about, terms)

        def stop(*_: object) -> None:
            consumer.stop()

        def listen() -> None:
            if signal.getsignal(signal.SIGTERM) is not stop:
                signal.signal(signal.SIGTERM, stop)
            set_mask(signal.SIG_UNBLOCK, (signal.SIGTERM,))

        listen()
        consumer.before_turn = listen
        signals.worker_process_init.send(self._worker)
        consumer.run()
        code = WORN if consumer.is_worn else EX_OK
        signals.worker_process_shutdown.send(self._worker, pid=os.getpid(), exitcode=code)
        return code

    # -- The steward -----------------------------------------------------------------------------

    def _start_steward(self, first: bool, tries: int = STEWARD_TRIES) -> dict[str, Any] | None:
        """Fork the steward and wait until it has opened the store; None if it could not."""
        line_read, line_write = os.pipe()
        ready_read, ready_write = os.pipe()
        os.set_blocking(line_read, False)

        def life() -> int:
            os.close(line_write)
            os.close(ready_read)
            return self._steward_life(first, line_read, ready_write)

        self._steward = self._fork("Steward", life)
        os.close(line_read)
        os.close(ready_write)
        if self._line >= 0:
            os.close(self._line)
        self._line = line_write
        said = _read_line(ready_read, STEWARD_LIMIT_S)
        os.close(ready_read)
        if "node" in said:
            return said
        if first and not said and tries > 1:
            # Killed before it could say anything: that is no reason not to start.
            os.kill(self._steward, signal.SIGKILL)
            os.waitpid(self._steward, 0)
            return self._start_steward(first, tries - 1)
        if first:
            self._exit_code = int(said.get("code", EX_STORE))
            self._worker.say_error(
                str(said.get("error", "the steward died before it had opened the store")),
                "LQ021" if self._exit_code == EX_NODE else "LQ020",
            )
            os.kill(self._steward, signal.SIGKILL)
            os.waitpid(self._steward, 0)
        return None

    def _steward_life(self, first: bool, line: int, ready: int) -> int:
        worker = self._worker
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends when the supervisor says so, or is gone
        try:
            if not first:
                worker.app.backend.follow()
            about: dict[str, object] = {"node": worker.node, "queues": list(worker.queues), "steward": True}
            steward = Steward(worker.app, about, self._mine, line, self._notices, self._ask)
            facts = {"pid": self._mine["pid"], **worker.facts}
            node = steward.name_node(worker.node, may_vary=worker.node_may_vary and first, facts=facts)
            if node is None and first:
                _write_line(ready, {"error": f"node name {worker.node} belongs to a worker that is running; "
                                             "choose another with -n", "code": EX_NODE})  # fmt: skip
                return EX_NODE
        except LocalqError as exc:
            _write_line(ready, {"error": str(exc), "code": EX_STORE})
            return EX_STORE if first or isinstance(exc, UNUSABLE) else 1
        _write_line(ready, {"node": node or worker.node})
        os.close(ready)
        steward.run()
        if node is not None:
            steward.free_node()
        return EX_OK

    def _steward_ended(self, code: int) -> None:
        self._steward = 0
        if code == EX_STORE:
            self._store_is_gone()
        elif not self._stopped_by:
            logger.error("the steward ended: %s; another takes its place", exit_reason(code))
            self._crashes.append(time.monotonic())

    def _store_is_gone(self) -> None:
        """Nothing can be kept any more: say so once and stop."""
        if self._exit_code != EX_STORE:
            self._exit_code, self._stopped_by = EX_STORE, int(signal.SIGTERM)
            self._worker.say_error(f"the store {self._worker.app.backend.location.path} is gone or damaged; stopping")
            self._signal_children(signal.SIGTERM)

    def _tell(self, said: dict[str, Any]) -> None:
        if self._steward:
            try:
                _write_line(self._line, said)
            except BrokenPipeError:
                pass  # it died; the next one sweeps without being told

    # -- Forking ---------------------------------------------------------------------------------

    def _fork(self, name: str, life: Callable[[], int]) -> int:
        """Fork a process that does nothing but `life`; returns its pid."""
        _flush()
        parent = os.getpid()
        # Blocked across the fork: a signal must not find the parent's handler in the child.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ANSWERED)
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return pid
        code = 1
        try:
            self._become(name, parent)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            code = life()
        except UNUSABLE as exc:
            logger.critical("%s", exc)
            code = EX_STORE
        except BaseException:
            logger.critical("%s ended by an error of localq's or of the system's:\n%s", name, traceback.format_exc())
        finally:
            try:
                _flush()
                self._worker.app.close()
            finally:
                os._exit(code)

    def _become(self, name: str, parent: int) -> None:
        signal.set_wakeup_fd(-1)
        for number in ANSWERED:
            signal.signal(number, signal.SIG_DFL)
        # These reach the whole terminal's group; what they mean to a child is the supervisor's to say.
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        self._children.clear()
        os.close(self._read_end)
        os.close(self._asked)
        die_with(parent)
        log.process_name = name


def _lead_group(pid: int) -> None:
    """Make a child, 0 for this process, the leader of a process group of its own."""
    try:
        os.setpgid(pid, pid)
    except (ProcessLookupError, PermissionError):
        pass  # it has ended already, or has become one itself


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # closed, by a task or from the start


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; Linux only, others notice by a closed pipe."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _write_line(fd: int, said: dict[str, Any]) -> None:
    os.write(fd, json.dumps(said).encode() + b"\n")


def _read_all(fd: int) -> bytes:
    """Read what there is, without waiting."""
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return b""


def _read_line(fd: int, timeout_s: float) -> dict[str, Any]:
    """Read one line; an empty answer if the writer died or took too long."""
    if not select.select([fd], [], [], timeout_s)[0]:
        return {}
    data = os.read(fd, 65536)
    return json.loads(data) if data else {}
