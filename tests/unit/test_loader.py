"""Where an app's tasks are looked for."""

from __future__ import annotations

import builtins
import importlib
import sys
import threading

import pytest

from localq import LocalQ
from localq.exceptions import LocalqWarning
from localq.signals import import_modules


@pytest.fixture
def app():
    made = LocalQ("proj", store="memory:")
    yield made
    made.close()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Packages to look in: shop has tasks, bare has none, broken's cannot be imported."""
    task = "from localq import current_app\n\n@current_app.task(name='{0}.{1}')\ndef {1}(): ...\n"
    files = {
        "shop/__init__.py": "",
        "shop/tasks.py": task.format("shop", "sell"),
        "shop/jobs.py": task.format("shop", "clean"),
        "shop/apps.py": "class ShopConfig: ...\n",
        "bare/__init__.py": task.format("bare", "own"),
        "broken/__init__.py": "",
        "broken/tasks.py": "import nothing_that_exists\n",
        "single.py": "",
    }
    for name, text in files.items():
        path = tmp_path / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield
    for name in list(sys.modules):
        if name.split(".")[0] in ("shop", "bare", "broken", "single"):
            del sys.modules[name]


@pytest.mark.row("F027")
def test_the_modules_are_imported_when_the_tasks_are_asked_for_and_not_before(app, packages):
    app.autodiscover_tasks(["shop", "bare"])
    assert "shop" not in sys.modules
    assert "shop.sell" in app.tasks
    assert app.loader.task_modules == {"shop.tasks"}


@pytest.mark.row("F027")
def test_the_modules_are_imported_when_a_worker_imports_its_own(app, packages):
    app.conf.include = ["single"]
    app.autodiscover_tasks(lambda: ["shop"], related_name="jobs")
    app.loader.import_default_modules()
    assert {"shop.jobs", "single"} <= sys.modules.keys()
    assert "shop.tasks" not in sys.modules


@pytest.mark.row("F027")
def test_discovery_can_be_forced_and_can_mean_the_packages_themselves(app, packages):
    app.autodiscover_tasks(["bare"], related_name=None, force=True)
    assert "bare.own" in app._tasks
    app.autodiscover_tasks("shop", force=True)
    assert "shop.sell" in app._tasks


@pytest.mark.row("F027")
def test_a_class_in_a_package_stands_for_the_package(app, packages):
    app.autodiscover_tasks(["shop.apps.ShopConfig"], force=True)
    assert "shop.sell" in app.tasks


@pytest.mark.row("F027")
@pytest.mark.parametrize("name", ["no_such_package", "shop.no_such_part", "shop.apps.NoSuchClass"])
def test_a_package_that_does_not_exist_is_an_error(app, packages, name):
    with pytest.raises(ModuleNotFoundError, match=r"no_such|NoSuch"):
        app.autodiscover_tasks([name], force=True)


@pytest.mark.row("F027")
def test_an_error_inside_a_task_module_is_raised_each_time_until_it_is_mended(app, packages, tmp_path):
    app.autodiscover_tasks(["broken"])
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="nothing_that_exists"):
            app.tasks
        assert not app.finalized
    sys.modules["nothing_that_exists"] = sys
    try:
        assert "celery.ping" in app.tasks
    finally:
        del sys.modules["nothing_that_exists"]


@pytest.mark.row("F027")
def test_a_module_may_ask_for_the_tasks_while_it_is_looked_for(app, packages, tmp_path):
    (tmp_path / "code" / "shop" / "tasks.py").write_text(
        "from localq import current_app\nseen = list(current_app.tasks)\n"
    )
    app.autodiscover_tasks(["shop"])
    assert "celery.ping" in app.tasks
    assert "celery.ping" in sys.modules["shop.tasks"].seen


@pytest.mark.row("F027")
def test_without_packages_it_asks_the_fixups_and_warns_if_they_know_none(app, packages):
    class Fixup:
        def __init__(self, app): ...

        def autodiscover_tasks(self):
            return ["shop"]

    fixed = LocalQ("fixed", store="memory:", fixups=[Fixup])
    fixed.autodiscover_tasks()
    assert "shop.sell" in fixed.tasks
    with pytest.warns(LocalqWarning, match="name the packages"):
        app.autodiscover_tasks()


@pytest.mark.row("F027", "F332")
def test_receivers_of_import_modules_are_asked_first_and_their_errors_are_raised(app):
    @import_modules.connect(sender=app)
    def fail(sender, **_):
        raise ImportError("a receiver's own")

    with pytest.raises(ImportError, match="a receiver's own"):
        app.loader.import_default_modules()


@pytest.mark.row("F027")
def test_a_module_that_is_imported_elsewhere_and_looks_at_the_tasks_stops_nobody(tmp_path, monkeypatch):
    """One thread imports it, and another finds it by discovery: neither waits for the other for ever."""
    (tmp_path / "looking").mkdir()
    (tmp_path / "looking" / "__init__.py").write_text("")
    (tmp_path / "looking" / "tasks.py").write_text(
        "import builtins\nbuiltins.localq_met.wait(30)\nbuiltins.localq_looking.tasks\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    app = LocalQ("looking", store="memory:", set_as_current=False)
    app.autodiscover_tasks(["looking"])
    met = threading.Event()
    monkeypatch.setattr(builtins, "localq_looking", app, raising=False)
    monkeypatch.setattr(builtins, "localq_met", met, raising=False)
    threads = [
        threading.Thread(target=importlib.import_module, args=("looking.tasks",), daemon=True),
        threading.Thread(target=lambda: app.tasks, daemon=True),
    ]
    for thread in threads:
        thread.start()
    met.set()
    for thread in threads:
        thread.join(30)
    assert [thread.is_alive() for thread in threads] == [False, False]
    assert app.finalized
    sys.modules.pop("looking.tasks", None)
