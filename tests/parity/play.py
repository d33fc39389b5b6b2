"""Plays one parity program on Celery or on localq: its observations here, its worker in a process of its own.

    python play.py localq request answers

Where the store, the notes and the worker's log are stands in the environment (stage.py). Whoever starts this gives it a
session of its own and kills the whole of it in the end.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [
    *(str(HERE / name) for name in ("programs", "packages")),
    str(HERE),
    str(HERE.parent / "canvas"),
    str(HERE.parent),
]

import celery_names  # noqa: E402
import observing  # noqa: E402

#: Seconds an observation may take, and a worker's end.
LIMIT_S = 12


def load(engine: str, subject: str) -> ModuleType:
    """Import a program, for one of the two."""
    if engine == "localq":
        celery_names.install()
    return importlib.import_module(subject)


def work(engine: str, subject: str) -> None:
    """Be the worker of a program, as its command line would have it."""
    program = load(engine, subject)
    words = ["-A", subject, "worker", "-l", "INFO", *getattr(program, "WORKER", ["-c", "2"])]
    sys.argv = [engine, *words]
    if engine == "celery":
        importlib.import_module("celery.__main__").main()
    else:
        importlib.import_module("localq.cli.main").run()


def play(engine: str, subject: str) -> Iterator[dict[str, Any]]:
    """Yield every answer of a program, as it comes."""
    program = load(engine, subject)
    if hasattr(program, "before_the_worker"):
        program.before_the_worker()
    worker = start_worker(engine, subject) if getattr(program, "WORKER", ()) is not None else None
    try:
        for shown in observing.observations:
            yield {"name": shown.name, "rows": list(shown.rows), "answer": look(shown, worker)}
    finally:
        if worker is not None:
            stop(worker)


def start_worker(engine: str, subject: str) -> subprocess.Popen[bytes]:
    """Start it; nobody waits until it is ready, since messages wait for it."""
    with open(os.environ["PARITY_LOG"], "wb") as log:
        words = [sys.executable, __file__, engine, subject]
        return subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def look(shown: observing.Shown, worker: subprocess.Popen[bytes] | None) -> Any:
    """Return one answer; what escapes is an answer too, which no recording takes."""
    if worker is not None and worker.poll() is not None:
        log = Path(os.environ["PARITY_LOG"]).read_text("utf-8", "replace")
        return {"escaped": f"the worker ended with {worker.returncode}:\n{log[-2000:]}"}
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        return observing.plain(shown.look())
    except Exception:
        return {"escaped": traceback.format_exc(limit=-4)}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def stop(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    try:
        worker.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def too_long(*_: Any) -> None:
    raise TimeoutError(f"an observation may take {LIMIT_S} s")


def main(engine: str, subject: str, answers: str | None = None) -> None:
    if answers is None:
        work(engine, subject)
        return
    signal.signal(signal.SIGALRM, too_long)
    with open(answers, "w", encoding="utf-8", buffering=1) as file:
        file.writelines(json.dumps(answer) + "\n" for answer in play(engine, subject))


if __name__ == "__main__":
    main(*sys.argv[1:])
