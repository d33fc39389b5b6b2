"""A child that has done enough, or has grown too large, is replaced after its task, and nobody loses anything by it."""

from __future__ import annotations

import signal
from collections import Counter

import pytest
from commands import worker

from localq import LocalQ
from localq.exceptions import TimeLimitExceeded, TimeoutError
from localq.worker import supervisor
from localq.worker.terms import Terms, peak_kib

TASKS = """
import os
from localq import LocalQ
from localq.exceptions import TimeLimitExceeded, TimeoutError

app = LocalQ("proj")
kept = []

@app.task
def pid():
    return os.getpid()

@app.task
def grow(mib):
    kept.append(b"x" * (mib << 20))
    return os.getpid()
"""


LASTS = """
import asyncio, pathlib

@app.task
async def lasts(file):
    while not pathlib.Path(file).exists():
        await asyncio.sleep(0.01)
    return os.getpid()
"""


@pytest.fixture
def here(tmp_path):
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


@pytest.fixture
def client(here):
    app = LocalQ("client", store=here / ".localq", set_as_current=False)
    yield app
    app.close()


@pytest.mark.row("N35")
@pytest.mark.parametrize("said", ["flag", "setting"])
@pytest.mark.parametrize("queued", ["before", "one by one"])
def test_a_child_runs_so_many_tasks_and_is_replaced(here, client, said, queued):
    if said == "setting":
        with (here / "tasks.py").open("a") as file:
            file.write("app.conf.worker_max_tasks_per_child = 7\n")
    flag = ("--max-tasks-per-child", "7") if said == "flag" else ()
    results = [client.send_task("tasks.pid") for _ in range(70 if queued == "before" else 0)]
    with worker("-A", "tasks", "worker", "-c", "1", *flag, cwd=here) as running:
        if queued == "before":
            pids = Counter(each.get(timeout=30) for each in results)
        else:
            pids = Counter(client.send_task("tasks.pid").get(timeout=30) for _ in range(35))
        assert set(pids.values()) == {7}
        running.saw("this process has run 7 tasks; another takes its place", times=len(pids) - 1)
        # Planned, not died: no error, and no pause as after a burst of deaths.
        assert "ERROR" not in running.text
        assert "WARNING" not in running.text


@pytest.mark.row("N35")
def test_a_child_that_has_grown_too_large_is_replaced_after_its_task(here, client):
    limit = peak_kib() + (100 << 10)
    with worker("-A", "tasks", "worker", "-c", "1", "--max-memory-per-child", str(limit), cwd=here) as running:
        small = [client.send_task("tasks.grow", (1,)).get(timeout=30) for _ in range(5)]
        assert len(set(small)) == 1
        assert client.send_task("tasks.grow", (limit // 1024 + 10,)).get(timeout=30) == small[0]
        assert client.send_task("tasks.pid").get(timeout=30) != small[0]
        running.saw("KiB of")
        assert "ERROR" not in running.text


@pytest.mark.row("N35")
def test_a_solo_worker_says_that_it_has_no_child_to_replace(here, client):
    words = ("-A", "tasks", "worker", "-P", "solo", "--max-tasks-per-child", "1")
    with worker(*words, cwd=here) as running:
        assert client.send_task("tasks.pid").get(timeout=30) == client.send_task("tasks.pid").get(timeout=30)
        running.saw("max_..._per_child has no effect here")


@pytest.mark.row("N35")
def test_nothing_means_for_ever():
    for terms in (Terms(), Terms(most_tasks=0, most_kib=0)):
        assert not terms.wears
        assert terms.is_worn(10**9) is False


def test_peak_memory_is_told_in_kib():
    assert 1 << 10 < peak_kib() < 100 << 20


def test_a_child_that_waits_for_its_last_coroutine_has_a_successor_already(here, client):
    with (here / "tasks.py").open("a") as file:
        file.write(LASTS)
    gate = here / "gate"
    with worker("-A", "tasks", "worker", "-c", "1", "--max-tasks-per-child", "2", cwd=here) as running:
        lasting = [client.send_task("tasks.lasts", (str(gate),))]
        pids = [client.send_task("tasks.pid").get(timeout=30) for _ in range(4)]
        assert len(set(pids)) == 3, "the first child ran one task beside its coroutine, the others two and one"
        running.saw("this process has run 2 tasks; another takes its place", times=2)
        # A second one that waits, though the first does still.
        lasting += [client.send_task("tasks.lasts", (str(gate),))]
        assert client.send_task("tasks.pid").get(timeout=30) not in pids
        gate.touch()
        assert [each.get(timeout=30) for each in lasting] == [pids[0], pids[3]]
        running.send(signal.SIGTERM)
        assert running.ended() == 0
        assert " ended: " not in running.text


def test_only_so_many_wait_for_their_last_coroutines_and_then_another_must_end_first(here, client):
    with (here / "tasks.py").open("a") as file:
        file.write(LASTS)
    with worker("-A", "tasks", "worker", "-c", "1", "--max-tasks-per-child", "1", cwd=here) as running:
        for number in range(supervisor.MOST_EACH):
            client.send_task("tasks.lasts", (str(here / str(number)),))
            running.saw("this process has run 1 tasks", times=number + 1)
        last = client.send_task("tasks.pid")
        with pytest.raises(TimeoutError):
            last.get(timeout=1.5)
        (here / "2").touch()
        assert last.get(timeout=30)
        for number in range(supervisor.MOST_EACH):
            (here / str(number)).touch()


def test_a_hard_limit_ends_a_coroutine_of_a_child_that_has_a_successor(here, client):
    with (here / "tasks.py").open("a") as file:
        file.write(
            "import asyncio, time\n"
            "@app.task(time_limit=1)\n"
            "async def sticks():\n"
            "    await asyncio.sleep(0.5)\n"
            "    time.sleep(60)\n"
        )
    with worker("-A", "tasks", "worker", "-c", "1", "--max-tasks-per-child", "2", cwd=here):
        stuck = client.send_task("tasks.sticks")
        first, second = [client.send_task("tasks.pid").get(timeout=30) for _ in range(2)]
        assert first != second
        with pytest.raises(TimeLimitExceeded):
            stuck.get(timeout=30)
        assert client.send_task("tasks.pid").get(timeout=30) == second
