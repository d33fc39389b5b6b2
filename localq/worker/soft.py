"""Soft time limits: an exception in the task's own code, and nowhere else.

A timer of the process runs while the task's function does. When it strikes, the handler looks at the code that was
interrupted: what is localq's own (a put, an encoding, a look into the store) goes on undisturbed, and the timer strikes
again a little later. Code of the user's may be interrupted wherever it was called from, a callback or an inner
`task.apply()` as well, and so may a wait for a result. As in Celery, an inner task takes the exception for its own.
It needs the main thread, and SIGALRM: a task that uses SIGALRM itself takes its own limit away. Must not touch the
store.
"""

from __future__ import annotations

import opcode
import signal
import sys
import threading
from collections.abc import Callable, Iterator
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
    ("localq.result", "AsyncResult.get"), ("localq.result", "AsyncResult._wait"),
    ("localq.result", "AsyncResult.collect"), ("localq.waiting", "Wait.until"),
    ("localq.groups", "ResultSet.join"), ("localq.groups", "ResultSet.join_native"),
    ("localq.groups", "ResultSet._wait_all"), ("localq.groups", "ResultSet.iter_native"),
    ("localq.storage.bells", "PipeBell.sleep"), ("localq.storage.memory", "MemoryBell.sleep"),
})  # fmt: skip
#: Whose code does what its caller is at: the user's, or ours.
LIBRARIES = sys.stdlib_module_names | {"diskcache"}
#: Most instructions that a function may go on to come to where its own `try` holds.
STEPS = 50


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
        self._is_open = self._is_stepping = False

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
            self._stop_stepping()
            if callable(before):
                signal.signal(signal.SIGALRM, before)

    def _strike(self, number: int, frame: FrameType | None) -> None:
        if not self._is_open:
            return
        if is_ours(frame, SoftLimit.__call__.__code__):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        elif frame is not None and jumps_back(frame) and sys.gettrace() is None:
            self._step(frame)
        else:
            self._raise()

    def _raise(self) -> None:
        self._stop_stepping()
        self._is_open = False
        self._tell()
        raise SoftTimeLimitExceeded

    def _step(self, frame: FrameType) -> None:
        """Let a function that jumps to the head of a loop come to where its own `try` holds, and strike there.

        Python 3.11 and 3.12 look for the handler of what is raised at such a jump in front of the loop; and a task that
        only calls code of ours in a loop can be met nowhere else.
        """
        left = STEPS

        def look(at: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            left -= 1
            if event == "return":
                self._stop_stepping()
            elif event == "opcode" and self._is_open and (is_covered(at) or left <= 0):
                self._raise()
            return look

        self._is_stepping = True
        frame.f_trace_opcodes = True
        frame.f_trace = look
        sys.settrace(lambda *_: None)
        # It may wait for something on its way.
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)

    def _stop_stepping(self) -> None:
        if self._is_stepping:
            self._is_stepping = False
            sys.settrace(None)


def is_ours(frame: FrameType | None, outermost: CodeType) -> bool:
    """Whether code of localq's is at work that must not be interrupted: between this frame and the user's nearest.

    What of ours stands directly around the task's function (retries, checks of arguments) only calls it.
    """
    innermost, found, verdict = frame, False, None
    while frame is not None and frame.f_code is not outermost:
        module = str(frame.f_globals.get("__name__", ""))
        package = module.partition(".")[0]
        if package == "localq":
            found = found or (module, frame.f_code.co_qualname.partition(".<locals>")[0]) not in OPEN
        elif package not in LIBRARIES and verdict is None:
            verdict = found
        frame = frame.f_back
    if verdict is None:
        verdict = found or frame is innermost
    return frame is None or verdict


def jumps_back(frame: FrameType) -> bool:
    """Whether a function with a `try` was interrupted as it went back to the head of a loop."""
    code = frame.f_code
    return bool(code.co_exceptiontable) and "BACKWARD" in opcode.opname[code.co_code[frame.f_lasti]]


def is_covered(frame: FrameType) -> bool:
    """Whether a `try` or `with` of a function's own holds where it is."""
    return any(start <= frame.f_lasti < end for start, end in _covered(frame.f_code.co_exceptiontable))


def _covered(table: bytes) -> Iterator[tuple[int, int]]:
    """Read the (start, end) offsets in an exception table: of four numbers each, in units of two bytes."""
    numbers = _numbers(table)
    for start, length, _, _ in zip(numbers, numbers, numbers, numbers, strict=True):
        yield 2 * start, 2 * (start + length)


def _numbers(table: bytes) -> Iterator[int]:
    """Read numbers of six bits a byte, the first the highest; the seventh says that there are more."""
    number = 0
    for byte in table:
        number = number << 6 | byte & 63
        if not byte & 64:
            yield number
            number = 0
