"""The directory a store lives in: made 0700, looked at before it is trusted, never repaired.

Whoever can write the directory can make workers run tasks, so anything that another user could have
put there is refused, with what is wrong and what to do. Must not open a database file: opening and closing
one beside SQLite drops SQLite's locks (DESIGN.md 4).
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from localq.exceptions import StoreError, StoreFull, StoreReadOnly, StoreReplaced, StoreUntrusted

#: The file whose presence says that a directory is a store. Made first.
MARK = "gate.lock"
#: File systems whose locks or memory maps do not reach other hosts, or cannot be trusted to.
NETWORK = frozenset((
    "nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "9p", "afs", "ncpfs", "ceph", "glusterfs", "lustre", "gpfs",
    "fuse.sshfs", "fuse.glusterfs", "vboxsf", "prl_fs",
))  # fmt: skip


def prepare(directory: Path, must_exist: bool = False) -> None:
    """Make the directory if it is not there, and refuse it if it is not fit for a store.

    Args:
        must_exist: make nothing.

    Raises:
        StoreReplaced: it must exist, and does not.
        StoreUntrusted: somebody else's, open to others, on a network, or full of something else.
        StoreReadOnly: it cannot be made.
    """
    if not must_exist:
        _make(directory)
    elif not (directory / MARK).exists():
        raise removed(directory)
    try:
        fault = _fault(directory)
    except FileNotFoundError:
        raise removed(directory) from None
    if fault:
        raise StoreUntrusted(f"{directory} cannot be a store: {fault}")
    if not must_exist and not (directory / MARK).exists():
        make_file(directory / MARK)
        make_file(directory / ".gitignore", b"*\n")


def _make(directory: Path) -> None:
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        make_directory(directory)
    except OSError as exc:
        if not os.path.lexists(directory):
            what = f"cannot make the store {directory}: {exc.strerror}"
            raise StoreReadOnly(f"{what}; choose another with store=") from exc


def _fault(directory: Path) -> str:
    found = os.lstat(directory)
    if stat.S_ISLNK(found.st_mode) or not stat.S_ISDIR(found.st_mode):
        return "it is not a plain directory"
    fault = _owner_fault(found, directory)
    if fault:
        return fault
    kind = filesystem(found.st_dev)
    if kind in NETWORK:
        return f"it is on a network file system ({kind}), where locks do not hold between hosts; use a local disk"
    # One look: another process may be making the store at this moment, and it makes the mark first.
    found_there = set(os.listdir(directory))
    if MARK not in found_there and found_there - {".gitignore"}:
        return "it is not empty and holds no store; name an empty or new directory"
    return ""


def _owner_fault(found: os.stat_result, path: Path) -> str:
    mine = os.geteuid()
    if found.st_uid != mine:
        if mine == 0:
            return (
                f"it belongs to user {found.st_uid}: run this as that user (sudo -u '#{found.st_uid}' ...), not as root"
            )
        return f"it belongs to user {found.st_uid}, not to you ({mine})"
    if found.st_mode & 0o022:
        return f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o}); chmod go-w {path}"
    return ""


def make_directory(path: Path) -> None:
    """Make a directory of mode 0700 if it is not there, whatever the umask."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    # mkdir's mode is cut by the umask, never widened: a umask of 0777 would leave it unusable.
    os.chmod(path, 0o700)


def make_file(path: Path, content: bytes = b"") -> None:
    """Make a file of mode 0600 if it is not there, whatever the umask."""
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    except OSError as exc:
        raise disk_error(exc, path) from exc
    try:
        os.fchmod(fd, 0o600)
        os.write(fd, content)
    except OSError as exc:
        raise disk_error(exc, path) from exc
    finally:
        os.close(fd)


def removed(directory: Path) -> StoreReplaced:
    """The error for a store that is not there any more."""
    return StoreReplaced(f"{directory} was removed while in use; nothing was written")


def disk_error(exc: OSError, path: Path) -> StoreError:
    """Say in our words what the system said when something could not be made."""
    if exc.errno == errno.ENOENT:
        return removed(path.parent)
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"cannot make {path}: {exc.strerror}; free some space")
    return StoreReadOnly(f"cannot make {path}: {exc.strerror}; choose another place with store=")


def allocate(fd: int, size: int, path: Path) -> None:
    """Give a file its size and its blocks now: a full disk must not become a SIGBUS in the middle of a task."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:
            os.write(fd, bytes(size))
    except OSError as exc:
        raise disk_error(exc, path) from exc


def open_file(path: Path, flags: int) -> int:
    """Open a file of the store and return its descriptor.

    Raises:
        StoreUntrusted: it is a link, a device, somebody else's, or open to others.
        FileNotFoundError: there is none.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise StoreUntrusted(f"cannot open {path}: {exc.strerror}") from exc
    fault = file_fault(os.fstat(fd), path)
    if fault:
        os.close(fd)
        raise StoreUntrusted(f"{path} is not a file of a store: {fault}")
    return fd


def file_fault(found: os.stat_result, path: Path, fifo: bool = False) -> str:
    """Say what is wrong with a file of the store; empty if nothing is."""
    right = stat.S_ISFIFO(found.st_mode) if fifo else stat.S_ISREG(found.st_mode)
    if not right or found.st_nlink > 1:
        return f"it is not {'a pipe' if fifo else 'a plain file with one name'}"
    return _owner_fault(found, path)


def filesystem(device: int) -> str:
    """Return the type of the file system with this device number; empty where nobody tells."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                head, _, tail = line.partition(" - ")
                if head.split(" ", 3)[2] == wanted:
                    return tail.split(" ", 1)[0]
    except OSError:
        pass
    return ""
