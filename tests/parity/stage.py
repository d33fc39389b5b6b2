"""Where parity programs are played: processes, a Redis for Celery, a store for localq; and the recorded answers.

python tests/parity/stage.py --python /path/with/celery/bin/python [subject ...]     records them anew
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
EXPECTED = HERE / "expected"
SUBJECTS = sorted(path.stem for path in (HERE / "programs").glob("*.py"))
#: Seconds a whole program may take.
LIMIT_S = 50


def expected(subject: str) -> dict[str, Any]:
    """Return what Celery answered when it was recorded: name -> {rows, answer}."""
    path = EXPECTED / f"{subject}.json"
    return json.loads(path.read_text("utf-8"))["answers"] if path.exists() else {}


def differences() -> dict[str, dict[str, Any]]:
    """Return where localq differs on purpose: subject -> name -> {localq, reason}."""
    return tomllib.loads((HERE / "differences.toml").read_text("utf-8"))


def answers(engine: str, subject: str, directory: Path, python: str = sys.executable, broker: str = "") -> Any:
    """Play a program in a session of its own, of which nothing is left in the end."""
    directory.mkdir(parents=True, exist_ok=True)
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("LOCALQ", "CELERY", "XDG_"))}
    there = {
        "PARITY_NOTES": str(directory / "notes"),
        "PARITY_LOG": str(directory / "worker.log"),
        "PYTHONUNBUFFERED": "1",
    }
    store = {"CELERY_BROKER_URL": broker, "CELERY_RESULT_BACKEND": broker} if broker else {}
    store = store or {"LOCALQ_STORE": str(directory / "store"), "PYTHONPATH": str(HERE.parents[1])}
    words = [python, str(HERE / "play.py"), engine, subject, str(directory / "answers")]
    with open(directory / "client.log", "wb") as log:
        client = subprocess.Popen(
            words, env={**kept, **there, **store}, cwd=directory, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        client.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        pass  # what it has not answered is missed below
    finally:
        kill_session(client)
    lines = map(
        json.loads, (directory / "answers").read_text("utf-8").splitlines() if (directory / "answers").exists() else ()
    )
    found = {line.pop("name"): line for line in lines}
    if client.returncode:
        said = (directory / "client.log").read_text("utf-8", "replace")[-4000:]
        missing = {"rows": [], "answer": {"escaped": f"{subject} ended with {client.returncode} on {engine}:\n{said}"}}
        return defaultdict(lambda: missing, found)
    return found


def kill_session(leader: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(leader.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    leader.wait()


@contextmanager
def redis() -> Iterator[str]:
    """Run a Redis that nobody else sees, on a socket; yields its URL."""
    with tempfile.TemporaryDirectory(prefix="parity-redis-") as directory:
        path = f"{directory}/redis.sock"
        words = [
            "redis-server",
            "--port",
            "0",
            "--unixsocket",
            path,
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            directory,
        ]
        server = subprocess.Popen(
            words, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            for line in server.stdout or ():
                if b"ready to accept connections" in line.lower():
                    break
            else:
                raise RuntimeError("redis-server ended before it was ready")
            yield f"redis+socket://{path}"
        finally:
            kill_session(server)
            server.communicate()  # closes the pipe


@contextmanager
def celery(python: str) -> Iterator[Any]:
    """Yield a function that plays a program on Celery, each on a Redis that was started for it."""
    with tempfile.TemporaryDirectory(prefix="parity-celery-") as directory:

        def play(subject: str) -> dict[str, Any]:
            with redis() as url:
                return answers("celery", subject, Path(directory, subject), python, url)

        yield play


def why_not(python: str) -> str:
    """Return what is missing to play programs on Celery, or an empty text."""
    if shutil.which("redis-server") is None:
        return "no redis-server on the PATH: install your system's package (Debian: redis-server)"
    done = subprocess.run(
        [python, "-c", "import celery, redis; print(celery.__version__)"], capture_output=True, text=True
    )
    if done.returncode:
        return f"{python} has no celery[redis]: run `nox -s parity`"
    return "" if done.stdout.startswith("5.7.") else f"{python} has Celery {done.stdout.strip()}, answers are of 5.7"


def record(subject: str, found: dict[str, Any], version: str) -> None:
    """Write answers down; refuses what escaped."""
    escaped = {name: shown["answer"] for name, shown in found.items() if "escaped" in str(shown["answer"])}
    for name, answer in escaped.items():
        print(f"NOT RECORDED: {subject} {name}: {answer['escaped']}", file=sys.stderr)
    if not escaped:
        text = json.dumps({"celery": version, "answers": found}, indent=1, ensure_ascii=False)
        (EXPECTED / f"{subject}.json").write_text(text + "\n", "utf-8")


def main() -> None:
    words = argparse.ArgumentParser(description="Record what Celery answers.")
    words.add_argument("--python", default=sys.executable, help="a Python that has celery[redis]")
    words.add_argument("subjects", nargs="*", default=SUBJECTS)
    given = words.parse_args()
    if why := why_not(given.python):
        sys.exit(why)
    version = subprocess.check_output(
        [given.python, "-c", "import celery; print(celery.__version__)"], text=True
    ).strip()
    with celery(given.python) as play:
        for subject in given.subjects or SUBJECTS:
            record(subject, play(subject), version)
            print(subject)


if __name__ == "__main__":
    main()
