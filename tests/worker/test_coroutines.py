"""Coroutine tasks: many at a time in each child, beside plain ones.

A coroutine that has to last waits for a file; it ends when the test is done looking.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from commands import localq, worker
from waiting import wait_until

from localq import LocalQ, chord, signals, states
from localq.context import current_app, current_task
from localq.exceptions import (
    ImproperlyConfigured,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
)
from localq.message import Claim, Message
from localq.testing.worker import start_worker
from localq.worker.coroutines import Attempt, Coroutines, Withdrawn

#: Longest that a coroutine waits for its file, in seconds.
LONG_S = 60.0


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """The file that ends what lasts."""
    return tmp_path / "go"


async def there(path: Path) -> None:
    """Wait until a file is there."""
    deadline = time.monotonic() + LONG_S
    while not path.exists() and time.monotonic() < deadline:
        await asyncio.sleep(0.005)


def note(path: Path, word: object) -> None:
    """Write a line that outlives whoever writes it."""
    fd = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(fd, f"{word}\n".encode())
    os.close(fd)


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


# -- A task like any other -------------------------------------------------------------------------


def test_it_returns_raises_and_is_tried_again_as_any_other(app, running):
    @app.task
    async def add(x, y=0):
        await asyncio.sleep(0)
        return x + y

    @app.task(bind=True, max_retries=2)
    async def stubborn(self):
        await asyncio.sleep(0)
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return self.request.retries

    @app.task
    async def broken():
        await asyncio.sleep(0)
        raise ValueError("no")

    with running():
        assert add.delay(1, y=2).get(timeout=30) == 3
        assert stubborn.delay().get(timeout=30) == 2
        failed = broken.delay()
        with pytest.raises(ValueError, match="no"):
            failed.get(timeout=30)
        assert failed.state == "FAILURE"
        assert 'raise ValueError("no")' in failed.traceback


def test_workflows_mix_it_with_plain_tasks(app, running):
    @app.task
    async def add(x, y):
        await asyncio.sleep(0)
        return x + y

    @app.task
    def double(x):
        return 2 * x

    @app.task
    async def total(values):
        return sum(values)

    with running():
        assert (add.s(1, 2) | double.s() | add.s(4)).delay().get(timeout=30) == 10
        assert chord([add.s(n, n) for n in range(5)])(total.s()).get(timeout=30) == 20
        assert add.starmap([(1, 2), (3, 4)]).delay().get(timeout=30) == [3, 7]
        assert total.map([[1, 2], [3, 4]]).delay().get(timeout=30) == [3, 7]


def test_handlers_and_signals_are_those_of_any_task(app):
    told = []

    class Told(app.Task):
        def before_start(self, *args):
            told.append("before_start")

        def on_success(self, retval, *args):
            told.append(f"on_success {retval}")

        def on_failure(self, exc, *args):
            told.append(f"on_failure {exc}")

        def on_retry(self, exc, *args):
            told.append(f"on_retry {exc}")

        def after_return(self, status, *args):
            told.append(f"after_return {status}")

    @app.task(base=Told, bind=True, max_retries=1)
    async def act(self, word):
        await asyncio.sleep(0)
        told.append("run")
        if word == "retry" and not self.request.retries:
            raise self.retry(exc=KeyError("again"), countdown=0)
        if word == "fail":
            raise ValueError("no")
        return word

    def pre(sender, task_id, **_):
        told.append("prerun")

    def post(sender, state, **_):
        told.append(f"postrun {state}")

    signals.task_prerun.connect(pre)
    signals.task_postrun.connect(post)
    try:
        with start_worker(app):
            act.delay("good").get(timeout=30)
            act.delay("fail").get(timeout=30, propagate=False)
            act.delay("retry").get(timeout=30)
    finally:
        signals.task_prerun.disconnect(pre)
        signals.task_postrun.disconnect(post)
    start, good = ["prerun", "before_start", "run"], ["after_return SUCCESS", "postrun SUCCESS"]
    assert told == [
        *start, "on_success good", *good,
        *start, "on_failure no", "after_return FAILURE", "postrun FAILURE",
        *start, "on_retry 'again'", "postrun RETRY",
        *start, "on_success retry", *good,
    ]  # fmt: skip


def test_each_of_a_hundred_at_once_has_its_own_request_and_current_task(app):
    mine = contextvars.ContextVar("mine", default=0)
    seen = []

    def look(self, number):
        return self.request.id, self.request.args, current_task().name, mine.get(), current_app() is app

    async def both(self, number):
        mine.set(number)
        before = look(self, number)
        for _ in range(5):
            await asyncio.sleep(0)
        seen.append((before, look(self, number), number))
        return self.request.id

    one = app.task(bind=True, name="proj.one")(both)
    other = app.task(bind=True, name="proj.other")(both)
    results = [(one, other)[number % 2].delay(number) for number in range(100)]
    with start_worker(app):
        assert [result.get(timeout=30) for result in results] == [result.id for result in results]
    ids = {number: result.id for number, result in enumerate(results)}
    for before, after, number in seen:
        name = ("proj.one", "proj.other")[number % 2]
        assert before == after == (ids[number], [number], name, number, True)
    assert len(seen) == 100


def test_another_task_called_inside_is_awaited_and_is_current_meanwhile(app, running):
    @app.task(bind=True, name="proj.inner")
    async def inner(self, x):
        await asyncio.sleep(0)
        return [current_task().name, self.request.called_directly, x]

    @app.task(bind=True, name="proj.outer")
    async def outer(self):
        return [*await inner(5), current_task().name, self.request.called_directly]

    with running():
        assert outer.delay().get(timeout=30) == ["proj.inner", True, 5, "proj.outer", False]


def test_a_call_of_the_users_own_goes_around_it(app, running):
    class Around(app.Task):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    class AsyncAround(app.Task):
        async def __call__(self, *args, **kwargs):
            return [await super().__call__(*args, **kwargs)]

    async def mine(self, x):
        await asyncio.sleep(0)
        return [self.request.called_directly, x]

    around = app.task(base=Around, bind=True, name="proj.around")(mine)
    async_around = app.task(base=AsyncAround, bind=True, name="proj.async_around")(mine)
    with running():
        assert around.delay(1).get(timeout=30) == [False, 1]
        assert async_around.delay(1).get(timeout=30) == [[False, 1]]


@pytest.mark.parametrize("store", ["memory:", "diskcache"])
def test_it_runs_on_every_storage(store, tmp_path):
    made = LocalQ("proj", store=store if store == "memory:" else f"diskcache:///{tmp_path}/kept")

    @made.task
    async def add(x, y):
        await asyncio.sleep(0.01)
        return x + y

    with start_worker(made):
        results = [add.delay(number, 1) for number in range(50)]
        assert [result.get(timeout=30) for result in results] == list(range(1, 51))
    made.close()


def test_a_task_class_whose_run_is_async(app):
    class Add(app.Task):
        name = "proj.add"

        async def run(self, x, y):
            await asyncio.sleep(0)
            return x + y

    add = app.register_task(Add)
    with start_worker(app):
        assert add.delay(1, 2).get(timeout=30) == 3


def test_what_it_cannot_return_and_expired_calls_end_as_ever(app):
    ran = []

    @app.task
    async def odd():
        ran.append("odd")
        return object()

    @app.task
    async def late():
        ran.append("late")

    odd_result = odd.delay()
    late_result = late.apply_async(expires=-1)
    with start_worker(app):
        assert "EncodeError" in repr(odd_result.get(timeout=30, propagate=False))
        assert isinstance(late_result.get(timeout=30, propagate=False), TaskRevokedError)
    assert ran == ["odd"]


# -- What is refused -------------------------------------------------------------------------------


def test_a_plain_function_that_returns_a_coroutine_fails_and_says_what_to_do(app):
    async def real():
        return 1

    @app.task
    def plain():
        return real()

    failed = plain.apply()
    assert isinstance(failed.result, TypeError)
    assert "is no `async def` function itself" in str(failed.result)


def test_an_asynchronous_generator_is_refused_where_it_is_decorated(app):
    with pytest.raises(TypeError, match=r"task 'proj\.pages' is an asynchronous generator.*return a list"):

        @app.task(name="proj.pages")
        async def pages():
            yield 1


@pytest.mark.parametrize("name", ["before_start", "on_success", "on_failure", "on_retry", "after_return"])
def test_a_handler_that_is_async_is_refused_where_its_task_is_made(app, name):
    async def handler(self, *args):
        pass

    base = type("Base", (app.Task,), {name: handler})
    with pytest.raises(TypeError, match=f"task 'proj.act': {name} is `async def`"):

        @app.task(name="proj.act", base=base)
        async def act():
            pass


@pytest.mark.parametrize("value", [0, 257, "many"])
def test_how_many_at_a_time_is_within_what_notes_can_hold(app, value):
    with pytest.raises((ImproperlyConfigured, ValueError, TypeError), match="worker_async_concurrency"):
        app.conf.worker_async_concurrency = value


# -- How many at a time ------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_child_runs_so_many_at_a_time_and_no_more(app, pool, go, tmp_path):
    app.conf.worker_async_concurrency = 7

    @app.task
    async def lasting(number):
        note(tmp_path / "started", number)
        await there(go)
        return number

    results = [lasting.delay(number) for number in range(20)]
    with start_worker(app, pool, concurrency=1):
        wait_until(lambda: len(lines(tmp_path / "started")) >= 7)
        assert len(estates(app)) == 7
        assert len(lines(tmp_path / "started")) == 7
        go.touch()
        assert [result.get(timeout=30) for result in results] == list(range(20))
    assert sorted(map(int, lines(tmp_path / "started"))) == list(range(20))


def test_a_hundred_at_a_time_is_the_default(app, go, tmp_path):
    @app.task
    async def lasting(number):
        note(tmp_path / "started", number)
        await there(go)
        return number

    results = [lasting.delay(number) for number in range(120)]
    with start_worker(app, "prefork", concurrency=1):
        wait_until(lambda: len(lines(tmp_path / "started")) == 100)
        go.touch()
        assert [result.get(timeout=30) for result in results] == list(range(120))


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_plain_tasks_run_while_coroutines_wait(app, pool, go):
    @app.task
    async def lasting():
        await there(go)
        return "done"

    @app.task
    def plain(x):
        return threading.current_thread() is threading.main_thread() or x

    waiting = [lasting.delay() for _ in range(5)]
    with start_worker(app, pool, concurrency=1):
        assert [plain.delay(7).get(timeout=30) for _ in range(20)] == [7 if pool == "solo" else True] * 20
        assert not any(each.ready() for each in waiting)
        go.touch()
        assert [each.get(timeout=30) for each in waiting] == ["done"] * 5


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_results_reach_their_waiters_while_a_long_plain_task_runs_in_the_same_child(app, pool, go, tmp_path):
    ready, end = tmp_path / "ready", tmp_path / "end"

    @app.task
    async def lasting(number):
        note(tmp_path / "started", number)
        while not ready.exists():
            await asyncio.sleep(0.005)
        await asyncio.sleep(number / 200)  # one after another, so that there is always news
        return number

    @app.task
    def long():
        note(tmp_path / "started", "long")
        deadline = time.monotonic() + LONG_S
        while not end.exists() and time.monotonic() < deadline:
            time.sleep(0.005)

    waiting = [lasting.delay(number) for number in range(30)]
    with start_worker(app, pool, concurrency=1):
        wait_until(lambda: len(lines(tmp_path / "started")) == 30)
        plain = long.delay()
        wait_until(lambda: "long" in lines(tmp_path / "started"))
        ready.touch()
        assert [each.get(timeout=30) for each in waiting] == list(range(30))
        assert not plain.ready()
        end.touch()
        plain.get(timeout=30)
    assert redeliveries(app) == 0


def test_a_child_of_plain_tasks_has_no_loop(tmp_path):
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import sys, threading\n"
        "from localq import LocalQ\n"
        "from localq.testing.worker import start_worker\n"
        "app = LocalQ('proj', store='probed')\n"
        "@app.task\n"
        "def look(): return [sorted({'asyncio', 'localq.awaiting'} & set(sys.modules)), threading.active_count()]\n"
        "with start_worker(app, 'prefork', concurrency=1):\n"
        "    print(look.delay().get(timeout=30))\n"
    )
    done = subprocess.run(
        [sys.executable, probe], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.stdout == "[[], 1]\n", done.stderr


# -- Limits and cancelling ---------------------------------------------------------------------------


def test_a_soft_limit_is_raised_where_it_waits_and_can_be_caught(app):
    async def fails():
        raise ValueError

    @app.task(soft_time_limit=0.05)
    async def caught():
        try:
            await asyncio.sleep(LONG_S)
        except SoftTimeLimitExceeded:
            # What counts cancellations does not count this one.
            with pytest.raises(asyncio.TimeoutError):
                async with asyncio.timeout(0):
                    await asyncio.sleep(LONG_S)
            with pytest.raises(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(fails())
                    await asyncio.sleep(LONG_S)
            return "tidied up", asyncio.current_task().cancelling()

    @app.task(soft_time_limit=0.05)
    async def uncaught():
        await asyncio.sleep(LONG_S)

    @app.task
    async def grouped():
        ended = []

        async def member():
            try:
                await asyncio.sleep(LONG_S)
            except asyncio.CancelledError:
                ended.append(1)
                raise

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(member())
                group.create_task(member())
        except SoftTimeLimitExceeded:
            return len(ended)

    with start_worker(app):
        results = caught.delay(), uncaught.delay(), grouped.apply_async(soft_time_limit=0.05)
        assert results[0].get(timeout=30) == ["tidied up", 0]
        error = results[1].get(timeout=30, propagate=False)
        assert type(error) is SoftTimeLimitExceeded
        assert "SoftTimeLimitExceeded" in results[1].traceback
        assert results[2].get(timeout=30) == 2


def test_one_that_was_taken_away_is_not_told_of_its_soft_limit_as_well():
    """As when both came while the loop was busy: the task would go on as one that may clean up."""
    beside = object.__new__(Coroutines)
    attempt = Attempt(None, Claim(1, 1, 0, Message("an-id", "proj.work", b"")), None, (None, 0.1), 1)
    cancelled = []
    attempt.running, attempt.has_begun = type("Running", (), {"cancel": lambda self: cancelled.append(1)})(), True
    attempt.verdict, attempt.instead = (lambda _: None), Withdrawn()
    beside._tell(attempt)
    assert (type(attempt.instead), cancelled) == (Withdrawn, [])


def test_a_hard_limit_ends_it_whatever_it_makes_of_that(app):
    failed = []

    class Told(app.Task):
        def on_failure(self, exc, task_id, args, *rest):
            failed.append((type(exc).__name__, args))

    @app.task
    async def sleeps():
        await asyncio.sleep(LONG_S)

    @app.task(base=Told, time_limit=0.05)
    async def plain(word="plain"):
        await sleeps()

    @app.task(base=Told, time_limit=0.05)
    async def stubborn():
        try:
            await asyncio.sleep(LONG_S)
        except asyncio.CancelledError:
            return "I go on"

    @app.task(base=Told, time_limit=0.05)
    async def deaf():
        for _ in range(2):
            try:
                await asyncio.sleep(LONG_S)
            except asyncio.CancelledError:
                pass

    @app.task
    async def quick():
        return 1

    app.conf.worker_async_concurrency = 3
    with start_worker(app):
        results = [plain.delay("mine"), stubborn.delay(), deaf.delay()]
        for result in results:
            error = result.get(timeout=30, propagate=False)
            assert type(error) is TimeLimitExceeded
            assert error.args == (0.05,)
        assert [quick.delay().get(timeout=30) for _ in range(3)] == [1] * 3
    assert sorted(failed) == [("TimeLimitExceeded", []), ("TimeLimitExceeded", []), ("TimeLimitExceeded", ["mine"])]


def test_the_hard_limit_is_noted_for_whoever_can_kill_a_loop_that_is_stuck(app, go):
    @app.task(time_limit=3600)
    async def lasting():
        await there(go)

    lasting.delay()
    with start_worker(app):
        started = wait_until(lambda: begun(app))
        assert 3590 < started[0].deadline - time.monotonic() <= 3601
        go.touch()
    assert not begun(app)


@pytest.mark.row("R9", "R22")
@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_coroutine_that_is_revoked_while_it_runs_is_cancelled_and_no_other(app, pool, go, tmp_path):
    told, cleaned = tmp_path / "told", tmp_path / "cleaned"

    @app.task
    async def lasting(word):
        try:
            await there(go)
        except asyncio.CancelledError:
            note(cleaned, word)
            if word == "stubborn":
                return "I go on"
            raise
        return word

    def revoked(sender, request, terminated, **_):
        note(told, f"{request.args[0]}-{terminated}")

    signals.task_revoked.connect(revoked)
    try:
        with start_worker(app, pool, concurrency=1):
            victims = [lasting.delay("meek"), lasting.delay("stubborn")]
            other = lasting.delay("other")
            wait_until(lambda: len(begun(app)) == 3)
            assert [victim.revoke(terminate=True) for victim in victims] == ["terminating"] * 2
            for victim in victims:
                error = victim.get(timeout=30, propagate=False)
                assert isinstance(error, TaskRevokedError)
                assert str(error) == "terminated"
                assert victim.state == states.REVOKED
            assert not other.ready()
            wait_until(lambda: app.storage.entries("terminate:") == [])  # just after the end is told
            go.touch()
            assert other.get(timeout=30) == "other"
    finally:
        signals.task_revoked.disconnect(revoked)
    assert sorted(lines(told)) == ["meek-True", "stubborn-True"]
    assert sorted(lines(cleaned)) == ["meek", "stubborn"]


@pytest.mark.row("F047")
def test_one_that_may_be_tried_again_in_time_is(app, tmp_path):
    ran = tmp_path / "ran"

    @app.task(acks_late=True, acks_on_timeout=False, time_limit=0.2)
    async def slow_once():
        note(ran, "began")
        if len(lines(ran)) == 1:
            await asyncio.sleep(LONG_S)
        return len(lines(ran))

    with start_worker(app):
        assert slow_once.delay().get(timeout=30) == 2


@pytest.mark.row("R22", "N37")
def test_a_loop_that_is_stuck_is_killed_when_a_hard_limit_is_long_over(app, go):
    @app.task(time_limit=0.2)
    async def blocks():
        time.sleep(LONG_S)

    @app.task(acks_late=True, reject_on_worker_lost=True)
    async def beside():
        await there(go)
        return "done"

    with start_worker(app, "prefork", concurrency=1):
        victim = beside.delay()
        wait_until(lambda: begun(app))
        error = blocks.delay().get(timeout=30, propagate=False)
        assert (type(error), error.args) == (TimeLimitExceeded, (0.2,))
        go.touch()
        assert victim.get(timeout=30) == "done"


@pytest.mark.row("R9", "N37")
def test_a_loop_that_is_stuck_is_killed_when_what_blocks_it_was_revoked(app, go):
    @app.task
    async def blocks():
        time.sleep(LONG_S)

    @app.task(acks_late=True, reject_on_worker_lost=True)
    async def beside():
        await there(go)
        return "done"

    with start_worker(app, "prefork", concurrency=1):
        victim = beside.delay()
        wait_until(lambda: begun(app))
        result = blocks.delay()
        wait_until(lambda: len(begun(app)) == 2)
        assert result.revoke(terminate=True) == "terminating"
        error = result.get(timeout=30, propagate=False)
        assert (type(error), result.state) == (TaskRevokedError, "REVOKED")
        go.touch()
        assert victim.get(timeout=30) == "done"


# -- Stopping and dying ------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_warm_stop_waits_for_what_runs_and_gives_back_the_rest(app, pool, go, tmp_path):
    app.conf.worker_async_concurrency = 3

    @app.task
    async def lasting(number):
        note(tmp_path / "started", number)
        await there(go)
        return number

    results = [lasting.delay(number) for number in range(5)]
    opener = threading.Timer(0.3, go.touch)
    with start_worker(app, pool, concurrency=1):
        wait_until(lambda: len(lines(tmp_path / "started")) == 3)
        opener.start()
    opener.join()
    assert Counter(result.state for result in results) == {"SUCCESS": 3, "PENDING": 2}
    assert len(lines(tmp_path / "started")) == 3
    assert redeliveries(app) == 0
    with start_worker(app, pool, concurrency=1):
        assert [result.get(timeout=30) for result in results] == list(range(5))


def test_when_its_child_is_killed_each_ends_by_its_mode(app, go, tmp_path):
    async def lasting(name):
        note(tmp_path / "started", name)
        note(tmp_path / "pids", os.getpid())
        await there(go)
        return name

    early = app.task(name="proj.early")(lasting)
    again = app.task(name="proj.again", acks_late=True, reject_on_worker_lost=True)(lasting)
    app.conf.worker_async_concurrency = 20
    names = [f"{kind}-{number}" for number in range(8) for kind in ("early", "again")]
    results = {name: (early if name.startswith("early") else again).delay(name) for name in names}
    with start_worker(app, "prefork", concurrency=1):
        wait_until(lambda: len(lines(tmp_path / "started")) == 16)
        go.touch()
        # Some have ended and are settled or noted, some have not: whatever they were at, they end once.
        os.kill(int(lines(tmp_path / "pids")[0]), signal.SIGKILL)
        for result in results.values():
            result.get(timeout=30, propagate=False)
    runs = Counter(lines(tmp_path / "started"))
    for name, result in results.items():
        if name.startswith("early"):
            assert runs[name] == 1
            assert result.state == "SUCCESS" or "WorkerLostError" in repr(result.result)
        else:
            assert result.result == name
            assert runs[name] <= 2
    assert redeliveries(app) == sum(runs.values()) - 16 + sum(r.state == "FAILURE" for r in results.values())


def test_reserved_ones_go_back_uncharged_when_their_child_is_killed(app, go, tmp_path):
    app.conf.worker_async_concurrency = 2

    @app.task
    async def lasting(number):
        note(tmp_path / "started", number)
        note(tmp_path / "pids", os.getpid())
        await there(go)
        return number

    results = [lasting.delay(number) for number in range(6)]
    with start_worker(app, "prefork", concurrency=1):
        wait_until(lambda: len(lines(tmp_path / "started")) == 2)
        os.kill(int(lines(tmp_path / "pids")[0]), signal.SIGKILL)
        wait_until(lambda: len(lines(tmp_path / "started")) == 4)
        go.touch()
        states_of = Counter(wait_until(lambda r=result: r.ready() and r.state) for result in results)
    assert states_of == {"FAILURE": 2, "SUCCESS": 4}
    assert sorted(map(int, lines(tmp_path / "started"))) == list(range(6))
    assert redeliveries(app) == 2


def test_the_copy_that_a_task_forks_does_nothing_of_ours(app, tmp_path):
    @app.task
    async def forks():
        await asyncio.sleep(0)
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            return "original"
        note(tmp_path / "copy", os.getpid())
        return "copy"

    with start_worker(app, "prefork", concurrency=1):
        assert forks.delay().get(timeout=30) == "original"
        assert len(lines(tmp_path / "copy")) == 1


def begun(app):
    return [each for owner in app.storage.owners() for each in app.storage.estate(owner.name).started]


def estates(app):
    return [claim for owner in app.storage.owners() for claim in app.storage.estate(owner.name).claims]


def redeliveries(app):
    (row,) = app.storage._read("select sum(redeliveries) from messages")
    return row[0]


# -- As people run it ------------------------------------------------------------------------------

TASKS = """
import asyncio, os
from localq import LocalQ

app = LocalQ("proj")

@app.task
async def hold(name):
    open(f"{name}.started", "w").close()
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    return "held to the end"

@app.task
def setting():
    return app.conf.worker_async_concurrency
"""


@pytest.fixture
def here(tmp_path):
    (tmp_path / "tasks.py").write_text(TASKS)
    made = LocalQ("client", store=tmp_path / ".localq", set_as_current=False)
    yield tmp_path, made
    made.close()


def test_a_flag_says_how_many_at_a_time(here):
    directory, client = here
    with worker("-A", "tasks", "worker", "-c", "1", "--async-concurrency", "3", cwd=directory):
        assert client.send_task("proj.setting").get(timeout=30) == 3
    refused = localq("-A", "tasks", "worker", "--async-concurrency", "300", cwd=directory)
    assert refused.returncode == 2
    assert "--async-concurrency" in refused.stderr
    assert "1<=x<=256" in refused.stderr


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_warm_stop_by_signal_waits_and_a_second_one_does_not(here, pool):
    directory, client = here
    with worker("-A", "tasks", "worker", "-c", "1", "-P", pool, cwd=directory) as running:
        held = [client.send_task("proj.hold", (f"a{number}",)) for number in range(5)]
        wait_until(lambda: len(list(directory.glob("a*.started"))) == 5)
        running.process.send_signal(signal.SIGTERM)
        running.saw("Warm shutdown")
        (directory / "go").touch()
        assert running.process.wait(30) == 0
    assert [each.get(timeout=0) for each in held] == ["held to the end"] * 5
    (directory / "go").unlink()
    with worker("-A", "tasks", "worker", "-c", "1", "-P", pool, cwd=directory) as running:
        held = [client.send_task("proj.hold", (f"b{number}",)) for number in range(5)]
        wait_until(lambda: len(list(directory.glob("b*.started"))) == 5)
        running.process.send_signal(signal.SIGINT)
        running.saw("Warm shutdown")
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(30) != 0
    for each in held:
        with pytest.raises(WorkerLostError):
            each.get(timeout=30)
