"""What counts as a coroutine function, and the orders in which an attempt's threads can meet."""

from __future__ import annotations

import asyncio
import functools
import inspect
import signal
import sys
import threading

import pytest
from waiting import wait_until

from localq import coroutines, states
from localq.executor import Executor
from localq.message import Want
from localq.worker.coroutines import Coroutines


async def is_one(x):
    return x


class Callable:
    async def method(self):
        pass

    def plain(self):
        return is_one(1)


@pytest.mark.parametrize(
    "function", [is_one, functools.partial(is_one, 1), Callable().method, functools.partial(Callable().method)]
)
def test_coroutine_functions(function):
    assert coroutines.is_function(function)


@pytest.mark.parametrize("function", [len, Callable().plain, functools.wraps(is_one)(lambda: is_one(1)), None, int])
def test_what_is_none(function):
    assert not coroutines.is_function(function)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.11 has no such mark")
def test_a_plain_function_can_be_marked(app):
    @app.task
    @inspect.markcoroutinefunction
    def marked(x):
        return is_one(x)

    assert marked.apply((5,)).get() == 5


def test_ctrl_c_in_an_eager_coroutine_is_the_users(app):
    @app.task
    async def interrupted():
        await asyncio.sleep(0)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted.apply()


def test_a_call_in_the_program_is_a_coroutine_with_a_request_of_its_own(app):
    @app.task(bind=True)
    async def who(self, x):
        await asyncio.sleep(0)
        return self.request.called_directly, self.request.args, x

    assert asyncio.run(who(3)) == (True, (3,), 3)


# -- The loop beside a main thread -----------------------------------------------------------------


@pytest.fixture
def there(app):
    """A main thread that claims and settles when the test says so."""
    made = Main(app)
    yield made
    made.beside.close()
    made.owner.close()


class Main:
    def __init__(self, app):
        self.app, self.storage = app, app.storage
        self.executor = Executor(app.conf, "here")
        self.owner = self.storage.enlist({"kind": "test"})
        self.woken = threading.Event()
        self.beside = Coroutines(
            self.executor, self.storage, self.owner, threading.Lock(), 5, self.woken.set,
            lambda *_: pytest.fail("indescribable"),
        )  # fmt: skip
        self.owner.turn()

    def start(self, task, *args):
        task.delay(*args)
        (claim,) = self.storage.settle((), Want(self.owner.name, ("celery",), 1, 2e9)).claims
        assert self.beside.start(task, claim, self.executor.attempt(task, claim), (None, None))
        return claim

    def estate(self):
        return self.storage.estate(self.owner.name)

    def ended(self, number=1):
        found = []
        wait_until(lambda: found.extend(self.beside.ended()) or len(found) >= number)
        return found


def test_one_that_is_cancelled_before_it_runs_never_runs(app, there):
    ran = []

    @app.task
    async def run():
        ran.append(1)

    claim = there.start(run)
    assert there.beside.cancel(claim.seq, claim.token)
    there.beside.run(claim)
    (outcome,) = there.ended()
    assert (outcome.state, outcome.seq, outcome.token) == (states.REVOKED, claim.seq, claim.token)
    assert not ran


def test_one_that_is_cancelled_as_it_begins_ends_as_revoked(app, there):
    @app.task
    async def run():
        await asyncio.sleep(60)

    for _ in range(50):
        claim = there.start(run)
        there.beside.run(claim)
        assert there.beside.cancel(claim.seq, claim.token)
        (outcome,) = there.ended()
        assert outcome.state == states.REVOKED
        there.storage.settle([outcome])
        there.beside.settled()
    assert not there.beside.cancel(claim.seq, claim.token)
    assert there.beside.free == 5


def test_it_is_started_as_long_as_its_end_is_not_noted_and_its_place_is_taken_until_it_is_settled(app, there):
    go = threading.Event()

    @app.task
    async def run():
        while not go.is_set():
            await asyncio.sleep(0.001)

    claim = there.start(run)
    there.beside.run(claim)
    assert [(each.seq, each.token) for each in there.estate().started] == [(claim.seq, claim.token)]
    go.set()
    assert there.woken.wait(30)
    estate = there.estate()
    assert not estate.started
    assert [each.state for each in estate.ended] == ["SUCCESS"]
    assert there.beside.running == 1
    outcomes = there.ended()
    assert (there.beside.free, len(there.beside.attempts), there.beside.running) == (5, 1, 0)
    assert there.storage.settle(outcomes).stale == []
    there.beside.settled()
    assert not there.estate().ended
    assert not there.beside.attempts


def test_what_ends_while_the_main_thread_settles_stays_noted(app, there):
    go = threading.Event()

    @app.task
    async def run(waits):
        while waits and not go.is_set():
            await asyncio.sleep(0.001)
        return waits

    claims = [there.start(run, waits) for waits in (False, True)]
    for claim in claims:
        there.beside.run(claim)
    first = there.ended()
    there.woken.clear()
    go.set()
    assert there.woken.wait(30)  # between the settle of the first and the note that it is settled
    there.storage.settle(first)
    there.beside.settled()
    assert [each.seq for each in there.estate().ended] == [claims[1].seq]
    (second,) = there.ended()
    assert second.seq == claims[1].seq


def test_an_end_that_has_no_room_in_the_journal_counts_as_started_until_it_is_settled(app, there):
    @app.task
    async def large():
        return "x" * 300_000

    claim = there.start(large)
    there.beside.run(claim)
    (outcome,) = there.ended()
    assert [each.seq for each in there.estate().started] == [claim.seq]
    assert there.storage.settle([outcome]).stale == []
    there.beside.settled()
    assert not there.estate().started


def test_one_that_is_recalled_before_it_began_does_not_run(app, there):
    ran = []

    @app.task
    async def run():
        ran.append(1)

    run.delay()
    (claim,) = there.storage.settle((), Want(there.owner.name, ("celery",), 1, 2e9)).claims
    there.storage.estate(there.owner.name, recalled=there.estate().batch)
    assert not there.beside.start(run, claim, there.executor.attempt(run, claim), (None, None))
    assert not there.estate().started
    assert there.beside.free == 5
    assert not ran


def test_what_runs_when_the_loop_is_closed_ends_like_what_a_dead_process_ran(app, there):
    @app.task
    async def run():
        await asyncio.sleep(60)

    claim = there.start(run)
    there.beside.run(claim)
    there.beside.close()
    assert there.beside.ended() == []
    estate = there.estate()
    assert [each.seq for each in estate.started] == [claim.seq]
    assert not estate.ended
    assert not there.beside.cancel(claim.seq, claim.token)
