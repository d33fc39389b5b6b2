"""Results as a caller sees them: every form of `get`, what comes before an end, and what is known of a task."""

from __future__ import annotations

import gc
import os
import pickle
import threading
from datetime import UTC, datetime

import pytest
from waiting import wait_until
from working import claims_of, work_off

from localq import AsyncResult, EagerResult, GroupResult, LocalQ, chain, group, states
from localq.exceptions import DuplicateTaskId, EncodeError, Ignore, IncompleteStream, TaskRevokedError, TimeoutError
from localq.message import Outcome
from localq.result import ResultSet, allow_join_result, denied_join_result, result_from_tuple
from localq.storage.news import KEPT
from localq.testing.worker import start_worker
from localq.waiting import Listener

LIMIT_S = 30


@pytest.fixture
def add(app):
    @app.task(name="proj.add")
    def add(x, y):
        return x + y

    return add


@pytest.fixture
def fail(app):
    @app.task(name="proj.fail")
    def fail(text="it fails"):
        raise ValueError(text)

    return fail


@pytest.fixture
def steps(app):
    """A task that tells how far it is, so many times, and returns how often it did."""

    @app.task(bind=True, name="proj.steps")
    def steps(self, number):
        for at in range(number):
            self.update_state(state="PROGRESS", meta={"at": at})
        return number

    return steps


def heard(result, **options):
    """Return what `on_message` is told: (status, result) of each."""
    told = []
    result.get(timeout=LIMIT_S, on_message=lambda meta: told.append((meta["status"], meta["result"])), **options)
    return told


# -- get -----------------------------------------------------------------------------------------


@pytest.mark.row("F164")
def test_get_waits_returns_the_value_and_calls_back(app, running, add):
    seen = []
    with running():
        result = add.delay(1, 2)
        assert result.get(timeout=LIMIT_S, callback=lambda *what: seen.append(what)) == 3
        assert result.wait(timeout=LIMIT_S, interval=0.1, no_ack=False) == 3
    assert seen == [(result.id, 3)]


@pytest.mark.row("F164")
def test_get_raises_what_the_task_raised_or_returns_it(app, running, fail):
    with running():
        result = fail.delay("why")
        with pytest.raises(ValueError, match="why"):
            result.get(timeout=LIMIT_S)
        found = result.get(timeout=LIMIT_S, propagate=False)
    assert (type(found), found.args) == (ValueError, ("why",))


class Coded(Exception):
    """Its words are made of what it does not pass on."""

    def __init__(self, *, code):
        self.code = code

    def __str__(self):
        return f"code is {self.code}"


@pytest.mark.row("F164")
def test_what_get_raises_says_what_the_tasks_exception_said(app, running):
    @app.task
    def fails():
        raise Coded(code=7)

    with running(), pytest.raises(Coded) as raised:
        fails.delay().get(timeout=LIMIT_S)
    assert str(raised.value) == "code is 7"


@pytest.mark.row("F164")
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_task_cannot_end_the_process_that_waits_for_it(app, kind):
    @app.task
    def exits():
        raise kind("bye")

    with start_worker(app):
        result = exits.delay()
        with pytest.raises(Exception, match=r"^bye$") as raised:  # any Exception: it is a class made up
            result.get(timeout=LIMIT_S)
    assert type(raised.value).__name__ == kind.__name__
    assert result.state == "FAILURE"


@pytest.mark.row("F164")
def test_a_timeout_of_nothing_looks_once(app, add):
    looks = []
    result = add.delay(1, 1)
    with pytest.raises(TimeoutError, match=r"^The operation timed out"):
        result.get(timeout=0, on_interval=lambda: looks.append(1))
    assert looks == []
    work_off(app)
    assert result.get(timeout=0) == 2
    assert isinstance(TimeoutError(), AsyncResult.TimeoutError)


@pytest.mark.row("F164")
def test_on_interval_is_called_at_looks_that_find_no_end(app, add):
    class EnoughError(Exception):
        pass

    looks = []

    def look():
        looks.append(1)
        if len(looks) == 2:
            raise EnoughError

    with pytest.raises(EnoughError):
        add.delay(1, 1).get(on_interval=look)


@pytest.mark.row("F164")
def test_a_parents_failure_is_raised_as_the_parents(app, add, fail):
    result = chain(fail.s("first"), add.si(1, 1))()
    work_off(app)
    with pytest.raises(ValueError, match="first"):
        result.get(timeout=0)
    assert result.parent.failed()
    assert isinstance(result.get(timeout=0, propagate=False), ValueError)
    with pytest.raises(ValueError, match="first"):
        result.get(timeout=0, follow_parents=False)


@pytest.mark.row("F160")
def test_a_task_may_not_wait_for_another_unless_it_says_so(app, running, add):
    @app.task(name="proj.ask")
    def ask(how):
        other = GroupResult("g", [AsyncResult("nobody")]) if how == "group" else AsyncResult("nobody")
        try:
            if how == "allowed":
                with allow_join_result():
                    other.get(timeout=0)
            elif how == "denied":
                with allow_join_result(), denied_join_result():
                    other.get(timeout=0)
            else:
                other.get(timeout=0, **({"disable_sync_subtasks": False} if how == "said" else {}))
        except (RuntimeError, TimeoutError) as exc:
            return [type(exc).__name__, "Never call result.get() within a task" in str(exc)]

    with running():
        found = {how: ask.delay(how).get(timeout=LIMIT_S) for how in ("", "group", "denied", "said", "allowed")}
    refused, waited = ["RuntimeError", True], ["TimeoutError", False]
    assert found == {"": refused, "group": refused, "denied": refused, "said": waited, "allowed": waited}


@pytest.mark.row("F162", "F172")
def test_a_result_is_its_id(app, add):
    result = add.delay(1, 1)
    assert result == result.id == str(result) == result.task_id
    assert result == app.AsyncResult(result.id)
    assert hash(result) == hash(result.id)
    assert result != 7
    assert repr(result) == f"<AsyncResult: {result.id}>"
    with pytest.raises(ValueError, match="needs a task's id, got None"):
        app.AsyncResult(None)
    known = AsyncResult("x", app.backend, "proj.add", app, result)
    assert (known.name, known.parent, known.app) == ("proj.add", result, app)
    assert pickle.loads(pickle.dumps(known)).parent == result


@pytest.mark.row("F163", "F165", "F181")
def test_what_is_known_of_a_task(app, add, fail):
    good, bad, open_one = add.delay(1, y=2), fail.delay(), add.apply_async((1, 1), queue="elsewhere")
    work_off(app)
    assert (good.state, good.status, good.result, good.info, good.traceback) == ("SUCCESS", "SUCCESS", 3, 3, None)
    assert (good.name, good.args, good.kwargs, good.retries) == ("proj.add", [1], {"y": 2}, 0)
    assert (good.queue, good.worker, good.children, good.parent) == ("celery", "test@here", None, None)
    assert good.date_done.tzinfo is UTC
    assert abs((datetime.now(UTC) - good.date_done).total_seconds()) < LIMIT_S
    assert (good.ignored, good.supports_native_join) == (False, True)
    assert [(each.ready(), each.successful(), each.failed(), each.exists()) for each in (good, bad, open_one)] == [
        (True, True, False, True), (True, False, True, True), (False, False, False, True),
    ]  # fmt: skip
    assert "ValueError: it fails" in bad.traceback
    assert (open_one.state, open_one.result, open_one.date_done) == ("PENDING", None, None)
    nobody = app.AsyncResult("nobody")
    assert (nobody.args, nobody.kwargs, nobody.name, nobody.queue) == (None, None, None, None)


@pytest.mark.row("F165")
def test_what_failed_is_raised_by_hand_too(app, add, fail):
    good, bad = add.delay(1, 1), fail.delay()
    work_off(app)
    seen = []
    assert good.maybe_throw(callback=lambda *what: seen.append(what)) == 2
    assert seen == [(good.id, 2)]
    assert isinstance(bad.maybe_reraise(propagate=False), ValueError)
    with pytest.raises(ValueError, match="it fails"):
        bad.maybe_throw()
    with pytest.raises(KeyError):
        good.throw(KeyError("mine"))


@pytest.mark.row("F165")
def test_what_was_revoked_has_not_failed(app, add):
    result = add.apply_async((1, 1), expires=-1)
    work_off(app)
    assert (result.state, result.ready(), result.failed(), result.successful()) == ("REVOKED", True, False, False)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=0)


@pytest.mark.row("F166", "F173", "R7")
def test_what_is_forgotten_is_unknown_and_what_is_queued_runs_all_the_same(app, add):
    result = chain(add.s(1, 1), add.s(1))()
    queued = add.delay(5, 5)
    queued.forget()
    work_off(app)
    assert (result.get(timeout=0), queued.get(timeout=0)) == (3, 10)
    result.forget()
    queued.forget()
    assert [(each.state, each.exists()) for each in (result, result.parent, queued)] == [("PENDING", False)] * 3


@pytest.mark.row("F171")
def test_a_result_and_those_before_it_travel_as_tuples(app, add):
    result = chain(add.s(1, 1), group(add.s(1), add.s(2)), add.si(0, 0))()
    first = result.parent.parent
    assert first.as_tuple() == ((first.id, None), None)
    assert result.as_list() == [result.id, result.parent.id, first.id]
    for found in (result_from_tuple(result.as_tuple()), result_from_tuple(result.as_tuple(), app)):
        assert found == result
        assert found.parent == result.parent
        assert found.as_tuple() == result.as_tuple()
    assert result_from_tuple(result) is result
    assert result_from_tuple(("bare", None)) == "bare"


# -- What comes before an end --------------------------------------------------------------------


@pytest.mark.row("F174")
def test_every_state_is_told_in_order_and_the_end_last(app, running, steps):
    with running():
        told = heard(steps.delay(100))
    before = [] if running.mode == "eager" else [("PROGRESS", {"at": at}) for at in range(100)]
    assert told == [*before, ("SUCCESS", 100)]


@pytest.mark.row("F174")
def test_many_tasks_at_once_are_each_told_in_order(app, running, steps):
    if running.mode == "eager":
        pytest.skip("nothing happens at once")
    found = {}

    def listen(result):
        found[result.id] = heard(result)

    with running():
        results = [steps.delay(40) for _ in range(6)]
        # Half of them by those who have sent them, half by those who only know their ids.
        handles = [*results[:3], *(app.AsyncResult(result.id) for result in results[3:])]
        listeners = [threading.Thread(target=listen, args=[result]) for result in handles]
        for each in listeners:
            each.start()
        for each in listeners:
            each.join()
    whole = [*(("PROGRESS", {"at": at}) for at in range(40)), ("SUCCESS", 40)]
    assert found == {result.id: whole for result in results}


@pytest.mark.row("F174")
def test_what_came_before_anybody_listened_is_told_too_and_again_to_the_next(app, steps):
    result = steps.delay(12)
    work_off(app)
    whole = [*(("PROGRESS", {"at": at}) for at in range(12)), ("SUCCESS", 12)]
    assert heard(result) == heard(app.AsyncResult(result.id)) == whole


@pytest.mark.row("F174")
def test_what_is_told_is_what_celery_tells(app):
    @app.task(bind=True)
    def hello(self):
        self.update_state(state="PROGRESS", meta={"progress": 50})
        return "done"

    told = []
    result = hello.delay()
    work_off(app)
    result.get(timeout=0, on_message=told.append)
    common = {"task_id": result.id, "traceback": None, "children": []}
    assert told == [
        {**common, "status": "PROGRESS", "result": {"progress": 50}, "date_done": None},
        {**common, "status": "SUCCESS", "result": "done", "date_done": result.date_done.isoformat()},
    ]


@pytest.mark.row("F174")
def test_who_listens_too_slowly_misses_states_and_goes_on_in_order(app, add):
    result = add.delay(1, 2)
    told = []
    listen = Listener(result, lambda meta: told.append(meta["status"]))

    def say(first, stop):
        for number in range(first, stop):
            app.backend.store_result(result.id, None, f"S{number}")

    say(0, 1)
    assert not listen()
    say(1, KEPT + 51)
    assert not listen()
    say(KEPT + 51, KEPT + 53)
    assert not listen()
    assert told == ["S0", *(f"S{number}" for number in range(51, KEPT + 53))]


@pytest.mark.row("F174")
def test_retries_and_failures_are_told_as_exceptions(app):
    @app.task(bind=True, max_retries=1, default_retry_delay=0)
    def again(self):
        raise self.retry(exc=ValueError(f"try {self.request.retries}"))

    result = again.delay()
    work_off(app)
    told = []
    with pytest.raises(ValueError, match="try 1"):
        result.get(timeout=0, on_message=told.append)
    assert [(each["status"], str(each["result"])) for each in told] == [("RETRY", "try 0"), ("FAILURE", "try 1")]
    assert all("ValueError" in each["traceback"] or "Retry" in each["traceback"] for each in told)


@pytest.mark.row("F174")
def test_after_a_retry_by_hand_the_story_begins_anew(app):
    lives = []

    @app.task(bind=True)
    def live(self):
        lives.append(1)
        self.update_state(state="LIFE", meta=len(lives))
        if len(lives) == 1:
            raise ValueError("dies")

    result = live.delay()
    work_off(app)
    assert heard(result, propagate=False)[0] == ("LIFE", 1)
    result.retry()
    work_off(app)
    assert heard(result) == [("LIFE", 2), ("SUCCESS", None)]


@pytest.mark.row("F174")
def test_who_listens_across_a_retry_by_hand_hears_both_lives(app, add):
    result, told = add.delay(1, "x"), []
    listener = Listener(result, lambda meta: told.append(meta["status"]))
    app.backend.storage.update(0, 0, Outcome(0, 0, result.id, "ONE", False))
    assert not listener()
    work_off(app)
    app.AsyncResult(result.id).retry()
    app.backend.storage.update(0, 0, Outcome(0, 0, result.id, "TWO", False))
    work_off(app)
    assert listener()
    assert told == ["ONE", "TWO", "FAILURE"]


@pytest.mark.row("F174")
def test_what_a_process_said_before_its_death_is_told(app):
    @app.task(bind=True)
    def die(self):
        self.update_state(state="LAST", meta="words")
        os._exit(1)

    with start_worker(app, "prefork", concurrency=1):
        told = heard(die.delay(), propagate=False)
    assert [status for status, _ in told] == ["LAST", "FAILURE"]


@pytest.mark.row("F174")
def test_started_is_told_too(app, running):
    @app.task(track_started=True)
    def nothing():
        return None

    with running():
        told = [status for status, _ in heard(nothing.delay())]
    assert told == (["SUCCESS"] if running.mode == "eager" else ["STARTED", "SUCCESS"])


@pytest.mark.row("F174")
def test_what_a_listener_raises_ends_its_wait_and_nothing_else(app, steps):
    class EnoughError(Exception):
        pass

    def enough(_):
        raise EnoughError

    result = steps.delay(2)
    work_off(app)
    with pytest.raises(EnoughError):
        result.get(on_message=enough)
    assert result.get(timeout=0) == 2


# -- States by hand ------------------------------------------------------------------------------


@pytest.mark.row("F161")
def test_a_state_by_hand_that_is_no_text_is_an_error_that_says_what_comes_first(app, running):
    @app.task(bind=True)
    def slips(self):
        self.update_state("PROGRESS", {"at": 1})

    with (
        running(),
        pytest.raises(TypeError, match=r"The first argument is a task's id: update_state\(state=") as raised,
    ):
        slips.delay().get(timeout=LIMIT_S)
    assert "{'at': 1}" in str(raised.value)
    with pytest.raises(TypeError, match="'other'"):
        app.backend.store_result("other", None, 5)


@pytest.mark.row("F161")
@pytest.mark.parametrize("state", ["SUCCESS", "MINE"])
def test_a_state_by_hand_of_an_id_that_was_never_sent_is_kept(app, add, state):
    add.update_state(task_id="elsewhere", state=state, meta={"at": 1})
    found = app.AsyncResult("elsewhere")
    assert (found.state, found.info, found.ready()) == (state, {"at": 1}, state == "SUCCESS")
    assert work_off(app) == []


@pytest.mark.row("F161", "F182")
@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "MINE"])
@pytest.mark.parametrize("end", ["returns", "raises", "ignores"])
def test_a_state_by_hand_ends_nothing_but_before_ignore_it_stays(app, state, end):
    meta = KeyError("by hand") if state == "FAILURE" else "by hand"

    @app.task(bind=True)
    def say(self):
        self.update_state(state=state, meta=meta)
        seen = app.AsyncResult(self.request.id)
        assert (seen.state, seen.ready(), seen.successful(), seen.failed()) == (state, False, False, False)
        if end == "raises":
            raise ValueError("the end")
        if end == "ignores":
            raise Ignore
        return "the end"

    result = say.delay()
    work_off(app)
    found = result.get(timeout=0, propagate=False)
    assert result.ready()
    if end == "ignores":
        assert (result.state, str(found)) == (state, str(meta))
    else:
        assert (result.state, str(found)) == ("SUCCESS" if end == "returns" else "FAILURE", "the end")


def test_a_failure_by_hand_needs_an_exception(app):
    @app.task(bind=True)
    def say(self, meta):
        self.update_state(state="FAILURE", meta=meta)

    told, untold = say.delay({"exc_type": "KeyError", "exc_message": ["k"], "mine": 1}), say.delay({"mine": 1})
    work_off(app)
    assert told.get(timeout=0) is None
    with pytest.raises(ValueError, match=r"FAILURE .* stands for an exception"):
        untold.get(timeout=0)


@pytest.mark.row("F182")
def test_an_end_is_not_taken_back_by_a_second_run(app, add):
    result = add.delay(1, 1)
    (claim,) = claims_of(app, "gone")
    app.storage.settle([Outcome(claim.seq, claim.token, result.id, ended=False)])
    work_off(app)
    late = Outcome(claim.seq, claim.token, result.id, "FAILURE")
    assert app.storage.settle([late]).stale == [late]
    assert app.backend.store_result(result.id, 99, "SUCCESS") == 99
    assert (result.state, result.get(timeout=0)) == ("SUCCESS", 2)


@pytest.mark.row("F183", "F039")
@pytest.mark.parametrize(
    ("conf", "task", "call", "kept"),
    [(False, None, None, True), (True, None, None, False), (True, False, None, True), (False, True, None, False),
     (False, True, False, True), (True, False, True, False)],
)  # fmt: skip
def test_the_call_then_the_task_then_the_setting_says_whether_a_result_is_kept(app, conf, task, call, kept):
    app.conf.task_ignore_result = conf

    @app.task(**({} if task is None else {"ignore_result": task}))
    def seven():
        return 7

    result = seven.apply_async(**({} if call is None else {"ignore_result": call}))
    assert result.ignored is not kept
    assert kept or result.get() is None  # at once: nobody has run it
    work_off(app)
    assert app.AsyncResult(result.id).get(timeout=0) == (7 if kept else None)  # nor does who only knows the id wait


# -- then ----------------------------------------------------------------------------------------


@pytest.mark.row("F168")
def test_then_calls_at_once_what_is_ready(app, add):
    result, seen = add.delay(1, 1), []
    work_off(app)
    assert result.then(seen.append) is result
    assert seen == [result]
    assert app.backend.watcher is None
    eager = add.apply((1, 1))
    eager.then(seen.append)
    assert seen == [result, eager]


@pytest.mark.row("F168")
def test_then_is_told_by_whoever_sees_the_end_and_once(app, add):
    result, seen = add.delay(1, 1), []
    result.then(lambda each: seen.append(each.get()))
    work_off(app)
    assert result.get(timeout=0) == 2
    wait_until(lambda: seen)
    assert result.get(timeout=0) == 2
    assert seen == [2]


@pytest.mark.row("F168")
def test_then_needs_nobody_who_waits_and_its_thread_ends(app, add, fail):
    good, bad, seen = add.delay(1, 1), fail.delay(), []
    both = app.ResultSet([good, bad])
    good.then(lambda each: seen.append(each.state))
    bad.then(lambda each: seen.append(each.state))
    both.then(lambda each: seen.append(len(each)))
    thread = app.backend.watcher._thread
    assert thread.daemon
    work_off(app)
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert sorted(map(str, seen)) == ["2", "FAILURE", "SUCCESS"]


@pytest.mark.row("F168")
def test_what_a_callback_raises_goes_to_on_error(app, add):
    result, seen = add.delay(1, 1), []
    work_off(app)

    def broken(_):
        raise KeyError("broken")

    result.then(broken, on_error=lambda exc: seen.append(type(exc)))
    assert seen == [KeyError]
    with pytest.raises(KeyError):
        result.then(broken)


@pytest.mark.row("F168")
def test_callbacks_are_bounded_and_go_with_the_store(app, add, monkeypatch):
    monkeypatch.setattr("localq.waiting.MOST_CALLBACKS", 2)
    results, seen = [add.delay(1, 1) for _ in range(3)], []
    for each in results[:2]:
        each.then(seen.append)
    thread = app.backend.watcher._thread
    with pytest.raises(RuntimeError, match="2 callbacks of then"):
        results[2].then(seen.append)
    app.close()
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    work_off(app)
    assert [each.get(timeout=0) for each in results] == [2, 2, 2]
    assert seen == []


@pytest.mark.row("F168")
def test_a_weak_callback_does_not_keep_its_result(app, add):
    result, seen = add.delay(1, 1), []
    result.then(seen.append, weak=True)
    thread = app.backend.watcher._thread
    del result
    gc.collect()
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert seen == []


# -- What came of it -----------------------------------------------------------------------------


@pytest.fixture
def tree(app):
    """A task that sends three, each of which sends one."""

    @app.task(name="proj.leaf")
    def leaf(n):
        return n * n

    @app.task(name="proj.branch")
    def branch(n):
        return str(leaf.delay(n))

    @app.task(name="proj.root")
    def root(n):
        return str(group(branch.s(i) for i in range(n))())

    return root


@pytest.mark.row("F169", "F170", "F185")
def test_all_that_came_of_a_task_is_collected_breadth_first(app, tree):
    result = tree.delay(3)
    work_off(app)
    values = [value for _, value in result.collect()]
    (members,) = result.children
    assert isinstance(members, GroupResult)
    branches = [each.get(timeout=0) for each in members]
    assert values == [str(members), branches, *branches, 0, 1, 4]
    assert [value for node, value in result.collect(intermediate=True) if not node.children] == [0, 1, 4]
    parents = [parent for parent, _ in result.iterdeps()]
    assert parents == [None, result, members, members, members, *members]
    assert result.get_leaf() == 4


@pytest.mark.row("F171")
def test_a_task_that_returns_results_of_others_returns_their_ids(app, running, add):
    @app.task
    def one():
        return add.delay(1, 2)

    @app.task
    def many(number):
        return group(add.s(i, i) for i in range(number))()

    with running():
        single, several = one.delay(), many.delay(3)
        value = single.get(timeout=LIMIT_S)
        assert value == [[value[0][0], None], None]
        head, members = several.get(timeout=LIMIT_S)
        assert (head[1], len(members)) == (None, 3)
        if running.mode == "eager":
            return
        assert result_from_tuple(value, app).get(timeout=LIMIT_S) == 3
        found = result_from_tuple([head, members], app)
        assert (type(found), found.get(timeout=LIMIT_S)) == (GroupResult, [0, 2, 4])
        collected = [value for _, value in several.collect(timeout=LIMIT_S)]
        assert collected == [[head, members], [0, 2, 4], 0, 2, 4]


@pytest.mark.row("F171")
@pytest.mark.parametrize("kind", ["list", "dict", "set"])
def test_within_something_else_they_cannot_be_written_as_in_celery(app, add, kind):
    @app.task
    def returns():
        found = add.delay(1, 2)
        return {"list": [found], "dict": {"a": found}, "set": ResultSet([found])}[kind]

    result = returns.delay()
    work_off(app)
    with pytest.raises((EncodeError, TypeError), match=r"AsyncResult|has no id"):
        result.get(timeout=0)


@pytest.mark.row("F169", "F170")
def test_what_has_not_ended_is_incomplete(app, add):
    result = add.delay(1, 1)
    deps = result.iterdeps()
    assert next(deps) == (None, result)
    with pytest.raises(IncompleteStream, match="has not ended"):
        next(deps)
    assert list(result.iterdeps(intermediate=True)) == [(None, result)]
    with pytest.raises(IncompleteStream):
        result.build_graph()


@pytest.mark.row("F163", "F170")
def test_the_graph_of_what_came_of_a_task(app, tree, tmp_path):
    result = tree.delay(1)
    work_off(app)
    graph = result.graph
    (members,) = result.children
    (branch,) = members
    (leaf,) = branch.children
    assert list(graph) == [result, members, branch, leaf]
    assert list(graph.edges()) == [result, members, branch]
    assert (len(graph), graph[members], leaf in graph) == (4, [branch], True)
    assert repr(graph).splitlines()[:3] == [f"{result}(3)", f"     {members}(2)", f"          {branch}(1)"]
    with open(tmp_path / "graph.dot", "w") as file:
        result.build_graph(formatter=None).to_dot(file)
    assert f'    "{branch}" -> "{leaf}" [' in (tmp_path / "graph.dot").read_text()


# -- Eager ---------------------------------------------------------------------------------------


@pytest.mark.row("F178")
def test_an_eager_result_is_there_and_can_be_revoked_but_not_forgotten(app, add, fail):
    good, bad = add.apply((1, 1)), fail.apply()
    assert (good.ready(), good.state, good.get(), good.name, good.supports_native_join) == (
        True, "SUCCESS", 2, "proj.add", False,
    )  # fmt: skip
    good.forget()
    assert good.get() == 2
    assert bad.failed()
    bad.revoke()
    assert (bad.state, bad.traceback, type(bad.result)) == ("REVOKED", None, TaskRevokedError)
    with pytest.raises(TaskRevokedError, match="revoked"):
        bad.get()
    assert isinstance(bad.get(propagate=False), TaskRevokedError)
    assert repr(good) == f"<EagerResult: {good.id}>"
    assert pickle.loads(pickle.dumps(good)).get() == 2
    assert EagerResult("x", "not an exception", "FAILURE").get(propagate=False) == "not an exception"
    with pytest.raises(Exception, match="not an exception"):
        EagerResult("x", "not an exception", "FAILURE").get()


@pytest.mark.row("F178", "F161")
@pytest.mark.parametrize("is_stored", [False, True])
def test_a_state_by_hand_in_an_eager_task_is_in_the_store_if_results_are(app, is_stored):
    app.conf.task_store_eager_result = is_stored

    @app.task(bind=True)
    def say(self, end):
        self.update_state(state="SUCCESS", meta="by hand")
        if end:
            raise Ignore
        return "the end"

    ignored, ended = say.apply((True,)), say.apply((False,))
    assert (ignored.state, ignored.get(), ended.state, ended.get()) == (states.IGNORED, None, "SUCCESS", "the end")
    seen = [app.AsyncResult(each.id) for each in (ignored, ended)]
    assert [each.exists() for each in seen] == [is_stored, is_stored]
    if is_stored:
        assert [each.get(timeout=0) for each in seen] == ["by hand", "the end"]
        assert heard(seen[1]) == [("SUCCESS", "by hand"), ("SUCCESS", "the end")]


# -- Nothing leaks -------------------------------------------------------------------------------


@pytest.mark.row("F179", "R8", "F186")
def test_a_hundred_thousand_dropped_results_leak_nothing():
    app = LocalQ("drops", store="memory:", set_as_current=False)

    @app.task(name="drops.nothing")
    def nothing():
        return None

    nothing.delay().ready()
    gc.collect()
    threads, files, objects = threading.active_count(), len(os.listdir("/proc/self/fd")), len(gc.get_objects())
    for _ in range(100):
        results = [app.AsyncResult(f"id {number}") for number in range(1000)]
        assert not any(each.ready() for each in results[:3])
        assert app.backend.get_task_meta(results[0].id)["status"] == "PENDING"
        assert not app.backend.is_cached(results[0].id)
        del results
    gc.collect()
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, files)
    assert len(gc.get_objects()) < objects + 100
    app.close()


@pytest.mark.row("F179")
def test_results_that_nobody_asks_for_cost_their_sender_nothing(app, running, add):
    if running.mode == "eager":
        pytest.skip("they are asked for where they are sent")
    with running():
        assert add.delay(0, 0).get(timeout=LIMIT_S) == 0
        seen = []
        for _ in range(2):
            for _ in range(300):
                add.delay(1, 1)
            assert add.delay(2, 2).get(timeout=LIMIT_S) == 4
            seen.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
    (files, threads), (files_after, threads_after) = seen
    assert files_after <= files + 3  # one for each process that it may wake
    assert threads_after <= threads + 2  # the store's own, which sync what was written


def test_a_state_written_before_its_task_is_sent_is_in_nobodys_way(app, running):
    @app.task(name="proj.show", bind=True)
    def show(self):
        return "ran"

    app.backend.store_result("early", {"by": "hand"}, "SENT")
    assert (app.AsyncResult("early").state, app.AsyncResult("early").info) == ("SENT", {"by": "hand"})
    if running.mode != "eager":
        result = show.apply_async(task_id="early")
        assert (result.state, result.info) == ("SENT", {"by": "hand"})
        with running():
            assert result.get(timeout=30) == "ran"
        with pytest.raises(DuplicateTaskId):
            app.task(name="proj.other")(lambda: None).apply_async(task_id="early")
