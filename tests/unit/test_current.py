"""Which app is current, and which task: for threads, coroutines, processes and whole programs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest
from forking import ended, forked

import localq
from localq import LocalQ, app_or_default, current_app, current_task
from localq.context import apps
from localq.signals import Signal
from localq.testing.worker import start_worker


@pytest.fixture
def app():
    made = LocalQ("proj", store="memory:")
    yield made
    made.close()


@pytest.fixture
def choice(monkeypatch):
    """Forget afterwards which app a test chose as the default."""
    monkeypatch.setattr(apps, "default", apps.default)
    monkeypatch.setattr(apps, "is_chosen", apps.is_chosen)


def elsewhere(act):
    """Return what `act` returns in a thread of its own."""
    found = []
    thread = threading.Thread(target=lambda: found.append(act()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.row("F009")
def test_the_newest_app_is_current_unless_it_does_not_want_to_be(app):
    assert current_app() is app
    LocalQ("quiet", store="memory:", set_as_current=False)
    assert current_app() is app
    newer = LocalQ("newer", store="memory:")
    assert current_app() is newer


@pytest.mark.row("F009")
def test_an_app_can_be_current_for_one_thread_only(app):
    other = LocalQ("other", store="memory:", set_as_current=False)
    seen = []

    def in_a_thread():
        other.set_current()
        seen.append(current_app())

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert seen == [other]
    assert current_app() is app


@pytest.mark.row("R25")
def test_without_any_app_the_error_says_what_to_do():
    code = "import localq\nlocalq.current_app()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "make one with LocalQ('name')" in done.stderr


@pytest.mark.row("F009")
def test_a_thread_that_chose_no_app_has_the_default_one(app, choice):
    assert elsewhere(current_app) is app
    app.set_default()
    newer = LocalQ("newer", store="memory:")
    assert current_app() is newer
    assert elsewhere(current_app) is app
    assert elsewhere(newer.set_current) is None
    assert elsewhere(current_app) is app


@pytest.mark.row("F009")
def test_a_new_app_is_current_even_where_another_was_chosen(app):
    app.set_current()
    newer = LocalQ("newer", store="memory:")
    assert current_app() is newer


@pytest.mark.row("F009")
def test_coroutines_each_have_their_own_current_app(app):
    other = LocalQ("other", store="memory:", set_as_current=False)

    async def choose(mine):
        mine.set_current()
        await asyncio.sleep(0)
        return current_app()

    async def both():
        return await asyncio.gather(choose(app), choose(other))

    assert asyncio.run(both()) == [app, other]


@pytest.mark.row("F009")
def test_an_app_or_the_current_one(app):
    other = LocalQ("other", store="memory:", set_as_current=False)
    assert app_or_default() is app
    assert app_or_default(other) is other


@pytest.mark.row("F009", "N43")
def test_the_current_app_is_an_object_to_be_used_as_it_is_or_called(app):
    assert current_app.main == "proj"
    assert current_app == app
    assert current_app
    assert repr(current_app) == repr(app)
    assert current_app.send_task("proj.x").backend is app.backend
    assert hash(current_app) == hash(app)
    current_app.main = "other"
    assert app.main == "other"


@pytest.mark.row("F020", "N43")
def test_the_current_task_is_the_innermost_and_the_workers_task_the_outermost_that_was_sent(app):
    @app.task(name="proj.inner")
    def inner():
        return [app.current_task.name, current_task.name, app.current_worker_task.name, current_task.request.id]

    @app.task(name="proj.outer")
    def outer():
        return [*inner(), app.current_task.name]

    assert outer.apply().get() == ["proj.inner", "proj.inner", "proj.outer", None, "proj.outer"]
    assert (app.current_task, app.current_worker_task, current_task()) == (None, None, None)
    assert not current_task
    with pytest.raises(AttributeError, match="'request': no task is running here"):
        current_task.request


@pytest.mark.row("F020")
def test_a_task_called_as_a_function_outside_of_a_worker_is_no_workers_task(app):
    seen = app.task(lambda: (app.current_task.name, app.current_worker_task))
    assert seen() == (seen.name, None)


@pytest.mark.row("F021")
def test_processes_and_threads_have_names_that_stay(app):
    assert app.oid == app.oid
    mine = app.thread_oid
    assert mine == app.thread_oid
    assert elsewhere(lambda: app.thread_oid) != mine
    before = app.oid

    def child():
        assert app.oid != before
        assert app.thread_oid != mine

    assert ended(forked(child)) == 0


@pytest.mark.row("N34", "N56")
def test_a_fork_is_told_in_the_child_of_each_app(app):
    told = []
    other = LocalQ("other", store="memory:", set_as_current=False)
    for each in (app, other):
        each.on_after_fork.connect(lambda sender, **_: told.append(sender), weak=False)

    def child():
        assert told == [app, other]

    assert ended(forked(child)) == 0
    assert told == []


@pytest.mark.row("N56")
def test_two_apps_of_one_process_and_one_store_run_their_own_tasks(tmp_path):
    one = LocalQ("one", store=tmp_path / "s")
    two = LocalQ("two", store=tmp_path / "s", task_default_queue="two")
    tasks = [each.task(name=f"{each.main}.who")(lambda: current_app().main) for each in (one, two)]
    with start_worker(one), start_worker(two):
        assert [task.delay().get(timeout=30) for task in tasks] == ["one", "two"]
    assert one.AsyncResult(tasks[1].delay().id).exists()
    one.close()
    two.close()


@pytest.mark.row("N43")
def test_what_celery_exports_is_exported():
    for name in ("current_app", "current_task", "uuid", "bugreport", "maybe_signature", "VERSION", "__version__",
                 "shared_task", "Task", "chain", "chord", "group", "signature", "subtask"):  # fmt: skip
        assert name in localq.__all__
        assert hasattr(localq, name)
    assert localq.__version__ == ".".join(map(str, localq.VERSION[:3]))
    assert localq.uuid() != localq.uuid()


@pytest.mark.row("N58")
def test_what_users_import_from_celerys_utils_is_in_localq_and_its_log():
    from localq.log import get_logger, get_task_logger

    assert get_logger("a.b").name == "a.b"
    assert get_task_logger("my.own.tasks").parent.name == "localq.task"
    assert len(localq.uuid()) == 36


@pytest.mark.row("N50")
def test_apps_tasks_and_signatures_take_types_in_brackets():
    assert LocalQ[int].__origin__ is LocalQ
    assert localq.Task[[int], int].__origin__ is localq.Task
    assert localq.Signature[int].__origin__ is localq.Signature


@pytest.mark.row("F332", "F333")
def test_celerys_signals_are_there_by_their_names():
    from localq import signals

    for name in (
        "celeryd_init celeryd_after_setup import_modules worker_init worker_before_create_process worker_process_init "
        "worker_process_shutdown worker_ready worker_shutting_down worker_shutdown heartbeat_sent setup_logging "
        "after_setup_logger after_setup_task_logger beat_init beat_embedded_init eventlet_pool_started "
        "eventlet_pool_preshutdown eventlet_pool_postshutdown eventlet_pool_apply user_preload_options"
    ).split():
        signal = getattr(signals, name)
        assert isinstance(signal, Signal)
        assert signal.name == name
