"""One heap of things to do at their time.

`tick` does what is due and returns the seconds to the next: a loop waits exactly that long, and nothing
polls. What is planned stays planned, whatever an act of it raises. Belongs to one thread; knows no store.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable
from itertools import count

from localq import clock
from localq.exceptions import LocalqError

logger = logging.getLogger("localq.worker.timer")

#: What `tick` answers when nothing is planned, in seconds.
IDLE_S = 3600.0
#: Places of cancelled entries that the heap may keep beside as many as are planned.
SPARE = 64


class Entry:
    """Something to do at a time; `cancel` makes it not happen (again)."""

    __slots__ = ("_timer", "act", "every_s", "number")

    def __init__(self, timer: Timer, act: Callable[[], object], every_s: float | None) -> None:
        self._timer, self.act, self.every_s = timer, act, every_s
        self.number = -1

    def cancel(self) -> None:
        """Make it not happen; of what has happened, nothing changes."""
        self.every_s = None
        self._timer.drop(self.number)


class Timer:
    """Things to do, by the clock that no change of the wall clock moves."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        #: What of the heap is still to happen, by its number.
        self._planned: dict[int, Entry] = {}
        self._numbers = count()

    def after(self, delay_s: float, act: Callable[[], object]) -> Entry:
        """Do something once, `delay_s` from now; at the next tick if that is past."""
        return self._enter(Entry(self, act, None), delay_s)

    def every(self, period_s: float, act: Callable[[], object]) -> Entry:
        """Do something again and again, first `period_s` from now."""
        return self._enter(Entry(self, act, period_s), period_s)

    def tick(self) -> float:
        """Do everything that is due; return the seconds to the next thing.

        What is planned meanwhile has to wait for the next tick, even if it is due at once: an act that always has
        more to do must not keep the loop from its bell.

        Raises:
            LocalqError: an act met one, which ends a worker. What else an act raises is logged, and costs nobody.
        """
        now, end = clock.monotonic(), next(self._numbers)
        while self._heap:
            at, number = self._heap[0]
            entry = self._planned.get(number)
            if entry is not None and (at > now or number > end):
                return max(0.0, at - clock.monotonic())
            heapq.heappop(self._heap)
            if entry is not None:
                del self._planned[number]
                self._do(entry)
        return IDLE_S

    def drop(self, number: int) -> None:
        """Forget what is planned under a number; the heap is cleared once most of it is forgotten."""
        if self._planned.pop(number, None) is not None and len(self._heap) > 2 * len(self._planned) + SPARE:
            self._heap = [place for place in self._heap if place[1] in self._planned]
            heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._planned)

    def _do(self, entry: Entry) -> None:
        try:
            entry.act()
        except LocalqError:
            raise
        except Exception:
            logger.exception("%s failed; everything else goes on", getattr(entry.act, "__qualname__", entry.act))
        finally:
            if entry.every_s is not None:
                # From now on, not from then on: what was missed is not made up for.
                self._enter(entry, entry.every_s)

    def _enter(self, entry: Entry, delay_s: float) -> Entry:
        entry.number = next(self._numbers)
        self._planned[entry.number] = entry
        # Never before now: what is planned during a tick comes behind what was planned before it.
        heapq.heappush(self._heap, (clock.monotonic() + max(0.0, delay_s), entry.number))
        return entry
