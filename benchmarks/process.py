"""Process trees: start one, look at its memory and CPU, end it whole. Linux only; knows no queue.

Workers fork children, and some put them into groups or sessions of their own. So a tree is found through `/proc`, and
the runner makes itself the reaper of orphans (`adopt_orphans`): whatever is left over is a descendant of the runner.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent died."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start(argv: list[str], env: dict[str, str], log: Path, cwd: Path) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own (Ctrl-C reaches the runner only), its output in `log`."""
    with log.open("ab") as out:
        return subprocess.Popen(
            argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )


def tree(root: int) -> list[int]:
    """Return `root`, its living descendants, and what is left of the sessions they lead."""
    living = dict(_family())
    found = [root]
    for pid in found:
        found += [child for child, family in living.items() if pid in family and child not in found]
    return found


def _family() -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield every process that is no zombie, with its parent and its session."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                state, parent, _, session, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
                if state != "Z":
                    yield int(entry.name), (int(parent), int(session))


def stop(process: subprocess.Popen[bytes], patience_s: float = 5.0) -> None:
    """End the whole tree: TERM to its root, KILL to what is left."""
    pids = set(tree(process.pid))
    process.terminate()
    try:
        process.wait(patience_s)
        pids.discard(process.pid)
    except subprocess.TimeoutExpired:
        pids.update(tree(process.pid))
    _kill(pids)
    process.wait()


def kill_descendants() -> None:
    """Kill everything that this process started, directly or not, and reap it."""
    limit = time.monotonic() + 5
    while (pids := tree(os.getpid())[1:]) and time.monotonic() < limit:
        _kill(set(pids))
        time.sleep(0.02)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _kill(pids: set[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def pss_mb(pids: list[int]) -> float:
    """Return the proportional set size of all these processes together."""
    lines = (line for pid in pids for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def cpu_s(pids: list[int]) -> float:
    """Return the CPU time these processes have used, to the nanosecond (`stat` knows only 10 ms ticks)."""
    threads = (thread for pid in pids for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int((_read(thread) or "0").split()[0]) for thread in threads) / 1e9


def _read(path: Path) -> str:
    """Return the text, or nothing if the process has ended."""
    with suppress(OSError):
        return path.read_text()
    return ""
