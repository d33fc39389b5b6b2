"""Stamps travel with every task of a workflow, wherever it runs."""

from __future__ import annotations

import pytest

from localq import chord, group
from localq.canvas import StampingVisitor


class Marks(StampingVisitor):
    def on_signature(self, sig, **headers):
        return {"of": sig.task.rpartition(".")[2]}


@pytest.mark.row("F263")
def test_every_task_of_a_workflow_can_read_its_stamps(app, running):
    @app.task(bind=True, name="t.read")
    def read(self, *_):
        return [self.request.stamps, sorted(self.request.stamped_headers)]

    @app.task(bind=True, name="t.both")
    def both(self, found):
        return [*found, self.request.stamps]

    flow = read.si() | group(read.si(), read.si()) | both.s()
    flow.stamp(Marks(), mark="x")
    with running():
        result = flow.apply_async()
        marked = [{"mark": "x", "of": "read"}, ["mark", "of"]]
        assert result.get(timeout=20) == [marked, marked, {"mark": "x", "of": "both"}]
        assert result.parent.parent.get(timeout=20) == marked


@pytest.mark.row("F263")
def test_a_retry_has_the_stamps_of_the_first_attempt(app, running):
    @app.task(bind=True, name="t.again")
    def again(self):
        if not self.request.retries:
            raise self.retry(countdown=0)
        return self.request.stamps

    with running():
        assert again.s().stamp(mark=[1]).apply_async().get(timeout=20) == {"mark": [1]}


@pytest.mark.row("F262")
def test_a_callback_and_a_body_have_stamps_of_their_own(app, running):
    @app.task(bind=True, name="t.read")
    def read(self, *_):
        return self.request.stamps

    flow = chord([read.si()], read.si())
    flow.stamp(Marks(), mark=1)
    with running():
        assert flow.apply_async().get(timeout=20) == {"mark": 1, "of": "read"}


@pytest.mark.row("F265")
def test_a_tasks_own_attributes_are_not_touched_by_stamps(app, running):
    @app.task(bind=True, name="t.plain", shadowed="mine")
    def plain(self):
        return [getattr(self, "mark", None), self.shadowed, self.request.stamps]

    with running():
        assert plain.s().stamp(mark=1).apply_async().get(timeout=20) == [None, "mine", {"mark": 1}]
        assert plain.s().apply_async().get(timeout=20)[:2] == [None, "mine"]
    assert not hasattr(plain, "mark")
