"""Sending and waiting in coroutines: `adelay`, `aapply_async` and `aget` never block the event loop they are in."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from waiting import wait_until

from localq import AsyncResult, EagerResult, GroupResult, chord, group
from localq.exceptions import EncodeError, LocalqError, TimeoutError, UnknownTask
from localq.testing.worker import start_worker

LONG_S = 60.0


@pytest.fixture
def add(app):
    @app.task
    def add(x, y=0):
        if y == "fail":
            raise ValueError(f"no {x}")
        return x + y

    return add


def waiters(app):
    """How many results the app's threads wait for."""
    aside = app.backend.aside
    return sum(map(len, aside._waiters.values())) if aside is not None else 0


# -- Sending and waiting ---------------------------------------------------------------------------


def test_a_program_sends_and_waits_in_its_event_loop(app, add, running):
    async def program():
        first = await add.adelay(1, y=2)
        second = await add.aapply_async((3,), {"y": 4}, task_id="mine")
        assert second.id == "mine"
        return await first.aget(timeout=30), await second.aget()

    with running():
        assert asyncio.run(program()) == (3, 7)


def test_what_the_call_refuses_is_raised_where_it_is_awaited(app, add):
    async def program():
        with pytest.raises(TypeError):
            await add.adelay(1, 2, 3)
        with pytest.raises(EncodeError):
            await add.adelay(object())
        with pytest.raises(TypeError, match="countdwn"):
            await add.aapply_async((1,), countdwn=1)

    asyncio.run(program())
    assert app.storage.counts() == []


def test_workflows_are_sent_and_waited_for_as_well(app, add, running):
    @app.task
    def total(values):
        return sum(values)

    async def program():
        last = await (add.s(1) | add.s(2)).adelay(5)
        members = await group(add.s(number) for number in range(3)).aapply_async((10,))
        body = await chord([add.s(number, 1) for number in range(3)], total.s()).adelay()
        return await last.aget(timeout=30), await members.aget(timeout=30), await body.aget(timeout=30)

    with running():
        assert asyncio.run(program()) == (8, [10, 11, 12], 6)


def test_a_failure_is_raised_or_returned(app, add, running):
    async def program():
        failed = await add.adelay(1, "fail")
        with pytest.raises(ValueError, match="no 1"):
            await failed.aget(timeout=30)
        return await failed.aget(propagate=False), failed.state

    with running():
        error, state = asyncio.run(program())
    assert (repr(error), state) == ("ValueError('no 1')", "FAILURE")


def test_a_failure_of_an_earlier_step_is_raised_as_that_steps(app, add):
    async def program():
        last = (add.s(1, "fail") | add.s(2)).delay()
        with pytest.raises(ValueError, match="no 1"):
            await last.aget(timeout=30)

    with start_worker(app):
        asyncio.run(program())


def test_the_callback_gets_id_and_value(app, add):
    told = []

    async def program():
        result = await add.adelay(1, 1)
        await result.aget(timeout=30, callback=lambda *what: told.append(what))
        return result.id

    with start_worker(app):
        id = asyncio.run(program())
    assert told == [(id, 2)]


@pytest.fixture
def steps(app):
    @app.task(bind=True)
    def steps(self, number, fails=False):
        for at in range(number):
            self.update_state(state="PROGRESS", meta=at)
        if fails:
            raise ValueError("at last")
        return number

    return steps


def test_who_listens_is_told_every_state_in_the_loop_that_waits(app, steps, running):
    told, threads = [], set()

    def tell(meta):
        told.append((meta["status"], meta["result"]))
        threads.add(threading.current_thread())

    async def program():
        result = await steps.adelay(3)
        return await result.aget(timeout=30, on_message=tell), await result.aget(on_message=tell)

    with running():
        assert asyncio.run(program()) == (3, 3)
    story = [("PROGRESS", at) for at in range(3)] * (running.mode != "eager") + [("SUCCESS", 3)]
    assert told == story * 2
    assert threads == {threading.current_thread()}


def test_who_listens_to_a_group_is_told_of_every_member(app, steps, running):
    told = {}

    async def program():
        members = await group(steps.s(2), steps.s(1)).aapply_async()
        values = await members.aget(
            timeout=30, on_message=lambda meta: told.setdefault(meta["task_id"], []).append(meta["status"])
        )
        return values, [told.get(each.id) for each in members]

    with running():
        values, stories = asyncio.run(program())
    assert values == [2, 1]
    if running.mode != "eager":
        assert stories == [["PROGRESS", "PROGRESS", "SUCCESS"], ["PROGRESS", "SUCCESS"]]


def test_who_listens_waits_no_longer_than_he_says_and_what_he_raises_ends_it(app, steps):
    class EnoughError(Exception):
        pass

    def enough(meta):
        raise EnoughError(meta["status"])

    async def program():
        late = await steps.aapply_async((1,), queue="nobody")
        with pytest.raises(TimeoutError, match=late.id):
            await late.aget(timeout=0.2, on_message=enough)
        with pytest.raises(TimeoutError, match="is PENDING"):
            await (await group(steps.s(1).set(queue="nobody")).aapply_async()).aget(timeout=0.2, on_message=enough)
        failed = await steps.adelay(0, fails=True)
        told = []
        with pytest.raises(ValueError, match="at last"):
            await failed.aget(timeout=30, on_message=lambda meta: told.append(meta["status"]))
        assert told == ["FAILURE"]
        with pytest.raises(EnoughError, match="PROGRESS"):
            await (await steps.adelay(1)).aget(timeout=30, on_message=enough)

    with start_worker(app):
        asyncio.run(program())
    assert waiters(app) == 0


def test_time_is_over_and_the_error_says_why(app, add):
    async def program():
        result = await add.adelay(1)
        with pytest.raises(TimeoutError, match=f"task {result.id} is PENDING"):
            await result.aget(timeout=0.05)
        with pytest.raises(TimeoutError, match=f"task {result.id} is PENDING"):
            await result.aget(timeout=0)

    asyncio.run(program())
    assert waiters(app) == 0


def test_an_id_that_nobody_knows_is_refused_if_the_settings_say_so(app):
    app.conf.result_unknown_raises = True

    async def program():
        with pytest.raises(UnknownTask):
            await AsyncResult("nobody", app=app).aget()

    asyncio.run(program())


def test_results_that_are_at_hand_need_no_thread(app, add):
    async def program():
        assert await EagerResult("id", 5, "SUCCESS").aget() == 5
        assert await add.apply((1, 2)).aget(timeout=1) == 3
        assert await done.aget() == 3

    with start_worker(app):
        done = add.delay(1, 2)
        done.get(timeout=30)
        asyncio.run(program())
    assert app.backend.aside is None


def test_another_processs_results_are_waited_for_as_well(app, add):
    async def program():
        ids = [add.delay(number).id for number in range(3)]
        return await asyncio.gather(*(AsyncResult(id, app=app).aget(timeout=30) for id in ids))

    with start_worker(app, "prefork", concurrency=1):
        assert asyncio.run(program()) == [0, 1, 2]


def test_a_thousand_wait_at_once_by_one_thread_and_the_loop_goes_on(app, add):
    turns = 0

    async def count():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def program():
        counting = asyncio.create_task(count())
        results = await asyncio.gather(*(add.adelay(number) for number in range(1000)))
        before = threading.active_count()
        waiting = [asyncio.create_task(result.aget(timeout=LONG_S)) for result in results]
        await asyncio.sleep(0.05)
        assert threading.active_count() <= before + 1
        with start_worker(app, "prefork", concurrency=1):
            values = await asyncio.gather(*waiting)
        counting.cancel()
        return values

    assert asyncio.run(program()) == list(range(1000))
    assert waiters(app) == 0
    assert turns > 100


def test_a_cancelled_wait_leaves_nothing_behind(app, add):
    async def program():
        results = [await add.adelay(number) for number in range(10)]
        waiting = [asyncio.create_task(result.aget()) for result in results for _ in range(2)]
        await asyncio.sleep(0)
        while waiters(app) < 10:
            await asyncio.sleep(0.001)
        for each in waiting[1:]:
            each.cancel()
        await asyncio.wait(waiting[1:])
        assert waiters(app) == 1
        with start_worker(app):
            assert await asyncio.wait_for(waiting[0], 30) == 0
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(AsyncResult("nobody", app=app).aget(), 0.01)

    asyncio.run(program())
    assert waiters(app) == 0


def test_a_group_is_waited_for_in_order_or_to_its_first_failure(app, add):
    async def program():
        result = group(add.s(number, number) for number in range(20)).delay()
        assert await result.aget(timeout=30) == [2 * number for number in range(20)]
        nested = GroupResult("outer", [result, await add.adelay(1, 1)], app=app)
        assert await nested.aget(timeout=30) == [[2 * number for number in range(20)], 2]
        unknown = AsyncResult("nobody", app=app)
        failing = GroupResult("failing", [await add.adelay(7, "fail"), unknown], app=app)
        with pytest.raises(ValueError, match="no 7"):
            await failing.aget(timeout=LONG_S)
        with pytest.raises(TimeoutError):
            await failing.aget(timeout=0.05, propagate=False)

    with start_worker(app):
        asyncio.run(program())
    assert waiters(app) == 0


def test_waiters_in_two_loops_are_each_told_in_their_own(app, add):
    seen = []

    def life(number):
        async def program():
            result = await add.adelay(number, number)
            seen.append((await result.aget(timeout=30), number))

        asyncio.run(program())

    threads = [threading.Thread(target=life, args=(number,)) for number in range(4)]
    with start_worker(app):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(seen) == [(2 * number, number) for number in range(4)]


def test_the_gate_shut_by_another_does_not_stop_the_loop(app, add):
    turns, is_held, let_go = 0, threading.Event(), threading.Event()

    def hold():
        app.storage._session().gate.hold(lambda: (is_held.set(), let_go.wait(LONG_S)))

    async def program():
        nonlocal turns
        sending = asyncio.create_task(add.adelay(1))
        while turns < 50:
            await asyncio.sleep(0.001)
            turns += 1
        assert not sending.done()
        let_go.set()
        return await sending

    add.delay(0)
    holder = threading.Thread(target=hold)
    holder.start()
    assert is_held.wait(30)
    try:
        assert asyncio.run(program()).id
    finally:
        let_go.set()
        holder.join(30)


# -- Inside tasks ----------------------------------------------------------------------------------


def test_a_coroutine_task_sends_others_and_waits_for_them(app, add, running):
    @app.task(bind=True)
    async def total(self, numbers):
        results = [await add.adelay(number, number) for number in numbers]
        values = await asyncio.gather(*(result.aget(timeout=30) for result in results))
        return sum(values), [each.id for each in self.request.children] == [each.id for each in results]

    with running():
        assert total.delay([1, 2, 3]).get(timeout=60) == [12, True]


def test_get_is_refused_in_a_coroutine_too_and_names_aget(app, add):
    @app.task
    async def waits():
        return (await add.adelay(1)).get(timeout=30)

    with start_worker(app):
        with pytest.raises(RuntimeError, match=r"Never call result\.get\(\) within a task.*await result\.aget"):
            waits.delay().get(timeout=30)


def test_what_it_sends_knows_its_parent(app):
    @app.task(bind=True)
    def child(self):
        return self.request.parent_id, self.request.root_id

    @app.task(bind=True)
    async def parent(self):
        return await (await child.adelay()).aget(timeout=30)

    with start_worker(app):
        sent = parent.delay()
        assert sent.get(timeout=30) == [sent.id, sent.id]


def test_eager_tasks_run_where_a_loop_runs_already(app, add):
    @app.task(bind=True)
    async def outer(self, x):
        await asyncio.sleep(0)
        return [self.request.is_eager, (await add.adelay(x, 1)).get(disable_sync_subtasks=False)]

    async def program():
        return outer.apply((1,)).get(), await (await outer.adelay(2)).aget()

    app.conf.task_always_eager = True
    assert asyncio.run(program()) == ([True, 2], [True, 3])


# -- Ending ----------------------------------------------------------------------------------------


def test_closing_the_app_tells_whoever_waits_and_ends_its_threads(app, add):
    async def program():
        waiting = asyncio.create_task((await add.adelay(1)).aget())
        while not waiters(app):
            await asyncio.sleep(0.001)
        aside = app.backend.aside
        await asyncio.to_thread(app.close)
        with pytest.raises(LocalqError, match="the app was closed"):
            await waiting
        return aside

    asyncio.run(program())
    wait_until(lambda: not [each for each in threading.enumerate() if each.name == "localq-waiter"])
    assert app.backend.aside is None
    assert os.listdir(Path(app.backend.location.path) / "bells") == ["board"]


def test_a_thread_that_nobody_needs_ends_by_itself_and_begins_anew(app, add, monkeypatch):
    monkeypatch.setattr("localq.awaiting.LINGER_S", 0.01)

    async def program():
        return await (await add.adelay(1, 1)).aget(timeout=30)

    with start_worker(app):
        for _ in range(3):
            assert asyncio.run(program()) == 2
            wait_until(lambda: not [each for each in threading.enumerate() if each.name == "localq-waiter"])


PROGRAM = """
import asyncio, os, time
from localq import LocalQ
from localq.exceptions import TimeoutError

app = LocalQ("proj", store="store")

@app.task
def add(x, y):
    return x + y

async def program():
    result = await add.adelay(1, 2)
    try:
        await result.aget(timeout=0.05)
    except TimeoutError:
        print("nobody works", flush=True)  # before the fork: the copy would print it, too
    asyncio.create_task(result.aget())
    await asyncio.sleep(0.05)

asyncio.run(program())
pid = os.fork()
if pid:
    assert os.waitpid(pid, 0)[1] == 0
    asyncio.run(program())
else:
    asyncio.run(program())
    print("forked", flush=True)
"""


def test_a_program_ends_at_once_and_leaves_no_bell_though_somebody_waits_and_after_a_fork(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM], cwd=tmp_path, capture_output=True,
        text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "forked", "nobody works", "nobody works", "nobody works"]
    assert os.listdir(tmp_path / "store" / "bells") == ["board"]


def test_what_an_eager_coroutine_task_raises_tells_of_nothing_else(app):
    @app.task
    async def fails():
        raise ValueError("why")

    assert "no running event loop" not in str(fails.apply().traceback)
