"""`task.request`: the same facts in a worker, in eager mode and in a direct call."""

from __future__ import annotations

import os
import re

import pytest

from localq import LocalQ, Task, group
from localq.context import Context, running
from localq.exceptions import LocalqWarning, MaxRetriesExceededError

#: Every attribute that Celery's documentation has, and ours.
NAMES = [
    "id", "task", "lang", "args", "kwargs", "argsrepr", "kwargsrepr", "group", "group_index", "taskset", "chord",
    "chain", "correlation_id", "origin", "retries", "is_eager", "eta", "expires", "hostname", "delivery_info",
    "reply_to", "called_directly", "timelimit", "time_limit", "soft_time_limit", "callbacks", "errbacks", "utc",
    "headers", "root_id", "parent_id", "properties", "replaced_task_nesting", "ignore_result", "stamped_headers",
    "stamps", "children", "logfile", "loglevel", "shadow", "token", "redelivered",
]  # fmt: skip


@pytest.fixture
def look(app):
    """A task that returns what its request says."""

    @app.task(bind=True, name="proj.look", max_retries=2)
    def look(self, *args, **kwargs):
        return {name: getattr(self.request, name) for name in NAMES}

    return look


@pytest.mark.row("F066", "F067", "F069", "F070", "F071", "F073", "F074", "F079", "F082", "F085", "F087", "F091")
def test_a_plain_call_has_every_fact(app, look, running):
    with running():
        result = look.delay(1, 2, x=3)
        found = result.get(timeout=30)
    assert set(found) == set(NAMES)
    assert found["id"] == found["correlation_id"] == found["root_id"] == result.id
    expected = {
        "task": "proj.look", "lang": "py", "args": [1, 2], "kwargs": {"x": 3}, "argsrepr": "(1, 2)",
        "kwargsrepr": "{'x': 3}", "group": None, "group_index": None, "taskset": None, "chord": None, "chain": None,
        "retries": 0, "is_eager": running.mode == "eager", "eta": None, "expires": None, "called_directly": False,
        "timelimit": [None, None], "time_limit": None, "soft_time_limit": None, "callbacks": None, "errbacks": None,
        "utc": True, "headers": None, "parent_id": None, "replaced_task_nesting": 0, "ignore_result": False,
        "stamped_headers": None, "stamps": None, "children": [], "logfile": None, "loglevel": None, "shadow": None,
        "redelivered": 0,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert isinstance(found["token"], int)


@pytest.mark.row("F072", "F076", "F077", "F078")
def test_a_call_knows_its_sender_its_node_and_its_way(app, look, running):
    with running():
        found = look.apply_async((), priority=7).get(timeout=30)
    assert re.fullmatch(rf"gen{os.getpid()}@\S+", found["origin"])
    assert found["hostname"]
    assert found["reply_to"] == app.oid
    delivery = {"exchange": "", "routing_key": "celery", "priority": 7, "redelivered": False}
    if running.mode == "eager":
        delivery["is_eager"] = True
    assert found["delivery_info"] == delivery


@pytest.mark.row("F068", "F075", "F080", "F083", "F084", "F086", "F087", "F089", "F091", "F100", "F107", "F108", "X5")
def test_whatever_a_call_says_of_itself_is_seen_in_its_request(app, look, running):
    options = {
        "task_id": "mine", "shadow": "looking", "headers": {"h": 1}, "argsrepr": "(...)", "kwargsrepr": "{'pin': '*'}",
        "root_id": "root", "parent_id": "parent", "group_id": "gang", "group_index": 4, "chord": {"task": "body"},
        "chain": [{"task": "next"}], "reply_to": "me", "origin": "gen1@here", "retries": 1,
        "replaced_task_nesting": 2, "app_id": "1234", "tenant": "blue", "delivery_mode": "transient",
        "stamped_headers": ["batch"], "batch": 7, "loglevel": 20, "logfile": "a.log",
        "expires": "2100-01-01T00:00:00+00:00",
    }  # fmt: skip
    with running():
        result = look.apply_async(("secret",), time_limit=30, soft_time_limit=20, **options)
        found = result.get(timeout=30)
    said = {
        "id": "mine", "shadow": "looking", "headers": {"h": 1}, "argsrepr": "(...)", "kwargsrepr": "{'pin': '*'}",
        "root_id": "root", "parent_id": "parent", "group": "gang", "taskset": "gang", "group_index": 4,
        "chord": {"task": "body"}, "chain": [{"task": "next"}], "reply_to": "me", "origin": "gen1@here", "retries": 1,
        "replaced_task_nesting": 2, "stamped_headers": ["batch"], "stamps": {"batch": 7}, "loglevel": 20,
        "logfile": "a.log", "timelimit": [30, 20], "time_limit": 30, "soft_time_limit": 20,
        "expires": "2100-01-01T00:00:00+00:00",
    }  # fmt: skip
    assert {name: found[name] for name in said} == said
    assert found["properties"] == {
        "correlation_id": "mine", "reply_to": "me", "priority": 5, "delivery_mode": 1, "app_id": "1234",
        "tenant": "blue",
    }  # fmt: skip


@pytest.mark.row("F062", "F063", "F090")
def test_a_direct_call_has_a_request_of_its_own_with_the_same_names(look):
    found = look(1, x=2)
    assert set(found) == set(NAMES)
    assert (found["called_directly"], found["args"], found["kwargs"], found["children"]) == (True, (1,), {"x": 2}, [])
    assert (found["timelimit"], found["argsrepr"], found["utc"]) == ((None, None), "(1,)", True)


@pytest.mark.row("F063")
def test_a_task_called_by_another_does_not_see_its_request(app, running):
    @app.task(bind=True)
    def inner(self):
        return [self.request.id, self.request.called_directly]

    @app.task(bind=True)
    def outer(self):
        return [inner(), self.request.id, self.request.called_directly]

    with running():
        result = outer.delay()
        assert result.get(timeout=30) == [[None, True], result.id, False]


@pytest.mark.row("F083")
def test_a_header_of_ones_own_is_an_attribute_of_the_request_too(app, running):
    @app.task(bind=True)
    def read(self):
        return [self.request.trace, self.request.get("trace"), self.request.id]

    with running():
        result = read.apply_async(headers={"trace": "abc", "id": "not this"})
        assert result.get(timeout=30) == ["abc", "abc", result.id]


@pytest.mark.row("F088")
def test_the_request_says_whether_the_result_is_ignored(app):
    seen = []

    @app.task(bind=True, ignore_result=True)
    def silent(self):
        seen.append(self.request.ignore_result)

    for options in ({}, {"ignore_result": False}, {"ignore_result": True}):
        silent.apply(**options)
    assert seen == [True, False, True]


@pytest.mark.row("F068")
def test_a_member_of_a_group_knows_it(app, running):
    @app.task(bind=True)
    def where(self):
        return [self.request.group, self.request.group_index]

    with running():
        result = group(where.s() for _ in range(3))()
        assert result.get(timeout=30) == [[result.id, at] for at in range(3)]


@pytest.mark.row("F109")
def test_long_and_deep_arguments_are_cut_for_people(app):
    @app.task(bind=True)
    def show(self, *args, **kwargs):
        return [self.request.argsrepr, self.request.kwargsrepr]

    text, _ = show.apply(("x" * 5000,)).get()
    assert len(text) <= 1024
    assert "..." in text
    assert show.apply(([[1]],), {"a": [2]}).get() == ["([[1]],)", "{'a': [2]}"]
    assert show.apply(([[[[1]]]],), {"a": [[[2]]]}).get() == ["([[[...]]],)", "{'a': [[[...]]]}"]
    app.conf.task_repr_maxlevels = 1
    assert show.apply(([1],), {"a": [2]}).get() == ["([...],)", "{'a': [...]}"]


@pytest.mark.row("F041", "F090", "F107")
def test_what_a_task_sends_are_its_children_unless_it_says_otherwise(app, running):
    @app.task
    def leaf(): ...

    @app.task(bind=True)
    def parent(self):
        sent = leaf.delay()
        leaf.apply_async(add_to_parent=False)
        by_name = app.send_task(leaf.name) if running.mode != "eager" else leaf.delay()
        return [[child.id for child in self.request.children], [sent.id, by_name.id]]

    @app.task(bind=True, trail=False)
    def silent(self):
        leaf.delay()
        return len(self.request.children)

    with running():
        children, sent = parent.delay().get(timeout=30)
        assert silent.delay().get(timeout=30) == 0
    assert children == sent


@pytest.mark.row("F092")
def test_a_retry_keeps_everything_that_the_call_said(app, running):
    kept = ["id", "root_id", "parent_id", "group", "group_index", "shadow", "chord", "chain", "callbacks", "errbacks",
            "headers", "timelimit", "reply_to", "replaced_task_nesting", "origin", "stamps", "expires", "properties",
            "argsrepr", "kwargsrepr"]  # fmt: skip

    @app.task(bind=True, name="proj.again")
    def again(self, before=None):
        facts = {name: getattr(self.request, name) for name in kept}
        if before is None:
            raise self.retry(args=(facts,), countdown=0)
        return [before, facts, self.request.retries]

    @app.task(name="proj.sad")
    def sad(request, exc, traceback): ...

    with running():
        result = again.apply_async(
            task_id="same", shadow="other", root_id="r", parent_id="p", headers={"h": 1}, reply_to="me",
            time_limit=9, soft_time_limit=3, link_error=sad.s(), stamped_headers=["s"], s=1, app_id="7",
            argsrepr="()", kwargsrepr="{}", group_id="g", chain=[{"task": "t"}], replaced_task_nesting=1,
            expires="2100-01-01T00:00:00+00:00",
        )  # fmt: skip
        before, after, retries = result.get(timeout=30)
    assert before == after
    assert retries == 1
    assert (before["headers"], before["root_id"], before["timelimit"]) == ({"h": 1}, "r", [9, 3])


@pytest.mark.row("F092")
def test_a_step_that_is_retried_is_not_fed_twice(app, running):
    @app.task
    def one():
        return 1

    @app.task(bind=True)
    def second(self, *args):
        if not self.request.retries:
            raise self.retry(countdown=0)
        return list(args)

    with running():
        assert (one.s() | second.s(2)).apply_async().get(timeout=30) == [1, 2]


@pytest.mark.row("F092")
def test_as_execution_options_are_options_of_the_same_call():
    request = Context(
        id="a", group="g", timelimit=(9, 3), headers={"h": 1, "x-death": []}, callbacks=[1], errbacks=[2],
        stamped_headers=["s"], stamps={"s": 1, "t": 2},
    )  # fmt: skip
    assert request.as_execution_options() == {
        "task_id": "a", "root_id": None, "parent_id": None, "group_id": "g", "group_index": None, "shadow": None,
        "chord": None, "chain": None, "link": [1], "link_error": [2], "expires": None, "soft_time_limit": 3,
        "time_limit": 9, "headers": {"h": 1}, "retries": 0, "reply_to": None, "replaced_task_nesting": 0,
        "origin": None, "stamped_headers": ["s"], "s": 1,
    }  # fmt: skip


@pytest.mark.row("N32")
def test_a_signature_from_a_request_is_the_same_call(app, running):
    @app.task(bind=True, name="proj.once")
    def once(self, x):
        sig = self.signature_from_request(args=(x + 1,))
        return [sig.task, list(sig.args), sig.options["task_id"], sig.options["queue"], sig.options["headers"]]

    with running():
        result = once.apply_async((1,), headers={"h": 1}, queue="celery")
        assert result.get(timeout=30) == ["proj.once", [2], result.id, "celery", {"h": 1}]


@pytest.mark.row("N32")
def test_a_pushed_request_is_the_tasks_own_until_it_is_popped(app):
    @app.task(bind=True)
    def me(self):
        return self.request.id

    me.push_request(id="made up", called_directly=False)
    assert me.request.id == "made up"
    me.pop_request()
    assert me.request.id is None
    assert running.get() is None
    with pytest.raises(RuntimeError, match="no request"):
        me.pop_request()


@pytest.mark.row("N32")
def test_a_state_of_ones_own_is_seen_while_the_task_runs(app, running):
    @app.task(bind=True)
    def work(self):
        self.update_state(state="PROGRESS", meta={"done": 1}, total=2)
        found = app.AsyncResult(self.request.id)
        return [found.state, found.info] if not self.request.is_eager else ["PROGRESS", {"done": 1, "total": 2}]

    with running():
        result = work.delay()
        assert result.get(timeout=30) == ["PROGRESS", {"done": 1, "total": 2}]
        assert result.state == "SUCCESS"


@pytest.mark.row("N32")
def test_a_state_needs_a_task_and_a_word(app):
    @app.task(bind=True)
    def work(self): ...

    with pytest.raises(ValueError, match="needs a task and a state"):
        work.update_state(state="PROGRESS")
    with pytest.raises(ValueError, match="needs a task and a state"):
        work.update_state("an id")


@pytest.mark.row("N32")
def test_another_tasks_state_can_be_written_by_its_id(app):
    @app.task
    def work(): ...

    result = work.delay()
    work.update_state(result.id, "HALFWAY", {"at": 1})
    assert (result.state, result.info) == ("HALFWAY", {"at": 1})


@pytest.mark.row("N32")
def test_an_event_of_ones_own_is_accepted_and_nobody_hears_it_yet(app):
    task = app.task(lambda: 1)
    with pytest.warns(LocalqWarning, match="no effect yet"):
        task.send_event("task-progress", done=1)


@pytest.mark.row("N45")
def test_a_call_of_ones_own_and_its_super_are_one_run(app, running):
    class Base(Task):
        abstract = True

        def __call__(self, *args, **kwargs):
            return [self.request.id, super().__call__(*args, **kwargs), self.request.id]

    @app.task(bind=True, base=Base)
    def work(self):
        return [self.request.id, self.request.called_directly]

    with running():
        result = work.delay()
        assert result.get(timeout=30) == [result.id, [result.id, False], result.id]


@pytest.mark.row("N45")
def test_a_task_with_a_call_of_its_own_may_call_itself(app):
    class Base(Task):
        abstract = True

        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    @app.task(bind=True, base=Base)
    def down(self, n):
        return [self.request.called_directly, *(down(n - 1) if n else [])]

    assert down.apply((2,)).get() == [False, True, True]


@pytest.mark.row("F061")
def test_a_task_is_one_object_for_all_its_runs(app):
    class Counting(Task):
        abstract = True

        def __init__(self):
            self.made = getattr(self, "made", 0) + 1
            self.runs = 0

    @app.task(bind=True, base=Counting)
    def count(self):
        self.runs += 1
        return [self.made, self.runs]

    assert [count.apply().get() for _ in range(2)] == [[1, 1], [1, 2]]


@pytest.mark.row("F059", "N50")
def test_a_task_says_who_it_is_and_takes_subscripts(app):
    @app.task(name="proj.add")
    def add(): ...

    assert re.fullmatch(r"<@task: proj\.add of proj at 0x[0-9a-f]+>", repr(add))
    for kind in (Task, LocalQ, type(add.s())):
        assert kind[int].__origin__ is kind


@pytest.mark.row("F115", "F108")
def test_giving_up_says_no_more_of_the_arguments_than_the_caller_shows(app):
    @app.task(bind=True, max_retries=0, name="proj.secret")
    def secret(self, pin):
        raise self.retry()

    result = secret.apply_async(("1234",), argsrepr="('****',)", task_id="i")
    assert secret.MaxRetriesExceededError is MaxRetriesExceededError
    from working import work_off

    work_off(app)
    with pytest.raises(secret.MaxRetriesExceededError, match=r"\('\*\*\*\*',\)") as failure:
        result.get(timeout=0)
    assert "1234" not in str(failure.value)


@pytest.mark.row("F058")
def test_a_task_is_told_when_it_is_bound(app):
    told = []

    class Base(Task):
        abstract = True

        @classmethod
        def on_bound(cls, app):
            told.append((cls.__name__, app))

    @app.task(base=Base)
    def work(): ...

    assert told == [("work", app)]
