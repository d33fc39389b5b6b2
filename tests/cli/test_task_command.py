"""`localq task`: one task as the store has it, and failed ones run again."""

from __future__ import annotations

import re
import signal

import pytest
from commands import localq
from forking import Line, forked, killed
from working import claims_of, work_off

from localq import LocalQ, chain, chord
from localq.exceptions import Reject
from localq.message import Message, Outcome
from localq.recovery import EARLY, lost
from localq.serialization import checksum
from localq.states import STARTED

TASKS = """
from localq import LocalQ
app = LocalQ("proj")
"""


@pytest.fixture
def here(tmp_path):
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


@pytest.fixture
def app(here):
    """The test's own view of the store of tasks.py."""
    made = LocalQ("proj", store=here / ".localq", set_as_current=False)
    yield made
    made.close()


@pytest.fixture
def fail(app):
    def fail(x, why="no {}"):
        raise ValueError(why.format(x))

    return app.task(name="proj.fail")(fail)


@pytest.fixture
def add(app):
    return app.task(name="proj.add")(lambda x, y: x + y)


def shown(here, id, *words, **variables):
    """What `task show` says, by name; a text of several lines as one."""
    done = localq(*words, "task", "show", id, cwd=here, **variables)
    assert (done.returncode, done.stderr) == (0, ""), done
    found = {}
    for line in done.stdout.splitlines():
        name, arrow, text = line.partition("->")
        if arrow and not line.startswith(" "):
            last = name.strip()
            found[last] = text.strip()
        else:
            found[last] = f"{found[last]}\n{line.strip()}".strip()
    return found


def mistake(done, code, exit_code=1):
    assert done.returncode == exit_code, done
    lines = done.stderr.splitlines()
    assert re.match(rf"error\[{code}\]: \S", lines[0]), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


# -- show ------------------------------------------------------------------------------------------


def test_a_failed_task_is_shown_with_all_that_is_known_of_it(here, app, fail):
    result = fail.delay(1)
    work_off(app)
    found = shown(here, result.id)
    assert list(found) == [
        "task", "id", "state", "queue", "args", "kwargs", "sent", "retries", "crashes", "worker", "ended",
        "exception", "traceback", "run again",
    ]  # fmt: skip
    assert (found["task"], found["id"], found["state"]) == ("proj.fail", result.id, "FAILURE")
    assert (found["queue"], found["args"], found["kwargs"]) == ("celery, priority 5", "[1]", "{}")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d by gen\d+@\S+", found["sent"])
    assert (found["retries"], found["crashes"]) == ("0", "0 (attempts whose process died)")
    assert (found["worker"], found["exception"]) == ("test@here", "ValueError: no 1")
    assert found["traceback"].startswith("Traceback (most recent call last):")
    assert found["traceback"].endswith("ValueError: no 1")
    assert found["run again"] == f"localq -b {app.storage.url} task retry {result.id}"


class Coded(Exception):
    def __init__(self, *, code):
        self.code = code

    def __str__(self):
        return f"code is {self.code}"


@pytest.mark.parametrize(
    ("exc", "words"),
    [
        (Coded(code=7), "Coded: code is 7"),
        (Reject("no", requeue=False), "Reject: no"),
        (SystemExit(3), "SystemExit: 3"),
    ],
    ids=["words of its own", "refused", "no Exception"],
)
def test_what_an_exception_said_is_shown_whatever_its_class(here, app, exc, words):
    @app.task(name="proj.raises")
    def raises():
        raise exc

    result = raises.delay()
    work_off(app)
    assert shown(here, result.id)["exception"] == words
    assert words in localq("-A", "tasks", "task", "retry", "--failed", "--dry-run", cwd=here).stdout


def test_the_names_stand_in_one_column(here, app, add):
    result = add.delay(1, 2)
    lines = localq("task", "show", result.id, cwd=here).stdout.splitlines()
    assert {line.index("->") for line in lines} == {11}


def test_the_crashes_of_a_task_are_counted(here, app, add):
    result = add.delay(1, 2)
    for _ in range(2):
        (claim,) = claims_of(app, "dead")
        app.storage.settle([Outcome(claim.seq, claim.token, claim.message.id, ended=False, charged=1)])
    assert shown(here, result.id)["crashes"].startswith("2 ")
    (claim,) = claims_of(app, "dead")
    app.storage.settle([lost(claim, "Worker exited prematurely: signal 9 (SIGKILL)")])
    found = shown(here, result.id)
    assert found["crashes"].startswith("3 ")
    assert found["exception"] == "WorkerLostError: Worker exited prematurely: signal 9 (SIGKILL)"


def test_a_task_that_has_not_ended_says_where_it_is(here, app, add):
    ready, later = add.delay(1, 2), add.apply_async((1, 2), countdown=1000, expires=2000)
    assert shown(here, ready.id)["state"] == "PENDING: it waits for a worker in queue 'celery'"
    found = shown(here, later.id)
    assert found["state"] == "PENDING: it waits for its time"
    assert found["not before"] < found["expires"]
    assert "run again" not in found


def test_a_step_whose_time_counts_from_the_end_before_it_says_so(here, app, add):
    result = chain(add.s(1, 2), add.s(3).set(countdown=1000, expires=2000))()
    found = shown(here, result.id)
    assert found["not before"] == "1000 s after the end that it waits for"
    assert found["expires"] == "2000 s after the end that it waits for"


def test_a_running_task_names_its_process_and_one_whose_process_died_has_failed(here, app, add):
    result, line = add.delay(1, 2), Line()

    def live():
        owner = app.storage.enlist({"node": "w1@box"})
        (claim,) = claims_of(app, owner.name)
        owner.begin(claim, EARLY)
        app.storage.update(claim.seq, claim.token, Outcome(claim.seq, claim.token, result.id, STARTED))
        line.say()
        signal.pause()

    pid = forked(live)
    try:
        line.hear()
        found = shown(here, result.id)
    finally:
        killed(pid)
    assert found["state"] == "STARTED: it is in the hands of a worker"
    assert found["worker"] == f"w1@box, process {pid}, which runs it now"
    assert "lost: Worker exited prematurely" in localq("task", "show", result.id, cwd=here).stderr
    found = shown(here, result.id)
    assert (found["state"], found["crashes"]) == ("FAILURE", "1 (attempts whose process died)")


def test_a_result_is_shown(here, app, add):
    result = add.delay(1, 2)
    work_off(app)
    found = shown(here, result.id)
    assert (found["state"], found["result"]) == ("SUCCESS", "3")
    assert not found.keys() & {"exception", "traceback", "run again"}


def test_those_who_wait_are_named_and_when_it_has_failed_what_becomes_of_them(here, app, fail, add):
    last = chain(fail.s(1), add.s(2))()
    first = last.parent
    body = chord([add.s(1, 1), add.s(2, 2)], add.s(3))()
    member = body.parent.results[0]
    assert shown(here, first.id)["who waits"] == f"proj.add[{last.id}]"
    assert shown(here, last.id)["state"] == f"PENDING: it waits for the end of {first.id}"
    assert shown(here, member.id)["who waits"] == f"proj.add[{body.id}]"
    assert shown(here, member.id)["group"] == f"{body.parent.id}, member 0"
    work_off(app)
    assert "failed with it and stay failed" in shown(here, first.id)["who waits"]
    assert shown(here, last.id)["run again"].startswith(f"not now: task proj.add[{last.id}] failed before its turn")


def test_of_a_crowd_that_waits_a_few_are_named(here, app, add):
    first = add.delay(1, 2)
    app.storage.put([Message(f"id-{n}", "proj.b", b"[]", after=first.id, waits_for=1, priority=n) for n in range(13)])
    assert "who waits" not in shown(here, first.id)
    app.storage.put([Message("leader", "proj.a", b"[]", leads=1)])
    app.storage.put([Message(f"by-{n}", "proj.b", b"[]", after="leader", waits_for=1, priority=n) for n in range(13)])
    lines = shown(here, "leader")["who waits"].splitlines()
    assert lines == [*(f"proj.b[by-{n}]" for n in range(10)), "and 3 more"]


@pytest.mark.parametrize(("columns", "why"), [
    ({"content_type": "application/x-python-serialize"}, "not accepted"),
    ({"body": b"\xff\x00not json", "checksum": checksum(b"\xff\x00not json")}, "cannot read 10 bytes"),
    ({"checksum": 7}, "checksum"),
    ({"body": b"3", "checksum": checksum(b"3")}, "cannot be read"),
    ({"headers": "{"}, None),
])  # fmt: skip
def test_a_body_that_cannot_be_read_costs_its_line_only(here, app, columns, why):
    whole = Message("odd", "proj.odd", b"[[1], {}]", checksum=checksum(b"[[1], {}]"))
    app.storage.put([whole._replace(**columns)])
    found = shown(here, "odd")
    assert found["task"] == "proj.odd"
    if why is None:
        assert found["args"] == "[1]"
    else:
        assert "cannot be read: " in found["args"]
        assert why in found["args"]


def test_a_result_that_cannot_be_read_costs_its_line_only(here, app, add, fail):
    for result, name in ((add.delay(1, 2), "result"), (fail.delay(1), "exception")):
        (claim,) = claims_of(app, "me")
        state = {"result": "SUCCESS", "exception": "FAILURE"}[name]
        app.storage.settle([Outcome(claim.seq, claim.token, result.id, state, result=b"{}", content_type="no/such")])
        assert "cannot be read: " in shown(here, result.id)[name]


def test_what_the_sender_would_rather_have_shown_is_shown(here, app, add):
    result = add.apply_async(("my password", 2), argsrepr="('***', 2)")
    found = shown(here, result.id)
    assert (found["args"], found["kwargs"]) == ("('***', 2)", "{}")


def test_nothing_that_is_shown_can_steer_the_terminal(here, app, fail):
    app.storage.put([Message("odd", "proj.\x1b]0;title\x07", b"[[], {}]", queue="\x9b2J\u202e")])
    result = fail.delay(1, why="\x1b[2Jgone\udcff")
    work_off(app)
    for id in ("odd", result.id):
        out = localq("task", "show", id, cwd=here).stdout
        assert all(c.isprintable() or c == "\n" for c in out)
    assert r"\x1b[2Jgone" in out


def test_a_terminal_that_knows_only_ascii_gets_escapes(here, app, fail):
    result = fail.delay("ü")
    work_off(app)
    assert shown(here, result.id, PYTHONIOENCODING="ascii")["exception"] == r"ValueError: no \xfc"


def test_an_unknown_id_is_a_mistake(here, app, add):
    add.delay(1, 2)
    text = mistake(localq("task", "show", "nobody", cwd=here), "LQ041")
    assert "'nobody'" in text
    assert f"sqlite:///{here}/.localq" in text
    assert "  hint: " in text


# -- Which app, which store ------------------------------------------------------------------------


def test_a_store_that_is_not_there_is_a_mistake_and_is_not_made(here):
    for words in (["show", "a"], ["retry", "a"], ["retry", "--failed"]):
        text = mistake(localq("task", *words, cwd=here), "LQ040")
        assert f"sqlite:///{here}/.localq" in text
    assert not (here / ".localq").exists()


@pytest.mark.parametrize("words", [
    ["-b", ".localq", "task", "show"], ["task", "-b", ".localq", "show"], ["task", "show", "-b", ".localq"],
])  # fmt: skip
def test_with_a_store_no_code_is_needed(here, app, add, words):
    result = add.delay(1, 2)
    (here / "tasks.py").write_text("raise SystemError('imported')")
    done = localq(*words, result.id, cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert "proj.add" in done.stdout


def test_the_store_of_the_environment_needs_no_code_either(here, app, add, tmp_path_factory):
    result = add.delay(1, 2)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert shown(elsewhere, result.id, LOCALQ_STORE=str(here / ".localq"))["task"] == "proj.add"
    mistake(localq("task", "show", result.id, cwd=elsewhere), "LQ001", 2)


def test_an_app_that_is_named_is_imported_all_the_same(here):
    (here / "broken.py").write_text("x = 1 / 0")
    mistake(localq("-A", "broken", "-b", ".localq", "task", "show", "a", cwd=here), "LQ005", 2)


@pytest.mark.parametrize("words", [
    ["-A", "tasks", "task", "show"], ["task", "-A", "tasks", "show"], ["task", "show", "-A", "tasks"],
])  # fmt: skip
def test_the_app_is_named_before_or_after_either_command(here, app, add, words):
    result = add.delay(1, 2)
    (here / "app.py").touch()  # so that no file is the obvious one
    done = localq(*words, result.id, cwd=here)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_working_directory_is_changed_once(here, app, add):
    result = add.delay(1, 2)
    done = localq("--workdir", here.name, "task", "show", result.id, cwd=here.parent)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_misspelt_command_of_the_group_names_the_nearest(here):
    text = mistake(localq("task", "shwo", cwd=here), "LQ100", 2)
    assert "did you mean 'show'" in text
    assert "localq task --help" in text


@pytest.mark.parametrize("words", [["task"], ["task", "--help"], ["task", "show", "--help"], ["task", "retry", "-h"]])
def test_help_needs_no_app(tmp_path, words):
    done = localq(*words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: localq task" in done.stdout


# -- retry -----------------------------------------------------------------------------------------


def test_tasks_are_retried_by_their_ids(here, app, fail):
    results = [fail.delay(n) for n in range(3)]
    work_off(app)
    done = localq("task", "retry", results[0].id, results[2].id, results[2].id, cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"proj.fail[{results[0].id}] in queue 'celery', was FAILURE: ValueError: no 0",
        f"proj.fail[{results[2].id}] in queue 'celery', was FAILURE: ValueError: no 2",
        "2 tasks run again",
    ]
    assert [app.AsyncResult(result.id).state for result in results] == ["PENDING", "FAILURE", "PENDING"]
    assert sorted(work_off(app)) == sorted([results[0].id, results[2].id])


def test_of_several_tasks_those_that_can_are_retried_and_the_others_named(here, app, fail, add):
    failed, good = fail.delay(1), add.delay(1, 2)
    work_off(app)
    done = localq("task", "retry", "nobody", good.id, failed.id, cwd=here)
    text = mistake(done, "LQ042")
    assert [line.startswith("error[LQ042]: ") for line in text.splitlines()] == [True, True]
    assert "no task has the id 'nobody'" in text
    assert f"task proj.add[{good.id}] has succeeded" in text
    assert done.stdout.splitlines()[-1] == "1 task runs again, 2 stay as before"
    assert app.AsyncResult(failed.id).state == "PENDING"


def test_all_that_failed_is_retried_and_the_steps_behind_stay(here, app, fail, add):
    single, last = fail.delay(1, why="several\n words"), chain(fail.s(2), add.s(2))()
    good = add.delay(1, 2)
    work_off(app)
    first = last.parent
    for words, end in ((["--dry-run"], "2 tasks would run again"), ([], "2 tasks run again")):
        done = localq("task", "retry", "--failed", *words, cwd=here)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0] == f"proj.fail[{single.id}] in queue 'celery', was FAILURE: ValueError: several words"
        assert lines[1].startswith(f"proj.fail[{first.id}] in queue 'celery', was FAILURE: ValueError")
        assert lines[2].startswith(f"stays: task proj.add[{last.id}] failed before its turn")
        assert lines[3:] == [f"{end}, 1 stays as before"]
        states = [app.storage.records((each.id,))[each.id].state for each in (single, first, last, good)]
        assert states == (["FAILURE"] * 3 if words else ["PENDING", "PENDING", "FAILURE"]) + ["SUCCESS"]


def test_where_nothing_failed_that_is_said_and_is_no_error(here, app, add):
    add.delay(1, 2)
    work_off(app)
    done = localq("task", "retry", "--failed", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"no task has failed in sqlite:///{here}/.localq\n"


def test_a_long_list_is_retried_whole(here, app, fail):
    for n in range(450):
        fail.delay(n)
    work_off(app)
    done = localq("task", "retry", "--failed", cwd=here)
    assert done.stdout.splitlines()[-1] == "450 tasks run again"
    assert len(work_off(app)) == 450


@pytest.mark.parametrize("words", [[], ["--dry-run"], ["--failed", "an-id"]])
def test_either_ids_or_all_that_failed(here, words):
    assert "--failed" in mistake(localq("task", "retry", *words, cwd=here), "LQ101", 2)
