"""Putting calls: what receivers see and may change, and what happens when the store cannot take them."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from working import work_off

from localq import LocalQ, signals
from localq.exceptions import DuplicateTaskId, OperationalError, OutcomeUnknown, StoreBusy, StoreFull, StoreReadOnly
from localq.testing.clock import FakeClock


@pytest.fixture
def app():
    made = LocalQ("proj", store="memory:")
    yield made
    made.close()


@pytest.fixture
def look(app):
    @app.task(bind=True, name="proj.look")
    def look(self, *args, **kwargs):
        request = self.request
        return [list(args), kwargs, request.headers, request.argsrepr, request.priority_seen]

    return look


@contextmanager
def heard_by(signal, act=lambda **_: None):
    """Connect a receiver that notes what it is told and then acts on it."""
    heard = []

    def receive(**facts):
        heard.append(facts)
        act(**facts)

    signal.connect(receive)
    try:
        yield heard
    finally:
        signal.disconnect(receive)


class Failing:
    """Stands before a store and fails the next puts."""

    def __init__(self, storage, *errors):
        self._storage, self._errors, self.tries = storage, list(errors), []

    def put(self, messages):
        from localq import clock

        self.tries.append(clock.now())
        if self._errors:
            raise self._errors.pop(0)
        self._storage.put(messages)

    def __getattr__(self, name):
        return getattr(self._storage, name)


@pytest.fixture
def failing(app):
    """Make the app's next puts fail with these errors; return the store in between."""

    def fail(*errors):
        app.backend.storage = Failing(app.storage, *errors)
        return app.backend.storage

    return fail


# -- Receivers -------------------------------------------------------------------------------------


@pytest.mark.row("F330", "N51")
def test_receivers_see_celerys_message(app):
    @app.task(name="proj.add")
    def add(x, y): ...

    @app.task(name="proj.after")
    def after(*_): ...

    with heard_by(signals.before_task_publish) as before, heard_by(signals.after_task_publish) as afterwards:
        result = add.apply_async((1,), {"y": 2}, link_error=after.s(), headers={"trace": "t"}, app_id="7")
    (found,), (put,) = before, afterwards
    assert found["sender"] == "proj.add"
    assert set(found) == {
        "signal", "sender", "body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy",
    }  # fmt: skip
    args, kwargs, embed = found["body"]
    assert (list(args), kwargs) == ([1], {"y": 2})
    assert embed.keys() == {"callbacks", "errbacks", "chain", "chord"}
    assert [each["task"] for each in embed["errbacks"]] == ["proj.after"]
    headers = found["headers"]
    assert {key: headers[key] for key in ("lang", "task", "id", "root_id", "retries", "trace", "argsrepr")} == {
        "lang": "py", "task": "proj.add", "id": result.id, "root_id": result.id, "retries": 0, "trace": "t",
        "argsrepr": "(1,)",
    }  # fmt: skip
    assert (found["routing_key"], found["exchange"], found["properties"]["app_id"]) == ("celery", "", "7")
    assert found["retry_policy"]["max_retries"] == 3
    assert put.keys() == {"signal", "sender", "body", "headers", "exchange", "routing_key"}
    assert put["headers"]["id"] == result.id


@pytest.mark.row("F330")
def test_a_receiver_may_listen_to_one_task_by_its_name(app):
    @app.task(name="proj.one")
    def one(): ...

    @app.task(name="proj.two")
    def two(): ...

    heard = []

    def receive(sender, **_):
        heard.append(sender)

    signals.before_task_publish.connect(receive, sender="proj.two")
    try:
        one.delay()
        two.delay()
    finally:
        signals.before_task_publish.disconnect(receive)
    assert heard == ["proj.two"]


@pytest.mark.row("F330")
def test_the_deprecated_signal_of_a_put_is_still_sent(app, look):
    with heard_by(signals.task_sent) as heard:
        result = look.apply_async((1,), shadow="other")
    assert {key: heard[0][key] for key in ("sender", "task_id", "task", "args", "kwargs", "eta", "taskset")} == {
        "sender": "proj.look", "task_id": result.id, "task": "other", "args": [1], "kwargs": {}, "eta": None,
        "taskset": None,
    }  # fmt: skip


@pytest.mark.row("F330", "N51")
def test_what_receivers_change_is_changed_in_the_message(app):
    @app.task(bind=True, name="proj.read")
    def read(self, x, y=0):
        request = self.request
        return [x, y, request.headers, request.argsrepr, request.properties["app_id"],
                request.delivery_info["priority"], list(request.timelimit), request.root_id,
                request.expires]  # fmt: skip

    def change(body, headers, properties, **_):
        body[0][0] = "changed"
        body[1]["y"] = 9
        headers.update(
            trace="abc", argsrepr="(*)", timelimit=[5, 4], root_id="root", expires="2100-01-01T00:00:00+00:00"
        )
        del headers["old"]
        properties.update(app_id="mine", priority=1)

    with heard_by(signals.before_task_publish, change):
        result = read.apply_async((1,), headers={"old": 1, "kept": 2})
    work_off(app)
    assert result.get(timeout=0) == [
        "changed", 9, {"kept": 2, "trace": "abc"}, "(*)", "mine", 1, [5, 4], "root", "2100-01-01T00:00:00+00:00",
    ]  # fmt: skip


@pytest.mark.row("F330", "F331")
def test_a_trace_begun_by_the_caller_is_found_when_the_task_begins(app):
    @app.task(name="proj.traced")
    def traced(): ...

    seen = []

    def begin(headers, **_):
        headers["traceparent"] = "00-1-2-3"

    def enter(task, **_):
        seen.append((task.request.headers["traceparent"], task.request.traceparent))

    with heard_by(signals.before_task_publish, begin), heard_by(signals.task_prerun, enter):
        traced.delay()
        work_off(app)
    assert seen == [("00-1-2-3", "00-1-2-3")]


def test_a_receiver_cannot_change_the_id_that_the_caller_holds(app, look):
    def change(headers, **_):
        headers["id"] = "another"

    with heard_by(signals.before_task_publish, change), pytest.raises(ValueError, match="give the call a task_id"):
        look.delay()
    assert app.storage.counts() == []


def test_a_receiver_cannot_add_callbacks_because_those_are_messages(app, look):
    def change(body, **_):
        body[2]["callbacks"] = [look.s()]

    with heard_by(signals.before_task_publish, change), pytest.raises(ValueError, match="give the call a link"):
        look.delay()
    assert app.storage.counts() == []


@pytest.mark.row("N51")
def test_a_receiver_may_add_an_errback(app):
    told = []

    @app.task
    def tell(request, exc, traceback):
        told.append(str(exc))

    @app.task(name="proj.fail")
    def fail():
        raise ValueError("why")

    def change(body, **_):
        body[2]["errbacks"] = [tell.s()]

    with heard_by(signals.before_task_publish, change):
        fail.delay()
    work_off(app)
    assert told == ["why"]


def test_a_receiver_that_fails_keeps_nothing_from_being_sent(app, look, caplog):
    def fail(**_):
        raise ValueError("broken receiver")

    with heard_by(signals.before_task_publish, fail):
        look.delay()
    assert [count.number for count in app.storage.counts()] == [1]
    assert "broken receiver" in caplog.text


# -- The same id -----------------------------------------------------------------------------------


@pytest.mark.row("F100")
def test_the_same_call_under_the_same_id_is_one_call(app):
    @app.task
    def add(x, y):
        return x + y

    first, second = (add.apply_async((1, 2), task_id="mine") for _ in range(2))
    assert first == second
    assert work_off(app) == ["mine"]
    assert second.get(timeout=0) == 3


@pytest.mark.row("F100")
def test_another_call_under_an_id_in_use_is_an_error_where_it_is_made(app):
    @app.task
    def add(x, y):
        return x + y

    result = add.apply_async((1, 2), task_id="mine")
    with pytest.raises(DuplicateTaskId, match="mine"):
        add.apply_async((3, 4), task_id="mine")
    work_off(app)
    assert result.get(timeout=0) == 3
    result.forget()
    assert add.apply_async((3, 4), task_id="mine").id == "mine"
    work_off(app)
    assert app.AsyncResult("mine").get(timeout=0) == 7


# -- A store that cannot take it -------------------------------------------------------------------


@pytest.mark.row("F103", "X8")
def test_a_put_that_fails_is_tried_again_by_celerys_policy(app, look, failing):
    storage = failing(StoreFull("full"), StoreBusy("busy"), StoreFull("full"))
    with FakeClock(1000.0):
        result = look.delay()
    assert [round(at - 1000, 3) for at in storage.tries] == [0, 0, 0.2, 0.6]
    assert result.state == "PENDING"
    assert result.exists()


@pytest.mark.row("F103", "F104")
def test_a_put_that_fails_for_good_names_the_store_and_the_reason_and_leaves_nothing(app, look, failing):
    storage = failing(*(StoreFull("no space") for _ in range(9)))
    with (
        FakeClock(),
        pytest.raises(OperationalError, match=r"proj\.look .* memory:.* tried 4 times: no space") as failure,
    ):
        look.delay()
    assert isinstance(failure.value, StoreFull)
    assert isinstance(failure.value.__cause__, StoreFull)
    assert isinstance(failure.value, look.OperationalError)
    assert len(storage.tries) == 4
    assert app.storage.counts() == []


@pytest.mark.row("F103", "F104")
@pytest.mark.parametrize(("conf", "options"), [({}, {"retry": False}), ({"task_publish_retry": False}, {})])
def test_without_retry_a_put_fails_at_once(app, look, failing, conf, options):
    app.conf.update(conf)
    storage = failing(StoreFull("no space"))
    with pytest.raises(StoreFull, match="no space"):
        look.apply_async(**options)
    assert len(storage.tries) == 1


@pytest.mark.row("F103")
def test_the_policy_is_the_calls_then_the_settings_then_celerys(app, look, failing):
    app.conf.update(task_publish_retry=False, task_publish_retry_policy={"max_retries": 9, "interval_start": 5})
    storage = failing(*(StoreBusy("busy") for _ in range(3)))
    with FakeClock(0.0), pytest.raises(StoreBusy, match="tried 3 times"):
        look.apply_async(retry=True, retry_policy={"max_retries": 2, "interval_max": 6, "interval_step": 3})
    assert storage.tries == [0, 5, 11]


@pytest.mark.row("F103")
def test_with_no_limit_a_put_is_tried_until_it_works(app, look, failing):
    storage = failing(*(StoreBusy("busy") for _ in range(50)))
    with FakeClock():
        look.apply_async(retry_policy={"max_retries": None})
    assert len(storage.tries) == 51


@pytest.mark.row("F104", "F115")
@pytest.mark.parametrize("error", [StoreReadOnly, OutcomeUnknown])
def test_what_does_not_pass_by_itself_is_not_tried_again_unless_the_policy_names_it(app, look, failing, error):
    storage = failing(error("as it is"))
    with pytest.raises(look.OperationalError, match=r"^as it is$") as failure:
        look.delay()
    assert type(failure.value) is error
    assert len(storage.tries) == 1
    storage = failing(error("as it is"))
    with FakeClock():
        look.apply_async(retry_policy={"retry_errors": (error,)})
    assert len(storage.tries) == 2


@pytest.mark.row("F103")
def test_a_workflow_is_tried_again_as_a_whole(app, look, failing):
    storage = failing(StoreFull("full"))
    with FakeClock():
        (look.s() | look.s()).apply_async()
    assert len(storage.tries) == 2
    assert sum(count.number for count in app.storage.counts()) == 2
