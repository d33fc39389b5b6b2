"""`await result.aget()`: the half of a result handle that waits without blocking an event loop.

Apart from `awaiting`, which does it and imports asyncio: most processes have results and no event loop. Must not wait
itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from localq.waiting import Listener

R = TypeVar("R")


class AwaitableResult(Generic[R]):
    """The result of one task, as coroutines wait for it; see `localq.result.AsyncResult`, which is one."""

    __slots__ = ()
    if TYPE_CHECKING:  # what it needs of the rest
        ignored: bool
        get: Any
        ready: Any
        _is_refused: Any

    async def aget(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - as `get` has it
        propagate: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
    ) -> R:
        """Wait for the end of the task without blocking the event loop, and return its value; see `get`.

        What `on_message` is told it is told in the event loop, a tenth of a second later at most.

        Allowed inside a task, whose place in its child stays taken meanwhile: if `worker_async_concurrency` tasks of
        every child wait for others in the same queues, none of them goes on.

        Raises:
            TimeoutError: the time is over; the task goes on.
            UnknownTask: the store does not know it, and the setting result_unknown_raises says not to wait.
            Exception: what the task raised.
        """
        if not self.ignored and not self.ready() and not self._is_refused():
            from localq.awaiting import ended, heard  # it imports asyncio, and most processes run no coroutine

            if on_message is None:
                await ended([self], propagate, timeout)
            else:
                await heard([self], Listener(self, on_message), propagate, timeout)
                on_message = None
        value: R = self.get(
            0, propagate, follow_parents=follow_parents, callback=callback, on_message=on_message,
            disable_sync_subtasks=False,
        )  # fmt: skip
        return value


class AwaitableGroup:
    """The results of a group, as coroutines wait for them; see `localq.result.GroupResult`, which is one."""

    if TYPE_CHECKING:  # what it needs of the rest
        _read: Any
        _story: Any
        _values: Any

    async def aget(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - as `get` has it
        propagate: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
    ) -> list[Any]:
        """Wait for all members without blocking the event loop; see `get`, and `AsyncResult.aget`."""
        kept = [each for each in self._read() if not each.ignored and not each._is_eager]
        if any(each._record is None for each in kept) or (on_message is not None and kept):
            from localq.awaiting import ended, heard  # it imports asyncio, and most processes run no coroutine

            if on_message is None:
                await ended(kept, propagate, timeout)
            else:
                await heard(kept, self._story(kept[::-1], propagate, on_message), propagate, timeout)
        values: list[Any] = self._values(propagate, callback)
        return values

    async def aas_completed(self, timeout: float | None = None) -> AsyncIterator[Any]:  # noqa: ASYNC109 - as above
        """Yield the results of single tasks as they end, without blocking the event loop; see `as_completed`."""
        open_ones = []
        for each in self._read():
            if each._is_eager or each._record is not None:
                yield each
            else:
                open_ones.append(each)
        if open_ones:
            from localq.awaiting import as_ended  # it imports asyncio, and most processes run no coroutine

            async for each in as_ended(open_ones, timeout):
                yield each
