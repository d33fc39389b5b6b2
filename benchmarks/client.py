"""A client process: plays the user of one peer, and takes the time inside the process that would wait.

`python -m benchmarks.client APP` reads one order a line from stdin, `[verb, {arguments}]`, and answers each with one
line on its first stdout, `[floats]` or `{"error": text}`. The parent's half is `Client`. Peers differ only in their
`Tool` (see `peers/`); the loops and the clock reads stand here, once.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

#: No wait inside a client is longer; the parent's own limit is the shorter one.
GET_LIMIT_S = 120.0


class PeerFailed(Exception):
    """The peer could not be started, gave a wrong answer or none in time."""


def last_words(log: Path) -> str:
    """Return the last line of a log, which is where Python names the error."""
    with suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"
    return "no log"


class Tool(Protocol):
    """What a peer's app module offers as `tool`. A handle is whatever the peer returns for a sent task."""

    def delay(self, *, ignored: bool) -> Any:
        """Send `add(1, 2)`, as the peer's user would write it."""

    def delay_later(self, seconds: int) -> Any:
        """Send `add(1, 2)`, due in so many seconds."""

    def group(self, size: int) -> Any:
        """Send a group of `add(i, i)`."""

    def chord(self, size: int) -> Any:
        """Send a group of `add(i, i)` whose results go to `xsum`; the handle is xsum's."""

    def get(self, handle: Any, timeout: float) -> Any:
        """Wait for the result, or the list of results of a group."""


# --- the client process ---------------------------------------------------------------------------------------------


def send(tool: Tool, n: int, ignored: bool = False) -> list[float]:
    start = time.monotonic()
    for _ in range(n):
        tool.delay(ignored=ignored)
    return [start, time.monotonic()]


def send_later(tool: Tool, n: int, seconds: int) -> list[float]:
    start = time.monotonic()
    for _ in range(n):
        tool.delay_later(seconds)
    return [start, time.monotonic()]


def round_trip(tool: Tool, n: int) -> list[float]:
    """Return `n` durations, with pauses of 5 to 15 ms between, which let the worker fall idle."""
    pauses = random.Random(0)
    samples = []
    for _ in range(n):
        start = time.monotonic()
        result = tool.get(tool.delay(ignored=False), GET_LIMIT_S)
        samples.append(time.monotonic() - start)
        _check(result, 3)
        time.sleep(pauses.uniform(0.005, 0.015))
    return samples


def group(tool: Tool, n: int) -> list[float]:
    start = time.monotonic()
    handle = tool.group(n)
    sent = time.monotonic()
    results = tool.get(handle, GET_LIMIT_S)
    end = time.monotonic()
    _check(list(results), [2 * i for i in range(n)])
    return [sent - start, end - start]


def chord(tool: Tool, n: int) -> list[float]:
    start = time.monotonic()
    result = tool.get(tool.chord(n), GET_LIMIT_S)
    end = time.monotonic()
    _check(result, n * (n - 1))
    return [end - start]


def hold(tool: Any, seconds: float) -> list[float]:
    tool.hold(seconds)
    return []


def send_around_hold(tool: Any, n: int) -> list[float]:
    """Send enough short tasks for large batches, a long one of a second, and `n` short ones."""
    global around
    warm_up = [tool.delay(ignored=False) for _ in range(400)]
    around = (warm_up[-1], tool.hold(1.0), [tool.delay(ignored=False) for _ in range(n)])
    return []


def wait_around_hold(tool: Any) -> list[float]:
    """Return how long after the start of the long task those behind it were done, and the one before it was known."""
    before, long, behind = around
    tool.get(before, GET_LIMIT_S)
    before_at = time.monotonic()
    for handle in behind:
        tool.get(handle, GET_LIMIT_S)
    behind_at = time.monotonic()
    started = tool.get(long, GET_LIMIT_S)
    return [behind_at - started, max(0.0, before_at - started)]


def _check(result: object, expected: object) -> None:
    if result != expected:
        raise PeerFailed(f"wrong result: {str(result)[:80]}, expected {str(expected)[:80]}")


#: What `send_around_hold` sent: the task before, the long one, those behind.
around: Any = None

VERBS: dict[str, Callable[..., list[float]]] = {
    verb.__name__: verb
    for verb in (send, send_later, round_trip, group, chord, hold, send_around_hold, wait_around_hold)
}


def main(app: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a peer prints goes to the log, not between the answers
    tool: Tool = importlib.import_module(app).tool
    for line in sys.stdin:
        verb, arguments = json.loads(line)
        try:
            answer: object = VERBS[verb](tool, **arguments)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


# --- its handle in the runner ---------------------------------------------------------------------------------------


class Client:
    """Gives orders to a client process; every wait has a limit, and ends early when `check` raises."""

    def __init__(self, app: str, env: dict[str, str], log: Path, cwd: Path, check: Callable[[], None]) -> None:
        self._check = check
        self._log = log
        with log.open("ab") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.client", app],
                env=env, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, start_new_session=True,
            )  # fmt: skip

    def ask(self, verb: str, limit_s: float = GET_LIMIT_S, **arguments: int) -> list[float]:
        """Give an order and wait for its answer."""
        self.tell(verb, **arguments)
        return self.hear(limit_s)

    def tell(self, verb: str, **arguments: int) -> None:
        assert self.process.stdin
        with suppress(BrokenPipeError):  # `hear` finds the reason
            self.process.stdin.write(json.dumps([verb, arguments]).encode() + b"\n")
            self.process.stdin.flush()

    def end(self) -> None:
        """Let the process end by itself, as a user's does, so that its last writes are out."""
        assert self.process.stdin
        self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)

    def hear(self, limit_s: float = GET_LIMIT_S) -> list[float]:
        stdout = self.process.stdout
        assert stdout
        limit = time.monotonic() + limit_s
        while not select.select([stdout], [], [], 0.2)[0]:
            self._check()
            if time.monotonic() > limit:
                raise PeerFailed(f"no answer within {limit_s:.0f} s")
        line = stdout.readline()
        if not line:
            raise PeerFailed(f"the client process ended: {last_words(self._log)}")
        answer: list[float] | dict[str, str] = json.loads(line)
        if isinstance(answer, dict):
            raise PeerFailed(answer["error"])
        return answer


if __name__ == "__main__":
    main(sys.argv[1])
