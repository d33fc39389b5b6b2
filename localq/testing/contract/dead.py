"""The contract: what ended badly is kept, can be listed, and runs again by hand."""

from __future__ import annotations

import pytest

from localq.message import Message, Outcome, Record
from localq.states import ENDED, FAILURE, HELD, IGNORED, PENDING, READY, REVOKED, SUCCESS, WAITING
from localq.storage.base import STEP, Owner, Storage
from localq.testing.clock import FakeClock
from localq.testing.contract.made import Made
from localq.testing.contract.words import (
    again,
    by_hand,
    chain,
    chord,
    failure,
    given_back,
    ids,
    in_threads,
    message,
    outcome,
    places,
    record,
    take,
    take_one,
    want,
)


class DeadContract(Made):
    """`update` with `again`, and `records` of the failed, of those who wait, and whole."""

    # -- a retry by hand -----------------------------------------------------------------------------

    @pytest.mark.parametrize("state", [FAILURE, REVOKED])
    def test_what_ended_badly_runs_again_as_if_sent_now(self, storage: Storage, owner: Owner, state: str) -> None:
        sent = message("a", body=bytes(range(256)), headers='{"x": 1}', group_id="g", position=3, reply_to="me")
        storage.put([sent])
        claim = take_one(storage, owner)
        storage.settle([failure(claim, state, children='["c"]', worker="w@box")])
        assert storage.update(0, 0, by_hand(sent))
        assert storage.records(["a"]) == {"a": Record(
            id="a", name="t.add", state=PENDING, place=READY, result=None, content_type=None, checksum=None,
            traceback=None, children=None, worker=None, ended_at=None, retries=0, queue="celery", group_id="g",
            position=3, ignore_result=0, hold=None,
        )}  # fmt: skip
        new = take_one(storage, owner)
        assert (new.message, new.seq, new.token, new.redeliveries) == (sent, claim.seq, claim.token + 1, 0)
        storage.settle([outcome(new, result=b"good")])
        assert (record(storage, "a").state, record(storage, "a").result) == (SUCCESS, b"good")

    def test_it_runs_again_as_the_message_it_is_given(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        storage.put([message("a", retries=3, expires_at=clock.now() + 1)])
        storage.settle([failure(take_one(storage, owner))])
        changed = message(
            "a", body=b"[[2], {}]", headers='{"x": 1}', checksum=5, content_type="application/x", queue="slow",
            priority=9, retries=1, visible_at=clock.now() + 60, expires_at=clock.now() + 600,
        )  # fmt: skip
        assert storage.update(0, 0, by_hand(changed))
        assert (places(storage, "a"), storage.due(5)) == ([WAITING], [clock.now() + 60])
        clock.advance(60)
        (claim,) = take(storage, owner, queues=["slow"])
        assert claim.message == changed

    def test_it_may_wait_for_others_again(self, storage: Storage, owner: Owner) -> None:
        first, second = chain("a", "b")
        storage.put([first, second])
        storage.settle([failure(take_one(storage, owner))])
        assert storage.update(0, 0, by_hand(first))
        assert storage.update(0, 0, by_hand(second))
        assert (record(storage, "b").place, record(storage, "b").hold) == (HELD, "after:a")
        assert ids(storage.settle([outcome(take_one(storage, owner))], want(owner)).claims) == ["b"]

    def test_it_keeps_its_place_in_the_order(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b")])
        storage.settle([failure(take_one(storage, owner))])
        storage.put([message("c")])
        assert storage.update(0, 0, by_hand(message("a")))
        assert ids(take(storage, owner)) == ["a", "b", "c"]

    def test_its_crashes_are_forgotten(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        for _ in range(3):
            storage.settle([given_back(take_one(storage, owner), charged=1)])
        storage.settle([failure(take_one(storage, owner), charged=1)])
        assert storage.update(0, 0, by_hand(message("a")))
        assert take_one(storage, owner).redeliveries == 0

    def test_nothing_else_runs_again(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        storage.put([message("success"), message("ignored"), message("no state"), message("claimed"), message("ready")])
        storage.put([message("waiting", visible_at=clock.now() + 1), message("held", after="x", waits_for=1)])
        success, ignored, no_state, _ = take(storage, owner, 4)
        storage.settle([outcome(success, result=b"1"), outcome(ignored, IGNORED), outcome(no_state, None)])
        everybody = ["success", "ignored", "no state", "claimed", "ready", "waiting", "held"]
        before = storage.records(everybody, whole=True)
        for id in (*everybody, "nobody"):
            assert not storage.update(0, 0, by_hand(message(id, body=b"other")))
        assert storage.records([*everybody, "nobody"], whole=True) == before

    def test_what_an_earlier_claim_still_says_is_stale(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        old = take_one(storage, owner)
        storage.settle([failure(old)])
        assert storage.update(0, 0, by_hand(message("a")))
        late = [outcome(old, result=b"late"), failure(old), given_back(old), again(old, old.message)]
        assert storage.settle(late).stale == late
        assert not storage.update(old.seq, old.token, Outcome(old.seq, old.token, "a", "MINE"))
        new = take_one(storage, owner)
        assert storage.settle(late).stale == late
        assert storage.settle([outcome(new, result=b"good")]).stale == []
        assert record(storage, "a").result == b"good"

    def test_of_many_who_run_it_again_one_does(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        storage.settle([failure(take_one(storage, owner))])
        did: list[bool] = []
        in_threads(*[lambda: did.append(storage.update(0, 0, by_hand(message("a"))))] * 4)
        assert sorted(did) == [False, False, False, True]
        assert ids(take(storage, owner)) == ["a"]

    def test_those_who_failed_with_it_stay_failed(self, storage: Storage, owner: Owner) -> None:
        members = chord("g", "a", "b")
        storage.put([*members, *chain("c", "d")])
        a, b, c = take(storage, owner)
        storage.settle([failure(a, group_failure=b'"a failed"'), outcome(b), failure(c)])
        for each in (a, c):
            assert storage.update(0, 0, by_hand(each.message))
        storage.settle([outcome(claim) for claim in take(storage, owner)])
        assert [found.state for found in storage.records(["a", "c"]).values()] == [SUCCESS, SUCCESS]
        assert [found.state for found in storage.records(["body", "d"]).values()] == [FAILURE, FAILURE]
        assert take(storage, owner) == []

    def test_an_idle_owner_is_woken_for_it(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        storage.settle([failure(take_one(storage, owner))])
        bells = [storage.bell(["celery"]) for _ in range(2)]
        for bell in bells:
            bell.raise_()
        assert storage.update(0, 0, by_hand(message("a")))
        assert sum(bell.sleep(0) for bell in bells) == 1
        for bell in bells:
            bell.close()

    # -- what can be listed --------------------------------------------------------------------------

    def test_the_failed_are_listed_in_the_order_they_came(self, storage: Storage, owner: Owner) -> None:
        assert storage.records(failed_after=0) == {}
        storage.put([message("c"), *chain("b", "follower"), message("good"), message("revoked"), message("a")])
        storage.put([message("ready"), message("no state")])
        c, b, good, revoked, a, _, none = take(storage, owner)
        storage.settle([failure(a), outcome(good), failure(revoked, REVOKED), outcome(none, None), failure(b)])
        storage.settle([failure(c)])
        assert list(storage.records(failed_after=0)) == ["c", "b", "follower", "a"]
        assert list(storage.records(failed_after=b.seq, whole=True)) == ["follower", "a"]
        assert storage.records(failed_after=a.seq) == {}
        assert storage.update(0, 0, by_hand(b.message))
        storage.forget(["a"])
        assert list(storage.records(failed_after=0)) == ["c", "follower"]

    def test_the_failed_are_listed_a_step_at_a_time(self, storage: Storage, owner: Owner) -> None:
        sent = [message(str(number)) for number in range(STEP + 5)]
        storage.put(sent)
        storage.settle([failure(claim) for claim in take(storage, owner, len(sent))])
        first = storage.records(failed_after=0, whole=True)
        last = next(reversed(first.values()))
        second = storage.records(failed_after=last.seq, whole=True)
        assert (len(first), len(second)) == (STEP, 5)
        assert [*first, *second] == [each.id for each in sent]

    def test_those_who_wait_are_listed_by_what_holds_them(self, storage: Storage, owner: Owner) -> None:
        storage.put([*chain("a", "b"), message("c", after="a", waits_for=1, priority=0)])
        storage.put([message(after="many", waits_for=1) for _ in range(STEP + 1)])
        assert list(storage.records(hold="after:a")) == ["c", "b"]
        assert len(storage.records(hold="after:many")) == STEP
        assert storage.records(hold="after:b") == {}
        storage.settle([outcome(take_one(storage, owner))])
        assert storage.records(hold="after:a") == {}

    def test_a_whole_record_has_the_message_and_its_crashes(self, storage: Storage, owner: Owner) -> None:
        sent = message(
            "a", body=bytes(range(256)), priority=0, compression="zlib", signature=b"\x00\xff", checksum=2**32 - 1,
            headers="{}", origin="gen1@box", reply_to="me", retries=3, sent_at=1.25, visible_at=2.5, expires_at=1e10,
            group_id="g", position=7, leads=3,
        )  # fmt: skip
        storage.put([sent, message("b", group_id="g", position=8)])
        claim = take_one(storage, owner)
        storage.settle([given_back(claim, charged=1)])
        (found,) = storage.records(["a"], whole=True).values()
        assert (found.message, found.redeliveries, found.seq) == (sent, 1, claim.seq)
        plain = found._replace(message=None, redeliveries=0, seq=0)
        assert storage.records(["a"]) == {"a": plain}
        assert storage.records(group_id="g", whole=True)["a"] == found
        assert {id: type(each.message) for id, each in storage.records(["a", "b"], whole=True).items()} == {
            "a": Message, "b": Message,
        }  # fmt: skip

    def test_what_ended_badly_and_its_crashes_outlive_a_restart(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b")])
        a, b = take(storage, owner)
        storage.settle([failure(a, charged=1), given_back(b, charged=1)])
        storage.close()
        assert [found.redeliveries for found in storage.records(failed_after=0, whole=True).values()] == [1]
        assert storage.records(["b"], whole=True)["b"].redeliveries == 1
        assert storage.records(["a"])["a"].place == ENDED
