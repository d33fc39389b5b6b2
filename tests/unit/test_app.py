"""The app: what ties tasks, settings and a store together."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings

import pytest
from forking import ended, forked

from localq import AsyncResult, LocalQ, current_app, shared_task
from localq.context import apps
from localq.exceptions import (
    AlwaysEagerIgnored,
    DuplicateTaskId,
    DuplicateTaskNameWarning,
    ImproperlyConfigured,
    NotRegistered,
    StoreReadOnly,
    TimeoutError,
)
from localq.testing.clock import FakeClock


@pytest.fixture
def app():
    made = LocalQ("proj", store="memory:")
    yield made
    made.close()


# -- Making one ------------------------------------------------------------------------------------


def test_every_keyword_of_celerys_is_taken():
    app = LocalQ(
        "proj", broker="memory://", backend=None, include=["json"], loader=None, amqp=None, events=None, log=None,
        control=None, tasks=None, config_source=None, task_cls=None, set_as_current=False, autofinalize=True,
        namespace=None, strict_typing=True, changes={"timezone": "UTC"}, task_default_queue="q",
    )  # fmt: skip
    assert app.main == "proj"
    assert tuple(app.conf.include) == ("json",)
    assert (app.conf.timezone, app.conf.task_default_queue) == ("UTC", "q")
    assert app.backend.location.scheme == "memory"


def test_a_misspelt_setting_is_an_error_at_once():
    with pytest.raises(ImproperlyConfigured, match="did you mean 'task_default_queue'"):
        LocalQ("proj", task_defaul_queue="q", set_as_current=False)


def test_durability_is_the_keywords_or_the_environments(monkeypatch):
    assert LocalQ("a", durability="full", set_as_current=False).conf.store_durability == "full"
    monkeypatch.setenv("LOCALQ_DURABILITY", "full")
    assert LocalQ("a", set_as_current=False).conf.store_durability == "full"
    assert LocalQ("a", durability="standard", set_as_current=False).conf.store_durability == "standard"
    with pytest.raises(ImproperlyConfigured):
        LocalQ("a", durability="off", set_as_current=False)


def test_on_init_is_called_once_at_the_end():
    seen = []

    class Mine(LocalQ):
        def on_init(self):
            seen.append(sorted(self.tasks))

    Mine("proj", set_as_current=False)
    assert len(seen) == 1
    assert "celery.ping" in seen[0]


def test_the_newest_app_is_current_unless_it_does_not_want_to_be(app):
    assert current_app() is app
    LocalQ("quiet", store="memory:", set_as_current=False)
    assert current_app() is app
    newer = LocalQ("newer", store="memory:")
    assert current_app() is newer


def test_an_app_can_be_current_for_one_thread_only(app):
    other = LocalQ("other", store="memory:", set_as_current=False)
    seen = []

    def elsewhere():
        other.set_current()
        seen.append(current_app())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [other]
    assert current_app() is app


def test_without_any_app_the_error_says_what_to_do():
    code = "import localq\nlocalq.current_app()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "make one with LocalQ('name')" in done.stderr


# -- Names of tasks --------------------------------------------------------------------------------


def test_a_task_is_named_by_its_module_and_function(app):
    @app.task
    def add(): ...

    assert add.name == f"{__name__}.add"
    assert app.tasks[add.name] is add


@pytest.mark.row("F031")
def test_a_given_name_wins(app):
    assert app.task(name="short")(lambda: None).name == "short"


def test_names_may_be_made_in_a_way_of_ones_own():
    class Mine(LocalQ):
        def gen_task_name(self, name, module):
            return f"my.{name}"

    app = Mine("proj", store="memory:", set_as_current=False)

    @app.task
    def add(): ...

    assert add.name == "my.add"


@pytest.mark.parametrize(("main", "name"), [("proj", "proj.add"), (None, "__main__.add")])
def test_in_a_script_the_main_name_stands_for_the_module(main, name):
    app = LocalQ(main, store="memory:", set_as_current=False)

    def add(): ...

    add.__module__ = "__main__"
    assert app.task(add).name == name


def test_a_task_of_the_apps_own_file_answers_to_both_names(app):
    @app.task
    def both(): ...

    assert app.tasks[f"{__name__}.both"] is both
    assert app.tasks["proj.both"] is both
    assert "proj.both" not in list(app.tasks)


def test_an_unknown_name_is_not_registered(app):
    with pytest.raises(NotRegistered, match=r"'proj\.nope' is not registered"):
        app.tasks["proj.nope"]
    with pytest.raises(KeyError):
        app.tasks["proj.nope"]
    with pytest.raises(NotRegistered):
        app.tasks.unregister("proj.nope")


@pytest.mark.row("F031")
def test_a_second_task_of_the_same_name_warns_and_the_first_stays(app):
    first = app.task(name="same")(lambda: 1)
    with pytest.warns(DuplicateTaskNameWarning, match="'same'"):
        second = app.task(name="same")(lambda: 2)
    assert second is first
    assert app.tasks["same"]() == 1


def test_the_same_function_imported_twice_is_silent(app):
    source = compile("def add(): return 1", "a_file_of_the_test.py", "exec")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tasks = []
        for _ in range(2):
            scope = {"__name__": "a_module_of_the_test"}
            exec(source, scope)
            tasks.append(app.task(scope["add"]))
    assert tasks[0] is tasks[1]


# -- Shared tasks ----------------------------------------------------------------------------------


@pytest.fixture
def shared():
    """Forget the shared tasks of a test afterwards: they would be in every later app."""
    before = list(apps.shared)
    yield
    apps.shared[:] = before


def test_a_shared_task_is_in_every_app_before_and_after(shared):
    before = LocalQ("before", store="memory:")

    @shared_task
    def shared_sum(x, y):
        return x + y

    @shared_task(name="shared.named", max_retries=9)
    def named(): ...

    after = LocalQ("after", store="memory:")
    for app in (before, after):
        assert app.tasks[f"{__name__}.shared_sum"].app is app
        assert app.tasks["shared.named"].max_retries == 9
    assert shared_sum(1, 2) == 3
    assert shared_sum.delay(1, 2).backend is after.backend
    before.set_default()
    assert shared_sum.delay(1, 2).backend is before.backend


def test_a_shared_task_can_be_part_of_a_workflow(app, shared):
    @shared_task
    def double(x):
        return 2 * x

    assert (double.s(3) | double.s()).apply().get() == 12


# -- Sending by name -------------------------------------------------------------------------------


def test_a_task_can_be_sent_by_a_name_that_is_not_known_here(app):
    result = app.send_task("elsewhere.add", [1], {"y": 2}, queue="other", countdown=None)
    assert isinstance(result, AsyncResult)
    assert (result.name, result.queue, result.state) == ("elsewhere.add", "other", "PENDING")
    assert result.exists()


def test_sending_a_known_task_by_name_uses_its_options(app):
    app.task(name="proj.mail", queue="mail", ignore_result=True)(lambda: None)
    result = app.send_task("proj.mail")
    assert (result.queue, result.ignored) == ("mail", True)


def test_sending_by_name_warns_where_tasks_run_at_once(app):
    app.conf.task_always_eager = True
    with pytest.warns(AlwaysEagerIgnored, match="proj.mail"):
        app.send_task("proj.mail")


def test_the_same_id_with_the_same_call_is_one_task_and_with_another_call_an_error(app):
    app.send_task("proj.add", (1,), task_id="mine")
    app.send_task("proj.add", (1,), task_id="mine")
    with pytest.raises(DuplicateTaskId, match="'mine'"):
        app.send_task("proj.add", (2,), task_id="mine")
    assert sum(count.number for count in app.storage.counts()) == 1


# -- Results ---------------------------------------------------------------------------------------


@pytest.mark.row("R7")
def test_an_unknown_id_is_pending_and_does_not_exist(app):
    result = app.AsyncResult("nobody")
    assert (result.state, result.ready(), result.exists(), result.result) == ("PENDING", False, False, None)


def test_a_result_needs_an_id(app):
    with pytest.raises(ValueError, match="id"):
        app.AsyncResult("")


def test_a_wait_that_takes_too_long_says_that_the_task_goes_on(app):
    result = app.send_task("proj.add")
    with pytest.raises(
        TimeoutError, match=f"{result.id} is PENDING, and no live worker reads queue 'celery'; start one"
    ):
        result.get(timeout=0)


def test_a_wait_ends_by_the_clock_that_no_change_of_the_wall_clock_moves(app):
    result = app.send_task("proj.add")
    with FakeClock() as clock:
        looks = []

        def look():
            looks.append(1)
            clock.advance(2.5)

        with pytest.raises(TimeoutError):
            result.get(timeout=10, on_interval=look)
    assert len(looks) == 4


def test_a_long_wait_without_a_worker_is_told_once_with_the_command_that_starts_one(app, caplog):
    result = app.send_task("proj.add", queue="lonely")
    with FakeClock() as clock, pytest.raises(TimeoutError):
        result.get(timeout=20, on_interval=lambda: clock.advance(4))
    (record,) = [record for record in caplog.records if "no live worker" in record.getMessage()]
    for part in ("proj.add", result.id, "'lonely'", "memory:", "localq -A test_app worker"):
        assert part in record.getMessage()


def test_a_forgotten_result_is_unknown(app):
    from working import work_off

    task = app.task(name="proj.one")(lambda: 1)
    result = task.delay()
    work_off(app)
    assert result.get(timeout=0) == 1
    result.forget()
    assert not result.exists()


def test_results_are_equal_by_id(app):
    one, again = app.AsyncResult("a"), app.AsyncResult("a")
    assert one == again == "a"
    assert len({one, again}) == 1
    assert str(one) == "a"


# -- Eager -----------------------------------------------------------------------------------------


@pytest.fixture
def eager(app):
    app.conf.task_always_eager = True
    return app


def test_an_eager_call_runs_at_once_and_writes_nothing(eager):
    task = eager.task(lambda x: [x])
    result = task.delay((1, 2))
    assert result.get() == [[1, 2]]  # encoded and decoded on the way, so a tuple is a list
    assert result.successful()
    assert eager.storage.counts() == []


def test_an_eager_failure_is_kept_or_raised_as_the_setting_says(eager):
    task = eager.task(lambda: 1 / 0)
    assert task.delay().state == "FAILURE"
    eager.conf.task_eager_propagates = True
    with pytest.raises(ZeroDivisionError):
        task.delay()
    assert task.apply(throw=False).failed()


def test_an_eager_argument_that_cannot_be_written_fails_as_a_sent_one_would(eager):
    from localq.exceptions import EncodeError

    with pytest.raises(EncodeError):
        eager.task(lambda x: None).delay(object())


# -- The store -------------------------------------------------------------------------------------


def test_a_closed_app_opens_its_store_again(tmp_path):
    with LocalQ("proj", store=tmp_path / "s", set_as_current=False) as app:
        id = app.send_task("x").id
    assert app.AsyncResult(id).exists()
    app.close()


def test_a_store_that_cannot_be_made_is_an_error_that_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    app = LocalQ("proj", store=tmp_path / "file" / "store", set_as_current=False)
    with pytest.raises(StoreReadOnly, match="choose another with store="):
        app.send_task("x")


def test_a_forked_child_sends_and_waits_as_itself(tmp_path):
    app = LocalQ("proj", store=tmp_path / "s", set_as_current=False)
    app.send_task("before")
    before = app.backend.oid

    def child():
        app.send_task("in.child")
        assert app.backend.oid != before

    assert ended(forked(child)) == 0
    app.send_task("after")
    assert sum(count.number for count in app.storage.counts()) == 3
    app.close()


def test_threads_share_an_app(tmp_path):
    app = LocalQ("proj", store=tmp_path / "s", set_as_current=False)
    faults = []

    def send():
        try:
            for _ in range(20):
                app.send_task("x")
        except BaseException as exc:
            faults.append(exc)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert sum(count.number for count in app.storage.counts()) == 160
    app.close()
