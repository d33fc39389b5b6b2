"""64 processes that put at once: no error, and nobody waits long."""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path

import pytest

from localq import LocalQ

PRODUCERS, PUTS = 64, 50
#: No figure of speed: a fair gate serves everybody long before this, on any machine.
LONGEST_WAIT_S = 20.0


@pytest.mark.row("R21")
def test_64_producers_at_once_meet_no_error_and_starve_nobody(tmp_path: Path) -> None:
    app = LocalQ("proj", store=tmp_path / "store")

    @app.task
    def add(x, y):
        return x + y

    start_read, start_write = os.pipe()
    pids = [_producer(add, start_read, tmp_path / f"{number}") for number in range(PRODUCERS)]
    os.write(start_write, b"!" * PRODUCERS)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    os.close(start_read)
    os.close(start_write)

    assert codes == [0] * PRODUCERS
    waits = [float((tmp_path / f"{number}").read_text()) for number in range(PRODUCERS)]
    assert max(waits) < LONGEST_WAIT_S
    assert sum(count.number for count in app.storage.counts()) == PRODUCERS * PUTS
    print(f"longest wait of {PRODUCERS} producers: {max(waits):.3f} s")
    app.close()


def _producer(add, start: int, report: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.read(start, 1)
        longest = 0.0
        for number in range(PUTS):
            began = time.monotonic()
            add.delay(number, number)
            longest = max(longest, time.monotonic() - began)
        report.write_text(str(longest))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
