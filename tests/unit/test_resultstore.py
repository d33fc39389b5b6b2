"""Results under the names that Celery's result backends have."""

from __future__ import annotations

import pytest
from working import claims_of, work_off

from localq import group
from localq.exceptions import TaskRevokedError
from localq.testing.clock import FakeClock

DAY_S = 86_400


@pytest.fixture
def add(app):
    @app.task(name="proj.add")
    def add(x, y):
        return x + y

    return add


@pytest.mark.row("F187")
def test_what_is_stored_for_a_task_that_was_never_sent_is_its_end(app):
    backend = app.backend
    assert backend.store_result("good", {"n": 1}, "SUCCESS") == {"n": 1}
    backend.mark_as_done("done", 7)
    backend.mark_as_failure("bad", KeyError("k"), traceback="at t")
    backend.mark_as_revoked("revoked", "why")
    assert app.AsyncResult("good").get(timeout=0) == {"n": 1}
    assert (backend.get_state("done"), backend.get_status("done"), backend.get_result("done")) == (
        "SUCCESS", "SUCCESS", 7,
    )  # fmt: skip
    assert (backend.get_traceback("bad"), backend.get_children("bad")) == ("at t", [])
    with pytest.raises(KeyError):
        app.AsyncResult("bad").get(timeout=0)
    with pytest.raises(TaskRevokedError, match="why"):
        app.AsyncResult("revoked").get(timeout=0)
    assert app.storage.owners() == []
    backend.store_result("good", "other", "SUCCESS")
    assert backend.get_result("good") == {"n": 1}
    backend.forget("good")
    assert not backend.task_result_exists("good")


@pytest.mark.row("F187")
def test_an_end_by_hand_is_one_write_so_that_no_death_leaves_half_of_it(app, monkeypatch):
    storage, written = app.backend.storage, []

    def watched(verb):
        act = getattr(storage, verb)
        monkeypatch.setattr(storage, verb, lambda *args, **more: written.append(verb) or act(*args, **more))

    for verb in ("put", "settle", "update", "enlist", "write", "forget"):
        watched(verb)
    app.backend.mark_as_failure("bad", KeyError("k"), traceback="at t")
    assert written == ["update"]
    assert (app.backend.get_state("bad"), app.backend.get_traceback("bad")) == ("FAILURE", "at t")


@pytest.mark.row("F112")
def test_an_eager_run_under_the_id_of_a_task_that_is_queued_does_not_end_it(app, add):
    result = add.delay(1, 2)
    app.conf.task_store_eager_result = True
    assert add.apply((5, 5), task_id=result.id).get() == 10
    assert not result.ready()
    work_off(app)
    assert result.get(timeout=0) == 3


@pytest.mark.row("F187")
def test_a_state_that_is_no_end_may_come_first(app):
    backend = app.backend
    backend.mark_as_started("t", pid=1)
    assert backend.get_task_meta("t")["result"] == {"pid": 1}
    backend.mark_as_retry("t", ValueError("again"))
    backend.store_result("t", {"at": 1}, "MINE")
    assert (backend.get_state("t"), app.AsyncResult("t").ready()) == ("MINE", False)
    backend.mark_as_done("t", 3)
    told = []
    assert app.AsyncResult("t").get(timeout=0, on_message=lambda meta: told.append(meta["status"])) == 3
    assert told == ["STARTED", "RETRY", "MINE", "SUCCESS"]


@pytest.mark.row("F187")
def test_nothing_is_stored_where_that_was_asked_for(app):
    backend = app.backend
    backend.mark_as_done("a", 1, store_result=False)
    backend.mark_as_failure("b", ValueError("no"), store_result=False)
    backend.mark_as_revoked("c", store_result=False)
    backend.mark_as_retry("d", ValueError("no"), store_result=False)
    assert not any(backend.task_result_exists(id) for id in "abcd")
    with pytest.raises(ValueError, match="stands for an exception"):
        backend.store_result("e", 7, "FAILURE")
    assert not backend.task_result_exists("e")


@pytest.mark.row("F187")
def test_a_task_that_was_sent_ends_by_itself_whatever_is_said_of_it(app, add):
    queued, held = add.delay(1, 1), add.delay(2, 2)
    app.backend.mark_as_done(queued.id, 99)
    assert (queued.state, queued.ready()) == ("SUCCESS", False)
    assert len(claims_of(app, "gone")) == 1
    app.backend.mark_as_failure(held.id, ValueError("no"))
    work_off(app)
    assert held.get(timeout=0) == 4


@pytest.mark.row("F187", "F186")
def test_the_rest_of_a_backend(app):
    backend = app.backend
    backend.reload_task_result("x")
    backend.reload_group_result("x")
    backend.process_cleanup()
    assert backend.as_uri() == backend.url
    assert (backend.is_async, backend.supports_native_join, backend.is_cached("x")) == (True, True, False)
    assert app.conf.result_cache_max == -1
    assert backend.get_task_meta("x") == {
        "task_id": "x", "status": "PENDING", "result": None, "traceback": None, "children": [], "date_done": None,
    }  # fmt: skip


@pytest.mark.row("F163", "F181")
def test_a_meta_tells_of_group_parent_and_with_result_extended_of_the_call(app, add):
    @app.task(name="proj.send")
    def send():
        sent = group(add.s(1, y=2))()
        return [sent.id, sent[0].id]

    sent = send.delay()
    work_off(app)
    group_id, id = sent.get(timeout=0)
    meta = app.backend.get_task_meta(id)
    assert meta.keys() == {
        "task_id", "status", "result", "traceback", "children", "date_done", "group_id", "parent_id",
    }  # fmt: skip
    assert (meta["group_id"], meta["parent_id"]) == (group_id, sent.id)
    assert app.backend.get_children(sent.id) == [[[group_id, None], [[[id, None], None]]]]
    app.conf.result_extended = True
    more = app.backend.get_task_meta(id)
    assert {key: value for key, value in more.items() if key not in meta} == {
        "name": "proj.add", "args": [1], "kwargs": {"y": 2}, "worker": "test@here", "retries": 0, "queue": "celery",
    }  # fmt: skip


# -- What had its time ---------------------------------------------------------------------------


@pytest.fixture
def clock():
    with FakeClock() as clock:
        yield clock


def ended(app, *ids):
    for id in ids:
        if id.startswith("bad"):
            app.backend.mark_as_failure(id, ValueError("no"))
        else:
            app.backend.mark_as_done(id, 1)


def left(app, *ids):
    return [id for id in ids if app.backend.task_result_exists(id)]


@pytest.mark.row("F180")
def test_results_are_kept_for_a_day_and_failures_for_a_week(app, clock):
    ended(app, "a", "bad")
    clock.advance(DAY_S - 1)
    ended(app, "b")
    assert app.backend.cleanup() == 0
    clock.advance(2)
    assert app.tasks["celery.backend_cleanup"]() == 1
    assert left(app, "a", "bad", "b") == ["bad", "b"]
    clock.advance(6 * DAY_S)
    assert app.backend.cleanup() == 2
    assert left(app, "a", "bad", "b") == []


@pytest.mark.row("F180")
@pytest.mark.parametrize(
    ("results", "failures", "kept"),
    [(10, None, []), (10, 100, ["bad"]), (100, 10, ["a"]), (0, None, ["a", "bad"]), (None, 10, ["a"]),
     (10, 0, ["bad"])],
)  # fmt: skip
def test_failures_may_be_kept_longer_or_for_ever(app, clock, results, failures, kept):
    app.conf.update(result_expires=results, result_failure_expires=failures)
    ended(app, "a", "bad")
    clock.advance(50)
    app.backend.cleanup()
    assert left(app, "a", "bad") == kept


@pytest.mark.row("F180")
def test_cleaning_up_drops_everything_however_much_it_is(app, clock):
    @app.task(ignore_result=True)
    def nothing():
        return None

    for _ in range(700):
        nothing.delay()
    work_off(app)
    assert app.backend.cleanup() == 0
    clock.advance(DAY_S + 1)
    waiting = nothing.delay()
    assert app.backend.cleanup() == 700
    assert [each.number for each in app.storage.counts()] == [1]
    assert waiting.exists()


@pytest.mark.row("F180")
def test_what_a_step_of_a_chain_gives_is_kept_until_the_next_has_it(app, clock, add):
    result = (add.s(1, 1) | add.s(1).set(countdown=10 * DAY_S))()
    work_off(app)
    clock.advance(5 * DAY_S)
    assert app.backend.cleanup() == 0
    clock.advance(6 * DAY_S)
    work_off(app)
    assert result.get(timeout=0) == 3
    assert app.backend.cleanup() == 1
    assert left(app, result.parent.id, result.id) == [result.id]


@pytest.mark.row("F180", "F174")
def test_what_was_told_goes_with_the_result(app, clock):
    app.backend.store_result("a", 1, "MINE")
    app.backend.mark_as_done("a", 2)
    clock.advance(DAY_S + 1)
    app.backend.cleanup()
    assert app.storage.entries("") == []
