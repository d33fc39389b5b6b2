"""The step behind a task in its chain is among its children, once the task has ended well."""

from __future__ import annotations

import pytest
from working import work_off

from localq import GroupResult, chain, chord, group


@pytest.fixture
def add(app):
    return app.task(name="t.add")(lambda x=0, y=0: x + y)


@pytest.mark.row("F163", "F256")
def test_the_next_step_is_a_child_behind_the_callbacks(app, add):
    first, callback = add.s(1, 1), add.s(5).set(task_id="callback")
    first.link(callback)
    result = chain(first, add.s(2), add.s(3)).apply_async()
    head = result.parent.parent
    assert head.children is None
    work_off(app)
    assert [each.id for each in head.children] == ["callback", result.parent.id]
    assert (result.parent.children, result.children) == ([result], None)
    assert [value for _, value in head.collect()] == [2, 7, 4, 7]


@pytest.mark.row("F256")
def test_a_group_that_comes_next_is_one_child_whatever_its_members_are(app, add):
    inner = chord([add.si(1), add.si(2)], add.si(3))
    result = chain(add.si(0), group(inner, chain(add.si(4), add.si(5))), add.si(6)).apply_async()
    work_off(app)
    members = result.parent
    (child,) = members.parent.children
    assert isinstance(child, GroupResult)
    assert (child.id, [each.id for each in child]) == (members.id, [each.id for each in members])


def test_what_waited_for_a_failure_was_never_its_child(app):
    fails = app.task(name="t.fails")(lambda: 1 / 0)
    result = chain(fails.si(), fails.si()).apply_async()
    work_off(app)
    assert result.parent.children is None
