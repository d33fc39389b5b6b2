"""How the tests of the contract get their storage, its owners and their clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from localq.storage.base import Owner, Storage
from localq.testing.clock import FakeClock


class Made:
    """A storage, made for one test; every class of the contract begins with it."""

    def make(self, directory: Path) -> Storage:
        """Return a new, empty storage, in a directory that is not there yet if it needs one.

        Called again with the same directory, a `shared` storage is the same one, opened once more.
        """
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> Iterator[FakeClock]:
        with FakeClock() as clock:
            yield clock

    @pytest.fixture
    def storage(self, tmp_path: Path, clock: FakeClock) -> Iterator[Storage]:
        storage = self.make(tmp_path / "store")
        yield storage
        storage.close()

    @pytest.fixture
    def owner(self, storage: Storage) -> Iterator[Owner]:
        owner = storage.enlist({"kind": "child"})
        yield owner
        owner.close()

    @pytest.fixture
    def other(self, storage: Storage) -> Iterator[Owner]:
        owner = storage.enlist({"kind": "child"})
        yield owner
        owner.close()

    @pytest.fixture
    def second(self, tmp_path: Path, storage: Storage) -> Iterator[Storage]:
        """The same store, opened once more."""
        if not storage.shared:
            pytest.skip("only one process has this store")
        second = self.make(tmp_path / "store")
        yield second
        second.close()
