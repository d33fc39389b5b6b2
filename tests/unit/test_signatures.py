"""Signatures: dicts of Celery's form, and what is made of them."""

from __future__ import annotations

import json
import pickle
from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from working import work_off

from localq import LocalQ, Signature, chain, chord, group, maybe_signature, signature
from localq.canvas import subtask

app = LocalQ("proj", store="memory:", set_as_current=False)


@app.task(name="mod.note")
def note(*values, **keys):
    """Tell exactly what it was called with."""
    return [*values, *keys.items()]


@pytest.fixture(autouse=True)
def _current():
    app.set_current()


# -- Making one ----------------------------------------------------------------------------------

CELERYS = {"task": "mod.note", "args": (1,), "kwargs": {"k": 2}, "subtask_type": None}


@pytest.mark.row("F194")
@pytest.mark.parametrize(
    ("made", "options", "immutable"),
    [
        (lambda: note.s(1, k=2), {}, False),
        (lambda: note.si(1, k=2), {}, True),
        (lambda: note.signature((1,), {"k": 2}, queue="q"), {"queue": "q"}, False),
        (lambda: note.subtask((1,), {"k": 2}, immutable=True), {}, True),
        (lambda: signature(note, (1,), {"k": 2}), {}, False),
        (
            lambda: signature("mod.note", (1,), {"k": 2}, {"queue": "q"}, priority=3),
            {"queue": "q", "priority": 3},
            False,
        ),
        (lambda: app.signature("mod.note", args=(1,), kwargs={"k": 2}, immutable=True), {}, True),
        (lambda: subtask({"task": "mod.note", "args": [1], "kwargs": {"k": 2}}), {}, False),
    ],
)
def test_every_way_to_make_a_signature_makes_celerys_dict(made, options, immutable):
    assert dict(made()) == {**CELERYS, "options": options, "immutable": immutable}


@pytest.mark.row("F195")
def test_what_is_in_a_signature_is_also_an_attribute_of_it_that_can_be_set():
    sig = note.s(1, k=2).set(task_id="i", parent_id="p", root_id="r")
    assert (sig.task, sig.name, sig.args, sig.kwargs) == ("mod.note", "mod.note", (1,), {"k": 2})
    assert (sig.id, sig.parent_id, sig.root_id) == ("i", "p", "r")
    assert (sig.subtask_type, sig.immutable, sig.type, sig.app) == (None, False, note, app)
    assert note.s().id is None
    sig.args, sig.kwargs, sig.immutable, sig.id = (3,), {}, True, "j"
    assert (sig["args"], sig["kwargs"], sig["immutable"], sig["options"]["task_id"]) == ((3,), {}, True, "j")


@pytest.mark.row("F207")
def test_maybe_signature_makes_one_of_a_dict_and_keeps_nothing_and_signatures():
    assert maybe_signature(None) is None
    made = maybe_signature(dict(note.s(1)), app=app)
    assert isinstance(made, Signature)
    assert made.app is app
    sig = note.s(1)
    assert maybe_signature(sig) is sig
    again = maybe_signature(sig, clone=True)
    assert again == sig
    assert again is not sig


@pytest.mark.row("F207")
def test_an_elected_call_runs_once():
    result = note.s(1).election()
    assert work_off(app) == [result.id]
    assert result.get(timeout=0) == [1]


@pytest.mark.row("F194")
def test_a_signature_of_a_signature_is_a_clone():
    first = note.s(1)
    signature(first).options["queue"] = "q"
    assert first.options == {}


@pytest.mark.row("F204")
def test_what_is_no_signature_is_refused_with_what_to_write():
    for made in (lambda: group(3, 4), lambda: chain(note.s(1), 4), lambda: group(3), lambda: chord([note.s()], 3)):
        with pytest.raises(TypeError, match=r"no signature: write task\.s"):
            made()
    with pytest.raises(TypeError, match="names no 'task'"):
        signature({"args": [1]})
    with pytest.raises(TypeError, match="unsupported operand"):
        note.s(1) | 3


# -- Others of it --------------------------------------------------------------------------------


@pytest.mark.row("F196", "F205")
def test_what_a_call_gives_stands_in_front_and_wins_and_options_of_none_are_nothing():
    sig = note.s(2, k="own").set(queue="q")
    assert sig(1, k="call") == [1, 2, ("k", "call")]
    assert sig.apply((1,), {"k": "call"}).get() == [1, 2, ["k", "call"]]
    sent = sig.apply_async((1,), {"k": "call"}, queue=None)
    assert sent.queue == "q"
    assert note.s(2).delay(1, j=3).queue == "celery"
    work_off(app, ("q",))
    assert sent.get(timeout=0) == [1, 2, ["k", "call"]]
    assert note.si(2).apply((1,), {"k": 1}).get() == [2]
    assert note.si(2).apply_async((1,), queue="other").queue == "other"


@pytest.mark.row("F196", "F261")
def test_no_call_changes_what_others_wait_for_or_a_stamp():
    sig = note.s().set(group_id="g").stamp(mark="first")
    more = sig.clone(group_id="h", mark="second", stamped_headers=["x"], queue="q").options
    assert more == {"group_id": "g", "mark": "first", "stamped_headers": ["mark"], "queue": "q"}


@pytest.mark.row("F197")
def test_a_clone_has_more_of_everything_and_partial_is_its_other_name():
    for clone in (note.s(2, k=1).clone((1,), {"j": 2}, queue="q"), note.s(2, k=1).partial((1,), {"j": 2}, queue="q")):
        assert (clone.args, clone.kwargs, clone.options) == ((1, 2), {"k": 1, "j": 2}, {"queue": "q"})


@pytest.mark.row("F198")
def test_replace_takes_the_place_of_what_there_was_on_a_copy():
    first = note.s(1, k=2).set(queue="q")
    second = first.replace(args=(9,), kwargs={"j": 1}, options={"priority": 1})
    assert (second.args, second.kwargs, second.options) == ((9,), {"j": 1}, {"priority": 1})
    assert (first.args, first.kwargs, first.options) == ((1,), {"k": 2}, {"queue": "q"})


@pytest.mark.row("F199")
def test_set_returns_the_signature_itself():
    sig = note.s(1)
    assert sig.set(countdown=1).set(immutable=True) is sig
    assert sig.options == {"countdown": 1}
    assert sig.immutable
    sig.set_immutable(False)
    assert not sig.immutable


@pytest.mark.row("F200")
def test_freezing_writes_down_what_it_is_told_and_keeps_an_id_it_has():
    sig = note.s(1)
    result = sig.freeze("mine", group_id="g", root_id="r", parent_id="p", group_index=2)
    assert (result.id, sig.id) == ("mine", "mine")
    known = {"task_id": "mine", "group_id": "g", "root_id": "r", "parent_id": "p", "group_index": 2}
    assert sig.options == {**known, "reply_to": app.thread_oid}
    assert sig.freeze("other").id == "mine"
    assert sig.apply_async().id == "mine"


@pytest.mark.row("F201")
def test_links_are_kept_once_whether_signatures_or_dicts():
    sig = note.s(1)
    one, two = note.s(2), dict(note.s(3))
    assert sig.link(one) is one
    assert sig.link(two) is two
    sig.link(note.s(2))
    assert sig.options["link"] == [one, two]
    assert sig.link_error(one) is one
    assert sig.on_error(two) is sig
    assert sig.options["link_error"] == [one, two]


@pytest.mark.row("F201")
def test_a_link_that_stood_alone_becomes_the_first_of_a_list():
    sig = note.s(1).set(link=note.s(2))
    sig.link(note.s(3))
    assert sig.options["link"] == [note.s(2), note.s(3)]
    sig.extend_list_option("link", [note.s(4), note.s(5)])
    assert len(sig.options["link"]) == 4


@pytest.mark.row("F202")
def test_links_of_links_are_found_in_their_order():
    last, second = note.s("last"), note.s("second")
    first = note.s("first")
    first.link(second)
    first.link(note.s("third"))
    second.link(last)
    assert [each.args for each in first.flatten_links()] == [("first",), ("second",), ("last",), ("third",)]


@pytest.mark.row("F202")
def test_a_signature_shows_as_the_call_it_is():
    assert repr(note.s(1, k="x")) == "mod.note(1, k='x')"
    assert note.si(1).reprcall(5, k=2) == "mod.note(5, 1, k=2)"


# -- Through JSON, pickle and copies -------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=3), each, max_size=3),
    max_leaves=5,
)
leaves = st.builds(
    lambda args, kwargs, options, immutable: Signature(note, args, kwargs, options, immutable=immutable),
    st.lists(values, max_size=3), st.dictionaries(st.text(max_size=3), values, max_size=2),
    st.fixed_dictionaries({}, optional={"queue": st.text(min_size=1, max_size=3), "headers": values}), st.booleans(),
)  # fmt: skip
canvases = st.recursive(
    leaves,
    lambda each: (
        st.lists(each, max_size=4).map(chain)
        | st.lists(each, max_size=4).map(group)
        | st.builds(chord, st.lists(each, max_size=3), st.none() | each)
        | st.builds(lambda a, b: a | b, each, each)
    ),
    max_leaves=10,
)


@pytest.mark.row("F194", "F204")
@given(canvases)
def test_every_canvas_comes_back_equal_and_of_its_class_from_json_pickle_and_copies(sig):
    for again in (
        signature(json.loads(json.dumps(sig))),
        Signature.from_dict(json.loads(json.dumps(sig.__json__()))),
        pickle.loads(pickle.dumps(sig)),
        deepcopy(sig),
        sig.clone(),
    ):
        assert again == sig
        assert same_classes(again, sig)


def same_classes(one, other):
    within = zip(parts(one), parts(other), strict=True)
    return type(one) is type(other) and all(same_classes(*pair) for pair in within)


def parts(sig):
    return list(sig._parts()) if hasattr(sig, "_parts") else []


@pytest.mark.row("F197")
@given(canvases)
def test_nothing_that_is_done_to_a_clone_is_done_to_its_original(sig):
    before = json.dumps(sig)
    for copy in (sig.clone(), deepcopy(sig)):
        change(copy)
        assert json.dumps(sig) == before


def change(sig):
    sig.options.setdefault("headers", {})
    sig.options["headers"] = ["changed"]
    sig.kwargs["changed"] = True
    for part in parts(sig):
        change(part)


@pytest.mark.row("F204")
def test_a_dict_is_a_signature_wherever_one_is_taken():
    one, two = json.loads(json.dumps([note.s(1), note.s(2)]))
    assert chain(one, two).apply().get() == [[1], 2]
    assert chain([one, two]) == (note.s(1) | two)
    assert (one | note.s(2)) == (note.s(1) | note.s(2))
    assert group([one, two]) == group(note.s(1), note.s(2))
    assert chord([one, two], note.s(3).__json__()).apply().get() == [[[1], [2]], 3]
    assert chord(json.loads(json.dumps(group(one, two))))(two, queue="q").id


@pytest.mark.row("F204")
def test_changing_a_signature_of_a_dict_leaves_the_dict():
    given_ = {"task": "mod.note", "args": [1], "kwargs": {}, "options": {}}
    signature(given_).set(queue="q").kwargs["x"] = 1
    assert given_ == {"task": "mod.note", "args": [1], "kwargs": {}, "options": {}}


@pytest.mark.row("F204")
def test_a_kind_of_ones_own_comes_back_from_a_dict():
    @Signature.register_type()
    class mine(Signature):
        _kind = "mine"

    try:
        made = signature(json.loads(json.dumps(mine("mod.note", (1,)))))
        assert type(made) is mine
        assert type(made.clone()) is mine
    finally:
        del Signature.TYPES["mine"]
    with pytest.raises(KeyError, match=r"'mine'.*register_type"):
        signature({"task": "mod.note", "subtask_type": "mine"})


@pytest.mark.row("F208")
def test_a_task_that_nobody_here_knows_is_sent_by_its_name():
    result = Signature("elsewhere.task", (1,), app=app).set(queue="far").apply_async((0,))
    assert (result.name, result.queue, result.state) == ("elsewhere.task", "far", "PENDING")
    flow = chain(Signature("elsewhere.task", app=app), note.s(1)).apply_async(queue="far")
    assert flow.parent.name == "elsewhere.task"
