"""The app: what ties tasks, settings and a store together."""

from __future__ import annotations

import pickle
import threading
from datetime import UTC

import pytest
from commands import python
from forking import ended, forked

from localq import AsyncResult, LocalQ, Task, current_app
from localq.exceptions import (
    AlwaysEagerIgnored,
    DuplicateTaskId,
    ImproperlyConfigured,
    LocalqWarning,
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


@pytest.mark.row("F001")
def test_every_keyword_of_celerys_is_taken():
    app = LocalQ(
        "proj", broker="memory://", backend=None, include=["json"], loader=None, amqp=None, events=None, log=None,
        control=None, tasks=None, config_source=None, task_cls=None, set_as_current=False, autofinalize=True,
        fixups=None, namespace=None, strict_typing=True, changes={"timezone": "UTC"}, task_default_queue="q",
    )  # fmt: skip
    assert app.main == "proj"
    assert tuple(app.conf.include) == ("json",)
    assert (app.conf.timezone, app.conf.task_default_queue) == ("UTC", "q")
    assert app.backend.location.scheme == "memory"


@pytest.mark.row("F001", "X16")
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


@pytest.mark.row("F003")
def test_on_init_is_called_once_at_the_end():
    seen = []

    class Mine(LocalQ):
        def on_init(self):
            seen.append(sorted(self.tasks))

    Mine("proj", set_as_current=False)
    assert len(seen) == 1
    assert "celery.ping" in seen[0]


@pytest.mark.row("F001")
def test_settings_may_be_keywords_and_tasks_and_fixups_be_brought_along():
    first = LocalQ("first", store="memory:", set_as_current=False)
    task = first.task(name="proj.brought")(lambda: 1)
    fixed = []
    app = LocalQ("proj", store="memory:", tasks={"proj.brought": task}, fixups=[fixed.append], set_as_current=False)
    assert app.tasks["proj.brought"] is task
    assert task.app is app
    assert fixed == [app]


@pytest.mark.row("F001")
def test_a_loader_of_ones_own_has_no_effect_and_the_warning_says_what_has():
    with pytest.warns(LocalqWarning, match="config_from_object"):
        LocalQ("proj", loader="mine:Loader", set_as_current=False)
    LocalQ("proj", loader="app", set_as_current=False)


@pytest.mark.row("F001")
def test_without_strict_typing_calls_are_checked_only_where_they_run():
    task = LocalQ("proj", store="memory:", strict_typing=False).task(lambda x: x)
    assert task.delay().state == "PENDING"
    strict = LocalQ("proj", store="memory:").task(lambda x: x)
    with pytest.raises(TypeError):
        strict.delay()


NOTHING_TOUCHED = """
import sys
from localq import LocalQ
touched = []
sys.addaudithook(lambda event, args: touched.append((event, args)))
app = LocalQ("proj", broker="sqlite:///here", enable_utc=True, include=["json"])
@app.task
def add(x, y):
    return x + y
add.s(1, 2)
watched = ("open", "os.mkdir", "os.listdir", "os.scandir", "sqlite3.connect", "fcntl.", "socket.", "import", "mmap.")
print([each for each in touched if each[0].startswith(watched)])
"""


@pytest.mark.row("F002")
def test_making_an_app_and_its_tasks_touches_no_file_and_no_socket(tmp_path):
    assert python("-c", NOTHING_TOUCHED, cwd=tmp_path) == "[]\n"
    assert list(tmp_path.iterdir()) == []


# -- Becoming complete -------------------------------------------------------------------------------


def listen(app):
    """Return the names of the app's hooks in the order in which they are told, with the tasks that are there then."""
    told = []
    for name in ("on_configure", "on_after_configure", "on_after_finalize"):
        getattr(app, name).connect(lambda sender, signal, **_: told.append((signal.name, sender)), weak=False)
    return told


@pytest.mark.row("F008", "N34")
def test_an_app_is_finalized_once_when_its_tasks_are_asked_for(app):
    told = listen(app)
    app.task(name="proj.one")(lambda: 1)
    assert (told, app.finalized) == ([], False)
    assert "proj.one" in app.tasks
    assert told == [(f"app.{name}", app) for name in ("on_configure", "on_after_configure", "on_after_finalize")]
    assert app.finalized
    app.finalize()
    assert len(told) == 3


@pytest.mark.row("N34")
def test_on_configure_may_be_a_method_as_before_celery_4():
    class Mine(LocalQ):
        def on_configure(self):
            self.conf.task_default_queue = "mine"

    app = Mine("proj", store="memory:", set_as_current=False)
    app.finalize()
    assert app.conf.task_default_queue == "mine"


@pytest.mark.row("F007", "F008")
def test_an_app_that_may_not_finalize_itself_says_so_when_its_tasks_are_asked_for():
    app = LocalQ("proj", store="memory:", autofinalize=False, set_as_current=False)
    task = app.task(name="proj.one")(lambda: 1)
    with pytest.raises(RuntimeError, match="Contract breach: app not finalized"):
        app.tasks
    app.finalize()
    assert app.tasks["proj.one"] is task


@pytest.mark.row("F008")
def test_threads_that_ask_at_once_all_see_complete_tasks(app):
    told = listen(app)
    begin = threading.Barrier(8)
    seen = []

    def ask():
        begin.wait()
        seen.append("celery.ping" in app.tasks)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 8
    assert len(told) == 3


# -- What an app has ---------------------------------------------------------------------------------


class Part:
    def __init__(self, app):
        self.app = app


@pytest.mark.row("F001", "F028")
@pytest.mark.parametrize("given", [Part, f"{__name__}:Part"])
def test_parts_are_made_at_the_first_use_of_classes_that_may_be_given(given):
    app = LocalQ("proj", amqp=given, control=given, events=given, log=given, store="memory:", set_as_current=False)
    for name in ("amqp", "control", "events", "log"):
        assert name not in vars(app)
        part = getattr(app, name)
        assert isinstance(part, Part)
        assert part.app is app
        assert getattr(app, name) is part


@pytest.mark.row("F028")
def test_every_part_of_celerys_is_there(app):
    for name in ("log", "control", "events", "amqp", "loader", "backend", "pool"):
        assert getattr(app, name) is not None


@pytest.mark.row("F028")
def test_what_is_not_built_yet_says_so_when_it_is_used(app):
    with pytest.raises(AttributeError, match=r"app\.control\.ping: this version of localq has revoke, terminate and"):
        app.control.ping()
    with pytest.raises(AttributeError, match=r"app\.events\.Receiver"):
        app.events.Receiver
    with pytest.raises(NotImplementedError, match=r"app\.Beat"):
        app.Beat()


@pytest.mark.row("F014")
def test_handles_know_their_app_and_pickled_ones_find_the_current_one(app):
    other = LocalQ("other", store="memory:", set_as_current=False)
    one = app.AsyncResult("a", parent=app.AsyncResult("b"))
    group = app.GroupResult("g", [one])
    assert {one.app, group.app, app.ResultSet([one]).app} == {app}
    assert app.ResultSet([one]).results == [one]
    other.set_current()
    for each in (one, group):
        again = pickle.loads(pickle.dumps(each))
        assert again == each
        assert again.app is other
    assert pickle.loads(pickle.dumps(one)).parent == "b"
    eager = app.task(lambda: 1).apply()
    assert (eager.app, pickle.loads(pickle.dumps(eager)).get()) == (None, 1)


@pytest.mark.row("F014")
def test_an_app_makes_workers_of_its_own(app):
    worker = app.Worker(pool="solo", queues=["a", "b"], quiet=True)
    assert (worker.app, worker.queues) == (app, ("a", "b"))
    assert app.WorkController(pool="solo").queues == ("celery",)


@pytest.mark.row("F016", "N33")
def test_signatures_of_an_app_are_bound_to_it(app):
    LocalQ("newer", store="memory:")
    signature = app.signature("proj.add", (1,), countdown=5)
    assert (signature.app, signature.args, signature.options) == (app, (1,), {"countdown": 5})
    assert signature.delay(2).backend is app.backend


@pytest.mark.row("F019")
def test_the_time_is_told_in_the_apps_time_zone(app):
    with FakeClock() as clock:
        now = app.now()
        assert now.timestamp() == clock.now()
        assert (now.tzinfo, app.uses_utc_timezone()) == (UTC, True)
        app.conf.timezone = "Europe/Oslo"
        assert str(app.timezone) == str(app.now().tzinfo) == "Europe/Oslo"
        assert app.now() == now
        assert not app.uses_utc_timezone()
        app.conf.update(timezone=None, enable_utc=False)
        assert app.now() == now
        assert app.now().utcoffset() == now.astimezone().utcoffset()
        app.conf.timezone = "UTC"
        assert app.uses_utc_timezone()


@pytest.mark.row("F023")
def test_a_worker_is_started_only_by_words_for_one(app):
    with pytest.raises(ValueError, match="no 'worker' in"):
        app.worker_main(["report"])
    assert app.worker_main(["worker", "--help"]) == 0
    assert app.start(["wroker"]) == 2


@pytest.mark.row("F023", "F024")
def test_a_command_that_is_started_by_an_app_is_about_that_app(app, capsys):
    assert app.start(["report"]) == 0
    assert capsys.readouterr().out == app.bugreport() + "\n"


@pytest.mark.row("F029")
def test_an_app_can_be_pickled_and_is_not_current_where_it_is_read(tmp_path):
    app = LocalQ(
        "proj", store=tmp_path / "s", task_cls=f"{__name__}:Kind", log=Part, task_default_queue="q", autofinalize=False
    )
    newer = LocalQ("newer", store="memory:")
    again = pickle.loads(pickle.dumps(app))
    assert current_app() is newer
    assert (again.main, again.conf.task_default_queue, again.autofinalize) == ("proj", "q", False)
    assert again.backend.url == app.backend.url
    assert issubclass(again.Task, Kind)
    assert isinstance(again.log, Part)
    app.finalize()
    assert again.AsyncResult(app.send_task("x.y").id).exists()
    app.close()
    again.close()


class Kind(Task):
    """A base class for tasks."""


# -- Sending by name -------------------------------------------------------------------------------


@pytest.mark.row("F015", "N33")
def test_a_task_can_be_sent_by_a_name_that_is_not_known_here(app):
    result = app.send_task("elsewhere.add", [1], {"y": 2}, queue="other", countdown=None)
    assert isinstance(result, AsyncResult)
    assert (result.name, result.queue, result.state) == ("elsewhere.add", "other", "PENDING")
    assert result.exists()


@pytest.mark.row("F015")
def test_sending_a_known_task_by_name_uses_its_options(app):
    app.task(name="proj.mail", queue="mail", ignore_result=True)(lambda: None)
    result = app.send_task("proj.mail")
    assert (result.queue, result.ignored) == ("mail", True)


@pytest.mark.row("F015")
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


@pytest.mark.row("F015")
def test_sending_by_name_takes_celerys_positions_and_a_class_for_the_handle(app):
    class Mine(AsyncResult):
        pass

    result = app.send_task("proj.x", (), {}, 60, None, "mine", result_cls=Mine)
    assert isinstance(result, Mine)
    assert result.id == "mine"
    assert app.storage.records(("mine",))["mine"].place == "waiting"


@pytest.mark.row("F015")
def test_what_is_linked_to_a_call_by_name_is_sent_with_it(app):
    result = app.send_task("proj.first", link=app.signature("proj.second"))
    places = sorted((count.place, count.number) for count in app.storage.counts())
    assert places == [("held", 1), ("ready", 1)]
    assert result.exists()


@pytest.mark.row("F015")
@pytest.mark.parametrize(("args", "kwargs"), [("ab", None), ((), [1]), (5, None)])
def test_arguments_of_a_call_by_name_must_be_a_list_and_a_mapping(app, args, kwargs):
    with pytest.raises(TypeError, match=r"proj\.x"):
        app.send_task("proj.x", args, kwargs)
    assert app.storage.counts() == []


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


@pytest.mark.row("F022")
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


@pytest.mark.row("N56")
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
