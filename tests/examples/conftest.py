"""Examples run as programs, on copies, so that their stores do not end up in the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
#: Seconds an example may take.
LIMIT_S = 50


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a copy of the example that the test's module is named after."""
    name = request.path.stem.removeprefix("test_example_")
    ignored = shutil.ignore_patterns("__pycache__", ".localq")
    return Path(shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=ignored))


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a Python program to its end."""

    def run(program: Path, *words: object, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("LOCALQ_")}
        done = subprocess.run(
            [sys.executable, program, *map(str, words)], check=False, capture_output=True, text=True,
            timeout=LIMIT_S, cwd=program.parent.parent, env={**clean, **variables},
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run
