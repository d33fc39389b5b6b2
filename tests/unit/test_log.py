"""Loggers and log lines: configured by a worker only, and only if nobody else did."""

from __future__ import annotations

import logging
import subprocess
import sys
from contextlib import contextmanager

import pytest

from localq import LocalQ, log, signals
from localq.log import Formatter, TaskFormatter, configure, get_task_logger


@contextmanager
def bare_root():
    """The root logger as a fresh process has it; a fixture would be too early, pytest adds handlers after it."""
    root, ours = logging.getLogger(), logging.getLogger("localq.task")
    before = root.handlers, root.level, ours.handlers, ours.propagate
    root.handlers, ours.handlers, ours.propagate = [], [], True
    try:
        yield root
    finally:
        root.handlers, _, ours.handlers, ours.propagate = before
        root.setLevel(before[1])


def line(formatter, level=logging.INFO, text="hello"):
    return formatter.format(logging.LogRecord("x", level, __file__, 1, text, (), None))


def test_importing_and_enqueueing_configure_no_logging(tmp_path):
    code = (
        "import logging, localq\n"
        f"app = localq.LocalQ('x', store={str(tmp_path / 's')!r})\n"
        "app.send_task('x.y')\n"
        "assert not logging.getLogger().handlers\n"
        "known = logging.root.manager.loggerDict\n"
        "assert not any(getattr(known[name], 'handlers', ()) for name in known if 'localq' in name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_worker_writes_celerys_lines_to_standard_error(capsys):
    with bare_root():
        configure(logging.INFO, "[%(levelname)s/%(processName)s] %(message)s", "%(task_name)s", None, True)
        logging.getLogger("anything").info("hello")
        text = capsys.readouterr().err
        assert text == "[INFO/MainProcess] hello\n"


def test_a_users_own_handler_is_left_alone():
    with bare_root() as root:
        own = logging.NullHandler()
        root.addHandler(own)
        configure(logging.DEBUG, "%(message)s", "%(message)s", None, True)
        assert root.handlers == [own]
        assert logging.getLogger("localq.task").handlers == []


def test_hijacking_can_be_switched_off():
    with bare_root() as root:
        configure(logging.DEBUG, "%(message)s", "%(message)s", None, False)
        assert root.handlers == []


def test_configuring_twice_writes_each_line_once(capsys):
    with bare_root():
        for _ in range(2):
            configure(logging.INFO, "%(message)s", "%(message)s", None, True)
        logging.getLogger("anything").info("once")
        get_task_logger("my.tasks").info("task line")
        text = capsys.readouterr().err
        assert text.count("once") == 1
        assert text.count("task line") == 1


def test_a_task_logger_tells_which_task_writes(capsys):
    with bare_root():
        app = LocalQ("proj", store="memory:", set_as_current=False)
        configure(logging.INFO, "%(message)s", "%(task_name)s[%(task_id)s]: %(message)s", None, True)
        logger = get_task_logger("my.tasks")

        @app.task(name="proj.talk")
        def talk():
            logger.info("inside")

        id = talk.apply().id
        logger.info("outside")
        text = capsys.readouterr().err
        assert f"proj.talk[{id}]: inside\n" in text
        assert "???[???]: outside\n" in text


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


@pytest.mark.row("F028", "F333")
def test_receivers_may_add_to_what_a_worker_has_configured(capsys):
    told = []
    app = LocalQ("proj", store="memory:", set_as_current=False)

    @signals.after_setup_logger.connect
    def plain(logger, loglevel, format, **_):
        told.append((logger.name, loglevel, format))

    @signals.after_setup_task_logger.connect
    def task(logger, **_):
        told.append(logger.name)

    with bare_root():
        assert app.log.setup_logging_subsystem("info", format="%(message)s")
        app.log.get_default_logger().info("hello")
        assert capsys.readouterr().err == "hello\n"
    assert told == [("root", logging.INFO, "%(message)s"), "localq.task"]
    assert app.log.already_setup


@pytest.mark.row("F333")
def test_a_receiver_of_setup_logging_does_it_alone():
    told = []
    app = LocalQ("proj", store="memory:", set_as_current=False)

    @signals.setup_logging.connect
    def mine(loglevel, logfile, **_):
        told.append((loglevel, logfile))

    with bare_root() as root:
        assert not app.log.setup(logging.DEBUG, "x.log")
        assert root.handlers == []
    assert told == [(logging.DEBUG, "x.log")]


@pytest.mark.row("F028")
def test_lines_can_go_to_a_file(tmp_path, capsys):
    app = LocalQ("proj", store="memory:", set_as_current=False)
    with bare_root() as root:
        app.log.setup(logging.INFO, str(tmp_path / "log"), format="%(message)s")
        logging.getLogger("anything").info("hello")
        for handler in [*root.handlers, *logging.getLogger("localq.task").handlers]:
            handler.close()
    assert (tmp_path / "log").read_text() == "hello\n"
    assert capsys.readouterr().err == ""
