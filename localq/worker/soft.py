"""Soft time limits: an exception in the task's own code, and nowhere else.

A timer of the process runs while the task's function does. When it strikes, the handler looks at the code that was
interrupted: what is localq's own (a put, an encoding, a look into the store) goes on undisturbed, and the timer strikes
again a little later; a wait for a result and a task called by another may be interrupted. It needs the main
thread, and SIGALRM: a task that uses SIGALRM itself takes its own limit away. Must not touch the store.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from localq.exceptions import SoftTimeLimitExceeded

#: Seconds after which the timer strikes again if it met code of ours.
AGAIN_S = 0.005
#: What a timer can take, in seconds: three years.
LONGEST_S = 1e8
#: Code of ours in which it may strike: waits for results, and what only calls the user's.
OPEN = frozenset({
    ("localq.task", "Task.__call__"), ("localq.tasks", "mapped"), ("localq.tasks", "starmapped"),
    ("localq.result", "AsyncResult.get"), ("localq.result", "AsyncResult._wait"), ("localq.waiting", "Wait.until"),
    ("localq.groups", "ResultSet.join"), ("localq.groups", "ResultSet.join_native"),
    ("localq.groups", "ResultSet._wait_all"), ("localq.groups", "ResultSet.iter_native"),
    ("localq.storage.bells", "PipeBell.sleep"), ("localq.storage.memory", "MemoryBell.sleep"),
})  # fmt: skip


def may_strike() -> bool:
    """Whether soft limits can be kept on this thread: signals reach Python code on the main one only."""
    return threading.current_thread() is threading.main_thread()


class SoftLimit:
    """Runs one task's function, and interrupts it after a while.

    Args:
        limit_s: after how many seconds.
        tell: called just before the task is interrupted.
    """

    def __init__(self, limit_s: float, tell: Callable[[], None]) -> None:
        self._limit_s, self._tell = limit_s, tell
        self._is_open = False

    def __call__(self, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the function; SoftTimeLimitExceeded is raised in it if it takes too long."""
        before = signal.signal(signal.SIGALRM, self._strike)
        self._is_open = True
        signal.setitimer(signal.ITIMER_REAL, min(self._limit_s, LONGEST_S))
        try:
            return run(*args, **kwargs)
        finally:
            # First of all: from here on nobody is interrupted.
            self._is_open = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            if callable(before):
                signal.signal(signal.SIGALRM, before)

    def _strike(self, number: int, frame: FrameType | None) -> None:
        if not self._is_open:
            return
        if is_ours(frame, SoftLimit.__call__.__code__):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
            return
        self._is_open = False
        self._tell()
        raise SoftTimeLimitExceeded


def is_ours(frame: FrameType | None, outermost: CodeType) -> bool:
    """Whether code of localq's is at work that must not be interrupted, between this frame and the task's caller.

    What of ours stands directly around the task's function (retries, checks of arguments) only calls it.
    """
    own: list[bool] = []
    while frame is not None and frame.f_code is not outermost:
        module = str(frame.f_globals.get("__name__", ""))
        name = frame.f_code.co_qualname.partition(".<locals>")[0]
        own.append(module.partition(".")[0] == "localq" and (module, name) not in OPEN)
        frame = frame.f_back
    while own and own[-1]:
        own.pop()
    return frame is None or not own or any(own)
