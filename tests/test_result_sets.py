"""Sets of results, and groups that can be saved."""

from __future__ import annotations

import pickle
from itertools import islice

import pytest
from waiting import wait_until
from working import claims_of, work_off

from localq import AsyncResult, GroupResult, group
from localq.exceptions import TimeoutError
from localq.result import ResultSet
from localq.testing.clock import FakeClock

LIMIT_S = 30


@pytest.fixture
def add(app):
    @app.task(name="proj.add")
    def add(x, y):
        return x + y

    return add


@pytest.fixture
def fail(app):
    @app.task(name="proj.fail")
    def fail(text):
        raise ValueError(text)

    return fail


@pytest.mark.row("F175")
def test_members_come_and_go(app, add):
    one, two, three = (add.delay(n, n) for n in range(3))
    results = app.ResultSet([one])
    kept = results.results
    results.add(two)
    results.add(one)
    results.update([one, two, three])
    assert (list(results), results[1], len(results)) == ([one, two, three], two, 3)
    assert results == app.ResultSet([one, two, three]) == ResultSet([one, two, three])
    assert results != app.ResultSet([one])
    results.remove(two.id)
    results.discard("nobody")
    results.discard(one)
    with pytest.raises(KeyError):
        results.remove("nobody")
    assert repr(results) == f"<ResultSet: [{three.id}]>"
    results.clear()
    assert (kept, results.results is kept) == ([], True)
    assert results.supports_native_join is None
    assert app.ResultSet([one]).supports_native_join is True
    assert (app.ResultSet([one]).app, results.app) == (app, app)


@pytest.mark.row("F175")
def test_how_a_set_stands(app, add, fail):
    results = app.ResultSet([add.delay(1, 1), fail.delay("no"), add.apply((1, 1))])

    def seen():
        return [results.ready(), results.waiting(), results.successful(), results.failed(), results.completed_count()]

    assert seen() == [False, True, False, False, 1]
    work_off(app)
    assert seen() == [True, False, False, True, 2]
    with pytest.raises(ValueError, match="no"):
        results.maybe_throw()
    told = []
    assert results.maybe_reraise(lambda _, value: told.append(str(value)), propagate=False) is None
    assert told == ["2", "no", "2"]
    results.discard(results[1])
    assert seen() == [True, False, True, False, 2]
    results.forget()
    assert [each.state for each in results] == ["PENDING", "SUCCESS"]


@pytest.mark.row("F175", "F178")
def test_revoking_a_set_revokes_each_of_its_members(app, add):
    results = app.ResultSet([add.apply((1, 1)), app.GroupResult("g", [add.apply((2, 2))])])
    results.revoke(terminate=True)
    assert [each.state for each in results.leaves()] == ["REVOKED", "REVOKED"]


@pytest.mark.row("F176")
def test_values_come_in_the_order_of_the_members(app, running, add, fail):
    with running():
        good = app.ResultSet([add.delay(n, n) for n in range(5)])
        assert good.join(timeout=LIMIT_S) == good.get(LIMIT_S) == good.join_native(timeout=LIMIT_S) == [0, 2, 4, 6, 8]
        told = []
        assert good.join(timeout=LIMIT_S, callback=lambda *what: told.append(what)) == []
        assert good.get(timeout=LIMIT_S, callback=lambda *what: told.append(what)) is None
        assert told == [(each.id, 2 * n) for n, each in enumerate(good)] * 2
        bad = app.ResultSet([add.delay(1, 1), fail.delay("first"), fail.delay("second")])
        with pytest.raises(ValueError, match="first"):
            bad.join(timeout=LIMIT_S)
        two, first, second = bad.join(timeout=LIMIT_S, propagate=False)
        assert (two, str(first), str(second)) == (2, "first", "second")


@pytest.mark.row("F176")
def test_the_time_is_for_all_of_them_together(app, add):
    with FakeClock() as clock:
        results = app.ResultSet([add.delay(1, 1) for _ in range(3)])
        with pytest.raises(TimeoutError):
            results.join(timeout=0)
        with pytest.raises(TimeoutError):
            results.join(timeout=2, on_interval=lambda: clock.advance(1))
        work_off(app)
        assert results.join(timeout=0) == [2, 2, 2]
        assert app.ResultSet([]).join() == app.ResultSet([]).get() == []


@pytest.mark.row("F175")
@pytest.mark.parametrize("way", ["get", "told", "iterated"])
def test_if_the_time_is_over_a_member_that_has_not_ended_is_named(app, add, way):
    members = group(add.s(0, 0), add.s(1, 1).set(queue="later"), add.s(2, 2)).apply_async()
    work_off(app)
    done, open_one = members[0].id, members[1].id
    assert AsyncResult(done, app=app).ready()
    with pytest.raises(TimeoutError, match=f"task {open_one} is PENDING") as raised:
        if way == "iterated":
            list(members.iter_native(timeout=0.05))
        else:
            members.get(timeout=0.05, on_message=print if way == "told" else None)
    assert done not in str(raised.value)


@pytest.mark.row("F174", "F176")
def test_every_state_of_every_member_is_told(app, running):
    @app.task(bind=True)
    def count(self, to):
        for at in range(to):
            self.update_state(state="PROGRESS", meta=at)
        return to

    told = {}
    with running():
        results = app.ResultSet([count.delay(to) for to in range(4)])
        values = results.get(
            timeout=LIMIT_S, on_message=lambda meta: told.setdefault(meta["task_id"], []).append(meta["result"])
        )
    assert values == [0, 1, 2, 3]
    if running.mode != "eager":
        assert told == {each.id: list(range(to + 1)) for to, each in enumerate(results)}


@pytest.mark.row("F174", "F176")
def test_a_failed_member_is_raised_in_its_turn_though_others_are_told_of(app, add, fail):
    results = app.ResultSet([fail.delay("first"), add.delay(1, 1)])
    (claim,) = claims_of(app, "gone")
    work_off(app)
    told = []
    with pytest.raises(TimeoutError):  # the first has not ended
        results.get(timeout=0, on_message=lambda meta: told.append(meta["result"]))
    assert told == [2]
    assert claim.message.id == results[0].id


@pytest.mark.row("F175")
def test_members_are_yielded_as_they_end(app, add):
    late, soon = add.delay(1, 1), add.delay(2, 2)
    (claim,) = claims_of(app, "gone")
    work_off(app)
    results = app.ResultSet([late, soon, add.apply((3, 3))])
    found = [(id, meta["result"], meta["status"]) for id, meta in islice(results.iter_native(), 2)]
    assert found == [(soon.id, 4, "SUCCESS"), (results[2].id, 6, "SUCCESS")]
    with pytest.raises(TimeoutError):
        list(app.ResultSet([late]).iter_native(timeout=0))
    assert claim.message.id == late.id


@pytest.mark.row("F175", "F174")
def test_members_are_yielded_with_what_is_told_of_them(app, running):
    @app.task(bind=True)
    def count(self, to):
        for at in range(to):
            self.update_state(state="PROGRESS", meta=at)
        return to

    told = []
    with running():
        results = app.ResultSet([app.GroupResult("g", [count.delay(2), count.delay(1)]), count.delay(3)])
        found = dict(results.iter_native(timeout=LIMIT_S, on_message=lambda meta: told.append(meta["result"])))
    assert found["g"] == results[0].results
    assert found[results[1].id]["result"] == 3
    if running.mode != "eager":
        assert sorted(told) == [0, 0, 0, 1, 1, 1, 2, 2, 3]


@pytest.mark.row("F175", "F168")
def test_a_set_calls_back_once_all_have_ended(app, add):
    results, seen = app.ResultSet([add.delay(1, 1), add.delay(2, 2)]), []
    assert results.then(lambda each: seen.append(each.get())) is results
    work_off(app)
    assert results.get() == [2, 4]
    wait_until(lambda: seen)
    assert seen == [[2, 4]]


@pytest.mark.row("F177")
def test_a_group_is_saved_and_found_by_its_id_anywhere(app, add):
    result = group(add.s(n, n) for n in range(3))()
    result.save()
    result.save()
    found = GroupResult.restore(result.id)
    assert found == app.GroupResult.restore(result.id) == result
    assert app.backend.get_group_meta(result.id)["result"] == result
    work_off(app)
    assert found.get(timeout=0) == [0, 2, 4]
    found.delete()
    found.delete()
    assert GroupResult.restore(result.id, app=app) is None
    assert app.backend.get_group_meta(result.id) is None
    assert [each.state for each in result] == ["SUCCESS"] * 3


@pytest.mark.row("F177", "F180")
def test_a_saved_group_is_kept_as_long_as_results_are(app, add):
    with FakeClock() as clock:
        result = group(add.s(1, 1))()
        result.save()
        clock.advance(86_399)
        assert GroupResult.restore(result.id) == result
        clock.advance(2)
        assert GroupResult.restore(result.id) is None
        app.conf.result_expires = None
        result.save()
        clock.advance(1e9)
        assert GroupResult.restore(result.id) == result


@pytest.mark.row("F177", "F172")
def test_a_group_is_its_id(app, add):
    one, two = AsyncResult("1", app.backend), AsyncResult("2", app.backend)
    found = app.GroupResult("g", [one, two], parent=one)
    assert found == "g" == str(found)
    assert found == GroupResult("g", [one, two], one)
    assert found != GroupResult("g", [one, two])
    assert found != 7
    assert (hash(found), found.children, bool(found), bool(GroupResult())) == (hash("g"), [one, two], True, False)
    assert found.as_tuple() == (("g", (("1", None), None)), [(("1", None), None), (("2", None), None)])
    assert found.as_list() == ["g", "1"]
    assert repr(found) == "<GroupResult: g [1, 2]>"
    assert pickle.loads(pickle.dumps(found)) == found
