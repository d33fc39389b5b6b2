"""Tasks that run where they are sent: the same message, the same executor, the same answers."""

from __future__ import annotations

import pytest
from working import work_off

from localq import LocalQ, chain, signals
from localq.exceptions import AlwaysEagerIgnored, MaxRetriesExceededError


@pytest.fixture
def app():
    made = LocalQ("proj", store="memory:", task_always_eager=True)
    yield made
    made.close()


@pytest.mark.row("F110")
def test_arguments_are_written_and_read_and_the_eta_is_ignored(app):
    @app.task
    def kind(x):
        return type(x).__name__

    assert kind.apply_async(((1, 2),), countdown=1000).get() == "list"


@pytest.mark.row("F110")
def test_a_call_by_name_is_sent_all_the_same_with_a_warning(app):
    @app.task(name="proj.one")
    def one():
        return 1

    with pytest.warns(AlwaysEagerIgnored):
        result = app.send_task("proj.one")
    assert not result.ready()
    assert work_off(app) == [result.id]


@pytest.mark.row("F111", "F095")
def test_a_failure_is_raised_or_kept_as_the_call_or_the_setting_says(app):
    @app.task
    def fail():
        raise KeyError("x")

    assert fail.delay().state == "FAILURE"
    assert fail.apply(throw=False).failed()
    with pytest.raises(KeyError):
        fail.apply(throw=True)
    app.conf.task_eager_propagates = True
    with pytest.raises(KeyError):
        fail.delay()
    assert fail.apply(throw=False).failed()


@pytest.mark.row("F112")
def test_an_eager_result_is_written_to_the_store_if_the_setting_says_so(app):
    @app.task
    def add(x, y):
        return x + y

    @app.task
    def fail():
        raise ValueError("kept")

    assert not app.AsyncResult(add.delay(1, 2).id).exists()
    app.conf.task_store_eager_result = True
    found = app.AsyncResult(add.delay(1, 2).id)
    assert (found.state, found.get(timeout=0)) == ("SUCCESS", 3)
    lost = app.AsyncResult(fail.delay().id)
    with pytest.raises(ValueError, match="kept"):
        lost.get(timeout=0)
    assert work_off(app) == []
    assert app.storage.owners() == []


@pytest.mark.row("F112", "F039")
def test_an_ignored_eager_result_is_not_written(app):
    app.conf.task_store_eager_result = True

    @app.task(ignore_result=True)
    def silent():
        return 1

    assert not app.AsyncResult(silent.delay().id).exists()


@pytest.mark.row("F113")
def test_an_eager_retry_follows_at_once_and_ends_with_its_cause(app):
    runs = []

    @app.task(bind=True, max_retries=2)
    def never(self, cause):
        runs.append(self.request.retries)
        raise self.retry(countdown=3600, exc=ValueError("why") if cause else None)

    assert isinstance(never.delay(cause=True).result, ValueError)
    assert isinstance(never.delay(cause=False).result, MaxRetriesExceededError)
    assert runs == [0, 1, 2] * 2


@pytest.mark.row("F095")
def test_what_apply_is_given_is_seen_in_the_request(app):
    @app.task(bind=True)
    def look(self):
        request = self.request
        return [request.id, request.retries, request.headers, request.logfile, request.loglevel, request.is_eager,
                request.called_directly]  # fmt: skip

    found = look.apply(task_id="mine", retries=2, headers={"h": 1}, logfile="f", loglevel=10)
    assert found.get() == ["mine", 2, {"h": 1}, "f", 10, True, False]


@pytest.mark.row("F095")
def test_apply_inside_a_task_knows_its_parent(app):
    @app.task(bind=True)
    def inner(self):
        return [self.request.root_id, self.request.parent_id]

    @app.task(bind=True)
    def outer(self):
        return [self.request.id, *inner.apply().result]

    id, root, parent = outer.apply().get()
    assert root == parent == id


@pytest.mark.row("F095", "F105", "F106")
def test_apply_calls_callbacks_and_errbacks(app):
    heard = []

    @app.task
    def told(*args):
        heard.append(args[-1] if len(args) == 1 else str(args[1]))

    @app.task
    def work(fails):
        if fails:
            raise ValueError("why")
        return 5

    work.apply((False,), link=told.s(), link_error=told.s())
    work.apply((True,), link=told.s(), link_error=told.s())
    assert heard == [5, "why"]


@pytest.mark.row("F116")
def test_a_signature_is_sent_and_awaited_by_a_tilde(app):
    @app.task
    def add(x, y):
        return x + y

    assert ~add.s(1, 2) == 3


@pytest.mark.row("F330")
def test_an_eager_call_is_not_published(app):
    heard = []

    def receive(**_):
        heard.append(1)

    signals.before_task_publish.connect(receive)
    try:
        app.task(lambda: 1).delay()
    finally:
        signals.before_task_publish.disconnect(receive)
    assert heard == []


def test_nothing_runs_behind_a_step_that_has_expired(app):
    ran = []
    first = app.task(name="first")(lambda: ran.append("first"))
    second = app.task(name="second")(lambda value: ran.append("second"))
    result = chain(first.s().set(expires=-1), second.s()).apply()
    assert (result.state, type(result.result).__name__, ran) == ("FAILURE", "TaskRevokedError", [])
