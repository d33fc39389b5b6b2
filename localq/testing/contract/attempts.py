"""The contract: how attempts end, and what may be said before they do."""

from __future__ import annotations

from localq.message import Outcome, Record
from localq.serialization import checksum
from localq.states import ENDED, HELD, READY, RETRY, STARTED, SUCCESS, WAITING
from localq.storage.base import DUE_BELL, Owner, Storage
from localq.testing.clock import FakeClock
from localq.testing.contract.made import Made
from localq.testing.contract.words import (
    again,
    chain,
    chord,
    failure,
    given_back,
    ids,
    message,
    outcome,
    places,
    record,
    take,
    take_one,
    want,
)


class AttemptContract(Made):
    """`settle`, `update` and `forget`."""

    # -- settle --------------------------------------------------------------------------------------

    def test_settling_nothing_does_nothing(self, storage: Storage) -> None:
        assert storage.settle([]) == storage.settle([], None) == ([], [], 0, ())

    def test_an_end_is_written_whole(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        storage.put([message("a", retries=2, ignore_result=1, queue="celery")])
        claim = take_one(storage, owner)
        clock.advance(3)
        result = bytes(range(256))
        turn = storage.settle([outcome(claim, result=result, content_type="application/x", checksum=2**32 - 1,
                                       traceback="at t", children='["c"]', worker="w@box")])  # fmt: skip
        assert turn == ([], [], 0, ())
        assert storage.records(["a"]) == {"a": Record(
            id="a", name="t.add", state=SUCCESS, place=ENDED, result=result, content_type="application/x",
            checksum=2**32 - 1, traceback="at t", children='["c"]', worker="w@box", ended_at=clock.now(), retries=2,
            queue="celery", group_id=None, position=None, ignore_result=1, hold=None,
        )}  # fmt: skip

    def test_one_turn_settles_and_claims(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b"), message("c")])
        claims = take(storage, owner, 2)
        turn = storage.settle([outcome(claim) for claim in claims], want(owner))
        assert (ids(turn.claims), turn.stale) == (["c"], [])
        assert places(storage, "a", "b", "c") == [ENDED, ENDED, HELD]

    def test_a_stale_token_cannot_settle(self, storage: Storage, owner: Owner, other: Owner) -> None:
        storage.put([message("a")])
        old = take_one(storage, owner)
        storage.settle([given_back(old)])
        new = take_one(storage, other)
        late = outcome(old, result=b"late", sends=(message("sent"),))
        assert storage.settle([late]).stale == [late]
        assert (places(storage, "a"), storage.records(["sent"])) == ([HELD], {})
        assert storage.settle([outcome(new, result=b"good")]).stale == []
        assert record(storage, "a").result == b"good"

    def test_an_outcome_of_a_message_that_went_back_is_stale(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        claim = take_one(storage, owner)
        storage.settle([given_back(claim)])
        assert storage.settle([outcome(claim)]).stale == [outcome(claim)]
        assert places(storage, "a") == [READY]

    def test_what_is_given_back_before_its_time_waits_again(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        storage.put([message("a", visible_at=clock.now() + 10), message("b")])
        bell = storage.bell((DUE_BELL,))
        bell.raise_()
        clock.advance(10)
        claims = take(storage, owner)
        clock.jump(-5)
        storage.settle([given_back(claim) for claim in claims])
        assert (places(storage, "a", "b"), storage.due(5)) == ([WAITING, READY], [clock.now() + 5])
        assert not bell.is_up()
        bell.close()
        assert ids(take(storage, owner)) == ["b"]
        clock.advance(5)
        assert ids(take(storage, owner)) == ["a"]

    def test_an_end_is_never_changed(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        claim = take_one(storage, owner)
        storage.settle([outcome(claim, result=b"first")])
        for late in (failure(claim), given_back(claim), again(claim, claim.message)):
            assert storage.settle([late]).stale == [late]
        assert (record(storage, "a").state, record(storage, "a").result) == (SUCCESS, b"first")
        assert take(storage, owner) == []

    def test_an_outcome_of_no_message_is_stale(self, storage: Storage) -> None:
        unknown = Outcome(seq=77, token=1, id="nobody", state=SUCCESS)
        assert storage.settle([unknown]).stale == [unknown]

    def test_stale_outcomes_do_not_keep_good_ones_from_being_true(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b")])
        a, b = take(storage, owner)
        stale = outcome(a._replace(token=a.token + 1), result=b"stale")
        assert storage.settle([stale, outcome(b), outcome(a, result=b"good")]).stale == [stale]
        assert record(storage, "a").result == b"good"

    def test_an_outcome_settled_twice_at_once_is_true_once(self, storage: Storage, owner: Owner) -> None:
        storage.put(chord("g", "a", "b"))
        first = outcome(take_one(storage, owner))
        assert storage.settle([first, first]).stale == [first]
        assert places(storage, "body") == [HELD]

    def test_a_message_given_back_keeps_its_place_in_the_order(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b"), message("c")])
        a, b = take(storage, owner, 2)
        storage.settle([given_back(b)])
        storage.settle([given_back(a)])
        assert ids(take(storage, owner)) == ["a", "b", "c"]

    def test_only_a_charged_attempt_counts_as_redelivered(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        storage.settle([given_back(take_one(storage, owner))])
        claim = take_one(storage, owner)
        assert claim.redeliveries == 0
        storage.settle([given_back(claim, charged=1)])
        claim = take_one(storage, owner)
        assert claim.redeliveries == 1
        storage.settle([failure(claim, charged=1)], want(owner, 0))
        assert storage.records(["a"], whole=True)["a"].redeliveries == 2

    def test_giving_back_leaves_the_state_as_it_is(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        claim = take_one(storage, owner)
        storage.update(claim.seq, claim.token, Outcome(claim.seq, claim.token, "a", STARTED, result=b"pid"))
        storage.settle([given_back(claim)])
        found = record(storage, "a")
        assert (found.state, found.result, found.place, found.hold, found.ended_at) == (
            STARTED, b"pid", READY, None, None,
        )  # fmt: skip

    def test_a_retry_runs_again_under_the_same_id_when_its_time_has_come(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        storage.put([message("a"), message("b", queue="slow")])
        claim = take_one(storage, owner)
        changed = claim.message._replace(
            body=b"[[2], {}]", headers='{"x": 1}', checksum=5, content_type="application/x", queue="slow", priority=9,
            retries=1, visible_at=clock.now() + 60, expires_at=clock.now() + 600,
        )  # fmt: skip
        storage.settle([again(claim, changed, result=b"exc", content_type="application/json", checksum=checksum(b"exc"),
                              traceback="at t")])  # fmt: skip
        found = record(storage, "a")
        assert (found.state, found.place, found.retries, found.queue) == (RETRY, WAITING, 1, "slow")
        assert (found.result, found.traceback, found.ended_at) == (b"exc", "at t", None)
        assert storage.due(5) == [clock.now() + 60]
        clock.advance(60)
        assert take(storage, owner) == []
        b, retried = take(storage, owner, queues=["slow"])
        assert (b.message.id, retried.message) == ("b", changed)
        assert (retried.seq, retried.token, retried.redeliveries) == (claim.seq, claim.token + 1, 0)

    def test_a_retry_at_once_is_ready_at_its_old_place(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b")])
        a, b = take(storage, owner)
        storage.settle([given_back(b), again(a, a.message._replace(retries=1))])
        assert places(storage, "a") == [READY]
        assert ids(take(storage, owner)) == ["a", "b"]

    def test_an_end_without_a_state_leaves_state_and_result(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        claim = take_one(storage, owner)
        storage.update(claim.seq, claim.token, Outcome(claim.seq, claim.token, "a", "MINE", result=b"1"))
        storage.settle([outcome(claim, None)])
        found = record(storage, "a")
        assert (found.state, found.result, found.place) == ("MINE", b"1", ENDED)

    def test_what_an_outcome_sends_exists_with_it(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        storage.put([message("a")])
        sends = (message("b"), message("c", visible_at=clock.now() + 5), *chain("d", "e", queue="slow"))
        turn = storage.settle([outcome(take_one(storage, owner), sends=sends)], want(owner))
        assert ids(turn.claims) == ["b"]
        assert places(storage, "a", "b", "c", "d", "e") == [ENDED, HELD, WAITING, READY, HELD]

    def test_an_id_in_use_among_the_sends_does_not_keep_the_end_from_being_true(
        self, storage: Storage, owner: Owner
    ) -> None:
        storage.put([message("a"), message("b")])
        a, b = take(storage, owner)
        storage.settle([outcome(b)])
        assert storage.settle([outcome(a, sends=(message("b", body=b"other"), message("c")))]).stale == []
        assert places(storage, "a", "b", "c") == [ENDED, ENDED, READY]

    def test_a_retry_sends_too(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        claim = take_one(storage, owner)
        storage.settle([again(claim, claim.message, sends=(message("b"),))])
        assert places(storage, "a", "b") == [READY, READY]

    # -- update, forget ------------------------------------------------------------------------------

    def test_the_holder_of_a_claim_writes_states_that_are_no_end(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        claim = take_one(storage, owner)
        news = Outcome(claim.seq, claim.token, "a", "PROGRESS", result=b"50", content_type="application/json",
                       checksum=checksum(b"50"), worker="w@box")  # fmt: skip
        assert storage.update(claim.seq, claim.token, news)
        found = record(storage, "a")
        assert (found.state, found.result, found.worker) == ("PROGRESS", b"50", "w@box")
        assert (found.content_type, found.checksum) == ("application/json", checksum(b"50"))
        assert (found.place, found.ended_at) == (HELD, None)
        assert storage.settle([outcome(claim)]).stale == []

    def test_a_stale_claim_cannot_update(self, storage: Storage, owner: Owner, other: Owner) -> None:
        storage.put([message("a")])
        old = take_one(storage, owner)
        storage.settle([given_back(old)])
        assert not storage.update(old.seq, old.token, Outcome(old.seq, old.token, "a", "MINE"))
        new = take_one(storage, other)
        assert not storage.update(old.seq, old.token, Outcome(old.seq, old.token, "a", "MINE"))
        storage.settle([outcome(new)])
        assert not storage.update(new.seq, new.token, Outcome(new.seq, new.token, "a", "MINE"))
        assert record(storage, "a").state == SUCCESS

    def test_without_a_claim_a_task_is_updated_by_its_id_until_it_ends(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        assert storage.update(0, 0, Outcome(0, 0, "a", "MINE", result=b"1"))
        assert (record(storage, "a").state, record(storage, "a").result) == ("MINE", b"1")
        claim = take_one(storage, owner)
        assert storage.update(0, 0, Outcome(0, 0, "a", "YOURS"))
        assert record(storage, "a").state == "YOURS"
        storage.settle([outcome(claim)])
        assert not storage.update(0, 0, Outcome(0, 0, "a", "MINE"))
        assert not storage.update(0, 0, Outcome(0, 0, "nobody", "MINE"))
        assert record(storage, "a").state == SUCCESS

    def test_forgetting_makes_ended_tasks_unknown_and_leaves_the_others(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        storage.put([message("ended", group_id="g", position=0), message("claimed"), message("ready")])
        storage.put([message("waiting", visible_at=clock.now() + 1), message("held", after="x", waits_for=1)])
        ended, claimed = take(storage, owner, 2)
        storage.settle([outcome(ended)])
        everybody = ["ended", "claimed", "ready", "waiting", "held"]
        storage.forget([*everybody, "nobody"])
        storage.forget([])
        assert sorted(storage.records(everybody)) == sorted(everybody[1:])
        assert storage.records(group_id="g") == {}
        assert storage.settle([outcome(claimed)]).stale == []

    def test_a_forgotten_id_may_be_used_again(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        old = take_one(storage, owner)
        storage.settle([outcome(old)])
        storage.forget(["a"])
        storage.put([message("a", body=b"other")])
        assert storage.settle([failure(old)]).stale == [failure(old)]
        new = take_one(storage, owner)
        assert new.message.body == b"other"
        assert storage.settle([failure(old)]).stale == [failure(old)]
        assert not storage.update(old.seq, old.token, Outcome(old.seq, old.token, "a", "MINE"))
        assert storage.settle([outcome(new)]).stale == []

    def test_the_claim_of_a_forgotten_task_is_good_for_no_other(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        old = take_one(storage, owner)
        storage.settle([outcome(old)])
        storage.forget(["a"])
        storage.put([message("b")])
        take_one(storage, owner)
        assert storage.settle([outcome(old)]).stale == [outcome(old)]
        assert places(storage, "b") == [HELD]
