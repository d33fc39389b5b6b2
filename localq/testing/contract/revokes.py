"""The contract: messages that were revoked, before they were there, before they began, and while they ran."""

from __future__ import annotations

import json

import pytest

from localq import revocation
from localq.revocation import TERMINATE
from localq.serialization import checksum
from localq.states import ENDED, FAILURE, HELD, PENDING, READY, REVOKED, SUCCESS
from localq.storage.base import DUE_BELL, STEP, Count, Owner, Storage
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
    message,
    outcome,
    parked,
    places,
    record,
    revoked,
    take,
    take_one,
    want,
)


def stamped(**stamps: object) -> str:
    return json.dumps({"stamped_headers": [*stamps], "stamps": stamps})


class RevokeContract(Made):
    """`update` with an end, and the entries that say what must not run."""

    def test_what_waits_anywhere_ends_where_it_is(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        storage.put([message("a"), message("b", visible_at=clock.now() + 60), *chain("first", "c")])
        storage.put([message("d", name="other")])
        claim = take(storage, owner)[-1]
        storage.settle([parked(claim, "name:other@celery")])
        storage.put([message("a2")])
        for id in ("a2", "b", "c", "d"):
            assert storage.update(0, 0, revoked(id))
            found = record(storage, id)
            assert (found.state, found.place, found.hold, found.ended_at) == (REVOKED, ENDED, None, clock.now())
            assert (found.result, found.content_type) == (b"revoked", "application/json")
            assert found.checksum == checksum(b"revoked")
        clock.advance(100)
        assert take(storage, owner) == []

    def test_what_is_unknown_or_has_ended_stays_as_it_is(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        storage.settle([outcome(take_one(storage, owner), result=b"1")])
        assert not storage.update(0, 0, revoked("a"))
        assert not storage.update(0, 0, revoked("nobody"))
        assert (record(storage, "a").state, record(storage, "a").result) == (SUCCESS, b"1")
        assert storage.counts() == [Count("celery", ENDED, 1)]

    def test_a_message_may_begin_to_exist_with_its_end(self, storage: Storage, owner: Owner) -> None:
        columns = {"state": SUCCESS, "result": b"1", "traceback": "at t", "worker": "me@here", "children": "[]"}
        end = revoked("a", again=message("a", queue="mine"), **columns)
        assert storage.update(0, 0, end)
        found = record(storage, "a")
        assert (found.state, found.place, found.result, found.queue) == (SUCCESS, ENDED, b"1", "mine")
        assert (found.traceback, found.worker, found.children) == ("at t", "me@here", "[]")
        assert storage.counts() == [Count("mine", ENDED, 1)]
        assert take(storage, owner, queues=["mine"]) == []

    def test_a_message_that_is_known_does_not_end_as_a_new_one(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b")])
        take_one(storage, owner)
        for id in ("a", "b"):
            assert not storage.update(0, 0, revoked(id, again=message(id)))
        assert [record(storage, id).state for id in ("a", "b")] == [PENDING, PENDING]
        assert storage.settle((), want(owner)).claims[0].message.id == "b"

    def test_those_behind_it_fail_with_it(self, storage: Storage, owner: Owner) -> None:
        storage.put([*chain("a", "b", "c"), *chord("g", "m", "n")])
        assert storage.update(0, 0, revoked("a"))
        assert storage.update(0, 0, revoked("m"))
        assert [(record(storage, id).state, record(storage, id).result) for id in ("b", "c", "body")] == [
            (FAILURE, b"revoked"), (FAILURE, b"revoked"), (FAILURE, b'"group"')
        ]  # fmt: skip
        assert ids(take(storage, owner)) == ["n"]

    def test_whoever_waits_for_it_is_woken(self, storage: Storage) -> None:
        storage.put([message("a", reply_to="me")])
        bell = storage.bell(replies="me")
        bell.raise_()
        assert storage.update(0, 0, revoked("a"))
        assert bell.sleep(0)
        bell.close()

    @pytest.mark.parametrize("way", ["given back", "crashed", "retried", "retried later", "parked"])
    def test_what_an_owner_has_does_not_come_back_from_there(
        self, storage: Storage, owner: Owner, clock: FakeClock, way: str
    ) -> None:
        storage.put([*chain("a", "b"), *chord("g", "m")])
        claims = take(storage, owner)
        assert ids(claims) == ["a", "m"]
        for claim in claims:
            assert not storage.update(0, 0, revoked(claim.message.id))
            assert places(storage, claim.message.id) == [HELD]
            later = claim.message._replace(retries=1, visible_at=clock.now() + 3600)
            clock.advance(1)
            end = {
                "given back": given_back(claim),
                "crashed": given_back(claim, charged=1),
                "retried": again(claim, claim.message._replace(retries=1)),
                "retried later": again(claim, later),
                "parked": parked(claim, "name:t@celery"),
            }[way]
            assert storage.settle([end]).stale == []
            found = storage.records([claim.message.id], whole=True)[claim.message.id]
            assert (found.state, found.place, found.result) == (REVOKED, ENDED, b"revoked")
            assert (found.ended_at, found.retries) == (clock.now(), 0)
            assert found.redeliveries == (way == "crashed")
            assert storage.settle([end]).stale == [end]
        assert [record(storage, id).result for id in ("b", "body")] == [b"revoked", b'"group"']
        assert take(storage, owner) == []

    def test_the_end_of_an_attempt_that_runs_is_what_counts(self, storage: Storage, owner: Owner) -> None:
        storage.put(chain("a", "b"))
        claim = take_one(storage, owner)
        assert not storage.update(0, 0, revoked("a"))
        assert storage.settle([outcome(claim, result=b"1")]).stale == []
        assert (record(storage, "a").state, record(storage, "a").result) == (SUCCESS, b"1")
        assert ids(take(storage, owner)) == ["b"]

    def test_run_again_by_hand_it_may_come_back_again(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        claim = take_one(storage, owner)
        storage.update(0, 0, revoked("a"))
        storage.settle([failure(claim)])
        assert storage.update(0, 0, by_hand(message("a")))
        storage.settle([given_back(take_one(storage, owner))])
        assert (record(storage, "a").state, places(storage, "a")) == (PENDING, [READY])

    def test_a_claim_says_whether_a_rule_hits_it(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        rules = [revocation.rule_of_id("a"), *revocation.rules_of_stamps({"batch": ["x", 7]})]
        for rule in (*rules, revocation.rule_of_id("expired")):
            assert storage.write(rule, "", None, clock.now() + (60 if rule in rules else 1))
        clock.advance(2)
        storage.put([message("a"), message("b"), message("expired")])
        storage.put([message("x", headers=stamped(batch="x")), message("seven", headers=stamped(batch=[6, 7]))])
        storage.put([message("y", headers=stamped(batch="y", other="x"))])
        storage.put([message("half", headers=json.dumps({"stamps": {"batch": "x"}}))])
        assert [claim.message.id for claim in take(storage, owner) if claim.revoked] == ["a", "x", "seven"]
        clock.advance(60)
        storage.put([message("late", headers=stamped(batch="x"))])
        assert [claim.revoked for claim in take(storage, owner)] == [False]

    def test_while_there_are_rules_nothing_is_handed_over_unasked(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        assert storage.write(revocation.rule_of_id("a"), "", None, clock.now() + 60)
        bell = storage.bell(["celery"], owner=owner.name)
        for id in ("a", "b"):
            bell.raise_()
            storage.put([message(id)])
            assert bell.sleep(0)
            assert (bell.copies(), bell.is_unsure) == ([], False)
            assert [(claim.message.id, claim.revoked) for claim in take(storage, owner)] == [(id, id == "a")]
        bell.close()

    def test_what_has_stamps_is_found_in_steps(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        many = [message(f"m{number:03}", headers=stamped(n=number)) for number in range(STEP + 5)]
        storage.put([message("plain"), message("named", headers=json.dumps({"shadow": "n"})), *many])
        storage.put([message("later", headers=stamped(n=1), visible_at=clock.now() + 5)])
        storage.settle([outcome(claim) for claim in take(storage, owner, 3)])
        found: list[str] = []
        seq = 0
        while step := storage.records(stamped_after=seq, whole=True):
            found += step
            seq = max(each.seq for each in step.values())
        assert found == [*(each.id for each in many[1:]), "later"]

    def test_whoever_asks_for_a_process_to_be_stopped_wakes_the_stewards(self, storage: Storage) -> None:
        bell = storage.bell((DUE_BELL,))
        bell.raise_()
        assert storage.write("worker:n", "1", None)
        assert bell.is_up()
        assert storage.write(f"{TERMINATE}a", "{}", None)
        assert bell.sleep(0)
        bell.close()
