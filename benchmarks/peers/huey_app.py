"""huey with SQLite or Redis (BENCH_HUEY), through its own words."""

from __future__ import annotations

import os
from typing import Any

from huey import RedisHuey, SqliteHuey
from huey.api import chord, group

from benchmarks.counter import count

if os.environ["BENCH_HUEY"] == "redis":
    huey = RedisHuey("bench", url=os.environ["BENCH_REDIS"])
else:
    huey = SqliteHuey("bench", filename=f"{os.environ['BENCH_DIR']}/huey.db")


@huey.task()
def add(x: int, y: int) -> int:
    count()
    return x + y


@huey.task()
def add_ignored(x: int, y: int) -> None:
    """Huey has no ignore_result; a task that returns None stores nothing."""
    count()


@huey.task()
def xsum(numbers: list[int]) -> int:
    return sum(numbers)


class HueyWords:
    """A `Tool` made of huey."""

    def delay(self, *, ignored: bool) -> Any:
        return (add_ignored if ignored else add)(1, 2)

    def delay_later(self, seconds: int) -> Any:
        return add.schedule(args=(1, 2), delay=seconds)

    def group(self, size: int) -> Any:
        return huey.enqueue(group([add.s(i, i) for i in range(size)]))

    def chord(self, size: int) -> Any:
        return huey.enqueue(chord([add.s(i, i) for i in range(size)], xsum.s()))

    def get(self, handle: Any, timeout: float) -> Any:
        return handle.get(blocking=True, timeout=timeout, backoff=1, max_delay=0.005)


tool = HueyWords()
