"""A workflow is laid out again as it was written, from any of its ids, whatever has run of it."""

from __future__ import annotations

import pytest
from working import work_off

from localq import LocalQ, chain, chord, group
from localq.message import Outcome
from localq.outline import Group, Outline, Step, read, sequence

LONG = 3000


@pytest.fixture(params=["sqlite", "memory"])
def app(request, tmp_path):
    store = "memory:outline" if request.param == "memory" else tmp_path / "store"
    made = LocalQ("proj", store=store, set_as_current=True)
    yield made
    made.close()


@pytest.fixture
def step(app):
    """Make a signature whose task id is its name."""

    @app.task(name="t.step")
    def step():
        return None

    return lambda name: step.si().set(task_id=name)


def shape(outline: Outline):
    """A sequence as a list; a group as a set of them; beside a step, what is below it."""

    def of(part):
        if isinstance(part, Group):
            return {"members": [shown(each) for each in part.members]}
        below = [*part.callbacks, *part.sent]
        return (part.id, *map(shown, below)) if below else part.id

    def shown(first):
        return [of(part) for part in sequence(first)]

    return [shown(top) for top in outline.tops]


def everywhere(app, sent):
    """Read a workflow from each of its ids; it is the same from all of them, before and after it has run."""
    found = read(app.storage, sent.id)
    for _ in range(2):
        shapes = [shape(read(app.storage, id)) for id in (*found.steps, *found.groups)]
        assert all(each == shapes[0] for each in shapes), shapes
        work_off(app)
    return shapes[0]


def members(*each):
    return {"members": [one if isinstance(one, list) else [one] for one in each]}


def test_a_chain_is_a_sequence(app, step):
    assert everywhere(app, chain(*map(step, "abc")).apply_async()) == [["a", "b", "c"]]


def test_a_group_in_a_chain_holds_its_members_chains(app, step):
    sent = chain(step("a"), group(step("b"), chain(step("c"), step("d"))), step("e")).apply_async()
    assert everywhere(app, sent) == [["a", members("b", ["c", "d"]), "e"]]


def test_a_chord_that_is_a_group_is_found_at_its_beginning(app, step):
    header = group(chord([step("a"), step("b")], step("c")), step("d"), chain(step("e"), group(step("f"), step("g"))))
    found = everywhere(app, chain(step("x"), header, step("y")).apply_async())
    inner = found[0][1]["members"][2][1]
    gather = found[0][1]["members"][2][2]  # the step that makes one list of a member that ends in a group
    assert (inner, gather[-5:]) == (members("f", "g"), ".list")
    assert found == [["x", members([members("a", "b"), "c"], "d", ["e", inner, gather]), "y"]]


def test_groups_in_a_row_stand_behind_each_other(app, step):
    sent = chain(*[group(step(f"{n}a"), step(f"{n}b")) for n in range(4)]).apply_async()
    assert everywhere(app, sent) == [[members(f"{n}a", f"{n}b") for n in range(4)]]


def test_a_header_of_one_is_a_group_of_one(app, step):
    assert everywhere(app, chord([step("a")], step("b")).apply_async()) == [[members("a"), "b"]]


def test_callbacks_stand_below_what_they_wait_for(app, step):
    first = step("a")
    first.link(step("callback"))
    assert everywhere(app, chain(first, step("b")).apply_async()) == [[("a", ["callback"]), "b"]]


def test_what_a_task_has_sent_stands_below_it(app, step):
    @app.task(name="t.sends")
    def sends():
        group(step("b"), chain(step("c"), step("d"))).apply_async()

    sends.apply_async(task_id="a")
    work_off(app)
    found = read(app.storage, "a")
    assert shape(found) == [[("a", [members("b", ["c", "d"])])]]
    assert found.steps["b"].sent_by == "a"
    # From there it is not climbed to: a task that sends itself again and again has no first one.
    assert list(read(app.storage, "c").steps) == ["b", "c", "d"]


def test_an_unknown_id_is_no_workflow(app):
    assert read(app.storage, "nobody") is None


def test_what_was_forgotten_is_left_out_and_the_rest_is_there(app, step):
    result = chain(step("a"), group(step("b"), step("c")), step("d")).apply_async()
    work_off(app)
    app.storage.forget(["a"])
    assert shape(read(app.storage, result.id)) == [[members("b", "c"), "d"]]
    app.storage.forget(["b"])
    assert sorted(read(app.storage, result.id).steps) == ["c", "d"]


def test_a_long_chain_and_a_deep_nest_need_no_recursion(app, step):
    result = chain(*[step(str(n)) for n in range(LONG)]).apply_async()
    found = read(app.storage, result.id)
    assert (len(found.steps), [len(each) for each in shape(found)]) == (LONG, [LONG])
    nest = group(step("in a"), step("in b"))
    for n in range(60):
        nest = group(chain(nest, step(f"body {n}")), step(f"beside {n}"))
    nested = read(app.storage, nest.apply_async().id)
    depth, part = 0, nested.tops[0]
    while isinstance(part, Group):
        depth, part = depth + 1, part.members[0]
    assert (depth, len(nested.tops)) == (61, 1)


def test_no_more_is_read_than_is_asked_for(app, step):
    sent = group([step(str(n)) for n in range(500)]).apply_async()
    found = read(app.storage, sent.id, most=300)
    assert (len(found.steps), found.is_whole) == (300, False)
    assert read(app.storage, sent.id, most=500).is_whole


def test_the_states_are_those_of_now(app, step):
    sent = chain(step("a"), step("b")).apply_async()
    app.storage.update(0, 0, Outcome(0, 0, "a", "PROGRESS", ended=False))
    found = read(app.storage, sent.id)
    assert [(each.id, each.state) for each in found.steps.values()] == [("a", "PROGRESS"), ("b", "PENDING")]
    assert all(isinstance(each, Step) for each in found.steps.values())
