"""The contract: how messages come to exist, wait, and are handed out."""

from __future__ import annotations

from typing import Any

import pytest

from localq import clock as time
from localq.exceptions import DuplicateTaskId
from localq.message import LEADS_BY_GROUP, LEADS_BY_ID
from localq.states import HELD, PENDING, READY, SUCCESS, WAITING
from localq.storage.base import DUE_BELL, Count, Owner, Storage
from localq.testing.clock import FakeClock
from localq.testing.contract.made import Made
from localq.testing.contract.words import (
    PATIENCE_S,
    given_back,
    ids,
    in_threads,
    message,
    outcome,
    places,
    record,
    take,
    take_one,
)


class MessageContract(Made):
    """`put`, `due`, and the claims of `settle`."""

    # -- put -----------------------------------------------------------------------------------------

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
        assert claim.redeliveries == 0

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

    # -- waiting -------------------------------------------------------------------------------------

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

    def test_a_nearer_time_that_comes_later_is_due_before(self, storage: Storage, clock: FakeClock) -> None:
        now = clock.now()
        storage.put([message("far", visible_at=now + 1e8)])
        assert storage.due(1) == [now + 1e8]
        storage.put([message("near", visible_at=now + 1)])
        assert storage.due(1) == [now + 1]

    def test_a_backlog_that_is_due_at_once_is_claimed_whole_and_once(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        storage.put([message(str(number), visible_at=clock.now() + 1) for number in range(1200)])
        clock.advance(1)
        found: list[str] = []
        while claims := take(storage, owner, 400):
            found += ids(claims)
        assert (sorted(found, key=int), storage.due(1)) == ([str(number) for number in range(1200)], [])

    def test_what_waits_for_a_year_is_there_after_a_year_and_not_before(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        storage.put([message("a", visible_at=clock.now() + 365 * 86400)])
        clock.advance(365 * 86400 - 1)
        assert take(storage, owner) == []
        clock.advance(1)
        storage.settle([outcome(take_one(storage, owner))])
        clock.jump(-365 * 86400)
        assert (take(storage, owner), storage.due(1)) == ([], [])

    def test_a_clock_that_is_set_forward_makes_due_and_one_that_is_set_back_does_not(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        storage.put([message("a", visible_at=clock.now() + 3600), message("b", visible_at=clock.now() + 1)])
        clock.jump(-86400)
        clock.advance(1)
        assert take(storage, owner) == []
        clock.jump(2 * 86400)
        assert ids(take(storage, owner)) == ["a", "b"]

    def test_who_listens_for_times_is_rung_by_a_message_that_waits_and_by_no_other(
        self, storage: Storage, clock: FakeClock
    ) -> None:
        bell = storage.bell((DUE_BELL,))
        bell.raise_()
        storage.put([message("now"), message("past", visible_at=clock.now() - 1)])
        assert bell.is_up()
        storage.put([message("later", visible_at=clock.now() + 1)])
        assert not bell.is_up()
        assert bell.sleep(PATIENCE_S)
        bell.close()

    def test_no_queue_is_taken_for_the_times(self, storage: Storage) -> None:
        bell = storage.bell((DUE_BELL,))
        bell.raise_()
        storage.put([message(queue=f"queue{number}") for number in range(300)])
        assert bell.is_up()
        bell.close()

    def test_nothing_is_due_where_nothing_waits(self, storage: Storage) -> None:
        storage.put([message()])
        assert storage.due(10) == []

    # -- claim ---------------------------------------------------------------------------------------

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

    def test_the_token_rises_by_one_with_every_claim(self, storage: Storage, owner: Owner, other: Owner) -> None:
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
