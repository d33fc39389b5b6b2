"""The command line: options before or after the command, mistakes in one form, exit codes."""

from __future__ import annotations

import re

import click
import pytest
from commands import localq, python

from localq import __version__
from localq.cli.main import COMMANDS, LATER, cli
from localq.settings import SETTINGS
from localq.sources import environment

TASKS = """
from localq import LocalQ
app = LocalQ("proj")

@app.task
def add(x, y):
    return x + y
"""


@pytest.fixture
def here(tmp_path):
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def mistake(done, code, exit_code=2):
    """Check the form of a mistake: one sentence with a code, on standard error, no traceback."""
    assert done.returncode == exit_code, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert re.match(rf"error\[{code}\]: \S", lines[0]), done.stderr
    assert all(line.startswith(("  cause: ", "  hint: ")) for line in lines[1:]), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["worker", "--help"], ["report", "--help"], ["--version"]])
def test_help_is_on_standard_output_and_needs_no_app(tmp_path, words):
    done = localq(*words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "localq" in done.stdout


def test_the_version_is_the_librarys(tmp_path):
    assert __version__ in localq("--version", cwd=tmp_path).stdout


def test_help_starts_with_the_command_to_start_with(tmp_path):
    assert "localq -A tasks worker" in localq("--help", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    "words", [["-A", "tasks", "report"], ["report", "-A", "tasks"], ["--app=tasks", "report"], ["report"]]
)
def test_the_app_is_named_before_or_after_the_command_or_found(here, words):
    done = localq(*words, cwd=here)
    assert done.returncode == 0, done.stderr
    assert f"sqlite:///{here}/.localq" in done.stdout


@pytest.mark.parametrize(
    "words", [["-b", "other", "report"], ["report", "-b", "other"], ["report", "--store", "other"]]
)
def test_the_store_is_named_before_or_after_and_is_relative_to_the_current_directory(here, words):
    done = localq("-A", "tasks", *words, cwd=here)
    assert f"sqlite:///{here}/other" in done.stdout


def test_an_option_after_the_command_wins(here):
    assert "/second" in localq("-A", "tasks", "-b", "first", "report", "-b", "second", cwd=here).stdout


def test_a_store_named_in_code_beats_the_variable_on_the_command_line_too(here):
    """Else the script would send to one store and the worker read another."""
    (here / "tasks.py").write_text(TASKS.replace('LocalQ("proj")', 'LocalQ("proj", store="told")'))
    script = python("-c", "import tasks; print(tasks.app.backend.url)", cwd=here, LOCALQ_STORE="variable")
    done = localq("-A", "tasks", "report", cwd=here, LOCALQ_STORE="variable")
    assert f"{here}/told" in script
    assert f"{here}/told" in done.stdout


def test_the_working_directory_can_be_chosen(here, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = localq("--workdir", str(here), "-A", "tasks", "report", cwd=elsewhere)
    assert f"{here}/.localq" in done.stdout, done.stderr


def test_a_misspelt_command_names_the_nearest(tmp_path):
    assert "did you mean 'worker'" in mistake(localq("wroker", cwd=tmp_path), "LQ100")


def test_a_command_of_celerys_that_is_not_here_is_told_as_such(tmp_path):
    text = mistake(localq("purge", cwd=tmp_path), "LQ100")
    assert "command 'purge' is Celery's, and not built in this version of localq" in text
    assert set(LATER).isdisjoint(COMMANDS)


def test_no_flags_variable_passes_for_a_misspelt_setting(monkeypatch):
    for variable in variables(cli, "LOCALQ"):
        monkeypatch.setenv(variable, "x")
        if variable.removeprefix("LOCALQ_").lower() not in SETTINGS:
            assert environment() == {}, variable
        monkeypatch.delenv(variable)


def variables(command, prefix):
    """Name the variables that the options of a command, and of those in it, are read from."""
    found = [f"{prefix}_{option.name}".upper() for option in command.params if isinstance(option, click.Option)]
    context = click.Context(command)
    for name in command.list_commands(context) if isinstance(command, click.Group) else ():
        found += variables(command.get_command(context, name), f"{prefix}_{name}")
    return found


def test_a_misspelt_option_names_the_nearest(here):
    text = mistake(localq("-A", "tasks", "worker", "--concurency", "3", cwd=here), "LQ101")
    assert "--concurrency" in text
    assert "localq worker --help" in text


@pytest.mark.parametrize("words", [["-c", "0"], ["-c", "many"], ["--time-limit=1", "--soft-time-limit=2"]])
def test_a_senseless_number_is_a_usage_error(here, words):
    mistake(localq("-A", "tasks", "worker", *words, cwd=here), "LQ101")


def test_a_misspelt_log_level_names_the_nearest(here):
    assert "did you mean 'WARNING'" in mistake(localq("-A", "tasks", "worker", "-l", "warnin", cwd=here), "LQ102")


def test_a_misspelt_pool_names_the_nearest(here):
    assert "did you mean 'prefork'" in mistake(localq("-A", "tasks", "worker", "-P", "prefrok", cwd=here), "LQ103")
    assert "pool 'gevent' is not built yet" in mistake(
        localq("-A", "tasks", "worker", "-P", "gevent", cwd=here), "LQ103"
    )


def test_a_misspelt_variable_is_told_once(here):
    text = mistake(localq("-A", "tasks", "report", cwd=here, LOCALQ_WORKER_CONCURENCY="3"), "LQ010")
    assert text.count("LOCALQ_WORKER_CONCURENCY sets nothing; did you mean 'LOCALQ_WORKER_CONCURRENCY'?") == 1


def test_a_missing_app_is_a_mistake_with_a_hint(tmp_path):
    assert "hint: " in mistake(localq("worker", cwd=tmp_path), "LQ001")


def test_a_missing_module_is_a_mistake(here):
    assert "did you mean 'tasks'" in mistake(localq("-A", "taks", "worker", cwd=here), "LQ003")


def test_an_error_of_the_users_module_shows_its_own_line_and_no_traceback(here):
    (here / "broken.py").write_text("x = 1\ny = x / 0\n")
    text = mistake(localq("-A", "broken", "worker", cwd=here), "LQ005")
    assert "ZeroDivisionError" in text
    assert f"{here}/broken.py:2: y = x / 0" in text


def test_debug_shows_the_traceback(here):
    (here / "broken.py").write_text("x = 1 / 0\n")
    done = localq("--debug", "-A", "broken", "worker", cwd=here)
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_a_misspelt_setting_is_a_mistake_that_names_the_nearest(here):
    (here / "tasks.py").write_text("from localq import LocalQ\napp = LocalQ('x', worker_concurency=3)\n")
    assert "did you mean 'worker_concurrency'" in mistake(localq("-A", "tasks", "worker", cwd=here), "LQ010")


def test_a_foreign_broker_on_the_command_line_is_a_mistake(here):
    assert "no broker" in mistake(localq("-A", "tasks", "-b", "redis://localhost", "worker", cwd=here), "LQ010")


def test_a_memory_store_cannot_be_shared_by_processes(here):
    assert "-P solo" in mistake(localq("-A", "tasks", "-b", "memory:", "worker", cwd=here), "LQ010")


def test_a_store_that_cannot_be_used_is_a_mistake_with_its_own_exit_code(here):
    (here / "full").mkdir(mode=0o700)
    (here / "full" / "thesis.tex").write_text("years of work")
    done = localq("-A", "tasks", "-b", "full", "worker", cwd=here)
    assert "holds no store" in mistake(done, "LQ020", exit_code=74)


# -- status ----------------------------------------------------------------------------------------


def test_results_of_eager_tasks_are_no_queues(here):
    run = "app.conf.task_store_eager_result = True; print([add.apply((i, 2)).get() for i in range(3)])"
    python("-c", f"from tasks import *; {run}", cwd=here)
    done = localq("-A", "tasks", "status", cwd=here)
    assert done.stdout.splitlines()[2:] == ["3 results of tasks that no worker ran: eagerly, or written by hand"]
    report = localq("-A", "tasks", "report", cwd=here)
    assert "3 result(s) of tasks that no worker ran" in report.stdout
    python("-c", "import tasks; tasks.add.delay(1, 2)", cwd=here)
    done = localq("-A", "tasks", "status", cwd=here)
    assert "celery" in done.stdout
    assert "@eager" not in done.stdout + report.stdout


# -- report ----------------------------------------------------------------------------------------


def test_a_report_makes_no_store(here):
    done = localq("-A", "tasks", "report", cwd=here)
    assert "nothing has been sent yet" in done.stdout
    assert not (here / ".localq").exists()


def test_a_report_tells_what_is_in_the_store_and_no_arguments(here):
    python("-c", "import tasks; tasks.add.delay('top', 'secret')", cwd=here)
    done = localq("-A", "tasks", "report", cwd=here)
    assert "queue celery: 1 ready" in done.stdout
    assert "0 live worker(s)" in done.stdout
    assert "secret" not in done.stdout
    assert __version__ in done.stdout
