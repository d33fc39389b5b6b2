"""README.md is true: its programs run and print what it says, its commands work, its links and names exist.

python blocks   begin with their file's name; all are written to one directory and run there, with a real worker
bash blocks     run there too, in order, but for those that install or measure: these are taken apart
text blocks     are what the bash block before them prints
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from localq.message import Claim, Message
from localq.recovery import EARLY, LATE, LATE_REJECT, MAX_REDELIVERIES, RETRY, Mode, verdicts
from localq.storage.base import Estate, Started
from localq.worker import supervisor

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

#: Seconds a command of the README may take here.
LIMIT_S = 55
#: Commands that start something which runs until it is stopped.
IN_BACKGROUND = ("localq -A tasks worker",)
#: Commands that install or measure, each with a test of its own below.
TAKEN_APART = ("python3 -m venv", "pip install", "python -m benchmarks")


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str


BLOCKS = [Block(*match) for match in FENCE.findall(README)]
COMMANDS = [line for block in BLOCKS if block.language == "bash" for line in block.text.splitlines()]
FIRST, SECOND = (line for line in COMMANDS if line.startswith("python3 -m venv"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with all files that the README shows."""
    made = tmp_path_factory.mktemp("readme")
    for block in BLOCKS:
        if block.language == "python":
            (made / file_name(block)).write_text(block.text)
    return made


@pytest.fixture(scope="module")
def worker(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The worker that the README starts."""
    command = next(line for line in COMMANDS if line in IN_BACKGROUND)
    started = subprocess.Popen(words_of(command), cwd=directory, env=environment(), stderr=subprocess.DEVNULL)
    yield started
    started.terminate()
    assert started.wait(30) == 0


def file_name(block: Block) -> str:
    found = re.match(r"# (\w+\.py)\n", block.text)
    assert found, f"a python block must begin with the name of its file: {block.text[:60]!r}"
    return found[1]


def environment() -> dict[str, str]:
    """Have the programs of this very Python found first, and no setting of localq's."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LOCALQ_")}
    return {**clean, "PATH": os.pathsep.join([str(Path(sys.executable).parent), clean["PATH"]])}


def words_of(command: str) -> list[str]:
    """Split a command, with `python` and `localq` those that run this test."""
    words = shlex.split(command)
    if words[0].removeprefix(".venv/bin/") == "python":
        return [sys.executable, *words[1:]]
    if words[0] == "localq":
        return [sys.executable, "-m", "localq", *words[1:]]
    return words


def run(command: str, cwd: Path) -> str:
    """Run a command; return what it printed."""
    done = subprocess.run(
        words_of(command), check=False, capture_output=True, text=True, cwd=cwd, env=environment(), timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_block_is_of_a_language_that_is_tested():
    assert {block.language for block in BLOCKS} == {"python", "bash", "text"}


def commands_to_run() -> list[tuple[str, str | None]]:
    """Return the commands, and the text block after each that is the last of its block."""
    found: list[tuple[str, str | None]] = []
    for at, block in enumerate(BLOCKS):
        if block.language != "bash":
            continue
        after = BLOCKS[at + 1] if at + 1 < len(BLOCKS) else None
        lines = block.text.splitlines()
        shown = after.text if after is not None and after.language == "text" else None
        found += [(line, shown if line == lines[-1] else None) for line in lines]
    return [(line, shown) for line, shown in found if not line.startswith((*IN_BACKGROUND, *TAKEN_APART))]


@pytest.mark.parametrize(("command", "shown"), commands_to_run())
def test_a_command_works_and_prints_what_is_shown(command, shown, directory, worker):
    printed = run(command, directory)
    if shown is not None:
        assert printed == shown


def test_every_text_block_is_compared():
    shown = [block.text for block in BLOCKS if block.language == "text"]
    assert [text for _, text in commands_to_run() if text is not None] == shown


def test_the_tests_it_shows_pass(directory):
    tests = sorted(path.name for path in directory.glob("test_*.py"))
    assert tests
    run(f"python -m pytest -q -p no:cacheprovider --rootdir . {shlex.join(tests)}", directory)


def test_every_program_it_shows_is_used(directory):
    used = {"tasks.py", *(word for line in COMMANDS for word in shlex.split(line))}
    assert {path.name for path in directory.glob("*.py") if not path.name.startswith("test_")} <= used


# -- The two set-up commands ---------------------------------------------------------------------


def test_the_set_up_commands_are_one_line_each_and_use_one_environment():
    for command in (FIRST, SECOND):
        make, *others = command.split(" && ")
        assert make.split()[:3] == ["python3", "-m", "venv"]
        assert make.split()[-1] == ".venv"
        assert others
        assert all(other.startswith(".venv/bin/") for other in others)


def test_the_environment_of_the_set_up_commands_can_be_made(tmp_path):
    for command in (FIRST, SECOND):
        options = shlex.split(command.split(" && ")[0])[3:-1]
        assert set(options) <= {"--upgrade-deps"}
    # Without pip, which is what takes time; whether there is one is the system's affair.
    venv.create(tmp_path / ".venv", with_pip=False)
    assert (tmp_path / ".venv" / "bin" / "python").exists()


def test_the_set_up_commands_install_this_project_and_a_group_it_has():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
    assert shlex.split(FIRST.split(" && ")[1]) == [".venv/bin/pip", "install", "-q", "-e", "."]
    assert shlex.split(SECOND.split(" && ")[1]) == [".venv/bin/pip", "install", "-q", "-e", ".", "--group", "test"]
    assert any(each.startswith("pytest") for each in groups["test"])
    # pip has had --group since 25.1; a new environment of Python 3.11 has an older one.
    assert "--upgrade-deps" in SECOND


def test_the_first_set_up_command_runs_the_example(tmp_path):
    command = FIRST.split(" && ")[-1]
    copied = shutil.ignore_patterns("__pycache__", ".localq")
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=copied)
    printed = run(f"{command} {shlex.quote(str(ROOT / 'localq'))}", tmp_path)
    assert printed.endswith("same answer as a plain loop: yes\n")


def test_the_second_set_up_command_runs_these_tests():
    command = SECOND.split(" && ")[-1]
    printed = run(f"{command} --collect-only -q {shlex.quote(str(Path(__file__)))}", ROOT)
    assert "test_the_second_set_up_command_runs_these_tests" in printed


def test_ci_runs_the_command_of_the_readme():
    assert SECOND in (ROOT / ".ci" / "run").read_text("utf-8")


# -- What installs or measures -------------------------------------------------------------------


def test_the_benchmark_commands_exist():
    lines = [line for line in COMMANDS if line.startswith("python -m benchmarks")]
    assert lines
    known = run("python -m benchmarks --help", ROOT)
    for option in {word for line in lines for word in line.split() if word.startswith("--")} | {"--only", "--peers"}:
        assert option in known


def test_the_files_it_names_exist():
    named = {word for line in COMMANDS if line.startswith("pip") for word in line.split() if word.endswith(".txt")}
    for name in (*named, "examples/quickstart/run.py", ".ci/run", "localq/__init__.py"):
        assert (ROOT / name).is_file(), name


# -- What its tables say -------------------------------------------------------------------------


def test_the_exit_codes_are_those_of_the_worker():
    table = README.partition("## Exit codes")[2].partition("## ")[0]
    codes = {int(code) for cell in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for code in cell.split(",")}
    named = {value for name, value in vars(supervisor).items() if name.startswith("EX_")}
    assert codes == named | {1, 130, 131}


def test_the_acknowledgement_table_is_that_of_the_library():
    table = README.partition("The one that it was running ends by its options")[2].partition("\n\nA task")[0]
    lines = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line] for line in lines]
    assert len(rows) == 6
    retry = Mode(RETRY, max_retries=3).packed()
    claim = Claim(1, 1, 0, Message("id", "name", b"", "celery"))
    for mode, (_, child, worker) in zip((EARLY, LATE, LATE_REJECT, retry), rows[2:], strict=True):
        for parent_lives, said in ((True, child), (False, child if worker == "the same" else worker)):
            (verdict,) = verdicts(
                Estate([claim], [Started(1, 1, mode)]), parent_lives, "killed", MAX_REDELIVERIES, "memory:"
            )
            assert ("runs again" if not verdict.ended else verdict.state) == said.partition(",")[0]
