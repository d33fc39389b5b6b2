"""examples/fetching: coroutine tasks against a server on this machine."""

from __future__ import annotations

EXPECTED = """\
one page: [200, 12]
fifty pages: 50 with 450 bytes
one after another they take 10.0 s; at once, less
by status: {'200': [5, 40], '404': [2, 20]}
too slow: given up, state FAILURE
"""


def test_its_one_command_starts_a_worker_and_prints_what_it_fetched(example, run):
    assert run(example / "run.py").stdout == EXPECTED
