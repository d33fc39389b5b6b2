"""Which queue a task goes to."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localq import LocalQ
from localq.routing import compiled, queue_for

names = st.lists(st.sampled_from(["proj", "mail", "send", "a"]), min_size=1, max_size=3).map(".".join)
patterns = names | st.sampled_from(["proj.*", "*.send", "*", "p?oj.*", "[am]*", "mail.*.send"])
queues = st.sampled_from(["q1", "q2", "q3"])


def found(routes, name="proj.add", options=None):
    return queue_for(compiled(routes), name, (), {}, options or {})


@given(st.dictionaries(patterns, queues, max_size=5), names)
def test_an_exact_name_beats_patterns_and_patterns_are_tried_in_order(table, name):
    matching = [queue for pattern, queue in table.items() if fnmatchcase(name, pattern)]
    expected = table.get(name) or (matching[0] if matching else None)
    assert found(table, name) == expected


@given(st.lists(st.dictionaries(patterns, queues, max_size=3), max_size=4), names)
def test_the_first_router_that_names_a_queue_wins(tables, name):
    answers = [answer for table in tables if (answer := found(table, name)) is not None]
    assert found(tables, name) == (answers[0] if answers else None)


@given(names, queues)
def test_a_target_is_a_queue_name_or_a_mapping_with_one(name, queue):
    assert found({name: queue}, name) == found({name: {"queue": queue}}, name) == queue


def test_a_mapping_without_a_queue_leaves_the_choice_to_the_next_router():
    assert found([{"proj.add": {"priority": 3}}, {"proj.*": "slow"}]) == "slow"


def test_a_compiled_expression_is_a_pattern():
    assert found({re.compile(r"proj\.(add|mul)$"): "math"}) == "math"
    assert found({re.compile(r"proj\.(add|mul)$"): "math"}, "proj.address") is None


def test_celerys_list_of_pairs_is_understood():
    assert found(([("proj.*", {"queue": "p"}), ("*", "rest")],)) == "p"


def test_a_function_may_route_by_arguments_and_options():
    def by_size(name, args, kwargs, options, task=None, **kw):
        return {"queue": "big"} if args and args[0] > 10 else None

    routers = compiled([by_size, {"*": "small"}])
    assert queue_for(routers, "proj.add", (100,), {}, {}) == "big"
    assert queue_for(routers, "proj.add", (1,), {}, {}) == "small"


def test_a_dotted_path_names_a_router(tmp_path, monkeypatch):
    (tmp_path / "router_of_the_test.py").write_text("def route(name, *a, **k): return 'by-path'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert found("router_of_the_test.route") == "by-path"
    assert found(["router_of_the_test.route", {"*": "rest"}]) == "by-path"


@pytest.mark.parametrize("routes", [None, {}, [], ()])
def test_no_routes_name_no_queue(routes):
    assert found(routes) is None


# -- Through the app -------------------------------------------------------------------------------


@pytest.fixture
def routed():
    app = LocalQ("proj", store="memory:", set_as_current=False, task_routes={"proj.*": "routed"})
    yield app
    app.close()


def queue_of(app, name="proj.add", **kwargs):
    return app.send_task(name, (), **kwargs).queue


def test_a_calls_own_queue_beats_everything(routed):
    assert queue_of(routed, queue="mine") == "mine"


def test_a_tasks_queue_beats_the_routes(routed):
    @routed.task(name="proj.special", queue="special")
    def special(): ...

    assert special.delay().queue == "special"


def test_routes_beat_the_default_queue(routed):
    assert queue_of(routed) == "routed"
    assert queue_of(routed, "other.add") == "celery"


def test_new_routes_count_at_the_next_call(routed):
    routed.conf.task_routes = {"proj.*": "elsewhere"}
    assert queue_of(routed) == "elsewhere"
    routed.conf.task_routes = None
    assert queue_of(routed) == "celery"
