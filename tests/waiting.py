"""Waiting for conditions instead of for time: no test depends on how fast the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

#: Seconds after which a condition counts as never coming true; far above what any machine needs.
LIMIT_S = 30.0


def wait_until(predicate: Callable[[], Any], timeout: float = LIMIT_S, what: str = "") -> Any:
    """Return the first true answer of `predicate`; fail if there is none within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or predicate}")
        time.sleep(0.005)
