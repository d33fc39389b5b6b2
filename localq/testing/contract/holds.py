"""The contract: messages that wait under a key, and tasks that may start only so often."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localq.message import Claim, Rate, Want
from localq.rates import BUCKET
from localq.states import ENDED, HELD, PENDING, READY
from localq.storage.base import DUE_BELL, Owner, Storage
from localq.testing.clock import FakeClock
from localq.testing.contract.made import Made
from localq.testing.contract.words import ids, message, outcome, parked, places, record, take, take_one, want

#: One start in ten seconds, whoever starts it.
SLOW = {"t.slow": Rate("t.slow", "bucket:t.slow", 10.0)}
KEY = "name:t.add@celery"


def limits(**periods: float) -> dict[str, Rate]:
    return {name: Rate(name, f"{BUCKET}{name}", period_s) for name, period_s in periods.items()}


def slow(id: str, **columns: Any) -> Any:
    return message(id, name="t.slow", **columns)


class HoldContract(Made):
    """`Outcome.hold`, `Want.frees` and `Want.rates`."""

    # -- keys ----------------------------------------------------------------------------------------

    def test_a_parked_message_is_nobodys_and_in_nobodys_way(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b")])
        turn = storage.settle([parked(take_one(storage, owner), KEY)], want(owner))
        assert ids(turn.claims) == ["b"]
        found = record(storage, "a")
        assert (found.place, found.hold, found.state) == (HELD, KEY, PENDING)
        assert [claim.message.id for claim in storage.estate(owner.name).claims] == ["b"]

    def test_the_first_under_a_key_is_told_of_and_an_entry_tells_others(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), message("b")])
        claims = take(storage, owner, 2)
        assert storage.settle([parked(claims[0], KEY)])[2:] == (1, (KEY,))
        assert storage.settle([parked(claims[1], KEY)])[2:] == (1, ())
        assert [entry.key for entry in storage.entries("name:")] == [KEY]

    def test_the_claim_of_a_parked_message_is_stale(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        claim = take_one(storage, owner)
        storage.settle([parked(claim, KEY)])
        for late in (outcome(claim), parked(claim, "name:other")):
            assert storage.settle([late]).stale == [late]
        assert record(storage, "a").hold == KEY

    def test_freed_messages_are_claimed_in_their_order(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("late", priority=9), message("a"), message("b"), message("first", priority=0)])
        storage.settle([parked(claim, KEY) for claim in take(storage, owner)])
        turn = storage.settle((), Want(owner.name, ("celery",), 10, 0.0, frees=(KEY,)))
        assert turn.moved == 4
        assert ids(turn.claims) == ["first", "a", "b", "late"]
        assert storage.entries("name:") == []

    def test_a_backlog_is_freed_in_steps_and_wholly(self, storage: Storage, owner: Owner) -> None:
        storage.put([message() for _ in range(700)])
        while claims := take(storage, owner, 100):
            storage.settle([parked(claim, KEY) for claim in claims])
        steps = []
        while moved := storage.settle((), Want("", (), 0, 0.0, frees=(KEY,))).moved:
            steps.append(moved)
        assert sum(steps) == 700
        assert max(steps) < 700
        assert [(count.place, count.number) for count in storage.counts()] == [(READY, 700)]
        assert storage.entries("name:") == []

    def test_freeing_wakes_a_sleeper(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a")])
        storage.settle([parked(take_one(storage, owner), KEY)])
        bell = storage.bell(("celery",))
        bell.raise_()
        storage.settle((), Want("", (), 0, 0.0, frees=(KEY,)))
        assert bell.sleep(0)
        bell.close()

    # -- rates -----------------------------------------------------------------------------------------

    def test_a_task_starts_only_so_often(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        storage.put([slow("a"), slow("b"), slow("c")])
        assert ids(take(storage, owner, rates=SLOW)) == ["a"]
        clock.advance(9.99)
        assert take(storage, owner, rates=SLOW) == []
        clock.advance(0.02)
        assert ids(take(storage, owner, rates=SLOW)) == ["b"]
        assert take(storage, owner, rates=SLOW) == []

    def test_time_that_nothing_used_is_not_made_up_for(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        storage.put([slow("a"), slow("b"), slow("c")])
        take(storage, owner, rates=SLOW)
        clock.advance(1000)
        assert ids(take(storage, owner, rates=SLOW)) == ["b"]
        assert take(storage, owner, rates=SLOW) == []

    def test_two_owners_share_a_limit(self, storage: Storage, owner: Owner, other: Owner, clock: FakeClock) -> None:
        storage.put([slow("a"), slow("b")])
        assert ids(take(storage, owner, rates=SLOW)) == ["a"]
        assert take(storage, other, rates=SLOW) == []
        clock.advance(10)
        assert ids(take(storage, other, rates=SLOW)) == ["b"]

    def test_owners_with_buckets_of_their_own_do_not(self, storage: Storage, owner: Owner, other: Owner) -> None:
        storage.put([slow("a"), slow("b"), slow("c")])
        mine, its = ({"t.slow": SLOW["t.slow"]._replace(bucket=f"bucket:t.slow@{node}")} for node in "12")
        assert ids(take(storage, owner, rates=mine)) == ["a"]
        assert take(storage, owner, rates=mine) == []
        assert ids(take(storage, other, rates=its)) == ["b"]

    def test_those_that_wait_are_in_nobodys_way(self, storage: Storage, owner: Owner) -> None:
        storage.put([slow(f"s{number}") for number in range(1200)] + [message("a", priority=200)])
        found: list[str] = []
        for _ in range(10):
            turn = storage.settle((), want(owner, 1)._replace(rates=SLOW))
            found += ids(turn.claims)
            if not turn.claims and not turn.moved:
                break
        assert found == ["s0", "a"]

    def test_the_most_urgent_of_those_that_wait_is_the_next(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        storage.put([slow("a"), slow("b")])
        take(storage, owner, rates=SLOW)
        storage.put([slow("urgent", priority=0)])
        clock.advance(10)
        assert ids(take(storage, owner, rates=SLOW)) == ["urgent"]
        clock.advance(10)
        assert ids(take(storage, owner, rates=SLOW)) == ["b"]

    def test_one_start_with_a_token_a_claim_and_that_one_first(self, storage: Storage, owner: Owner) -> None:
        storage.put([message("a"), slow("s"), message("x", name="t.other")])
        rates = {**SLOW, **limits(**{"t.other": 5.0})}
        assert ids(take(storage, owner, rates=rates)) == ["s", "a"]
        assert ids(take(storage, owner, rates=rates)) == ["x"]

    def test_whoever_sleeps_until_something_is_due_learns_of_turns(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        storage.put([slow("a"), slow("b")])
        bell = storage.bell((DUE_BELL,))
        bell.raise_()
        started_at = clock.now()
        take(storage, owner, rates=SLOW)
        assert bell.sleep(0)
        assert storage.due(5) == [started_at + 10]
        bell.close()

    def test_of_what_an_owner_parks_itself_the_turn_is_known_too(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        storage.put([slow("a"), slow("b")])
        started_at = clock.now()
        take(storage, owner, rates=SLOW)
        storage.settle((), want(owner)._replace(frees=("rate:t.slow@celery",), limit=0))
        claim = take_one(storage, owner)
        bell = storage.bell((DUE_BELL,))
        bell.raise_()
        storage.settle([parked(claim, "rate:t.slow@celery")], want(owner)._replace(rates=SLOW))
        assert bell.sleep(0)
        assert storage.due(5) == [started_at + 10]
        clock.advance(10)
        assert ids(take(storage, owner, rates=SLOW)) == ["b"]
        bell.close()

    def test_a_promotion_wakes_a_sleeper_for_whoever_has_a_turn(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        storage.put([slow("a"), slow("b")])
        take(storage, owner, rates=SLOW)
        bell = storage.bell(("celery",))
        bell.raise_()
        storage.settle((), Want("", (), 0, clock.now()))
        assert not bell.sleep(0)
        clock.advance(10)
        storage.settle((), Want("", (), 0, clock.now()))
        assert bell.sleep(0)
        assert ids(take(storage, owner, rates=SLOW)) == ["b"]
        bell.close()

    def test_a_clock_that_is_set_back_stops_nothing(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        storage.put([slow("a"), slow("b")])
        take(storage, owner, rates=SLOW)
        clock.jump(-86_400)
        assert ids(take(storage, owner, rates=SLOW)) == ["b"]

    def test_other_queues_are_left_alone(self, storage: Storage, owner: Owner, clock: FakeClock) -> None:
        storage.put([slow("a", queue="mail"), slow("b", queue="mail"), slow("c")])
        assert ids(take(storage, owner, queues=("mail",), rates=SLOW)) == ["a"]
        clock.advance(10)
        assert ids(take(storage, owner, rates=SLOW)) == ["c"]
        clock.advance(10)
        assert ids(take(storage, owner, queues=("mail", "celery"), rates=SLOW)) == ["b"]

    def test_a_queue_that_nobody_serves_keeps_no_other_waiting(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        storage.put([slow("first", queue="mail"), slow("lost", queue="mail"), slow("mine"), slow("next")])
        assert ids(take(storage, owner, queues=("mail",), rates=SLOW)) == ["first"]
        assert take(storage, owner, queues=("mail",), rates=SLOW) == []
        assert take(storage, owner, rates=SLOW) == []
        for id in ("mine", "next"):
            clock.advance(10)
            assert ids(take(storage, owner, rates=SLOW)) == [id]

    def test_a_turn_that_nobody_takes_wakes_nobody_time_and_again(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        storage.put([slow("a"), slow("b")])
        take(storage, owner, rates=SLOW)
        clock.advance(10)
        bell = storage.bell(("celery",))
        bell.raise_()
        assert take(storage, owner) == []  # whoever knows nothing of the limit takes nothing, and rings nobody
        assert not bell.sleep(0)
        clock.advance(5)
        assert storage.due(9) == []
        storage.put([message("later", visible_at=clock.now() + 1)])
        assert storage.due(9) == [clock.now() + 1]
        assert ids(take(storage, owner, rates=SLOW)) == ["b"]
        bell.close()

    def test_whoever_has_no_limit_takes_them_once_they_are_freed(self, storage: Storage, owner: Owner) -> None:
        storage.put([slow("a"), slow("b"), slow("c")])
        take(storage, owner, rates=SLOW)
        turn = storage.settle((), want(owner)._replace(frees=("rate:t.slow@celery",)))
        assert ids(turn.claims) == ["b", "c"]
        assert storage.entries("rate:") == []

    def test_a_token_is_used_up_by_a_claim_that_is_given_back(
        self, storage: Storage, owner: Owner, clock: FakeClock
    ) -> None:
        storage.put([slow("a")])
        storage.settle([outcome(take(storage, owner, rates=SLOW)[0], None, ended=False)])
        assert take(storage, owner, rates=SLOW) == []
        clock.advance(10)
        assert ids(take(storage, owner, rates=SLOW)) == ["a"]

    def test_no_window_has_more_starts_than_the_limit_and_nothing_is_lost(self, tmp_path: Path) -> None:
        """Any history of sending, claiming by two owners and time going by."""
        periods = {"t.fast": 0.5, "t.slow": 3.0}
        step = st.one_of(
            st.tuples(st.just("send"), st.sampled_from(["t.fast", "t.slow", "t.free"]), st.integers(0, 2)),
            st.tuples(st.just("claim"), st.sampled_from([0, 1]), st.integers(1, 4)),
            st.tuples(st.just("wait"), st.floats(0.01, 2.0), st.none()),
        )
        numbers = iter(range(10**6))

        @settings(max_examples=30, suppress_health_check=list(HealthCheck), deadline=None)
        @given(st.lists(step, max_size=40))
        def check(steps: list[tuple[str, Any, Any]]) -> None:
            with FakeClock() as clock:
                storage = self.make(tmp_path / f"store{next(numbers)}")
                owners = [storage.enlist({"kind": "child"}) for _ in range(2)]
                sent, starts = 0, defaultdict(list)

                def note(claims: list[Claim]) -> None:
                    for claim in claims:
                        starts[claim.message.name].append(clock.now())
                    storage.settle([outcome(claim) for claim in claims])

                for kind, what, number in steps:
                    if kind == "send":
                        storage.put([message(name=what, priority=number)])
                        sent += 1
                    elif kind == "wait":
                        clock.advance(what)
                    else:
                        note(take(storage, owners[what], number, rates=limits(**periods)))
                for _ in range(10 * sent):
                    clock.advance(0.5)
                    note(take(storage, owners[0], rates=limits(**periods)))
                assert sum(map(len, starts.values())) == sent
                assert {count.place for count in storage.counts()} <= {ENDED}
                for name, period_s in periods.items():
                    gaps = [later - earlier for earlier, later in zip(starts[name], starts[name][1:], strict=False)]
                    assert all(gap >= period_s - 1e-6 for gap in gaps), gaps
                for each in owners:
                    each.close()
                storage.close()

        check()

    def test_parked_messages_are_where_they_say(self, storage: Storage, owner: Owner) -> None:
        storage.put([slow("a"), slow("b")])
        take(storage, owner, rates=SLOW)
        assert places(storage, "a", "b") == [HELD, HELD]
        assert record(storage, "b").hold == "rate:t.slow@celery"
        assert list(storage.records(hold="rate:t.slow@celery")) == ["b"]
