"""One call's way through the house: from floor to floor, never back up.

The map that the docstrings of `app`, `worker`, `storage.base` and `states` draw, walked with a profiler.
"""

from __future__ import annotations

import sys
from pathlib import Path

from localq import LocalQ
from localq.testing.worker import start_worker

import localq

from tests.test_floors import FLOOR  # the floors of DESIGN.md 7, one list for all tests

PACKAGE = Path(localq.__file__).parent


def floor_of(path: str) -> int:
    return FLOOR[Path(path).relative_to(PACKAGE).with_suffix("").parts[0]]
