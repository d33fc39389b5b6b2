"""Ends tasks: kills the child that runs one for too long, or one that was revoked.

    stop the child, read its slot again    it cannot go on to another task meanwhile
    still that task, still late?           else let it go on
    note why, for whoever sweeps           the verdict holds, whoever dies from here on
    signal its process group, then KILL    what the task has started dies with it

The child itself stays stopped until it is killed: it neither ends the task after all nor begins another. The
supervisor's part, single-threaded like it. Reads and writes owners' notes only, so that it opens no store. Must not
decide what becomes of the task, nor tell anybody of it: its reason does, once the child is swept.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localq import clock, faults
from localq.exceptions import LocalqError
from localq.recovery import REVOKED, TIME_LIMIT
from localq.storage.base import Started
from localq.storage.owners import Owners
from localq.worker.watch import Watch

logger = logging.getLogger("localq.worker")

#: Seconds that what a task has started has to end, after the first signal.
GRACE_S = 0.1
#: Seconds a child may take to stop; one that is deep in the system does not, but runs no task either.
STOP_S = 0.05
#: How long it takes until others see what a process wrote (`owners._SEEN_S`), in seconds.
SEEN_S = 0.001
#: Whether a process can see that another has ended before it reaps it; not on macOS before Python 3.13.
CAN_PEEK = hasattr(os, "waitid")
#: Seconds after which notes that could not be read are read again.
AGAIN_S = 1.0


class Enforcer:
    """Ends what must not go on, for one supervisor.

    Args:
        watch: what its children share with it.
        directory: of the store whose owners they are; called once there are children.
    """

    def __init__(self, watch: Watch, directory: Callable[[], Path]) -> None:
        self._watch, self._directory = watch, directory
        self._known: Owners | None = None
        self._next_at = math.inf
        #: Children that are about to be killed, and when.
        self._doomed: dict[int, float] = {}

    def pause_s(self) -> float | None:
        """Return after how many seconds there is something to do; None for not before somebody calls."""
        at = min(self._next_at, *self._doomed.values(), math.inf)
        return None if at == math.inf else max(0.0, at - clock.monotonic())

    def enforce(self, children: dict[int, int], is_called: bool) -> None:
        """Do what is due.

        Args:
            children: index of each, by pid.
            is_called: a child has something that ends before the next look.
        """
        now = clock.monotonic()
        for pid in [pid for pid, at in self._doomed.items() if at <= now]:
            self._kill(pid)
        if is_called or now >= self._next_at:
            self._look(children)

    def is_doomed(self, pid: int) -> bool:
        """Whether a child is about to be killed: it must not go on."""
        return pid in self._doomed

    def ended(self, pid: int, was_killed: bool) -> None:
        """A child has ended and is not reaped, so that its group is still its own: nothing there outlives a kill."""
        if was_killed or pid in self._doomed:
            _send(os.killpg, pid, signal.SIGKILL)

    def buried(self, pid: int, index: int) -> bool:
        """A child is reaped. Returns whether it was to be killed."""
        self._watch.forget(index)
        was_doomed = pid in self._doomed
        if was_doomed and not CAN_PEEK:
            self._kill(pid)
        self._doomed.pop(pid, None)
        return was_doomed

    def terminate(self, children: dict[int, int], said: dict[str, Any]) -> None:
        """End a task that was revoked, if it still runs.

        Args:
            said: `pid` of the child, `owner`, `seq`, `token` of the task, `signal` to begin with.
        """
        index = children.get(int(said["pid"]))
        if index is None or int(said["pid"]) in self._doomed or self._watch.read(index)[0] != said["owner"]:
            return  # it has ended already, and whoever sweeps settles that
        key = (int(said["seq"]), int(said["token"]))
        self._judge(int(said["pid"]), index, key, {"why": REVOKED, "signal": int(said["signal"])})

    # -- Looking -----------------------------------------------------------------------------------

    def _look(self, children: dict[int, int]) -> None:
        """End who is late, and plan the next look."""
        at = self._earliest(children)
        self._watch.plan(at)
        # Who began after it was read, and read the plan before it was written, is in its notes by now.
        time.sleep(SEEN_S)
        self._next_at = min(at, self._earliest(children))
        self._watch.plan(self._next_at)

    def _earliest(self, children: dict[int, int]) -> float:
        """End who is late; return when the next one is."""
        now, at = clock.monotonic(), math.inf
        for pid, index in children.items():
            if pid in self._doomed:
                continue
            running = self._running(index)
            if running is None:
                at = min(at, now + AGAIN_S)
            for started in running or ():
                if 0 < started.deadline <= now and self._end_late(pid, index, started):
                    break
                if started.deadline:
                    at = min(at, started.deadline)
        return at

    def _end_late(self, pid: int, index: int, late: Started) -> bool:
        reason: dict[str, Any] = {"why": TIME_LIMIT}
        if not late.place:  # of those that run beside each other, the message tells
            limit_s = self._watch.read(index)[1]
            reason["limit"] = int(limit_s) if limit_s.is_integer() else limit_s
        return self._judge(pid, index, (late.seq, late.token), reason)

    def _running(self, index: int) -> list[Started] | None:
        """Read what a child runs; None if that cannot be read."""
        name = self._watch.read(index)[0]
        try:
            return list(self._owners().notes(name, []).started) if name else []
        except (OSError, LocalqError) as exc:
            logger.warning("what child %d runs cannot be read, again in %g s: %s", index, AGAIN_S, exc)
            return None

    def _owners(self) -> Owners:
        if self._known is None:
            self._known = Owners(self._directory() / "owners")
        return self._known

    # -- Ending ------------------------------------------------------------------------------------

    def _judge(self, pid: int, index: int, key: tuple[int, int], reason: dict[str, Any]) -> bool:
        """Stop a child; if it still runs that task, note the reason and begin to kill it, else let it go on."""
        _send(os.kill, pid, signal.SIGSTOP)
        _wait_until_stopped(pid)
        faults.at("limit.stopped")
        runs_it = any((each.seq, each.token) == key for each in self._running(index) or ())
        if not runs_it:
            _send(os.kill, pid, signal.SIGCONT)
            return False
        try:
            self._owners().condemn(self._watch.read(index)[0], *key, json.dumps(reason))
        except (OSError, LocalqError):
            logger.exception("why child %d is killed cannot be noted: its task will look lost", index)
        faults.at("limit.noted")
        _send(os.killpg, pid, int(reason.get("signal", signal.SIGTERM)))
        self._doomed[pid] = clock.monotonic() + GRACE_S
        return True

    def _kill(self, pid: int) -> None:
        _send(os.killpg, pid, signal.SIGKILL)
        _send(os.kill, pid, signal.SIGKILL)  # it may have left its group
        self._doomed[pid] = math.inf  # until it is reaped


def _send(how: Callable[[int, int], None], pid: int, number: int) -> None:
    try:
        how(pid, number)
    except ProcessLookupError:
        pass  # it has ended, and is about to be reaped
    except PermissionError:
        pass  # all that is left of its group is another user's, or dead (macOS)


def _wait_until_stopped(pid: int) -> None:
    """Wait until a child has stopped or ended, without taking note of it: reaping is the supervisor's."""
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline and not _has_stopped(pid):
        time.sleep(SEEN_S / 2)


def _has_stopped(pid: int) -> bool:
    if not CAN_PEEK:
        return False  # the whole time is waited
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True  # code of the user's in this process has reaped it
