"""One heap of things to do: in order, never early, no poll between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from localq.testing.clock import FakeClock
from localq.worker.timer import IDLE_S, Timer

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


def test_an_act_may_plan_another_that_is_due_at_once():
    with FakeClock():
        timer, done = Timer(), []
        timer.after(0, lambda: timer.after(0, lambda: done.append("second")))
        timer.tick()
        assert done == ["second"]


def test_a_change_of_the_wall_clock_moves_nothing():
    with FakeClock() as clock:
        timer, done = Timer(), []
        timer.after(5, lambda: done.append(1))
        clock._now += 86400
        assert timer.tick() == 5
        assert done == []


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
