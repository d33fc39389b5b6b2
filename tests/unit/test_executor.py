"""One task run: a claim in, an outcome out, and nothing else."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localq import LocalQ, Task, signals
from localq.exceptions import Ignore, Reject
from localq.executor import Executor
from localq.message import LEADS_BY_GROUP, LEADS_BY_ID, Claim, Message
from localq.serialization import checksum, decode, encode, exception_from
from localq.testing.clock import FakeClock


@pytest.fixture
def app():
    made = LocalQ("proj", store="memory:")
    yield made
    made.close()


def claim_of(task, *args, **fields):
    body, content_type = encode((args, fields.pop("kwargs", {})), "json")
    message = Message("the-id", task.name, body, content_type=content_type, checksum=checksum(body))
    return Claim(7, 3, fields.pop("redeliveries", 0), message._replace(**fields))


def run(app, task, *args, fed=(), **fields):
    return Executor(app.conf, "node@here").execute(task, claim_of(task, *args, **fields), fed)


def value(outcome):
    return decode(outcome.result, outcome.content_type, ("json",), outcome.checksum)


def error(outcome):
    return exception_from(value(outcome))


# -- How it ends -----------------------------------------------------------------------------------


def test_a_return_is_a_success_with_the_value_and_its_checksum(app):
    @app.task
    def add(x, y):
        return x + y

    outcome = run(app, add, 1, 2)
    assert (outcome.state, outcome.ended, value(outcome)) == ("SUCCESS", True, 3)
    assert (outcome.seq, outcome.token, outcome.id) == (7, 3, "the-id")


def test_an_exception_is_a_failure_with_its_traceback(app):
    @app.task
    def fail():
        raise KeyError("lost")

    outcome = run(app, fail)
    assert (outcome.state, outcome.ended) == ("FAILURE", True)
    assert isinstance(error(outcome), KeyError)
    assert "in fail" in outcome.traceback


def test_leaving_by_sys_exit_is_a_failure_and_not_the_end_of_the_worker(app):
    @app.task
    def leave():
        raise SystemExit(3)

    outcome = run(app, leave)
    assert (outcome.state, type(error(outcome)).__name__) == ("FAILURE", "SystemExit")
    assert isinstance(error(outcome), Exception)
    with pytest.raises(SystemExit):  # here and now it is the caller's
        leave.apply().get()


def test_ctrl_c_is_the_users_where_a_task_runs_here_and_now(app):
    @app.task
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted.apply()


def test_whatever_a_task_raises_in_a_worker_is_its_own_failure(app):
    class Odd(BaseException):
        @property
        def args(self):
            raise RuntimeError("no")

    @app.task
    def fail(kind):
        raise {"interrupt": KeyboardInterrupt, "exit": GeneratorExit, "odd": Odd}[kind]

    for kind in ("interrupt", "exit", "odd"):
        assert run(app, fail, kind).state == "FAILURE"


def test_a_result_that_cannot_be_written_is_a_failure_that_names_it(app):
    @app.task
    def odd():
        return {"thing": object()}

    outcome = run(app, odd)
    assert outcome.state == "FAILURE"
    assert "the result['thing'] of type object" in str(error(outcome))


def test_ignore_ends_without_a_state(app):
    @app.task
    def ignore():
        raise Ignore

    outcome = run(app, ignore)
    assert (outcome.state, outcome.ended, outcome.result) == (None, True, None)


@pytest.mark.parametrize(("late", "requeue", "expected"), [
    (True, True, ("PENDING", False)), (False, True, ("FAILURE", True)), (True, False, ("FAILURE", True)),
])  # fmt: skip
def test_reject_puts_back_only_what_is_acknowledged_late(app, late, requeue, expected):
    @app.task(acks_late=late)
    def reject():
        raise Reject("no", requeue=requeue)

    outcome = run(app, reject)
    assert (outcome.state, outcome.ended) == expected


def test_a_retry_carries_the_next_attempt(app):
    @app.task(bind=True)
    def flaky(self, x):
        raise self.retry(countdown=30, exc=ValueError("not yet"))

    with FakeClock(1000.0):
        outcome = run(app, flaky, 5)
    assert (outcome.state, outcome.ended) == ("RETRY", False)
    assert (outcome.again.id, outcome.again.retries, outcome.again.visible_at) == ("the-id", 1, 1030.0)
    assert str(error(outcome)) == "not yet"


def test_a_message_that_expired_is_revoked_and_not_run(app):
    ran = []

    @app.task
    def late():
        ran.append(1)

    with FakeClock(1000.0):
        outcome = run(app, late, expires_at=999.0)
    assert (outcome.state, ran) == ("REVOKED", [])
    with FakeClock(1000.0):
        assert run(app, late, expires_at=1000.0).state == "REVOKED"
        assert run(app, late, expires_at=1000.5).state == "SUCCESS"


@pytest.mark.parametrize("changes", [
    {"body": b"{"}, {"checksum": 1}, {"content_type": "application/x-python-serialize"},
    {"body": b"[1,2,3]", "checksum": checksum(b"[1,2,3]")}, {"body": b"7", "checksum": checksum(b"7")},
    {"body": b"[7,{}]", "checksum": checksum(b"[7,{}]")}, {"body": b"[[],[]]", "checksum": checksum(b"[[],[]]")},
], ids=str)  # fmt: skip
def test_a_message_that_cannot_be_read_fails_alone_and_is_not_run(app, changes):
    ran = []

    @app.task
    def task(*args):
        ran.append(1)

    outcome = run(app, task, **changes)
    assert (outcome.state, outcome.ended, ran) == ("FAILURE", True, [])


@given(st.binary(max_size=30))
def test_no_body_makes_the_executor_raise(body):
    app = LocalQ("proj", store="memory:", set_as_current=False)

    @app.task
    def task(*args, **kwargs): ...

    assert run(app, task, body=body, checksum=checksum(body)).state in ("SUCCESS", "FAILURE")


def test_wrong_arguments_are_a_failure_of_that_task(app):
    @app.task
    def add(x, y): ...

    outcome = run(app, add, 1)
    assert (outcome.state, type(error(outcome))) == ("FAILURE", TypeError)


def test_an_unknown_task_is_a_failure_that_names_it(app):
    outcome = Executor(app.conf).unknown(claim_of(SimpleNamespace(name="proj.gone")))
    assert (outcome.state, str(error(outcome))) == ("FAILURE", "'proj.gone' is not registered")


def test_an_exception_that_defies_description_is_still_a_failure(app):
    class Hostile(Exception):
        def __str__(self):
            raise RuntimeError("no words")

        __repr__ = __str__

    @app.task
    def hostile():
        raise Hostile(object())

    assert run(app, hostile).state == "FAILURE"


@pytest.mark.parametrize("text", ["\udcff", "\0", "\U0001f600"], ids=ascii)
def test_a_traceback_is_always_text_that_can_be_kept(app, text):
    @app.task
    def strange():
        raise ValueError(text)

    outcome = run(app, strange)
    outcome.traceback.encode("utf-8")
    assert error(outcome).args == (text,)


# -- What is fed and what is kept ------------------------------------------------------------------


def test_what_a_task_is_fed_stands_before_its_own_arguments(app):
    @app.task
    def note(*args):
        return list(args)

    assert value(run(app, note, 3, fed=(1, 2))) == [1, 2, 3]


def test_an_ignored_result_is_not_even_written(app):
    @app.task
    def odd():
        return object()

    outcome = run(app, odd, ignore_result=1)
    assert (outcome.state, outcome.result) == ("IGNORED", None)


@pytest.mark.parametrize("fields", [{"leads": LEADS_BY_ID}, {"group_id": "g", "position": 0, "leads": LEADS_BY_GROUP}])
def test_a_result_that_others_wait_for_is_written_although_it_is_ignored(app, fields):
    @app.task
    def one():
        return 1

    assert value(run(app, one, ignore_result=1, **fields)) == 1


@pytest.mark.row("F040", "N47")
def test_an_ignored_failure_is_kept_if_the_task_asks_for_it(app):
    @app.task(store_errors_even_if_ignored=True)
    def kept():
        raise ValueError

    @app.task
    def dropped():
        raise ValueError

    assert run(app, kept, ignore_result=1).state == "FAILURE"
    assert run(app, dropped, ignore_result=1).state == "IGNORED"


def test_those_who_wait_for_a_group_get_a_chord_error(app):
    @app.task
    def fail():
        raise ValueError("why")

    outcome = run(app, fail, group_id="g", position=0, leads=LEADS_BY_GROUP)
    found = exception_from(decode(outcome.group_failure, "application/json", ("json",)))
    assert type(found).__name__ == "ChordError"
    assert "the-id" in str(found)
    assert "why" in str(found)


def test_nan_in_a_result_is_refused_where_json_must_be_strict():
    app = LocalQ("proj", store="memory:", json_allow_nan=False, set_as_current=False)

    @app.task
    def nan():
        return float("nan")

    assert run(app, nan).state == "FAILURE"


# -- Handlers and signals --------------------------------------------------------------------------


class Recorder(Task):
    abstract = True
    calls: list = []

    def before_start(self, task_id, args, kwargs):
        self.calls.append("before_start")

    def on_success(self, retval, task_id, args, kwargs):
        self.calls.append(("on_success", retval))

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        self.calls.append(("on_failure", type(exc).__name__))

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        self.calls.append("on_retry")

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        self.calls.append(("after_return", status))


@pytest.mark.parametrize(("body", "expected"), [
    ("return 1", ["before_start", ("on_success", 1), ("after_return", "SUCCESS")]),
    ("raise KeyError", ["before_start", ("on_failure", "KeyError"), ("after_return", "FAILURE")]),
    ("raise self.retry(countdown=1)", ["before_start", "on_retry"]),
    ("from localq.exceptions import Ignore; raise Ignore", ["before_start"]),
])  # fmt: skip
def test_handlers_are_called_in_celerys_order(app, body, expected):
    scope = {}
    exec(f"def work(self): {body}", scope)
    task = app.task(bind=True, base=Recorder, name="proj.work")(scope["work"])
    task.calls = []
    type(task).calls = task.calls
    run(app, task)
    assert task.calls == expected


def test_an_exception_of_before_start_is_the_tasks_failure(app):
    class Base(Task):
        def before_start(self, *_):
            raise ValueError("not today")

    @app.task(base=Base)
    def work(): ...

    outcome = run(app, work)
    assert (outcome.state, str(error(outcome))) == ("FAILURE", "not today")


def test_a_handler_that_fails_is_logged_and_the_state_stays(app, caplog):
    class Base(Task):
        def on_success(self, *_):
            raise ValueError("broken handler")

    @app.task(base=Base)
    def work():
        return 1

    assert run(app, work).state == "SUCCESS"
    assert "broken handler" in caplog.text


@pytest.mark.row("N45")
def test_a_call_that_is_overridden_is_the_one_that_runs(app):
    class Base(Task):
        def __call__(self, *args, **kwargs):
            return ["wrapped", self.run(*args, **kwargs)]

    @app.task(base=Base)
    def one():
        return 1

    assert value(run(app, one)) == ["wrapped", 1]


@pytest.mark.row("F143", "X6")
def test_einfo_is_what_celerys_is(app):
    seen = []

    class Base(Task):
        def on_failure(self, exc, task_id, args, kwargs, einfo):
            seen.append(einfo)

    @app.task(base=Base)
    def fail():
        raise ValueError("why")

    run(app, fail)
    (einfo,) = seen
    assert (einfo.type, einfo.exc_info[:2], einfo.internal) == (ValueError, (ValueError, einfo.exception), False)
    assert einfo.tb is einfo.exc_info[2] is einfo.exception.__traceback__
    assert str(einfo) == einfo.traceback == seen[0].traceback
    assert einfo.traceback.endswith("ValueError: why\n")


@pytest.mark.row("F188", "F189", "F331")
@pytest.mark.parametrize(("how", "fields", "state"), [
    ("return", {}, "SUCCESS"), ("return", {"ignore_result": 1}, "SUCCESS"), ("fail", {}, "FAILURE"),
    ("ignore", {}, "IGNORED"), ("reject", {}, "REJECTED"), ("requeue", {}, "REJECTED"), ("retry", {}, "RETRY"),
], ids=str)  # fmt: skip
def test_the_last_signal_tells_how_the_attempt_ended_in_celerys_words(app, how, fields, state):
    heard = []

    @app.task(bind=True, acks_late=True)
    def work(self):
        if how == "retry":
            self.retry(countdown=1)
        if how != "return":
            raise {"fail": ValueError(), "ignore": Ignore(), "reject": Reject(), "requeue": Reject("", True)}[how]

    def hear(sender, state, retval, **_):
        heard.append((state, type(retval).__name__))

    signals.task_postrun.connect(hear, sender=work)
    run(app, work, **fields)
    signals.task_postrun.disconnect(hear, sender=work)
    names = {"return": "NoneType", "fail": "ValueError", "ignore": "Ignore", "retry": "Retry"}
    assert heard == [(state, names.get(how, "Reject"))]


@pytest.mark.row("F331")
def test_signals_tell_the_beginning_and_the_end(app):
    heard = []
    connected = [
        signals.task_prerun,
        signals.task_success,
        signals.task_failure,
        signals.task_postrun,
        signals.task_retry,
    ]
    receivers = []
    for signal in connected:

        def hear(signal, sender, **facts):
            heard.append((signal.name, facts.get("state")))

        receivers.append(hear)
        signal.connect(hear)

    @app.task(bind=True)
    def work(self, how):
        if how == "fail":
            raise ValueError
        if how == "retry":
            raise self.retry(countdown=1)

    try:
        for how in ("return", "fail", "retry"):
            run(app, work, how)
    finally:
        for signal, receiver in zip(connected, receivers, strict=True):
            signal.disconnect(receiver)
    assert heard == [
        ("task_prerun", None), ("task_success", None), ("task_postrun", "SUCCESS"),
        ("task_prerun", None), ("task_failure", None), ("task_postrun", "FAILURE"),
        ("task_prerun", None), ("task_retry", None), ("task_postrun", "RETRY"),
    ]  # fmt: skip


@pytest.fixture
def heard():
    """Every signal of a task's life, as (name, facts)."""
    found, receivers = [], []
    for signal in (
        signals.task_received, signals.task_prerun, signals.task_postrun, signals.task_success, signals.task_failure,
        signals.task_retry, signals.task_revoked, signals.task_rejected, signals.task_unknown,
        signals.task_internal_error,
    ):  # fmt: skip

        def receive(signal, sender, **facts):
            found.append((signal.name, sender, facts))

        signal.connect(receive)
        receivers.append((signal, receive))
    yield found
    for signal, receive in receivers:
        signal.disconnect(receive)


@pytest.mark.row("F331")
def test_every_signal_brings_what_it_says_it_provides(app, heard):
    @app.task(bind=True, name="proj.work")
    def work(self, how):
        if how == "fail":
            raise ValueError("why")
        if how == "retry":
            raise self.retry(countdown=1)
        return 8

    executor = Executor(app.conf, "node@here")
    for how in ("return", "fail", "retry"):
        executor.execute(work, claim_of(work, how))
    executor.execute(work, claim_of(work, "return", expires_at=1.0))
    executor.execute(work, claim_of(work, checksum=1))
    executor.unknown(claim_of(SimpleNamespace(name="proj.gone")))
    executor.received(work, claim_of(work, "return"))
    executor.broken(work, claim_of(work, "return"), RuntimeError("inside"))
    provided = {signal.name: set(signal.provides) for signal in vars(signals).values() if hasattr(signal, "provides")}
    assert {name for name, _, _ in heard} == {
        "task_received", "task_prerun", "task_postrun", "task_success", "task_failure", "task_retry", "task_revoked",
        "task_rejected", "task_unknown", "task_internal_error",
    }  # fmt: skip
    assert [(name, facts.keys() ^ provided[name]) for name, _, facts in heard if facts.keys() != provided[name]] == []


@pytest.mark.row("F331")
def test_signals_tell_how_long_why_and_of_what(app, heard):
    @app.task(bind=True, name="proj.work")
    def work(self, how):
        if how == "retry":
            raise self.retry(countdown=1, exc=KeyError("later"))
        return 8

    run(app, work, "return")
    run(app, work, "retry")
    run(app, work, "return", expires_at=1.0)
    Executor(app.conf).unknown(claim_of(SimpleNamespace(name="proj.gone")))
    Executor(app.conf).received(work, claim_of(work, "return"))
    told = {name: (sender, facts) for name, sender, facts in heard}
    assert told["task_success"][1]["result"] == 8
    assert told["task_success"][1]["runtime"] >= 0
    sender, retried = told["task_retry"]
    assert sender is work
    assert (retried["request"].id, str(retried["reason"].exc)) == ("the-id", "'later'")
    revoked = told["task_revoked"][1]
    assert (revoked["request"].id, revoked["terminated"], revoked["signum"], revoked["expired"]) == (
        "the-id", False, None, True,
    )  # fmt: skip
    unknown = told["task_unknown"][1]
    assert (unknown["name"], unknown["id"], unknown["message"].name) == ("proj.gone", "the-id", "proj.gone")
    assert told["task_received"][1]["request"].task == "proj.work"


# -- What the log says -----------------------------------------------------------------------------


@pytest.mark.row("F050")
def test_the_log_has_celerys_words(app, caplog):
    caplog.set_level(logging.INFO)

    @app.task(name="proj.work", bind=True, throws=(KeyError,))
    def work(self, how):
        if how == "expected":
            raise KeyError("k")
        if how == "fail":
            raise ValueError("v")
        if how == "retry":
            raise self.retry(countdown=5)
        return 8

    with FakeClock():
        for how in ("return", "fail", "expected", "retry"):
            run(app, work, how)
        run(app, work, "return", expires_at=1.0)
    lines = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(r"Task proj\.work\[the-id\] succeeded in [0-9.e-]+s: 8", lines[0])
    assert lines[1].startswith("Task proj.work[the-id] raised unexpected: ValueError('v')\nTraceback")
    assert lines[2] == "Task proj.work[the-id] raised expected: KeyError('k')"
    assert lines[3] == "Task proj.work[the-id] retry: Retry in 5s"
    assert lines[4] == "Discarding revoked task: proj.work[the-id]"
    assert [record.levelname for record in caplog.records] == ["INFO", "ERROR", "INFO", "INFO", "INFO"]


@pytest.mark.row("F052")
def test_a_long_result_is_cut_in_the_log_and_not_in_the_store(app, caplog):
    caplog.set_level(logging.INFO)

    @app.task
    def long():
        return "x" * 100_000

    outcome = run(app, long)
    assert len(value(outcome)) == 100_000
    assert len(caplog.records[-1].getMessage()) < 2000


@pytest.mark.row("F054")
def test_a_shadow_is_the_name_in_the_log_and_nowhere_else(app, caplog):
    caplog.set_level(logging.INFO)

    @app.task(name="proj.work", bind=True)
    def work(self, fails):
        if fails:
            raise ValueError
        return self.request.task

    for fails in (False, True):
        outcome = run(app, work, fails, headers='{"shadow":"other"}')
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("Task other[the-id] succeeded")
    assert lines[0].endswith("'proj.work'")
    assert lines[1].startswith("Task other[the-id] raised unexpected")
    assert outcome.state == "FAILURE"


@pytest.mark.row("F052")
def test_a_task_says_how_much_of_its_result_the_log_shows(app, caplog):
    caplog.set_level(logging.INFO)

    @app.task(resultrepr_maxsize=10)
    def long():
        return "x" * 100

    run(app, long)
    assert caplog.records[-1].getMessage().endswith("s: 'xxxxxx...")
