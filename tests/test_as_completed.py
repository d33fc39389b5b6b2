"""The results of a group as they end, one by one, for a loop and for a coroutine."""

from __future__ import annotations

import asyncio

import pytest
from working import claims_of, work_off

from localq import chord, group
from localq.exceptions import TimeoutError
from localq.executor import Executor
from localq.message import Outcome
from localq.result import ResultSet
from localq.testing.worker import start_worker

LIMIT_S = 20


@pytest.fixture
def add(app):
    return app.task(name="t.add")(lambda x, y=0: x + y)


@pytest.fixture
def fail(app):
    def fail(*_):
        raise ValueError("no")

    return app.task(name="t.fail")(fail)


def end(app, *results):
    """End these tasks, in this order, and no others."""
    executor = Executor(app.conf, "test@here")
    claims = {claim.message.id: claim for claim in claims_of(app, "owner", 100)}
    for result in results:
        claim = claims.pop(result.id)
        app.storage.settle([executor.execute(app.tasks[claim.message.name], claim)])
    app.storage.settle([Outcome(c.seq, c.token, c.message.id, ended=False) for c in claims.values()])


def test_members_come_in_the_order_in_which_they_ended(app, add, fail):
    result = group(add.s(0), fail.s(), add.s(2), add.s(3)).apply_async()
    end(app, result[2], result[1])
    found = result.as_completed(timeout=LIMIT_S)
    assert [next(found), next(found)] == [result[2], result[1]]
    assert result.completed_count() == 1
    end(app, result[3], result[0])
    assert list(found) == [result[3], result[0]]
    assert (result.completed_count(), len(result)) == (3, 4)
    assert list(result.as_completed()) == [result[2], result[1], result[3], result[0]]


def test_members_come_while_others_still_run(app, running, add):
    with running():
        result = group(add.s(n) for n in range(20))()
        found = [(each, each.get(LIMIT_S)) for each in result.as_completed(timeout=LIMIT_S)]
    assert sorted(value for _, value in found) == list(range(20))
    assert {each.id for each, _ in found} == {each.id for each in result}


def test_a_chords_members_are_its_parents(app, running, add):
    total = app.task(name="t.total")(lambda numbers: sum(numbers))
    with running():
        result = chord([add.s(n) for n in range(5)])(total.s())
        if running.mode != "eager":
            assert sorted(each.get(LIMIT_S) for each in result.parent.as_completed(LIMIT_S)) == list(range(5))
        assert result.get(LIMIT_S) == 10


def test_the_wait_ends_with_its_time_and_can_be_gone_on_with(app, add):
    result = group(add.s(0), add.s(1)).apply_async()
    end(app, result[1])
    found = result.as_completed(timeout=0)
    assert next(found) == result[1]
    with pytest.raises(TimeoutError, match=f"{result[0].id} is PENDING"):
        next(found)
    with pytest.raises(TimeoutError):
        list(result.as_completed(timeout=0.01))
    work_off(app)
    assert list(result.as_completed(timeout=0)) == [result[1], result[0]]


def test_a_sleeper_is_woken_by_the_end(app, add):
    result = group(add.s(n) for n in range(3)).apply_async()
    with start_worker(app, "solo"):
        assert len(list(result.as_completed(timeout=LIMIT_S))) == 3


def test_what_keeps_no_result_ends_too(app, add):
    result = group(add.s(1).set(ignore_result=True), add.s(2)).apply_async()
    work_off(app)
    assert len(list(result.as_completed(timeout=0))) == 2


def test_a_group_in_a_set_comes_when_all_of_it_has_ended(app, add):
    members = group(add.s(0), add.s(1)).apply_async()
    single = add.delay(2, 2)
    both = ResultSet([members, single])
    end(app, members[0], single)
    found = both.as_completed(timeout=0)
    assert next(found) == single
    end(app, members[1])
    assert next(found) is members
    assert list(ResultSet([], app=app).as_completed()) == []


def test_a_task_must_not_wait_for_others(app, add):
    @app.task(name="t.waits")
    def waits():
        return [each.get() for each in group(add.s(1), add.s(2))().as_completed()]

    result = waits.delay()
    work_off(app)
    with pytest.raises(RuntimeError, match="Never call result"):
        result.get(timeout=0)


def test_a_coroutine_gets_them_too(app, add, fail):
    result = group(add.s(0), fail.s(), add.s(2)).apply_async()
    end(app, result[2])

    async def collect():
        found = []
        async for each in result.aas_completed(timeout=LIMIT_S):
            found.append(each)
            if len(found) == 1:
                await asyncio.to_thread(work_off, app)
        return found

    found = asyncio.run(collect())
    assert found[0] == result[2]
    assert {each.id for each in found} == {each.id for each in result}
    assert [each.successful() for each in result] == [True, False, True]


def test_a_coroutine_waits_no_longer_than_it_was_told(app, add):
    result = group(add.s(0), add.s(1)).apply_async()

    async def collect():
        return [each async for each in result.aas_completed(timeout=0.05)]

    with pytest.raises(TimeoutError, match="is PENDING"):
        asyncio.run(collect())
    work_off(app)
    assert asyncio.run(collect()) == list(result)
