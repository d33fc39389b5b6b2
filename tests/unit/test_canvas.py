"""Signatures, and what holds of every plan; what workflows come to is told in tests/canvas."""

from __future__ import annotations

import json
import pickle
from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from working import work_off

from localq import LocalQ, Signature, chain, chord, group, maybe_signature
from localq.context import apps
from localq.message import LEADS_BY_GROUP, LEADS_BY_ID
from localq.plan import RESULT, RESULTS, Plan

app = LocalQ("proj", store="memory:", set_as_current=False)


@app.task(name="canvas.note")
def note(*values):
    """Tell exactly what it was called with."""
    return list(values)


@app.task(name="canvas.fail")
def fail(*_):
    raise ValueError("on purpose")


# -- Random plans ------------------------------------------------------------

leaves = st.tuples(st.just("leaf"), st.integers(0, 99), st.booleans())
trees = st.recursive(
    leaves,
    lambda each: (
        st.tuples(st.just("chain"), st.lists(each, min_size=1, max_size=4))
        | st.tuples(st.just("group"), st.lists(each, max_size=4))
        | st.tuples(st.just("chord"), st.lists(each, max_size=3), each)
    ),
    max_leaves=8,
)


def built(tree):
    if tree[0] == "leaf":
        return note.si(tree[1]) if tree[2] else note.s(tree[1])
    if tree[0] == "chain":
        return chain(*map(built, tree[1]), app=app)
    members = group([built(each) for each in tree[1]], app=app)
    return members if tree[0] == "group" else chord(members, built(tree[2]), app=app)


@given(trees)
def test_a_plan_puts_every_step_behind_those_it_waits_for(tree):
    ended, groups = set(), {}
    for step in Plan(built(tree)).steps:
        if step.feed == RESULT:
            assert step.after in ended
        elif step.feed == RESULTS:
            assert groups.get(step.after, 0) == step.waits_for
        ended.add(step.id)
        if step.group_id is not None:
            groups[step.group_id] = groups.get(step.group_id, 0) + 1
    assert len(ended) == len(Plan(built(tree)).steps)


@given(trees)
def test_whoever_is_waited_for_knows_it(tree):
    steps = Plan(built(tree)).steps
    awaited = {step.after for step in steps if step.waits_for}
    for step in steps:
        assert bool(step.leads & LEADS_BY_ID) == (step.id in awaited)
        assert bool(step.leads & LEADS_BY_GROUP) == (step.group_id in awaited)


@given(trees)
def test_sending_a_signature_does_not_change_it(tree):
    sig = built(tree)
    before = json.dumps(sig)
    sig.apply()
    sig.clone(queue="other")
    assert json.dumps(sig) == before


# -- One signature ---------------------------------------------------------------------------------


def test_a_signature_is_celerys_dict():
    assert dict(note.s(1, key=2)) == {
        "task": "canvas.note", "args": (1,), "kwargs": {"key": 2}, "options": {}, "subtask_type": None,
        "immutable": False,
    }  # fmt: skip


def test_further_arguments_stand_in_front():
    assert note.s(2).clone((1,)).args == (1, 2)
    assert note.s(2).apply((1,)).get() == [1, 2]


def test_an_immutable_signature_takes_nothing_more():
    assert note.si(2).clone((1,), {"x": 1}).args == (2,)
    assert note.si(2).clone((1,), {"x": 1}).kwargs == {}


def test_a_clone_shares_nothing_with_its_original():
    first = note.s(1).set(headers={"a": [1]})
    second = first.clone()
    second.options["headers"]["a"].append(2)
    second.kwargs["x"] = 1
    assert first.options == {"headers": {"a": [1]}}
    assert first.kwargs == {}


def test_replace_swaps_arguments_and_leaves_the_original():
    first = note.s(1)
    assert first.replace(args=(9,)).args == (9,)
    assert first.args == (1,)


def test_options_set_on_a_signature_go_with_it():
    sig = note.s(1).set(queue="mail", priority=0)
    result = sig.apply_async()
    assert result.queue == "mail"
    assert note.s(1).set(immutable=True).immutable


def test_freezing_gives_the_id_the_task_will_have():
    sig = note.s(5)
    result = sig.freeze()
    assert sig.apply_async().id == result.id


def test_a_signature_can_be_called_copied_pickled_and_inverted():
    assert note.s(1)(0) == [0, 1]
    assert deepcopy(note.s(1)) == note.s(1)
    assert pickle.loads(pickle.dumps(note.s(1))) == note.s(1)
    assert repr(note.s(1, key=2)) == "canvas.note(1, key=2)"


def test_a_name_alone_is_a_signature():
    assert Signature("canvas.note", (1,), app=app).apply().get() == [1]
    assert maybe_signature(None) is None


# -- Joining ---------------------------------------------------------------------------------------


def test_the_bar_joins_steps_into_one_chain():
    assert len((note.s(1) | note.s(2) | note.s(3)).tasks) == 3


def test_a_group_followed_by_a_step_is_a_chord():
    assert isinstance(group(note.s(1), note.s(2), app=app) | note.s(3), chord)


def test_a_chain_of_a_single_group_is_that_group():
    assert chain(group(note.s(1), note.s(2))).apply().get() == [[1], [2]]


def test_a_chain_and_a_group_take_a_list_or_a_generator():
    assert chain([note.s(1), note.s(2)]).apply().get() == [[1], 2]
    assert group(note.s(i) for i in range(3)).apply().get() == [[0], [1], [2]]


def test_a_group_of_a_group_is_that_group():
    assert len(group(group(note.s(1), note.s(2)))) == 2


def test_a_group_is_true_even_when_it_is_empty():
    assert group(app=app)
    assert group(app=app).apply().get() == []


@pytest.mark.row("F229")
def test_an_empty_chain_sends_nothing():
    empty = chain(app=app)
    assert [empty(), empty.delay(), empty.apply_async(), empty.apply()] == [None] * 4
    with pytest.raises(ValueError, match="empty chain"):
        empty.freeze()


def test_options_of_a_chain_are_its_first_tasks_and_its_id_is_its_last_tasks():
    steps = Plan(chain(note.s(1), note.s(2)).set(queue="q", task_id="the-end")).steps
    assert [step.sig.options.get("queue") for step in steps] == ["q", None]
    assert steps[-1].id == "the-end"


def test_options_of_a_group_go_to_each_member():
    steps = Plan(group(note.s(1), note.s(2)).set(queue="q")).steps
    assert [step.sig.options.get("queue") for step in steps] == ["q", "q"]


def test_a_link_is_sent_with_the_result():
    seen = []

    @app.task(name="canvas.see")
    def see(value):
        seen.append(value)

    note.apply_async((1,), link=see.s())
    work_off(app)
    note.s(2).set(link=[see.s(), see.s()]).apply()
    assert seen == [[1], [2], [2]]


def test_map_and_starmap_run_here_in_an_app_that_is_not_the_current_one(monkeypatch):
    monkeypatch.setattr(apps, "default", None)
    assert note.map([1, 2]).apply().get() == [[1], [2]]
    assert note.starmap([(1, 2)]).apply().get() == [[1, 2]]


# -- What a failure does ---------------------------------------------------------------------------


def test_a_failed_step_ends_every_step_behind_it():
    result = (note.s(1) | fail.s() | note.s(2) | note.s(3)).apply_async()
    work_off(app)
    assert [result.state, result.parent.state, result.parent.parent.state] == ["FAILURE"] * 2 + ["FAILURE"]
    with pytest.raises(ValueError, match="on purpose"):
        result.get(timeout=0)
    assert result.parent.parent.parent.get(timeout=0) == [1]


def test_a_failed_member_fails_the_chords_body_with_a_chord_error():
    result = chord([note.s(1), fail.s()], note.s()).apply_async()
    work_off(app)
    value = result.get(timeout=0, propagate=False)
    assert type(value).__name__ == "ChordError"
    assert "on purpose" in str(value)


def test_a_failed_step_runs_nothing_behind_it():
    result = (fail.s() | note.s(2)).apply_async()
    assert work_off(app) == [result.parent.id]


def test_a_failure_run_here_ends_the_rest_in_the_same_way():
    result = (fail.s() | note.s(1)).apply()
    assert result.state == "FAILURE"
    with pytest.raises(ValueError, match="on purpose"):
        result.get()


def test_a_failure_before_a_chord_is_the_bodys_too_wherever_it_runs():
    flow = fail.s() | group(note.s(1), note.s(2), app=app) | note.s(3)
    here, sent = flow.apply(), flow.apply_async()
    work_off(app)
    for result in (here, sent):
        assert type(result.get(timeout=0, propagate=False)) is ValueError


def test_a_step_that_retries_is_fed_once_wherever_it_runs():
    @app.task(name="canvas.twice", bind=True)
    def twice(self, *values):
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        return list(values)

    flow = note.s(1) | twice.s(2)
    assert flow.apply().get() == [[1], 2]
    result = flow.apply_async()
    work_off(app)
    assert result.get(timeout=0) == [[1], 2]
