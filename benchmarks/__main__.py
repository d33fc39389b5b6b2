"""The run: every question, every run, every peer, in this order, so that peers are measured turn by turn.

    pip install -r benchmarks/requirements.txt; apt-get install redis-server
    python -m benchmarks                                   all of it: an hour or more
    python -m benchmarks --quick                           small sizes, one run, some minutes: does it all work?
    python -m benchmarks --only drain,group --peers localq,celery --runs 5 --json figures.json

Peers that are not installed, do not start or fail are named in the table with the reason; the run goes on. Whatever was
started is killed at the end, also on Ctrl-C, and what was measured until then is printed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import (
    chord,
    depth,
    drain,
    enqueue,
    eta_backlog,
    group,
    imports,
    memory,
    process,
    recovery,
    roundtrip,
    startup,
)
from benchmarks.client import PeerFailed
from benchmarks.peers import PEERS, Peer
from benchmarks.question import Question
from benchmarks.report import Cell, Report, machine
from benchmarks.stage import Stage

QUESTIONS: dict[str, Question] = {
    "enqueue": enqueue,
    "drain": drain,
    "roundtrip": roundtrip,
    "group": group,
    "chord": chord,
    "startup": startup,
    "memory": memory,
    "imports": imports,
    "eta_backlog": eta_backlog,
    "depth": depth,
    "recovery": recovery,
}


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    process.adopt_orphans()
    runs = options.runs or (1 if options.quick else 3)
    report = Report([PEERS[name] for name in options.peers], runs, options.quick, machine())
    try:
        for name in options.only:
            _ask(name, report)
            _save(report, options.json)
    except KeyboardInterrupt:
        print("interrupted: what follows is not complete", file=sys.stderr)
        return 130
    finally:
        process.kill_descendants()
        _save(report, options.json)
        print(report.markdown() if options.out == "table" else report.json())
    return 0


def _ask(name: str, report: Report) -> None:
    question = report.questions[name] = QUESTIONS[name]
    peers = [peer for peer in report.peers if not peer.only or name in peer.only]
    cells = report.cells[name]
    for peer in peers:
        cells[peer.name] = Cell()
    try:
        for run in range(report.runs):
            for peer in peers:
                start = time.monotonic()
                _measure(question, Stage(peer, quick=report.quick, first_run=run == 0), cells[peer.name])
                took = f"{time.monotonic() - start:.0f} s"
                print(f"{name} {run + 1}/{report.runs} {peer.name}: {took}", *cells[peer.name].errors, file=sys.stderr)
    except KeyboardInterrupt:
        for cell in cells.values():
            cell.errors.append("interrupted")
        raise


def _measure(question: Question, stage: Stage, cell: Cell) -> None:
    if reason := stage.peer.missing():
        cell.errors.append(reason)
        return
    try:
        with stage:
            for metric, value in question.measure(stage):
                cell.values[metric].append(value)
    except PeerFailed as error:
        cell.errors.append(_line(str(error)))
    except Exception as error:
        cell.errors.append(_line(f"{type(error).__name__}: {error}"))


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def _save(report: Report, path: Path | None) -> None:
    if path:
        path.write_text(report.json() + "\n")


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="localq and its peers, in the same run")
    parser.add_argument("--only", type=_names(QUESTIONS), default=list(QUESTIONS), metavar="Q,...", help="questions")
    parser.add_argument("--peers", type=_names(PEERS), default=list(PEERS), metavar="P,...", help="peers to measure")
    parser.add_argument(
        "--runs",
        type=int,
        choices=range(1, 100),
        metavar="N",
        help="runs of each question (default: 3; 1 with --quick)",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that all works, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value here, after each question")
    parser.add_argument("--out", choices=["table", "json"], default="table", help="what goes to stdout")
    return parser.parse_args(argv)


class _names:
    """An argparse type: names with commas between, all of them known."""

    def __init__(self, known: dict[str, Question] | dict[str, Peer]) -> None:
        self._known = known

    def __call__(self, text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        unknown = [name for name in names if name not in self._known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)!r}; known: {', '.join(self._known)}")
        return names


if __name__ == "__main__":
    sys.exit(main())
