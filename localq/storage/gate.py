"""The gate: one inter-process lock under which everything is written.

A flock on `gate.lock`, taken without waiting and retried with short sleeps, so that a wait has an
end and stays fair (64 producers: worst wait 0.2 s against 3.7 s of SQLite's own busy handler).
What runs inside must not yield, log, sleep, encode or call anything of the user's.

Signals. A Python signal handler may raise between any two instructions of the main thread; were it
to raise between lock and unlock, the gate would stay locked for every process of the machine. So on
the main thread signals are blocked before the lock is taken and let in again after it is released
(SIGTSTP too: a process must not be stopped while it holds the gate). Another thread of the process may
still receive a signal and have its handler run here, so the unlock is the first call of a `finally`:
CPython looks for signals after a C call, not before it. What no process can prevent is being stopped through
a thread of the user's that does not block SIGTSTP: then the others wait, at most WAIT_LIMIT_S.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from localq.exceptions import StoreBusy
from localq.storage.place import open_file

try:
    import _signal  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # another Python than CPython
    _signal = signal

T = TypeVar("T")

#: pthread_sigmask; the public one turns masks into enums, 9 us a pair against 1 us.
set_mask: Callable[[int, Iterable[int]], Any] = _signal.pthread_sigmask

#: Seconds a caller waits for the gate before StoreBusy.
WAIT_LIMIT_S = 30.0
#: Shortest and longest sleep between two tries, in seconds.
SHORTEST_S, LONGEST_S = 0.00005, 0.002

#: Tries with a mere yield between them before the first sleep: a holder is done in 50 us, a sleep lasts 100
#: (4 producers at once: 13,900 against 10,200 puts a second).
SPINS = 50

#: Signals that may stop a process or run a Python handler. Plain numbers: enums are slow to convert.
_NAMES = (
    "INT", "TERM", "HUP", "QUIT", "ALRM", "VTALRM", "PROF", "USR1", "USR2", "CHLD", "TSTP", "TTIN", "TTOU", "WINCH",
    "IO", "URG", "PIPE", "CONT",
)  # fmt: skip
BLOCKED = tuple(int(getattr(signal, f"SIG{name}")) for name in _NAMES if hasattr(signal, f"SIG{name}"))


class Closed(Exception):
    """Another thread closed this way through the gate."""


class Gate:
    """One thread's way through the gate. Each thread has its own descriptor: flock tells descriptors apart."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = open_file(path, os.O_RDWR)
        #: The descriptor until it is closed: only one can pop it.
        self._open = [self._fd]
        self._holds, self._is_closed, self._pid = 0, False, os.getpid()
        # By number: for a thread that is at its end, current_thread() would make up one that never ends.
        self._on_main_thread = threading.get_ident() == threading.main_thread().ident

    def hold(self, work: Callable[..., T], *args: object) -> T:
        """Run `work(*args)` while no other process or thread is inside; return what it returns.

        Raises:
            StoreBusy: the gate stayed shut for WAIT_LIMIT_S; names who holds it.
            Closed: another thread has closed it.
        """
        deadline, sleep_s, spins = 0.0, SHORTEST_S, SPINS
        self._holds += 1
        try:
            if self._is_closed:
                raise Closed
            while True:
                held, result = self._try(work, args)
                if held:
                    return result  # type: ignore[return-value]  # it is work's answer when the gate was held
                if spins:
                    spins -= 1
                    os.sched_yield()
                    continue
                if not deadline:
                    deadline = time.monotonic() + WAIT_LIMIT_S
                elif time.monotonic() > deadline:
                    raise StoreBusy(f"{self.path} has been locked for {WAIT_LIMIT_S:g} s by {holder(self.path)}")
                time.sleep(sleep_s)
                sleep_s = min(sleep_s * 1.5, LONGEST_S)
        finally:
            self._holds -= 1
            if self._is_closed and not self._holds:
                self._close()

    def _try(self, work: Callable[..., T], args: tuple[object, ...]) -> tuple[bool, T | None]:
        """Lock and run, or find the gate shut. Signals come in between two tries, so Ctrl-C ends a wait."""
        fd = self._fd
        if not self._on_main_thread:
            try:
                if not _locked(fd):
                    return False, None
                return True, work(*args)
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)
        before = set_mask(signal.SIG_BLOCK, ())
        try:
            try:
                set_mask(signal.SIG_BLOCK, BLOCKED)
                if not _locked(fd):
                    return False, None
                return True, work(*args)
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            set_mask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """Close the descriptor. In a forked child this leaves the parent's lock alone; LOCK_UN would not.

        While its thread waits or is inside, it is that thread that closes it: the number would soon be another's
        descriptor, and two threads that share one are both inside.
        """
        self._is_closed = True
        if not self._holds or os.getpid() != self._pid:
            self._close()

    def _close(self) -> None:
        try:
            os.close(self._open.pop())
        except IndexError:
            return  # the other thread was faster


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(path: Path) -> str:
    """Say which process holds a flock on this file; Linux tells, elsewhere nobody does."""
    try:
        inode = os.stat(path).st_ino
        with open("/proc/locks", encoding="ascii") as locks:
            rows = [line.split() for line in locks]
    except OSError:
        return "another process"
    for row in rows:
        if row[1] == "FLOCK" and row[5].rpartition(":")[2] == str(inode):
            return f"process {row[4]}"
    return "another process"
