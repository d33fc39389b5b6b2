"""The processes of a worker, seen from outside: whom a signal reaches, what they have open, who outlives whom.

A terminal's Ctrl-C, `timeout`, and a container's end reach the whole process group and not its leader alone; Celery's
main process was seen to hang for minutes after that.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import environment, is_gone, worker
from forking import ended, forked
from waiting import LIMIT_S, wait_until

from localq import LocalQ
from localq.recovery import sweep
from localq.worker.notices import Notices
from localq.worker.supervisor import Supervisor

if sys.platform != "linux":
    pytest.skip("looks at processes through /proc", allow_module_level=True)

TASKS = f"""
import os, signal, time
from localq import LocalQ

app = LocalQ("proj")

def wait_for(name):
    deadline = time.monotonic() + {LIMIT_S}
    while not os.path.exists(name) and time.monotonic() < deadline:
        time.sleep(0.01)

def hold(self, name):
    with open("ran", "ab", buffering=0) as file:
        file.write(f"{{name}} {{self.request.redelivered}} {{self.request.delivery_info['redelivered']}}\\n".encode())
    wait_for(f"{{name}}.go")
    return f"held {{self.request.redelivered}}"

early = app.task(name="early", bind=True)(hold)
late = app.task(name="late", bind=True, acks_late=True)(hold)
reject = app.task(name="reject", bind=True, acks_late=True, reject_on_worker_lost=True)(hold)
retry = app.task(name="retry", bind=True, retry_on_worker_lost=True, default_retry_delay=0)(hold)

@app.task(name="add")
def add(x, y):
    return x + y

@app.task(name="devour")
def devour():
    return len(bytearray(os.urandom(1)) * (256 << 20))

@app.task(name="leave_one_behind")
def leave_one_behind(dies):
    if not os.fork():
        os.setsid()
        with open("behind", "w") as file:
            file.write(f"{{os.getpid()}}\\n")
        wait_for("behind.go")
        os._exit(0)
    wait_for("behind")
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()
"""
WORKER = ("-A", "tasks", "worker", "-c", "1")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


@pytest.fixture
def client(here: Path) -> Iterator[LocalQ]:
    app = LocalQ("client", store=here / ".localq", set_as_current=False)
    yield app
    app.close()


def runs(here, name):
    """What each run of a task that holds saw of its redeliveries: how many, and whether there was one."""
    file = here / "ran"
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [(int(count), flag == "True") for found, count, flag in lines if found == name]


def held(here, client, kind):
    """Send a task that holds, and wait until it runs."""
    result = client.send_task(kind, (kind,))
    wait_until(lambda: runs(here, kind), what=f"{kind} runs")
    return result


# -- Signals to the whole group --------------------------------------------------------------------


def as_timeout_does(pid):
    os.kill(pid, signal.SIGTERM)
    os.killpg(pid, signal.SIGTERM)
    os.killpg(pid, signal.SIGCONT)


GROUP_SIGNALS = {
    "timeout": as_timeout_does,
    "Ctrl-C": lambda pid: os.killpg(pid, signal.SIGINT),
    "the terminal is closed": lambda pid: os.killpg(pid, signal.SIGHUP),
}


@pytest.mark.row("F271", "F282", "R18")
@pytest.mark.parametrize("how", GROUP_SIGNALS)
def test_a_stop_that_reaches_the_whole_group_lets_the_running_task_end_and_gives_back_the_rest(here, client, how):
    with worker(*WORKER, cwd=here) as running:
        family = running.children()
        result = held(here, client, "early")
        waiting = [client.send_task("add", (number, 1)) for number in range(3)]
        GROUP_SIGNALS[how](running.pid)
        running.saw("worker: Warm shutdown (MainProcess)")
        (here / "early.go").touch()
        assert running.ended() == 0
        assert all(map(is_gone, family))
        assert "ended: " not in running.text, "a child or the steward died of it"
    assert result.get(timeout=30) == "held 0"
    assert [each.state for each in waiting] == ["PENDING"] * 3
    assert client.storage.owners() == []
    with worker(*WORKER, cwd=here):
        assert [each.get(timeout=30) for each in waiting] == [1, 2, 3]


@pytest.mark.row("F282", "R18")
@pytest.mark.parametrize("how", GROUP_SIGNALS)
def test_a_stop_that_reaches_the_whole_group_ends_an_idle_worker(here, client, how):
    """Even in the moment in which it says that it is ready, when its children may not have begun yet."""
    with worker(*WORKER, "-c", "3", cwd=here) as running:
        GROUP_SIGNALS[how](running.pid)
        assert running.ended() == 0
    wait_until(lambda: not any(owner.alive for owner in client.storage.owners()))


@pytest.mark.row("R18")
@pytest.mark.parametrize(("number", "times", "code"), [(signal.SIGINT, 2, 130), (signal.SIGQUIT, 1, 131)])
def test_a_group_is_stopped_cold_and_each_running_task_ends_by_its_acknowledgement(here, client, number, times, code):
    """The whole worker ends, so what is acknowledged late goes back, though its child was killed by its own worker."""
    with worker(*WORKER, "-c", "4", cwd=here) as running:
        results = {kind: held(here, client, kind) for kind in ("early", "late", "reject", "retry")}
        waiting, family = client.send_task("add", (1, 1)), running.children()
        for words in ["Warm shutdown"] * (times - 1) + ["Cold shutdown"]:
            os.killpg(running.pid, number)
            running.saw(words)
        assert running.ended() == code
        assert all(map(is_gone, family))
    assert client.storage.owners() == []
    states = {kind: result.state for kind, result in results.items()}
    assert states == {"early": "FAILURE", "late": "PENDING", "reject": "PENDING", "retry": "RETRY"}
    assert "its worker was stopped at once" in str(results["early"].result)
    for kind in ("late", "reject", "retry"):
        (here / f"{kind}.go").touch()
    with worker(*WORKER, cwd=here):
        assert waiting.get(timeout=30) == 2
        assert [results[kind].get(timeout=30) for kind in ("late", "reject", "retry")] == ["held 1"] * 3
    assert runs(here, "early") == [(0, False)]
    assert runs(here, "late") == runs(here, "reject") == runs(here, "retry") == [(0, False), (1, True)]


# -- What they have open ---------------------------------------------------------------------------


@pytest.mark.row("F271", "R19")
def test_children_are_forked_by_a_process_of_one_thread_that_has_nothing_of_the_store_open(here, client):
    """So there is no handle, and no lock, that a fork could copy; those that take its place inherit none either."""
    with worker(*WORKER, cwd=here) as running:
        for _ in range(2):
            assert client.send_task("add", (1, 1)).get(timeout=30) == 2
            steward, child = running.children()
            assert [name for name in opened(running.pid) if name.startswith(str(here / ".localq"))] == []
            assert os.listdir(f"/proc/{running.pid}/task") == [str(running.pid)]
            assert {str(here / ".localq" / "queue.db")} <= opened(steward) & opened(child)
            for pid in (steward, child):
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda pid=pid: pid not in running.children())
            wait_until(lambda: len(running.children()) == 2)


def opened(pid):
    """The files that a process has open or mapped, by name."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            pass
    return found | {line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}


# -- Who outlives whom -----------------------------------------------------------------------------


@pytest.mark.row("R4", "P6")
@pytest.mark.parametrize("dies", [True, False], ids=["while the task runs", "while it sleeps"])
def test_a_process_that_a_task_left_behind_keeps_no_dead_child_alive(here, client, dies):
    """It has a copy of all that the child had open, its bell too, and outlives it."""
    with worker(*WORKER, cwd=here) as running:
        result = client.send_task("leave_one_behind", (dies,))
        result.get(timeout=30, propagate=False)
        if dies:
            assert "signal 9 (SIGKILL" in str(result.result)
        else:
            child = result.result
            wait_until(lambda: client.storage._bells.taker("celery"), what="the child sleeps")
            os.kill(child, signal.SIGKILL)
            wait_until(lambda: is_gone(child))
        results = [client.send_task("add", (number, 1)) for number in range(3)]
        assert [each.get(timeout=30) for each in results] == [1, 2, 3]
        wait_until(lambda: all(owner.alive for owner in client.storage.owners()), what="the dead are swept away")
        behind = int((here / "behind").read_text())
        assert not is_gone(behind)
        (here / "behind.go").touch()
        wait_until(lambda: is_gone(behind))
        running.send(signal.SIGTERM)
        assert running.ended() == 0


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """A control group with 64 MiB; who is in it and wants more is killed by the kernel."""
    for top, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(top) / f"localq-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit).exists():
                (group / limit).write_text(str(64 << 20))
                yield group
                return
        finally:
            members = group / "cgroup.procs"
            wait_until(lambda members=members: not (members.exists() and members.read_text()), what="it is empty")
            group.rmdir()
    pytest.skip("no control group with a memory limit can be made here")


@pytest.mark.row("R5", "P1")
def test_a_task_that_runs_out_of_memory_fails_and_says_so_and_the_worker_goes_on(here, client, little_memory):
    with worker(*WORKER, cwd=here) as running:
        assert client.send_task("add", (1, 1)).get(timeout=30) == 2
        _, child = running.children()
        (little_memory / "cgroup.procs").write_text(str(child))
        result = client.send_task("devour")
        result.get(timeout=30, propagate=False)
        assert "signal 9 (SIGKILL, maybe out of memory)" in str(result.result)
        assert is_gone(child)
        assert client.send_task("add", (2, 2)).get(timeout=30) == 4


ELSEWHERE = """
import signal, sys
from localq import LocalQ, clock
from localq.message import Want
from localq.recovery import EARLY

app = LocalQ("elsewhere", store=sys.argv[1], set_as_current=False)
owner = app.storage.enlist({"kind": "child"})
first, *_ = app.storage.settle((), Want(owner.name, ("celery",), 2, clock.now())).claims
owner.begin(first, EARLY)
print("ready", flush=True)
signal.pause()
"""


@pytest.mark.row("R4", "P6")
def test_the_life_and_death_of_a_process_in_another_pid_namespace_are_seen(client):
    """As between containers that share a volume: there it is process 1, which here is somebody else."""
    may = ["unshare", "--pid", "--fork", "--kill-child"]
    try:
        subprocess.run([*may, "true"], check=True, capture_output=True, timeout=LIMIT_S)
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no pid namespace can be made here: {exc}")
    results = [client.send_task("nobody.knows") for _ in range(2)]
    with subprocess.Popen(
        [*may, sys.executable, "-c", ELSEWHERE, str(client.storage.directory)], env=environment(),
        stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        try:
            assert other.stdout.readline() == "ready\n"
            (owner,) = client.storage.owners()
            assert (owner.alive, owner.about["pid"]) == (True, 1)
            assert sweep(client.storage) == 0
        finally:
            other.kill()
    wait_until(lambda: sweep(client.storage) == 2, what="it is dead here too")
    assert client.storage.owners() == []
    assert [result.state for result in results] == ["FAILURE", "PENDING"]


def test_a_supervisor_is_the_process_that_runs_it_not_the_one_that_made_it(monkeypatch):
    supervisor = Supervisor(object())

    def run():
        monkeypatch.setattr(supervisor, "_work", lambda: 0)
        monkeypatch.setattr(supervisor, "_listen", lambda: setattr(supervisor, "_notices", Notices()))
        assert supervisor.run() == 0
        assert supervisor._mine["pid"] == os.getpid()

    assert ended(forked(run)) == 0
