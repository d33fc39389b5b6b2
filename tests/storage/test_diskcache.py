"""The contract, on diskcache, and what keeps diskcache from losing or running anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from localq.storage.base import Storage

pytest.importorskip("diskcache")

from localq.storage.diskcache import DiskcacheStorage  # noqa: E402  # only where diskcache is installed
from localq.testing.contract import StorageContract  # noqa: E402


class TestDiskcache(StorageContract):
    def make(self, directory: Path) -> Storage:
        return DiskcacheStorage(directory)
