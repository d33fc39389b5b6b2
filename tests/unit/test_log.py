"""Loggers and log lines: configured by a worker only, and only if nobody else did."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest

from localq import LocalQ, log
from localq.log import Formatter, TaskFormatter, configure, get_task_logger


@pytest.fixture
def bare_root(monkeypatch):
    """The root logger as a fresh process has it, and loggers of ours without handlers."""
    root, ours = logging.getLogger(), logging.getLogger("localq.task")
    level = root.level
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(ours, "handlers", [])
    monkeypatch.setattr(ours, "propagate", True)
    yield root
    root.setLevel(level)


@pytest.fixture
def stderr(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(sys, "stderr", text)
    return text


def line(formatter, level=logging.INFO, text="hello"):
    return formatter.format(logging.LogRecord("x", level, __file__, 1, text, (), None))


def test_importing_and_enqueueing_configure_no_logging(tmp_path):
    code = (
        "import logging, localq\n"
        f"app = localq.LocalQ('x', store={str(tmp_path / 's')!r})\n"
        "app.send_task('x.y')\n"
        "assert not logging.getLogger().handlers\n"
        "assert not any(getattr(l, 'handlers', ()) for n, l in logging.root.manager.loggerDict.items() if 'localq' in n)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_worker_writes_celerys_lines_to_standard_error(bare_root, stderr):
    configure(logging.INFO, "[%(levelname)s/%(processName)s] %(message)s", "%(task_name)s", None, True)
    logging.getLogger("anything").info("hello")
    assert stderr.getvalue() == "[INFO/MainProcess] hello\n"


def test_a_users_own_handler_is_left_alone(bare_root, stderr):
    own = logging.NullHandler()
    bare_root.addHandler(own)
    configure(logging.DEBUG, "%(message)s", "%(message)s", None, True)
    assert bare_root.handlers == [own]
    assert logging.getLogger("localq.task").handlers == []


def test_hijacking_can_be_switched_off(bare_root, stderr):
    configure(logging.DEBUG, "%(message)s", "%(message)s", None, False)
    assert bare_root.handlers == []


def test_configuring_twice_writes_each_line_once(bare_root, stderr):
    for _ in range(2):
        configure(logging.INFO, "%(message)s", "%(message)s", None, True)
    logging.getLogger("anything").info("once")
    get_task_logger("my.tasks").info("task line")
    assert stderr.getvalue().count("once") == 1
    assert stderr.getvalue().count("task line") == 1


def test_a_task_logger_tells_which_task_writes(bare_root, stderr):
    app = LocalQ("proj", store="memory:", set_as_current=False)
    configure(logging.INFO, "%(message)s", "%(task_name)s[%(task_id)s]: %(message)s", None, True)
    logger = get_task_logger("my.tasks")

    @app.task(name="proj.talk")
    def talk():
        logger.info("inside")

    id = talk.apply().id
    logger.info("outside")
    assert f"proj.talk[{id}]: inside\n" in stderr.getvalue()
    assert "???[???]: outside\n" in stderr.getvalue()


def test_a_task_logger_below_another_keeps_its_parent():
    parent = get_task_logger("family.of.the.test")
    assert get_task_logger("family.of.the.test.child").parent is parent


def test_a_process_has_a_name_of_its_own_in_every_line(monkeypatch):
    monkeypatch.setattr(log, "process_name", "ForkPoolWorker-3")
    assert line(Formatter("%(processName)s %(message)s")) == "ForkPoolWorker-3 hello"


def test_colour_is_for_terminals_and_never_changes_the_text():
    coloured = line(Formatter("%(message)s", use_colour=True), logging.ERROR)
    assert coloured != "hello"
    assert "hello" in coloured
    assert line(Formatter("%(message)s"), logging.ERROR) == "hello"


def test_a_line_of_no_task_is_formatted_too():
    assert line(TaskFormatter("%(task_name)s[%(task_id)s]: %(message)s")) == "???[???]: hello"
