"""The solo pool: tasks run in this very process, one after another; the steward is a thread beside them.

For storages of one process (`memory:`), for debugging, and for workers embedded in tests. It cannot
outlive a task that kills the process, and does not promise to.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

from localq import signals
from localq.exceptions import LocalqError, StoreReplaced
from localq.storage.owners import identity
from localq.worker.child import Consumer
from localq.worker.notices import Notices
from localq.worker.steward import Steward
from localq.worker.supervisor import EX_NODE, EX_OK, EX_STORE
from localq.worker.terms import Terms

logger = logging.getLogger("localq.worker")


class Solo:
    """Runs a solo worker on the calling thread until `stop`.

    Args:
        worker: its options, and what to do when it is ready.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._consumer: Consumer | None = None
        self._steward: Steward | None = None
        self._ready = threading.Event()
        self._is_stopping = False
        self._exit_code = EX_OK
        self._error: BaseException | None = None

    def run(self) -> int:
        """Run until stopped; return the exit code."""
        worker = self._worker
        signals.worker_init.send(worker)
        self._notices = Notices()
        line_read, line_write = os.pipe()
        os.set_blocking(line_read, False)
        thread = threading.Thread(target=self._steward_life, args=(line_read,), name="Steward", daemon=True)
        if threading.current_thread() is threading.main_thread():
            self._answer_signals()
        thread.start()
        self._ready.wait()
        try:
            if self._error is None and not self._exit_code:
                # Only now: its node's name is final, and with it the queues that are its own.
                if worker.max_tasks_per_child or worker.max_memory_per_child:
                    logger.warning("max_..._per_child has no effect here: the solo pool has no child to replace")
                terms = Terms(worker.limits, self._notices)
                self._consumer = Consumer(worker.app, worker.queues, worker.node, {"parent": identity()}, terms)
                worker.tell_ready()
                if self._is_stopping:
                    self._consumer.stop()
                self._consumer.run()
        finally:
            if self._steward is not None:
                self._steward.is_stopping = True
            os.close(line_write)
            thread.join(35)
            os.close(line_read)
            self._notices.close()
        if self._error is not None:
            worker.say_error(str(self._error), "LQ021" if self._exit_code == EX_NODE else "LQ020")
        signals.worker_shutdown.send(worker)
        return self._exit_code

    def stop(self) -> None:
        """Finish the running task and return from `run`; from any thread."""
        self._is_stopping = True
        if self._consumer is not None:
            self._consumer.stop()

    def _answer_signals(self) -> None:
        def warm(number: int, _: Any) -> None:
            self._worker.say("worker: Warm shutdown (MainProcess): the running task ends first; again to stop at once")
            # Forced from here on: Python's own answer ends the process, and a sweep does the rest.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            self.stop()

        signal.signal(signal.SIGTERM, warm)
        signal.signal(signal.SIGINT, warm)

    def _steward_life(self, line: int) -> None:
        worker = self._worker
        try:
            about: dict[str, object] = {"node": worker.node, "queues": list(worker.queues)}
            self._steward = Steward(worker.app, about, identity(), line, self._notices)
            facts = {"pid": os.getpid(), **worker.facts}
            node = self._steward.name_node(worker.node, worker.node_may_vary, facts)
            if node is None:
                self._fail(EX_NODE, LocalqError(f"node name {worker.node} belongs to a worker that is running"))
                return
            worker.node = node
            self._ready.set()
            self._steward.run()
            self._steward.free_node()
        except StoreReplaced as exc:
            self._fail(EX_STORE, exc)
        except LocalqError as exc:
            self._fail(EX_STORE, exc)
        except BaseException as exc:
            logger.critical("the steward's thread ended", exc_info=True)
            self._fail(1, exc)

    def _fail(self, code: int, error: BaseException) -> None:
        self._exit_code, self._error = code, error
        self._ready.set()
        self.stop()
