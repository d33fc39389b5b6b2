"""Fault points: they stand in the code under the names that are listed, and halt one process at one of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from commands import environment
from forking import ended, forked
from waiting import wait_until

import localq
from localq import faults
from localq.exceptions import ImproperlyConfigured

HOUSE = Path(localq.__file__).parent


def test_every_point_stands_in_the_code_and_no_other():
    """That each is passed through, the table in tests/crash/test_fault_points.py shows."""
    found = Counter()
    for path in HOUSE.rglob("*.py"):
        found.update(re.findall(r"faults\.at\((.*)\)", path.read_text("utf-8")))
    assert set(found) == {f'"{point}"' for point in faults.POINTS}


def test_without_the_variable_a_point_does_nothing_and_is_no_python_call():
    assert faults.armed(None) is faults.armed("") is len


@pytest.mark.parametrize("asked", ["put.held", "put.held:", "nowhere:/tmp", ":/tmp", "put:/tmp", " "])
def test_a_value_that_means_nothing_is_refused_with_the_points_there_are(asked):
    with pytest.raises(ImproperlyConfigured, match=r"<point>:<directory>; points: put\.held, put\.written"):
        faults.armed(asked)


def test_it_is_refused_at_the_import():
    done = subprocess.run(
        [sys.executable, "-c", "import localq"], env=environment(LOCALQ_FAULT="put.hold:/tmp"), capture_output=True,
        text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode
    assert "LOCALQ_FAULT='put.hold:/tmp' is not <point>:<directory>" in done.stderr


def test_a_point_that_is_not_listed_is_an_error_where_points_count(tmp_path):
    with pytest.raises(ValueError, match=r"no fault point is named 'put\.hold'"):
        faults.armed(f"put.held:{tmp_path}")("put.hold")


def test_the_first_to_come_halts_and_the_others_pass(tmp_path):
    at = faults.armed(f"put.held:{tmp_path}")
    pid = forked(lambda: at("put.held"))
    try:
        wait_until(lambda: said_by(tmp_path / "put.held") == str(pid), what="somebody halts")
        at("put.held")
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        (tmp_path / "go").touch()
        assert ended(pid) == 0
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_another_point_and_a_directory_that_is_not_there_yet_are_passed(tmp_path):
    faults.armed(f"put.held:{tmp_path}")("put.written")
    faults.armed(f"put.held:{tmp_path}/later")("put.held")
    assert list(tmp_path.iterdir()) == []


def test_a_halt_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "LIMIT_S", 0.01)
    faults.armed(f"put.held:{tmp_path}")("put.held")
    assert said_by(tmp_path / "put.held") == str(os.getpid())


def said_by(path):
    return path.read_text() if path.exists() else ""
