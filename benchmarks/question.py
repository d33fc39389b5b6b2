"""What a question is: a module with a title, the metrics it answers with, and `measure`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from benchmarks.stage import Stage


@dataclass(frozen=True, slots=True)
class Metric:
    """How to print one figure and which end of it is good."""

    unit: str
    lower_is_better: bool = False


class Question(Protocol):
    """Implemented by modules. A metric that `measure` does not yield is one the peer has no feature for."""

    TITLE: str
    METRICS: dict[str, Metric]

    def measure(self, stage: Stage) -> Iterator[tuple[str, float]]:
        """Yield (metric, value) one by one, so that a failure keeps what was measured before it."""


def rate() -> Metric:
    return Metric("tasks/s")


def seconds() -> Metric:
    return Metric("s", lower_is_better=True)


def milliseconds() -> Metric:
    return Metric("ms", lower_is_better=True)


def megabytes() -> Metric:
    return Metric("MB", lower_is_better=True)
