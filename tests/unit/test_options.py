"""Options of tasks and of calls: what is taken, what is refused and why, and what nothing obeys yet."""

from __future__ import annotations

import json
from typing import get_type_hints

import pytest

from localq import LocalQ, Task
from localq.exceptions import LocalqWarning, SerializerNotInstalled
from localq.options import CALL_OPTIONS, OPTIONS, TASK_OPTIONS
from localq.routing import Queue
from localq.serialization import Codec, register


@pytest.fixture
def app():
    made = LocalQ("proj", store="memory:")
    yield made
    made.close()


@pytest.fixture
def noop(app):
    @app.task(name="proj.noop")
    def noop(*args, **kwargs): ...

    return noop


# -- The declarations ------------------------------------------------------------------------------


def test_every_option_has_words_for_its_errors():
    assert [name for name, option in OPTIONS.items() if not option.doc] == []
    assert [name for name, option in OPTIONS.items() if not (option.on_task or option.on_call)] == []


def test_every_attribute_that_a_type_checker_sees_is_a_declared_option():
    hints = {name for name in Task.__annotations__ if not name.startswith("_")}
    derived = {
        "abstract", "app", "is_plain", "is_async", "calls_run", "lost_mode", "defaults", "limits", "has_request",
        "is_watched",
    }  # fmt: skip
    assert hints - derived - TASK_OPTIONS.keys() == set()
    assert get_type_hints(LocalQ.__init__) is not None


@pytest.mark.row("F036", "F037", "F041", "F042", "F045", "F052", "X14")
def test_defaults_are_celerys():
    found = {name: getattr(Task, name) for name in (
        "max_retries", "default_retry_delay", "trail", "send_events", "resultrepr_maxsize", "throws", "rate_limit",
        "retry_backoff", "retry_backoff_max", "retry_jitter", "acks_on_failure",
    )}  # fmt: skip
    assert found == {
        "max_retries": 3, "default_retry_delay": 180, "trail": True, "send_events": True, "resultrepr_maxsize": 1024,
        "throws": (), "rate_limit": None, "retry_backoff": False, "retry_backoff_max": 600, "retry_jitter": True,
        "acks_on_failure": None,
    }  # fmt: skip


# -- On a task -------------------------------------------------------------------------------------

WRONG = [
    ("queue", 5, TypeError, "name of a queue"),
    ("exchange", 5, TypeError, "name of an exchange"),
    ("exchange_type", "foo", ValueError, "direct, topic, fanout"),
    ("exchange_type", "topik", ValueError, "did you mean 'topic'"),
    ("priority", 300, ValueError, "0 is first, 255 last"),
    ("priority", "high", TypeError, "expected int"),
    ("acks_late", "yes", TypeError, "expected bool"),
    ("ignore_result", 1, TypeError, "expected bool"),
    ("max_retries", -1, ValueError, "expected 0 or more"),
    ("max_retries", True, TypeError, "expected int"),
    ("default_retry_delay", "soon", TypeError, "expected int or float"),
    ("rate_limit", "100/d", ValueError, "100/m"),
    ("rate_limit", "fast", ValueError, "100/m"),
    ("time_limit", -1, ValueError, "expected 0 or more"),
    ("throws", [3], ValueError, "no exception class"),
    ("throws", int, ValueError, "no exception class"),
    ("throws", "KeyError", ValueError, "a class, or a tuple of them"),
    ("serializer", "jsn", SerializerNotInstalled, "did you mean 'json'"),
    ("serializer", "pickle", SerializerNotInstalled, "is not built yet in this version of localq; there is json"),
    ("expires", "soon", ValueError, "no ISO time"),
    ("expires", [], TypeError, "seconds as a number, or a timedelta, a datetime or ISO text"),
    ("throws", 3, ValueError, "expected exception classes"),
    ("autoretry_for", (ValueError, "KeyError"), ValueError, "'KeyError' is no exception class"),
    ("autoretry_for", int, ValueError, "no exception class"),
    ("dont_autoretry_for", [3], ValueError, "no exception"),
    ("retry_backoff", -1, ValueError, "expected 0 or more"),
    ("retry_backoff", "1", TypeError, "expected bool or int"),
    ("retry_backoff_max", -1, ValueError, "expected 0 or more"),
    ("retry_backoff_max", float("inf"), ValueError, "not for ever"),
    ("retry_backoff", float("nan"), ValueError, "not for ever"),
    ("override_max_retries", -1, ValueError, "expected 0 or more"),
    ("retry_jitter", "no", TypeError, "expected bool"),
    ("retry_kwargs", {"max_reties": 3}, ValueError, r"takes no 'max_reties'; did you mean 'max_retries'"),
    ("retry_kwargs", {"link": []}, ValueError, "takes no 'link'"),
    ("retry_kwargs", {"exc": 3}, ValueError, "what the task has raised"),
    ("retry_kwargs", {"max_retries": -1}, ValueError, "for ever: max_retries=None on the task"),
    ("retry_kwargs", [("countdown", 3)], TypeError, "expected Mapping"),
    ("serializer", 7, TypeError, "expected str"),
]


@pytest.mark.row("F038", "F046", "F051")
@pytest.mark.parametrize(("name", "value", "error", "words"), WRONG)
def test_a_wrong_value_is_an_error_where_the_task_is_made(app, name, value, error, words):
    with pytest.raises(error, match=f"option {name}=.*'proj.wrong'.*{words}"):

        @app.task(name="proj.wrong", **{name: value})
        def wrong(): ...

    assert "proj.wrong" not in app.tasks


@pytest.mark.parametrize(("name", "value", "error", "words"), WRONG)
def test_a_wrong_value_is_an_error_where_it_is_set_later_and_changes_nothing(app, noop, name, value, error, words):
    before = getattr(noop, name)
    with pytest.raises(error, match=words):
        setattr(noop, name, value)
    assert getattr(noop, name) == before


def test_a_wrong_value_in_a_class_of_ones_own_is_an_error_too(app):
    class Base(Task):
        max_retries = "3"

    with pytest.raises(TypeError, match="expected int"):
        app.task(base=Base)(lambda: 1)


@pytest.mark.row("F033")
def test_options_of_ones_own_are_attributes(app):
    with pytest.warns(LocalqWarning, match="class .*Base: a task has no option 'max_retry'; did you mean 'max_ret"):

        class Base(Task):
            max_retry = "a name of the user's own, though near to one of ours"

    @app.task(base=Base, max_retry="mine", database="main")
    def task(): ...

    assert (task.max_retry, task.database) == ("mine", "main")


@pytest.mark.row("F044", "F043", "F053", "F055")
@pytest.mark.parametrize(("name", "value"), [
    ("compression", "gzip"), ("Strategy", "a:B"),
    ("backend", "redis://"),
])  # fmt: skip
def test_what_nothing_obeys_yet_is_kept_and_said(app, name, value):
    with pytest.warns(LocalqWarning, match=f"option '{name}' of task 'proj.early' has no effect"):

        @app.task(name="proj.early", **{name: value})
        def early(): ...

    assert getattr(early, name) == value


@pytest.mark.row("F038", "F051")
@pytest.mark.parametrize("options", [
    {"rate_limit": 0}, {"rate_limit": ""}, {"queue": Queue("mail")}, {"exchange": "x"},
    {"routing_key": "a.b"}, {"exchange_type": "topic"}, {"delivery_mode": 1}, {"throws": [KeyError]},
    {"throws": KeyError},
    {"max_retries": None}, {"send_events": False}, {"resultrepr_maxsize": 10},
])  # fmt: skip
def test_what_celery_takes_is_taken(app, options):
    options = {name: value for name, value in options.items() if not OPTIONS[name].effect or value}

    @app.task(name="proj.taken", **options)
    def taken(): ...

    assert {name: getattr(taken, name) for name in options} == options


@pytest.mark.row("F043", "N47")
def test_what_a_task_leaves_open_follows_the_settings(app, noop):
    app.conf.update(task_track_started=True, task_store_errors_even_if_ignored=True, task_serializer="json")
    assert (noop.track_started, noop.store_errors_even_if_ignored, noop.serializer) == (True, True, "json")
    noop.track_started = False
    app.conf.task_track_started = True
    assert noop.track_started is False


# -- On a call -------------------------------------------------------------------------------------


@pytest.mark.row("F094", "F100", "F107")
@pytest.mark.parametrize(("options", "error", "words"), [
    ({"task_id": 5}, TypeError, "expected str"),
    ({"headers": "x"}, TypeError, "expected Mapping"),
    ({"retries": -1}, ValueError, "expected 0 or more"),
    ({"ignore_result": "no"}, TypeError, "expected bool"),
    ({"link": 3}, TypeError, r"it is no signature: write task\.s"),
    ({"link_error": [3]}, TypeError, r"3 is no signature: write task\.s"),
    ({"priority": True}, TypeError, "expected int"),
    ({"retry_policy": {"max_retry": 3}}, ValueError, "did you mean 'max_retries'"),
    ({"retry_policy": {"interval_step": "1"}}, ValueError, "number of seconds"),
    ({"retry_policy": {"max_retries": "1"}}, ValueError, "whole number"),
    ({"retry_policy": 3}, TypeError, "expected Mapping"),
    ({"time_limit": "5"}, TypeError, "expected int or float"),
    ({"task_ids": "a"}, TypeError, "did you mean 'task_id'"),
    ({"link_err": None}, TypeError, "did you mean 'link_error'"),
])  # fmt: skip
def test_a_wrong_option_of_a_call_is_an_error_and_nothing_is_sent(app, noop, options, error, words):
    with pytest.raises(error, match=words):
        noop.apply_async((), **options)
    assert app.storage.counts() == []


@pytest.mark.row("F044")
def test_a_soft_limit_above_the_hard_one_is_an_error_at_the_call(app):
    @app.task
    def task(): ...

    words = r"soft_time_limit \(10\) must be less than or equal to time_limit \(5\)"
    with pytest.raises(ValueError, match=words):
        task.apply_async(time_limit=5, soft_time_limit=10)
    assert task.apply_async(time_limit=0, soft_time_limit=10).id  # 0 is no limit
    task.time_limit = 5
    task.soft_time_limit = 10
    with pytest.raises(ValueError, match=words):
        task.delay()


@pytest.mark.row("F044")
@pytest.mark.parametrize("is_lazy", [True, False])
def test_a_soft_limit_above_the_hard_one_is_an_error_where_the_task_is_made(app, is_lazy):
    words = r"soft_time_limit \(10\) must be less than or equal to time_limit \(5\).*task 'proj.upside_down'"
    with pytest.raises(ValueError, match=words):
        made = app.task(name="proj.upside_down", lazy=is_lazy, time_limit=5, soft_time_limit=10)(lambda: None)
        made.name  # a lazy one is made when it is first looked at


@pytest.mark.row("F044")
@pytest.mark.parametrize("call", [{"time_limit": 0.3}, {"soft_time_limit": 2}, {"time_limit": 9, "soft_time_limit": 8}])
def test_a_call_may_say_one_limit_that_leaves_no_room_for_the_tasks_own(app, call):
    @app.task(time_limit=1, soft_time_limit=0.5)
    def both(): ...

    sent = both.apply_async((), **call)
    headers = json.loads(app.storage.records((sent.id,), whole=True)[sent.id].message.headers)
    assert headers["timelimit"] == [call.get("time_limit", 1), call.get("soft_time_limit", 0.5)]


@pytest.mark.parametrize(
    ("theirs", "ours"), [("exponential_backoff", "retry_backoff"), ("max_age", "expires"), ("retries", "max_retries")]
)
def test_what_other_queues_call_an_option_is_told_by_its_name_here(app, theirs, ours):
    with pytest.raises(TypeError, match=f"no option '{theirs}'.*'{ours}'"):
        app.task(name="t", lazy=False, **{theirs: 2})(lambda: None)

    class Base(Task):
        abstract = True
        max_age = None

    assert app.task(name="own", base=Base, max_age=3)(lambda: None).max_age == 3


@pytest.mark.row("F054")
def test_a_task_may_name_its_calls_for_people(app):
    class Base(Task):
        abstract = True

        def shadow_name(self, args, kwargs, options):
            return f"mail to {args[0]}" if args else None

    @app.task(base=Base, bind=True)
    def mail(self, *args):
        return self.request.shadow

    app.conf.task_always_eager = True
    assert mail.delay("ann").get() == "mail to ann"
    assert mail.apply_async(("ann",), shadow="mine").get() == "mine"
    assert mail.delay().get() is None


@pytest.mark.row("F094")
def test_a_base_class_may_pass_celerys_arguments_on_by_position(app):
    class Base(Task):
        abstract = True

        def apply_async(self, args=None, kwargs=None, task_id=None, producer=None, link=None, link_error=None,
                        shadow=None, **options):  # fmt: skip
            return super().apply_async(args, kwargs, task_id, producer, link, link_error, shadow, **options)

    @app.task(base=Base)
    def add(x, y): ...

    assert add.delay(1, y=2).id
    assert add.apply_async((1, 2), task_id="mine", countdown=3).id == "mine"


@pytest.mark.row("F101")
@pytest.mark.parametrize("options", [{"delivery_mode": 2}, {"mandatory": True}, {"immediate": False}])
def test_what_only_a_broker_needs_is_accepted(app, noop, options):
    assert noop.apply_async((), **options).exists()


@pytest.mark.row("F102")
def test_the_serializer_is_the_calls_then_the_tasks_then_the_settings(app):
    register(Codec("test-loud", "application/x-test-loud", lambda value: repr(value).upper().encode(), eval))

    @app.task(serializer="test-loud")
    def own(word): ...

    ids = [own.delay("a").id, own.apply_async(["a"], serializer="json").id]
    own.serializer = "json"
    ids.append(own.delay("a").id)
    found = app.storage.records(ids, whole=True)
    assert [found[id].message.content_type for id in ids] == [
        "application/x-test-loud", "application/json", "application/json",
    ]  # fmt: skip
    with pytest.raises(SerializerNotInstalled, match="other"):
        own.apply_async(["a"], serializer="other")


@pytest.mark.parametrize("name", sorted(name for name, option in CALL_OPTIONS.items() if not option.effect))
def test_an_option_that_is_none_says_nothing(app, noop, name):
    noop.apply_async((), **{name: None})
    assert [count.number for count in app.storage.counts()] == [1]
