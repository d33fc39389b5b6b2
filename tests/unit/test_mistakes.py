"""What people get wrong: each mistake is found where it is made, and its error says the way out."""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest

from localq import LocalQ, Task, chain, chord, group, shared_task, signature
from localq.annotations import attributes_for
from localq.config import Settings
from localq.context import apps
from localq.exceptions import (
    EncodeError,
    ImproperlyConfigured,
    LocalqWarning,
    QueueNotFound,
    SerializerNotInstalled,
    TimeoutError,
)
from localq.routing import Broadcast, Exchange, Queue
from localq.whereabouts import worker_hint
from localq.worker import pools


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


def sent(app):
    return sum(count for *_, count in app.storage.counts())


# -- Which worker to start -------------------------------------------------------------------------


def made_in(tmp_path, monkeypatch, file, is_package=True):
    """Return the app that a file of a fresh package makes, imported as the package's module."""
    folder = (tmp_path / file).parent
    folder.mkdir(parents=True)
    if is_package:
        (folder / "__init__.py").touch()
    (tmp_path / file).write_text("from localq import LocalQ\napp = LocalQ('shop', store='memory:')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    name = file.removesuffix(".py").replace("/", ".")
    __import__(name)
    monkeypatch.delitem(sys.modules, name)
    return __import__(name, fromlist=["app"]).app


@pytest.mark.parametrize("is_package", [True, False], ids=["package", "namespace package"])
def test_the_hint_names_the_module_of_a_package_as_the_command_line_wants_it(tmp_path, monkeypatch, is_package):
    shop = "shop_with_init" if is_package else "shop_without_init"
    app = made_in(tmp_path, monkeypatch, f"{shop}/app.py", is_package)
    assert worker_hint("celery", app.backend) == f"localq -A {shop}.app worker"
    assert worker_hint("mail", app.backend) == f"localq -A {shop}.app worker -Q mail"
    with pytest.raises(TimeoutError, match=f"start one: localq -A {shop}.app worker$"):
        app.send_task("x").get(timeout=0)


@pytest.mark.parametrize(("file", "module"), [
    ("a/b/app.py", "b.app"), ("a/b/__init__.py", "b"), ("a/b/__main__.py", "b"), ("a/script.py", "script"),
])  # fmt: skip
def test_a_script_is_named_by_the_packages_around_it(tmp_path, app, file, module):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "__init__.py").touch()
    app.backend.made_by, app.backend.made_in = str(tmp_path / file), None
    assert worker_hint("celery", app.backend) == f"localq -A {module} worker"


def test_the_hint_for_a_queue_of_one_node_names_the_node(app):
    hint = worker_hint("w1@host.dq2", app.backend)
    assert hint.endswith(" worker -n w1@host (with worker_direct = True)")
    app.conf.worker_direct = True
    assert worker_hint("w1@host.dq2", app.backend).endswith(" worker -n w1@host")
    app.conf.task_queues = [Broadcast("news"), Queue("mail")]
    assert worker_hint("news.w1@host", app.backend).endswith(" worker -Q news -n w1@host")
    assert worker_hint("mail.w1@host", app.backend).endswith(" worker -Q mail.w1@host")


# -- Errbacks that nobody tells yet ----------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_errbacks_that_are_told_are_no_matter_for_a_warning(app, noop):
    chain(noop.s(), noop.s().on_error(noop.s())).delay()
    group(noop.s(), noop.s()).on_error(noop.s()).delay()
    chord([noop.s()], noop.s().on_error(noop.s())).delay()
    chord([noop.s().on_error(noop.s())], noop.s(), interval=1, max_retries=3).apply_async(countdown=1)
    chain(noop.s()).on_error(noop.s()).delay()


@pytest.mark.parametrize("workflow", [group, chain])
def test_a_workflows_errback_leaves_its_tasks_their_own(app, noop, workflow):
    told = []
    own = app.task(name="proj.own")(lambda request, exc, traceback: told.append("own"))
    shared = app.task(name="proj.shared")(lambda request, exc, traceback: told.append("shared"))
    fail = app.task(name="proj.fail")(lambda: 1 / 0)
    workflow([fail.s().on_error(own.s())]).on_error(shared.s()).apply()
    assert told == ["own", "shared"]


# -- Names -----------------------------------------------------------------------------------------


@pytest.mark.row("F038")
@pytest.mark.parametrize(("said", "meant"), [
    ("bindd", "bind"), ("bnd", "bind"), ("kind", None), ("bases", "base"), ("rate_limt", "rate_limit"),
])  # fmt: skip
def test_a_misspelt_option_of_a_decorator_is_an_error(app, said, meant):
    if meant is None:
        assert getattr(app.task(**{said: True})(len.__class__), said, True)
        return
    with pytest.raises(TypeError, match=f"a task has no option '{said}'; did you mean '{meant}'"):
        app.task(**{said: True})(lambda: None)


def test_a_misspelt_attribute_of_a_class_is_told_where_the_class_stands(app):
    with pytest.warns(
        LocalqWarning, match=r"class .*Slow: a task has no option 'rate_limt'; did you mean 'rate_limit'"
    ) as told:

        class Slow(Task):
            rate_limt = "1/s"
            name = "proj.slow"

            def run(self): ...

    assert told[0].filename == __file__
    assert app.register_task(Slow).rate_limt == "1/s"


@pytest.mark.filterwarnings("error")
def test_methods_private_names_and_inherited_ones_are_the_users_own(app):
    class Base(Task):
        _queues = ()
        database = "main"

        def serialize(self): ...

        @property
        def expire(self): ...

    class More(Base):
        database = "other"

    assert More.database == "other"


def test_a_misspelt_annotation_is_an_error(app, noop):
    with pytest.raises(ImproperlyConfigured, match="task_annotations: a task has no option 'rate_limt'; did you mean"):
        app.conf.task_annotations = {"proj.noop": {"rate_limt": "1/s"}}
    assert app.conf.task_annotations is None
    with pytest.raises(ImproperlyConfigured, match="no option 'tme_limit'"):
        attributes_for({"*": {"tme_limit": 3}}, noop)
    assert attributes_for({"*": {"tier": "gold"}}, noop) == {"tier": "gold"}


def test_an_annotations_wrong_value_is_found_when_it_is_set(app, noop):
    other = app.task(name="proj.other")(lambda: None)
    with pytest.raises(ValueError, match=r"rate_limit='fast' of task 'proj.other' in task_annotations: expected"):
        app.conf.task_annotations = {"proj.noop": {"rate_limit": "1/s"}, "proj.other": {"rate_limit": "fast"}}
    assert noop.rate_limit is other.rate_limit is None


@pytest.mark.parametrize("make", [
    lambda task: task.signature((), {}, countdwn=3), lambda task: signature("proj.noop", countdwn=3),
    lambda task: task.s().set(countdwn=3), lambda task: chain(task.s(), task.s(), countdwn=3),
    lambda task: group(task.s(), countdwn=3), lambda task: chord([task.s()], task.s(), countdwn=3),
], ids=["task.signature", "signature", "set", "chain", "group", "chord"])  # fmt: skip
def test_a_misspelt_option_of_a_signature_is_an_error_where_it_is_said(app, noop, make):
    with pytest.raises(TypeError, match="takes no option 'countdwn'; did you mean 'countdown'"):
        make(noop)


def test_a_signatures_own_names_are_left_alone(noop):
    stamped = noop.s().set(stamped_headers=["countdwn"], countdwn="a stamp", tier="gold")
    assert stamped.options["countdwn"] == "a stamp"


@pytest.mark.parametrize("option", ["rate_limit", "max_retries", "acks_late", "bind_nothing"])
def test_an_option_of_the_task_given_to_a_call_is_told_apart(app, noop, option):
    if option == "bind_nothing":
        assert noop.apply_async(**{option: 1}).id  # somebody's own property
        return
    with pytest.raises(TypeError, match=rf"'{option}' is an option of the task, not of a call: .*@app.task\({option}="):
        noop.apply_async(**{option: 1})
    with pytest.raises(TypeError, match=f"'{option}' is an option of the task"):
        noop.signature(**{option: 1})
    assert sent(app) == 0


@pytest.mark.parametrize("name", ["", 5, None, b"x"], ids=repr)
def test_only_a_name_can_be_sent_by_name(app, name):
    with pytest.raises(TypeError, match="send_task takes the name of a task, got"):
        app.send_task(name)
    with pytest.raises(TypeError, match="is no name of a task: a signature needs one"):
        app.signature(name).delay()
    assert sent(app) == 0


def test_a_task_is_not_its_name(app, noop):
    with pytest.raises(TypeError, match=r"got <@task: proj\.noop .*; to send a task itself, call its apply_async\(\)"):
        app.send_task(noop)


def test_what_is_linked_is_a_signature(app, noop):
    for say in (noop.s().link, noop.s().link_error, noop.s().on_error):
        with pytest.raises(TypeError, match=r"takes a signature, got <@task: proj\.noop .*: write task\.s\(\.\.\.\)"):
            say(noop)
    for name in ("link", "link_error"):
        with pytest.raises(TypeError, match=rf"option {name}=.* is no signature: write task\.s"):
            noop.apply_async((), **{name: noop})


@pytest.mark.row("F030")
@pytest.mark.parametrize("base", [dict, "Task", 3])
def test_a_base_that_is_no_class_of_tasks_is_refused(app, base):
    with pytest.raises(TypeError, match=r"base=.* of task 'proj.based' is no class of tasks: give a subclass of"):
        app.task(name="proj.based", base=base)(lambda: None)


def test_a_single_class_is_enough_for_throws(app, caplog):
    @app.task(throws=KeyError)
    def look(name):
        raise {"key": KeyError, "value": ValueError}[name](name)

    caplog.set_level(logging.INFO)
    look.apply(["key"])
    look.apply(["value"])
    assert "raised expected: KeyError('key')" in caplog.text
    assert "raised unexpected: ValueError('value')" in caplog.text


# -- Settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"durability": "full"}, {"CELERY_DURABILITY": "full"}])
def test_the_keyword_durability_is_a_setting_in_a_configuration_too(given):
    app = LocalQ("a", set_as_current=False)
    app.config_from_object(given, namespace="CELERY" if "CELERY_DURABILITY" in given else None)
    assert app.conf.store_durability == app.conf.durability == "full"
    with pytest.raises(ImproperlyConfigured, match="store_durability = 'ful'"):
        app.conf.durability = "ful"
    with pytest.raises(ImproperlyConfigured, match="did you mean 'durability'"):
        app.conf.durabilty = "full"


def test_variables_of_a_configuration_module_are_no_news(monkeypatch, caplog):
    module = ModuleType("conf_with_helpers")
    module.timezone, module.base_dir = "UTC", "/srv"
    monkeypatch.setitem(sys.modules, "conf_with_helpers", module)
    app = LocalQ("a", set_as_current=False)
    app.config_from_object("conf_with_helpers")
    assert app.conf.base_dir == "/srv"
    assert [each for each in caplog.records if each.levelno > logging.INFO] == []
    app.conf.database = "x"
    assert "setting 'database' is not localq's" in caplog.text


WRONG = [
    ("task_routes", {"a.*": 5}, r"the route of 'a\.\*' is 5: give the name of a queue or a dict of options"),
    ("task_routes", {5: "mail"}, "5 is no name of tasks"),
    ("task_routes", [("a", 5)], "the route of 'a' is 5"),
    ("task_routes", ("a", 5), "the route of 'a' is 5"),
    ("task_routes", [{"a": {"queue": 5}}], "option queue=5 of the route of 'a': expected the name of a queue"),
    ("task_routes", {"a": {"priorty": 5}}, "the route of 'a' takes no option 'priorty'; did you mean 'priority'"),
    ("task_routes", {"a": {"priority": 500}}, r"option priority=500 of the route of 'a': it is out of range \("),
    ("task_routes", {"a": {"rate_limit": 5}}, "'rate_limit' is an option of the task, not of the route of 'a'"),
    ("task_queues", [5], "5 is no queue: give names or Queue objects"),
    ("task_queues", {"a": {"exchnge": "x"}}, "did you mean 'exchange'"),
    ("task_queues", {"a": {"exchange_type": "foo"}}, "of type 'foo'; localq has direct, topic, fanout"),
    ("task_default_exchange_type", "foo", "direct, topic, fanout"),
    ("worker_pool", "prefrok", "no such pool, there are prefork, processes, solo; did you mean 'prefork'"),
    ("task_serializer", "jsn", "no serializer is named 'jsn'; did you mean 'json'"),
    ("task_serializer", "pickle", "serializer 'pickle' is not built yet in this version of localq; there is json"),
    ("result_serializer", "yaml", "not built yet"),
    ("accept_content", ["json", "jsn"], "no serializer is named 'jsn'"),
    ("accept_content", [5], "5 is no name of a serializer"),
    ("accept_content", ["pickle"], "nothing could be read: .* add 'json'"),
    ("result_accept_content", ["application/jsn"], "no serializer is named 'application/jsn'"),
]


@pytest.mark.parametrize(("name", "value", "words"), WRONG, ids=[f"{name}={value}" for name, value, _ in WRONG])
def test_a_bad_setting_is_found_when_it_is_set(name, value, words):
    conf = Settings()
    before = conf[name]
    with pytest.raises(ImproperlyConfigured, match=f"{name} = .*{words}"):
        conf[name] = value
    assert conf[name] == before


class Router:
    """Counts how often one is made."""

    made = 0

    def __init__(self):
        type(self).made += 1

    def route_for_task(self, task, args=None, kwargs=None): ...


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "value"), [
    ("task_routes", {"a": "mail", "b.*": {"queue": Queue("x"), "compression": "gzip"}, "c": None}),
    ("task_routes", ["no.such.module.router", Router, lambda *_, **__: None, ("a", "mail"), [("b", "mail")]]),
    ("task_routes", {"a": {"exchange": Exchange("x"), "routing_key": "y", "app_id": "z"}}),
    ("worker_pool", "gevent"), ("worker_pool", "proj.pools:Mine"),
    ("accept_content", ["json", "pickle", "yaml", "application/x-python-serialize", "msgpack"]),
    ("task_serializer", "json"),
])  # fmt: skip
def test_what_may_be_right_is_left_to_whoever_uses_it(name, value):
    assert Settings({name: value})[name] == value
    assert Router.made == 0


def test_a_pool_of_celerys_is_refused_by_a_worker():
    with pytest.raises(
        ImproperlyConfigured, match="pool 'gevent' is not built yet in this version of localq; there is"
    ):
        pools.get("gevent")


# -- Routes, queues, exchanges ---------------------------------------------------------------------


def test_a_routes_wrong_destination_is_told_as_the_routes(app, noop):
    app.conf.update(task_queues=["mail"], task_create_missing_queues=False, task_routes={"proj.*": "mial"})
    with pytest.raises(QueueNotFound, match=r"task_create_missing_queues is off: declare it") as caught:
        noop.delay()
    assert caught.value.__notes__ == ["task_routes sends task 'proj.noop' there: {'queue': 'mial'}"]


def test_a_misspelt_exchange_makes_no_queue(app, noop):
    app.conf.task_queues = [Queue("media", Exchange("media"), "image")]
    with pytest.raises(QueueNotFound, match=r"no queue is bound to an exchange 'meida'; did you mean 'media'\?"):
        noop.apply_async(exchange="meida", routing_key="image")
    assert sent(app) == 0
    assert noop.apply_async(exchange="elsewhere", routing_key="image").queue == "image"


@pytest.mark.parametrize(("options", "words"), [
    ({"exchange": "x", "exchange_type": "foo"}, "exchange_type='foo' of a call: expected one of direct, topic, fanout"),
    ({"exchange_type": "foo"}, "exchange_type='foo'"),
])  # fmt: skip
def test_an_exchange_has_one_of_three_types(app, noop, options, words):
    with pytest.raises(ValueError, match=words):
        noop.apply_async(**options)


@pytest.mark.parametrize("name", ["queue", "exchange"])
@pytest.mark.parametrize("value", [5, b"x", ["mail"], SimpleNamespace(name="half a queue")], ids=repr)
def test_what_is_no_queue_and_no_exchange_is_a_type_error_everywhere(app, noop, name, value):
    with pytest.raises(TypeError, match=f"option {name}=.* of a call: expected the name of an? {name}"):
        noop.apply_async(**{name: value})
    with pytest.raises(TypeError, match=f"option {name}=.* of task .*: expected the name of an? {name}"):
        setattr(noop, name, value)


# -- Words -----------------------------------------------------------------------------------------


def test_errors_say_a_thing_once(app, noop):
    with pytest.raises(ValueError, match="priority") as caught:
        noop.apply_async(priority=300)
    assert str(caught.value).count("0 is first") == 1
    with pytest.raises(ValueError, match="rate_limit") as caught:
        noop.rate_limit = "fast"
    assert str(caught.value).count("10/s") == str(caught.value).count("rate_limit") == 1


def test_a_value_that_cannot_be_written_is_told_what_there_is(noop):
    with pytest.raises(EncodeError, match=r"__json__\(\) method, or have its type written: .*register_type"):
        noop.delay(object())
    with pytest.raises(SerializerNotInstalled, match=r"serializer='pickle' of a call: .*is not built yet"):
        noop.apply_async(serializer="pickle")


def test_an_old_expiry_is_told_in_days(app, noop, caplog):
    noop.apply_async(expires="2001-01-01T00:00:00+00:00")
    assert " days, " in caplog.text
    assert "e+0" not in caplog.text


def test_a_correlation_id_reaches_the_request(app):
    @app.task(bind=True)
    def seen(self):
        return self.request.correlation_id, self.request.properties["correlation_id"], self.request.id

    assert seen.apply((), correlation_id="mine", task_id="its").get() == ["mine", "mine", "its"]
    assert seen.apply((), task_id="its").get() == ["its", "its", "its"]


def test_a_shared_tasks_base_is_judged_too(app):
    before = list(apps.shared)
    with pytest.raises(TypeError, match=r"base=<class 'dict'> of task 'proj\.shared_based'"):
        shared_task(name="proj.shared_based", base=dict)(lambda: None)
    assert apps.shared == before
