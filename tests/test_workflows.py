"""Groups, chains, chords and maps as their user sees them: what is run, with what options, and what comes back."""

from __future__ import annotations

import json

import pytest
from waiting import wait_until
from working import work_off

from localq import GroupResult, Signature, chain, chord, chunks, group, signature, xmap, xstarmap
from localq.canvas import real_steps
from localq.exceptions import Ignore
from localq.plan import Plan


@pytest.fixture
def add(app):
    @app.task(name="t.add")
    def add(x, y=0):
        return x + y

    return add


@pytest.fixture
def tsum(app):
    @app.task(name="t.tsum")
    def tsum(numbers):
        return sum(numbers)

    return tsum


def sent(sig):
    """What is planned to be sent: arguments and options of each message."""
    return [(step.sig.args, {k: v for k, v in step.sig.options.items() if k != "task_id"}) for step in Plan(sig).steps]


def options(sig):
    return [options for _, options in sent(sig)]


# -- group -----------------------------------------------------------------------------------------


@pytest.mark.row("F209")
def test_a_group_is_made_of_anything_that_gives_signatures(add):
    two = [add.s(1), add.s(2)]
    for made in (group(*two), group(two), group(tuple(two)), group(sig for sig in two), group(group(two))):
        assert made == group(two)
    assert group(add.s(1)).tasks == [add.s(1)]
    assert options(group(two, queue="q", priority=3)) == [{"queue": "q", "priority": 3}] * 2


@pytest.mark.row("F209")
def test_a_generator_is_not_run_before_somebody_looks(add):
    ran = []

    def members():
        for i in range(3):
            ran.append(i)
            yield add.s(i)

    for look in (len, repr, json.dumps, lambda made: made.tasks[0], lambda made: made == group(), Plan):
        made = group(members())
        behind = add.s(1) | made
        body = made | add.s(2)
        copy = made.clone()
        made.stamp(mark=1)
        assert ran == []
        look(made)
        assert ran == [0, 1, 2]
        assert [len(sent(each)) for each in (made, behind, body, copy)] == [3, 4, 4, 3]
        assert ran == [0, 1, 2]
        ran.clear()


def test_a_generator_that_fails_is_never_taken_for_a_shorter_one(add):
    def members():
        yield add.s(1)
        raise RuntimeError("the second cannot be made")

    made = group(members())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the second"):
            made.apply_async()


@pytest.mark.row("F210", "F219", "X10")
def test_a_group_prepends_to_each_member_that_takes_more_and_returns_their_results_in_order(app, running, add):
    with running():
        result = group(add.s(10), add.si(1), add.s(20))(5)
        assert isinstance(result, GroupResult)
        assert result.get(timeout=20) == [15, 1, 25]
        assert group(add.s(i, 10) for i in range(10)).apply_async(add_to_parent=False).get(timeout=20)[0] == 10


@pytest.mark.row("F210")
def test_a_group_takes_options_for_all_and_no_links(app, add):
    result = group(add.s(1), add.s(2).set(queue="own")).apply_async(queue="q", countdown=60)
    assert [each.queue for each in result.results] == ["q", "q"]
    for name, reason in (("link", "use a chord"), ("link_error", "individual tasks")):
        with pytest.raises(TypeError, match=f"Cannot add link to group: .*{reason}"):
            group(add.s(1)).apply_async(**{name: add.s(1)})


@pytest.mark.row("F210")
def test_links_that_a_group_has_as_options_stand_beside_its_members_own(add):
    own = add.s(1).on_error(add.s("own"))
    made = group([own, add.s(2)], link_error=[add.s("group")], link=add.s("link"))
    assert [each.get("link_error") for each in options(made)[::2]] == [[add.s("own"), add.s("group")], [add.s("group")]]
    assert len(Plan(made).steps) == 4
    assert own.options["link_error"] == [add.s("own")]


def test_a_signature_without_a_name_cannot_be_sent(app):
    with pytest.raises(TypeError, match="None is no name of a task"):
        Signature(app=app).apply_async()


@pytest.mark.row("F211")
def test_an_empty_group_has_an_empty_result_and_is_nothing_in_a_chain(app, running, add):
    with running():
        result = group(app=app).apply_async()
        assert (result.results, result.get(timeout=20)) == ([], [])
        flow = chain(group(), add.s(1), group(), group([]), add.s(2), group())
        assert flow == (add.s(1) | add.s(2))
        assert flow.apply_async().get(timeout=20) == 3
    assert (add.s(1) | group()) == chain(add.s(1))
    assert ((add.s(1) | add.s(2)) | group()).tasks == [add.s(1), add.s(2)]
    assert (group(add.s(1), add.s(2)) | group()) == group(add.s(1), add.s(2))


@pytest.mark.row("F212")
def test_groups_within_groups_are_flattened_and_what_ends_in_a_group_is_one(app, running, add):
    with running():
        nested = group(add.s(1), group(add.s(2), group(add.s(3))), group(), chain())
        assert nested.apply_async().get(timeout=20) == [1, 2, 3]
        only = group(chain(add.s(1, 2), group(add.s(1), add.s(2)))).apply_async()
        assert only.get(timeout=20) == [4, 5]
        assert isinstance(only, GroupResult)
        kept = group(chain(add.s(1), add.s(1)), chord([add.s(1), add.s(2)], add.s([3])), add.s(7))
        assert kept.apply_async().get(timeout=20) == [2, [1, 2, 3], 7]


@pytest.mark.row("F213")
def test_a_group_run_here_has_results_that_are_there(app, add):
    result = group(add.s(1), add.s(2)).apply((5,))
    assert [type(each).__name__ for each in result.results] == ["EagerResult"] * 2
    assert result.get() == [6, 7]


@pytest.mark.row("F214", "R16")
def test_a_link_of_a_group_is_its_first_members_and_takes_nothing(add):
    made = group(add.s(1), add.s(2))
    made.link(add.s(3))
    assert [task.options.get("link") for task in made.tasks] == [[add.si(3)], None]
    with pytest.raises(ValueError, match="empty group"):
        group().link(add.s(1))


@pytest.mark.row("F215", "R16")
def test_an_errback_of_a_group_is_every_members(add):
    made = group(add.s(1), add.s(2))
    assert made.link_error(add.s(3)) == (add.s(3), add.s(3))
    assert [task.options["link_error"] for task in made.tasks] == [[add.s(3)]] * 2


@pytest.mark.row("F216")
@pytest.mark.parametrize(
    ("given", "countdowns"),
    [({}, [1, 2, 3, 4]), ({"start": 1, "stop": 3}, [1, 2, 3, 3]), ({"start": 0, "step": 0.5}, [0, 0.5, 1, 1.5])],
)
def test_a_skewed_group_starts_one_after_another(add, given, countdowns):
    made = group(add.s(i) for i in range(4))
    assert made.skew(**given) is made
    assert [task.options["countdown"] for task in made.tasks] == countdowns


@pytest.mark.row("F217")
def test_a_group_shows_its_members(add):
    assert repr(group(add.s(1), add.s(2))) == "group([t.add(1), add(2)])"
    assert repr(group()) == "group(<empty>)"
    assert [len(group()), len(group(add.s(i) for i in range(3)))] == [0, 3]


@pytest.mark.row("F218")
def test_a_group_of_one_in_a_chain_is_that_one(app, running, add):
    one = group([add.s(2)], queue="q")
    assert (add.s(1) | group(add.s(2))) == (add.s(1) | add.s(2))
    assert (add.s(1) | group(sig for sig in [add.s(2)]) | add.s(3)).apply().get() == 6
    assert chain(one, add.s(3)).tasks[0] == add.s(2).set(queue="q")
    with running():
        assert chain(add.s(1), group(add.s(2))).apply_async().get(timeout=20) == 3
        assert (group(add.s([2], [])) | add.s([3])).apply_async().get(timeout=20) == [[2], 3]


# -- chain -----------------------------------------------------------------------------------------


@pytest.mark.row("F203", "F220", "R16")
def test_every_chain_is_a_chain(add):
    a, b, c = add.s(1), add.s(2), add.s(3)
    made = [chain(a, b, c), chain([a, b, c]), chain(sig for sig in (a, b, c)), a | b | c, a | (b | c), chain(a | b, c)]
    assert made == [made[0]] * 6
    for each in (*made, chain(), chain(a), chain([a]), a | chain(), signature(json.loads(json.dumps(made[0])))):
        assert isinstance(each, chain)

    class mine(chain):
        pass

    assert type(mine(a, b) | c) is mine


@pytest.mark.row("F203", "F224", "F226")
def test_what_is_joined_has_the_form_it_has_in_celery(add):
    a, g = add.s(1), group(add.s(1), add.s(2))
    for flow, form in (
        (a | g, "(t, [t t])"),
        (g | a, "{[t t] t}"),
        (g | g, "{[t t] [t t]}"),
        (g | a | a, "{[t t] (t, t)}"),
        (a | g | a, "(t, {[t t] t})"),
        (a | g | a | a, "(t, {[t t] (t, t)})"),
        (a | g | g | a, "(t, [t t], {[t t] t})"),
        (g | (a | a), "{[t t] (t, t)}"),
        (g | a | g, "({[t t] t}, [t t])"),
        ((a | a) | (a | a), "(t, t, t, t)"),
        (chain() | g, "[t t]"),
    ):
        assert drawn(flow) == form


def drawn(sig):
    if isinstance(sig, chain):
        return f"({', '.join(map(drawn, sig.tasks))})"
    if isinstance(sig, group):
        return f"[{' '.join(map(drawn, sig.tasks))}]"
    if isinstance(sig, chord):
        return f"{{[{' '.join(map(drawn, sig.header.tasks))}] {drawn(sig.body)}}}"
    return "t"


@pytest.mark.row("F221", "F222")
def test_a_call_of_a_chain_feeds_the_first_and_returns_the_last(app, running, add):
    with running():
        result = chain(add.s(1), add.s(2), add.s(3))(10)
        assert [result.get(timeout=20), result.parent.get(timeout=20), result.parent.parent.get(timeout=20)] == [
            16,
            13,
            11,
        ]
        assert result.parent.parent.parent is None
        assert chain(add.s(1), add.s(2)).apply_async((5,), task_id="mine").id == "mine"
        assert chain(group(), add.s(1))(2).get(timeout=20) == 3


@pytest.mark.row("F222", "F224", "F241", "F242")
def test_a_group_in_the_middle_is_a_parent_and_its_results_are_fed_on(app, running, add, tsum):
    with running():
        result = (add.s(1) | group(add.s(1), add.s(2)) | group(tsum.s(), tsum.s()) | tsum.s() | add.s(1)).apply_async()
        assert result.get(timeout=20) == 11
        assert isinstance(result.parent.parent, GroupResult)
        assert result.parent.parent.get(timeout=20) == [5, 5]
        assert result.parent.parent.parent.get(timeout=20) == [2, 3]
        inner = chord([chord([add.s(1), add.s(2)], tsum.s()), add.s(4)], tsum.s())
        assert inner.apply_async().get(timeout=20) == 7
        assert group(inner, add.s(1)).apply_async().get(timeout=20) == [7, 1]
        assert chord([inner, add.s(1, 1)], chord([tsum.s()], tsum.s())).apply_async().get(timeout=20) == 9
        assert chord([add.s(1)], tsum.s() | add.s(1) | group(add.s(1), add.s(2))).apply_async().get(timeout=20) == [
            3,
            4,
        ]


@pytest.mark.row("F225")
def test_a_chain_that_ends_in_a_group_has_its_list(app, running, add):
    with running():
        result = (add.s(1, 1) | group(add.s(2), add.s(2))).apply_async()
        assert isinstance(result, GroupResult)
        assert result.get(timeout=20) == [4, 4]


@pytest.mark.row("F226", "F228")
def test_links_of_a_chain_are_its_last_tasks_and_errbacks_are_every_tasks(add):
    inner = chain(add.s(1), add.s(2))
    inner.link(add.s("link"))
    inner.link_error(add.s("error"))
    for flow in (inner, add.s(0) | inner, inner | add.s(3)):
        found = {task.args[0]: task.options for task in real_steps([flow])}
        assert found[1] == {"link_error": [add.s("error")]}
        assert found[2] == {"link": [add.s("link")], "link_error": [add.s("error")]}
        assert not found.get(0)
        assert not found.get(3)
    assert [task.options for task in inner.unchain_tasks()] == [found[1], found[2]]


@pytest.mark.row("F228", "F230")
def test_a_link_given_with_the_call_runs_once_with_the_last_result(app, running, add, tmp_path):
    @app.task(name="t.write")
    def write(value, x=0):
        with open(tmp_path / "written", "a") as file:
            file.write(f"{value} ")

    with running():
        result = (add.s(1) | add.s(2)).apply_async(link=write.s())
        assert result.get(timeout=20) == 3
        written = tmp_path / "written"
        wait_until(lambda: written.exists() and written.read_text() == "3 ")


@pytest.mark.row("F230")
def test_nothing_runs_behind_a_task_that_was_ignored(app, add, tmp_path):
    @app.task(name="t.ignored")
    def ignored(_):
        raise Ignore

    @app.task(name="t.late")
    def late(*_):
        (tmp_path / "late").touch()

    flows = [add.s(1) | ignored.s() | late.s() | late.s(), group(ignored.s(1), add.s(1)) | late.s()]
    assert [flow.apply().state for flow in flows] == ["PENDING", "PENDING"]
    sent = [flow.apply_async() for flow in flows]
    work_off(app)
    assert [result.state for result in sent] == ["PENDING", "PENDING"]
    assert not (tmp_path / "late").exists()


@pytest.mark.row("F231")
def test_options_of_a_chain_are_its_first_tasks(add):
    flow = chain(add.s(1), add.s(2), queue="q").set(priority=3)
    assert options(flow) == [{"queue": "q", "priority": 3}, {}]
    assert options(add.s(0) | flow) == [{}, {"queue": "q", "priority": 3}, {}]
    assert options(chain(group(add.s(1), add.s(2)), add.s(3)).set(countdown=5)) == [{"countdown": 5}] * 2 + [{}]


# -- chord -----------------------------------------------------------------------------------------


@pytest.mark.row("F233")
def test_a_chord_is_made_of_any_header_and_given_its_body_then_or_later(app, running, add, tsum):
    two = [add.s(1), add.s(2)]
    made = [
        chord(two, tsum.s()), chord((sig for sig in two), tsum.s()), chord(group(two), tsum.s()),
        chord(chain(two), tsum.s()), group(two) | tsum.s(), chord(json.loads(json.dumps(group(two))), dict(tsum.s())),
    ]  # fmt: skip
    assert made == [made[0]] * 6
    assert dict(made[0]) == {
        "task": "celery.chord", "args": (), "options": {}, "subtask_type": "chord", "immutable": False,
        "kwargs": {"kwargs": {}, "header": two, "body": tsum.s()},
    }  # fmt: skip
    with running():
        assert made[0].apply_async().get(timeout=20) == 3
        assert chord(two)(tsum.s()).get(timeout=20) == 3
        assert chord(two).apply_async(kwargs={"body": tsum.s()}).get(timeout=20) == 3
        assert chord(add.s(i) for i in range(3))(tsum.s(), interval=1, max_retries=5).get(timeout=20) == 3
        assert chord(two, tsum.s(), interval=0.5).apply_async((5,), max_retries=3).get(timeout=20) == 13
    with pytest.raises(ValueError, match="give it a body"):
        chord(two).apply_async()


@pytest.mark.row("F234")
def test_an_empty_header_feeds_an_empty_list(app, running, add):
    with running():
        for flow in (group(app=app) | add.s([9]), chord([], add.s([9]), app=app)):
            result = flow.apply_async()
            assert result.get(timeout=20) == [9]
            assert result.parent.results == []


@pytest.mark.row("F240")
def test_links_of_a_chord_are_its_bodys_however_they_are_given(add, tsum):
    linked = chord([add.s(1)], tsum.s())
    assert linked.link(add.s(9)) == add.s(9)
    for flow in (linked, chord([add.s(1)], tsum.s(), link=add.s(9)), chord([add.s(1)], tsum.s()).set(link=[add.s(9)])):
        assert [each.get("link") for each in options(flow)][:2] == [None, [add.s(9)]]
        assert len(Plan(flow).steps) == 3
    failing = chord([add.s(1)], tsum.s(), link_error=add.s(8))
    assert options(failing) == [{}, {"link_error": [add.s(8)]}, {"route_name": "t.tsum", "ignore_result": True}]
    of_two = chord([add.s(1)], group(add.s(2), add.s(3)))
    of_two.link_error(add.s(8))
    assert [each.get("link_error") for each in options(of_two)][:3] == [None, [add.s(8)], [add.s(8)]]
    with pytest.raises(ValueError, match="no body"):
        chord([add.s(1)]).link(add.s(1))


@pytest.mark.row("F243")
def test_a_chords_time_is_its_headers_and_its_other_options_are_everybodys(add, tsum):
    flow = chord([add.s(1)], tsum.s(), queue="q", interval=1, max_retries=2).set(countdown=5)
    assert options(flow) == [{"queue": "q", "countdown": 5}, {"queue": "q"}]
    assert flow.apply_async(task_id="of-the-body").id == "of-the-body"


@pytest.mark.row("F248")
def test_an_immutable_chord_has_immutable_members_and_shows_as_its_bodys_call(add, tsum):
    flow = chord([add.s(1), add.s(2)], tsum.s()).set(immutable=True)
    assert [task.immutable for task in flow.header.tasks] == [True, True]
    assert not flow.body.immutable
    plain = chord([add.s(1), add.s(2)], tsum.s())
    assert repr(plain) == "%t.tsum([add(1), add(2)])"
    assert repr(plain | add.s(1)) == "%(t.tsum([add(1), add(2)]) | add(1))"
    assert repr(chord([add.s(1)])) == "<chord without body: [t.add(1)]>"
    assert repr(add.s(1) | add.s(2)) == "t.add(1) | add(2)"


# -- map, starmap, chunks --------------------------------------------------------------------------


@pytest.mark.row("F251", "F252", "F253")
def test_many_calls_in_one_message_or_in_few(app, running, add, tsum):
    with running():
        assert tsum.map([[1], [2, 3]]).apply_async().get(timeout=20) == [1, 5]
        assert add.starmap((i, i) for i in range(3)).apply_async().get(timeout=20) == [0, 2, 4]
        assert add.chunks(zip(range(5), range(5), strict=True), 2)().get(timeout=20) == [[0, 2], [4, 6], [8]]
        assert chunks.apply_chunks(add, [(1, 1)], 1).get(timeout=20) == [[2]]
        assert add.chunks([(1, 1), (2, 2)], 1).skew(0, step=0).apply_async().get(timeout=20) == [[2], [4]]


@pytest.mark.row("F251", "F252")
def test_a_map_is_immutable_and_shows_as_what_it_does(add, tsum):
    assert repr(tsum.map([[1], [2]])) == "[t.tsum(x) for x in [[1], [2]]]"
    assert repr(add.starmap([(1, 2)])) == "[t.add(*x) for x in [(1, 2)]]"
    assert add.map([1]).immutable
    assert add.map([1]).task == "celery.map"
    for made, kind in ((add.map([1]), xmap), (add.starmap([[1]]), xstarmap), (add.chunks([[1]], 1), chunks)):
        again = signature(json.loads(json.dumps(made)))
        assert type(again) is kind
        assert again == made
        assert isinstance(again.kwargs["task"], Signature)


@pytest.mark.row("F254")
def test_a_map_in_a_workflow_keeps_its_options_and_takes_no_result(app, running, add):
    mapped = add.map([1, 2]).set(queue="celery")
    id = mapped.freeze().id
    with running():
        assert mapped.apply_async().id == id
        assert (add.s(5) | add.map([1, 2])).apply_async().get(timeout=20) == [1, 2]
        assert group(add.map([1]), add.starmap([(1, 1)])).apply_async().get(timeout=20) == [[1], [2]]
        assert (add.chunks([(1, 1), (2, 2)], 1).group() | add.s([[0]])).apply_async().get(timeout=20) == [[2], [4], [0]]


@pytest.mark.row("F255")
def test_a_map_goes_where_its_task_goes(app, add):
    app.conf.task_routes = {"t.add": "adders"}
    assert add.map([1]).apply_async().queue == "adders"
    assert [each.queue for each in add.chunks([(1, 1), (2, 2)], 1)().results] == ["adders"] * 2


@pytest.mark.row("X18")
def test_the_notes_chain_of_a_sum_and_a_product_is_64(app, running, add):
    @app.task(name="t.mul")
    def mul(x, y):
        return x * y

    with running():
        assert chain(add.s(4, 4), mul.s(8))().get(timeout=20) == 64
        assert chain(add.s(4, 4) | mul.s(8))().get(timeout=20) == 64
