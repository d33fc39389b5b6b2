"""The contract: what becomes of messages that wait for the end of others."""

from __future__ import annotations

import pytest

from localq.message import (
    ENTERS,
    LEADS_ANYWAY,
    LEADS_BY_GROUP,
    LEADS_BY_ID,
    LEADS_IF_BAD,
    SHOWS_CAUSE,
    WAITS_ANYWAY,
    WAITS_IF_BAD,
)
from localq.serialization import checksum
from localq.states import ENDED, FAILURE, HELD, IGNORED, REVOKED, SUCCESS, WAITING
from localq.storage.base import DUE_BELL, STEP, Count, Owner, Storage
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

#: More steps than Python allows frames: a chain must not be walked by recursion.
LONG = 1100


class FollowerContract(Made):
    """Chains and chords: `after`, `waits_for`, `leads`."""

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

    def test_a_time_below_zero_counts_from_the_end_that_is_waited_for(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        first, second = chain("a", "b")
        storage.put([first, second._replace(visible_at=-60.0, expires_at=-90.0)])
        bell = storage.bell((DUE_BELL,))
        bell.raise_()
        clock.advance(1000)
        now = clock.now()
        storage.settle([outcome(take_one(storage, owner))])
        assert (places(storage, "b"), storage.due(5)) == ([WAITING], [now + 60])
        assert not bell.is_up()
        bell.close()
        clock.advance(60)
        message = take_one(storage, owner).message
        assert (message.visible_at, message.expires_at) == (now + 60, now + 90)

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

    def test_who_follows_is_known_before_and_after_the_end(self, storage: Storage, owner: Owner) -> None:
        storage.put([*chain("a", "b", "c"), *chord("g", "m", "n"), message("beside", after="a", waits_for=1)])
        for _ in range(2):
            assert list(storage.records(follows="a")) == ["b", "beside"]
            assert list(storage.records(follows="g")) == ["body"]
            assert storage.records(follows="body") == storage.records(follows="nobody") == {}
            found = storage.records(follows="b", whole=True)["c"].message
            assert found is not None
            assert found.after == "b"
            while claims := take(storage, owner):
                storage.settle([outcome(claim) for claim in claims])
        assert places(storage, "b", "c", "body") == [ENDED] * 3

    def test_followers_and_members_are_read_a_step_at_a_time(self, storage: Storage) -> None:
        many = [message(f"{at:04}", after="a", waits_for=1, group_id="g", position=at) for at in range(STEP + 5)]
        storage.put([message("a", leads=LEADS_BY_ID), *many])
        names = [each.id for each in many]
        first = storage.records(follows="a", whole=True)
        assert list(first) == names[:STEP]
        assert list(storage.records(follows="a", start=first[names[STEP - 1]].seq + 1)) == names[STEP:]
        assert list(storage.records(group_id="g")) == names
        assert list(storage.records(group_id="g", start=0)) == names[:STEP]
        assert list(storage.records(group_id="g", start=STEP - 1)) == names[STEP - 1 :]

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

    @pytest.mark.parametrize("ends", [(SUCCESS, SUCCESS), (FAILURE, SUCCESS), (REVOKED, FAILURE), (None, IGNORED)])
    def test_who_waits_for_ends_of_any_kind_goes_on_after_the_last(
        self, storage: Storage, owner: Owner, ends: tuple[str | None, ...]
    ) -> None:
        of_group = {"group_id": "g", "leads": LEADS_ANYWAY}
        storage.put([message(id, position=at, **of_group) for at, id in enumerate("ab")])
        storage.put([message("done", after="g", waits_for=2, leads=WAITS_ANYWAY)])
        for claim, state in zip(take(storage, owner), ends, strict=True):
            assert record(storage, "done").hold == "ends:g"
            storage.settle([outcome(claim, state)])
        assert ids(take(storage, owner)) == ["done"]

    def test_who_waits_for_a_failure_runs_once_after_the_first(self, storage: Storage, owner: Owner) -> None:
        members = [
            message(id, group_id="g", position=at, leads=LEADS_BY_GROUP | LEADS_IF_BAD) for at, id in enumerate("abc")
        ]
        storage.put([*members, message("body", after="g", waits_for=3)])
        storage.put([message("told", after="g", waits_for=3, leads=WAITS_IF_BAD)])
        a, b, c = take(storage, owner)
        assert storage.settle([outcome(a)], want(owner)).claims == []
        assert ids(storage.settle([failure(b)], want(owner)).claims) == ["told"]
        assert storage.settle([failure(c)], want(owner)).claims == []
        assert record(storage, "body").state == FAILURE

    def test_who_waits_for_a_failure_that_does_not_come_is_gone(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a", group_id="g", position=0, leads=LEADS_IF_BAD)])
        storage.put([message("told", after="g", waits_for=1, leads=WAITS_IF_BAD)])
        assert storage.settle([outcome(take_one(storage, owner))], want(owner)).claims == []
        assert storage.records(["told"]) == {}

    def test_who_shows_the_cause_shows_what_the_member_failed_with(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a", group_id="g", position=0, leads=LEADS_BY_GROUP)])
        storage.put([message(id, after="g", waits_for=1, leads=leads) for id, leads in (("b", SHOWS_CAUSE), ("c", 0))])
        bad = failure(take_one(storage, owner), group_failure=b'"of the group"')
        storage.settle([bad])
        assert [record(storage, id).result for id in "bc"] == [bad.result, b'"of the group"']

    def test_a_group_that_is_lost_as_a_whole_fails_as_what_stands_before_it(
        self, storage: Storage, owner: Owner
    ) -> None:
        """And who would be told of a member's failure is not."""
        of_group = {"group_id": "g", "leads": LEADS_BY_GROUP | LEADS_IF_BAD | ENTERS}
        storage.put([message("first", leads=LEADS_BY_ID), message("body", after="g", waits_for=2)])
        storage.put([message(id, after="first", waits_for=1, position=at, **of_group) for at, id in enumerate("ab")])
        storage.put([message("told", after="g", waits_for=2, leads=WAITS_IF_BAD)])
        bad = failure(take_one(storage, owner), group_failure=b'"of the group"')
        assert storage.settle([bad], want(owner)).claims == []
        assert {record(storage, id).result for id in ("a", "b", "body")} == {bad.result}
        assert storage.records(["told"]) == {}

    def test_those_behind_an_attempt_that_is_no_end_stay_held(self, storage: Storage, owner: Owner) -> None:
        storage.put([*chain("a", "b"), *chain("c", "d"), *chain("e", "f")])
        a, c, e = take(storage, owner)
        storage.settle([again(a, a.message, group_failure=b"1"), given_back(c), outcome(e, None)])
        assert places(storage, "b", "d", "f") == [HELD] * 3
