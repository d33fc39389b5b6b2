"""Who may hold claims, and whether they live: one locked file per process, and its notes.

    owners/<name>         facts (JSON), under a POSIX lock for as long as the process lives
    owners/<name>.notes   their layout, a slot (what is running), a word (which batch others have recalled), why
                          somebody is about to kill it, more slots (what runs beside that), and a journal (what has
                          ended, not yet settled)

Liveness is the lock: the kernel drops it at any kind of death, a fork does not inherit it, and no
clock is asked. POSIX locks have one trap: a process that opens and closes the file loses its lock.
So nobody probes its own files, and a free lock counts as death only if the recorded process is gone
too. Notes of another layout are another version's: they are neither read nor written, and if their owner is dead
nobody is told of it, since what it had begun cannot be known. Must not decide what becomes of a dead owner's claims.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import marshal
import mmap
import os
import struct
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localq import faults
from localq.exceptions import StoreBusy
from localq.message import Claim, Message, Outcome
from localq.storage.base import Doing, Estate, OwnerInfo, Started
from localq.storage.place import allocate, make_directory, make_file, open_file, removed

logger = logging.getLogger("localq.storage")

#: What notes begin with; another one for every change of what stands where.
LAYOUT = b"localq 1"
#: Notes that nobody has written yet, or whose first page a power cut took.
_BLANK = bytes(len(LAYOUT))
#: Bytes of an owner's notes. An outcome that does not fit is settled before the next task starts.
NOTES_SIZE = 256 * 1024
#: Batch; how many come after the running task; how many bytes of the journal count; that task's mode, deadline, token
#: and seq. The seq is written last: cut short before it, the slot is not of a claim that is open.
_SLOT = struct.Struct("=QQQQdQQ")
_COUNT = struct.Struct("=Q")
_SLOT_AT = len(LAYOUT)
_USED_AT = _SLOT_AT + 2 * _COUNT.size
#: The batch that others have recalled. This and the reason are all that its owner does not write.
_RECALLED_AT = _SLOT_AT + _SLOT.size
#: Of which task's sake it is about to be killed, and why: seq, token, length of the text, the text.
_REASON = struct.Struct("=QQH")
_REASON_AT = _RECALLED_AT + _COUNT.size
_REASON_SIZE = 512
#: What runs beside the task in the slot: mode, deadline, token, seq of each.
_PLACE = struct.Struct("=QdQQ")
_PLACES_AT = _REASON_AT + _REASON_SIZE
#: How many tasks one owner can run at once, beside the one in its slot.
PLACES = 256
_JOURNAL_AT = _PLACES_AT + PLACES * _PLACE.size
_LENGTH = struct.Struct("=I")
#: How long a recall takes to be seen, in seconds. The owner writes its slot and then reads the word, the recaller
#: writes the word and then reads the slot: with this between, one of them sees the other.
_SEEN_S = 0.001
#: Seconds that one who recalls waits for another; it takes two system calls.
LOCKED_S = 2.0
#: How often a process begins anew to enlist.
_TRIES = 10


class Owners:
    """The directory `owners/` of a store, as one process sees it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        make_directory(directory)
        #: The dead of another version that were told of.
        self._unread: set[str] = set()
        #: What was told of this process's own owners: their files are not opened again, for the lock's sake.
        self._mine: dict[str, dict[str, object]] = {}
        _views.add(self)

    def enlist(self, about: dict[str, object], journal: bool) -> LockedOwner:
        """Make and lock this process's file; see `Storage.enlist`."""
        for _ in range(_TRIES):
            try:
                return self._enlist({**identity(), **about}, journal)
            except FileNotFoundError:
                continue  # somebody took our file for a dead process's before anything was in it; or all is gone
        raise removed(self.directory.parent)

    def _enlist(self, facts: dict[str, object], journal: bool) -> LockedOwner:
        name = os.urandom(8).hex()
        path, hidden = self.directory / name, self.directory / f".{name}"
        # Locked under a hidden name first: nobody ever sees a named file that is not locked.
        self._mine[name] = facts  # before there is a file: others' rounds of this process must not open it
        fd = -1
        try:
            make_file(hidden, json.dumps(facts).encode())
            fd = open_file(hidden, os.O_RDWR)
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            notes = _make_notes(self.directory / f"{name}.notes") if journal else None
            os.rename(hidden, path)
        except Exception:
            self._mine.pop(name)
            for left in (self.directory / f"{name}.notes", hidden):
                left.unlink(missing_ok=True)
            if fd >= 0:
                os.close(fd)
            raise
        return LockedOwner(self, name, fd, notes)

    def is_alive(self, name: str) -> bool:
        """Say whether an owner lives."""
        if name in self._mine:
            return True
        try:
            fd = open_file(self.directory / name, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            # Shared, so that two who ask at once do not take each other for the owner.
            fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno in (errno.EACCES, errno.EAGAIN):
                return True
            raise
        else:
            return is_running(_facts(os.pread(fd, 65536, 0)))
        finally:
            os.close(fd)

    def infos(self, named: Sequence[str] = ()) -> list[OwnerInfo]:
        """Return everybody who has a file here, and those named who have none any more: they are dead.

        Left out, and logged once, are the dead whose notes another version wrote.
        """
        try:
            entries = os.listdir(self.directory)
        except FileNotFoundError:
            raise removed(self.directory.parent) from None
        for entry in entries:
            if entry.startswith("."):
                self._tidy(entry)
        names = sorted({*(entry for entry in entries if "." not in entry), *named})
        found = [OwnerInfo(name, self.is_alive(name), self._about(name), self.doing(name)) for name in names]
        return [info for info in found if info.alive or not self._is_of_another_version(info.name)]

    def _is_of_another_version(self, name: str) -> bool:
        """Whether an owner's notes have a layout that is not ours; says so once."""
        head = self._head(name, len(LAYOUT))
        if head in (b"", _BLANK, LAYOUT):
            return False
        if name not in self._unread:
            self._unread.add(name)
            logger.warning(
                "%s was written by another version of localq (layout %r, this one has %r), and its process is dead. "
                "The tasks that it held stay as they are until a worker of that version runs. Or remove the file: "
                "then they go back to their queues, also those that had begun",
                self.directory / f"{name}.notes", head, LAYOUT,
            )  # fmt: skip
        return True

    def _tidy(self, hidden: str) -> None:
        """Remove what is left of a process that died while it enlisted."""
        name = hidden[1:]
        if name in self._mine:
            return
        # A file that is empty may belong to somebody who is about to fill it; he finds it gone and makes another.
        # Else its lock is tried last: to try it is to hold it for a moment, and its owner may be about to take it.
        facts = self._about(hidden)
        if facts and (is_running(facts) or self.is_alive(hidden)):
            return
        try:
            (self.directory / hidden).unlink()
        except FileNotFoundError:
            return  # it has its name by now, and lives
        (self.directory / f"{name}.notes").unlink(missing_ok=True)

    def _about(self, name: str) -> dict[str, object]:
        if name in self._mine:
            return self._mine[name]
        try:
            fd = open_file(self.directory / name, os.O_RDONLY)
        except FileNotFoundError:
            return {}
        try:
            return _facts(os.pread(fd, 65536, 0))
        finally:
            os.close(fd)

    def doing(self, name: str) -> Doing | None:
        """Say what an owner is at."""
        data = self._read(name, _RECALLED_AT)
        if len(data) < _RECALLED_AT:
            return None
        batch, left, used, _, _, token, seq = _SLOT.unpack_from(data, _SLOT_AT)
        return Doing(batch, seq, token, left, used)

    def recall(self, name: str, batch: int) -> None:
        """Have an owner begin nothing more of a batch; what its notes say afterwards is what it has begun."""
        fd = self._open(name)
        if fd is None:
            return
        try:
            # One at a time, and never back: a batch that is recalled by one must not begin again for the sake of
            # another, who was about to recall the one before.
            _lock(fd, name)
            if batch > _COUNT.unpack(os.pread(fd, _COUNT.size, _RECALLED_AT))[0]:
                os.pwrite(fd, _COUNT.pack(batch), _RECALLED_AT)
            faults.at("recall.word")
        finally:
            os.close(fd)
        time.sleep(_SEEN_S)

    def notes(self, name: str, claims: list[Claim]) -> Estate:
        """Complete an estate with what its owner noted: what was running, and the ended outcomes."""
        data = self._read(name, NOTES_SIZE)
        if len(data) < _JOURNAL_AT:
            return Estate(claims)
        batch, _, used, *slot = _SLOT.unpack_from(data, _SLOT_AT)
        ended = _outcomes(data[_JOURNAL_AT : _JOURNAL_AT + used])
        # A slot keeps its task until the next begins: one whose end was noted is not running.
        over = {(outcome.seq, outcome.token) for outcome in ended}
        slots = [slot, *_PLACE.iter_unpack(data[_PLACES_AT:_JOURNAL_AT])]
        doomed, reason = _reason(data)
        started = tuple(
            Started(seq, token, mode, deadline, reason if (seq, token) == doomed else "", place)
            for place, (mode, deadline, token, seq) in enumerate(slots) if seq and (seq, token) not in over
        )  # fmt: skip
        return Estate(claims, started, ended, batch)

    def condemn(self, name: str, seq: int, token: int, reason: str) -> None:
        """Note for the sake of which task an owner is about to be killed, and why: whoever sweeps settles by it."""
        fd = self._open(name)
        if fd is None:
            return
        try:
            text = reason.encode()[: _REASON_SIZE - _REASON.size]
            os.pwrite(fd, _REASON.pack(seq, token, len(text)) + text, _REASON_AT)
        finally:
            os.close(fd)

    def _open(self, name: str) -> int | None:
        """Open notes to write in them; None if there are none, or of another layout."""
        if not self._read(name, len(LAYOUT)):
            return None
        try:
            return open_file(self.directory / f"{name}.notes", os.O_RDWR)
        except FileNotFoundError:
            return None

    def _read(self, name: str, size: int) -> bytes:
        """Read the beginning of an owner's notes; nothing if there are none, or of another layout."""
        data = self._head(name, size)
        return data if data.startswith(LAYOUT) else b""

    def _head(self, name: str, size: int) -> bytes:
        try:
            fd = open_file(self.directory / f"{name}.notes", os.O_RDONLY)
        except FileNotFoundError:
            return b""
        try:
            return os.pread(fd, size, 0)
        finally:
            os.close(fd)

    def retire(self, name: str) -> None:
        """Remove a dead owner's files."""
        for path in (self.directory / f"{name}.notes", self.directory / name):
            path.unlink(missing_ok=True)


#: Every view of this process. One hook for all: one that is registered stays, whatever becomes of its view.
_views: weakref.WeakSet[Owners] = weakref.WeakSet()


def _forget_the_parents() -> None:
    for view in list(_views):
        view._mine.clear()


os.register_at_fork(after_in_child=_forget_the_parents)


class LockedOwner:
    """This process's right to hold claims; see `localq.storage.base.Owner`."""

    def __init__(self, owners: Owners, name: str, fd: int, notes: mmap.mmap | None) -> None:
        self.name = name
        self._owners, self._fd, self._notes = owners, fd, notes
        self._batch = self._used = 0

    def turn(self) -> bool:
        if self._notes is None:
            return False
        was_recalled = self._is_recalled()
        self._batch += 1
        # Numbered before it is claimed: a recall of the one before must not take what is claimed from here on.
        _SLOT.pack_into(self._notes, _SLOT_AT, self._batch, 0, self._used, 0, 0.0, 0, 0)
        return was_recalled

    def begin(self, claim: Claim, mode: int, left: int = 0, deadline: float = 0.0, place: int = 0) -> bool:
        if self._notes is None:
            return True
        if place:
            at = _PLACES_AT + (place - 1) * _PLACE.size
            _PLACE.pack_into(self._notes, at, mode, deadline, claim.token, claim.seq)
        else:
            _SLOT.pack_into(
                self._notes, _SLOT_AT, self._batch, left, self._used, mode, deadline, claim.token, claim.seq
            )
        return not self._is_recalled()

    def free(self, place: int) -> None:
        if self._notes is not None:
            _PLACE.pack_into(self._notes, _PLACES_AT + (place - 1) * _PLACE.size, 0, 0.0, 0, 0)

    def _is_recalled(self) -> bool:
        return bool(self._batch and _COUNT.unpack_from(self._notes, _RECALLED_AT)[0] == self._batch)  # type: ignore[arg-type]

    def end(self, outcome: Outcome) -> bool:
        """Note an outcome; returns False if it did not fit and must be settled at once."""
        if self._notes is None:
            return False
        try:
            data = marshal.dumps(_plain(outcome), 2)
        except ValueError:
            return False  # it holds something of a class of the user's: an IntEnum for a priority
        start = _JOURNAL_AT + self._used
        stop = start + _LENGTH.size + len(data)
        if stop > NOTES_SIZE:
            return False
        _LENGTH.pack_into(self._notes, start, len(data))
        self._notes[start + _LENGTH.size : stop] = data
        # Counted last: what a death cuts short does not count.
        self._used = stop - _JOURNAL_AT
        _COUNT.pack_into(self._notes, _USED_AT, self._used)
        return True

    def settled(self) -> bool:
        self._used = 0
        if self._notes is None:
            return False
        _SLOT.pack_into(self._notes, _SLOT_AT, self._batch, 0, 0, 0, 0.0, 0, 0)
        return self._is_recalled()

    def close(self) -> None:
        if self._owners._mine.pop(self.name, None) is None:
            return
        if self._notes is not None:
            self._notes.close()
            self._notes = None
        # Its process may live on: without facts, only the lock says whether an owner does.
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def _lock(fd: int, name: str) -> None:
    """Lock the notes of an owner against others who recall.

    Raises:
        StoreBusy: somebody keeps them locked for longer than any recall takes.
    """
    deadline = time.monotonic() + LOCKED_S
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StoreBusy(
                    f"the notes of owner {name} are locked by a process that has stopped (Ctrl-Z?)"
                ) from None
        time.sleep(_SEEN_S)


def _make_notes(path: Path) -> mmap.mmap:
    make_file(path)
    fd = open_file(path, os.O_RDWR)
    try:
        allocate(fd, NOTES_SIZE, path)
        os.pwrite(fd, LAYOUT, 0)
        return mmap.mmap(fd, NOTES_SIZE)
    finally:
        os.close(fd)


def _plain(outcome: Outcome) -> tuple[Any, ...]:
    """Only exact tuples, for marshal: 0.5 us, and unlike pickle reading it runs no code."""
    if outcome.again is None and not outcome.sends:
        return tuple(outcome)
    again = tuple(outcome.again) if outcome.again else None
    return tuple(outcome._replace(again=again, sends=tuple(map(tuple, outcome.sends))))  # type: ignore[arg-type]


def _outcomes(data: bytes) -> list[Outcome]:
    found: list[Outcome] = []
    at = 0
    while at < len(data):
        try:
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size
            outcome = Outcome(*marshal.loads(data[at : at + length]))  # noqa: S302 - builds values, runs nothing
            again = Message(*outcome.again) if outcome.again else None
            found.append(outcome._replace(again=again, sends=tuple(Message(*sent) for sent in outcome.sends)))
        except Exception:
            # A power cut kept some of its pages and not others: what cannot be read was not noted.
            break
        at += length
    return found


def _reason(data: bytes) -> tuple[tuple[int, int], str]:
    seq, token, length = _REASON.unpack_from(data, _REASON_AT)
    start = _REASON_AT + _REASON.size
    return (seq, token), data[start : start + length].decode(errors="replace")


def identity() -> dict[str, object]:
    """Facts that tell this process from a later one with the same number."""
    return {"pid": os.getpid(), "started": _start_time(os.getpid()), "boot": _text("/proc/sys/kernel/random/boot_id"),
            "pid_ns": _link("/proc/self/ns/pid")}  # fmt: skip


def _facts(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def is_running(facts: dict[str, Any]) -> bool:
    """Whether the recorded process is here, in this boot and this pid namespace, whatever its lock says."""
    here = identity()
    if not facts or facts.get("boot") != here["boot"] or facts.get("pid_ns") != here["pid_ns"]:
        return False
    started = _start_time(int(facts.get("pid", 0)))
    return bool(started) and started == facts.get("started")


def _start_time(pid: int) -> str:
    """The kernel's start time of a process; empty for one that is gone, or is dead and waits to be reaped."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
