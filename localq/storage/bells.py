"""Bells: how processes that share a store wake each other, without polling and without a server.

    bells/board           one mapped page that everybody sees: who sleeps, for what
    bells/<name>          a pipe per sleeper; one byte in it ends the sleep

A sleeper raises its flag, looks at the store once more, and sleeps. Whoever brings work looks for a
flag, takes it down and, after its commit, writes to the pipe. Both sides make system calls between
their store and their load, so either the sleeper sees the work or the bringer sees the flag.
A bell is a hint: the loser of any other race is found by the sleeper's own slow scan.

A ring may carry a copy of what it is about, so that the woken need not read it: a message that was put
straight into a sleeping owner's hands, or the record of a task that has ended. It answers one raising
of the flag, by its number; a copy that comes later than that is a ring like any other, and the store,
which has it all, is asked. Must not know what the work is.
"""

from __future__ import annotations

import errno
import marshal
import mmap
import os
import select
import struct
import threading
import time
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from localq.storage.place import allocate, file_fault, make_directory, make_file, open_file, removed

SLOTS = 512
_FLAGS_AT = 64
_ROWS_AT = _FLAGS_AT + SLOTS
#: Name, queues it serves, replies it waits for, whether an owner sleeps here, how often the flag was raised.
_ROW = struct.Struct("=16sQQQQ")
_RAISED = struct.Struct("=Q")
_RAISED_AT = _ROW.size - _RAISED.size
#: What stands before a copy: which raising it answers, its length. A plain ring is one without a copy.
_FRAME = struct.Struct("=QI")
_RING = _FRAME.pack(0, 0)
#: A pipe takes so many bytes at once or none.
_PIPE_BUF = select.PIPE_BUF
_STAMP = struct.Struct("=d")
_STAMP_AT, _DUE_AT, _WATCHED_AT = 8, 16, 24
#: Codes of the queues that anybody has ever slept for: the place of a code is the queue's bit in a row. Bits that are
#: another queue's too would ring one sleeper in another's place, and give it what it does not serve.
QUEUES = 63
_CODES_AT = _ROWS_AT + SLOTS * _ROW.size
_CODE = struct.Struct("=Q")
_CODES = struct.Struct(f"={QUEUES}Q")
#: The bit of all queues that have come too late for a place of their own; nothing is handed by it.
_CROWD = 1 << QUEUES
BOARD_SIZE = _CODES_AT + _CODES.size

#: No steward promises to look later than so many seconds from now.
LONGEST_WATCH_S = 1.0

#: Flags of a slot.
FREE, AWAKE, WANTS_WORK, WANTS_REPLY = 0, 1, 2, 3
_WORK, _REPLY = bytes([WANTS_WORK]), bytes([WANTS_REPLY])
#: `replies` of a bell that rings whoever's message ends.
ANY = "*"


class Sleeper(NamedTuple):
    """Somebody whose flag is up: where, what it is called, and which raising it is."""

    slot: int
    name: str
    raised: int


class Bells:
    """The directory `bells/` of a store, as one process sees it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        make_directory(directory)
        self.board = _open_board(directory / "board")
        self._pipes: dict[int, tuple[bytes, int]] = {}
        self._masks: dict[str, int] = {}
        self._ringing = threading.Lock()

    def bell(self, queues: Sequence[str], replies: str | None, owner: str | None = None) -> PipeBell:
        """Make a bell and enter it on the board. The caller holds the gate, so that no slot is taken twice."""
        name = owner or os.urandom(8).hex()
        path = self.directory / name
        try:
            os.mkfifo(path, 0o600)
            os.chmod(path, 0o600)  # whatever the umask
            # Read and write: a reader that has no writer would never sleep.
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise removed(self.directory.parent) from None
        mask = 0
        for queue in queues:
            mask |= self._mask(queue) or self._enter(queue)
        slot = self._free_slot()
        _ROW.pack_into(self.board, _ROWS_AT + slot * _ROW.size, name.encode(), mask, _reply_code(replies),
                       owner is not None, 0)  # fmt: skip
        self.board[_FLAGS_AT + slot] = AWAKE
        return PipeBell(self.board, slot, path, fd, WANTS_WORK if queues else WANTS_REPLY)

    def idle(self, queue: str, count: int) -> list[int]:
        """Take down the flags of up to `count` sleepers that serve a queue; called inside the gate."""
        board = self.board
        slot = board.find(_WORK, _FLAGS_AT, _ROWS_AT)
        if slot < 0:
            return []
        mask = self._mask(queue)
        if mask == _CROWD:
            count = SLOTS  # it may be any of those who share the bit
        found: list[int] = []
        while slot >= 0 and len(found) < count:
            if _ROW.unpack_from(board, _ROWS_AT + (slot - _FLAGS_AT) * _ROW.size)[1] & mask:
                board[slot] = AWAKE
                found.append(slot - _FLAGS_AT)
            slot = board.find(_WORK, slot + 1, _ROWS_AT)
        return found

    def taker(self, queue: str) -> Sleeper | None:
        """Find an owner that sleeps for this queue, to be given a message; called inside the gate."""
        board = self.board
        slot = board.find(_WORK, _FLAGS_AT, _ROWS_AT)
        mask = self._mask(queue) if slot >= 0 else 0
        while slot >= 0:
            name, serves, _, is_owner, raised = _ROW.unpack_from(board, _ROWS_AT + (slot - _FLAGS_AT) * _ROW.size)
            if serves & mask & ~_CROWD and is_owner:
                return Sleeper(slot - _FLAGS_AT, name.decode(), raised)
            slot = board.find(_WORK, slot + 1, _ROWS_AT)
        return None

    def take(self, sleeper: Sleeper) -> None:
        """Take down a sleeper's flag; called inside the gate."""
        self.board[_FLAGS_AT + sleeper.slot] = AWAKE

    def leave(self, sleeper: Sleeper) -> None:
        """Put a flag up again that was taken for nothing; called inside the same gate."""
        self.board[_FLAGS_AT + sleeper.slot] = WANTS_WORK

    def silence(self, name: str) -> None:
        """Have nobody give anything to this sleeper any more, which is dead; called inside the gate."""
        for slot in range(SLOTS):
            at = _ROWS_AT + slot * _ROW.size
            if self.board[_FLAGS_AT + slot] != FREE and self.board[at : at + 16] == name.encode():
                self.board[_FLAGS_AT + slot] = AWAKE

    def hand(self, sleeper: Sleeper, copy: tuple[Any, ...]) -> bool:
        """Ring a sleeper with a copy of what it was given; False if it cannot be reached like this."""
        try:
            data = marshal.dumps(copy, 2)
        except ValueError:
            return False  # a value of somebody's own type, a kind of text or number that only the store makes plain
        if _FRAME.size + len(data) > _PIPE_BUF:
            return False
        with self._ringing:
            return self._write(sleeper.slot, _FRAME.pack(sleeper.raised, len(data)) + data, sleeper.name)

    def ring_idle(self, queue: str, count: int) -> None:
        """Wake up to `count` sleepers that serve a queue; called inside the gate."""
        self.ring(self.idle(queue, count))

    def waiters(self, names: Collection[str | None]) -> list[Sleeper]:
        """Take down the flags of those who wait for messages with one of these `reply_to`; called inside the gate.

        Inside, so that the number is of a raising before the end: a waiter that has seen it by then and asks for
        something new must not take a copy of the old end for an answer.
        """
        board = self.board
        slot = board.find(_REPLY, _FLAGS_AT, _ROWS_AT)
        if slot < 0:
            return []
        found = []
        wanted = {_reply_code(ANY), *map(_reply_code, names)}
        while slot >= 0:
            name, _, replies, _, raised = _ROW.unpack_from(board, _ROWS_AT + (slot - _FLAGS_AT) * _ROW.size)
            if replies in wanted:
                board[slot] = AWAKE
                found.append(Sleeper(slot - _FLAGS_AT, name.decode(), raised))
            slot = board.find(_REPLY, slot + 1, _ROWS_AT)
        return found

    def tell(self, waiters: Sequence[Sleeper], copy: tuple[Any, ...] | None = None) -> None:
        """Ring waiters, with a copy of the record that ended if it fits."""
        for waiter in waiters:
            if copy is None or not self.hand(waiter, copy):
                self.ring([waiter.slot])

    def ring_replies(self, names: Collection[str | None]) -> None:
        """Ring plainly those who wait for messages with one of these `reply_to`."""
        self.tell(self.waiters(names))

    def ring(self, slots: Sequence[int]) -> None:
        """Ring plainly in the pipes of these slots."""
        if slots:
            with self._ringing:
                for slot in slots:
                    self._write(slot, _RING)

    def _write(self, slot: int, frame: bytes, asked: str = "") -> bool:
        name = _ROW.unpack_from(self.board, _ROWS_AT + slot * _ROW.size)[0]
        if asked and asked.encode() != name:
            return False  # the slot is another's by now
        known = self._pipes.get(slot)
        if known is None or known[0] != name:
            if known is not None:
                os.close(known[1])
                del self._pipes[slot]
            fd = self._open_pipe(name)
            if fd < 0:
                return False
            self._pipes[slot] = known = (name, fd)
        try:
            os.write(known[1], frame)
        except (BlockingIOError, BrokenPipeError):
            return False  # so many rings that it is awake, or nobody is left to hear
        return True

    def synced_at(self) -> float:
        """When the store was last written through to the disk, by CLOCK_MONOTONIC; 0 if not in this boot."""
        stamp = float(_STAMP.unpack_from(self.board, _STAMP_AT)[0])
        return stamp if stamp <= time.monotonic() else 0.0

    def is_watched(self, now: float) -> bool:
        """Whether a steward looks for writes of its own accord, soon after this time of CLOCK_MONOTONIC."""
        # A stamp of an earlier boot may be anywhere.
        return 0.0 < float(_STAMP.unpack_from(self.board, _WATCHED_AT)[0]) - now < LONGEST_WATCH_S

    def watch(self, until: float) -> None:
        """Note until when a steward will have looked for writes; 0 if it does not go on."""
        _STAMP.pack_into(self.board, _WATCHED_AT, until)

    def stamp_sync(self, started_at: float) -> None:
        """Note that everything written before `started_at` is on the disk."""
        _STAMP.pack_into(self.board, _STAMP_AT, started_at)

    def next_due(self) -> float:
        """When the next waiting message becomes visible (wall time); 0 if nobody knows."""
        return float(_STAMP.unpack_from(self.board, _DUE_AT)[0])

    def note_due(self, at: float) -> None:
        """Note that a message waits for this time; called inside the gate, before the commit."""
        if not 0 < self.next_due() <= at:
            _STAMP.pack_into(self.board, _DUE_AT, at if self.next_due() else 0.0)

    def set_next_due(self, at: float) -> None:
        """Note when the next message is due, having looked; called inside the gate."""
        _STAMP.pack_into(self.board, _DUE_AT, at)

    def sweep(self) -> None:
        """Free the slots and remove the pipes of sleepers that are gone; called inside the gate."""
        for slot in range(SLOTS):
            if self.board[_FLAGS_AT + slot] != FREE and not self._is_heard(slot):
                self.board[_FLAGS_AT + slot] = FREE
        used = {
            _ROW.unpack_from(self.board, _ROWS_AT + slot * _ROW.size)[0].decode()
            for slot in range(SLOTS)
            if self.board[_FLAGS_AT + slot] != FREE
        }
        for entry in os.listdir(self.directory):
            if entry != "board" and entry not in used:
                (self.directory / entry).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the pipes of others; bells, and the board they are on, are closed by their owners."""
        for _, fd in self._pipes.values():
            os.close(fd)
        self._pipes.clear()

    def _free_slot(self) -> int:
        slot = self.board.find(b"\0", _FLAGS_AT, _ROWS_AT)
        if slot < 0:
            self.sweep()
            slot = self.board.find(b"\0", _FLAGS_AT, _ROWS_AT)
        # With every slot taken by the living, two share one: rings are hints, both look more often.
        return slot - _FLAGS_AT if slot >= 0 else SLOTS - 1

    def _mask(self, queue: str) -> int:
        """Return the bit of a queue; 0 if nobody has ever slept for it. Called inside the gate."""
        mask = self._masks.get(queue)
        if mask is None:
            codes = _CODES.unpack_from(self.board, _CODES_AT)
            code = _code(queue)
            if code not in codes:
                return 0 if 0 in codes else _CROWD
            mask = self._masks[queue] = 1 << codes.index(code)
        return mask

    def _enter(self, queue: str) -> int:
        """Give a queue a bit of its own; there is room."""
        place = _CODES.unpack_from(self.board, _CODES_AT).index(0)
        _CODE.pack_into(self.board, _CODES_AT + place * _CODE.size, _code(queue))
        return 1 << place

    def _is_heard(self, slot: int) -> bool:
        fd = self._open_pipe(_ROW.unpack_from(self.board, _ROWS_AT + slot * _ROW.size)[0])
        if fd < 0:
            return False
        os.close(fd)
        return True

    def _open_pipe(self, name: bytes) -> int:
        """Open a sleeper's pipe for writing; -1 if it is gone. Opening fails if nobody reads: that is liveness."""
        path = self.directory / name.decode("ascii", "replace")
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (OSError, ValueError):
            return -1
        if file_fault(os.fstat(fd), path, fifo=True):
            os.close(fd)
            return -1
        return fd


class PipeBell:
    """A bell of one thread; see `localq.storage.base.Bell`."""

    def __init__(self, board: mmap.mmap, slot: int, path: Path, fd: int, flag: int) -> None:
        self._board, self._at, self._path, self._fd, self._flag = board, _FLAGS_AT + slot, path, fd, flag
        self.raised, self._number_at = 0, _ROWS_AT + slot * _ROW.size + _RAISED_AT
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._also: int | None = None
        self._copies: list[tuple[Any, ...]] = []
        self._is_raised = self.is_unsure = False

    def raise_(self) -> None:
        self._is_raised = True
        # Numbered first: whoever sees the flag sees the number.
        self.raised += 1
        _RAISED.pack_into(self._board, self._number_at, self.raised)
        self._board[self._at] = self._flag

    def lower(self) -> None:
        self._is_raised = False
        # Another number: whoever took the flag down before may have written its message and not rung yet. By the
        # time it does, the message may have been recalled and be in other hands.
        self.raised += 1
        self._board[self._at] = AWAKE

    def is_up(self) -> bool:
        return self._board[self._at] == self._flag

    def sleep(self, timeout_s: float, also: int | None = None) -> bool:
        if also != self._also:
            if self._also is not None:
                self._poll.unregister(self._also)
            if also is not None:
                self._poll.register(also, select.POLLIN)
            self._also = also
        if not self._poll.poll(max(0.0, timeout_s) * 1000):
            # Whoever gave something may have died before it could ring, and a ring of somebody else's, come late for
            # an earlier sleep, have covered that up. A look is 30 us.
            self.is_unsure = self.is_unsure or self._is_raised
            return False
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return False
        if not data:
            raise OSError(errno.EBADF, "the bell's pipe was closed by other code of this process")
        if data != _RING:
            self._read(data)
        return True

    def _read(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            raised, length = _FRAME.unpack_from(data, at)
            at += _FRAME.size
            if length and raised == self.raised:
                self._copies.append(marshal.loads(data[at : at + length]))  # noqa: S302 - builds values, runs nothing
            elif length:
                self.is_unsure = True
            at += length

    def looked(self) -> None:
        self.is_unsure = False
        self.raised += 1  # as in `lower`: what is on its way may be given back by whoever looks now
        self._copies.clear()

    def copies(self) -> list[tuple[Any, ...]]:
        copies, self._copies = self._copies, []
        return copies

    def close(self) -> None:
        self._board[self._at] = FREE
        os.close(self._fd)
        self._path.unlink(missing_ok=True)


def _open_board(path: Path) -> mmap.mmap:
    make_file(path)
    fd = open_file(path, os.O_RDWR)
    try:
        if os.fstat(fd).st_size < BOARD_SIZE:
            allocate(fd, BOARD_SIZE, path)
        return mmap.mmap(fd, BOARD_SIZE)
    finally:
        os.close(fd)


def _code(queue: str) -> int:
    data = queue.encode()
    return zlib.crc32(data) << 32 | zlib.adler32(data)


def _reply_code(name: str | None) -> int:
    return 0 if name is None else zlib.crc32(name.encode()) + 1
