"""The table of rows: what each is, and which tests show it.

python tests/rows.py > ROWS.md
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest  # noqa: TC002 - this is a plugin

HERE = Path(__file__).resolve().parent
#: Where the collecting process writes down what it found.
FOUND = "LOCALQ_ROWS_FOUND"


def listed() -> dict[str, Any]:
    """Return what rows.toml says."""
    return tomllib.loads((HERE / "rows.toml").read_text("utf-8"))


def titles() -> dict[str, str]:
    """Return every row's title."""
    return {row: title for rows in listed()["issue"].values() for row, title in rows.items()}


def required() -> list[str]:
    """Return the rows of the issues that are finished."""
    return [row for issue in listed()["finished"] for row in listed()["issue"][issue]]


def marked(*paths: str) -> dict[str, list[str]]:
    """Collect all tests of all tiers, in a process of their own; returns row -> tests that show it."""
    read, write = os.pipe()
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "-p", "rows", "-p", "no:cacheprovider"]
    path = os.pathsep.join(filter(None, (str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        [*words, *(paths or [str(HERE)])], cwd=HERE.parent, env={**os.environ, "PYTHONPATH": path, FOUND: str(write)},
        pass_fds=[write], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    ) as collecting:  # fmt: skip
        os.close(write)
        with open(read, encoding="utf-8") as lines:
            pairs = [line.rstrip("\n").partition("\t")[::2] for line in lines]
    assert collecting.returncode == 0, "the tests could not be collected: run `pytest --collect-only`"
    found: dict[str, list[str]] = defaultdict(list)
    for row, test in pairs:
        found[row].append(test)
    return dict(found)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tell the process that asked which rows each test is marked with."""
    with open(int(os.environ[FOUND]), "w", encoding="utf-8") as file:
        for item in items:
            rows = {row for mark in item.iter_markers("row") for row in mark.args}
            file.writelines(f"{row}\t{item.nodeid}\n" for row in rows)


def shown_as(test: str) -> str:
    """Shorten a test's name to where a reader looks: a parity observation is in its program."""
    program = re.sub(r".*test_parity\.py::\w+\[(\w+)-(\w+)\]", r"parity/programs/\1.py::\2", test)
    return program.removeprefix("tests/").partition("[")[0]


def table(found: dict[str, list[str]]) -> str:
    """Return the table, in Markdown."""
    differs = listed()["differs"]
    lines = ["| row | what | shown by |", "|---|---|---|"]
    for row, title in titles().items():
        tests = sorted({shown_as(test) for test in found.get(row, ())})
        shown = "<br>".join([*([f"differs: {differs[row]}"] if row in differs else []), *tests])
        lines.append(f"| {row} | {title} | {shown or 'nothing yet'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(marked()))
