"""The real `localq` command, as a process of its own, in a directory of the test's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from waiting import LIMIT_S, wait_until


def environment(**more: str) -> dict[str, str]:
    """This process's environment without a word about localq, and with a little of the test's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOCALQ", "CELERY", "XDG_"))}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error", **more}


def localq(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "localq", *words], cwd=cwd, env=environment(**variables), capture_output=True, text=True,
        timeout=LIMIT_S,
    )  # fmt: skip


def python(*words: str, cwd: Path, **variables: str) -> str:
    """Run a script of the user's to its end; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Running:
    """A worker that runs until the test, or a signal, ends it."""

    def __init__(self, words: tuple[str, ...], cwd: Path, log: Path, variables: dict[str, str]) -> None:
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "localq", *words], cwd=cwd, env=environment(**variables), stdout=file,
                stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def text(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def saw(self, words: str, times: int = 1) -> None:
        """Wait until these words are in the log."""
        wait_until(
            lambda: self.text.count(words) >= times or (self.process.poll() is not None and "it ended"),
            what=f"{words!r} in the log:\n{self.text}",
        )
        assert self.text.count(words) >= times, f"{words!r} is not in the log:\n{self.text}"

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def ended(self) -> int:
        """Wait for the end; returns the exit code."""
        return self.process.wait(LIMIT_S)

    def children(self) -> list[int]:
        return children_of(self.pid)


def children_of(pid: int) -> list[int]:
    """The live child processes of a process, oldest first."""
    try:
        return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except (FileNotFoundError, ProcessLookupError):
        return []


def signal_all(pid: int, number: int) -> None:
    """Send a signal to a worker and to its children, which have process groups of their own."""
    for each in (*children_of(pid), pid):
        try:
            os.kill(each, number)
        except ProcessLookupError:
            pass  # it died with one that was signalled before


def is_gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextmanager
def worker(*words: str, cwd: Path, ready: bool = True, **variables: str) -> Iterator[Running]:
    """Run `localq <words> worker`-like commands; whatever is left of it is killed at the end of the block."""
    log = cwd / f"worker-{len(list(cwd.glob('worker-*.log')))}.log"
    running = Running(words, cwd, log, variables)
    try:
        if ready:
            running.saw(" ready.")
        yield running
    finally:
        if running.process.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.process.wait(LIMIT_S)
