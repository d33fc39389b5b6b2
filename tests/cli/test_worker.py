"""`localq worker` as people run it: a process, its log, signals, and exit codes."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment, is_gone, localq, python, worker
from waiting import LIMIT_S, wait_until

TASKS = '''
import os, time
from localq import LocalQ
from localq.log import get_task_logger

app = LocalQ("proj")
logger = get_task_logger(__name__)

@app.task
def add(x, y):
    return x + y

@app.task
def talk():
    logger.info("hello from inside")

@app.task
def fail():
    raise ValueError("on purpose")

@app.task
def hold(name):
    """Say that it runs, and run until the test lets it go."""
    open(f"{name}.started", "w").close()
    while not os.path.exists(f"{name}.go"):
        time.sleep(0.01)
    return "held to the end"
'''


@pytest.fixture
def here(tmp_path):
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def send(here, call):
    """Send a call from a process of its own; returns the id."""
    return python("-c", f"import tasks; print(tasks.{call}.id)", cwd=here).strip()


def result(here, id):
    """What another process sees: the state, and the value or error."""
    code = (
        f"import tasks; r = tasks.app.AsyncResult({id!r}); r.get(timeout=20, propagate=False); print(r.state, r.result)"
    )
    return python("-c", code, cwd=here).strip()


def state(here, id):
    return python("-c", f"import tasks; print(tasks.app.AsyncResult({id!r}).state)", cwd=here).strip()


def held(here, name="a"):
    """Send a task that holds, and wait until it runs."""
    id = send(here, f"hold.delay({name!r})")
    wait_until((here / f"{name}.started").exists, what="the task runs")
    return id


# -- What it says ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_the_log_has_celerys_lines(here, pool):
    with worker("-A", "tasks", "worker", "-c", "1", "-P", pool, cwd=here) as running:
        id = send(here, "add.delay(2, 3)")
        running.saw(f"Task tasks.add[{id}] received")
        running.saw(f"Task tasks.add[{id}] succeeded in")
        assert result(here, id) == "SUCCESS 5"
        failed = send(here, "fail.delay()")
        running.saw(f"Task tasks.fail[{failed}] raised unexpected: ValueError('on purpose')")
        running.saw("Traceback (most recent call last)")
        talked = send(here, "talk.delay()")
        running.saw(f"tasks.talk[{talked}]: hello from inside")
        name = "ForkPoolWorker-1" if pool == "prefork" else "MainProcess"
        line = next(line for line in running.text.splitlines() if f"[{id}] succeeded" in line)
        assert re.fullmatch(
            rf"\[\d{{4}}-\d\d-\d\d [\d:,]+: INFO/{name}\] Task tasks.add\[{id}\] succeeded in [\d.e-]+s: 5", line
        )
        assert f"sqlite:///{here}/.localq" in running.text
        assert "tasks.add" in running.text
        assert "mingle" not in running.text
        running.send(signal.SIGTERM)
        assert running.ended() == 0


@pytest.mark.row("X2")
@pytest.mark.parametrize("words", [("-l", "WARNING"), ("-L", "warning"), ("--loglevel", "Warning")])
def test_the_level_decides_what_is_said(here, words):
    with worker("-A", "tasks", "worker", "-c", "1", *words, cwd=here, ready=False) as running:
        failed = send(here, "fail.delay()")
        running.saw(f"Task tasks.fail[{failed}] raised unexpected")
        assert "received" not in running.text
        assert "ready" not in running.text


def test_a_terminal_gets_the_banner(here):
    script = shutil.which("script")
    if script is None:
        pytest.skip("script(1), which makes a terminal, is not installed")
    log = here / "typescript"
    process = subprocess.Popen(
        [script, "-qefc", f"{sys.executable} -m localq -A tasks worker -c 1", str(log)], cwd=here, env=environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: log.exists() and " ready." in log.read_text("utf-8", "replace"), what="the worker is ready")
        text = log.read_text("utf-8", "replace")
        parts = (
            " -------------- localq@", "[config]", ".> app:         proj:0x", ".> concurrency: 1 (prefork)", "[queues]",
            "exchange=celery(direct) key=celery", "[tasks]", "  . tasks.add", f"{here}/.localq",
        )  # fmt: skip
        for part in parts:
            assert part in text
    finally:
        process.kill()
        process.wait(LIMIT_S)


@pytest.mark.row("X1")
def test_queues_are_only_those_that_were_named(here):
    other = send(here, "add.apply_async((1, 1))")
    mine = send(here, "add.apply_async((2, 2), queue='mail')")
    for flag in ("-Q", "--queue"):
        with worker("-A", "tasks", "worker", "-c", "1", flag, "mail,more", cwd=here) as running:
            assert result(here, mine) == "SUCCESS 4"
            running.send(signal.SIGTERM)
            assert running.ended() == 0
        assert state(here, other) == "PENDING"


# -- How it stops ----------------------------------------------------------------------------------


@pytest.mark.row("R18")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_the_first_signal_lets_the_running_task_end_and_gives_back_the_rest(here, number):
    with worker("-A", "tasks", "worker", "-c", "1", cwd=here) as running:
        id = held(here)
        waiting = [send(here, "add.delay(1, 1)") for _ in range(2)]
        running.send(number)
        running.saw("worker: Warm shutdown (MainProcess)")
        (here / "a.go").touch()
        assert running.ended() == 0
    assert result(here, id) == "SUCCESS held to the end"
    assert [state(here, each) for each in waiting] == ["PENDING", "PENDING"]
    with worker("-A", "tasks", "worker", "-c", "1", cwd=here):
        assert [result(here, each) for each in waiting] == ["SUCCESS 2", "SUCCESS 2"]


@pytest.mark.row("R18")
@pytest.mark.parametrize(("numbers", "code"), [
    ([signal.SIGINT, signal.SIGINT], 130), ([signal.SIGQUIT], 131), ([signal.SIGTERM, signal.SIGINT], 130),
    ([signal.SIGTERM, signal.SIGQUIT], 131),
], ids=["INT INT", "QUIT", "TERM INT", "TERM QUIT"])  # fmt: skip
def test_a_cold_stop_ends_the_running_task_at_once(here, numbers, code):
    with worker("-A", "tasks", "worker", "-c", "1", cwd=here) as running:
        id = held(here)
        waiting = send(here, "add.delay(1, 1)")
        children = running.children()
        for number, words in zip(numbers, ["Warm shutdown"] * (len(numbers) - 1) + ["Cold shutdown"], strict=True):
            running.send(number)
            running.saw(words)
        assert running.ended() == code
        wait_until(lambda: all(map(is_gone, children)), what="no child is left")
    assert result(here, id).startswith("FAILURE Worker exited prematurely")
    assert state(here, waiting) == "PENDING"


@pytest.mark.row("R18")
def test_a_second_term_changes_nothing(here):
    with worker("-A", "tasks", "worker", "-c", "1", cwd=here) as running:
        id = held(here)
        for _ in range(3):
            running.send(signal.SIGTERM)
        running.saw("Warm shutdown")
        (here / "a.go").touch()
        assert running.ended() == 0
    assert result(here, id) == "SUCCESS held to the end"


def test_an_idle_worker_stops_at_once_and_leaves_no_traces(here):
    with worker("-A", "tasks", "worker", "-c", "2", cwd=here) as running:
        running.send(signal.SIGINT)
        assert running.ended() == 0
        assert "Traceback" not in running.text
    assert list((here / ".localq" / "owners").iterdir()) == []
    assert [entry.name for entry in (here / ".localq" / "bells").iterdir()] == ["board"]


def test_a_solo_worker_stops_warmly_and_then_by_force(here):
    with worker("-A", "tasks", "worker", "-P", "solo", cwd=here) as running:
        id = held(here)
        running.send(signal.SIGTERM)
        running.saw("Warm shutdown")
        (here / "a.go").touch()
        assert running.ended() == 0
    assert result(here, id) == "SUCCESS held to the end"
    with worker("-A", "tasks", "worker", "-P", "solo", cwd=here) as running:
        held(here, "b")
        running.send(signal.SIGINT)
        running.saw("Warm shutdown")
        running.send(signal.SIGINT)
        assert running.ended() in (130, -signal.SIGINT)


# -- The store under it ----------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "solo"])
@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_store_that_vanishes_ends_the_worker_with_a_word_and_its_own_code(here, pool, how):
    store = here / ".localq"
    with worker("-A", "tasks", "worker", "-c", "2", "-P", pool, cwd=here) as running:
        if how == "removed":
            wait_until(lambda: shutil.rmtree(store, ignore_errors=True) or not store.exists(), what="the store is gone")
        else:
            store.rename(here / "moved")
        if how == "replaced":
            send(here, "add.delay(1, 1)")
        assert running.ended() == 74
        assert str(store) in running.text
        assert "error[LQ020]: " in running.text
        assert "Traceback" not in running.text
    if how != "replaced":
        assert not store.exists()


def test_a_task_that_runs_when_its_store_vanishes_may_end(here):
    with worker("-A", "tasks", "worker", "-c", "1", cwd=here) as running:
        held(here)
        shutil.rmtree(here / ".localq")
        running.saw("error")
        assert running.process.poll() is None
        (here / "a.go").touch()
        assert running.ended() == 74
    assert not (here / ".localq").exists()


# -- Names of nodes --------------------------------------------------------------------------------


def test_a_second_worker_of_the_same_name_gets_a_number_and_a_given_name_is_refused(here):
    with (
        worker("-A", "tasks", "worker", "-c", "1", cwd=here) as first,
        worker("-A", "tasks", "worker", "-c", "1", cwd=here) as second,
    ):
        assert re.search(r"localq@\S+ ready\.", first.text)
        assert re.search(r"localq2@\S+ ready\.", second.text)
        with worker("-A", "tasks", "worker", "-c", "1", "-n", "w1", cwd=here) as named:
            assert re.search(r"w1@\S+ ready\.", named.text)
            for pool in ("prefork", "solo"):
                done = localq("-A", "tasks", "worker", "-n", "w1@%h", "-P", pool, cwd=here)
                assert done.returncode == 73
                assert re.search(r"error\[LQ021\]: node name w1@\S+ belongs to a worker that is running", done.stderr)


def test_a_name_is_free_again_when_its_worker_is_dead(here):
    with worker("-A", "tasks", "worker", "-c", "1", "-n", "w1", cwd=here) as first:
        first.send(signal.SIGKILL)
        first.ended()
    with worker("-A", "tasks", "worker", "-c", "1", "-n", "w1", cwd=here) as second:
        assert "w1@" in second.text


# -- One file, two roles ---------------------------------------------------------------------------

SCRIPT = """
from localq import LocalQ
app = LocalQ({main!r})

@app.task
def add(x, y):
    return x + y

if __name__ == "__main__":
    print(add.name, add.delay(2, 3).get(timeout=20))
"""


@pytest.mark.parametrize("main", ["proj", None])
@pytest.mark.parametrize("spec", ["single", "single.py", "single:app"])
def test_one_file_is_a_script_and_the_workers_module(tmp_path, main, spec):
    (tmp_path / "single.py").write_text(SCRIPT.format(main=main))
    with worker("-A", spec, "worker", "-c", "1", cwd=tmp_path):
        assert python("single.py", cwd=tmp_path) == f"{main or '__main__'}.add 5\n"


def test_two_directories_with_an_app_of_the_same_name_share_nothing(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for place in (one, two):
        place.mkdir()
        (place / "tasks.py").write_text(TASKS)
    with worker("-A", "tasks", "worker", "-c", "1", cwd=one):
        id = send(two, "add.delay(1, 1)")
        assert result(one, send(one, "add.delay(2, 2)")) == "SUCCESS 4"
        assert state(two, id) == "PENDING"
    with worker("-A", "tasks", "worker", "-c", "1", cwd=two):
        assert result(two, id) == "SUCCESS 2"


def test_a_script_and_a_worker_of_different_directories_share_the_apps_store(here, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (here / "main.py").write_text("from tasks import add\nprint(add.delay(2, 3).get(timeout=20))\n")
    with worker("-A", str(here / "tasks.py"), "worker", "-c", "1", cwd=elsewhere):
        assert python(str(here / "main.py"), cwd=Path("/")) == "5\n"
    assert not (elsewhere / ".localq").exists()


def test_the_store_can_be_chosen_by_a_variable_for_both(here):
    with worker("-A", "tasks", "worker", "-c", "1", cwd=here, LOCALQ_STORE="jobs"):
        code = "import tasks; print(tasks.add.delay(1, 2).get(timeout=20))"
        assert python("-c", code, cwd=here, LOCALQ_STORE=str(here / "jobs")) == "3\n"
    assert not (here / ".localq").exists()


PROJECT = """
import threading
from localq import LocalQ, current_app, shared_task

app = LocalQ("proj")
app.autodiscover_tasks(["shop"])
LocalQ("later", store="memory:")

@app.task
def current():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(current_app().main))
    thread.start()
    thread.join()
    return [current_app().main, *seen]
"""


@pytest.mark.row("F009", "F026", "F027")
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_worker_finds_the_tasks_of_packages_and_its_app_is_the_current_one(tmp_path, pool):
    (tmp_path / "proj.py").write_text(PROJECT)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "tasks.py").write_text(
        "from localq import shared_task\n\n@shared_task\ndef sell():\n    return sell.app.main\n"
    )
    with worker("-A", "proj:app", "worker", "-c", "1", "-P", pool, cwd=tmp_path) as running:
        assert "shop.tasks.sell" in running.text
        told = python(
            "-c", "import proj; print([proj.app.send_task(name).get(timeout=30) for name in"
            " ('proj.current', 'shop.tasks.sell')])", cwd=tmp_path,
        )  # fmt: skip
    assert told == "[['proj', 'proj'], 'proj']\n"


@pytest.mark.row("F023")
def test_a_script_is_a_worker_by_worker_main(tmp_path):
    (tmp_path / "run.py").write_text(
        "import sys\nfrom localq import LocalQ, signals\napp = LocalQ('proj')\n"
        "@signals.worker_ready.connect\ndef stop(sender, **_):\n    sender.stop()\n"
        "print('ended with', app.worker_main(['worker', '-P', 'solo', '-l', 'ERROR']))\n"
    )
    assert "ended with 0" in python("run.py", cwd=tmp_path)


@pytest.mark.row("N37", "F192", "F142")
def test_limits_on_the_command_line_hold_for_every_task(here):
    words = ("-A", "tasks", "worker", "-c", "1", "--time-limit", "2", "--soft-time-limit", "0.5")
    with worker(*words, cwd=here) as running:
        soft = send(here, "hold.delay('soft')")
        assert result(here, soft) == "FAILURE SoftTimeLimitExceeded()"
        running.saw(f"Soft time limit (0.5s) exceeded for tasks.hold[{soft}]")
        # What the call says wins.
        hard = send(here, "hold.apply_async(('hard',), soft_time_limit=60)")
        assert result(here, hard) == "FAILURE TimeLimitExceeded(2,)"
        running.saw(f"Hard time limit (2s) exceeded for tasks.hold[{hard}]")
        running.saw("was killed with its task; another takes its place")
        assert result(here, send(here, "add.delay(1, 2)")) == "SUCCESS 3"
        running.send(signal.SIGTERM)
        assert running.ended() == 0
        assert "ended: signal 9" not in running.text


@pytest.mark.row("N37", "N35")
@pytest.mark.parametrize(
    "flag", ["--time-limit", "--soft-time-limit", "--max-tasks-per-child", "--max-memory-per-child"]
)
def test_a_limit_that_is_none_is_a_mistake_of_usage(here, flag):
    done = localq("-A", "tasks", "worker", flag, "-1", cwd=here)
    assert done.returncode == 2
    assert flag in done.stderr
    assert flag in localq("-A", "tasks", "worker", "--help", cwd=here).stdout
