"""`task_annotations`: the configuration sets attributes of tasks, whatever their code says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localq import LocalQ, Task
from localq.annotations import attributes_for
from localq.exceptions import ImproperlyConfigured

pytestmark = pytest.mark.row("F135")


@pytest.fixture
def app():
    made = LocalQ("proj", store="memory:")
    yield made
    made.close()


class OnlyMail:
    def annotate(self, task):
        return {"queue": "mail"} if task.name.endswith("mail") else None


class Everybody:
    def annotate_any(self):
        return {"max_retries": 8}


BY_NAME = {"proj.add": {"max_retries": 6}}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, (None, 3)),
        ({"proj.mail": {"queue": "slow", "max_retries": 9}}, ("slow", 9)),
        ({"proj.other": {"queue": "slow"}}, (None, 3)),
        ({"*": {"max_retries": 1}}, (None, 1)),
        ({"*": {"max_retries": 1, "queue": "all"}, "proj.mail": {"max_retries": 2}}, ("all", 1)),
        ([{"proj.mail": {"max_retries": 5}}, {"*": {"queue": "all"}}], ("all", 5)),
        ([{"proj.mail": {"max_retries": 5}}, {"proj.mail": {"queue": "never"}}], (None, 5)),
        (OnlyMail(), ("mail", 3)),
        ([OnlyMail(), Everybody()], ("mail", 8)),
        (f"{__name__}.OnlyMail", ("mail", 3)),
        ([f"{__name__}:Everybody", f"{__name__}:BY_NAME"], (None, 8)),
    ],
)
def test_what_is_said_of_a_task_is_set_on_it(app, setting, expected):
    app.conf.task_annotations = setting
    task = app.task(name="proj.mail")(lambda: 1)
    assert (task.queue, task.max_retries) == expected
    assert task.delay().queue == (expected[0] or "celery")
    assert isinstance(task, app.Task)


def test_a_rate_limit_may_be_said_like_this_too(app):
    app.conf.task_annotations = {"proj.add": {"rate_limit": "10/m"}}
    assert app.task(name="proj.add")(lambda: 1).rate_limit == "10/m"


def test_what_is_said_later_holds_for_tasks_that_are_there_and_can_be_taken_back(app):
    task = app.task(name="proj.add", max_retries=4)(lambda: 1)
    app.conf.task_annotations = {"proj.add": {"acks_late": True, "max_retries": 5, "ignore_result": True}}
    assert (task.acks_late, task.max_retries, task.delay().ignored) == (True, 5, True)
    app.conf.task_annotations = {"proj.add": {"max_retries": 6}}
    assert (task.acks_late, task.max_retries, task.delay().ignored) == (False, 6, False)
    app.conf.update(task_annotations=None, task_acks_late=True)
    assert (task.acks_late, task.max_retries) == (True, 4)


def test_what_code_sets_afterwards_wins(app):
    app.conf.task_annotations = {"*": {"max_retries": 5}}
    task = app.task(lambda: 1)
    task.max_retries = 9
    app.conf.task_default_queue = "other"
    assert task.max_retries == 9


def test_a_function_becomes_a_method(app):
    seen = []

    def report(self, retval, task_id, args, kwargs):
        seen.append((self.name, retval))

    task = app.task(name="proj.add")(lambda x: x + 1)
    app.conf.task_annotations = {"*": {"on_success": report}}
    assert task.apply((1,)).get() == 2
    assert seen == [("proj.add", 2)]


@pytest.mark.parametrize("bind", [False, True])
def test_a_method_can_be_wrapped_and_gets_what_it_would_get(app, bind):
    def doubled(run):
        return lambda self, *args, **kwargs: 2 * run(*((self,) if bind else ()), *args, **kwargs)

    function = (lambda self, x: x + 1) if bind else (lambda x: x + 1)
    task = app.task(name="proj.add", bind=bind)(function)
    app.conf.task_annotations = {"proj.add": {"@run": doubled}}
    assert (task(1), task.apply((1,)).get()) == (4, 4)
    with pytest.raises(TypeError):
        task.delay()
    app.conf.task_annotations = None
    assert task(1) == 2


def test_calling_a_task_can_be_wrapped(app):
    seen = []

    def seeing(call):
        def wrapper(self, *args):
            seen.append((self.name, args))
            return call(self, *args)

        return wrapper

    app.conf.task_annotations = {"*": {"@__call__": seeing}}
    task = app.task(name="proj.add")(lambda x: x)
    assert task.apply((1,)).get() == 1
    assert seen == [("proj.add", (1,))]


def test_what_is_said_of_one_task_holds_for_no_other_of_its_class(app):
    class Mine(Task):
        """Mine."""

        def run(self): ...

    app.conf.task_annotations = {"proj.one": {"queue": "one"}}
    one, two = (app.register_task(type("Named", (Mine,), {"name": name})) for name in ("proj.one", "proj.two"))
    other = LocalQ("other", store="memory:").register_task(type(two)())
    assert (one.queue, two.queue, other.queue, Mine.queue) == ("one", None, None, None)
    assert type(one).__name__ == "Named"


@pytest.mark.parametrize(
    "wrong",
    [5, ["proj.add", 5], "nothing", "json:nothing", {"proj.add": 5}, {"*": ["queue"]}, {"proj.add": {"@run": 5}}],
)
def test_what_says_nothing_of_tasks_is_an_error(app, wrong):
    app.task(name="proj.add")(lambda: 1)
    with pytest.raises(ImproperlyConfigured, match="task_annotations"):
        app.conf.task_annotations = wrong


class Named:
    name = "a"


MAPS = st.dictionaries(st.sampled_from(["*", "a", "b"]), st.dictionaries(st.sampled_from("xyz"), st.integers()))


@given(st.lists(MAPS, max_size=4))
def test_the_first_that_names_a_task_counts_and_the_first_star_wins_over_it(maps):
    of_one = next((each["a"] for each in maps if each.get("a")), {})
    of_any = next((each["*"] for each in maps if each.get("*")), {})
    assert attributes_for(maps, Named) == {**of_one, **of_any}
