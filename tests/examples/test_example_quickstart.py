"""examples/quickstart, in two terminals and by its one command."""

from __future__ import annotations

import subprocess
import sys

EXPECTED = """\
4 + 4 = 8
ready: True
state: SUCCESS
1 / 0 raised ZeroDivisionError
traceback ends: ZeroDivisionError: division by zero
(2 + 3 + 5) / 4 = 2.5
"""


def test_its_one_command_starts_a_worker_and_prints_results(example, run):
    assert run(example / "run.py").stdout == EXPECTED


def test_two_terminals_share_a_store_whatever_their_directories(example, run, tmp_path):
    # Given a worker started in the example's own directory
    words = [sys.executable, "-m", "localq", "-A", "tasks", "worker", "-c", "1", "-l", "WARNING"]
    worker = subprocess.Popen(words, cwd=example)
    try:
        # When the program is started in another one
        assert run(example / "main.py").stdout == EXPECTED
    finally:
        worker.terminate()
    # Then both used the store beside tasks.py, and the worker ends well when it is told to
    assert worker.wait(30) == 0
    assert (example / ".localq").is_dir()
    assert not (tmp_path / ".localq").exists()
