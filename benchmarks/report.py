"""What a run found: medians, ratios, the Markdown table and the JSON file; measures nothing."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers import CELERY, LOCALQ, LOCALQ_FULL, Peer
from benchmarks.question import Metric, Question

QUICK = " (QUICK: small sizes, no figures to quote)"
HOW_TO_READ = (
    "Cells are `median (min-max)` over the runs. Ratios are of medians and say how many times better localq is, "
    "whichever direction is good: above 1 localq wins. Take ratios within 1.5x as ties. `-`: the peer has no such "
    "feature, or there is nothing to compare; `n/a`: not measured, and the reason stands below the table."
)


@dataclass(slots=True)
class Cell:
    """What all runs of one question said about one peer."""

    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """All cells of a run, by question name and peer name."""

    peers: Sequence[Peer]
    runs: int
    quick: bool
    machine: dict[str, str]
    questions: dict[str, Question] = field(default_factory=dict)
    cells: dict[str, dict[str, Cell]] = field(default_factory=lambda: defaultdict(dict))

    def markdown(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"# Benchmarks of localq and its peers{QUICK if self.quick else ''}"
        yield ""
        yield from (f"- {key}: {value}" for key, value in self.machine.items())
        yield f"- runs: {self.runs}, peers interleaved"
        yield ""
        yield from _table(
            ["peer", "versions", "settings", "durability"],
            [[peer.name, peer.missing() or peer.versions(), peer.settings, peer.durability] for peer in self.peers],
        )
        yield HOW_TO_READ
        for name, question in self.questions.items():
            yield from self._question(question, self.cells[name])

    def _question(self, question: Question, cells: dict[str, Cell]) -> Iterator[str]:
        ratios = [f"{LOCALQ.name} / {CELERY.name}", f"{LOCALQ.name} / best peer"]
        full = LOCALQ_FULL.name in cells
        if full:
            ratios.append(f"{LOCALQ_FULL.name} / {CELERY.name}")
        rows = []
        for name, metric in question.METRICS.items():
            row = [f"{name}, {metric.unit}", *(self._figure(cell, name) for cell in cells.values())]
            row += [_against(cells, name, metric, LOCALQ.name, CELERY.name), _against_best(cells, name, metric)]
            if full:
                row.append(_against(cells, name, metric, LOCALQ_FULL.name, CELERY.name))
            rows.append(row)
        yield f"\n## {question.TITLE}\n"
        yield from _table(["", *cells, *ratios], rows)
        for peer, cell in cells.items():
            yield from (f"- {peer}: {error}" for error in dict.fromkeys(cell.errors))

    def _figure(self, cell: Cell, metric: str) -> str:
        values = cell.values.get(metric)
        if not values:
            return "n/a" if cell.errors else "-"
        median = _number(statistics.median(values))
        if len(values) == 1:
            return f"{median} (n=1)"
        short = f", n={len(values)}" if len(values) < self.runs else ""
        return f"{median} ({_number(min(values))}-{_number(max(values))}{short})"

    def json(self) -> str:
        """Return everything measured, every run of it."""
        peers = {
            peer.name: {"versions": peer.versions(), "settings": peer.settings, "durability": peer.durability}
            for peer in self.peers
        }
        answers = {
            name: {
                "title": question.TITLE,
                "units": {key: metric.unit for key, metric in question.METRICS.items()},
                "peers": {peer: {"values": c.values, "errors": c.errors} for peer, c in self.cells[name].items()},
            }
            for name, question in self.questions.items()
        }
        header = {"machine": self.machine, "runs": self.runs, "quick": self.quick, "peers": peers}
        return json.dumps({**header, "questions": answers}, indent=1)


def _median(cells: dict[str, Cell], peer: str, metric: str) -> float | None:
    values = cells[peer].values.get(metric) if peer in cells else None
    return statistics.median(values) if values else None


def _times_better(metric: Metric, ours: float | None, theirs: float | None) -> float | None:
    if not ours or not theirs or ours < 0 or theirs < 0:
        return None
    return theirs / ours if metric.lower_is_better else ours / theirs


def _against(cells: dict[str, Cell], name: str, metric: Metric, ours: str, theirs: str) -> str:
    ratio = _times_better(metric, _median(cells, ours, name), _median(cells, theirs, name))
    return "-" if ratio is None else f"{ratio:.2f}x"


def _against_best(cells: dict[str, Cell], name: str, metric: Metric) -> str:
    own = (LOCALQ.name, LOCALQ_FULL.name)
    peers = {peer: value for peer in cells if peer not in own and (value := _median(cells, peer, name)) is not None}
    if not peers:
        return "-"
    best = (min if metric.lower_is_better else max)(peers, key=peers.__getitem__)
    ratio = _against(cells, name, metric, LOCALQ.name, best)
    return ratio if ratio == "-" else f"{ratio} ({best})"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"
    yield ""


def machine() -> dict[str, str]:
    """Return what the figures depend on, besides the peers."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %z"),
        "machine": f"{len(os.sched_getaffinity(0))} cores, {_cpu_model()}, load {os.getloadavg()[0]:.1f} at the start",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_version()}, SQLite {sqlite3.sqlite_version}",
        "redis-server": _redis_version(),
        "stores in": f"{tempfile.gettempdir()} ({_file_system(Path(tempfile.gettempdir()))})",
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def _redis_version() -> str:
    if not shutil.which("redis-server"):
        return "none"
    out = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    return next((word.removeprefix("v=") for word in out.split() if word.startswith("v=")), out.strip())


def _file_system(path: Path) -> str:
    mounts = [line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holders = [(len(point), kind) for _, point, kind in mounts if path.resolve().is_relative_to(point)]
    return max(holders)[1] if holders else "unknown file system"
