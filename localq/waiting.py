"""Waiting for results: one wait, what a wait tells on its way, and callbacks without a wait.

    Wait        sleeps on this thread's bell, looks at each ring and now and then
    Listener    a look that tells every state to a callback, in order (`get(on_message=...)`)
    Watcher     calls what `then` was given, from one thread that lives while there is something to call

A bell is only a hint, so every sleep is short of LONGEST_LOOK_S. Must not change how a task stands, but for freeing
the claims of the dead, as anybody does who waits.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from localq import clock
from localq.exceptions import TimeoutError
from localq.message import Record
from localq.recovery import sweep
from localq.states import PENDING
from localq.storage.base import Bell
from localq.storage.news import NEWS, News, news_key, news_of
from localq.whereabouts import lacking, whereabouts

logger = logging.getLogger("localq.result")

#: Seconds between two looks at the store when no bell rings: the first, and the longest.
FIRST_LOOK_S, LONGEST_LOOK_S = 0.05, 1.0
#: Seconds between two sweeps of a wait, and before it asks whether there is any worker at all.
PATIENCE_S = 2.0
#: How many results are read at once once the first of them is there.
READ_AHEAD = 200
#: Seconds the thread of `then` rests after a ring.
REST_S = 0.01
#: How many callbacks of `then` may wait at once, in one process and app.
MOST_CALLBACKS = 1000

Look = Callable[[Sequence[Record]], bool]


class Wait:
    """One wait for something in the store: sleeps on a bell, looks at each ring and now and then.

    Args:
        own: all that is waited for was sent by this process, so its own bell rings.
        what: the result waited for, named in errors and hints; or a list of those that are left, the next one last.
    """

    def __init__(
        self, backend: Any, own: bool, timeout: float | None, on_interval: Callable[[], Any] | None, what: Any
    ) -> None:
        self._backend, self._own, self._on_interval = backend, own, on_interval
        self._left = what if isinstance(what, list) else [what]
        self._started = clock.monotonic()
        self._deadline = None if timeout is None else self._started + timeout
        self._next_scan = self._started + PATIENCE_S
        self._has_hinted = False

    def until(self, look: Look) -> None:
        """Return once `look` is true, which is given the records that rings brought.

        Raises:
            TimeoutError: the time is over.
        """
        try:
            bell: Bell = self._backend.bells.kept[self._own]
        except (AttributeError, KeyError):
            bell = self._backend.bell(self._own)
        pause = FIRST_LOOK_S
        brought: list[Record] = []
        # Up since before it was sent: no call of this process has ended since, so there is nothing to see yet.
        has_looked = self._left[-1]._asked == (bell, bell.raised) and bell.is_up()
        try:
            while True:
                if not has_looked:
                    bell.raise_()
                    if look(brought):
                        return
                has_looked = False
                rang = bell.sleep(self._pause(pause))
                brought = [Record(*copy) for copy in bell.copies()]
                if not rang:
                    pause = min(pause * 1.5, LONGEST_LOOK_S)
                    self._scan()
                if self._on_interval is not None:
                    self._on_interval()
        finally:
            bell.lower()

    def _pause(self, pause: float) -> float:
        if self._deadline is None:
            return pause
        left = self._deadline - clock.monotonic()
        if left <= 0:
            raise timed_out(self._left[-1])
        return min(pause, left)

    def _scan(self) -> None:
        """What a quiet wait does for everybody: free the claims of the dead, and ask once whether anyone works."""
        now = clock.monotonic()
        if now < self._next_scan:
            return
        self._next_scan = now + PATIENCE_S
        storage = self._backend.storage
        sweep(storage, limit=self._backend.conf.task_max_redeliveries)
        if self._has_hinted:
            return
        self._has_hinted = True
        id = self._left[-1].id
        record = storage.records((id,)).get(id)
        lack = record and lacking(record, self._backend)
        if record is not None and lack:
            logger.warning("task %s[%s] waits in %s: %s", record.name, record.id, storage.url, lack)


class Listener:
    """Tells a callback every state of one task: those before its end in their order, and then the end.

    Each is told once, also those that were there before anybody listened. Only the life that the task is in counts:
    a retry by hand begins a new one.
    """

    def __init__(self, result: Any, tell: Callable[[dict[str, Any]], Any]) -> None:
        self._result, self._tell = result, tell
        #: The number of the next news; 0 as long as nothing has been read.
        self._next = 0

    def __call__(self, brought: Sequence[Record] = ()) -> bool:
        """Look, and tell what is new; returns whether the task has ended."""
        # First this: all that was said before an end is there once the end is.
        has_ended = bool(self._result._look_once(brought))
        for news in self._read_all() if has_ended or not self._next else self._read_on():
            self._next = news.number + 1
            if news.state != PENDING:
                self._tell(self._result._meta(news))
        if has_ended:
            self.tell_end()
        return has_ended

    def tell_end(self) -> None:
        """Tell how the task stands now."""
        self._tell(self._result._meta())

    def _read_all(self) -> list[News]:
        id = self._result.id
        entries = self._result.backend.storage.entries(f"{NEWS}{id}:")
        found = [news for entry in entries if (news := news_of(id, entry)) is not None and news.number >= self._next]
        if not self._next:
            self._next = 1
            births = [at for at, news in enumerate(found) if news.state == PENDING]
            found = found[births[-1] :] if births else found
        return found

    def _read_on(self) -> list[News]:
        """Read what came behind the last one: by its key, so that the hundredth costs no more than the first.

        Where nothing did, it may have been dropped by now, and others have come behind it.
        """
        id, storage = self._result.id, self._result.backend.storage
        found: list[News] = []
        while entries := storage.entries(news_key(id, self._next + len(found))):
            found += [news for entry in entries if (news := news_of(id, entry)) is not None]
        return found or self._read_all()


class Promise(NamedTuple):
    """What is to be called once a result is there.

    Attributes:
        result: returns it; None if it was held weakly and nobody holds it any more.
    """

    result: Callable[[], Any]
    callback: Callable[[Any], Any]
    on_error: Callable[[BaseException], Any] | None

    def keep(self) -> None:
        """Call it; what it raises goes to `on_error` if there is one."""
        try:
            self.callback(self.result())
        except Exception as exc:
            if self.on_error is None:
                raise
            self.on_error(exc)


class Watcher:
    """Keeps the promises of `then` in one process: at most MOST_CALLBACKS of them, by one daemon thread.

    The thread ends when nothing is left to call, and with the app's store. A promise is kept once: here, or by
    whoever sees the end first in a `get`.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._promises: list[Promise] = []
        self._thread: threading.Thread | None = None
        self._swept_at = clock.monotonic()

    def add(self, result: Any, promise: Promise) -> None:
        """Promise to call something.

        Raises:
            RuntimeError: too many results are waited for like this.
        """
        with self._lock:
            if len(self._promises) >= MOST_CALLBACKS:
                raise RuntimeError(
                    f"{MOST_CALLBACKS} callbacks of then() wait already; {result!r} would be one more. "
                    "Put these tasks into a group and use its then(), or link= a task"
                )
            if self._thread is None:
                thread = threading.Thread(target=self._watch, name="localq-then", daemon=True)
                thread.start()  # promised is only what will be kept: at the end of a process no thread starts
                self._thread = thread
            self._promises.append(promise)

    def tell(self, result: Any) -> None:
        """Keep what was promised for a result that is there."""
        with self._lock:
            mine = [promise for promise in self._promises if promise.result() is result]
            self._promises = [promise for promise in self._promises if promise not in mine]
        for promise in mine:
            promise.keep()

    def stop(self) -> None:
        """Touch the store no more; what was promised is dropped."""
        with self._lock:
            self._promises.clear()
            self._thread = None

    def _watch(self) -> None:
        try:
            bell: Bell | None = None
            while True:
                with self._lock:
                    if not self._is_wanted():
                        return
                    if bell is None:
                        bell = self._backend.bell(False)
                    bell.raise_()
                    due = self._take_due()
                for promise in due:
                    _keep_quietly(promise)
                if not due and bell.sleep(LONGEST_LOOK_S):
                    # The flag stays down a moment: 20,000 ends a second are 100 looks.
                    time.sleep(REST_S)
        except Exception:
            with self._lock:
                if self._thread is not threading.current_thread():
                    return  # the store was closed under it
                dropped, self._promises, self._thread = len(self._promises), [], None
            logger.exception("%d callbacks of then() are dropped: the store cannot be read", dropped)

    def _is_wanted(self) -> bool:
        if self._thread is not threading.current_thread():
            return False
        self._promises = [promise for promise in self._promises if promise.result() is not None]
        if not self._promises:
            self._thread = None
        return bool(self._promises)

    def _take_due(self) -> list[Promise]:
        """Take out what is to be called now; called with the lock held, so that nobody closes the store meanwhile."""
        if clock.monotonic() - self._swept_at > PATIENCE_S:
            self._swept_at = clock.monotonic()
            sweep(self._backend.storage, limit=self._backend.conf.task_max_redeliveries)
        results = [result for promise in self._promises if (result := promise.result()) is not None]
        refresh(self._backend, [leaf for result in results for leaf in result.leaves()])
        due = [p for p in self._promises if (result := p.result()) is None or all(map(has_ended, result.leaves()))]
        self._promises = [promise for promise in self._promises if promise not in due]
        return due


def promised(result: Any, callback: Callable[[Any], Any], on_error: Any, weak: bool) -> None:
    """Have something called once a result is there: now, if it is."""
    if result.ready():
        Promise(lambda: result, callback, on_error).keep()
        return
    backend = result.backend
    if backend.watcher is None:
        backend.watcher = Watcher(backend)
    result._has_promises = True
    backend.watcher.add(result, Promise(weakref.ref(result) if weak else lambda: result, callback, on_error))


def keep_promises(result: Any) -> None:
    """Call what was promised for a result that is there, unless that is done."""
    watcher = result.backend.watcher
    if watcher is not None:
        watcher.tell(result)


def _keep_quietly(promise: Promise) -> None:
    result = promise.result()
    if result is None:
        return
    try:
        promise.keep()
    except Exception:
        logger.exception("a callback of then() of %r failed", result)


def refresh(backend: Any, leaves: Sequence[Any]) -> None:
    """Read those of some results that are not known to have ended, in as few queries as there can be."""
    open_ones = [each for each in leaves if not has_ended(each)]
    for at in range(0, len(open_ones), READ_AHEAD):
        step = open_ones[at : at + READ_AHEAD]
        found = backend.storage.records([each.id for each in step])
        for each in step:
            record = found.get(each.id)
            each._record = record if record is not None and record.ended else None


def has_ended(result: Any) -> bool:
    """Whether a single result is known to have ended; reads nothing."""
    return result._is_eager or result._record is not None


def timed_out(result: Any) -> TimeoutError:
    """Make the error of a wait that took too long; it says where the task is."""
    record = result._look()
    if record is None:
        return TimeoutError(f"The operation timed out: {unknown(result)}")
    why = lacking(record, result.backend) or whereabouts(record)
    return TimeoutError(f"The operation timed out: task {result.id} is {record.state}, and {why}")


def unknown(result: Any) -> str:
    """Say that the store does not know a task."""
    return f"no task {result.id} is in {result.backend.storage.url}: it was sent elsewhere, or forgotten"
