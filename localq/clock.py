"""The one place where localq asks what time it is.

Call through the module (`clock.now()`), never `from clock import now`: a fake clock replaces the
module's attributes, so every time decision of the library obeys it. Must not be used to decide
whether a process is alive; that is a lock's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

#: Wall time, seconds since 1970. For what users see and say: ETA, expires, date_done.
now: Callable[[], float] = time.time
#: Seconds that no change of the wall clock moves. For waits and durations inside one process.
monotonic: Callable[[], float] = time.monotonic
#: Wait so many seconds. For pauses that nothing need end early.
sleep: Callable[[float], None] = time.sleep


class Clock(Protocol):
    """What can stand in for the system's clock."""

    def now(self) -> float: ...

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


def install(clock: Clock) -> None:
    """Make the whole library read `clock` until `restore` is called."""
    global now, monotonic, sleep
    now, monotonic, sleep = clock.now, clock.monotonic, clock.sleep


def restore() -> None:
    """Go back to the system's clock."""
    global now, monotonic, sleep
    now, monotonic, sleep = time.time, time.monotonic, time.sleep
