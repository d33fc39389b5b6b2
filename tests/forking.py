"""Other processes for a test: whatever happens in them, they never go on as a second pytest."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable


def forked(act: Callable[[], object]) -> int:
    """Run `act` in a forked process; returns its pid. It exits 0, or 70 with a traceback if `act` raises."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        act()
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a forked process and return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(pid: int) -> None:
    """Kill a forked process of the test's own and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


class Line:
    """A pipe to the other process: `say` in one, `hear` in the other."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def say(self, text: str = "!") -> None:
        os.write(self._write, text.encode())

    def hear(self) -> str:
        return os.read(self._read, 65536).decode()
