"""The tool for peers that speak Celery's words; they differ in their app object alone. Imports no peer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.counter import count


class CeleryWords:
    """A `Tool` made of an app of the Celery kind and its canvas.

    Args:
        app: Where the tasks are registered.
        group: The peer's `group`.
        chord: The peer's `chord`.
        get_options: Further arguments of `get()`.
    """

    def __init__(
        self,
        app: Any,
        group: Callable[..., Any],
        chord: Callable[..., Any],
        get_options: dict[str, float] | None = None,
    ) -> None:
        @app.task(name="bench.add")
        def add(x: int, y: int) -> int:
            count()
            return x + y

        @app.task(name="bench.add_ignored", ignore_result=True)
        def add_ignored(x: int, y: int) -> int:
            count()
            return x + y

        @app.task(name="bench.xsum")
        def xsum(numbers: list[int]) -> int:
            return sum(numbers)

        self._add, self._add_ignored, self._xsum = add, add_ignored, xsum
        self._group, self._chord = group, chord
        self._get_options = get_options or {}

    def delay(self, *, ignored: bool) -> Any:
        return (self._add_ignored if ignored else self._add).delay(1, 2)

    def delay_later(self, seconds: int) -> Any:
        return self._add.apply_async((1, 2), countdown=seconds)

    def group(self, size: int) -> Any:
        return self._group(self._add.s(i, i) for i in range(size)).apply_async()

    def chord(self, size: int) -> Any:
        return self._chord([self._add.s(i, i) for i in range(size)])(self._xsum.s())

    def get(self, handle: Any, timeout: float) -> Any:
        return handle.get(timeout=timeout, **self._get_options)
