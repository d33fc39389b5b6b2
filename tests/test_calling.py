"""A call goes out and its result comes back, in every way of running tasks."""

from __future__ import annotations

import pytest
from waiting import wait_until

from localq import chain, chord, group
from localq.result import allow_join_result


@pytest.mark.row("F064", "F093")
def test_a_call_returns_its_value(app, running):
    @app.task
    def add(x, y):
        return x + y

    with running():
        result = add.delay(2, 3)
        assert result.get(timeout=10) == 5
        assert result.state == "SUCCESS"


def test_an_exception_comes_back_as_its_own_class(app, running):
    @app.task
    def fail():
        raise KeyError("nothing here")

    with running():
        result = fail.delay()
        with pytest.raises(KeyError, match="nothing here"):
            result.get(timeout=10)
        assert result.failed()
        assert "KeyError" in result.traceback


def test_a_retry_runs_again_under_the_same_id(app, running):
    @app.task(bind=True, max_retries=3)
    def third_time(self):
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return self.request.id

    with running():
        result = third_time.delay()
        assert result.get(timeout=10) == result.id


def test_retries_end_with_the_exception_that_caused_them(app, running):
    @app.task(bind=True, max_retries=2)
    def never(self):
        raise self.retry(exc=ValueError("still not"), countdown=0)

    with running(), pytest.raises(ValueError, match="still not"):
        never.delay().get(timeout=10)


def test_a_chain_feeds_each_step_the_result_before_it(app, running):
    @app.task
    def add(x, y):
        return x + y

    with running():
        result = chain(add.s(4, 4), add.s(8), add.s(16))()
        assert result.get(timeout=10) == 32
        assert result.parent.get(timeout=10) == 16
        assert result.parent.parent.get(timeout=10) == 8


def test_a_group_returns_its_results_in_order(app, running):
    @app.task
    def double(x):
        return 2 * x

    with running():
        assert group(double.s(i) for i in range(20))().get(timeout=10) == [2 * i for i in range(20)]


def test_a_chord_hands_all_results_to_its_body_once(app, running):
    @app.task
    def double(x):
        return 2 * x

    @app.task
    def total(numbers):
        return sum(numbers)

    with running():
        assert chord((double.s(i) for i in range(10)), total.s())().get(timeout=10) == 90
        assert (group(double.s(i) for i in range(4)) | total.s()).delay().get(timeout=10) == 12


def test_a_failed_step_fails_the_steps_behind_it(app, running):
    @app.task
    def fail():
        raise ValueError("first")

    @app.task
    def after(_):
        return "never"

    with running():
        result = chain(fail.s(), after.s(), after.s())()
        with pytest.raises(ValueError, match="first"):
            result.get(timeout=10)


@pytest.mark.row("F039")
def test_an_ignored_result_is_answered_at_once(app, running):
    @app.task(ignore_result=True)
    def silent():
        return 1

    if running.mode == "eager":
        pytest.skip("eager results are at hand, ignored or not")
    assert silent.delay().get() is None


def test_a_result_that_is_there_before_get_is_called_is_got_at_once(app, running):
    """The bell that was raised before the call was sent has rung by then, and others may have rung it too."""

    @app.task
    def add(x, y):
        return x + y

    with running():
        assert add.delay(0, 0).get(timeout=30) == 0  # from here on this thread has a bell
        results = [add.delay(number, 1) for number in range(20)]
        wait_until(lambda: all(result.ready() for result in results))
        assert [result.get(timeout=30) for result in reversed(results)] == list(range(20, 0, -1))
        assert [add.delay(number, 2).get(timeout=30) for number in range(20)] == list(range(2, 22))


@pytest.mark.row("F047")
def test_what_fails_is_kept_and_not_run_again_whatever_is_said_of_acknowledgement(app, running):
    runs = []

    @app.task(acks_late=True, acks_on_failure=False, acks_on_timeout=False)
    def fail():
        runs.append(1)
        raise ValueError("no")

    with running():
        failed = fail.delay()
        assert isinstance(failed.get(timeout=30, propagate=False), ValueError)
        assert failed.state == "FAILURE"
    assert len(runs) <= 1


@pytest.mark.row("N43")
def test_a_task_is_mapped_over_items_in_one_message_or_in_chunks(app, running):
    @app.task
    def add(x, y=10):
        return x + y

    with running():
        assert add.map([1, 2, 3]).apply_async().get(timeout=30) == [11, 12, 13]
        assert add.starmap([(1, 1), (2, 2)]).delay().get(timeout=30) == [2, 4]
        assert add.chunks([(number, number) for number in range(5)], 2)().get(timeout=30) == [[0, 2], [4, 6], [8]]
        assert (add.s(1) | add.map([1])).delay().get(timeout=30) == [11]
    assert repr(add.map([1])) == f"[{add.name}(x) for x in [1]]"
    with pytest.raises(ValueError, match="above 0"):
        add.chunks([], 0)


@pytest.mark.row("F114")
def test_a_task_that_waits_for_another_is_refused_unless_it_insists(app, running):
    @app.task
    def inner():
        return "inner"

    @app.task
    def outer(insists):
        return inner.apply_async().get(timeout=30, disable_sync_subtasks=not insists)

    @app.task
    def allowed():
        with allow_join_result():
            return inner.delay().get(timeout=30)

    with running():
        with pytest.raises(RuntimeError, match="within a task"):
            outer.delay(False).get(timeout=30)
        if running.mode != "solo":  # one worker for both would wait for itself
            assert outer.delay(True).get(timeout=30) == "inner"
            assert allowed.delay().get(timeout=30) == "inner"


def test_children_are_the_results_of_callbacks_and_of_what_a_task_sends(app, running):
    @app.task
    def add(x, y):
        return x + y

    @app.task
    def send():
        add.delay(1, 1)
        group(add.s(2, 2), add.s(3, 3)).delay()

    with running():
        result = send.apply_async(link=add.si(9, 9))
        result.get(timeout=30)
        if running.mode == "eager":
            return
        kept = app.AsyncResult(result.id).children
        assert [each.get(timeout=30) for each in kept] == [18, 2, [4, 6]]


def test_a_task_sees_what_is_still_to_come_behind_it(app, running):
    @app.task(bind=True)
    def look(self, *_):
        return [[step["task"] for step in self.request.chain or ()], (self.request.chord or {}).get("task")]

    @app.task
    def end(*_):
        return "end"

    with running():
        if running.mode == "eager":
            return
        steps = chain(look.s(), end.si(), group(end.si(), end.si()), end.si()).apply_async(link=None)
        first = steps.parent.parent.parent
        assert first.get(timeout=30)[0] == [end.name, "celery.group", end.name]
        assert chord([look.s(), look.s()], end.s())().parent[0].get(timeout=30) == [[], end.name]
