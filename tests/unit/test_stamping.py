"""Stamps: who writes what on which part of a workflow, and where it can be read."""

from __future__ import annotations

import json

import pytest

from localq import LocalQ, chain, chord, group
from localq.canvas import StampingVisitor

app = LocalQ("proj", store="memory:", set_as_current=False)


@app.task(name="mod.note")
def note(*values):
    return list(values)


@pytest.fixture(autouse=True)
def _current():
    app.set_current()


def stamps(sig):
    return {name: sig.options[name] for name in sig.options["stamped_headers"]}


class Says(StampingVisitor):
    """Stamps every task the same."""

    def __init__(self, **found):
        self.found = found

    def on_signature(self, sig, **headers):
        return self.found


class Notes(StampingVisitor):
    """Stamps what it is asked about with the name of the question, and writes down what came with it."""

    def __init__(self):
        self.asked = []

    def _answer(self, name, headers):
        self.asked.append((name, sorted(set(headers) - {"stamped_headers"})))
        return {f"by_{name}": True}

    def on_signature(self, sig, **headers):
        return self._answer(f"task{sig.args[0]}", headers)

    def on_group_start(self, group, **headers):
        return self._answer("group", headers)

    def on_group_end(self, group, **headers):
        self._answer("/group", headers)

    def on_chain_start(self, chain, **headers):
        return self._answer("chain", headers)

    def on_chain_end(self, chain, **headers):
        self._answer("/chain", headers)

    def on_chord_header_start(self, sig, **header):
        return {**super().on_chord_header_start(sig, **header), **self._answer("header", header)}

    def on_chord_header_end(self, sig, **header):
        self._answer("/header", header)

    def on_chord_body(self, sig, **header):
        return self._answer("body", header)

    def on_callback(self, callback, **header):
        return self._answer("callback", header)

    def on_errback(self, errback, **header):
        return self._answer("errback", header)


@pytest.mark.row("F206", "F259")
def test_keywords_are_stamps_and_the_options_say_so():
    sig = note.s(1).set(queue="q")
    assert sig.stamp(mark=1, other=[2]) is sig
    assert sig.options == {"queue": "q", "mark": 1, "other": [2], "stamped_headers": ["mark", "other"]}


@pytest.mark.row("F259")
@pytest.mark.parametrize(
    "flow",
    [
        lambda: chain(note.s(1), note.s(2)),
        lambda: group(note.s(1), note.s(2)),
        lambda: group(note.s(i) for i in range(2)),
        lambda: note.s(1) | group(note.s(2), chain(note.s(3), note.s(4))),
        lambda: chord([note.s(1)], note.s(2)),
        lambda: chord(group([note.s(1)], queue="q"), note.s(2)),
    ],
)
def test_every_task_of_a_workflow_is_stamped_by_a_visitor(flow):
    sig = flow()
    sig.stamp(Says(mark="x"))
    assert [stamps(task) for task in tasks_of(sig)] == [{"mark": "x"}] * len(tasks_of(sig))


def tasks_of(sig):
    if not hasattr(sig, "_parts"):
        return [sig]
    return [task for part in sig._parts() for task in tasks_of(part)]


@pytest.mark.row("F260")
def test_a_visitor_is_asked_in_order_and_told_what_came_down():
    seen = Notes()
    (note.s(0) | group(note.s(1), note.s(2)) | note.s(3)).stamp(seen, mark=1)
    assert seen.asked == [
        ("chain", ["mark"]),
        ("task0", ["by_chain", "mark"]),
        ("group", ["by_chain", "mark"]),
        ("header", ["by_chain", "mark"]),
        ("task1", ["by_chain", "by_group", "by_header", "mark"]),
        ("task2", ["by_chain", "by_group", "by_header", "mark"]),
        ("/header", ["by_chain", "by_group", "by_header", "mark"]),
        ("body", ["by_chain", "by_group", "by_header", "mark"]),
        ("task3", ["by_body", "by_chain", "by_group", "by_header", "mark"]),
        ("/chain", ["by_chain", "mark"]),
    ]
    seen = Notes()
    group(note.s(1)).stamp(seen)
    assert [name for name, _ in seen.asked] == ["group", "task1", "/group"]


@pytest.mark.row("F260")
def test_a_visitor_must_say_something_of_tasks_and_need_not_of_anything_else():
    with pytest.raises(TypeError, match="on_signature"):
        StampingVisitor()
    flow = chord([note.s(1)], note.s(2).set(link=note.s(3), link_error=note.s(4)))
    flow.stamp(Says(mark=1))
    assert stamps(flow.tasks.tasks[0]) == {"mark": 1}


@pytest.mark.row("F260")
def test_only_what_a_visitor_lists_is_a_stamp_if_it_lists_any():
    sig = note.s(1).stamp(Says(mark=1, priority=3, stamped_headers=["mark"]))
    assert stamps(sig) == {"mark": 1}
    assert sig.options["priority"] == 3


@pytest.mark.row("F261")
@pytest.mark.parametrize(
    ("own", "visitor", "given", "chosen", "appended"),
    [
        ("own", None, "given", "given", ["given", "own"]),
        (None, "visitor", "given", "given", ["given", "visitor"]),
        ("own", "visitor", None, "visitor", ["visitor", "own"]),
        ("own", "visitor", "given", "given", ["given", "visitor", "own"]),
        (["own"], None, ["given"], ["given", "own"], ["given", "own"]),
        (["own"], None, "given", "given", ["given", "own"]),
        ({"a": 1, "b": 1}, None, {"a": 2}, {"a": 2, "b": 1}, {"a": [2, 1], "b": 1}),
    ],
)
def test_of_stamps_of_the_same_name_the_newest_wins_or_all_are_kept(own, visitor, given, chosen, appended):
    for append, expected in ((False, chosen), (True, appended)):
        sig = note.s(1)
        if own is not None:
            sig.stamp(mark=own)
        sig.stamp(visitor and Says(mark=visitor), append_stamps=append, **({} if given is None else {"mark": given}))
        assert stamps(sig) == {"mark": expected}


@pytest.mark.row("F262", "F206")
def test_links_that_are_there_are_stamped_too_also_dicts():
    sig = note.s(1)
    sig.link(json.loads(json.dumps(note.s(2))))
    sig.link_error(note.s(3))
    sig.stamp(Notes(), mark=1)
    later = note.s(4)
    sig.link(later)
    assert stamps(sig.options["link"][0]) == {"mark": 1, "by_callback": True, "by_task2": True}
    assert stamps(sig.options["link_error"][0]) == {"mark": 1, "by_errback": True, "by_task3": True}
    assert later.options == {}
    sig.stamp_links(None, other=2)
    assert stamps(later) == {"other": 2}
    assert "other" not in sig.options
