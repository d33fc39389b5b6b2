"""How much does importing the package add to the start of a process?

Read: milliseconds of `python -c "from ... import ..."` over `python -c pass`, wall time; median of ten pairs, taken
turn by turn.
Caveats: bytecode is compiled and in the page cache. The line is the one a user's module begins with: `import celery`
alone loads next to nothing.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.client import PeerFailed
from benchmarks.question import milliseconds
from benchmarks.stage import REPOSITORY, Stage

TITLE = "Import, over bare Python"
METRICS = {"import": milliseconds()}
LIMIT_S = 30


def measure(stage: Stage) -> Iterator[tuple[str, float]]:
    line = stage.peer.import_line
    _run(stage, line)
    pairs = stage.scale(10, quick=3)
    yield "import", 1000 * statistics.median(_run(stage, line) - _run(stage, "pass") for _ in range(pairs))


def _run(stage: Stage, line: str) -> float:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", line], env=stage.env, cwd=REPOSITORY, capture_output=True, timeout=LIMIT_S, check=False
    )
    if done.returncode:
        raise PeerFailed(done.stderr.decode(errors="replace").strip().splitlines()[-1])
    return time.monotonic() - start
