"""Loggers and log lines, in Celery's formats and words.

Importing this configures nothing. Only a worker's own processes configure logging, and only if the
user's code has not.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from localq import signals
from localq.context import running

#: What logs are written by when the process has a name of its own (`ForkPoolWorker-1`).
process_name: str | None = None

_COLOURS = {"DEBUG": "\033[34m", "WARNING": "\033[33m", "ERROR": "\033[31m", "CRITICAL": "\033[35m"}


def get_logger(name: str) -> logging.Logger:
    """Return a logger."""
    return logging.getLogger(name)


def get_task_logger(name: str) -> logging.Logger:
    """Return a logger whose lines tell the task that wrote them (`task_name`, `task_id`)."""
    logger = logging.getLogger(name)
    if logger.parent is logging.root and name != "localq.task":
        logger.parent = logging.getLogger("localq.task")
    return logger


class Formatter(logging.Formatter):
    """Formats a worker's lines: with the process's name, in colour on a terminal."""

    def __init__(self, text: str, use_colour: bool = False) -> None:
        super().__init__(text)
        self._use_colour = use_colour

    def format(self, record: logging.LogRecord) -> str:
        if process_name is not None:
            record.processName = process_name
        line = super().format(record)
        colour = _COLOURS.get(record.levelname) if self._use_colour else None
        return f"{colour}{line}\033[0m" if colour else line


class TaskFormatter(Formatter):
    """Adds the running task's name and id to each line."""

    def format(self, record: logging.LogRecord) -> str:
        frame = running.get()
        known: dict[str, Any] = record.__dict__
        known.setdefault("task_name", frame.task.name if frame else "???")
        known.setdefault("task_id", frame.request.id if frame else "???")
        return super().format(record)


class Logging:
    """Configures logging for a worker of one app; `app.log`."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.already_setup = False

    def setup(self, loglevel: int | str = logging.WARNING, logfile: str | None = None, **more: Any) -> bool:
        """Configure logging; see `setup_logging_subsystem`."""
        return self.setup_logging_subsystem(loglevel, logfile, **more)

    def setup_logging_subsystem(
        self,
        loglevel: int | str = logging.WARNING,
        logfile: str | None = None,
        format: str = "",
        colorize: bool | None = None,
    ) -> bool:
        """Configure logging, unless a receiver of `setup_logging` does or the root logger has a handler.

        Receivers of `after_setup_logger` and `after_setup_task_logger` may add to it.

        Args:
            loglevel: a name or number of the logging module.
            logfile: where to write; None is standard error.
            format: of the lines; the setting `worker_log_format` if empty.
            colorize: None: the setting `worker_log_color`.

        Returns:
            Whether this did it, and not a receiver of `setup_logging`.
        """
        conf = self.app.conf
        level = logging.getLevelNamesMapping()[loglevel.upper()] if isinstance(loglevel, str) else loglevel
        text, task_text = format or conf.worker_log_format, format or conf.worker_task_log_format
        colour = conf.worker_log_color if colorize is None else colorize
        facts = {"loglevel": level, "logfile": logfile, "colorize": colour}
        self.already_setup = True
        if signals.setup_logging.receivers:
            signals.setup_logging.send(None, format=text, **facts)
            return False
        configure(level, text, task_text, colour, conf.worker_hijack_root_logger, logfile)
        signals.after_setup_logger.send(None, logger=logging.getLogger(), format=text, **facts)
        tasks = logging.getLogger("localq.task")
        signals.after_setup_task_logger.send(None, logger=tasks, format=task_text, **facts)
        return True

    def get_default_logger(self, name: str = "localq", **_: Any) -> logging.Logger:
        """Return a logger; localq's own if no name is given."""
        return get_logger(name)


def configure(
    level: int, text: str, task_text: str, colour: bool | None, hijack: bool, logfile: str | None = None
) -> None:
    """Have the root logger write to standard error or a file, unless the user's code gave it a handler.

    Without `hijack` only localq's own loggers write there.
    """
    root = logging.getLogger() if hijack else logging.getLogger("localq")
    if logging.getLogger().handlers:
        return
    use_colour = (sys.stderr.isatty() and not logfile) if colour is None else colour
    root.addHandler(_handler(Formatter(text, use_colour), logfile))
    root.setLevel(level)
    tasks = logging.getLogger("localq.task")
    if not tasks.handlers:
        tasks.addHandler(_handler(TaskFormatter(task_text, use_colour), logfile))
        tasks.propagate = False
    # The executor's own lines name the task themselves.
    logging.getLogger("localq.task.trace").parent = root


def _handler(formatter: logging.Formatter, logfile: str | None) -> logging.Handler:
    handler = logging.FileHandler(logfile, encoding="utf-8") if logfile else logging.StreamHandler()
    handler.setFormatter(formatter)
    return handler
