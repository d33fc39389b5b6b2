"""A task's own handlers, and classes of tasks, in each of the ways in which tasks run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from waiting import wait_until

from localq import Task
from localq.exceptions import Ignore, Reject
from localq.testing.worker import start_worker

LIMIT_S = 30


class Flaky(Exception): ...


class Told(Task):
    """Writes down what is called, in whatever process that is."""

    abstract = True
    notes = ""

    def note(self, *what):
        with open(self.notes, "a") as file:
            file.write(json.dumps(what) + "\n")

    def before_start(self, task_id, args, kwargs):
        self.note("before_start", task_id == self.request.id, args, kwargs)

    def on_success(self, retval, task_id, args, kwargs):
        self.note("on_success", retval, task_id == self.request.id, args, kwargs)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        self.note("on_failure", repr(exc), task_id == self.request.id, args, kwargs, repr(einfo.exception))

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        self.note("on_retry", repr(exc), task_id == self.request.id, args, kwargs, einfo.type.__name__)

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        seen = einfo and [repr(einfo.exception), einfo.type.__name__, "in work" in str(einfo)]
        self.note("after_return", status, repr(retval), task_id == self.request.id, args, kwargs, seen)


class Calls:
    """What was noted, in order, once there is that much of it."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, number: int) -> list:
        def read():
            return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

        wait_until(lambda: len(read()) >= number, what=f"{number} notes, of {read()}")
        return read()


@pytest.fixture
def calls(tmp_path):
    return Calls(tmp_path / "notes")


@pytest.fixture
def work(app, calls):
    @app.task(bind=True, base=Told, notes=str(calls.path), name="proj.work")
    def work(self, how, x=None):
        if how == "fail":
            raise Flaky("why")
        if how == "ignore":
            raise Ignore
        if how == "reject":
            raise Reject("no")
        if how == "retry" and not self.request.retries:
            raise self.retry(countdown=0, exc=Flaky("later"))
        if how == "retry without" and not self.request.retries:
            raise self.retry(countdown=0)
        return how

    return work


@pytest.mark.row("F143")
def test_before_a_success_and_after_it(work, running, calls):
    with running():
        assert work.delay("return", x=1).get(timeout=LIMIT_S) == "return"
    call = [True, ["return"], {"x": 1}]
    assert calls(3) == [
        ["before_start", *call], ["on_success", "return", *call], ["after_return", "SUCCESS", "'return'", *call, None]
    ]  # fmt: skip


@pytest.mark.row("F143", "X6")
def test_a_failure_and_what_it_was_is_told_twice(work, running, calls):
    with running():
        assert isinstance(work.delay("fail").get(timeout=LIMIT_S, propagate=False), Flaky)
    call = [True, ["fail"], {}]
    assert calls(3) == [
        ["before_start", *call], ["on_failure", "Flaky('why')", *call, "Flaky('why')"],
        ["after_return", "FAILURE", "Flaky('why')", *call, ["Flaky('why')", "Flaky", True]],
    ]  # fmt: skip


@pytest.mark.row("F143", "X7")
def test_a_retry_is_told_before_the_next_attempt_begins(work, running, calls):
    with running():
        work.delay("retry").get(timeout=LIMIT_S)
        assert len(calls(5)) == 5  # they come after the end that `get` waits for
        work.delay("retry without").get(timeout=LIMIT_S)
    assert [line[0] for line in calls(10)] == ["before_start", "on_retry", "before_start", "on_success",
                                               "after_return"] * 2  # fmt: skip
    assert calls(10)[1] == ["on_retry", "Flaky('later')", True, ["retry"], {}, "Retry"]
    assert calls(10)[6] == ["on_retry", "None", True, ["retry without"], {}, "Retry"]


@pytest.mark.row("F143", "F188", "X12")
@pytest.mark.parametrize("how", ["ignore", "reject"])
def test_what_is_ignored_or_rejected_is_told_to_no_handler(work, running, calls, how):
    with running():
        work.delay(how)
        work.delay("return").get(timeout=LIMIT_S)
        assert sorted(line[0] for line in calls(4)) == ["after_return", "before_start", "before_start", "on_success"]


@pytest.mark.row("F143")
def test_a_handler_that_fails_before_the_start_fails_the_task(app, running, calls):
    class Broken(Told):
        def before_start(self, *_):
            raise ValueError("not today")

    @app.task(base=Broken, notes=str(calls.path))
    def work():
        raise AssertionError("it must not run")

    with running():
        with pytest.raises(ValueError, match="not today"):
            work.delay().get(timeout=LIMIT_S)
    assert [line[0] for line in calls(2)] == ["on_failure", "after_return"]


@pytest.mark.row("F143")
@pytest.mark.parametrize("name", ["on_success", "after_return"])
def test_a_handler_that_fails_afterwards_changes_no_state_and_raises_only_where_the_task_was_called(app, running, name):
    def broken(self, *_):
        raise ValueError(f"{name} is broken")

    @app.task(base=type("Broken", (Task,), {"abstract": True, name: broken}))
    def work():
        return 1

    with running():
        if running.mode == "eager":
            with pytest.raises(ValueError, match=f"{name} is broken"):
                work.delay()
        else:
            assert work.delay().get(timeout=LIMIT_S) == 1


# -- Classes of tasks --------------------------------------------------------------------------------


@pytest.mark.row("F147")
def test_a_call_of_ones_own_is_around_each_attempt(app, running, calls):
    class Debug(Told):
        abstract = True

        def __call__(self, *args, **kwargs):
            self.note("in", list(args), self.request.called_directly, self.request.retries)
            try:
                return [self.run(*args, **kwargs)]
            except Exception as exc:
                self.note("caught", type(exc).__name__)
                raise

    @app.task(bind=True, base=Debug, notes=str(calls.path), autoretry_for=(Flaky,), retry_kwargs={"countdown": 0})
    def work(self, x):
        if not self.request.retries and not self.request.called_directly:
            raise Flaky
        return x

    with running():
        assert work.delay(3).get(timeout=LIMIT_S) == [3]
    assert [line for line in calls(6) if line[0] in ("in", "caught")] == [
        ["in", [3], False, 0], ["caught", "Retry"], ["in", [3], False, 1]
    ]  # fmt: skip
    assert work(4) == [4]


@pytest.mark.row("F147")
def test_calling_super_from_it_is_the_same_run(app, running):
    class Debug(Task):
        abstract = True

        def __call__(self, *args, **kwargs):
            return ["around", super().__call__(*args, **kwargs)]

    @app.task(bind=True, base=Debug)
    def work(self, x):
        return [x, self.request.called_directly, self.request.id]

    with running():
        result = work.delay(1)
        assert result.get(timeout=LIMIT_S) == ["around", [1, False, result.id]]


@pytest.mark.row("F148")
def test_a_class_is_made_once_for_each_task_and_process_and_keeps_what_it_has(app, running):
    made = []

    class Kept(Task):
        abstract = True
        _db = None

        def __init__(self):
            made.append(type(self).__name__)

        @property
        def db(self):
            if self._db is None:
                self._db = object()
            return self._db

    @app.task(base=Kept, bind=True)
    def first(self):
        return [id(self.db), len(made)]

    @app.task(base=Kept, bind=True)
    def second(self):
        return [id(self.db), len(made)]

    with running() if running.mode != "prefork" else start_worker(app, "prefork", concurrency=1):
        found = [task.delay().get(timeout=LIMIT_S) for task in (first, second) * 3]
    assert {number for _, number in found} == {2}
    assert len({id for id, _ in found}) == 2
    assert [name for name in app.tasks if "Kept" in name] == []


@pytest.mark.row("F145")
def test_a_task_says_how_far_it_is(app, running):
    @app.task(bind=True)
    def work(self):
        self.update_state(state="PROGRESS", meta={"done": 1}, total=3)
        mine = self.AsyncResult(self.request.id)
        return [mine.state, mine.info]

    with running():
        found = work.delay().get(timeout=LIMIT_S)
    if running.mode != "eager":  # where nobody can look before it has ended
        assert found == ["PROGRESS", {"done": 1, "total": 3}]


@pytest.mark.row("F143")
def test_handlers_and_what_they_send_see_how_the_task_ended(app, running, tmp_path):
    notes = tmp_path / "notes"

    @app.task(name="proj.look")
    def look(id):
        with notes.open("a") as out:
            out.write(f"sent sees {app.AsyncResult(id).state}\n")

    class Telling(Task):
        def on_success(self, retval, task_id, args, kwargs):
            self.told(task_id)

        def on_failure(self, exc, task_id, args, kwargs, einfo):
            self.told(task_id)

        def told(self, task_id):
            with notes.open("a") as out:
                out.write(f"handler sees {app.AsyncResult(task_id).state}\n")
            look.delay(task_id).forget()

    @app.task(name="proj.end", base=Telling)
    def end(fails):
        return 1 / (1 - fails)

    if running.mode == "eager":
        pytest.skip("eager results are kept only where task_store_eager_result says so, and after the handlers")
    with running():
        assert end.delay(0).get(timeout=30) == 1
        assert isinstance(end.delay(1).get(timeout=30, propagate=False), ZeroDivisionError)
        wait_until(lambda: len(notes.read_text().splitlines()) == 4)
    assert sorted(notes.read_text().splitlines()) == [
        "handler sees FAILURE", "handler sees SUCCESS", "sent sees FAILURE", "sent sees SUCCESS",
    ]  # fmt: skip


def test_a_handler_that_fails_is_named_with_its_task(app, running, caplog):
    class Clumsy(Task):
        def on_success(self, retval, task_id, args, kwargs):
            raise KeyError("clumsy")

    clumsy = app.task(name="proj.clumsy", base=Clumsy)(lambda: 1)
    if running.mode == "eager":
        with running(), pytest.raises(KeyError):
            clumsy.delay()
        return
    if running.mode == "solo":
        with running():
            result = clumsy.delay()
            assert result.get(timeout=30) == 1
            wait_until(lambda: "failed; its state stays" in caplog.text)
        assert f"Clumsy.on_success of task proj.clumsy[{result.id}] failed; its state stays" in caplog.text
