"""Processes that die: every task ends as DESIGN.md 5 says, and none is lost or run twice for nothing.

Real workers, real signals. What ran is written down by the tasks themselves, outside of the store.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from commands import is_gone, localq, python, worker
from waiting import wait_until

from localq import LocalQ

TASKS = """
import os, signal, time
from localq import LocalQ

app = LocalQ("proj")
LATE = {"acks_late": True}
REJECT = {"acks_late": True, "reject_on_worker_lost": True}
RETRY = {"retry_on_worker_lost": True, "default_retry_delay": 0.05, "max_retries": 2}

def note(word):
    with open("ran", "ab", buffering=0) as file:
        file.write(f"{word}\\n".encode())

def hold(name, redelivered):
    note(f"{name} {redelivered} {os.getpid()}")
    while not os.path.exists(f"{name}.go"):
        time.sleep(0.01)
    return f"held {redelivered}"

@app.task(bind=True)
def hold_early(self, name):
    return hold(name, self.request.redelivered)

@app.task(bind=True, **LATE)
def hold_late(self, name):
    return hold(name, self.request.redelivered)

@app.task(bind=True, **REJECT)
def hold_reject(self, name):
    return hold(name, self.request.redelivered)

@app.task(bind=True, **RETRY)
def hold_retry(self, name):
    return hold(name, self.request.redelivered) + f" retries {self.request.retries}"

@app.task(bind=True, retry_on_worker_lost=True, default_retry_delay=3600, acks_late=True)
def hold_hour(self, name):
    return hold(name, self.request.redelivered)

@app.task
def add(x, y):
    return x + y

@app.task
def quick(number):
    note(f"quick-{number}")
    return number

def ends(how):
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(0)
    if how == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "abort":
        os.abort()

@app.task
def deadly(how):
    note("deadly")
    ends(how)

@app.task(**REJECT)
def deadly_again(how):
    note("deadly")
    ends(how)

@app.task(**RETRY)
def deadly_retry(how):
    note("deadly")
    ends(how)

@app.task(**{**RETRY, "max_retries": None, **REJECT})
def deadly_for_ever(how):
    note("deadly")
    ends(how)

@app.task
def leave():
    raise SystemExit(3)

@app.task
def surrogate():
    raise ValueError("\\udcff")
"""

WORKER = ("-A", "tasks", "worker")


@pytest.fixture
def here(tmp_path):
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


@pytest.fixture
def client(here):
    """The test's own view of the store, by name only."""
    app = LocalQ("client", store=here / ".localq", set_as_current=False)
    yield app
    app.close()


def ran(here):
    file = here / "ran"
    return file.read_text().split("\n")[:-1] if file.exists() else []


def runs_of(here, name):
    """(redelivered, pid) of each run of a holding task."""
    return [(int(line.split()[1]), int(line.split()[2])) for line in ran(here) if line.split()[0] == name]


def held(here, client, kind, name="a", runs=1):
    """Send a task that holds, and wait until it runs; returns the result and the pid that runs it."""
    result = client.send_task(f"tasks.hold_{kind}", (name,))
    wait_until(lambda: len(runs_of(here, name)) == runs, what=f"{name} runs")
    return result, runs_of(here, name)[-1][1]


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def end_of(result):
    result.get(timeout=30, propagate=False)
    return result.state


# -- A child dies ----------------------------------------------------------------------------------


@pytest.mark.row("F271")
def test_an_idle_child_that_dies_is_replaced_and_nothing_is_lost(here, client):
    with worker(*WORKER, "-c", "1", cwd=here) as running:
        assert client.send_task("tasks.add", (1, 1)).get(timeout=30) == 2
        _, child = running.children()
        kill(child)
        assert client.send_task("tasks.add", (2, 2)).get(timeout=30) == 4
        running.saw("ended: signal 9 (SIGKILL")
        assert len(running.children()) == 2
        assert child not in running.children()


@pytest.mark.row("F046", "F065", "F283", "F289")
def test_early_a_task_whose_child_dies_fails_and_is_never_run_twice(here, client):
    with worker(*WORKER, "-c", "1", cwd=here):
        result, pid = held(here, client, "early")
        kill(pid)
        assert end_of(result) == "FAILURE"
        assert type(result.result).__name__ == "WorkerLostError"
        assert "signal 9 (SIGKILL" in str(result.result)
        assert client.send_task("tasks.add", (1, 1)).get(timeout=30) == 2
    assert len(runs_of(here, "a")) == 1


@pytest.mark.row("F046", "F048", "F283", "F289")
def test_late_a_task_whose_child_dies_fails_too(here, client):
    with worker(*WORKER, "-c", "1", cwd=here):
        result, pid = held(here, client, "late")
        kill(pid)
        assert end_of(result) == "FAILURE"
        assert "reject_on_worker_lost=True" in str(result.result)
    assert len(runs_of(here, "a")) == 1


@pytest.mark.row("F048", "F283", "F289")
def test_with_reject_on_worker_lost_it_runs_again_and_knows_it(here, client):
    with worker(*WORKER, "-c", "1", cwd=here):
        result, pid = held(here, client, "reject")
        kill(pid)
        wait_until(lambda: len(runs_of(here, "a")) == 2)
        (here / "a.go").touch()
        assert result.get(timeout=30) == "held 1"
    assert [redelivered for redelivered, _ in runs_of(here, "a")] == [0, 1]


@pytest.mark.row("F049")
def test_with_retry_on_worker_lost_it_is_retried_and_knows_it(here, client):
    with worker(*WORKER, "-c", "1", cwd=here) as running:
        result, pid = held(here, client, "retry")
        kill(pid)
        wait_until(lambda: len(runs_of(here, "a")) == 2)
        (here / "a.go").touch()
        assert result.get(timeout=30) == "held 1 retries 1"
        running.saw(f"Task tasks.hold_retry[{result.id}] retry: Retry in 0.05s: WorkerLostError('Worker exited")
    assert [redelivered for redelivered, _ in runs_of(here, "a")] == [0, 1]


def test_a_task_that_is_to_be_retried_waits_for_its_delay_in_the_state_retry(here, client):
    with worker(*WORKER, "-c", "1", cwd=here):
        result, pid = held(here, client, "hour")
        kill(pid)
        wait_until(lambda: result.state == "RETRY")
        assert type(result.result).__name__ == "WorkerLostError"
        assert "signal 9 (SIGKILL" in str(result.result)
        assert (result.retries, result.ready()) == (1, False)
        (due,) = client.storage.due(2)
        assert 3500 < due - time.time() <= 3600
    assert len(runs_of(here, "a")) == 1


@pytest.mark.parametrize(("name", "runs", "why"), [
    ("deadly_retry", 3, "Given up after 2 retries (max_retries=2)"),
    ("deadly_for_ever", 4, "Given up after 4 attempts that ended so (task_max_redeliveries=3)"),
])  # fmt: skip
@pytest.mark.row("F049")
def test_a_task_that_always_kills_its_child_is_retried_only_so_often(here, client, name, runs, why):
    with worker(*WORKER, "-c", "1", cwd=here):
        result = client.send_task(f"tasks.{name}", ("kill",))
        assert end_of(result) == "FAILURE"
        assert type(result.result).__name__ == "WorkerLostError"
        assert why in str(result.result)
    assert ran(here) == ["deadly"] * runs


def test_a_task_that_was_lost_is_read_of_looked_at_and_retried_by_hand(here, client):
    """What a user does: reads the error, looks at the task, has it run again."""
    with worker(*WORKER, "-c", "1", cwd=here):
        result, pid = held(here, client, "early")
        kill(pid)
        assert end_of(result) == "FAILURE"
        command = f"localq task retry {result.id}"
        assert command in str(result.result)
        shown = localq("task", "show", result.id, cwd=here).stdout
        assert "crashes    -> 1" in shown
        assert "WorkerLostError: Worker exited prematurely: signal 9 (SIGKILL" in shown
        done = localq(*command.split()[1:], cwd=here)
        assert (done.returncode, done.stderr) == (0, "")
        wait_until(lambda: len(runs_of(here, "a")) == 2)
        (here / "a.go").touch()
        assert client.AsyncResult(result.id).get(timeout=30) == "held 0"


@pytest.mark.parametrize("how", ["kill", "exit", "segv", "abort"])
def test_however_a_child_ends_its_task_is_not_forgotten(here, client, how):
    with worker(*WORKER, "-c", "1", cwd=here):
        result = client.send_task("tasks.deadly", (how,))
        assert end_of(result) == "FAILURE"
        assert type(result.result).__name__ == "WorkerLostError"
        assert {"kill": "signal 9", "exit": "exitcode 0", "segv": "signal 11", "abort": "signal 6"}[how] in str(
            result.result
        )
    assert ran(here) == ["deadly"]


@pytest.mark.row("R5")
def test_a_task_that_always_kills_its_child_is_given_up_after_three_redeliveries(here, client):
    with worker(*WORKER, "-c", "1", cwd=here):
        result = client.send_task("tasks.deadly_again", ("kill",))
        assert end_of(result) == "FAILURE"
        assert "task_max_redeliveries=3" in str(result.result)
        assert client.send_task("tasks.add", (1, 1)).get(timeout=30) == 2
    assert ran(here) == ["deadly"] * 4


def test_leaving_by_sys_exit_costs_no_child(here, client):
    with worker(*WORKER, "-c", "1", cwd=here) as running:
        assert client.send_task("tasks.add", (1, 1)).get(timeout=30) == 2
        before = running.children()
        assert end_of(client.send_task("tasks.leave")) == "FAILURE"
        assert running.children() == before


def test_a_traceback_that_is_no_text_harms_only_its_task(here, client):
    with worker(*WORKER, "-c", "1", cwd=here) as running:
        assert client.send_task("tasks.add", (1, 1)).get(timeout=30) == 2
        before = running.children()
        assert end_of(client.send_task("tasks.surrogate")) == "FAILURE"
        assert running.children() == before


@pytest.mark.row("F283", "P1")
def test_what_a_dying_child_had_ended_counts_and_what_it_had_only_reserved_runs_once(here, client):
    """A batch is settled at its end: what ended before the death of its child is in the child's notes."""
    python(
        "-c",
        "import tasks\nfrom localq import group\n"
        "g = group([tasks.quick.s(n) for n in range(300)] + [tasks.deadly.s('kill')]"
        " + [tasks.quick.s(n) for n in range(300, 500)])()\n"
        "open('ids', 'w').write(' '.join(r.id for r in g))",
        cwd=here,
    )
    results = [client.AsyncResult(id) for id in (here / "ids").read_text().split()]
    with worker(*WORKER, "-c", "1", "-l", "WARNING", cwd=here, ready=False):
        states = [end_of(result) for result in results]
    assert states == ["SUCCESS"] * 300 + ["FAILURE"] + ["SUCCESS"] * 200
    assert [result.result for result in results[:300]] == list(range(300))
    assert Counter(ran(here)) == {**{f"quick-{n}": 1 for n in range(500)}, "deadly": 1}


def test_a_burst_of_deaths_slows_the_worker_down_and_does_not_stop_it(here, client):
    with worker(*WORKER, "-c", "1", cwd=here) as running:
        results = [client.send_task("tasks.deadly", ("kill",)) for _ in range(7)]
        assert [end_of(result) for result in results] == ["FAILURE"] * 7
        assert client.send_task("tasks.add", (1, 1)).get(timeout=30) == 2
        running.send(signal.SIGTERM)
        assert running.ended() == 0
    assert ran(here) == ["deadly"] * 7


def test_the_others_go_on_while_one_child_dies(here, client):
    with worker(*WORKER, "-c", "2", cwd=here):
        result, pid = held(here, client, "early")
        other, _ = held(here, client, "early", "b")
        kill(pid)
        assert end_of(result) == "FAILURE"
        (here / "b.go").touch()
        assert other.get(timeout=30) == "held 0"


# -- The steward dies ------------------------------------------------------------------------------


def test_a_steward_that_dies_is_replaced(here, client):
    with worker(*WORKER, "-c", "1", cwd=here) as running:
        assert client.send_task("tasks.add", (1, 1)).get(timeout=30) == 2
        steward, child = running.children()
        kill(steward)
        running.saw("the steward ended")
        wait_until(lambda: len(running.children()) == 2 and steward not in running.children())
        assert child in running.children()
        assert client.send_task("tasks.add", (2, 2), countdown=0.1).get(timeout=30) == 4
        running.send(signal.SIGTERM)
        assert running.ended() == 0


def test_a_new_steward_still_settles_for_a_child_that_dies(here, client):
    with worker(*WORKER, "-c", "1", cwd=here) as running:
        result, pid = held(here, client, "reject")
        steward = next(child for child in running.children() if child != pid)
        kill(steward)
        kill(pid)
        wait_until(lambda: len(runs_of(here, "a")) == 2)
        (here / "a.go").touch()
        assert result.get(timeout=30) == "held 1"


# -- The whole worker dies -------------------------------------------------------------------------


@pytest.mark.row("F271")
@pytest.mark.skipif(sys.platform != "linux", reason="children are killed with their parent by Linux")
def test_children_die_with_their_supervisor(here, client):
    with worker(*WORKER, "-c", "2", cwd=here) as running:
        held(here, client, "early")
        family = running.children()
        assert len(family) == 3
        kill(running.pid)
        running.ended()
        wait_until(lambda: all(map(is_gone, family)), what="no child outlives its supervisor")


@pytest.mark.row("F046", "F065", "F283", "F289", "P6", "R4", "R5")
def test_another_worker_takes_over_what_may_run_again_and_ends_what_may_not(here, client):
    with worker(*WORKER, "-c", "3", cwd=here) as first:
        results = {kind: held(here, client, kind, kind)[0] for kind in ("early", "late", "reject")}
        waiting = client.send_task("tasks.add", (1, 1))
        with worker(*WORKER, "-c", "3", cwd=here):
            assert waiting.get(timeout=30) == 2
            kill(first.pid)
            first.ended()
            assert end_of(results["early"]) == "FAILURE"
            for kind in ("late", "reject"):
                wait_until(lambda kind=kind: len(runs_of(here, kind)) == 2)
                (here / f"{kind}.go").touch()
                assert results[kind].get(timeout=30) == "held 1"
    assert len(runs_of(here, "early")) == 1


def test_another_worker_retries_what_asks_for_it(here, client):
    with worker(*WORKER, "-c", "1", cwd=here) as first:
        result, _ = held(here, client, "retry")
        with worker(*WORKER, "-c", "1", cwd=here):
            kill(first.pid)
            first.ended()
            wait_until(lambda: len(runs_of(here, "a")) == 2)
            (here / "a.go").touch()
            assert result.get(timeout=30) == "held 1 retries 1"


def test_a_client_that_waits_has_a_task_retried_that_it_knows_only_by_name(here, client):
    """Nobody else is there to sweep, and the client never heard of max_retries."""
    with worker(*WORKER, "-c", "1", cwd=here) as first:
        result, _ = held(here, client, "hour")
        kill(first.pid)
        first.ended()

    class Seen(Exception):
        pass

    def look():
        if result.state == "RETRY":
            raise Seen

    with pytest.raises(Seen):
        result.get(timeout=30, on_interval=look)
    assert (result.retries, client.storage.records((result.id,), whole=True)[result.id].redeliveries) == (1, 1)


@pytest.mark.row("F046", "P1")
def test_a_later_worker_finds_what_a_dead_one_left(here, client):
    with worker(*WORKER, "-c", "1", cwd=here) as first:
        late, _ = held(here, client, "late")
        behind = [client.send_task("tasks.quick", (number,)) for number in range(5)]
        kill(first.pid)
        first.ended()
    (here / "a.go").touch()
    with worker(*WORKER, "-c", "1", cwd=here):
        assert late.get(timeout=30) == "held 1"
        assert [result.get(timeout=30) for result in behind] == list(range(5))
    assert Counter(line for line in ran(here) if line.startswith("quick")) == {f"quick-{n}": 1 for n in range(5)}


@pytest.mark.row("P6", "R4")
def test_a_client_that_waits_frees_the_claims_of_the_dead_by_itself(here, client):
    """No worker is up: whoever waits looks after the store, so the wait ends."""
    with worker(*WORKER, "-c", "1", cwd=here) as first:
        result, _ = held(here, client, "early")
        kill(first.pid)
        first.ended()
    assert end_of(result) == "FAILURE"


@pytest.mark.row("P1")
def test_killed_again_and_again_each_task_still_ends_once(here, client):
    """The whole worker, kill -9, five times in the middle of a flood."""
    ids = [client.send_task("tasks.quick", (number,)).id for number in range(400)]
    for _ in range(5):
        before = len(ran(here))
        with worker(*WORKER, "-c", "2", "-l", "WARNING", cwd=here, ready=False) as running:
            wait_until(lambda before=before: len(ran(here)) > before or len(ran(here)) >= 400)
            kill(running.pid)
            running.ended()
    with worker(*WORKER, "-c", "2", "-l", "WARNING", cwd=here, ready=False):
        results = [client.AsyncResult(id) for id in ids]
        states = Counter(end_of(result) for result in results)
    assert set(states) <= {"SUCCESS", "FAILURE"}
    # Early: at most one task a child was running when it died, and none is run a second time.
    assert states["FAILURE"] <= 2 * 5
    counts = Counter(ran(here))
    assert max(counts.values()) == 1
    for number, result in enumerate(results):
        if result.state == "SUCCESS":
            assert counts[f"quick-{number}"] == 1
            assert result.result == number


def test_two_workers_share_a_queue_and_run_each_task_once(here, client):
    ids = [client.send_task("tasks.quick", (number,)).id for number in range(300)]
    with (
        worker(*WORKER, "-c", "1", "-l", "WARNING", cwd=here, ready=False),
        worker(*WORKER, "-c", "1", "-l", "WARNING", cwd=here, ready=False),
    ):
        assert [client.AsyncResult(id).get(timeout=30) for id in ids] == list(range(300))
    assert Counter(ran(here)) == {f"quick-{n}": 1 for n in range(300)}


def test_nothing_of_a_worker_is_left_in_the_process_table(here, client):
    with worker(*WORKER, "-c", "2", cwd=here) as running:
        assert client.send_task("tasks.add", (1, 1)).get(timeout=30) == 2
        family = running.children()
        running.send(signal.SIGTERM)
        assert running.ended() == 0
        assert all(map(is_gone, family))
        assert not Path(f"/proc/{running.pid}").exists()
