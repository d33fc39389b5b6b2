"""Forgets results that had their time, in any worker: no beat, no long lock, no moment of much work.

Every PAUSE_S a walk over what is old enough begins; each of its steps is one short transaction, and a steward spends
at most BUDGET_S of a round on them, so that its other services go on. A walk begins at the oldest message and ends at
the first that is too young, so what is younger costs nothing. Two workers that walk at once do no harm.
"""

from __future__ import annotations

from typing import Any

from localq import clock
from localq.worker.timer import Timer

#: Seconds between the end of a walk and the next one, and between two parts of one.
PAUSE_S, ROUND_S = 5.0, 1.0
#: Seconds that a part of a walk may take: at most a twentieth of a steward's time.
BUDGET_S = 0.05


class Expiry:
    """Drops what the settings result_expires and result_failure_expires say.

    Args:
        backend: the app's.
        act: does something that a full disk or a shut gate may prevent, and says whether it was done.
    """

    def __init__(self, backend: Any, timer: Timer, act: Any) -> None:
        self._backend, self._timer, self._act = backend, timer, act
        self._after = 0
        self._entry: Any = None

    def start(self) -> None:
        self._plan(ROUND_S)

    def rung(self) -> None:
        return

    def look(self, again_in_s: float | None) -> bool:
        return False

    def stop(self) -> None:
        if self._entry is not None:
            self._entry.cancel()

    def _plan(self, in_s: float) -> None:
        self._entry = self._timer.after(in_s, self._walk)

    def _walk(self) -> None:
        """Go on with the walk, for as long as there is something to drop and time for it."""
        # Planned before it is tried: whatever becomes of this, it is tried again.
        self._plan(ROUND_S)
        self._act(self._steps)
        if not self._after:
            self.stop()
            self._plan(PAUSE_S)

    def _steps(self) -> None:
        until = clock.monotonic() + BUDGET_S
        while True:
            number, self._after = self._backend.forget_old(self._after)
            if not (self._after and number and clock.monotonic() < until):
                return
