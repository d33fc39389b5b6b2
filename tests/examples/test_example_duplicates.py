"""examples/duplicates, on directories whose answer is known."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with two groups of duplicates among other things."""
    made = tmp_path / "files"
    (made / "deep" / "deeper").mkdir(parents=True)
    for name, content in {
        "a.txt": b"same", "deep/b.txt": b"same", "deep/deeper/c.txt": b"same", "large-1": b"x" * 100_000,
        "deep/large-2": b"x" * 100_000, "alone": b"alone", "empty-1": b"", "empty-2": b"",
    }.items():  # fmt: skip
        (made / name).write_bytes(content)
    (made / "link").symlink_to(made / "a.txt")
    return made


def test_it_finds_the_duplicates_and_agrees_with_a_plain_loop(example, run, directory):
    done = run(example / "main.py", directory)
    assert re.sub(r"\d+\.\d+ s", "N s", done.stdout) == (
        f"{directory}: 6 files, 6 tasks, 2 child processes\n"
        "2 x 100,000 bytes\n    deep/large-2\n    large-1\n"
        "3 x 4 bytes\n    a.txt\n    deep/b.txt\n    deep/deeper/c.txt\n"
        "6 files, 2 groups of duplicates, 3 copies, 100,008 bytes to gain\n"
        "worker: N s, from its start to its stop; plain loop: N s\n"
        "same answer as a plain loop: yes\n"
    )
    assert "[#" not in done.stderr  # nobody looks at a bar that is not on a terminal


def test_it_searches_a_package_of_the_standard_library(example, run):
    package = Path(sysconfig.get_path("stdlib")) / "json"
    done = run(example / "main.py", package)
    number = sum(1 for path in package.rglob("*") if path.is_file() and path.stat().st_size)
    assert done.stdout.startswith(f"{package}: {number} files, {number} tasks, 2 child processes\n")
    assert done.stdout.endswith("same answer as a plain loop: yes\n")


def test_it_keeps_out_of_its_own_store(example, run, directory):
    # Given a store within the directory that is searched
    store = directory / "store"
    # When it is searched twice, the second time with the store there from the beginning
    first = run(example / "main.py", directory, LOCALQ_STORE=str(store))
    again = run(example / "main.py", directory, LOCALQ_STORE=str(store))
    # Then its files are neither read nor counted
    assert store.is_dir()
    assert "6 files, 6 tasks" in first.stdout
    assert "6 files, 6 tasks" in again.stdout


def test_names_that_are_no_text_come_through(example, run, directory):
    path = os.fsencode(directory) + b"/no-text-\xff"
    try:
        Path(os.fsdecode(path)).write_bytes(b"same")
    except OSError:
        pytest.skip("this file system takes no such names")
    done = run(example / "main.py", directory, PYTHONUTF8="1")
    assert "4 x 4 bytes" in done.stdout
    assert "same answer as a plain loop: yes" in done.stdout


def test_a_worker_that_cannot_start_ends_the_program(example, run, directory, tmp_path):
    full = tmp_path / "no-store"
    full.mkdir()
    (full / "something-else").touch()
    done = run(example / "main.py", directory, code=1, LOCALQ_STORE=str(full))
    assert "cannot be a store" in done.stderr


def test_a_file_that_cannot_be_read_is_reported_not_fatal(example, tmp_path):
    found = _tasks(example)
    batch = found.hash_files(str(tmp_path), ["nothing-here"])
    assert found.report([batch]) == {"files": 1, "unreadable": ["nothing-here"], "groups": []}


def test_what_is_no_directory_is_refused(example, run):
    assert "is not a directory" in run(example / "main.py", "nowhere", code=2).stderr


def test_a_bar_is_drawn_on_a_terminal(example, directory):
    main, worker = os.openpty()
    words = [sys.executable, example / "main.py", directory]
    done = subprocess.run(words, check=False, stdout=subprocess.DEVNULL, stderr=worker, timeout=50)
    os.close(worker)
    drawn = b""
    try:
        while part := os.read(main, 65536):
            drawn += part
    except OSError:
        pass  # Linux's way to say that the other end is closed
    os.close(main)
    assert done.returncode == 0, drawn
    assert f"[{'#' * 40}] 6/6".encode() in drawn


def _tasks(example: Path):
    spec = importlib.util.spec_from_file_location("duplicates_tasks", example / "tasks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
