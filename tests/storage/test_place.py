"""The directory of a store: made private, looked at before it is trusted, refused and never repaired."""

from __future__ import annotations

import os
import stat

import pytest
from forking import ended, forked

from localq.exceptions import StoreReadOnly, StoreUntrusted
from localq.message import Message
from localq.storage import place
from localq.storage.sqlite import SqliteStorage


def message(id="one"):
    return Message(id, "proj.add", b"[]", checksum=1)


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def everything_below(path):
    return [path, *path.rglob("*")]


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def made(directory):
    """A store that exists and is closed."""
    storage = SqliteStorage(directory)
    storage.put([message()])
    storage.close()
    return directory


# -- Making it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777], ids=oct)
def test_a_store_is_private_whatever_the_umask(directory, umask):
    before = os.umask(umask)
    try:
        storage = SqliteStorage(directory)
        storage.put([message()])
        storage.enlist({"kind": "test"})
        storage.bell(("celery",))
        modes = {path: mode(path) for path in everything_below(directory)}
    finally:
        os.umask(before)
    assert len(modes) > 8
    for path, found in modes.items():
        assert found == (0o700 if path.is_dir() else 0o600), path
    storage.close()


def test_parents_are_made_and_the_store_keeps_itself_out_of_git(tmp_path):
    directory = tmp_path / "a" / "b" / "store"
    place.prepare(directory)
    assert (directory / ".gitignore").read_text() == "*\n"
    assert (directory / place.MARK).exists()


def test_preparing_again_changes_nothing(made):
    before = {path: os.lstat(path).st_mtime_ns for path in everything_below(made)}
    place.prepare(made)
    assert {path: os.lstat(path).st_mtime_ns for path in everything_below(made)} == before


def test_a_readable_directory_is_fine(directory):
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    place.prepare(directory)
    assert mode(directory) == 0o755


def test_a_place_below_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreReadOnly, match="choose another with store="):
        place.prepare(tmp_path / "file" / "store")


# -- Refusing it -----------------------------------------------------------------------------------


def refused(directory, match):
    """The store is refused with these words, and left as it was."""
    before = sorted(directory.rglob("*")) if directory.is_dir() else []
    with pytest.raises(StoreUntrusted, match=match):
        SqliteStorage(directory).put([message("two")])
    assert (sorted(directory.rglob("*")) if directory.is_dir() else []) == before


@pytest.mark.parametrize("bits", [0o020, 0o002], ids=oct)
def test_a_directory_that_others_may_write_to_is_refused_with_the_way_out(made, bits):
    made.chmod(0o700 | bits)
    refused(made, "chmod go-w")
    assert mode(made) == 0o700 | bits


def test_a_directory_full_of_something_else_is_refused(directory):
    directory.mkdir(mode=0o700)
    (directory / "thesis.tex").write_text("years of work")
    refused(directory, "not empty and holds no store")
    assert (directory / "thesis.tex").read_text() == "years of work"


def test_a_link_to_a_directory_is_refused(made, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(made)
    refused(link, "not a plain directory")


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("precious")
    refused(tmp_path / "file", "not a plain directory")
    assert (tmp_path / "file").read_text() == "precious"


FILES = ["gate.lock", "queue.db", "bells/board"]


@pytest.mark.parametrize("name", FILES)
def test_a_link_in_the_place_of_a_file_is_refused_and_not_followed(made, tmp_path, name):
    target = tmp_path / "target"
    (made / name).rename(target)
    (made / name).symlink_to(target)
    before = target.read_bytes()
    refused(made, name)
    assert target.read_bytes() == before


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_the_place_of_a_file_is_refused_and_does_not_hang(made, name):
    (made / name).unlink()
    os.mkfifo(made / name, 0o600)
    refused(made, name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_a_second_name_is_refused(made, tmp_path, name):
    os.link(made / name, tmp_path / "second")
    refused(made, name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_others_may_write_to_is_refused(made, name):
    (made / name).chmod(0o666)
    refused(made, "others may write")
    assert mode(made / name) == 0o666


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@as_root
def test_root_is_told_to_run_as_the_owner(made):
    os.chown(made, 65534, 65534)
    refused(made, "sudo -u '#65534'")


@as_root
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_somebody_else_is_refused(made, name):
    os.chown(made / name, 65534, 65534)
    refused(made, "belongs to user 65534")


@as_root
def test_somebody_elses_store_is_refused_to_a_plain_user(made):
    for path in [made, *made.parents][:-1]:
        path.chmod(0o755)

    def as_nobody():
        os.setgid(65534)
        os.setuid(65534)
        with pytest.raises(StoreUntrusted, match=r"belongs to user 0, not to you \(65534\)"):
            place.prepare(made)

    assert ended(forked(as_nobody)) == 0


@pytest.mark.parametrize("kind", sorted(place.NETWORK))
def test_a_network_file_system_is_refused_by_its_name(directory, monkeypatch, kind):
    """The answer of the kernel is replaced here: there is no server to mount from."""
    monkeypatch.setattr(place, "filesystem", lambda device: kind)
    directory.mkdir(mode=0o700)
    refused(directory, f"network file system \\({kind}\\)")


def test_the_kernel_tells_which_file_system_a_place_is_on():
    assert place.filesystem(os.stat("/proc").st_dev) == "proc"
    assert place.filesystem(0xFFFFF) == ""
