"""Time limits: a task that takes too long is told, then ended, and what it has started ends with it.

Limits are a part of a second, tasks would take a minute: no machine is so slow that this could come out otherwise.
What runs is seen by what the tasks write down.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from commands import is_gone, worker
from waiting import wait_until

from localq import AsyncResult, LocalQ, Task, signals
from localq.context import allow_join_result
from localq.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from localq.testing.worker import start_worker

#: A task that takes so long never ends by itself here.
LONG_S = 60.0
LIMIT_S = 0.3


def sleeps(seconds=LONG_S):
    time.sleep(seconds)
    return "slept"


def spins():
    deadline = time.monotonic() + LONG_S
    while time.monotonic() < deadline:
        pass


@pytest.fixture
def notes(tmp_path: Path):
    """What tasks and handlers write down, in whatever process: a function that writes, with `read`."""

    class Notes:
        path = tmp_path / "notes"

        def __call__(self, *words):
            with self.path.open("ab", buffering=0) as file:
                file.write((" ".join(map(str, words)) + "\n").encode())

        def read(self, first=""):
            lines = self.path.read_text().splitlines() if self.path.exists() else []
            return [line.split() for line in lines if line.startswith(first)]

    return Notes()


def end_of(result):
    """How a task ended: its state and its exception, or value."""
    return result.get(timeout=30, propagate=False), result.state


def ended_by(exc, state, kind, *args):
    return type(exc) is kind and exc.args == args and state == "FAILURE"


# -- Hard limits ---------------------------------------------------------------------------------------


@pytest.mark.row("F044", "F192", "N37")
@pytest.mark.parametrize("where", ["call", "task", "setting", "worker"])
def test_a_task_is_stopped_when_its_time_is_up_wherever_that_is_said(app: LocalQ, where, monkeypatch):
    task = app.task(name="sleeps", **({"time_limit": LIMIT_S} if where == "task" else {}))(sleeps)
    if where == "setting":
        app.conf.task_time_limit = LIMIT_S
    options = {"time_limit": LIMIT_S} if where == "call" else {}
    if where == "worker":
        # As `localq worker --time-limit` does it.
        from localq.worker import Worker

        original = Worker.__init__
        monkeypatch.setattr(Worker, "__init__", lambda *a, **k: original(*a, **{**k, "time_limit": LIMIT_S}))
    with start_worker(app, "prefork", concurrency=1):
        exc, state = end_of(task.apply_async((), **options))
        assert ended_by(exc, state, TimeLimitExceeded, LIMIT_S)
        assert str(exc) == f"TimeLimitExceeded({LIMIT_S},)"
        # Another child takes its place, and a short task is not touched.
        assert task.delay(0).get(timeout=30) == "slept"


@pytest.mark.row("F044")
def test_what_the_call_says_wins_over_the_task_and_that_over_the_setting(app: LocalQ):
    app.conf.task_time_limit = LONG_S
    longer = app.task(name="longer", time_limit=LIMIT_S)(sleeps)
    with start_worker(app, "prefork", concurrency=1):
        assert longer.apply_async((2 * LIMIT_S,), time_limit=LONG_S).get(timeout=30) == "slept"
        assert type(end_of(longer.delay())[0]) is TimeLimitExceeded


def test_code_that_never_sleeps_nor_listens_is_stopped_too(app: LocalQ):
    @app.task(time_limit=LIMIT_S, acks_late=True)
    def deaf():
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        spins()

    with start_worker(app, "prefork", concurrency=1):
        assert type(end_of(deaf.delay())[0]) is TimeLimitExceeded


def test_a_stopped_child_is_killed_when_its_time_is_up(app: LocalQ, notes):
    @app.task(time_limit=1)
    def stops():
        notes("pid", os.getpid())
        os.kill(os.getpid(), signal.SIGSTOP)
        spins()

    with start_worker(app, "prefork", concurrency=1):
        exc, state = end_of(stops.delay())
        assert ended_by(exc, state, TimeLimitExceeded, 1)
        assert is_gone(int(notes.read("pid")[0][1]))
        assert len(notes.read("pid")) == 1


def test_what_a_task_has_started_ends_with_it(app: LocalQ, notes):
    @app.task(time_limit=1)
    def starts_others():
        stubborn = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
        for code in (stubborn, "import time; print(flush=True); time.sleep(60)"):
            child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
            child.stdout.readline()  # it has started
            notes("pid", child.pid)
        spins()

    with start_worker(app, "prefork", concurrency=1):
        assert type(end_of(starts_others.delay())[0]) is TimeLimitExceeded
        pids = [int(pid) for _, pid in notes.read("pid")]
        assert pids
        wait_until(lambda: all(map(is_gone, pids)), what="grandchildren die with the child's process group")


@pytest.mark.parametrize("who", ["its child", "a process that left its child's group"])
def test_what_a_task_has_started_ends_with_a_child_that_somebody_else_has_killed(app: LocalQ, notes, who):
    @app.task
    def starts_another(may_leave):
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"], process_group=0 if may_leave else None
        )
        notes("pid", child.pid)
        return os.getpid()

    with start_worker(app, "prefork", concurrency=1):
        pid = starts_another.delay(who != "its child").get(timeout=30)
        started = int(notes.read("pid")[0][1])
        os.kill(pid, signal.SIGKILL)
        assert starts_another.delay(True).get(timeout=30) != pid
        if who == "its child":
            wait_until(lambda: is_gone(started), what="grandchildren die with the child's process group")
        else:
            assert not is_gone(started), "it is its own master"
    for _, each in notes.read("pid"):
        if not is_gone(int(each)):
            os.kill(int(each), signal.SIGKILL)


def test_only_the_one_that_is_late_ends_what_is_reserved_behind_it_runs(app: LocalQ, notes):
    long = app.task(name="long", time_limit=LIMIT_S)(sleeps)

    @app.task
    def short(number):
        notes("short", number)
        return number

    warm = [short.delay(-1) for _ in range(300)]
    with start_worker(app, "prefork", concurrency=1):
        assert all(each.get(timeout=30) == -1 for each in warm)
        late = long.delay()
        behind = [short.delay(number) for number in range(50)]
        assert [each.get(timeout=30) for each in behind] == list(range(50))
        assert type(end_of(late)[0]) is TimeLimitExceeded
    assert sorted(int(number) for _, number in notes.read("short") if number != "-1") == list(range(50))


def test_many_limits_at_once_each_ends_its_own(app: LocalQ):
    task = app.task(name="sleeps")(sleeps)
    with start_worker(app, "prefork", concurrency=3):
        # The longest first: the supervisor has planned to look much later when the others begin.
        limits = [30, 1.0, 0.5, 0.2]
        long, *others = [task.apply_async((), time_limit=limit) for limit in limits]
        assert [end_of(each)[0].args for each in others] == [(1,), (0.5,), (0.2,)]
        assert not long.ready()
        long.revoke(terminate=True)


@pytest.mark.row("F047")
@pytest.mark.parametrize("options", [
    {"acks_on_timeout": False}, {"acks_on_failure_or_timeout": False},
    {"retry_on_worker_lost": True, "acks_on_timeout": False},
])  # fmt: skip
def test_a_late_task_goes_back_to_the_queue_if_it_says_so_until_it_has_had_enough(app: LocalQ, notes, options):
    app.conf.task_max_redeliveries = 2

    @app.task(bind=True, acks_late=True, time_limit=LIMIT_S, **options)
    def again(self):
        notes("run", self.request.redelivered)
        time.sleep(LONG_S)

    with start_worker(app, "prefork", concurrency=1):
        assert type(end_of(again.delay())[0]) is TimeLimitExceeded
    assert notes.read() == [["run", "0"], ["run", "1"], ["run", "2"]]


@pytest.mark.row("F047")
@pytest.mark.parametrize("options", [
    {}, {"acks_late": True}, {"acks_on_timeout": False}, {"acks_late": True, "reject_on_worker_lost": True},
    {"acks_late": True, "acks_on_failure_or_timeout": False, "acks_on_timeout": True}, {"retry_on_worker_lost": True},
])  # fmt: skip
def test_any_other_task_has_had_its_time(app: LocalQ, notes, options):
    @app.task(time_limit=LIMIT_S, **options)
    def once():
        notes("run")
        time.sleep(LONG_S)

    with start_worker(app, "prefork", concurrency=1):
        assert type(end_of(once.delay())[0]) is TimeLimitExceeded
    assert len(notes.read()) == 1


@pytest.mark.row("F040")
@pytest.mark.parametrize(("options", "state"), [
    ({}, "FAILURE"), ({"ignore_result": True}, "IGNORED"),
    ({"ignore_result": True, "store_errors_even_if_ignored": True}, "FAILURE"),
])  # fmt: skip
def test_what_is_kept_of_one_that_ran_out_of_time_is_what_is_kept_of_one_that_raised(
    app: LocalQ, notes, options, state
):
    errback = app.task(name="errback")(lambda request, exc, traceback: notes("errback", request.id, exc))

    @app.task(**options)
    def ends(how):
        if how == "late":
            time.sleep(LONG_S)
        raise ValueError(how)

    with start_worker(app, "prefork", concurrency=1):
        results = [
            ends.apply_async(("late",), time_limit=LIMIT_S, link_error=errback.s()),
            ends.apply_async(("raises",), link_error=errback.s()),
        ]
        wait_until(lambda: len(notes.read("errback")) == 2)
    assert [result.state for result in results] == [state, state]
    assert {(words[1], words[2].partition("(")[0]) for words in notes.read("errback")} == {
        (results[0].id, "TimeLimitExceeded"), (results[1].id, "raises"),
    }  # fmt: skip


# -- Soft limits ---------------------------------------------------------------------------------------


@pytest.mark.row("F192", "F044")
@pytest.mark.parametrize("where", ["call", "task", "setting"])
def test_a_task_is_told_and_may_clean_up(app: LocalQ, where):
    def tidy():
        try:
            time.sleep(LONG_S)
        except SoftTimeLimitExceeded:
            return "tidied"

    task = app.task(name="tidy", **({"soft_time_limit": LIMIT_S} if where == "task" else {}))(tidy)
    if where == "setting":
        app.conf.task_soft_time_limit = LIMIT_S
    with start_worker(app, "prefork", concurrency=1):
        result = task.apply_async((), **({"soft_time_limit": LIMIT_S} if where == "call" else {}))
        assert end_of(result) == ("tidied", "SUCCESS")


@pytest.mark.row("F192")
def test_a_task_that_does_not_mind_fails_of_it_and_its_child_goes_on(app: LocalQ):
    @app.task(soft_time_limit=LIMIT_S)
    def busy(run):
        if run:
            spins()
        return os.getpid()

    with start_worker(app, "prefork", concurrency=1):
        before = busy.delay(False).get(timeout=30)
        exc, state = end_of(busy.delay(True))
        assert ended_by(exc, state, SoftTimeLimitExceeded)
        assert str(exc) == "SoftTimeLimitExceeded()"
        assert busy.delay(False).get(timeout=30) == before


@pytest.mark.row("F192", "F044")
def test_who_was_told_and_goes_on_is_stopped(app: LocalQ, notes):
    @app.task(soft_time_limit=LIMIT_S, time_limit=3 * LIMIT_S)
    def stubborn():
        try:
            time.sleep(LONG_S)
        except SoftTimeLimitExceeded:
            notes("told")
        time.sleep(LONG_S)

    with start_worker(app, "prefork", concurrency=1):
        exc, state = end_of(stubborn.delay())
        assert ended_by(exc, state, TimeLimitExceeded, 3 * LIMIT_S)
    assert len(notes.read("told")) == 1


def test_a_wait_for_a_result_can_be_interrupted(app: LocalQ):
    never = app.task(name="never")(sleeps)

    @app.task(soft_time_limit=LIMIT_S)
    def waits():
        try:
            with allow_join_result():
                never.apply_async(queue="nobody").get()
        except SoftTimeLimitExceeded:
            return "gave up"

    with start_worker(app, "prefork", concurrency=1):
        assert waits.delay().get(timeout=30) == "gave up"


def test_a_task_that_puts_all_the_time_is_told_between_two_puts_and_each_put_is_whole(app: LocalQ, notes):
    nothing = app.task(name="nothing")(sleeps)

    @app.task(soft_time_limit=LIMIT_S)
    def sends():
        ids = []
        deadline = time.monotonic() + LONG_S
        try:
            while time.monotonic() < deadline:
                ids.append(nothing.apply_async(queue="nobody").id)
        except SoftTimeLimitExceeded:
            return ids
        return "never told"

    with start_worker(app, "prefork", concurrency=1):
        ids = sends.delay().get(timeout=30)
        assert isinstance(ids, list)
        found = sum(count.number for count in app.storage.counts() if count.queue == "nobody")
        # The last one may have been put and not been noted: it was told as it returned.
        assert found - len(ids) in (0, 1)
        assert all(AsyncResult(id, app=app).exists() for id in ids[:100])
        assert sends.delay().get(timeout=30), "its child can still use the store"


def test_limits_hold_for_the_first_run_only_of_what_a_task_calls_itself(app: LocalQ):
    inner = app.task(name="inner")(sleeps)

    @app.task(soft_time_limit=LIMIT_S)
    def outer():
        try:
            inner()
        except SoftTimeLimitExceeded:
            return "told inside"

    with start_worker(app, "prefork", concurrency=1):
        assert outer.delay().get(timeout=30) == "told inside"


def test_code_of_the_users_that_localq_calls_for_a_task_can_be_interrupted(app: LocalQ):
    inner = app.task(name="inner")(sleeps)

    @app.task(soft_time_limit=LIMIT_S)
    def applies():
        return repr(inner.apply(throw=False).result)

    @app.task(soft_time_limit=LIMIT_S)
    def listens():
        try:
            with allow_join_result():
                inner.apply_async((0,)).get(on_message=lambda _: time.sleep(LONG_S))
        except SoftTimeLimitExceeded:
            return "gave up"

    @app.task(soft_time_limit=LIMIT_S)
    def collects():
        try:
            with allow_join_result():
                return list(inner.apply_async(queue="nobody").collect(intermediate=True))
        except SoftTimeLimitExceeded:
            return "gave up"

    with start_worker(app, "prefork", concurrency=2):
        assert listens.delay().get(timeout=30) == "gave up"
        assert collects.delay().get(timeout=30) == "gave up"
        assert applies.delay().get(timeout=30) == "SoftTimeLimitExceeded()", "as in Celery, it is the inner task's"


class Suppressed:
    """Takes whatever its block raises, and knows what that was."""

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.what = kind.__name__
        return True


def tries_all_loops(send):
    try:
        while True:
            send(1)
    except SoftTimeLimitExceeded as exc:
        return type(exc).__name__


def tries_in_a_while_loop(send):
    while True:
        try:
            send(1)
        except SoftTimeLimitExceeded as exc:
            return type(exc).__name__


def tries_in_a_for_loop(send):
    for _ in iter(int, 1):
        try:
            send(1)
        except SoftTimeLimitExceeded as exc:
            return type(exc).__name__
    return "never told"


def has_a_context(send):
    with Suppressed() as suppressed:
        while True:
            send(1)
    return suppressed.what


def tries_nothing(send):
    while True:
        send(1)


def tries_something_else(send):
    try:
        send(1)
    except ValueError:
        return "wrong"
    while True:
        send(1)


@pytest.mark.parametrize("loops", [
    tries_all_loops, tries_in_a_while_loop, tries_in_a_for_loop, has_a_context, tries_nothing, tries_something_else,
])  # fmt: skip
def test_a_task_that_only_calls_localq_in_a_loop_is_told_where_its_own_handlers_hold(app: LocalQ, loops):
    nothing = app.task(name="nothing", ignore_result=True)(lambda x: x)
    app.conf.task_routes = {"nothing": "nobody"}
    task = app.task(name="loops", soft_time_limit=0.05)(lambda: loops(nothing.delay))
    with start_worker(app, "prefork", concurrency=1):
        for _ in range(5):
            value, state = end_of(task.delay())
            if loops in (tries_nothing, tries_something_else):
                assert (type(value), state) == (SoftTimeLimitExceeded, "FAILURE")
            else:
                assert (value, state) == ("SoftTimeLimitExceeded", "SUCCESS")


@pytest.mark.row("R22")
def test_a_solo_worker_says_that_it_keeps_no_limits_beside_the_main_thread(app: LocalQ, caplog):
    task = app.task(name="short")(sleeps)
    with start_worker(app, "solo"):
        for _ in range(2):
            assert (
                task.apply_async((2 * LIMIT_S,), time_limit=LIMIT_S, soft_time_limit=LIMIT_S).get(timeout=30) == "slept"
            )
    said = [record.getMessage() for record in caplog.records if "has no effect here" in record.getMessage()]
    assert [text.partition(" ")[0] for text in said] == ["time_limit", "soft_time_limit"]


@pytest.mark.row("R22")
def test_a_solo_worker_in_the_main_thread_keeps_soft_limits(tmp_path):
    (tmp_path / "tasks.py").write_text(
        "import time\nfrom localq import LocalQ\napp = LocalQ('proj')\n"
        f"@app.task(soft_time_limit={LIMIT_S}, time_limit=50)\ndef sleeps():\n    time.sleep({LONG_S})\n"
    )
    client = LocalQ("client", store=tmp_path / ".localq", set_as_current=False)
    with worker("-A", "tasks", "worker", "-P", "solo", cwd=tmp_path) as running:
        exc, state = end_of(client.send_task("tasks.sleeps"))
        assert (type(exc), state) == (SoftTimeLimitExceeded, "FAILURE")
        running.saw(f"Soft time limit ({LIMIT_S}s) exceeded for tasks.sleeps[")
        assert running.text.count("time_limit has no effect here") == 1
    client.close()


def test_limits_do_not_hold_where_a_task_is_called(app: LocalQ):
    task = app.task(name="short", time_limit=0.01, soft_time_limit=0.01)(sleeps)
    assert task.apply((0.05,)).get() == "slept"
    app.conf.task_always_eager = True
    assert task.delay(0.05).get() == "slept"


# -- Just in time, or not ------------------------------------------------------------------------------


def test_about_the_moment_of_a_hard_limit_a_task_ends_in_one_of_two_ways_and_no_other_is_hurt(app: LocalQ, notes):
    limit_s = 0.05

    @app.task
    def works(number, seconds):
        notes("run", number)
        time.sleep(seconds)
        return number

    pick = random.Random(5)
    calls = [(number, pick.uniform(0, 2 * limit_s) if number % 3 == 0 else 0) for number in range(150)]
    with start_worker(app, "prefork", concurrency=2):
        limited = {number: {"time_limit": limit_s} if seconds else {} for number, seconds in calls}
        sent = [works.apply_async(call, **limited[call[0]]) for call in calls]
        for (number, seconds), result in zip(calls, sent, strict=True):
            value, state = end_of(result)
            in_time, late = (number, "SUCCESS"), ended_by(value, state, TimeLimitExceeded, limit_s)
            assert (value, state) == in_time or (seconds and late), f"{number} after {seconds}: {state} {value!r}"
    assert Counter(int(number) for _, number in notes.read()) == Counter(range(len(calls)))


def test_about_the_moment_of_a_soft_limit_a_task_ends_in_one_of_two_ways(app: LocalQ):
    limit_s = 0.005

    @app.task(soft_time_limit=limit_s)
    def works(seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pass
        return "done"

    pick = random.Random(6)
    with start_worker(app, "prefork", concurrency=1):
        sent = [works.delay(pick.uniform(0.9 * limit_s, 1.1 * limit_s)) for _ in range(300)]
        for result in sent:
            value, state = end_of(result)
            assert (value, state) == ("done", "SUCCESS") or ended_by(value, state, SoftTimeLimitExceeded)


# -- What is told --------------------------------------------------------------------------------------


@pytest.mark.row("F142", "F192")
def test_handlers_of_a_task_that_ran_out_of_time_are_called_in_the_steward(app: LocalQ, notes):
    class Told(Task):
        def on_failure(self, exc, task_id, args, kwargs, einfo):
            notes("on_failure", repr(exc), self.request.id == task_id, args, kwargs, os.getpid())

        def after_return(self, status, retval, task_id, args, kwargs, einfo):
            notes("after_return", status, os.getpid())

    task = app.task(name="sleeps", base=Told, time_limit=1)(sleeps)
    errback = app.task(name="errback")(lambda request, exc, traceback: notes("errback", request.id, exc))

    def failed(sender=None, exception=None, task_id=None, **_):
        notes("signal", sender.name, repr(exception), os.getpid())

    signals.task_failure.connect(failed, weak=False)
    try:
        with start_worker(app, "prefork", concurrency=1):
            result = task.apply_async((LONG_S,), link_error=errback.s())
            assert type(end_of(result)[0]) is TimeLimitExceeded
            wait_until(lambda: notes.read("signal"))
            wait_until(lambda: notes.read("errback"), what="a child tells the errback")
            (steward,) = [o.about["pid"] for o in app.storage.owners() if o.about["kind"] == "worker"]
    finally:
        signals.task_failure.disconnect(failed)
    assert notes.read("errback") == [["errback", result.id, "TimeLimitExceeded(1,)"]]
    assert notes.read("on_failure") == [["on_failure", "TimeLimitExceeded(1)", "True", "[60.0]", "{}", str(steward)]]
    assert notes.read("after_return") == [["after_return", "FAILURE", str(steward)]]
    assert notes.read("signal") == [["signal", "sleeps", "TimeLimitExceeded(1)", str(steward)]]


@pytest.mark.row("F142", "F193")
def test_a_lost_process_is_told_to_the_signal_and_to_the_errbacks(app: LocalQ, notes):
    task = app.task(name="dies")(lambda: os.kill(os.getpid(), signal.SIGKILL))
    errback = app.task(name="errback")(lambda request, exc, traceback: notes("errback", type(exc).__name__))

    def failed(exception=None, **_):
        notes("signal", type(exception).__name__, str(exception).partition(" (")[0])

    signals.task_failure.connect(failed, weak=False)
    try:
        with start_worker(app, "prefork", concurrency=1):
            assert end_of(task.apply_async((), link_error=errback.s()))[1] == "FAILURE"
            wait_until(lambda: notes.read("signal"))
            wait_until(lambda: notes.read("errback"))
    finally:
        signals.task_failure.disconnect(failed)
    assert notes.read("errback") == [["errback", "WorkerLostError"]]
    assert notes.read("signal") == [["signal", "WorkerLostError", *"Worker exited prematurely: signal 9".split()]]


def test_a_handler_that_fails_changes_nothing(app: LocalQ, tmp_path, notes):
    class Broken(Task):
        def on_failure(self, *_):
            notes("called")
            raise RuntimeError("on purpose")

    task = app.task(name="sleeps", base=Broken, time_limit=LIMIT_S)(sleeps)
    with start_worker(app, "prefork", concurrency=1):
        for _ in range(2):
            assert type(end_of(task.delay())[0]) is TimeLimitExceeded
        wait_until(lambda: len(notes.read("called")) == 2)


# -- Whoever dies --------------------------------------------------------------------------------------

TASKS = f"""
import os, time
from localq import LocalQ
app = LocalQ("proj")

@app.task(time_limit=0.5)
def early():
    time.sleep({LONG_S})

@app.task(time_limit=0.5, acks_late=True, reject_on_worker_lost=True)
def reject():
    time.sleep({LONG_S})

@app.task
def add(x, y):
    return x + y
"""


@pytest.mark.parametrize("victim", ["supervisor", "steward", "child"])
@pytest.mark.parametrize("kind", ["early", "reject"])
def test_the_reason_that_was_noted_decides_whoever_dies_then(tmp_path, victim, kind):
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "fault").mkdir()
    client = LocalQ("client", store=tmp_path / ".localq", set_as_current=False)
    result = client.send_task(f"tasks.{kind}")
    try:
        with worker(
            "-A", "tasks", "worker", "-c", "1", cwd=tmp_path, LOCALQ_FAULT=f"limit.noted:{tmp_path}/fault"
        ) as one:
            wait_until((tmp_path / "fault" / "limit.noted").exists, what="the supervisor has noted why it kills")
            pids = {o.about["kind"]: o.about["pid"] for o in client.storage.owners()}
            pids = {"supervisor": one.pid, "steward": pids["worker"], "child": pids["child"]}
            os.kill(pids[victim], signal.SIGKILL)
            (tmp_path / "fault" / "go").touch()
            exc, state = end_of(result)
            assert ended_by(exc, state, TimeLimitExceeded, 0.5)
            assert is_gone(pids["child"])
        with worker("-A", "tasks", "worker", "-c", "1", cwd=tmp_path):
            assert client.send_task("tasks.add", (1, 2)).get(timeout=30) == 3
        assert type(end_of(result)[0]) is TimeLimitExceeded
    finally:
        client.close()


@pytest.mark.parametrize("kind", ["early", "reject"])
def test_a_supervisor_that_died_before_it_noted_anything_has_killed_for_nothing(tmp_path, kind):
    (tmp_path / "tasks.py").write_text(TASKS.replace("time_limit=0.5", "time_limit=2"))
    (tmp_path / "fault").mkdir()
    client = LocalQ("client", store=tmp_path / ".localq", set_as_current=False)
    result = client.send_task(f"tasks.{kind}")
    words = ("-A", "tasks", "worker", "-c", "1")
    try:
        with worker(*words, cwd=tmp_path, LOCALQ_FAULT=f"limit.stopped:{tmp_path}/fault") as one:
            wait_until((tmp_path / "fault" / "limit.stopped").exists)
            os.kill(one.pid, signal.SIGKILL)
            if kind == "early":
                assert type(end_of(result)[0]).__name__ == "WorkerLostError"
        if kind == "reject":
            with worker(*words, cwd=tmp_path):
                assert type(end_of(result)[0]) is TimeLimitExceeded  # of its second run
            assert client.storage.records([result.id])[result.id].state == "FAILURE"
    finally:
        client.close()


WAITS = """
import os, time
open("started", "w").close()
while not os.path.exists("go"):
    time.sleep(0.01)
"""


def test_ctrl_c_at_the_terminal_does_not_reach_what_a_task_has_started_and_the_task_ends_well(tmp_path):
    (tmp_path / "waits.py").write_text(WAITS)
    (tmp_path / "tasks.py").write_text(
        "import subprocess, sys\nfrom localq import LocalQ\napp = LocalQ('proj')\n"
        "@app.task\ndef starts():\n    return subprocess.run([sys.executable, 'waits.py']).returncode\n"
    )
    client = LocalQ("client", store=tmp_path / ".localq", set_as_current=False)
    with worker("-A", "tasks", "worker", "-c", "1", cwd=tmp_path) as running:
        result = client.send_task("tasks.starts")
        wait_until((tmp_path / "started").exists)
        os.killpg(running.pid, signal.SIGINT)
        running.saw("Warm shutdown")
        (tmp_path / "go").touch()
        assert running.ended() == 0
        assert result.get(timeout=30) == 0
    client.close()


def test_ctrl_z_stops_the_children_too_and_they_go_on_with_their_worker(tmp_path):
    (tmp_path / "tasks.py").write_text(TASKS)
    client = LocalQ("client", store=tmp_path / ".localq", set_as_current=False)
    with worker("-A", "tasks", "worker", "-c", "2", cwd=tmp_path) as running:
        assert client.send_task("tasks.add", (1, 2)).get(timeout=30) == 3
        children = [o.about["pid"] for o in client.storage.owners() if o.about["kind"] == "child"]
        os.killpg(running.pid, signal.SIGTSTP)
        wait_until(lambda: {state_of(pid) for pid in (running.pid, *children)} == {"T"})
        os.killpg(running.pid, signal.SIGCONT)
        assert client.send_task("tasks.add", (1, 3)).get(timeout=30) == 4
        wait_until(lambda: "T" not in {state_of(pid) for pid in children})
    client.close()


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
