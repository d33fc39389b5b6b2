"""Who must end when: what a supervisor knows of its children's tasks without being told of each.

    child        writes the deadline into its notes, and then reads when the supervisor looks next;
                 wakes it if that is too late
    supervisor   writes when it will look next, the earliest deadline it knows, and then reads their notes again

Each writes first and reads afterwards, so that one of them sees the other. A steady stream of tasks with one limit
wakes the supervisor once in that time, not once a task. The page both share is made before they fork.
Must not decide what becomes of who is late.
"""

from __future__ import annotations

import math
import mmap
import os
import struct

from localq import clock
from localq.message import Claim
from localq.storage.base import Owner

#: When the supervisor looks next, by the monotonic clock.
_LOOK = struct.Struct("=d")
#: Of each child: its owner's name, and the hard limit of what it runs.
_CHILD = struct.Struct("=16sd")
#: The byte that wakes a supervisor: no signal has this number.
WAKE = 0
#: Whether a child takes no more tasks and only waits for what runs; behind all the others.
_LEAVES = struct.Struct("=?")


class Watch:
    """What a supervisor and its children share.

    Args:
        children: how many there are at most; they are numbered from 1.
        wake: a descriptor; who writes to it wakes the supervisor.
    """

    def __init__(self, children: int, wake: int) -> None:
        self._leaves_at = _LOOK.size + (children + 1) * _CHILD.size
        self._page = mmap.mmap(-1, self._leaves_at + (children + 1) * _LEAVES.size)
        self._wake = wake
        self.plan(math.inf)

    def plan(self, at: float) -> None:
        """Say when the supervisor looks next: who must end before that wakes it."""
        _LOOK.pack_into(self._page, 0, at)

    def forget(self, index: int) -> None:
        """Know nothing of a child: it has ended."""
        self._write(index, b"", 0.0)
        _LEAVES.pack_into(self._page, self._leaves_at + index * _LEAVES.size, False)

    def leave(self, index: int) -> None:
        """Tell the supervisor that a child takes no more tasks, so that another may."""
        _LEAVES.pack_into(self._page, self._leaves_at + index * _LEAVES.size, True)
        self._call()

    def leaves(self, index: int) -> bool:
        """Whether a child takes no more tasks."""
        return bool(_LEAVES.unpack_from(self._page, self._leaves_at + index * _LEAVES.size)[0])

    def read(self, index: int) -> tuple[str, float]:
        """Return a child's owner, empty if it has not told, and the hard limit of what it runs."""
        name, limit_s = _CHILD.unpack_from(self._page, _LOOK.size + index * _CHILD.size)
        return name.rstrip(b"\0").decode(), limit_s

    def _write(self, index: int, name: bytes, limit_s: float) -> None:
        _CHILD.pack_into(self._page, _LOOK.size + index * _CHILD.size, name, limit_s)

    def begin(self, index: int, owner: Owner, claim: Claim, mode: int, left: int, limit_s: float) -> bool:
        """Have an owner begin a task that must end in time; see `Owner.begin`."""
        self._write(index, owner.name.encode(), limit_s)
        deadline = clock.monotonic() + limit_s
        may_run = owner.begin(claim, mode, left, deadline)
        self.expect(deadline)
        return may_run

    def expect(self, deadline: float) -> None:
        """Have the supervisor look at a deadline that is in the notes of an owner."""
        if deadline < _LOOK.unpack_from(self._page, 0)[0]:
            self._call()

    def introduce(self, index: int, owner: Owner) -> None:
        """Tell the supervisor which owner a child is."""
        self._write(index, owner.name.encode(), 0.0)

    def _call(self) -> None:
        try:
            os.write(self._wake, bytes([WAKE]))
        except BlockingIOError:
            pass  # it is full of what wakes it as well


class Post:
    """One child's place in the watch."""

    def __init__(self, watch: Watch, index: int) -> None:
        self._watch, self._index = watch, index

    def introduce(self, owner: Owner) -> None:
        """See `Watch.introduce`."""
        self._watch.introduce(self._index, owner)

    def begin(self, owner: Owner, claim: Claim, mode: int, left: int, limit_s: float) -> bool:
        """See `Watch.begin`."""
        return self._watch.begin(self._index, owner, claim, mode, left, limit_s)

    def expect(self, deadline: float) -> None:
        """See `Watch.expect`."""
        self._watch.expect(deadline)

    def leave(self) -> None:
        """See `Watch.leave`."""
        self._watch.leave(self._index)
