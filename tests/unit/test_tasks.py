"""Tasks by name: how functions and classes become tasks, of one app or of every app."""

from __future__ import annotations

import gc
import pickle
import warnings

import pytest

from localq import LocalQ, Task, group, shared_task
from localq.context import apps
from localq.exceptions import DuplicateTaskNameWarning, ImproperlyConfigured, InvalidTaskError, NotRegistered
from localq.signals import task_success
from localq.tasks import TaskRegistry


@pytest.fixture
def app():
    made = LocalQ("proj", store="memory:")
    yield made
    made.close()


@pytest.fixture
def shared():
    """Forget the shared tasks of a test afterwards, and before it the apps of others, which would be told of its."""
    gc.collect()
    before = list(apps.shared)
    yield
    apps.shared[:] = before


# -- Names of tasks --------------------------------------------------------------------------------


@pytest.mark.row("F004")
def test_a_task_is_named_by_its_module_and_function(app):
    @app.task
    def add(): ...

    assert add.name == f"{__name__}.add"
    assert app.tasks[add.name] is add


def test_a_given_name_wins(app):
    assert app.task(name="short")(lambda: None).name == "short"


@pytest.mark.row("F005")
def test_names_may_be_made_in_a_way_of_ones_own():
    class Mine(LocalQ):
        def gen_task_name(self, name, module):
            return f"my.{name}"

    app = Mine("proj", store="memory:", set_as_current=False)

    @app.task
    def add(): ...

    assert add.name == "my.add"


@pytest.mark.parametrize(("main", "name"), [("proj", "proj.add"), (None, "__main__.add")])
@pytest.mark.row("F004")
def test_in_a_script_the_main_name_stands_for_the_module(main, name):
    app = LocalQ(main, store="memory:", set_as_current=False)

    def add(): ...

    add.__module__ = "__main__"
    assert app.task(add).name == name


def test_a_task_of_the_apps_own_file_answers_to_both_names(app):
    @app.task
    def both(): ...

    assert app.tasks[f"{__name__}.both"] is both
    assert app.tasks["proj.both"] is both
    assert "proj.both" not in list(app.tasks)


@pytest.mark.row("F006")
def test_an_unknown_name_is_not_registered(app):
    with pytest.raises(NotRegistered, match=r"'proj\.nope' is not registered"):
        app.tasks["proj.nope"]
    with pytest.raises(KeyError):
        app.tasks["proj.nope"]
    with pytest.raises(NotRegistered):
        app.tasks.unregister("proj.nope")


@pytest.mark.row("F018")
def test_a_second_task_of_the_same_name_warns_and_the_first_stays(app):
    first = app.task(name="same")(lambda: 1)
    with pytest.warns(DuplicateTaskNameWarning, match="'same'"):
        second = app.task(name="same")(lambda: 2)
    assert second is first
    assert app.tasks["same"]() == 1


@pytest.mark.row("F018")
def test_the_same_function_imported_twice_is_silent(app):
    source = compile("def add(): return 1", "a_file_of_the_test.py", "exec")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tasks = []
        for _ in range(2):
            scope = {"__name__": "a_module_of_the_test"}
            exec(source, scope)
            tasks.append(app.task(scope["add"]))
    assert tasks[0] is tasks[1]


@pytest.mark.row("F005")
def test_a_naming_of_ones_own_holds_for_registered_and_shared_tasks_too(shared):
    class Mine(LocalQ):
        def gen_task_name(self, name, module):
            return f"my.{name}"

    app = Mine("proj", store="memory:")

    class Add(Task): ...

    @shared_task
    def everywhere(): ...

    assert app.register_task(Add).name == "my.Add"
    assert everywhere.name == "my.everywhere"
    assert LocalQ("other", store="memory:").tasks[f"{__name__}.everywhere"].name == everywhere.name


@pytest.mark.row("F006")
def test_the_registry_is_a_dict_that_takes_tasks_in_and_out(app):
    task = app.task(name="proj.one")(lambda: 1)
    periodic = app.register_task(type("Old", (Task,), {"name": "proj.old", "type": "periodic"}))
    assert isinstance(app.tasks, dict)
    assert isinstance(app.tasks, TaskRegistry)
    assert app.tasks.periodic() == {"proj.old": periodic}
    assert app.tasks.regular()["proj.one"] is task
    app.tasks.unregister(task)
    assert "proj.one" not in app.tasks
    app.tasks.register(task)
    app.tasks.unregister("proj.one")
    with pytest.raises(app.tasks.NotRegistered):
        app.tasks.unregister(task)
    with pytest.raises(InvalidTaskError, match="no name"):
        app.tasks.register(Task)


@pytest.mark.row("F006")
def test_every_app_has_the_built_in_tasks_under_celerys_names(app):
    assert {"celery.accumulate", "celery.ping"} <= app.tasks.keys()
    assert app.tasks["celery.accumulate"]([1, 2]) == app.tasks["celery.accumulate"](1, 2) == [1, 2]
    assert app.tasks["celery.ping"]() == "pong"


@pytest.mark.row("F018")
def test_a_name_taken_twice_warns_once(app):
    app.task(name="same")(lambda: 1)
    with pytest.warns(DuplicateTaskNameWarning) as told:
        [app.task(name="same")(function) for function in (lambda: 2, lambda: 3)]
    assert len(told) == 1
    assert told[0].filename == __file__


@pytest.mark.row("X16")
def test_a_misspelt_option_or_setting_is_an_error_that_names_the_right_one(app):
    with pytest.raises(TypeError, match="did you mean 'max_retries'"):
        app.task(max_reties=3)(lambda: 1)
    with pytest.raises(ImproperlyConfigured, match="did you mean 'task_routes'"):
        app.conf.update(task_routs={})


@pytest.mark.row("F007")
def test_a_task_is_there_at_once_whatever_is_said_of_laziness(app):
    eager, lazy = app.task(lazy=False)(lambda: 1), app.task(name="lazy", lazy=True)(lambda: 2)
    assert isinstance(eager, Task)
    assert isinstance(lazy, Task)
    assert app.tasks["lazy"] is lazy
    assert lazy.__evaluated__()
    assert not hasattr(lazy, "lazy")


def test_a_task_can_be_shared_by_its_app_and_changed_by_a_filter(app, shared):
    other = LocalQ("other", store="memory:", set_as_current=False)
    task = app.task(name="proj.shared", shared=True, filter=lambda made: (made, "changed"))(lambda: 1)
    assert task == (app.tasks["proj.shared"], "changed")
    assert other.tasks["proj.shared"].app is other


# -- Task classes ------------------------------------------------------------------------------------


class Sum(Task):
    """Adds."""

    def run(self, x, y):
        return x + y


@pytest.mark.row("F013")
def test_the_apps_own_task_class_knows_its_app_and_is_the_base_of_its_tasks(app):
    class Base(app.Task):
        def run(self):
            return self.app.main

    @app.task
    def one(): ...

    assert Base.app is app
    assert one.__class__.__mro__[1] is app.Task
    assert issubclass(app.Task, Task)
    assert app.register_task(Base)() == "proj"


@pytest.mark.row("F013")
@pytest.mark.parametrize("given", [Sum, f"{__name__}:Sum", f"{__name__}.Sum"])
def test_the_task_class_may_be_given_as_a_class_or_by_its_dotted_name(given):
    for app in (LocalQ("a", task_cls=given, store="memory:"), type("Mine", (LocalQ,), {"task_cls": given})("b")):
        assert app.Task.__mro__[1] is Sum
        assert isinstance(app.task(lambda: 1), Sum)


@pytest.mark.row("F013")
def test_the_task_class_may_be_set(app):
    app.Task = Sum
    assert isinstance(app.task(lambda: 1), Sum)


@pytest.mark.row("F017", "N33")
@pytest.mark.parametrize("given", [Sum, Sum()])
def test_a_class_or_an_object_of_one_becomes_a_task_with_options(app, given):
    task = app.register_task(given, max_retries=7, queue="slow")
    assert task.name == f"{__name__}.Sum"
    assert app.tasks[task.name] is task
    assert (task.app, task.max_retries) == (app, 7)
    assert task.delay(1, 2).queue == "slow"
    assert task.apply((1, 2)).get() == 3
    with pytest.raises(TypeError, match="did you mean 'max_retries'"):
        app.register_task(given, max_retrys=1)


@pytest.mark.row("F017")
def test_a_registered_task_takes_the_place_of_another_with_a_warning(app):
    app.task(name="proj.same")(lambda: 1)
    new = type("Same", (Sum,), {"name": "proj.same"})()
    with pytest.warns(DuplicateTaskNameWarning, match="the new one takes its place"):
        assert app.register_task(new) is new
    assert app.tasks["proj.same"] is new
    app.register_task(new)


# -- Shared tasks ----------------------------------------------------------------------------------


@pytest.mark.row("F026", "N56")
def test_a_shared_task_is_in_every_app_before_and_after(shared):
    before = LocalQ("before", store="memory:")

    @shared_task
    def shared_sum(x, y):
        return x + y

    @shared_task(name="shared.named", max_retries=9)
    def named(): ...

    after = LocalQ("after", store="memory:")
    for app in (before, after):
        assert app.tasks[f"{__name__}.shared_sum"].app is app
        assert app.tasks["shared.named"].max_retries == 9
    assert shared_sum(1, 2) == 3
    assert shared_sum.delay(1, 2).backend is after.backend
    before.set_current()
    assert shared_sum.delay(1, 2).backend is before.backend


@pytest.mark.row("F026")
def test_a_shared_task_can_be_part_of_a_workflow(app, shared):
    @shared_task
    def double(x):
        return 2 * x

    assert (double.s(3) | double.s()).apply().get() == 12


@pytest.mark.row("F026")
def test_a_shared_task_follows_the_current_app(shared):
    @shared_task
    def who(): ...

    one, two = LocalQ("one", store="memory:"), LocalQ("two", store="memory:")
    assert who.app is two
    one.set_current()
    assert who.app is one
    who.max_retries = 9
    assert (one.tasks[who.name].max_retries, two.tasks[who.name].max_retries) == (9, 3)


@pytest.mark.row("F026")
def test_a_shared_task_passes_for_a_task_and_keeps_its_functions_face(app, shared):
    @shared_task(base=Sum, bind=True)
    def face(self, x):
        """Looks."""
        return [self.name, x]

    assert isinstance(face, Sum)
    assert (face.__name__, face.__doc__, face.__module__) == ("face", "Looks.", __name__)
    assert "face" in repr(face)
    assert face(1) == [face.name, 1]
    assert pickle.loads(pickle.dumps(face)) is app.tasks[face.name]
    assert group(face.s(1), face.s(2)).apply().get() == [[face.name, 1], [face.name, 2]]


@pytest.mark.row("F026")
def test_sharing_twice_or_nothing_is_a_type_error(shared):
    @shared_task
    def once(): ...

    for wrong in (lambda: shared_task(once), lambda: shared_task(name="x")(once), lambda: shared_task(1),
                  lambda: shared_task()(1), lambda: shared_task(len, len)):  # fmt: skip
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(TypeError, match="shared already"):
        shared_task(once)


@pytest.mark.row("F026")
def test_a_signals_receiver_may_ask_for_a_shared_task(app, shared):
    @shared_task
    def heard(): ...

    seen = []

    @task_success.connect(sender=heard)
    def receive(sender, **_):
        seen.append(sender)

    heard.apply()
    app.tasks["celery.ping"].apply()
    assert seen == [app.tasks[heard.name]]


@pytest.mark.row("F026", "R25")
def test_a_shared_task_without_an_app_says_what_to_do(shared, monkeypatch):
    @shared_task
    def alone(): ...

    monkeypatch.setattr(apps, "default", None)
    token = apps.current.set(None)
    try:
        with pytest.raises(RuntimeError, match="make one with LocalQ"):
            alone.delay()
        assert isinstance(alone, Task)
    finally:
        apps.current.reset(token)


@pytest.mark.row("F022", "F026")
def test_a_closed_app_is_told_of_shared_tasks_only_if_it_is_used_again(app, shared):
    told = []
    app.on_after_finalize.connect(lambda **_: told.append(1), weak=False)
    assert app.finalized is False
    app.tasks
    app.close()

    @shared_task(name="shared.later")
    def later(): ...

    assert "shared.later" not in app._tasks
    assert app.tasks["shared.later"].app is app
    assert told == [1]
