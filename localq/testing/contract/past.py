"""The contract: the states before an end are told, in order, and what had its time is forgotten."""

from __future__ import annotations

from localq.message import LEADS_BY_ID, Outcome
from localq.serialization import checksum
from localq.states import ENDED, PENDING, RETRY
from localq.storage.base import STEP, Forgotten, Old, Owner, Storage
from localq.storage.news import KEPT, NEWS, TRACEBACK_LIMIT, News, news_of
from localq.testing.clock import FakeClock
from localq.testing.contract.made import Made
from localq.testing.contract.words import (
    PATIENCE_S,
    again,
    by_hand,
    chain,
    chord,
    failure,
    given_back,
    ids,
    message,
    outcome,
    take,
    take_one,
)


def said(id: str, state: str, result: bytes | None = None) -> Outcome:
    """A state that is no end, said by whoever knows the task's id."""
    return Outcome(0, 0, id, state, ended=False, result=result)


def told(storage: Storage, id: str) -> list[News]:
    """What was told of a task before its end, in order."""
    return [news for entry in storage.entries(f"{NEWS}{id}:") if (news := news_of(id, entry)) is not None]


def states_told(storage: Storage, id: str) -> list[str]:
    return [news.state for news in told(storage, id)]


class PastContract(Made):
    """`update` and `settle` as they tell, and `forget`."""

    # -- what is told --------------------------------------------------------------------------------

    def test_every_state_that_is_no_end_is_told_with_its_data(self, storage: Storage, owner: Owner) -> None:
        data = bytes(range(256))
        storage.put([message("a")])
        claim = take_one(storage, owner)
        for number in range(12):
            news = Outcome(claim.seq, claim.token, "a", f"STEP {number}", False, result=data, content_type="x/y",
                           checksum=checksum(data), worker="w@box")  # fmt: skip
            assert storage.update(claim.seq, claim.token, news)
        assert told(storage, "a") == [
            News(number + 1, f"STEP {number}", data, "x/y", checksum(data), None, "w@box") for number in range(12)
        ]

    def test_an_end_is_not_told_nor_is_what_was_not_written(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b")])
        first, second = take(storage, owner)
        storage.settle([outcome(first), given_back(second)])
        assert not storage.update(first.seq, first.token, said("a", "LATE"))
        assert not storage.update(0, 0, said("a", "LATE"))
        assert not storage.update(0, 0, said("nobody", "LATE"))
        assert storage.entries(NEWS) == []

    def test_a_retry_is_told_and_so_is_one_by_hand(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        claim = take_one(storage, owner)
        storage.update(claim.seq, claim.token, said("a", "MINE"))
        storage.settle([again(claim, claim.message, result=b"{}", traceback="at t")])
        assert storage.settle([again(claim, claim.message)]).stale != []
        storage.settle([failure(take_one(storage, owner))])
        storage.update(0, 0, by_hand(claim.message))
        assert [(each.state, each.result, each.traceback) for each in told(storage, "a")] == [
            ("MINE", None, None), (RETRY, b"{}", "at t"), (PENDING, None, None),
        ]  # fmt: skip

    def test_of_many_states_the_last_ones_are_kept_in_order(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("a:"), message("b")])
        for number in range(KEPT + 20):
            storage.update(0, 0, said("a", f"S{number}"))
            storage.update(0, 0, said("a:", "MINE"))
        storage.update(0, 0, said("b", "ONE"))
        assert [(each.number, each.state) for each in told(storage, "a")] == [
            (number + 1, f"S{number}") for number in range(20, KEPT + 20)
        ]
        assert (len(told(storage, "a:")), len(told(storage, "b"))) == (KEPT, 1)
        storage.settle([outcome(claim) for claim in take(storage, owner)])
        storage.forget(["a", "a:", "b"])
        assert storage.entries(NEWS) == []

    def test_retries_are_no_more_than_other_states(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        for number in range(KEPT + 5):
            claim = take_one(storage, owner)
            storage.settle([again(claim, claim.message._replace(retries=number + 1), traceback="x" * 50_000)])
        found = told(storage, "a")
        assert [each.number for each in found] == list(range(6, KEPT + 6))
        for each in found:
            assert each.traceback is not None
            assert each.traceback.endswith("x" * TRACEBACK_LIMIT)
            assert len(each.traceback) < TRACEBACK_LIMIT + 100
        assert storage.records(["a"])["a"].traceback == "x" * 50_000

    def test_news_of_a_task_are_not_those_of_one_whose_id_begins_like_it(self, storage: Storage, owner: Owner) -> None:
        names = ["a", "a:", "a:0000000001", "a:b", "ü'%"]
        storage.put([message(id) for id in names])
        for id in (*names, *names):
            storage.update(0, 0, said(id, id))
        assert {id: states_told(storage, id) for id in names} == {id: [id, id] for id in names}
        storage.settle([outcome(claim) for claim in take(storage, owner)])
        storage.forget(["a"])
        assert {id: states_told(storage, id) for id in names} == {id: [id, id] * (id != "a") for id in names}

    def test_news_ring_whoever_sent_the_task(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a", reply_to="me")])
        claim = take_one(storage, owner)
        bell = storage.bell(replies="me")
        bell.raise_()
        storage.update(claim.seq, claim.token, said("a", "MINE"))
        assert bell.sleep(PATIENCE_S)
        bell.raise_()
        storage.settle([again(claim, claim.message)])
        assert bell.sleep(PATIENCE_S)
        bell.close()

    def test_news_go_with_the_result_or_when_they_expire(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        storage.news_kept_s = 10.0
        storage.put([message("a")])
        storage.update(0, 0, said("a", "ONE"))
        clock.advance(5)
        storage.update(0, 0, said("a", "TWO"))
        clock.advance(5)
        assert states_told(storage, "a") == ["TWO"]
        storage.news_kept_s = None
        storage.update(0, 0, said("a", "THREE"))
        assert storage.forget(old=Old(0, 0, 0)).number == 1
        clock.advance(1e6)
        assert [(each.number, each.state) for each in told(storage, "a")] == [(3, "THREE")]
        storage.settle([outcome(take_one(storage, owner))])
        storage.forget(["a"])
        assert storage.entries(NEWS) == []

    def test_news_of_a_task_that_goes_from_owner_to_owner_are_in_order(
        self, storage: Storage, owner: Owner, other: Owner
    ) -> None:
        storage.put([message("a")])
        late = None
        for turn, holder in enumerate([owner, other, owner]):
            claim = take_one(storage, holder)
            if late is not None:
                assert not storage.update(late.seq, late.token, said("a", "LATE"))
            storage.update(claim.seq, claim.token, said("a", f"STEP {turn}"))
            storage.settle([again(claim, claim.message._replace(retries=turn + 1))])
            late = claim
        assert states_told(storage, "a") == ["STEP 0", RETRY, "STEP 1", RETRY, "STEP 2", RETRY]

    # -- what had its time ---------------------------------------------------------------------------

    def test_what_had_its_time_is_forgotten_and_the_rest_is_not(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        now = clock.now()
        storage.put([message(id, sent_at=now) for id in ("old", "bad", "held", "young")] + [message("new")])
        storage.update(0, 0, said("old", "MINE"))
        old, bad, _, young = take(storage, owner, 4)
        storage.settle([outcome(old), failure(bad)])
        clock.advance(10)
        storage.settle([outcome(young)])
        assert storage.forget(old=Old(0, now, now)) == Forgotten(0)
        assert storage.forget(old=Old(0, now + 5, now)) == Forgotten(1)
        assert sorted(storage.records(["old", "bad", "held", "young", "new"])) == ["bad", "held", "new", "young"]
        assert storage.entries(NEWS) == []
        assert storage.forget(old=Old(0, 0, now + 5)) == Forgotten(1)
        assert storage.forget(old=Old(0, now + 11, 0)) == Forgotten(1)
        assert sorted(storage.records(["old", "bad", "held", "young", "new"])) == ["held", "new"]

    def test_it_is_done_in_steps(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        storage.put([message() for _ in range(STEP + 50)])
        storage.settle([outcome(claim) for claim in take(storage, owner, STEP + 50)])
        clock.advance(10)
        first = storage.forget(old=Old(0, clock.now(), 0))
        assert (first.number, first.seq > 0) == (STEP, True)
        assert storage.forget(old=Old(first.seq, clock.now(), 0)) == Forgotten(50)
        assert storage.counts() == []

    def test_nothing_behind_what_is_too_young_is_looked_at(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        now = clock.now()
        storage.put([message("first", sent_at=now - 10), message("wrong clock", sent_at=now + 1e6)])
        storage.put([message("second", sent_at=now - 10), message("young", sent_at=now), message("behind", sent_at=1)])
        storage.settle([outcome(claim, ended_at=now - 5) for claim in take(storage, owner)])
        assert storage.forget(old=Old(0, now - 1, now - 1)) == Forgotten(3)
        assert sorted(storage.records(["first", "second", "young", "behind"])) == ["behind", "young"]

    def test_what_feeds_somebody_is_kept_until_that_has_ended(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        storage.put([*chain("a", "b"), *chord("g", "m", "n")])
        storage.settle([outcome(claim) for claim in take(storage, owner)])
        clock.advance(10)
        assert storage.forget(old=Old(0, clock.now(), 0)) == Forgotten(0)
        followers = take(storage, owner)
        assert sorted(ids(followers)) == ["b", "body"]
        assert storage.forget(old=Old(0, clock.now(), 0)) == Forgotten(0)
        storage.settle([outcome(claim) for claim in followers])
        assert storage.forget(old=Old(0, clock.now(), 0)) == Forgotten(3)
        clock.advance(1)
        assert storage.forget(old=Old(0, clock.now(), 0)) == Forgotten(2)

    def test_what_ended_without_a_time_counts_from_when_it_was_sent(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        storage.put([message("a", sent_at=clock.now(), leads=LEADS_BY_ID)])
        storage.settle([outcome(take_one(storage, owner), None, ended_at=None)])
        clock.advance(10)
        assert storage.records(["a"])["a"].place == ENDED
        assert storage.forget(old=Old(0, clock.now() - 10, 0)) == Forgotten(0)
        assert storage.forget(old=Old(0, clock.now(), 0)) == Forgotten(1)
