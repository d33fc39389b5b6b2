"""The contract of `localq.storage.base` as tests. A storage that passes them works with localq.

    from localq.testing.contract import StorageContract

    class TestMine(StorageContract):
        def make(self, directory):
            return MyStorage(directory)

Needs pytest and hypothesis. Time stands still in every test but for `clock.advance`, and no test
waits for a time to go by. Must not look behind the verbs: what they answer is all that counts.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from localq import clock as time
from localq.exceptions import DuplicateTaskId
from localq.message import LEADS_BY_GROUP, LEADS_BY_ID, Claim, Message, Outcome, Record, Want, new_id
from localq.serialization import checksum
from localq.states import ENDED, FAILURE, HELD, IGNORED, PENDING, READY, RETRY, REVOKED, STARTED, SUCCESS, WAITING
from localq.storage.base import Count, Entry, Owner, Storage
from localq.testing.clock import FakeClock
from localq.testing.history import check_histories

#: Long enough for any machine; only a failing test waits so long.
PATIENCE_S = 30.0
#: More steps than Python allows frames: a chain must not be walked by recursion.
LONG = 1100


def message(id: str = "", **columns: Any) -> Message:
    """A message of little interest but for the columns given."""
    return Message(**{"id": id or new_id(), "name": "t.add", "body": b"[[1, 2], {}]", **columns})


def outcome(claim: Claim, state: str | None = SUCCESS, **columns: Any) -> Outcome:
    """How the attempt of a claim ended, with what an executor copies from the message."""
    asked = claim.message
    copied = {"group_id": asked.group_id, "leads": asked.leads, "reply_to": asked.reply_to}
    return Outcome(claim.seq, claim.token, asked.id, state, **{"ended_at": time.now(), **copied, **columns})


def failure(claim: Claim, state: str = FAILURE, **columns: Any) -> Outcome:
    result = b'{"exc_type": "ValueError"}'
    written = {"result": result, "content_type": "application/json", "checksum": checksum(result), "traceback": "at t"}
    return outcome(claim, state, **{**written, **columns})


def given_back(claim: Claim, **columns: Any) -> Outcome:
    return outcome(claim, None, ended=False, ended_at=None, **columns)


def again(claim: Claim, message: Message, **columns: Any) -> Outcome:
    return outcome(claim, RETRY, ended=False, ended_at=None, again=message, **columns)


def want(owner: Owner, limit: int = 10, queues: Sequence[str] = ("celery",)) -> Want:
    return Want(owner.name, tuple(queues), limit, time.now())


def take(storage: Storage, owner: Owner, limit: int = 10, queues: Sequence[str] = ("celery",)) -> list[Claim]:
    return storage.settle((), want(owner, limit, queues)).claims


def take_one(storage: Storage, owner: Owner) -> Claim:
    (claim,) = take(storage, owner, 1)
    return claim


def ids(claims: Sequence[Claim]) -> list[str]:
    return [claim.message.id for claim in claims]


def record(storage: Storage, id: str) -> Record:
    return storage.records([id])[id]


def places(storage: Storage, *of: str) -> list[str]:
    found = storage.records(of)
    return [found[id].place for id in of]


def chain(*of: str, **columns: Any) -> list[Message]:
    """Messages of which each waits for the one before."""
    first = message(of[0], leads=LEADS_BY_ID, **columns)
    return [first, *(message(id, after=before, waits_for=1, leads=LEADS_BY_ID) for before, id in zip(of, of[1:]))]


def chord(group_id: str, *members: str, body: str = "body", **columns: Any) -> list[Message]:
    """Members of a group, and a body that waits for all of them."""
    header = [
        message(id, group_id=group_id, position=position, leads=LEADS_BY_GROUP) for position, id in enumerate(members)
    ]
    return [*header, message(body, after=group_id, waits_for=len(members), **columns)]


class StorageContract:
    """Every test of the contract; subclass it and say how to make a storage."""

    #: How many histories hypothesis tries, of how many steps.
    histories, steps = 25, 30

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

    # -- put -----------------------------------------------------------------------------------

    def test_a_message_is_ready_once_it_is_put(self, storage: Storage) -> None:
        storage.put([message("a")])
        found = record(storage, "a")
        assert (found.state, found.place, found.hold, found.result, found.ended) == (PENDING, READY, None, None, False)

    def test_putting_nothing_does_nothing(self, storage: Storage) -> None:
        storage.put([])
        assert storage.counts() == []

    def test_a_message_is_claimed_as_it_was_put(self, storage: Storage, owner: Owner) -> None:
        sent = message(
            "a/'\"ü☃", name="t.ü", body=bytes(range(256)), queue="q ü/:", priority=255, content_type="application/x",
            compression="zlib", signature=b"\x00\xff", checksum=2**32 - 1, headers='{"a": "ü"}', origin="gen1@box",
            reply_to="me", retries=3, sent_at=1.25, visible_at=2.5, expires_at=1e10 + 0.125, ignore_result=1,
            group_id="g ü", position=7, leads=LEADS_BY_ID | LEADS_BY_GROUP,
        )  # fmt: skip
        storage.put([sent])
        (claim,) = take(storage, owner, queues=["q ü/:"])
        assert claim.message == sent
        assert (claim.token, claim.redeliveries) == (1, 0)

    def test_messages_are_claimed_in_the_order_they_came(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("b"), message("a")])
        storage.put([message("d")])
        storage.put([message("c")])
        assert ids(take(storage, owner)) == ["b", "a", "d", "c"]

    def test_the_smallest_priority_is_claimed_first(self, storage: Storage, owner: Owner) -> None:
        storage.put([message(str(priority), priority=priority) for priority in (5, 0, 255, 10, 9)])
        assert ids(take(storage, owner)) == ["0", "5", "9", "10", "255"]

    def test_the_same_message_may_be_put_again(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("a")])
        storage.put([message("a", queue="other", priority=0)])
        assert storage.counts() == [Count("celery", READY, 1)]
        storage.settle([outcome(take_one(storage, owner), result=b"3")])
        storage.put([message("a")])
        assert (record(storage, "a").state, record(storage, "a").result) == (SUCCESS, b"3")
        assert take(storage, owner) == []

    @pytest.mark.parametrize("columns", [{"body": b"[[2, 2], {}]"}, {"name": "t.mul"}])
    def test_another_message_of_a_known_id_is_refused_and_nothing_is_put(
        self, storage: Storage, owner: Owner, columns: dict[str, Any]
    ) -> None:
        storage.put([message("a")])
        with pytest.raises(DuplicateTaskId, match="a"):
            storage.put([message("b"), message("a", **columns), message("c", visible_at=time.now() + 1)])
        assert list(storage.records(["a", "b", "c"])) == ["a"]
        assert (storage.due(10), ids(take(storage, owner))) == ([], ["a"])

    def test_two_messages_of_one_id_in_one_put_are_refused(self, storage: Storage) -> None:
        with pytest.raises(DuplicateTaskId):
            storage.put([message("a"), message("a", body=b"[]")])
        assert storage.records(["a"]) == {}

    def test_a_thousand_messages_are_put_at_once_and_stay_in_order(self, storage: Storage, owner: Owner) -> None:
        storage.put([message(str(number)) for number in range(1000)])
        assert ids(take(storage, owner, 1000)) == [str(number) for number in range(1000)]

    # -- waiting -------------------------------------------------------------------------------

    def test_a_message_waits_until_it_is_visible(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        storage.put([message("a", visible_at=clock.now() + 10)])
        clock.advance(9.5)
        assert (take(storage, owner), places(storage, "a")) == ([], [WAITING])
        clock.advance(0.5)
        assert ids(take(storage, owner)) == ["a"]

    def test_a_message_that_was_due_before_it_was_put_is_ready(self, storage: Storage, clock: FakeClock) -> None:
        storage.put([message("a", visible_at=clock.now()), message("b", visible_at=0.5)])
        assert places(storage, "a", "b") == [READY, READY]

    def test_due_messages_go_by_priority_and_arrival(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        now = clock.now()
        storage.put([message("late", visible_at=now + 2), message("soon", visible_at=now + 1), message("ready")])
        storage.put([message("urgent", visible_at=now + 3, priority=1)])
        clock.advance(5)
        assert ids(take(storage, owner)) == ["urgent", "late", "soon", "ready"]

    def test_due_tells_the_next_times_earliest_first(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        now = clock.now()
        storage.put([message(visible_at=now + after) for after in (300.25, 1.5, 20, 1e8)] + [message()])
        assert storage.due(3) == [now + 1.5, now + 20, now + 300.25]
        clock.advance(2)
        take(storage, owner)
        assert storage.due(1) == [now + 20]

    def test_nothing_is_due_where_nothing_waits(self, storage: Storage) -> None:
        storage.put([message()])
        assert storage.due(10) == []

    # -- claim ---------------------------------------------------------------------------------

    def test_a_claimed_message_is_held_by_its_owner_alone(self, storage: Storage, owner: Owner, other: Owner) -> None:
        storage.put([message("a")])
        assert ids(take(storage, owner)) == ["a"]
        assert take(storage, other) == take(storage, owner) == []
        assert (record(storage, "a").place, record(storage, "a").hold) == (HELD, f"owner:{owner.name}")

    def test_no_more_are_claimed_than_wanted(self, storage: Storage, owner: Owner, other: Owner) -> None:
        storage.put([message(id) for id in "abcde"])
        assert ids(take(storage, owner, 2)) == ["a", "b"]
        assert ids(take(storage, other, 2)) == ["c", "d"]
        assert take(storage, owner, 0) == []

    def test_only_the_queues_asked_for_are_claimed(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a", queue="mail"), message("b", queue="mail/slow"), message("c", queue="")])
        assert take(storage, owner, queues=["mai", "mail/", "celery"]) == []
        assert ids(take(storage, owner, queues=["mail"])) == ["a"]
        assert ids(take(storage, owner, queues=[""])) == ["c"]

    def test_who_serves_no_queue_gets_nothing(self, storage: Storage, owner: Owner) -> None:
        storage.put([message()])
        assert take(storage, owner, queues=[]) == []

    def test_priority_and_arrival_rule_across_queues(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("1", queue="x"), message("2", queue="y"), message("3", queue="x", priority=0)])
        storage.put([message("4", queue="y", priority=0), message("5", queue="x")])
        assert ids(take(storage, owner, 4, ["y", "x"])) == ["3", "4", "1", "2"]

    def test_the_token_counts_the_claims(self, storage: Storage, owner: Owner, other: Owner) -> None:
        storage.put([message("a")])
        first = take_one(storage, owner)
        storage.settle([given_back(first)])
        second = take_one(storage, other)
        assert (second.seq, second.token) == (first.seq, first.token + 1)

    def test_many_threads_claim_every_message_once(self, storage: Storage) -> None:
        storage.put([message(str(number)) for number in range(60)])
        found: list[str] = []

        def work() -> None:
            owner = storage.enlist({})
            while claims := take(storage, owner, 4):
                found.extend(ids(claims))
                storage.settle([outcome(claim) for claim in claims])
            owner.close()

        in_threads(*[work] * 3)
        assert sorted(found, key=int) == [str(number) for number in range(60)]

    # -- settle --------------------------------------------------------------------------------

    def test_settling_nothing_does_nothing(self, storage: Storage) -> None:
        assert storage.settle([]) == storage.settle([], None) == ([], [])

    def test_an_end_is_written_whole(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        storage.put([message("a", retries=2, ignore_result=1, queue="celery")])
        claim = take_one(storage, owner)
        clock.advance(3)
        result = bytes(range(256))
        turn = storage.settle([outcome(claim, result=result, content_type="application/x", checksum=2**32 - 1,
                                       traceback="at t", children='["c"]', worker="w@box")])  # fmt: skip
        assert turn == ([], [])
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
        assert take_one(storage, owner).redeliveries == 1

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

    def test_what_was_sent_before_is_not_sent_again(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b")])
        a, b = take(storage, owner)
        storage.settle([outcome(b)])
        assert storage.settle([outcome(a, sends=(message("b"), message("c")))]).stale == []
        assert places(storage, "a", "b", "c") == [ENDED, ENDED, READY]

    def test_a_retry_sends_too(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        claim = take_one(storage, owner)
        storage.settle([again(claim, claim.message, sends=(message("b"),))])
        assert places(storage, "a", "b") == [READY, READY]

    # -- those who wait for others ---------------------------------------------------------------

    def test_a_chain_runs_step_by_step(self, storage: Storage, owner: Owner) -> None:
        storage.put(chain("a", "b", "c"))
        assert record(storage, "b").hold == "after:a"
        ran, turn = [], storage.settle((), want(owner))
        while turn.claims:
            ran.append(ids(turn.claims))
            turn = storage.settle([outcome(claim) for claim in turn.claims], want(owner))
        assert ran == [["a"], ["b"], ["c"]]

    def test_a_released_message_still_waits_for_its_time(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        first, second = chain("a", "b")
        storage.put([first, second._replace(visible_at=clock.now() + 60)])
        storage.settle([outcome(take_one(storage, owner))])
        assert (places(storage, "b"), storage.due(5)) == ([WAITING], [clock.now() + 60])
        clock.advance(60)
        assert ids(take(storage, owner)) == ["b"]

    def test_a_body_runs_when_every_member_has_ended_well(self, storage: Storage, owner: Owner) -> None:
        storage.put(chord("g", "a", "b", "c"))
        a, b, c = take(storage, owner)
        storage.settle([outcome(c), outcome(a, IGNORED)])
        assert (record(storage, "body").place, record(storage, "body").hold) == (HELD, "after:g")
        assert ids(storage.settle([outcome(b)], want(owner)).claims) == ["body"]

    def test_who_is_not_said_to_lead_releases_nobody(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a", group_id="g", position=0), message("b", after="a", waits_for=1)])
        storage.put([message("c", after="g", waits_for=1)])
        storage.settle([outcome(take_one(storage, owner))])
        assert places(storage, "b", "c") == [HELD, HELD]

    @pytest.mark.parametrize("state", [FAILURE, REVOKED])
    def test_those_behind_a_bad_end_fail_with_it(self, storage: Storage, owner: Owner, state: str) -> None:
        storage.put(chain("a", "b", "c"))
        bad = failure(take_one(storage, owner), state, group_failure=b'"for groups"')
        storage.settle([bad])
        assert record(storage, "a").state == state
        for follower in storage.records(["b", "c"]).values():
            assert (follower.state, follower.place, follower.hold) == (FAILURE, ENDED, None)
            assert (follower.result, follower.content_type) == (bad.result, bad.content_type)
            assert (follower.checksum, follower.traceback) == (bad.checksum, bad.traceback)
            assert follower.ended_at == bad.ended_at
        assert take(storage, owner) == []

    def test_a_chain_of_any_length_fails_whole(self, storage: Storage, owner: Owner) -> None:
        storage.put(chain(*map(str, range(LONG))))
        storage.settle([failure(take_one(storage, owner))])
        assert storage.counts() == [Count("celery", ENDED, LONG)]

    def test_a_body_fails_with_its_first_bad_member_and_the_others_go_on(self, storage: Storage, owner: Owner) -> None:
        storage.put([*chord("g", "a", "b", "c", leads=LEADS_BY_ID), message("after", after="body", waits_for=1)])
        a, b, c = take(storage, owner)
        storage.settle([outcome(a), failure(b, group_failure=b'"b failed"')])
        for id in ("body", "after"):
            found = record(storage, id)
            assert (found.state, found.result, found.content_type) == (FAILURE, b'"b failed"', "application/json")
            assert found.checksum == checksum(b'"b failed"')
        assert storage.settle([failure(c, group_failure=b'"c failed"')]).stale == []
        assert record(storage, "body").result == b'"b failed"'
        assert record(storage, "a").state == SUCCESS

    def test_a_member_that_fails_with_its_predecessor_fails_the_body(self, storage: Storage, owner: Owner) -> None:
        member = message("b", after="a", waits_for=1, group_id="g", position=0, leads=LEADS_BY_GROUP)
        storage.put([message("a", leads=LEADS_BY_ID), member, message("body", after="g", waits_for=1)])
        bad = failure(take_one(storage, owner))
        storage.settle([bad])
        assert [record(storage, id).result for id in ("b", "body")] == [bad.result] * 2

    def test_those_behind_an_attempt_that_is_no_end_stay_held(self, storage: Storage, owner: Owner) -> None:
        storage.put([*chain("a", "b"), *chain("c", "d"), *chain("e", "f")])
        a, c, e = take(storage, owner)
        storage.settle([again(a, a.message, group_failure=b"1"), given_back(c), outcome(e, None)])
        assert places(storage, "b", "d", "f") == [HELD] * 3

    # -- update, forget ------------------------------------------------------------------------

    def test_the_holder_of_a_claim_writes_states_that_are_no_end(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        claim = take_one(storage, owner)
        news = Outcome(claim.seq, claim.token, "a", "PROGRESS", result=b"50", content_type="application/json",
                       checksum=checksum(b"50"), worker="w@box")  # fmt: skip
        assert storage.update(claim.seq, claim.token, news)
        found = record(storage, "a")
        assert (found.state, found.result, found.content_type, found.checksum, found.worker) == news[3:4] + (
            news.result, news.content_type, news.checksum, news.worker,
        )  # fmt: skip
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
        assert take_one(storage, owner).seq != old.seq
        assert storage.settle([outcome(old)]).stale == [outcome(old)]
        assert places(storage, "b") == [HELD]

    # -- records, counts -------------------------------------------------------------------------

    def test_unknown_ids_have_no_record(self, storage: Storage) -> None:
        storage.put([message("a")])
        assert list(storage.records(["nobody", "a"])) == ["a"]
        assert storage.records() == storage.records(group_id="nobody") == {}

    def test_the_members_of_a_group_come_in_the_order_of_their_positions(self, storage: Storage) -> None:
        storage.put([message(id, group_id="g", position=position) for id, position in zip("cab", (2, 0, 10))])
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

    # -- owners ----------------------------------------------------------------------------------

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
        assert storage.estate(owner.name) == ([], None, 0, [])

    def test_an_estate_tells_started_from_reserved(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b")])
        a, b = take(storage, owner)
        assert storage.estate(owner.name)[:2] == ([a, b], None)
        owner.begin(a, mode=2)
        assert storage.estate(owner.name) == ([a, b], (a.seq, a.token), 2, [])

    def test_an_estate_has_the_outcomes_that_were_not_settled(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b"), message("c")])
        a, b, c = take(storage, owner)
        full = failure(a, again=message("a", retries=1), ended=False, sends=(message("x", body=b"\xff"),))
        for claim, noted in ((a, full), (b, outcome(b, result=b"\x00\xff"))):
            owner.begin(claim, mode=1)
            assert owner.end(noted)
        owner.begin(c, mode=3)
        estate = storage.estate(owner.name)
        assert (estate.started, estate.mode, estate.ended) == ((c.seq, c.token), 3, [full, outcome(b, result=b"\x00\xff")])

    def test_between_tasks_nothing_is_started(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        claim = take_one(storage, owner)
        owner.begin(claim, mode=1)
        assert owner.end(outcome(claim))
        assert storage.estate(owner.name).started is None
        storage.settle([outcome(claim)])
        owner.settled()
        assert (storage.estate(owner.name).started, storage.estate(owner.name).ended) == (None, [])

    def test_an_owner_without_a_journal_says_that_it_noted_nothing(self, storage: Storage) -> None:
        owner = storage.enlist({}, journal=False)
        storage.put([message("a")])
        claim = take_one(storage, owner)
        owner.begin(claim, mode=1)
        assert not owner.end(outcome(claim))
        owner.settled()
        assert storage.estate(owner.name)[1:] == (None, 0, [])
        owner.close()

    # -- bells -----------------------------------------------------------------------------------

    def test_a_ring_between_look_and_sleep_ends_the_sleep(self, storage: Storage, owner: Owner) -> None:
        bell = storage.bell(["celery"])
        bell.raise_()
        assert take(storage, owner) == []
        storage.put([message("a")])
        assert bell.sleep(PATIENCE_S)
        bell.close()

    def test_a_sleeper_is_woken_by_another_thread(self, storage: Storage) -> None:
        asleep = threading.Event()
        rang: list[bool] = []

        def sleep() -> None:
            bell = storage.bell(["celery"])
            bell.raise_()
            asleep.set()
            rang.append(bell.sleep(PATIENCE_S))
            bell.close()

        def send() -> None:
            asleep.wait(PATIENCE_S)
            storage.put([message()])

        in_threads(sleep, send)
        assert rang == [True]

    def test_a_sleep_without_a_ring_ends_by_itself(self, storage: Storage) -> None:
        bell = storage.bell(["celery"])
        bell.raise_()
        assert not bell.sleep(0.001)
        bell.close()

    def test_one_sleeper_is_woken_for_each_ready_message(self, storage: Storage, clock: FakeClock) -> None:
        bells = [storage.bell(["celery", "mail"]) for _ in range(3)]
        for bell in bells:
            bell.raise_()
        storage.put([message(queue="other"), message(visible_at=clock.now() + 1)])
        assert sum(bell.sleep(0) for bell in bells) == 0
        storage.put([message(queue="mail")])
        storage.put([message()])
        assert sum(bell.sleep(0) for bell in bells) == 2
        for bell in bells:
            bell.close()

    def test_a_bell_that_was_lowered_or_closed_is_not_chosen(self, storage: Storage) -> None:
        lowered, closed, raised = (storage.bell(["celery"]) for _ in range(3))
        for bell in (lowered, closed, raised):
            bell.raise_()
        lowered.lower()
        closed.close()
        storage.put([message()])
        assert raised.sleep(PATIENCE_S)
        for bell in (lowered, raised):
            bell.close()

    def test_a_bell_rings_again_when_it_is_raised_again(self, storage: Storage) -> None:
        bell = storage.bell(["celery"])
        for _ in range(3):
            bell.raise_()
            storage.put([message()])
            assert bell.sleep(PATIENCE_S)
        bell.close()

    def test_work_that_a_settle_frees_wakes_a_sleeper(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        storage.put([*chain("a", "b"), message("c"), message("d"), message("due", visible_at=clock.now() + 5)])
        a, c, d = take(storage, owner)
        bell = storage.bell(["celery"])
        frees: list[tuple[Outcome, ...]] = [
            (outcome(a),), (given_back(c),), (outcome(d, sends=(message("sent"),)),),
        ]  # fmt: skip
        for outcomes in frees:
            bell.raise_()
            storage.settle(outcomes)
            assert bell.sleep(PATIENCE_S)
        clock.advance(5)
        bell.raise_()
        storage.settle((), Want(owner.name, ("other",), 1, clock.now()))
        assert bell.sleep(PATIENCE_S)
        bell.close()

    def test_who_waits_for_a_reply_is_woken_by_the_end(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a", reply_to="me"), message("b", reply_to="you"), message("c")])
        a, b, c = take(storage, owner)
        mine, anybodys = storage.bell(replies="me"), storage.bell(replies="*")
        for end, rings in ((outcome(b), [False, True]), (outcome(c), [False, True]), (outcome(a), [True, True])):
            mine.raise_()
            anybodys.raise_()
            storage.settle([end])
            assert [mine.sleep(PATIENCE_S if rings[0] else 0), anybodys.sleep(PATIENCE_S)] == rings
        mine.close()
        anybodys.close()

    def test_who_waits_for_a_follower_is_woken_when_it_fails_with_its_leader(
        self, storage: Storage, owner: Owner
    ) -> None:
        first, second = chain("a", "b")
        storage.put([first, second._replace(reply_to="me")])
        bell = storage.bell(replies="me")
        bell.raise_()
        storage.settle([failure(take_one(storage, owner))])
        assert bell.sleep(PATIENCE_S)
        bell.close()

    # -- entries ---------------------------------------------------------------------------------

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

    # -- the whole -------------------------------------------------------------------------------

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
        (a, b), started, mode, ended = storage.estate(dead.name)
        assert (ids([a, b]), started, mode, ended) == (["a", "b"], (b.seq, b.token), 2, [outcome(a, result=b"3")])
        storage.settle([*ended, given_back(b, charged=1)])
        storage.retire(dead.name)
        assert ids(take(storage, owner)) == ["b", "c"]
        assert record(storage, "a").result == b"3"

    def test_every_history_goes_as_in_the_model(self, tmp_path: Path) -> None:
        check_histories(self.make, tmp_path, self.histories, self.steps)


def in_threads(*work: Callable[[], object]) -> None:
    """Run these at the same time, to their ends; what one raises is raised here."""
    raised: list[BaseException] = []

    def run(act: Callable[[], object]) -> None:
        try:
            act()
        except BaseException as exc:  # noqa: BLE001  # raised again below, on the test's own thread
            raised.append(exc)

    threads = [threading.Thread(target=run, args=[act]) for act in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def in_child(act: Callable[[], None]) -> None:
    """Run this in a forked process, which ends without any clean-up."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def die_at_work(storage: Storage) -> None:
    """Claim two messages, end one of them without settling, and begin the other."""
    owner = storage.enlist({"kind": "mortal"})
    a, b = take(storage, owner, 2)
    owner.begin(a, mode=2)
    owner.end(outcome(a, result=b"3"))
    owner.begin(b, mode=2)
