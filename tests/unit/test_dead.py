"""What failed runs again by hand, and nothing else does."""

from __future__ import annotations

import threading

import pytest
from working import claims_of, work_off

from localq import LocalQ, chain, chord, dead
from localq.exceptions import Ignore, RetryRefused, WorkerLostError
from localq.message import Outcome
from localq.recovery import lost
from localq.states import REVOKED
from localq.testing.clock import FakeClock
from localq.testing.worker import start_worker


@pytest.fixture
def app():
    return LocalQ("proj", store="memory:", set_as_current=False)


@pytest.fixture
def broken(app):
    """What the tasks of a test cannot do yet; empty it, and they can."""
    return {"add", "join"}


@pytest.fixture
def add(app, broken):
    def add(x, y=0):
        if "add" in broken:
            raise ValueError(f"cannot add {x}")
        return x + y

    return app.task(name="proj.add")(add)


@pytest.fixture
def join(app, broken):
    def join(values):
        if "join" in broken:
            raise ValueError("cannot join")
        return values

    return app.task(name="proj.join")(join)


def failed(app, task, *args, **options):
    """A call that has failed."""
    result = task.apply_async(args, **options)
    work_off(app)
    assert result.state == "FAILURE"
    return result


def refusal(result):
    with pytest.raises(RetryRefused) as raised:
        result.retry()
    return str(raised.value)


# -- AsyncResult.retry -----------------------------------------------------------------------------


def test_what_failed_runs_again_with_its_own_arguments_and_the_same_handle_waits_for_the_new_end(app, add, broken):
    result = failed(app, add, 2, 3)
    with pytest.raises(ValueError, match="cannot add 2"):
        result.get(timeout=0)
    broken.clear()
    assert result.retry() is result
    assert (result.state, result.ready(), result.result, result.traceback, result.date_done) == (
        "PENDING", False, None, None, None,
    )  # fmt: skip
    assert work_off(app) == [result.id]
    assert (result.get(timeout=0), result.state) == (5, "SUCCESS")


def test_what_fails_again_may_be_retried_again(app, add, broken):
    result = failed(app, add, 1)
    for _ in range(3):
        result.retry()
        assert work_off(app) == [result.id]
        assert result.state == "FAILURE"


def test_what_was_revoked_runs_again_and_does_not_expire_at_once(app, add, broken):
    broken.clear()
    with FakeClock() as clock:
        result = add.apply_async((1, 1), expires=10)
        clock.advance(11)
        work_off(app)
        assert result.state == REVOKED
        result.retry()
        work_off(app)
    assert result.get(timeout=0) == 2


def test_it_runs_now_whatever_its_eta_was(app, add, broken):
    with FakeClock() as clock:
        result = add.apply_async((1,), eta="2100-01-01T00:00:00+00:00")
        clock.advance(10**10)
        work_off(app)
    broken.clear()
    result.retry()
    assert (work_off(app), result.state) == ([result.id], "SUCCESS")


def test_retries_and_crashes_are_counted_from_the_start(app):
    seen = []

    @app.task(name="proj.flaky", bind=True, max_retries=2)
    def flaky(self):
        seen.append((self.request.retries, self.request.redelivered, self.request.delivery_info["redelivered"]))
        raise self.retry(exc=ValueError("flaky"), countdown=0)

    result = flaky.delay()
    (claim,) = claims_of(app, "dead")
    app.storage.settle([Outcome(claim.seq, claim.token, claim.message.id, ended=False, charged=1)])
    work_off(app)
    result.retry()
    work_off(app)
    assert result.state == "FAILURE"
    assert seen == [(0, 1, True), (1, 1, True), (2, 1, True), (0, 0, False), (1, 0, False), (2, 0, False)]


def test_a_task_whose_process_died_runs_again(app, add, broken):
    broken.clear()
    result = add.delay(1, 2)
    (claim,) = claims_of(app, "dead")
    app.storage.settle([lost(claim, "Worker exited prematurely: signal 9")])
    with pytest.raises(WorkerLostError):
        result.get(timeout=0)
    result.retry()
    work_off(app)
    assert result.get(timeout=0) == 3


def test_a_real_worker_that_sleeps_is_woken_and_a_waiting_get_returns(tmp_path):
    app = LocalQ("proj", store=tmp_path / "store", set_as_current=False)
    gate = threading.Event()

    @app.task(name="proj.open")
    def opened():
        return {True: "open"}[gate.is_set()]

    with start_worker(app):
        result = opened.delay()
        assert isinstance(result.get(timeout=30, propagate=False), KeyError)
        gate.set()
        assert result.retry().get(timeout=30) == "open"
    app.close()


def test_another_process_sees_a_retry(tmp_path):
    app, other = (LocalQ("proj", store=tmp_path / "store", set_as_current=False) for _ in range(2))
    task = app.task(name="proj.fails")(lambda: 1 / 0)
    result = failed(app, task)
    other.AsyncResult(result.id).retry()
    assert app.AsyncResult(result.id).state == "PENDING"
    assert isinstance(result.result, ZeroDivisionError)  # a handle that has read an end keeps it
    app.close()
    other.close()


# -- What is refused -------------------------------------------------------------------------------


def test_what_has_not_ended_is_refused_with_its_state_and_place(app, add):
    ready, waiting = add.delay(1), add.apply_async((1,), countdown=60)
    assert refusal(ready) == (
        f"task proj.add[{ready.id}] has not ended: it is PENDING and waits for a worker in queue 'celery'; "
        "only what failed is retried by hand"
    )
    assert "it is PENDING and waits for its time" in refusal(waiting)
    (claim,) = claims_of(app, "me")
    app.storage.update(claim.seq, claim.token, Outcome(claim.seq, claim.token, ready.id, "STARTED"))
    assert "it is STARTED and is in the hands of a worker" in refusal(ready)
    first, second = chain(add.si(1), add.si(2))().parent, chain(add.si(1), add.si(2))()
    assert "waits for a worker" in refusal(first)
    assert f"waits for the end of {second.parent.id}" in refusal(second)


def test_what_succeeded_is_refused(app, add, broken):
    broken.clear()
    result = add.delay(1)
    work_off(app)
    assert refusal(result) == f"task proj.add[{result.id}] has succeeded; to run it once more, send it anew"


def test_what_kept_no_result_is_refused(app, add):
    ignored = add.apply_async((1,), ignore_result=True)

    @app.task(name="proj.leave")
    def leave():
        raise Ignore

    left = leave.delay()
    work_off(app)
    assert "ended as IGNORED: whether it failed was not kept" in refusal(app.AsyncResult(ignored.id))
    assert "ended as PENDING: whether it failed was not kept" in refusal(left)


def test_what_is_unknown_or_forgotten_is_refused(app, add):
    result = failed(app, add, 1)
    result.forget()
    text = refusal(result)
    for part in (repr(result.id), "memory:", "forgotten", "send it anew"):
        assert part in text


def test_the_second_of_two_who_retry_at_once_is_told(app, add, monkeypatch):
    result = failed(app, add, 1)
    decide = dead.next_attempt

    def slowly(storage, record):
        message = decide(storage, record)
        monkeypatch.setattr(dead, "next_attempt", decide)
        dead.retry(storage, record.id)
        return message

    monkeypatch.setattr(dead, "next_attempt", slowly)
    assert "retried or forgotten by somebody else" in refusal(result)
    assert work_off(app) == [result.id]


def test_a_refusal_leaves_what_the_handle_knows(app, add, broken):
    broken.clear()
    result = add.delay(1)
    work_off(app)
    assert result.get(timeout=0) == 1
    refusal(result)
    assert result._record is not None


def test_an_eager_result_is_refused(app, add):
    assert "call it once more" in refusal(add.apply((1,)))


# -- Those who waited ------------------------------------------------------------------------------


def test_the_steps_behind_a_failed_one_stay_failed_and_are_retried_in_their_turn(app, add, broken):
    last = chain(add.s(1, 1), add.s(10), add.s(100))()
    first, second = last.parent.parent, last.parent
    work_off(app)
    broken.clear()
    assert refusal(second) == (
        f"task proj.add[{second.id}] failed before its turn, with task proj.add[{first.id}], which is FAILURE now: "
        "retry that first"
    )
    first.retry()
    assert "which is PENDING now: retry this when that has succeeded" in refusal(second)
    assert work_off(app) == [first.id]
    assert (first.get(timeout=0), second.state, last.state) == (2, "FAILURE", "FAILURE")
    assert f"with task proj.add[{second.id}]" in refusal(last)
    second.retry()
    work_off(app)
    last.retry()
    work_off(app)
    assert last.get(timeout=0) == 112


def test_a_step_that_failed_by_itself_runs_again_with_what_it_was_fed(app, add, join, broken):
    broken.discard("add")
    result = chain(add.s(1, 1), join.s())()
    work_off(app)
    assert (result.parent.state, result.state) == ("SUCCESS", "FAILURE")
    broken.clear()
    result.retry()
    work_off(app)
    assert result.get(timeout=0) == 2


def test_the_body_of_a_chord_is_retried_once_every_member_has_succeeded(app, add, join, broken):
    body = chord([add.s(1), add.s(2)], join.s())()
    members = body.parent.results
    work_off(app)
    broken.clear()
    members[0].retry()
    work_off(app)
    assert f"with task proj.add[{members[1].id}], which is FAILURE" in refusal(body)
    members[1].retry()
    work_off(app)
    assert body.state == "FAILURE"
    body.retry()
    work_off(app)
    assert body.get(timeout=0) == [1, 2]


def test_a_step_whose_predecessor_is_forgotten_is_refused(app, add):
    last = chain(add.s(1), add.s(2))()
    work_off(app)
    app.storage.forget([last.parent.id])
    assert f"failed with {last.parent.id}, which it waited for and which is forgotten" in refusal(last)


# -- The list --------------------------------------------------------------------------------------


def test_the_list_has_what_failed_in_the_order_it_was_sent(app, add, broken):
    results = [add.delay(number) for number in range(3)]
    work_off(app)
    broken.clear()
    add.delay(9)
    work_off(app)
    assert [record.id for record in dead.failed(app.storage)] == [result.id for result in results]
    results[1].retry()
    assert [record.id for record in dead.failed(app.storage)] == [results[0].id, results[2].id]


def test_the_list_is_read_in_steps_and_each_of_it_comes_once_though_it_fails_again_meanwhile(app, add):
    sent = [add.delay(number).id for number in range(450)]
    work_off(app)
    met = []
    for record in dead.failed(app.storage):
        dead.retry(app.storage, record.id)
        work_off(app)
        met.append(record.id)
    assert met == sent
    assert len(list(dead.failed(app.storage))) == 450
