"""The contract: what can be asked of a storage, and the keys that it keeps."""

from __future__ import annotations

from localq.states import ENDED, HELD, READY, WAITING
from localq.storage.base import Entry, Owner, Storage
from localq.testing.clock import FakeClock
from localq.testing.contract.made import Made
from localq.testing.contract.words import chain, in_threads, message, outcome, take_one


class FactContract(Made):
    """`records`, `counts`, `entries` and `write`."""

    # -- records, counts -----------------------------------------------------------------------------

    def test_unknown_ids_have_no_record(self, storage: Storage) -> None:
        storage.put([message("a")])
        assert list(storage.records(["nobody", "a"])) == ["a"]
        assert storage.records() == storage.records(group_id="nobody") == {}

    def test_the_members_of_a_group_come_in_the_order_of_their_positions(self, storage: Storage) -> None:
        storage.put([message(id, group_id="g", position=position) for id, position in (("c", 2), ("a", 0), ("b", 10))])
        storage.put([message("d", group_id="g/2", position=0), message("e")])
        assert list(storage.records(group_id="g")) == ["a", "c", "b"]
        assert [found.position for found in storage.records(group_id="g").values()] == [0, 2, 10]

    def test_every_place_of_every_queue_is_counted(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        storage.put([message(queue="a b"), message(queue="a b"), message(queue="a b", visible_at=clock.now() + 1)])
        storage.put(chain("x", "y"))
        assert sorted(storage.counts()) == [
            ("a b", READY, 2), ("a b", WAITING, 1), ("celery", HELD, 1), ("celery", READY, 1),
        ]  # fmt: skip
        storage.settle([outcome(take_one(storage, owner))])
        assert sorted(storage.counts())[2:] == [("celery", ENDED, 1), ("celery", READY, 1)]

    # -- entries -------------------------------------------------------------------------------------

    def test_an_entry_is_written_if_it_is_what_the_writer_saw(self, storage: Storage) -> None:
        assert not storage.write("k", "1", expected="0")
        assert storage.write("k", "1", expected=None)
        assert not storage.write("k", "2", expected=None)
        assert not storage.write("k", "2", expected="0")
        assert storage.write("k", "", expected="1")
        assert storage.entries("k") == [Entry("k", "", None)]
        assert not storage.write("k", None, expected="1")
        assert storage.write("k", None, expected="")
        assert storage.entries("") == []
        assert storage.write("k", None, expected=None)

    def test_entries_are_found_by_their_prefix(self, storage: Storage) -> None:
        for key in ("b", "a:2", "a:1", "a%", "a_x", "ü"):
            storage.write(key, f"<{key}>", None)
        assert [entry.key for entry in sorted(storage.entries("a:"))] == ["a:1", "a:2"]
        assert storage.entries("a%") == [Entry("a%", "<a%>", None)]
        assert storage.entries("ü") == [Entry("ü", "<ü>", None)]
        assert len(storage.entries("")) == 6

    def test_an_entry_is_gone_when_it_has_expired(self, storage: Storage, clock: FakeClock) -> None:
        ends_at = clock.now() + 10
        assert storage.write("k", "1", None, expires_at=ends_at)
        clock.advance(9.5)
        assert storage.entries("k") == [Entry("k", "1", ends_at)]
        assert not storage.write("k", "2", None)
        clock.advance(0.5)
        assert storage.entries("k") == []
        assert not storage.write("k", "2", expected="1")
        storage.maintain()
        assert storage.write("k", "2", expected=None)
        clock.advance(1e9)
        assert storage.entries("k") == [Entry("k", "2", None)]

    def test_of_many_who_write_one_key_one_succeeds(self, storage: Storage) -> None:
        won: list[bool] = []
        in_threads(*[lambda: won.append(storage.write("leader", "me", None))] * 4)
        assert sorted(won) == [False, False, False, True]
