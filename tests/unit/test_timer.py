"""One heap of things to do: in order, never early, no poll between, and nothing that is planned gets lost."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from localq.exceptions import StoreReplaced
from localq.testing.clock import FakeClock
from localq.worker.timer import IDLE_S, SPARE, Timer

delays = st.integers(0, 20)


def test_an_empty_timer_has_nothing_to_wait_for():
    with FakeClock():
        assert Timer().tick() == IDLE_S


def test_tick_says_how_long_it_is_to_the_next_deadline():
    with FakeClock() as clock:
        timer = Timer()
        timer.after(10, lambda: None)
        timer.after(3, lambda: None)
        assert timer.tick() == 3
        clock.advance(1)
        assert timer.tick() == 2


def test_nothing_happens_before_its_time():
    with FakeClock() as clock:
        timer, done = Timer(), []
        timer.after(5, lambda: done.append(1))
        clock.advance(4.75)
        timer.tick()
        assert done == []
        clock.advance(0.25)
        timer.tick()
        assert done == [1]
        assert len(timer) == 0


def test_a_cancelled_entry_does_not_happen():
    with FakeClock() as clock:
        timer, done = Timer(), []
        timer.after(5, lambda: done.append("once")).cancel()
        timer.every(5, lambda: done.append("often")).cancel()
        clock.advance(60)
        timer.tick()
        assert done == []
        assert len(timer) == 0


def test_a_repeated_act_that_was_missed_is_not_made_up_for():
    with FakeClock() as clock:
        timer, done = Timer(), []
        timer.every(10, lambda: done.append(clock.now()))
        clock.advance(1000)
        assert timer.tick() == 10
        assert len(done) == 1


def test_a_repeated_act_can_cancel_itself():
    with FakeClock() as clock:
        timer, done = Timer(), []

        def act():
            done.append(1)
            entry.cancel()

        entry = timer.every(1, act)
        for _ in range(3):
            clock.advance(1)
            timer.tick()
        assert done == [1]


def test_what_an_act_plans_for_now_happens_at_the_next_tick():
    with FakeClock():
        timer, done = Timer(), []
        timer.after(0, lambda: timer.after(0, lambda: done.append("second")))
        assert timer.tick() == 0
        assert done == []
        assert timer.tick() == IDLE_S
        assert done == ["second"]


def test_a_change_of_the_wall_clock_moves_nothing():
    with FakeClock() as clock:
        timer, done = Timer(), []
        timer.after(5, lambda: done.append(1))
        clock.jump(86400)
        assert timer.tick() == 5
        assert done == []


def test_a_hundred_thousand_acts_in_any_order_happen_in_the_order_of_their_times():
    with FakeClock() as clock:
        timer, done = Timer(), []
        times = [random.Random(1).randrange(10_000) for _ in range(100_000)]
        for number, at in enumerate(times):
            timer.after(at, lambda number=number: done.append((clock.now() - start, number)))
        start = clock.now()
        while (pause := timer.tick()) != IDLE_S:
            clock.advance(pause)
    assert done == sorted((at, number) for number, at in enumerate(times))


def test_acts_of_one_time_happen_in_the_order_in_which_they_were_planned():
    with FakeClock() as clock:
        timer, done = Timer(), []
        for number in range(100):
            timer.after(5, lambda number=number: done.append(number))
        clock.advance(5)
        timer.tick()
    assert done == list(range(100))


def test_what_is_past_when_it_is_planned_does_not_overtake():
    with FakeClock():
        timer, done = Timer(), []
        timer.after(0, lambda: done.append("first"))
        timer.after(-1000, lambda: done.append("second"))
        assert timer.tick() == IDLE_S
    assert done == ["first", "second"]


def test_an_act_that_always_plans_another_does_not_keep_the_loop():
    with FakeClock() as clock:
        timer, done = Timer(), []

        def act():
            done.append(clock.now())
            timer.after(0, act)

        act()
        assert [timer.tick() for _ in range(3)] == [0, 0, 0]
    assert len(done) == 4


def test_an_act_that_takes_its_time_does_not_make_the_next_one_wait_longer():
    with FakeClock() as clock:
        timer = Timer()
        timer.after(1, lambda: clock.advance(3))
        timer.after(10, lambda: None)
        timer.after(2, lambda: None)
        clock.advance(1)
        assert timer.tick() == 0
        assert timer.tick() == 6


def test_a_hundred_thousand_cancelled_entries_take_no_room():
    with FakeClock():
        timer = Timer()
        kept = [timer.after(60, lambda: None) for _ in range(10)]
        most = 0
        for _ in range(100_000):
            timer.after(60, lambda: None).cancel()
            most = max(most, len(timer._heap))
        assert most <= 2 * len(kept) + SPARE + 1
        assert len(timer) == len(kept)


def test_a_cancelled_entry_is_not_waited_for():
    with FakeClock():
        timer = Timer()
        first = timer.after(3, lambda: None)
        timer.after(10, lambda: None)
        first.cancel()
        first.cancel()
        assert timer.tick() == 10


def test_cancelling_what_has_happened_changes_nothing():
    with FakeClock() as clock:
        timer, done = Timer(), []
        first = timer.after(1, lambda: first.cancel())
        timer.after(2, lambda: done.append(2))
        clock.advance(1)
        timer.tick()
        first.cancel()
        assert len(timer) == 1
        clock.advance(1)
        timer.tick()
    assert done == [2]


def test_an_act_that_fails_costs_nobody_anything(caplog):
    with FakeClock() as clock:
        timer, done = Timer(), []

        def fail():
            done.append("fail")
            raise ZeroDivisionError("of the service")

        timer.every(1, fail)
        timer.after(1, fail)
        timer.after(1, lambda: done.append("after"))
        timer.every(1, lambda: done.append("every"))
        for _ in range(2):
            clock.advance(1)
            assert timer.tick() == 1
    assert done == ["fail", "fail", "after", "every", "fail", "every"]
    assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError] * 3
    assert "fail" in caplog.records[0].getMessage()


def test_an_error_of_the_store_ends_the_tick_and_what_was_planned_stays_planned():
    with FakeClock() as clock:
        timer, done = Timer(), []

        def gone():
            raise StoreReplaced("the store is gone")

        timer.every(1, gone)
        timer.after(1, lambda: done.append("after"))
        clock.advance(1)
        with pytest.raises(StoreReplaced):
            timer.tick()
        assert (done, len(timer)) == ([], 2)
        assert timer.tick() == 1
    assert done == ["after"]


class Beside(RuleBasedStateMachine):
    """A timer beside a list that is sorted whenever somebody asks."""

    entries = Bundle("entries")

    def __init__(self):
        super().__init__()
        self.clock = FakeClock().__enter__()
        self.timer, self.done, self.expected = Timer(), [], []
        #: number -> [when, order of planning, period]
        self.planned = {}
        self.numbers, self.orders = iter(range(10**9)), iter(range(10**9))

    def teardown(self):
        self.clock.__exit__(None, None, None)

    def plan(self, plan, delay, period):
        number = next(self.numbers)
        entry = plan(delay, lambda: self.done.append(number))
        self.planned[number] = [self.clock.monotonic() + delay, next(self.orders), period]
        return entry, number

    @rule(target=entries, delay=delays)
    def after(self, delay):
        return self.plan(self.timer.after, delay, None)

    @rule(target=entries, period=st.integers(1, 20))
    def every(self, period):
        return self.plan(self.timer.every, period, period)

    @rule(planned=entries)
    def cancel(self, planned):
        entry, number = planned
        entry.cancel()
        self.planned.pop(number, None)

    @rule(seconds=st.integers(0, 8))
    def advance(self, seconds):
        self.clock.advance(seconds)

    @rule(seconds=st.integers(-100_000, 100_000))
    def set_the_clock(self, seconds):
        self.clock.jump(seconds)

    @rule()
    def tick(self):
        now = self.clock.monotonic()
        for at, _, number in sorted((at, order, number) for number, (at, order, _) in self.planned.items()):
            if at <= now:
                self.expected.append(number)
                period = self.planned.pop(number)[2]
                if period is not None:
                    self.planned[number] = [now + period, next(self.orders), period]
        next_at = min((at for at, _, _ in self.planned.values()), default=now + IDLE_S)
        assert self.timer.tick() == next_at - now
        assert self.done == self.expected

    @invariant()
    def as_much_is_planned_as_in_the_list(self):
        assert len(self.timer) == len(self.planned)
        assert len(self.timer._heap) <= 2 * len(self.planned) + SPARE + 1


TestBesideAList = Beside.TestCase


@given(st.lists(st.tuples(st.integers(0, 5), delays), max_size=30))
def test_acts_happen_at_their_time_in_order_of_time_then_of_planning(steps):
    with FakeClock() as clock:
        timer, done, planned = Timer(), [], []
        start = clock.now()
        for number, (pause, delay) in enumerate(steps):
            clock.advance(pause)
            planned.append((clock.now() + delay, number))
            timer.after(delay, lambda number=number: done.append((clock.now(), number)))
        # From here on the loop waits exactly as long as it is told to.
        clock_at_end_of_planning = clock.now()
        while (pause := timer.tick()) != IDLE_S:
            clock.advance(pause)
        expected = [(max(at, clock_at_end_of_planning), number) for at, number in sorted(planned)]
        assert done == expected
        assert clock.now() - start <= sum(pause for pause, _ in steps) + 20
