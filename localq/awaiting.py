"""Sending and waiting for those who must not block: coroutines, in whatever event loop.

    adelay    a thread of the app's sends; one is enough, for one process writes at a time
    aget      a thread of the app's sleeps on a bell for all who wait, and tells their loops

Both threads begin with the first that needs them. The one that waits ends when nobody has waited for a while, and
both with `app.close()`. Imported late, because it imports asyncio. Must not know tasks, nor what a result is but for
its id and its record.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import logging
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from localq import clock, states
from localq.backend import Backend
from localq.exceptions import LocalqError, StoreBusy, StoreFull
from localq.message import Record
from localq.recovery import sweep
from localq.storage.base import Bell
from localq.waiting import timed_out
from localq.whereabouts import lacking

logger = logging.getLogger("localq.result")

T = TypeVar("T")
Future = asyncio.Future[Record]

#: Seconds between two looks when no bell rings: the first, and the longest. What the thread takes up while it sleeps
#: is heard at once, but for stores of one process.
FIRST_LOOK_S, LONGEST_LOOK_S = 0.05, 1.0
#: With more results than this to look at, the thread rests between two looks.
MANY = 50
#: Seconds between two sweeps of a quiet wait, and before it asks whether there is any worker at all.
PATIENCE_S = 2.0
#: Seconds between two looks at what tasks say before their ends, for those who listen.
LISTEN_S = 0.1
#: Seconds for which the thread stays when nobody waits.
LINGER_S = 5.0
#: Seconds that threads have to end.
END_S = 5.0


def run_here(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end; where an event loop runs already, in a loop of another thread."""
    if not _is_in_loop():
        # Not within the `except`: what the task raises would tell of that, too.
        return _run(coroutine)
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1, "localq-eager") as thread:
        return thread.submit(context.run, _run, coroutine).result()


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    # Not by `asyncio.run`, which makes Ctrl-C a cancellation, and that a failure of the task's.
    with asyncio.Runner() as runner:
        return runner.get_loop().run_until_complete(coroutine)


async def sent(backend: Backend, send: Callable[[], T]) -> T:
    """Call `send` in a thread: the gate to the store may be shut for a while."""
    if backend.conf.task_always_eager:
        return await asyncio.to_thread(send)  # it runs the task, which may send in turn
    context = contextvars.copy_context()
    sender = _aside(backend).sender
    return await asyncio.get_running_loop().run_in_executor(sender, context.run, send)


async def ended(results: Sequence[Any], propagate: bool, timeout_s: float | None) -> None:
    """Wait until results have ended, or the time is over; their records are theirs then.

    Args:
        results: handles on single tasks, of one app; one that has a record has ended.
        propagate: that one of them has failed is enough, if those before it have ended.
    """
    open_ones = [each for each in results if each._record is None]
    if not open_ones or (timeout_s is not None and timeout_s <= 0):
        return
    loop = asyncio.get_running_loop()
    deadline = None if timeout_s is None else loop.time() + timeout_s
    waiter = _aside(open_ones[0].backend).waiter(all(each._own for each in open_ones))
    futures: dict[str, Future] = {each.id: loop.create_future() for each in open_ones}
    waiter.add(futures)
    try:
        for each in results:
            if each._record is None:
                left = None if deadline is None else max(0.0, deadline - loop.time())
                done, _ = await asyncio.wait((futures[each.id],), timeout=left)
                if not done:
                    return
                each._record = futures[each.id].result()
            if propagate and each._record.state in states.PROPAGATE_STATES:
                return
    finally:
        waiter.drop(futures)


async def as_ended(results: Sequence[Any], timeout_s: float | None) -> AsyncIterator[Any]:
    """Yield results as they end; their records are theirs then.

    Args:
        results: handles on single tasks that have not ended, of one app.

    Raises:
        TimeoutError: the time is over.
    """
    loop = asyncio.get_running_loop()
    deadline = None if timeout_s is None else loop.time() + timeout_s
    waiter = _aside(results[0].backend).waiter(all(each._own for each in results))
    found: asyncio.Queue[tuple[str, Future]] = asyncio.Queue()
    open_ones = {each.id: each for each in results}
    futures: dict[str, Future] = {id: loop.create_future() for id in open_ones}
    for id, future in futures.items():
        future.add_done_callback(partial(_queue, found, id))
    waiter.add(futures)
    try:
        while open_ones:
            left = None if deadline is None else max(0.0, deadline - loop.time())
            try:
                id, done = await asyncio.wait_for(found.get(), left)
            except TimeoutError:
                raise timed_out(next(iter(open_ones.values()))) from None
            each = open_ones.pop(id)
            each._record = done.result()
            yield each
    finally:
        waiter.drop(futures)


def _queue(found: asyncio.Queue[tuple[str, Future]], id: str, future: Future) -> None:
    found.put_nowait((id, future))


async def heard(results: Sequence[Any], look: Callable[[], bool], propagate: bool, timeout_s: float | None) -> None:
    """Wait like `ended`, and look now and then, in the loop: `look` tells what is new, and whether that was all."""
    loop = asyncio.get_running_loop()
    deadline = None if timeout_s is None else loop.time() + timeout_s
    while not look():
        left = LISTEN_S if deadline is None else min(LISTEN_S, deadline - loop.time())
        if left <= 0:
            return
        await ended(results, propagate, left)


def _aside(backend: Backend) -> Aside:
    found: Aside | None = backend.aside
    if found is None:
        # Of two threads that come at once, one finds the other's.
        found = backend.__dict__.setdefault("aside", Aside(backend))
    return found


class Aside:
    """The threads that send and wait for the coroutines of one app."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._waiters: dict[bool, Waiter] = {}
        self.sender = ThreadPoolExecutor(1, "localq-sender")
        _all.add(self)

    def waiter(self, own: bool) -> Waiter:
        """Return the one that waits for results of this process's own calls, or of anybody's."""
        with self._lock:
            return self._waiters.setdefault(own, Waiter(self._backend, own))

    def stop(self) -> None:
        """Have its threads end; who waits still is told why."""
        _all.discard(self)
        self.sender.shutdown()
        for waiter in self._waiters.values():
            waiter.stop()


class Waiter:
    """A thread that sleeps on one bell for any number of coroutines.

    Args:
        own: whose results: of this process's own calls, or of anybody's.
    """

    def __init__(self, backend: Backend, own: bool) -> None:
        self._backend, self._own = backend, own
        self._changed = threading.Condition()
        #: By id, who waits for it; and since when somebody does.
        self._futures: dict[str, list[Future]] = {}
        self._since: dict[str, float] = {}
        self._thread: threading.Thread | None = None
        self._is_stopping = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        weakref.finalize(self, _close, self._wake_read, self._wake_write).atexit = False  # `stop` comes later

    def __len__(self) -> int:
        """How many results are waited for."""
        return len(self._futures)

    def add(self, futures: dict[str, Future]) -> None:
        """Wait for the ends of tasks, by id."""
        with self._changed:
            now = clock.monotonic()
            for id, future in futures.items():
                self._futures.setdefault(id, []).append(future)
                self._since.setdefault(id, now)
            if self._thread is None:
                self._thread = threading.Thread(target=self._life, name="localq-waiter", daemon=True)
                self._thread.start()
            self._wake()

    def drop(self, futures: dict[str, Future]) -> None:
        """Wait for them no more."""
        with self._changed:
            for id, future in futures.items():
                known = self._futures.get(id, [])
                if future in known:
                    known.remove(future)
                if not known:
                    self._futures.pop(id, None)
                    self._since.pop(id, None)

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_stopping = True
            self._wake()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(END_S)

    def _wake(self) -> None:
        self._changed.notify()
        try:
            os.write(self._wake_write, b"!")
        except BlockingIOError:
            pass  # it has not heard the last ones yet

    # -- In the thread ---------------------------------------------------------------------------

    def _life(self) -> None:
        reason: BaseException = LocalqError("the app was closed while this was waited for")
        bell: Bell | None = None
        try:
            storage = self._backend.storage
            bell = storage.bell(replies=self._backend.oid if self._own else "*")
            while self._is_needed():
                self._watch(bell)
        except BaseException as exc:
            reason = exc  # whoever waits is told: a store that is gone, or cannot be read
        finally:
            self._give_up(reason)
            if bell is not None:
                bell.close()

    def _give_up(self, reason: BaseException) -> None:
        """Tell whoever is left that this thread ends, unless another has taken its place."""
        with self._changed:
            if self._thread is not threading.current_thread():
                return
            self._thread = None
            left = [future for each in self._futures.values() for future in each]
            self._futures.clear()
            self._since.clear()
        _settle([(future, reason) for future in left])

    def _is_needed(self) -> bool:
        """Sleep until somebody waits; False if nobody does for long."""
        with self._changed:
            self._changed.wait_for(lambda: self._futures or self._is_stopping, LINGER_S)
            if not self._futures:
                self._thread = None  # whoever comes from here on starts another
            return bool(self._futures) and not self._is_stopping

    def _watch(self, bell: Bell) -> None:
        """Look and sleep for as long as somebody waits."""
        storage, pause_s, next_scan = self._backend.storage, FIRST_LOOK_S, clock.monotonic() + PATIENCE_S
        hinted: set[str] = set()
        while self._futures and not self._is_stopping:
            bell.raise_()
            started = clock.monotonic()
            self._tell(storage.records(list(self._futures)).values())
            if len(self._futures) > MANY:
                # A look at a thousand open results takes milliseconds; it must not be all that this process does.
                clock.sleep(min(clock.monotonic() - started, FIRST_LOOK_S))
            if not self._futures:
                break
            rang = bell.sleep(pause_s if storage.shared else FIRST_LOOK_S, self._wake_read)
            self._tell(Record(*copy) for copy in bell.copies())
            if rang or self._heard():
                pause_s = FIRST_LOOK_S
                continue
            pause_s = min(pause_s * 1.5, LONGEST_LOOK_S)
            if clock.monotonic() >= next_scan:
                next_scan = clock.monotonic() + PATIENCE_S
                self._scan(hinted)
        bell.lower()

    def _heard(self) -> bool:
        try:
            return bool(os.read(self._wake_read, 4096))
        except BlockingIOError:
            return False

    def _tell(self, records: Iterable[Record]) -> None:
        """Give their records to those whose tasks have ended."""
        news: list[tuple[Future, Record | BaseException]] = []
        for record in records:
            if record.ended:
                with self._changed:
                    self._since.pop(record.id, None)
                    news += [(future, record) for future in self._futures.pop(record.id, ())]
        _settle(news)

    def _scan(self, hinted: set[str]) -> None:
        """What a quiet wait does for everybody: free the claims of the dead, and ask once whether anyone works."""
        storage = self._backend.storage
        try:
            sweep(storage, limit=self._backend.conf.task_max_redeliveries)
        except (StoreFull, StoreBusy) as exc:
            logger.warning("the claims of dead workers cannot be freed now: %s", exc)
        before = clock.monotonic() - PATIENCE_S
        with self._changed:
            quiet = [id for id, since in self._since.items() if since <= before and id not in hinted][:1]
        hinted.update(quiet)
        for record in storage.records(quiet).values() if quiet else ():
            lack = lacking(record, self._backend)
            if lack:
                logger.warning("task %s[%s] waits in %s: %s", record.name, record.id, storage.url, lack)


def _settle(news: list[tuple[Future, Record | BaseException]]) -> None:
    """Tell loops what has become of their futures, each loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Future, Record | BaseException]]] = {}
    for future, what in news:
        by_loop.setdefault(future.get_loop(), []).append((future, what))
    for loop, each in by_loop.items():
        try:
            loop.call_soon_threadsafe(_set, each)
        except RuntimeError:
            pass  # the loop was closed, and nobody waits in it


def _set(news: list[tuple[Future, Record | BaseException]]) -> None:
    for future, what in news:
        if future.done():
            continue
        if isinstance(what, BaseException):
            future.set_exception(what)
        else:
            future.set_result(what)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


_all: weakref.WeakSet[Aside] = weakref.WeakSet()


def _stop_all() -> None:
    for aside in list(_all):
        aside.stop()


# Registered after the storages' own, so called before it: no thread shall open again what that has closed.
atexit.register(_stop_all)
os.register_at_fork(after_in_child=_all.clear)
