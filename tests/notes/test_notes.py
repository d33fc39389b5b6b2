"""The user's notes are true of localq: each of their Python blocks runs here, or an issue to come is named for it.

A block is found by its first line that is not a comment, a decorator or a bracket, and its text is taken from the notes
as it stands, but for two words: `from celery` is `from localq`, and `Celery` is `LocalQ`. `ran` runs it statement by
statement and returns what each expression came to.
"""

from __future__ import annotations

import ast
import functools
import logging
import re
import subprocess
import sys
import time
import types
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import commands
import pytest
import stand_ins
from waiting import wait_until

import localq
from localq import LocalQ, states
from localq.registry import symbol
from localq.testing.worker import start_worker

NOTES = (Path(__file__).parent / "celery-notes.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(?:py|python)\n(.*?)^```$", NOTES, re.MULTILINE | re.DOTALL)
LIMIT_S = 20

#: Blocks of later issues, by that line, and what will bring them.
LATER = {
    "sig1 = add.si(2, 2)": "canvas: stamping",
}
RUN: list[str] = []


def runs(first: str) -> Callable[[Any], Any]:
    """Mark a test with the line of the block it runs, which it is given as `block`."""
    RUN.append(first)
    return pytest.mark.parametrize("block", [pytest.param(first, id="notes")], indirect=True)


def first_line(block: str) -> str:
    return next(line for line in block.splitlines() if line.strip() and not line.startswith(("#", "@", "(")))


@pytest.fixture
def block(request: pytest.FixtureRequest) -> str:
    (found,) = [each for each in BLOCKS if first_line(each) == request.param]
    return found.replace("from celery import Celery", "from localq import LocalQ as Celery").replace(
        "from celery", "from localq"
    )


@pytest.fixture
def named(app: LocalQ, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the notes take for granted."""

    def add(x, y=0, debug=False):
        return x + y

    def mul(x, y=1):
        return x * y

    def xsum(numbers):
        return sum(numbers)

    def fails():
        raise ValueError("it fails")

    for function in (add, mul, xsum, fails):
        function.__module__ = "proj.tasks"
    tasks = {function.__name__: app.task(function) for function in (add, mul, xsum, fails)}
    module = types.ModuleType("proj.tasks")
    vars(module).update(tasks)
    monkeypatch.setitem(sys.modules, "proj", types.ModuleType("proj"))
    monkeypatch.setitem(sys.modules, "proj.tasks", module)
    return {
        "__name__": "proj", "app": app, "celery": localq, "states": states, "logger": logging.getLogger("proj"),
        **tasks,
        **{name: getattr(localq, name) for name in ("chain", "chord", "group", "Task")},
    }  # fmt: skip


@pytest.fixture
def worker(app: LocalQ) -> Callable[..., Any]:
    return functools.partial(start_worker, app, "solo")


def ran(block: str, named: dict[str, Any]) -> list[Any]:
    """Run a block; returns the values of its expressions, in order."""
    values = []
    for statement in ast.parse(block).body:
        if isinstance(statement, ast.Expr):
            values.append(eval(compile(ast.Expression(statement.value), "celery-notes.md", "eval"), named))
        else:
            exec(compile(ast.Module([statement], []), "celery-notes.md", "exec"), named)
    return values


def parts(block: str, *marks: str) -> list[str]:
    """Cut a block before each of its lines that begins so."""
    lines = block.splitlines(keepends=True)
    cuts = [0, *[at for at, line in enumerate(lines) if line.startswith(marks) and at], len(lines)]
    return ["".join(lines[begin:end]) for begin, end in pairwise(cuts)]


def test_every_block_is_run_or_on_the_list():
    firsts = [first_line(block) for block in BLOCKS]
    assert len(set(firsts)) == len(firsts)
    assert sorted([*RUN, *LATER]) == sorted(firsts)


def test_the_notes_are_the_users_but_for_what_is_listed():
    head, _, notes = NOTES.partition("-->\n\n")
    assert re.findall(r"^(X\d+) ", head, re.MULTILINE) == ["X9", "X18", "X11", "X16"]
    assert notes.startswith("## [First Steps With Celery]")
    for typo in ("mul(8)", "task_routs", "max_reties", "hello world: 10"):
        assert typo not in notes


# -- First steps ---------------------------------------------------------------------------------


@runs("from celery import Celery")
@pytest.mark.row("F030", "F064", "F093", "F350", "N42")
def test_the_first_steps(block, tmp_path):
    tasks, main = parts(block, "# main.py")
    (tmp_path / "tasks.py").write_text(tasks)
    (tmp_path / "main.py").write_text(main)
    with commands.worker("-A", "tasks", "worker", "-c", "1", cwd=tmp_path, PYTHONWARNINGS="") as worker:
        done = subprocess.run(
            [sys.executable, "main.py"], cwd=tmp_path, env=commands.environment(PYTHONWARNINGS=""), capture_output=True,
            text=True, timeout=LIMIT_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        worker.saw("succeeded in")
        assert re.search(r"Task tasks\.add\[.*\] succeeded in .*s: 8", worker.text)


@runs("result = add.delay(4, 4)")
@pytest.mark.row("F093", "F094")
def test_keeping_results(block, named, worker):
    with worker():
        ready, value, again, traceback = ran(block, named)
    assert ready in (True, False)
    assert (value, again, traceback) == (8, 8, None)


@runs("app.conf.update(**configs)")
@pytest.mark.row("F011", "F025", "F135", "X16")
def test_configuration(block, named, app, caplog):
    named["configs"] = {"task_track_started": True}
    before = set(named)
    ran(block, named)
    app.conf.update({name: named[name] for name in set(named) - before - {"__builtins__"}})

    @app.task(name="tasks.add")
    def add(x, y):
        return x + y

    assert app.conf.task_track_started is True
    assert (app.conf.timezone, app.conf.accept_content) == ("Europe/Oslo", ["json"])
    assert add.rate_limit == "10/m"
    assert add.delay(1, 1).queue == "low-priority"


# -- Next steps ----------------------------------------------------------------------------------


@runs("my_task.delay(arg1, arg2)")
@pytest.mark.row("F062", "F093", "F094", "F096", "F097", "F129")
def test_calling_tasks(block, named, app, worker):
    named.update(my_task=named["add"], arg1=1, arg2=2)
    with worker():
        first, second, elsewhere, value = ran(block, named)
        assert (first.get(LIMIT_S), second.get(LIMIT_S), value) == (3, 3, 3)
    assert elsewhere.queue == "queue.name"
    assert elsewhere.state == "PENDING"


@runs("res = add.delay(2, 2)")
@pytest.mark.row("F066")
def test_results(block, named, worker):
    with worker():
        value, id, quiet, loud, failed, successful, state = ran(block, named)
    assert (value, quiet, loud, failed, successful, state) == (4, 4, 4, False, True, "SUCCESS")
    assert id == named["res"].id


@runs("sig = add.s(2)      # incomplete partial: add(?, 2)")
def test_partial_signatures(block, named, worker):
    named.update(options={}, args=(5,), kwargs={})
    with worker():
        sent = ran(block, named)
        assert named["res"].get(LIMIT_S) == 10
        assert [result.get(LIMIT_S) for result in sent] == [2, 7]


@runs("from celery import group")
def test_groups(block, named, worker):
    with worker():
        assert ran(block, named) == [[2 * i for i in range(10)], [10 + i for i in range(10)]]


@runs("from celery import chain")
@pytest.mark.row("X18")
def test_chains(block, named, worker):
    with worker():
        assert ran(block, named) == [64, 64, 64]


@runs("from celery import chord, group")
def test_chords(block, named, worker):
    with worker():
        assert ran(block, named) == [90, 90]


@runs("task_routes = {")
@pytest.mark.row("F128", "F129", "F134")
def test_routing(block, named, app, worker):
    (sent,) = ran(block, named)
    app.conf.task_routes = named["task_routes"]
    routed = named["add"].delay(1, 1)
    with worker(queues=["hipri"]):
        assert (sent.get(LIMIT_S), routed.get(LIMIT_S)) == (4, 2)


@runs("res = chain(add.s(4, 4), mul.s(8), mul.s(10))()")
@pytest.mark.row("F256", "X15")
def test_the_graph_of_a_chain(block, named, worker):
    sent, asked = parts(block, "res.parent")
    with worker():
        ran(sent, named)
        assert named["res"].get(LIMIT_S) == 640
        (graph,) = ran(asked, named)
    middle = named["res"].parent
    last, first = named["res"].id, middle.parent.id
    # As in the notes, but for the order of the lines and the indentation, which is Celery's own (X15).
    assert repr(graph).splitlines() == [
        f"{first}(2)", f"     {middle}(1)", f"          {last}(0)",
        f"{middle}(1)", f"     {last}(0)",
        f"{last}(0)",
    ]  # fmt: skip
    assert repr(named["res"].graph) == f"{last}(0)"


# -- Tasks ---------------------------------------------------------------------------------------


@runs("def add(self, x, y):")
@pytest.mark.row("F032")
def test_bound_tasks(block, named, worker, caplog):
    del named["add"]
    ran(block, named)
    with worker(), caplog.at_level(logging.INFO, logger="proj"):
        sent = named["add"].delay(1, 2)
        sent.get(LIMIT_S)
    assert sent.id in [record.getMessage() for record in caplog.records]


@runs("    charge.s(")
@pytest.mark.row("F108")
def test_hiding_sensitive_arguments(block, named, app, worker, caplog):
    @app.task(bind=True)
    def charge(self, account, card):
        return [account, card[-4:], self.request.kwargsrepr]

    named.update(charge=charge, account=7)
    with worker(), caplog.at_level(logging.DEBUG):
        (sent,) = ran(block, named)
        account, digits, shown = sent.get(LIMIT_S)
    assert (account, digits, shown) == (7, "5678", "{'card': '**** **** **** 5678'}")
    assert "1234 5678" not in caplog.text


@runs("def send_twitter_status(self, oauth, tweet):")
@pytest.mark.row("F150", "F156", "F157")
def test_retrying(block, named, worker, monkeypatch):
    monkeypatch.setattr(stand_ins.Twitter, "failures", 1)
    named.update(Twitter=stand_ins.Twitter, twitter=stand_ins.Timeline())
    ran(block, named)
    with worker():
        refreshed = named["refresh_timeline"].delay("me")
        wait_until(lambda: refreshed.state == "RETRY")
        assert isinstance(refreshed.result, ConnectionError)
        sent = named["send_twitter_status"].delay("oauth", "a tweet")
        wait_until(lambda: sent.state == "RETRY")
        assert isinstance(sent.result, stand_ins.Twitter.FailWhaleError)
        assert named["send_twitter_status"].delay("oauth", "another").get(LIMIT_S) is None


@runs("def some_task(self):")
@pytest.mark.row("N32")
def test_ignore(block, named, worker):
    cache = stand_ins.Cache()
    named.update(redis=cache, twitter=stand_ins.Timeline())
    ran(block, named)
    with worker():
        assert named["some_task"].delay().get(LIMIT_S) is None
        cache.revoked.add("all")
        ignored = named["some_task"].delay()
        tweets = named["get_tweets"].delay("you")
        wait_until(lambda: tweets.state == "SUCCESS")
        assert tweets.result == ["you says hello"]
    assert ignored.state == "PENDING"


@runs("def add(x, y):")
@pytest.mark.row("F013", "F017", "F030")
def test_custom_task_classes(block, named, app, worker):
    decorated, by_hand = parts(block, "# Roughly")
    del named["add"]
    app.tasks.unregister("proj.tasks.add")
    ran(decorated, named)
    assert named["add"].name == "proj.add"
    # What the notes leave out: a class has a name only once it is registered.
    body, look_up = parts(by_hand, "add = ")
    ran(body, named)
    named["_AddTask"].name = "proj.by_hand"
    app.register_task(named["_AddTask"])
    ran(look_up, named)
    with worker():
        assert named["add"].name == "proj.by_hand"
        assert named["add"].delay(2, 3).get(LIMIT_S) == 5


@runs("from celery import Task")
@pytest.mark.row("F033", "F061")
def test_instantiation(block, named, app, worker, monkeypatch):
    monkeypatch.setattr(stand_ins.Database, "connections", 0)
    named["Database"] = stand_ins.Database
    ran(block, named)

    @app.task(base=named["DatabaseTask"], bind=True)
    def ask(self):
        return self.db

    with worker():
        assert [ask.delay().get(LIMIT_S) for _ in range(3)] == ["connection 1"] * 3


@runs("def update_page_info(url):")
@pytest.mark.row("F114", "F348")
def test_avoid_synchronous_subtasks(block, named, app, tmp_path):
    bad, good, not_recommended = parts(block, "# GOOD", "# if really")
    stored = tmp_path / "stored"

    def fetch_page(url):
        return f"page of {url}"

    def parse_page(page):
        return f"info of {page}"

    def store_page_info(*given):
        stored.write_text(" and ".join(given))

    named.update({function.__name__: app.task(function) for function in (fetch_page, parse_page, store_page_info)})
    ran(bad, named)
    waiting = named["update_page_info"]
    app.tasks.unregister(waiting.name)
    ran(not_recommended, named)
    waiting_all_the_same = named["update_page_info"]
    app.tasks.unregister(waiting.name)
    ran(good, named)
    app.tasks[waiting.name] = waiting
    with start_worker(app, "prefork", concurrency=2):
        with pytest.raises(RuntimeError, match=r"result\.get\(\)"):
            waiting.delay("here").get(LIMIT_S)
        named["update_page_info"]("here")
        wait_until(stored.exists)
        assert stored.read_text() == "info of page of here and here"
    stored.unlink()
    app.tasks[waiting.name] = waiting_all_the_same
    with start_worker(app, "prefork", concurrency=2):
        waiting_all_the_same.delay("there").get(LIMIT_S)
        wait_until(stored.exists)
        assert stored.read_text() == "there and info of page of there"


@runs("class MyRequest(Request):")
@pytest.mark.row("F139", "F142", "F192")
def test_a_request_of_ones_own_tells_of_failures_and_of_hard_limits(block, named, app, tmp_path):
    log = logging.FileHandler(tmp_path / "log")
    named["logger"].addHandler(log)
    # The notes have it from where `Task.Request` says it is.
    named.update(Request=symbol(named["Task"].Request))
    ran(block, named)

    @app.task(base=named["MyTask"], name="slow", time_limit=1)
    def slow():
        time.sleep(60)

    with start_worker(app, "prefork", concurrency=1):
        result = slow.delay()
        assert repr(result.get(LIMIT_S, propagate=False)) == "TimeLimitExceeded(1)"
        wait_until(lambda: "A hard timeout" in (tmp_path / "log").read_text())
    named["logger"].removeHandler(log)
    log.close()
    assert (tmp_path / "log").read_text().splitlines() == [
        "Failure detected for task slow", "A hard timeout was enforced for task slow",
    ]  # fmt: skip


# -- Calling tasks -------------------------------------------------------------------------------


def writer(app: LocalQ, name: str, file: Path) -> Any:
    """A task that writes down what it is given."""

    def write(*given):
        with file.open("a") as lines:
            lines.write(f"{name} {given}\n")

    return app.task(name=name)(write)


@runs("add.apply_async((2,2), link=add.s(16))")
@pytest.mark.row("F105", "F349")
def test_callbacks(block, named, app, worker, tmp_path):
    named["other_task"] = writer(app, "other", tmp_path / "lines")
    with worker():
        first, second = ran(block, named)
        assert (first.get(LIMIT_S), second.get(LIMIT_S)) == (4, 4)
        wait_until((tmp_path / "lines").exists)
        wait_until(lambda: (tmp_path / "lines").read_text() == "other (4,)\n")


@runs("def error_handler(request, exc, traceback):")
@pytest.mark.row("F106")
def test_errbacks(block, named, app, worker, capfd):
    named["add"] = named["fails"]  # what goes wrong
    body, call = parts(block, "add.apply_async")
    with worker():
        ran(body, named)
        (sent,) = ran(call.replace("(2, 2)", "()"), named)
        with pytest.raises(ValueError, match="it fails"):
            sent.get(LIMIT_S)
        printed = ""

        def heard():
            nonlocal printed
            printed += capfd.readouterr().out
            return f"Task {sent.id} raised exception: ValueError('it fails')" in printed

        wait_until(heard)


@runs("def hello(self, a, b):")
@pytest.mark.row("F174", "X11")
def test_on_message(block, named, app, capsys):
    named["time"] = types.SimpleNamespace(sleep=lambda _: None)  # nobody waits for it
    task, call = parts(block, "def on_raw_message")
    ran(task, named)
    with start_worker(app, "prefork", concurrency=1):
        ran(call, named)
    printed = capsys.readouterr().out.splitlines()
    told = [ast.literal_eval(line) for line in printed[:-1]]
    common = {"task_id": named["r"].id, "children": [], "traceback": None}
    assert [{name: meta[name] for name in (*common, "status", "result")} for meta in told] == [
        {**common, "status": "PROGRESS", "result": {"progress": 50}},
        {**common, "status": "PROGRESS", "result": {"progress": 90}},
        {**common, "status": "SUCCESS", "result": "hello world: 2"},
    ]
    assert printed[-1] == "hello world: 2"


# -- Canvas, as far as calling goes --------------------------------------------------------------


@runs("add.s(2, 2, debug=True)")
@pytest.mark.row("F016")
def test_signatures(block, named):
    first, kwargs, options, with_set, spelt_out = ran(block, named)
    assert first == named["add"].signature((2, 2), {"debug": True})
    assert (kwargs, options) == ({"debug": True}, {"countdown": 1})
    assert with_set == spelt_out


@runs("s = add.s(2)")
def test_clones(block, named, worker):
    ran(block, named)
    with worker():
        assert (named["clone_s"].args, named["clone_s"].kwargs) == ((4, 2), {"debug": True})
        assert named["clone_s"].delay().get(LIMIT_S) == 6


@runs("task.map([1, 2])")
@pytest.mark.row("F251")
def test_maps(block, named, worker):
    named["task"] = named["add"]
    (mapped,) = ran(block, named)
    with worker():
        assert mapped.delay().get(LIMIT_S) == named["res"] == [1, 2]


@runs("add.starmap([(2, 2), (4, 4)])")
@pytest.mark.row("F252")
def test_starmaps(block, named, worker):
    (mapped,) = ran(block, named)
    with worker():
        assert mapped.delay().get(LIMIT_S) == named["res"] == [4, 8]


@runs("res = add.chunks(zip(range(100), range(100)), 10)()")
@pytest.mark.row("F253")
def test_chunks(block, named, worker):
    with worker():
        assert ran(block, named) == [[[2 * i for i in range(at, at + 10)] for at in range(0, 100, 10)]]


@runs("add.apply_async((2, 2), link=reset_buffer.signature(immutable=True))")
@pytest.mark.row("F105")
def test_immutability(block, named, app, worker, tmp_path):
    named["reset_buffer"] = writer(app, "reset", tmp_path / "lines")
    with worker():
        for sent in ran(block, named):
            assert sent.get(LIMIT_S) == 4
        wait_until((tmp_path / "lines").exists)
        wait_until(lambda: (tmp_path / "lines").read_text() == "reset ()\n" * 2)


@runs("res = add.apply_async((2, 2), link=mul.s(16))")
@pytest.mark.row("F169", "F185")
def test_children(block, named, app, worker):
    for name in ("log_result", "log_error"):
        named[name] = app.task(lambda *what: str(what), name=f"proj.tasks.{name}")
    with worker():
        value, children, linked, collected, *_, last, same = ran(block, named)
        assert (value, linked) == (4, 64)
        assert collected == [(named["res"], 4), (children[0], 64)]
        assert (last.get(LIMIT_S), same.get(LIMIT_S)) == (4, 4)


@runs("res = (add.si(2, 2) | add.si(4, 4) | add.si(8, 8))()")
def test_parents_of_a_chain(block, named, worker):
    with worker():
        assert ran(block, named) == [16, 8, 4]
