"""One place asks for the time, so a test can say what time it is."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest

import localq
from localq import LocalQ, clock
from localq.testing.clock import FakeClock

#: Where the system's clock may be read directly, and what for: ids (unordered by any decision) and people.
ALLOWED = {"clock.py", "message.py", "worker/banner.py"}
HOME = Path(localq.__file__).parent


def test_a_fake_clock_stands_still():
    with FakeClock(now=500.0):
        assert [clock.now(), clock.now()] == [500.0, 500.0]


def test_advancing_moves_both_clocks_alike():
    with FakeClock(now=500.0) as fake:
        before = clock.monotonic()
        fake.advance(60)
        assert clock.now() == 560.0
        assert clock.monotonic() - before == 60.0


def test_setting_the_wall_clock_lets_no_time_go_by():
    with FakeClock(now=500.0) as fake:
        before = clock.monotonic()
        fake.jump(-60)
        assert (clock.now(), clock.monotonic()) == (440.0, before)


def test_the_systems_clock_is_back_after_the_block_even_if_it_fails():
    with pytest.raises(ZeroDivisionError), FakeClock(now=5.0):
        _ = 1 / 0
    assert clock.now is time.time
    assert clock.monotonic is time.monotonic


def test_a_message_is_stamped_with_the_fake_time():
    app = LocalQ("proj", store="memory:", set_as_current=False)
    with FakeClock(now=1234.0):
        message = app.publisher.message("t", (), {}, options={"countdown": 10, "expires": 20})
    assert (message.sent_at, message.visible_at, message.expires_at) == (1234.0, 1244.0, 1254.0)


@pytest.mark.parametrize("file", sorted(HOME.rglob("*.py")), ids=lambda file: str(file.relative_to(HOME)))
def test_no_module_reads_the_wall_clock_by_itself(file):
    if str(file.relative_to(HOME)) in ALLOWED:
        return
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            assert name not in {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow"}, f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module == "localq.clock":
            pytest.fail(f"line {node.lineno}: a name imported from localq.clock does not follow the fake clock")
