"""Loggers and log lines, in Celery's formats and words.

Importing this configures nothing. Only a worker's own processes configure logging, and only if the
user's code has not.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

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


def configure(level: int, text: str, task_text: str, colour: bool | None, hijack: bool) -> None:
    """Have the root logger write to standard error, unless the user's code gave it a handler.

    Without `hijack` only localq's own loggers write there.
    """
    root = logging.getLogger() if hijack else logging.getLogger("localq")
    if logging.getLogger().handlers:
        return
    use_colour = sys.stderr.isatty() if colour is None else colour
    root.addHandler(_handler(Formatter(text, use_colour)))
    root.setLevel(level)
    tasks = logging.getLogger("localq.task")
    if not tasks.handlers:
        tasks.addHandler(_handler(TaskFormatter(task_text, use_colour)))
        tasks.propagate = False
    # The executor's own lines name the task themselves.
    logging.getLogger("localq.task.trace").parent = root


def _handler(formatter: logging.Formatter) -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    return handler
