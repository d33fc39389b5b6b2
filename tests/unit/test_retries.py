"""How soon a task runs again by itself, and which exceptions make it: the arithmetic and the wrapping, no worker."""

from __future__ import annotations

import asyncio
import os
import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from working import work_off

from localq import LocalQ, Task, parameters, retries, signals
from localq.exceptions import MaxRetriesExceededError, Retry
from localq.testing.clock import FakeClock

FACTORS = st.one_of(st.integers(0, 10_000), st.floats(0, 1e6), st.booleans())
MOST = st.one_of(st.integers(0, 10**9), st.floats(0, 1e9))


@pytest.fixture
def app():
    made = LocalQ("proj", store="memory:")
    yield made
    made.close()


def delays(task, number):
    """The seconds before each of so many retries of a task that always fails."""
    found = []

    def note(sender, reason, **_):
        found.append(reason.when)

    signals.task_retry.connect(note, sender=task)
    with FakeClock() as clock:
        task.delay()
        for _ in range(number):
            work_off(task.app)
            clock.advance(10**6)
    signals.task_retry.disconnect(note, sender=task)
    return found[:number]


# -- The arithmetic --------------------------------------------------------------------------------


@pytest.mark.row("F158")
def test_delays_double_up_to_the_most():
    assert [retries.countdown(n, 1, 600) for n in range(12)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]
    assert [retries.countdown(n, 3, 50) for n in range(6)] == [3, 6, 12, 24, 48, 50]


@pytest.mark.row("F158")
@pytest.mark.parametrize(("factor", "seconds"), [(True, 1), (0.5, 1), (1, 1), (2.9, 2), (5, 5)])
def test_the_first_delay_is_the_factor_in_whole_seconds_and_at_least_one(factor, seconds):
    assert retries.countdown(0, factor, 600) == seconds


@pytest.mark.row("F158")
@given(st.integers(0, 10**12), FACTORS, MOST)
def test_no_delay_is_longer_than_the_most_however_often_it_was_tried(times, factor, most):
    seconds = retries.countdown(times, factor, most)
    assert 0 <= seconds <= most
    assert seconds == int(most) or times < 64
    if times < 64:
        assert seconds == min(int(most), int(max(1, factor)) * 2**times)


@pytest.mark.row("F158")
@given(st.integers(0, 40), FACTORS, MOST, st.randoms(use_true_random=False))
def test_with_jitter_it_is_anything_between_0_and_that(times, factor, most, rng):
    assert 0 <= retries.countdown(times, factor, most, rng.randrange) <= retries.countdown(times, factor, most)


@pytest.mark.row("F158")
def test_jitter_draws_every_delay_as_often():
    rng = random.Random(4711)
    drawn = [retries.countdown(2, 2, 600, rng.randrange) for _ in range(9000)]
    assert sorted(set(drawn)) == list(range(9))
    assert all(800 < drawn.count(each) < 1200 for each in range(9))


@given(st.integers(1, 10**9))
def test_chance_stays_below_its_bound(n):
    assert 0 <= retries.draw(n) < n


def test_chance_is_the_kernels_so_that_forked_children_do_not_draw_alike(monkeypatch):
    monkeypatch.setattr(os, "urandom", lambda size: b"\0" * (size - 1) + b"\7")
    assert retries.draw(100) == 7


# -- What the options ask for ----------------------------------------------------------------------


def options(**given):
    usual = {"retry_kwargs": None, "retry_backoff": False, "retry_backoff_max": 600, "retry_jitter": True}
    return SimpleNamespace(**{**usual, **given})


@pytest.mark.row("F157", "F158")
@pytest.mark.parametrize(("given", "expected"), [
    ({}, {}), ({"retry_kwargs": {"max_retries": 5, "countdown": 7}}, {"max_retries": 5, "countdown": 7}),
    ({"retry_backoff": 3, "retry_jitter": False}, {"countdown": 24}),
    ({"retry_backoff": 3}, {"countdown": 24}), ({"retry_backoff": 0}, {}),
    ({"retry_backoff": True, "retry_backoff_max": 5}, {"countdown": 5}),
    ({"retry_backoff": True, "retry_kwargs": {"countdown": 1, "queue": "slow"}}, {"countdown": 8, "queue": "slow"}),
], ids=str)  # fmt: skip
def test_a_retry_is_asked_for_with_what_the_options_say(given, expected):
    assert retries.wanted(options(**given), 3, draw=lambda n: n - 1) == expected


@pytest.mark.row("F157")
def test_what_a_task_is_given_for_all_retries_is_not_changed_by_one():
    given = {"max_retries": 5}
    retries.wanted(options(retry_kwargs=given, retry_backoff=True), 2)
    assert given == {"max_retries": 5}


@pytest.mark.row("F158")
def test_without_back_off_it_is_the_tasks_own_delay(app):
    @app.task(autoretry_for=(ValueError,), default_retry_delay=77)
    def fails():
        raise ValueError

    assert delays(fails, 2) == [77, 77]


@pytest.mark.row("F158")
def test_back_off_without_jitter_is_exact(app):
    @app.task(autoretry_for=(ValueError,), retry_backoff=True, retry_jitter=False, retry_backoff_max=20, max_retries=9)
    def fails():
        raise ValueError

    assert delays(fails, 7) == [1, 2, 4, 8, 16, 20, 20]


@pytest.mark.row("F158")
def test_back_off_with_jitter_stays_below(app, monkeypatch):
    asked = []

    def draw(n):
        asked.append(n)
        return 0

    monkeypatch.setattr(retries.wanted, "__defaults__", (draw,))

    @app.task(autoretry_for=(ValueError,), retry_backoff=10, max_retries=9)
    def fails():
        raise ValueError

    assert delays(fails, 3) == [0, 0, 0]
    assert asked[:3] == [11, 21, 41]


# -- The wrapping ----------------------------------------------------------------------------------


class Other(Exception): ...


class Worse(ValueError): ...


@pytest.mark.row("F150", "F157")
def test_a_function_call_raises_what_the_function_raises(app):
    @app.task(autoretry_for=(ValueError,), retry_kwargs={"max_retries": 5})
    def fails(x):
        """Fail."""
        raise ValueError(x)

    for call in (fails, fails.run, fails._orig_run):
        with pytest.raises(ValueError, match="here"):
            call("here")
    assert (fails.run.__doc__, fails.run.__name__) == ("Fail.", "run")


@pytest.mark.row("F157")
def test_a_task_that_names_no_exceptions_is_not_wrapped(app):
    @app.task
    def plain(): ...

    assert not hasattr(plain, "_orig_run")
    assert "run" not in vars(plain)


@pytest.mark.row("F157")
@pytest.mark.parametrize("named", [ValueError, (ValueError,), [ValueError, OSError], {ValueError}], ids=str)
def test_exceptions_may_be_named_alone_or_in_any_collection(app, named):
    @app.task(autoretry_for=named, dont_autoretry_for=Worse, throws=named)
    def fails(name):
        raise {"value": ValueError, "worse": Worse, "other": Other}[name]

    found = [fails.delay(name) for name in ("value", "worse", "other")]
    work_off(app)
    assert [result.state for result in found] == ["RETRY", "FAILURE", "FAILURE"]


@pytest.mark.row("F157")
def test_options_may_be_set_later_and_in_a_class(app):
    @app.task
    def fails():
        raise ValueError

    fails.autoretry_for = (ValueError,)
    fails.retry_kwargs = {"countdown": 5}
    assert delays(fails, 1) == [5]
    fails.autoretry_for = ()
    result = fails.delay()
    work_off(app)
    assert result.state == "FAILURE"

    class Always(Task):
        name = "proj.always"
        autoretry_for = (OSError,)
        retry_kwargs = {"countdown": 9}

        def run(self):
            raise OSError

    assert delays(app.register_task(Always), 1) == [9]


@pytest.mark.row("F157")
def test_the_run_of_a_coroutine_function_stays_one(app):
    @app.task(autoretry_for=(ValueError,), max_retries=1)
    async def work(x):
        if x:
            raise ValueError(x)
        return "done"

    assert asyncio.iscoroutinefunction(work.run)
    assert asyncio.run(work.run(0)) == "done"
    work.push_request(id="the-id", called_directly=False, retries=1, args=[1], kwargs={})
    with pytest.raises(ValueError, match="late"):  # and it has no attempts left
        asyncio.run(work.run("late"))
    work.pop_request()


@pytest.mark.row("F157")
def test_what_a_test_puts_in_the_place_of_run_stays_there(app, monkeypatch):
    @app.task(autoretry_for=(ValueError,))
    def fails():
        raise ValueError

    with monkeypatch.context() as patch:
        patch.setattr(fails, "run", lambda: "mine")
        app.conf.task_acks_late = True  # everything is derived anew
        assert fails() == "mine"
    assert delays(fails, 1) == [180]


@pytest.mark.row("F157")
def test_an_annotation_wraps_what_is_retried(app):
    def louder(run):
        def wrapped(self, *args):
            raise OSError("wrapped")

        return wrapped

    @app.task(name="proj.fails", autoretry_for=(OSError,), retry_kwargs={"countdown": 3})
    def fails():
        raise ValueError

    app.conf.task_annotations = {"proj.fails": {"@run": louder}}
    assert delays(fails, 1) == [3]
    app.conf.task_annotations = None
    result = fails.delay()
    work_off(app)
    assert result.state == "FAILURE"


@pytest.mark.row("F159")
def test_the_limit_of_a_retry_by_hand_is_that_of_its_attempt_only(app):
    @app.task(bind=True, autoretry_for=(ValueError,), max_retries=2, default_retry_delay=0)
    def work(self, most):
        raise self.retry(exc=ValueError(), max_retries=most) if most else ValueError

    found = [work.delay(most) for most in (1, 4, None)]
    work_off(app)
    assert [(result.state, app.storage.records([result.id])[result.id].retries) for result in found] == [
        ("FAILURE", 1), ("FAILURE", 4), ("FAILURE", 2)
    ]  # fmt: skip


@pytest.mark.row("F159")
def test_a_task_may_say_which_limit_automatic_retries_have(app):
    @app.task(autoretry_for=(ValueError,), max_retries=2, override_max_retries=5, default_retry_delay=0)
    def work():
        raise ValueError

    result = work.delay()
    work_off(app)
    assert app.storage.records([result.id])[result.id].retries == 5


# -- Arguments of the next attempt -----------------------------------------------------------------


def check(a, b=2, *rest, c=3, **more): ...


def nameless(a, /, b): ...


@pytest.mark.row("F154")
@pytest.mark.parametrize(("function", "args", "kwargs", "expected"), [
    (check, None, None, ([1], {"b": 5, "x": 6})),
    (check, (7,), None, ((7,), {"b": 5, "x": 6})),
    (check, (7, 8), None, ((7, 8), {"x": 6})),
    (check, None, {"a": 9}, ([9], {})),
    (check, None, {"c": 9}, ([1], {"c": 9})),
    (check, (7,), {"c": 9}, ((7,), {"c": 9})),
    (nameless, None, {"a": 9}, ([1], {"a": 9})),
    (nameless, (7,), None, ((7,), {"b": 5, "x": 6})),
    (None, (7, 8), None, ((7, 8), {"b": 5, "x": 6})),
    (None, None, {"a": 9}, ([1], {"a": 9})),
], ids=lambda each: getattr(each, "__name__", str(each)))  # fmt: skip
def test_of_what_was_said_before_that_stays_which_still_fits(function, args, kwargs, expected):
    assert parameters.arguments(function, ([1], {"b": 5, "x": 6}), args, kwargs) == expected


# -- The life of a task that is retried ------------------------------------------------------------


@pytest.mark.row("F150", "F151", "F156", "X7")
@given(st.integers(0, 6), st.lists(st.sampled_from(["retry", "raise", "return", "late"]), min_size=8, max_size=8))
def test_a_task_is_retried_until_it_returns_or_has_no_attempts_left(most, script):
    with LocalQ("proj", store="memory:", set_as_current=False) as app, FakeClock() as clock:
        begun = []

        @app.task(bind=True, max_retries=most, track_started=True)
        def work(self):
            begun.append(self.request.retries)
            act = script[self.request.retries]
            if act == "raise":
                raise KeyError(act)
            if act == "retry":
                raise self.retry(exc=OSError(act), countdown=30)
            if act == "late":
                self.retry(countdown=30, throw=False)
            return act

        result = work.delay()
        seen = [result.state]
        for _ in range(8):
            work_off(app)
            seen.append(result.state)
            record = app.storage.records([result.id])[result.id]
            assert (record.state == "RETRY") == (record.place == "waiting")
            clock.advance(29)
            assert work_off(app) == []  # not before its time
            clock.advance(1)
        ends = next((n for n, act in enumerate(script) if act in ("raise", "return")), len(script))
        last = min(ends, most)
        assert begun == list(range(last + 1))
        end = "SUCCESS" if ends <= most and script[ends] == "return" else "FAILURE"
        assert seen == ["PENDING", *["RETRY"] * last, *[end] * (8 - last)]
        if ends > most:
            expected = OSError if script[most] == "retry" else MaxRetriesExceededError
            assert type(app.AsyncResult(result.id).result) is expected


def test_a_retry_of_ones_own_making_is_a_failure_since_it_brings_no_next_attempt(app):
    @app.task
    def odd():
        raise Retry("again, please")

    result = odd.delay()
    work_off(app)
    assert (result.state, str(result.result)) == ("FAILURE", "again, please")
