"""Plans: joining is associative, any form of the same workflow is laid out alike, and nothing takes more than O(n)."""

from __future__ import annotations

import json
import pickle
import sys
from collections import Counter
from copy import deepcopy
from functools import reduce
from operator import or_

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from working import work_off

from localq import LocalQ, chain, chord, chunks, group, signature
from localq.canvas import xstarmap
from localq.message import LEADS_ANYWAY, LEADS_BY_GROUP, LEADS_BY_ID, LEADS_IF_BAD, WAITS_IF_BAD
from localq.plan import RESULT, RESULTS, Plan

app = LocalQ("proj", store="memory:", set_as_current=False)


@app.task(name="mod.note")
def note(*values):
    """Tell exactly what it was called with."""
    return list(values)


@pytest.fixture(autouse=True)
def _current():
    app.set_current()


WAITED_FOR = LEADS_BY_ID | LEADS_BY_GROUP | LEADS_ANYWAY | LEADS_IF_BAD


def layout(sig):
    """What is planned, with its ids numbered in the order they are met."""
    numbers: dict[str | None, int] = {None: -1}
    return [
        (
            step.sig.task, step.sig.args, step.sig.immutable, numbers.setdefault(step.id, len(numbers)),
            numbers.setdefault(step.after, len(numbers)), step.waits_for, step.feed,
            numbers.setdefault(step.group_id, len(numbers)), step.position, step.leads & WAITED_FOR,
        )
        for step in Plan(sig).steps
    ]  # fmt: skip


number = st.integers(0, 99)
tasks = st.one_of(number.map(note.s), number.map(note.si))
several = st.lists(tasks, min_size=2, max_size=3).map(group)
canvases = st.recursive(
    tasks,
    lambda each: (
        st.lists(each, min_size=1, max_size=4).map(chain)
        | st.lists(each, max_size=3).map(group)
        | st.builds(chord, st.lists(each, max_size=3), each)
        | st.just(chain())
    ),
    max_leaves=10,
)
steps = st.one_of(tasks, several, st.builds(chord, st.lists(tasks, min_size=1, max_size=2), tasks))


# -- Laws ------------------------------------------------------------------------------------------


@pytest.mark.row("F203", "F220", "F223", "F224")
@settings(max_examples=200)
@given(st.lists(steps, min_size=1, max_size=7), st.data())
def test_however_steps_are_joined_the_same_is_planned(parts, data):
    expected = layout(reduce(or_, parts))

    def joined(first, last):
        if last - first == 1:
            return parts[first]
        middle = data.draw(st.integers(first + 1, last - 1))
        return joined(first, middle) | joined(middle, last)

    assert layout(joined(0, len(parts))) == expected
    assert layout(chain(parts)) == layout(chain(*parts)) == layout(chain(part for part in parts)) == expected
    assert layout(chain(*parts[:1], chain(*parts[1:]))) == expected


@pytest.mark.row("F203")
@given(st.lists(steps, min_size=2, max_size=5))
def test_joining_in_place_is_joining(parts):
    flow = parts[0]
    for part in parts[1:]:
        flow |= part
    assert flow == reduce(or_, parts)


@given(st.lists(steps, min_size=2, max_size=5))
def test_joining_leaves_its_two_sides_as_they_are(parts):
    before = json.dumps(parts)
    flow = reduce(or_, parts)
    for step in getattr(flow, "tasks", ()):
        step.set(queue="other")
    flow.freeze()
    assert json.dumps(parts) == before


@pytest.mark.row("F203", "F226")
@given(canvases.filter(lambda sig: layout_or_none(sig)))
def test_a_canvas_that_went_through_json_a_copy_or_a_clone_is_planned_alike(sig):
    for again in (signature(json.loads(json.dumps(sig))), deepcopy(sig), sig.clone(), pickle.loads(pickle.dumps(sig))):
        assert layout(again) == layout(sig)


def layout_or_none(sig):
    try:
        return layout(sig)
    except ValueError:
        return None


def ends_of(node):
    return [end for each in node.members for end in ends_of(each)] if node.is_group else [node.ends[0].id]


@settings(max_examples=200)
@given(canvases)
def test_every_step_waits_for_the_right_ends(sig):
    if layout_or_none(sig) is None:
        return
    plan = Plan(sig)
    ended, places = set(), Counter()
    for step in plan.steps:
        if step.feed == RESULT:
            assert step.after in ended
            assert step.waits_for == 1
        elif step.feed == RESULTS:
            assert places[step.after] == step.waits_for
        else:
            assert step.after is None or step.sig.immutable
        ended.add(step.id)
        if step.group_id is not None:
            places[step.group_id] += 1
    ids = [step.id for step in plan.steps]
    assert len({*ids, *places}) == len(ids) + len(places)
    awaited = {step.after for step in plan.steps if step.after is not None}
    assert {step.id for step in plan.steps if step.leads & LEADS_BY_ID} == awaited & ended
    assert {step.group_id for step in plan.steps if step.leads & LEADS_BY_GROUP} == awaited & places.keys()
    # The ends of the whole are those for which nobody waits.
    unheeded = {step.id for step in plan.steps if not step.leads & (WAITED_FOR | WAITS_IF_BAD)}
    assert set(ends_of(plan.node)) == unheeded


@pytest.mark.row("F211", "F234")
def test_what_follows_an_empty_group_waits_for_what_stands_before_it():
    result = (note.s(1) | chord([], note.s(2))).apply_async()
    assert len(work_off(app)) == 3
    assert result.get(timeout=0) == [[], 2]
    assert result.parent.parent.get(timeout=0) == [1]
    assert chord([], note.s(2)).apply_async().parent.results == []


# -- Ids that are given beforehand -----------------------------------------------------------------


@pytest.mark.row("F200", "F217", "F222", "F254")
@settings(max_examples=150)
@given(canvases)
def test_what_freeze_returns_is_the_result_of_what_is_then_sent(sig):
    if layout_or_none(sig) is None:
        return
    frozen = sig.freeze()
    assert sig.freeze().as_tuple() == frozen.as_tuple()
    assert Plan(sig).node.id == frozen.id
    assert signature(json.loads(json.dumps(sig))).freeze().as_tuple() == frozen.as_tuple()
    assert sig.apply_async().as_tuple() == frozen.as_tuple()
    work_off(app)
    assert frozen.get(timeout=0) is not None


@pytest.mark.row("F200")
@pytest.mark.parametrize(
    ("end", "make"),
    [
        ("chain", lambda: note.s(1) | note.s(2)),
        ("group", lambda: group(note.s(1), note.s(2))),
        ("chord", lambda: chord([note.s(1)], note.s(2))),
        ("chord-of-two", lambda: chord([note.s(1)], group(note.s(2), note.s(3)))),
        ("map", lambda: note.map([1])),
        ("chunks", lambda: note.chunks([(1,), (2,)], 1)),
    ],
)
def test_the_id_given_is_the_id_of_the_end(end, make):
    sig = make()
    assert sig.freeze(end).id == end
    assert sig.id == end
    assert sig.freeze("another").id == end
    assert sig.apply_async().id == end


@pytest.mark.row("F200")
def test_freezing_says_whose_all_the_tasks_within_are():
    sig = note.s(1) | group(note.s(2), note.s(3)) | note.s(4)
    sig.freeze(root_id="root", group_id="outer", group_index=3)
    first, rest = sig.tasks
    assert [each.root_id for each in (first, *rest.tasks.tasks, rest.body)] == ["root"] * 4
    assert (rest.body.options["group_id"], rest.body.options["group_index"]) == ("outer", 3)
    assert "group_id" not in first.options


def test_two_workflows_of_the_same_steps_have_ids_of_their_own():
    base = note.s(1) | note.s(2)
    first, second = base | note.s(3), base | note.s(4)
    first.freeze()
    second.freeze()
    assert not {each.id for each in first.tasks} & {each.id for each in second.tasks}


# -- Long ones -------------------------------------------------------------------------------------


def calls(act):
    """Count the calls of Python functions that an act takes."""
    count = 0

    def see(frame, event, arg):
        nonlocal count
        count += event == "call"

    sys.setprofile(see)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def in_a_chain(n):
    return [note.s(i) for i in range(n)]


def in_groups(n):
    return [group([note.s(i), note.s()]) for i in range(n)]


def in_chords(n):
    return [each for i in range(n) for each in (group([note.s(i), note.s()]), note.s())]


ACTS = {
    "joining": lambda parts: reduce(or_, parts),
    "a chain of": chain,
    "cloning": lambda parts: chain(parts).clone(),
    "freezing": lambda parts: chain(parts).freeze(),
    "planning": lambda parts: Plan(chain(parts)),
    "showing": lambda parts: repr(chain(parts)),
    "JSON": lambda parts: signature(json.loads(json.dumps(chain(parts)))),
    "copying": lambda parts: deepcopy(chain(parts)),
    "pickling": lambda parts: pickle.loads(pickle.dumps(chain(parts))),
    "sending": lambda parts: chain(parts).apply_async(),
}


@pytest.mark.row("R15")
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(("made", "n"), [(in_a_chain, 5000), (in_groups, 200), (in_chords, 200)])
def test_a_long_workflow_takes_steps_in_proportion_and_no_recursion(act, made, n):
    few, many = made(n // 10), made(n)
    # Ten times as many parts: ten times the calls, and something for what is done once.
    assert calls(lambda: ACTS[act](many)) < 12 * calls(lambda: ACTS[act](few)) + 2000


@pytest.mark.row("R15")
@pytest.mark.parametrize(("made", "n"), [(in_a_chain, 2000), (in_groups, 200), (in_chords, 200)])
def test_a_long_workflow_takes_bytes_in_proportion(made, n):
    def size(parts):
        flow = reduce(or_, parts)
        sent = app.publisher.messages_of(Plan(flow).steps, app.tasks.get)
        return len(json.dumps(flow)), sum(len(each.body) + len(each.headers or "") for each in sent)

    few, many = size(made(n // 10)), size(made(n))
    assert [much / little < 11 for little, much in zip(few, many, strict=True)] == [True, True]


def test_a_long_repr_is_short():
    assert len(repr(chain(in_a_chain(5000)))) < 2000
    assert repr(group(in_a_chain(60))).endswith(", ... 10 more])")
    assert len(repr(chord(in_a_chain(5000), note.s()))) < 2000


@pytest.mark.row("F253")
def test_chunks_are_a_group_of_few_messages_and_keep_their_ids():
    sig = chunks(note.s(), [(i,) for i in range(5)], 2)
    parts = sig.group().tasks
    assert all(isinstance(part, xstarmap) for part in parts)
    assert [part.kwargs["it"] for part in parts] == [[(0,), (1,)], [(2,), (3,)], [(4,)]]
    frozen = sig.freeze()
    assert sig.apply_async().as_tuple() == frozen.as_tuple()


def test_a_result_names_each_step_once_however_many_groups_stand_in_a_row_within_a_group():
    """A member's steps end where its group begins: what stands before that is the group's parent, not each member's."""
    flow = group([chain(*[group([note.s(), note.s()]) for _ in range(30)]), note.s()])
    text = json.dumps(flow.freeze().as_tuple())
    assert len(text) < 40 * 3 * 30 * 3
