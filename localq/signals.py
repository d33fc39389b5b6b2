"""Celery's in-process signals: receivers that are called at named moments.

A receiver that fails is logged and never hurts the task or the caller. Does not cross processes,
and does not decide anything: it only tells.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("localq.signals")

Receiver = Callable[..., Any]


class Signal:
    """One named moment.

    `receivers` is empty as long as nobody is connected, so a sender on the hot path may test
    `if signal.receivers:` and pay nothing else.
    """

    def __init__(self, name: str, provides: tuple[str, ...] = ()) -> None:
        self.name, self.provides = name, provides
        self.receivers: list[tuple[Any, Any, Callable[[], Receiver | None]]] = []

    def connect(
        self,
        *args: Receiver,
        sender: Any = None,
        weak: bool = True,
        dispatch_uid: Any = None,
        retry: bool = False,
    ) -> Any:
        """Call a function at each `send`; usable as a decorator, with or without arguments.

        Args:
            sender: only for this sender (an object, or a task's name).
            weak: let the receiver be collected; False keeps it alive.
            dispatch_uid: a second connection with the same uid is not made.
            retry: accepted for Celery's sake; receivers are in-process and are not retried.
        """

        def connect(receiver: Receiver) -> Receiver:
            key = dispatch_uid if dispatch_uid is not None else _identity(receiver)
            if not any(known == key and who == sender for known, who, _ in self.receivers):
                self.receivers.append((key, sender, self._reference(receiver, weak)))
            return receiver

        return connect(args[0]) if args else connect

    def disconnect(self, receiver: Receiver | None = None, sender: Any = None, dispatch_uid: Any = None) -> bool:
        """Take a receiver out again; returns whether there was one."""
        key = dispatch_uid if dispatch_uid is not None else _identity(receiver)
        before = len(self.receivers)
        self.receivers = [row for row in self.receivers if row[0] != key or (sender is not None and row[1] != sender)]
        return len(self.receivers) < before

    def send(self, sender: Any = None, **named: Any) -> list[tuple[Receiver, Any]]:
        """Call every receiver that listens to `sender`; returns (receiver, answer or exception)."""
        answers: list[tuple[Receiver, Any]] = []
        for _, wanted, reference in list(self.receivers):
            receiver = reference()
            if receiver is None or not _is_meant(wanted, sender):
                continue
            try:
                answers.append((receiver, receiver(signal=self, sender=sender, **named)))
            except Exception as exc:
                logger.exception("signal handler %r raised", receiver)
                answers.append((receiver, exc))
        return answers

    send_robust = send

    def has_listeners(self, sender: Any = None) -> bool:
        """Whether anybody would hear a `send` from this sender."""
        return any(reference() is not None and _is_meant(wanted, sender) for _, wanted, reference in self.receivers)

    def _reference(self, receiver: Receiver, weak: bool) -> Callable[[], Receiver | None]:
        if not weak:
            return lambda: receiver
        if hasattr(receiver, "__self__"):
            return weakref.WeakMethod(receiver, self._forget)
        return weakref.ref(receiver, self._forget)

    def _forget(self, dead: Any) -> None:
        self.receivers = [row for row in self.receivers if row[2] is not dead]

    def __repr__(self) -> str:
        return f"<Signal: {self.name} providing_args={set(self.provides)!r}>"


def _identity(receiver: Any) -> Any:
    owner = getattr(receiver, "__self__", None)
    return (id(owner), id(receiver.__func__)) if owner is not None and hasattr(receiver, "__func__") else id(receiver)


def _is_meant(wanted: Any, sender: Any) -> bool:
    # A shared task is another object than the task it stands for, but has its name.
    return wanted is None or wanted is sender or getattr(wanted, "name", wanted) == getattr(sender, "name", sender)


before_task_publish = Signal(
    "before_task_publish", ("body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy")
)
after_task_publish = Signal("after_task_publish", ("body", "exchange", "routing_key", "headers"))
#: Celery's older name for the moment after a put; `after_task_publish` says more.
task_sent = Signal("task_sent", ("task_id", "task", "args", "kwargs", "eta", "taskset"))
task_received = Signal("task_received", ("request",))
task_prerun = Signal("task_prerun", ("task_id", "task", "args", "kwargs"))
task_postrun = Signal("task_postrun", ("task_id", "task", "args", "kwargs", "retval", "state"))
task_success = Signal("task_success", ("result", "runtime"))
task_retry = Signal("task_retry", ("request", "reason", "einfo"))
task_failure = Signal("task_failure", ("task_id", "exception", "args", "kwargs", "traceback", "einfo"))
task_unknown = Signal("task_unknown", ("message", "exc", "name", "id"))
celeryd_init = Signal("celeryd_init", ("instance", "conf", "options"))
celeryd_after_setup = Signal("celeryd_after_setup", ("instance", "conf"))
import_modules = Signal("import_modules")
task_rejected = Signal("task_rejected", ("message", "exc"))
task_revoked = Signal("task_revoked", ("request", "terminated", "signum", "expired"))
task_internal_error = Signal(
    "task_internal_error", ("task_id", "args", "kwargs", "request", "exception", "traceback", "einfo")
)
worker_init = Signal("worker_init")
worker_before_create_process = Signal("worker_before_create_process")
worker_process_init = Signal("worker_process_init")
worker_process_shutdown = Signal("worker_process_shutdown", ("pid", "exitcode"))
worker_ready = Signal("worker_ready")
worker_shutting_down = Signal("worker_shutting_down", ("sig", "how", "exitcode"))
worker_shutdown = Signal("worker_shutdown")
heartbeat_sent = Signal("heartbeat_sent")
setup_logging = Signal("setup_logging", ("loglevel", "logfile", "format", "colorize"))
after_setup_logger = Signal("after_setup_logger", ("logger", "loglevel", "logfile", "format", "colorize"))
after_setup_task_logger = Signal("after_setup_task_logger", ("logger", "loglevel", "logfile", "format", "colorize"))
beat_init = Signal("beat_init")
beat_embedded_init = Signal("beat_embedded_init")
eventlet_pool_started = Signal("eventlet_pool_started")
eventlet_pool_preshutdown = Signal("eventlet_pool_preshutdown")
eventlet_pool_postshutdown = Signal("eventlet_pool_postshutdown")
eventlet_pool_apply = Signal("eventlet_pool_apply", ("target", "args", "kwargs"))
user_preload_options = Signal("user_preload_options", ("app", "options"))
