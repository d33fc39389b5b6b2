"""Which app a command is about: -A, a variable, pyproject.toml, or the obvious file."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from localq.cli.errors import Mistake
from localq.cli.finder import find_app

APP = "from localq import LocalQ\n{name} = LocalQ({main!r}, store='memory:', set_as_current=False)\n"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A current directory of the test's own, and modules that are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCALQ_APP", raising=False)
    monkeypatch.delenv("CELERY_APP", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    importlib.invalidate_caches()
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path, main=None, name="app", text=None):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if text is not None else APP.format(name=name, main=main or path.stem))
    importlib.invalidate_caches()


def mistake(spec):
    with pytest.raises(Mistake) as raised:
        find_app(spec)
    return str(raised.value)


@pytest.mark.parametrize("name", ["app", "localq", "celery", "anything"])
def test_a_module_is_searched_for_its_app(name):
    write("one_module.py", name=name, main="found")
    assert find_app("one_module").main == "found"


def test_the_usual_name_wins_over_another_app_of_the_module():
    write("one_module.py", text=APP.format(name="other", main="other") + APP.format(name="app", main="app"))
    assert find_app("one_module").main == "app"


def test_an_attribute_is_named_after_a_colon():
    write("one_module.py", text=APP.format(name="app", main="app") + APP.format(name="other", main="other"))
    assert find_app("one_module:other").main == "other"


def test_an_attribute_may_be_a_path():
    write("one_module.py", text=APP.format(name="inner", main="deep") + "class Box: app = inner\n")
    assert find_app("one_module:Box.app").main == "deep"


@pytest.mark.parametrize("submodule", ["localq", "tasks", "celery", "app"])
def test_a_package_is_searched_in_its_usual_places(submodule):
    write("one_package/__init__.py", text="")
    write(f"one_package/{submodule}.py", main="inside")
    assert find_app("one_package").main == "inside"


def test_a_package_may_make_the_app_itself():
    write("one_package/__init__.py", main="itself")
    assert find_app("one_package").main == "itself"


def test_a_dotted_module_is_found():
    write("one_package/__init__.py", text="")
    write("one_package/deep.py", main="deep")
    assert find_app("one_package.deep").main == "deep"


@pytest.mark.parametrize("spec", ["sub/jobs_file.py", "./sub/jobs_file.py", "sub/jobs_file.py:app"])
def test_a_file_is_named_by_its_path(spec):
    write("sub/jobs_file.py", main="by path")
    assert find_app(spec).main == "by path"


def test_a_file_can_import_its_neighbours():
    write("sub/neighbour_module.py", text="NAME = 'next door'\n")
    write("sub/jobs_file.py", text="import neighbour_module\n" + APP.format(name="app", main="x")
          + "app.main = neighbour_module.NAME\n")  # fmt: skip
    assert find_app("sub/jobs_file.py").main == "next door"


def test_a_file_that_is_loaded_twice_is_one_module():
    write("jobs_file.py")
    assert find_app("jobs_file.py") is find_app("jobs_file.py") is find_app("jobs_file")


# -- Without -A ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["LOCALQ_APP", "CELERY_APP"])
def test_a_variable_names_the_app(monkeypatch, variable):
    write("one_module.py", main="by variable")
    monkeypatch.setenv(variable, "one_module:app")
    assert find_app(None).main == "by variable"


def test_the_word_on_the_line_beats_the_variable_beats_the_file_beats_the_obvious(monkeypatch):
    for name in ("line", "variable", "project", "tasks"):
        write(f"{name}.py")
    assert find_app(None).main == "tasks"
    Path("pyproject.toml").write_text('[tool.localq]\napp = "project"\n')
    assert find_app(None).main == "project"
    monkeypatch.setenv("LOCALQ_APP", "variable")
    assert find_app(None).main == "variable"
    assert find_app("line").main == "line"


@pytest.mark.parametrize("name", ["tasks.py", "app.py", "celery.py"])
def test_the_one_obvious_file_is_taken(name):
    write(name, main="obvious")
    assert find_app(None).main == "obvious"


def test_two_obvious_files_are_a_question():
    write("tasks.py")
    write("app.py")
    text = mistake(None)
    assert text.startswith("error[LQ001]: which app?")
    assert "tasks.py and app.py" in text
    assert "-A tasks" in text


def test_nothing_at_all_says_what_to_do(here):
    text = mistake(None)
    assert text.startswith("error[LQ001]")
    assert str(here) in text
    assert "LOCALQ_APP" in text


# -- What goes wrong -------------------------------------------------------------------------------


def test_a_misspelt_module_names_the_nearest_here():
    write("shop_jobs.py")
    assert "did you mean 'shop_jobs'" in mistake("shop_jbos")


def test_a_misspelt_package_names_the_nearest_here():
    write("shop_package/__init__.py")
    assert "did you mean 'shop_package'" in mistake("shop_pakage")


def test_a_missing_file_is_said_to_be_missing():
    assert "there is no file nowhere.py" in mistake("nowhere.py")


def test_a_missing_attribute_names_the_apps_that_are_there():
    write("one_module.py", name="right")
    text = mistake("one_module:wrong")
    assert text.startswith("error[LQ004]: cannot load app 'one_module:wrong'")
    assert "localq -A one_module:right worker" in text


def test_an_attribute_that_is_no_app_says_what_it_is():
    write("one_module.py", text="app = 3\n")
    assert "app is a int, not an app" in mistake("one_module:app")


def test_a_module_without_an_app_says_how_to_make_one():
    write("one_module.py", text="")
    text = mistake("one_module")
    assert text.startswith("error[LQ003]")
    assert "app = LocalQ('name')" in text


def test_an_import_error_inside_the_users_module_is_not_taken_for_a_missing_module():
    write("one_module.py", text="import a_package_that_nobody_has\n")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has"):
        find_app("one_module")


def test_a_broken_project_file_is_named():
    Path("pyproject.toml").write_text("[tool.localq\n")
    text = mistake(None)
    assert text.startswith("error[LQ002]")
    assert "pyproject.toml" in text
