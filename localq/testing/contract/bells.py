"""The contract: how sleepers are woken."""

from __future__ import annotations

import os
import threading

import pytest

from localq.exceptions import DuplicateTaskId
from localq.message import Outcome, Record, Want
from localq.storage.base import Owner, Storage
from localq.testing.clock import FakeClock
from localq.testing.contract.made import Made
from localq.testing.contract.words import (
    PATIENCE_S,
    chain,
    failure,
    given_back,
    ids,
    in_threads,
    message,
    outcome,
    received,
    take,
    take_one,
    want,
)


class BellContract(Made):
    """`bell`: no ring is lost between look and sleep."""

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

    def test_work_that_is_claimed_in_the_same_turn_wakes_nobody(self, storage: Storage, owner: Owner) -> None:
        storage.put(chain("a", "b"))
        claim = take_one(storage, owner)
        bell = storage.bell(["celery"])
        bell.raise_()
        assert len(storage.settle([outcome(claim)], want(owner)).claims) == 1
        assert not bell.sleep(0)
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

    def test_a_sleep_ends_too_when_another_descriptor_can_be_read(self, storage: Storage) -> None:
        if not storage.shared:
            pytest.skip("who has no descriptors cannot watch one")
        reader, writer = os.pipe()
        bell = storage.bell(["celery"])
        bell.raise_()
        os.write(writer, b"!")
        assert not bell.sleep(PATIENCE_S, reader)
        storage.put([message()])
        assert bell.sleep(PATIENCE_S, reader)
        bell.close()
        os.close(reader)
        os.close(writer)

    # -- what a ring brings --------------------------------------------------------------------------

    @pytest.mark.parametrize("size", [0, 1_000, 10_000, 100_000])
    def test_what_is_put_while_an_owner_sleeps_is_had_once(
        self, storage: Storage, owner: Owner, other: Owner, size: int
    ) -> None:
        bell = storage.bell(["celery"], owner=owner.name)
        for number in range(3):
            bell.raise_()
            sent = message(str(number), body=b"x" * size, reply_to="me", headers="{}", priority=9)
            storage.put([sent])
            assert bell.sleep(PATIENCE_S)
            theirs = take(storage, other)
            (claim,) = received(storage, owner, bell) + theirs
            assert claim.message == sent
            assert storage.settle([outcome(claim)]).stale == []
            assert storage.records([sent.id])[sent.id].state == "SUCCESS"
        bell.close()

    def test_of_messages_put_one_by_one_each_sleeper_has_its_own(
        self, storage: Storage, owner: Owner, other: Owner
    ) -> None:
        bells = [storage.bell(["celery"], owner=each.name) for each in (owner, other)]
        for bell in bells:
            bell.raise_()
        storage.put([message("a")])
        storage.put([message("b")])
        storage.put([message("c")])
        found = []
        for bell, each in zip(bells, (owner, other), strict=True):
            assert bell.sleep(PATIENCE_S)
            found += received(storage, each, bell)
        assert sorted(ids(found)) == ["a", "b", "c"]
        for bell in bells:
            bell.close()

    def test_an_owner_that_sleeps_for_another_queue_is_given_nothing(
        self, storage: Storage, owner: Owner, other: Owner
    ) -> None:
        bell = storage.bell(["mail"], owner=owner.name)
        bell.raise_()
        storage.put([message("a")])
        assert not bell.sleep(0)
        assert storage.estate(owner.name).claims == []
        assert ids(take(storage, other)) == ["a"]
        bell.close()

    def test_an_id_that_is_in_use_is_given_to_nobody_again(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        (claim,) = take(storage, owner)
        bell = storage.bell(["celery"], owner=owner.name)
        bell.raise_()
        storage.put([claim.message])
        with pytest.raises(DuplicateTaskId):
            storage.put([message("a", body=b"other")])
        assert not bell.sleep(0)
        assert ids(storage.estate(owner.name).claims) == ["a"]
        bell.close()

    def test_a_record_that_a_ring_brings_is_the_one_in_the_store(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a", reply_to="me", retries=2, group_id="g", position=4)])
        bell = storage.bell(replies="me")
        bell.raise_()
        claim = take_one(storage, owner)
        storage.settle([outcome(claim, result=b"7", content_type="application/json", worker="w@box")])
        assert bell.sleep(PATIENCE_S)
        for copy in bell.copies():
            assert Record(*copy) == storage.records(["a"])["a"]
        assert bell.copies() == []
        bell.close()
