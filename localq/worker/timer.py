"""One heap of things to do at their time.

`tick` does what is due and returns the seconds to the next: a loop waits exactly that long, and nothing
polls. Belongs to one thread; knows no store.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from localq import clock

#: What `tick` answers when nothing is planned, in seconds.
IDLE_S = 3600.0


class Entry:
    """Something to do at a time; `cancel` makes it not happen."""

    __slots__ = ("act", "at", "every_s")

    def __init__(self, at: float, act: Callable[[], object], every_s: float | None) -> None:
        self.at, self.act, self.every_s = at, act, every_s

    def cancel(self) -> None:
        self.act = _nothing


class Timer:
    """Things to do, by the clock that no change of the wall clock moves."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Entry]] = []
        self._order = count()

    def after(self, delay_s: float, act: Callable[[], object]) -> Entry:
        """Do something once, `delay_s` from now."""
        return self._enter(Entry(clock.monotonic() + delay_s, act, None))

    def every(self, period_s: float, act: Callable[[], object]) -> Entry:
        """Do something again and again, first `period_s` from now."""
        return self._enter(Entry(clock.monotonic() + period_s, act, period_s))

    def tick(self) -> float:
        """Do everything that is due; return the seconds to the next thing."""
        while self._heap:
            at, _, entry = self._heap[0]
            now = clock.monotonic()
            if at > now:
                return at - now
            heapq.heappop(self._heap)
            entry.act()
            if entry.every_s is not None and entry.act is not _nothing:
                # From now on, not from then on: what was missed is not made up for.
                entry.at = clock.monotonic() + entry.every_s
                self._enter(entry)
        return IDLE_S

    def __len__(self) -> int:
        return len(self._heap)

    def _enter(self, entry: Entry) -> Entry:
        heapq.heappush(self._heap, (entry.at, next(self._order), entry))
        return entry


def _nothing() -> None:
    """What a cancelled entry does."""
