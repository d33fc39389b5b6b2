"""The contract: who holds claims, and what is left when they die."""

from __future__ import annotations

import pytest

from localq.states import READY
from localq.storage.base import Doing, Entry, Owner, Started, Storage
from localq.testing.contract.made import Made
from localq.testing.contract.words import (
    PATIENCE_S,
    chain,
    failure,
    given_back,
    ids,
    in_child,
    message,
    outcome,
    places,
    record,
    take,
    take_one,
    want,
)


class OwnerContract(Made):
    """`enlist`, `owners`, `estate`, `retire`, `maintain`, `close`, and other processes."""

    # -- owners --------------------------------------------------------------------------------------

    def test_an_owner_is_known_with_what_it_told(self, storage: Storage) -> None:
        owner = storage.enlist({"node": "w@box", "slots": 2}, journal=False)
        (found,) = storage.owners()
        assert (found.name, found.alive) == (owner.name, True)
        assert found.about.items() >= {"node": "w@box", "slots": 2}.items()
        owner.close()

    def test_no_two_owners_have_one_name(self, storage: Storage, owner: Owner, other: Owner) -> None:
        assert {info.name for info in storage.owners()} == {owner.name, other.name}

    def test_an_owner_that_gave_up_is_dead_and_leaves_its_claims(self, storage: Storage, other: Owner) -> None:
        owner = storage.enlist({})
        storage.put([message("a"), message("b", priority=0), message("c")])
        claims = take(storage, owner, 2)
        owner.close()
        assert {info.name: info.alive for info in storage.owners()} == {owner.name: False, other.name: True}
        assert storage.estate(owner.name).claims == claims
        assert ids(claims) == ["b", "a"]
        assert ids(take(storage, other)) == ["c"]
        storage.settle([given_back(claim, charged=1) for claim in claims])
        assert storage.estate(owner.name).claims == []
        assert ids(take(storage, other)) == ["b", "a"]

    def test_a_retired_owner_is_not_known_any_more(self, storage: Storage, other: Owner) -> None:
        owner = storage.enlist({})
        owner.close()
        storage.retire(owner.name)
        assert [info.name for info in storage.owners()] == [other.name]
        estate = storage.estate(owner.name)
        assert (estate.claims, estate.started, list(estate.ended)) == ([], (), [])

    def test_an_estate_tells_started_from_reserved(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b")])
        a, b = take(storage, owner)
        assert storage.estate(owner.name)[:2] == ([a, b], ())
        for mode in (2, 2**64 - 1):
            owner.begin(a, mode)
            estate = storage.estate(owner.name)
            assert (estate.claims, estate.started) == ([a, b], (Started(a.seq, a.token, mode),))
            assert list(estate.ended) == []

    def test_an_estate_has_the_outcomes_that_were_not_settled(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b"), message("c")])
        a, b, c = take(storage, owner)
        full = failure(a, again=message("a", retries=1), ended=False, sends=(message("x", body=b"\xff"),))
        for claim, noted in ((a, full), (b, outcome(b, result=b"\x00\xff"))):
            owner.begin(claim, mode=1)
            assert owner.end(noted)
        owner.begin(c, mode=3)
        estate = storage.estate(owner.name)
        assert (estate.started, estate.ended) == (
            (Started(c.seq, c.token, 3),),
            [full, outcome(b, result=b"\x00\xff")],
        )

    def test_between_tasks_nothing_is_started(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        claim = take_one(storage, owner)
        owner.begin(claim, mode=1)
        assert owner.end(outcome(claim))
        assert storage.estate(owner.name).started == ()
        storage.settle([outcome(claim)])
        owner.settled()
        assert (storage.estate(owner.name).started, storage.estate(owner.name).ended) == ((), [])

    def test_an_owner_without_a_journal_says_that_it_noted_nothing(self, storage: Storage) -> None:
        owner = storage.enlist({}, journal=False)
        storage.put([message("a")])
        claim = take_one(storage, owner)
        owner.begin(claim, mode=1)
        assert not owner.end(outcome(claim))
        owner.settled()
        assert (storage.estate(owner.name).started, list(storage.estate(owner.name).ended)) == ((), [])
        owner.close()

    def test_what_runs_at_the_same_time_is_noted_each_in_its_place(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b"), message("c")])
        a, b, c = take(storage, owner)
        owner.begin(a, mode=1, place=1)
        owner.begin(b, mode=2, deadline=7.5, place=2)
        owner.begin(c, mode=3)
        assert set(storage.estate(owner.name).started) == {
            Started(a.seq, a.token, 1, place=1), Started(b.seq, b.token, 2, 7.5, place=2), Started(c.seq, c.token, 3),
        }  # fmt: skip
        owner.end(outcome(b))
        assert {each.seq for each in storage.estate(owner.name).started} == {a.seq, c.seq}
        storage.settle([outcome(b), outcome(c)])
        owner.settled()
        owner.free(2)
        assert storage.estate(owner.name).started == (Started(a.seq, a.token, 1, place=1),)

    # -- recall --------------------------------------------------------------------------------------

    def test_an_owner_says_what_it_is_at(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b")])
        a, b = take(storage, owner)

        def doing() -> Doing:
            (found,) = (info.doing for info in storage.owners() if info.name == owner.name)
            assert found is not None
            return found

        owner.turn()
        before = doing()
        assert not before.is_behind
        owner.begin(a, mode=0, left=1)
        assert (doing().seq, doing().token, doing().left, doing().is_behind) == (a.seq, a.token, 1, True)
        owner.end(outcome(a))
        owner.begin(b, mode=0, left=0)
        assert (doing().seq, doing().left, doing().is_behind) == (b.seq, 0, True)
        owner.turn()
        owner.settled()
        assert (doing().batch, doing().seq, doing().is_behind) == (before.batch + 1, 0, False)

    def test_of_a_recalled_batch_nothing_more_begins(self, storage: Storage, owner: Owner, other: Owner) -> None:
        storage.put([message("a"), message("b"), message("c")])
        owner.turn()
        a, b, c = take(storage, owner)
        assert owner.begin(a, mode=0, left=2)
        assert owner.end(outcome(a))
        assert owner.begin(b, mode=0, left=1)
        (info,) = (info for info in storage.owners() if info.name == owner.name)
        assert info.doing is not None
        estate = storage.estate(owner.name, recalled=info.doing.batch)
        assert (estate.batch, estate.started, list(estate.ended)) == (
            info.doing.batch, (Started(b.seq, b.token),), [outcome(a)],
        )  # fmt: skip
        assert not owner.begin(c, mode=0)
        assert owner.turn()
        assert not owner.turn()
        assert owner.begin(c, mode=0)

    def test_a_recall_of_an_earlier_batch_changes_nothing(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b")])
        owner.turn()
        (info,) = (info for info in storage.owners() if info.name == owner.name)
        assert info.doing is not None
        assert not owner.turn()
        a, _ = take(storage, owner)
        assert storage.estate(owner.name, recalled=info.doing.batch).batch != info.doing.batch
        assert owner.begin(a, mode=0)
        assert not owner.turn()

    def test_an_owner_of_which_nothing_is_known_cannot_be_recalled(self, storage: Storage) -> None:
        assert storage.estate("nobody", recalled=1).claims == []

    # -- processes -----------------------------------------------------------------------------------

    def test_a_storage_says_what_it_is(self, storage: Storage) -> None:
        assert ":" in storage.url
        assert storage.shared in (True, False)

    def test_maintenance_changes_nothing_that_can_be_seen(self, storage: Storage, owner: Owner) -> None:
        storage.put(chain("a", "b"))
        storage.write("k", "v", None)
        before = (storage.records(["a", "b"]), storage.entries(""), storage.counts())
        storage.maintain()
        assert (storage.records(["a", "b"]), storage.entries(""), storage.counts()) == before

    def test_a_closed_storage_opens_again_when_it_is_used(self, storage: Storage) -> None:
        storage.put([message("a")])
        storage.write("k", "v", None)
        storage.close()
        storage.close()
        assert places(storage, "a") == [READY]
        assert storage.entries("") == [Entry("k", "v", None)]
        owner = storage.enlist({})
        assert ids(take(storage, owner)) == ["a"]
        owner.close()

    def test_two_who_open_a_store_see_the_same(self, storage: Storage, second: Storage, owner: Owner) -> None:
        bell = storage.bell(["celery"])
        bell.raise_()
        second.put([message("a")])
        assert bell.sleep(PATIENCE_S)
        bell.close()
        assert second.settle((), want(owner)).claims == storage.estate(owner.name).claims
        assert [info.alive for info in second.owners()] == [True]
        assert storage.write("k", "v", None)
        assert not second.write("k", "v", None)

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_process_that_dies_leaves_its_work_and_its_notes(self, storage: Storage, owner: Owner) -> None:
        if not storage.shared:
            pytest.skip("only one process has this store")
        storage.put([message("a"), message("b"), message("c")])
        in_child(lambda: die_at_work(storage))
        assert {info.name: info.alive for info in storage.owners()}.pop(owner.name)
        (dead,) = (info for info in storage.owners() if info.name != owner.name)
        assert not dead.alive
        assert dead.about["kind"] == "mortal"
        estate = storage.estate(dead.name)
        a, b = estate.claims
        assert (ids([a, b]), estate.started) == (["a", "b"], (Started(b.seq, b.token, 2),))
        assert list(estate.ended) == [outcome(a, result=b"3")]
        storage.settle([*estate.ended, given_back(b, charged=1)])
        storage.retire(dead.name)
        assert ids(take(storage, owner)) == ["b", "c"]
        assert record(storage, "a").result == b"3"


def die_at_work(storage: Storage) -> None:
    """Claim two messages, end one of them without settling, and begin the other."""
    owner = storage.enlist({"kind": "mortal"})
    a, b = take(storage, owner, 2)
    owner.begin(a, mode=2)
    owner.end(outcome(a, result=b"3"))
    owner.begin(b, mode=2)
