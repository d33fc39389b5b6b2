"""The contract, on memory, and what is memory's own."""

from __future__ import annotations

from pathlib import Path

from localq.storage.base import Storage
from localq.storage.memory import MemoryStorage, open_url
from localq.testing.contract import StorageContract
from localq.testing.contract.words import ids, message, outcome, take


class TestMemory(StorageContract):
    def make(self, directory: Path) -> Storage:
        return MemoryStorage(directory.name)


def test_a_name_is_one_store_while_somebody_has_it_and_no_name_is_a_new_one() -> None:
    here = open_url("here", "standard")
    assert open_url("here", "full") is here
    assert open_url("there", "standard") is not here
    assert open_url("", "standard") is not open_url("", "standard")
    assert here.url == "memory:here"


def test_a_backlog_that_comes_and_goes_leaves_nothing_behind() -> None:
    storage = MemoryStorage()
    owner = storage.enlist({})
    for _ in range(5):
        storage.put([message() for _ in range(700)])
        while claims := take(storage, owner, 100):
            storage.settle([outcome(claim) for claim in claims])
            storage.forget(ids(claims))
    assert storage.counts() == []
