"""A clock that stands still until it is told to go on. Must not be used outside of tests."""

from __future__ import annotations

from types import TracebackType
from typing import final

from localq import clock


@final
class FakeClock:
    """Stands in for the system's clock, for the whole library: `with FakeClock() as clock: ...`."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now, self._monotonic = now, 1000.0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def sleep(self, seconds: float) -> None:
        """Return at once, so many seconds later."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let so much time go by."""
        self._now += seconds
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward, or back; no time goes by."""
        self._now += seconds

    def __enter__(self) -> FakeClock:
        clock.install(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        clock.restore()
