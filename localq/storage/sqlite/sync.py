"""When what was committed is on the disk, and not only in the kernel's memory.

`full`      every write is synced before it returns, after the gate is released, so that processes
            that write at once share the disk's work.
`standard`  within 50 ms. A steward that has seen a write looks for the next of its own accord, and says on
            the board until when. Whoever writes while none does, asks it (a child of a worker, because a
            thread in a process that runs tasks would be in the way of tasks that fork) or has a thread
            sync; the first to reach its deadline syncs for everybody and says so on the board.

A process death loses nothing in either; this is about power cuts. The sync is `fdatasync` on a
read-only descriptor of the WAL: SQLite's own commits are synchronous=NORMAL. Must not touch the database.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

from localq.storage.base import SYNC_BELL
from localq.storage.bells import Bells
from localq.storage.gate import BLOCKED, set_mask

#: Seconds within which a standard write is on the disk.
WINDOW_S = 0.05
#: How long the first writer waits for others to share its sync with; the rest is for the sync.
DELAY_S = 0.035

_sync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)

#: The threads' descriptors: none of them may cross a fork. Changed under a lock that is held during one.
_copies: set[int] = set()
_changing = threading.RLock()


class Syncer:
    """Syncs one store for one process.

    Args:
        bells: the store's board.
    """

    def __init__(self, bells: Bells) -> None:
        self._bells = bells
        self._last = self._asked = 0.0
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self.by_steward = False

    def wrote(self, wal: int) -> None:
        """Note a commit to the WAL with this descriptor, to be synced within the window; outside the gate."""
        self._last = time.monotonic()
        if self._thread is None and not self._bells.is_watched(self._last):
            self._announce(wal)

    def now(self, wal: int) -> None:
        """Sync, and let everybody know."""
        started = time.monotonic()
        _sync(wal)
        self._bells.stamp_sync(started)

    def finish(self) -> None:
        """Sync what is still due and end the thread: at exit, and before a fork."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._wake.set()
            if thread.ident is not None:
                thread.join(1.0)

    def forget_thread(self) -> None:
        """In a forked child the thread is not there."""
        self._thread = None

    def _announce(self, wal: int) -> None:
        if self.by_steward:
            if self._bells.synced_at() >= self._asked:
                self._asked = self._last
                self._bells.ring_idle(SYNC_BELL, 1)
            return
        try:
            # The thread has a descriptor of its own: the writer's may be closed by then.
            copy = _copied(wal)
        except OSError:
            return  # another thread has closed the store just now, which syncs
        self._wake = threading.Event()
        # One thread a burst, not one for ever: an idle client has no thread of ours.
        self._thread = threading.Thread(target=self._sync_later, args=(copy,), name="localq-sync", daemon=True)
        # Born with every signal blocked: a handler that it received would run on the main thread at any moment.
        before = set_mask(signal.SIG_BLOCK, BLOCKED)
        try:
            self._thread.start()
        except RuntimeError:
            # The process is at its end, or may have no more threads: what was written is written, and synced here.
            self._wake.set()
            self._sync_later(copy)
        finally:
            set_mask(signal.SIG_SETMASK, before)

    def _sync_later(self, wal: int) -> None:
        try:
            self._wake.wait(DELAY_S)
            self._thread = None  # whoever writes from here on starts the next one
            if self._bells.synced_at() < self._last:
                self.now(wal)
        except OSError:
            # The next write's own check says what happened to the store; nobody waits for this thread.
            return
        finally:
            _let_go(wal)


def _copied(wal: int) -> int:
    with _changing:
        copy = os.dup(wal)
        _copies.add(copy)
    return copy


def _let_go(copy: int) -> None:
    with _changing:
        _copies.discard(copy)
        os.close(copy)


def _close_inherited() -> None:
    _changing.release()
    while _copies:
        os.close(_copies.pop())


os.register_at_fork(before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_close_inherited)
