"""Requests of the user's own: their handlers are called in the steward, whatever became of the task's process."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from waiting import wait_until

from localq import LocalQ, Task, signals
from localq.exceptions import Ignore, LocalqError
from localq.message import Claim, Message
from localq.testing.worker import start_worker
from localq.worker.notices import MOST, SOFT, Notices
from localq.worker.request import Request


@pytest.fixture
def noted(tmp_path):
    """What handlers write down, with the pid of the process they run in: a function that reads it."""
    Noting.path = tmp_path / "noted"
    return lambda: Noting.path.read_text().splitlines() if Noting.path.exists() else []


class Noting(Request):
    path = None

    def note(self, *words):
        with self.path.open("a") as file:
            file.write(" ".join(map(str, words)) + "\n")

    def on_accepted(self, pid, time_accepted):
        super().on_accepted(pid, time_accepted)
        self.seen = "accepted"
        self.note("accepted", self.id, pid != os.getpid(), abs(time.time() - self.time_start) < 60)

    def on_success(self, failed__retval__runtime, **kwargs):
        failed, value, runtime = failed__retval__runtime
        self.note("success", failed, "exc_info" if failed else value, runtime >= 0, self.seen, os.getpid())
        super().on_success(failed__retval__runtime, **kwargs)

    def on_retry(self, exc_info):
        self.note("retry", repr(exc_info.exception.exc))

    def on_failure(self, exc_info, send_failed_event=True, return_ok=False):
        self.note("failure", repr(exc_info.exception), return_ok)
        super().on_failure(exc_info, send_failed_event, return_ok)

    def on_timeout(self, soft, timeout):
        self.note("timeout", soft, timeout)
        super().on_timeout(soft, timeout)


class NotingTask(Task):
    Request = Noting


def steward_of(app):
    (found,) = [owner.about["pid"] for owner in app.storage.owners() if owner.about["kind"] == "worker"]
    return found


@pytest.mark.row("F139", "F141", "F055")
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_handlers_are_called_beside_the_process_that_runs_the_task(app: LocalQ, noted, pool):
    add = app.task(name="add", base=NotingTask)(lambda x, y: x + y)
    with start_worker(app, pool, concurrency=1):
        result = add.delay(1, 2)
        assert result.get(timeout=30) == 3
        wait_until(lambda: len(noted()) == 2)
        steward = steward_of(app)
    assert noted() == [f"accepted {result.id} {pool == 'prefork'} True", f"success False 3 True accepted {steward}"]


@pytest.mark.row("F139", "F141")
def test_a_class_may_be_named_and_is_told_of_failures_and_retries(app: LocalQ, noted):
    @app.task(Request=f"{__name__}:Noting", bind=True, max_retries=1, default_retry_delay=0, ignore_result=True)
    def fails(self):
        raise self.retry(exc=ValueError("again"))

    @app.task(Request=f"{__name__}:Noting", ignore_result=True)
    def quiet(how):
        if how == "ignored":
            raise Ignore
        return how

    with start_worker(app, "prefork", concurrency=1):
        fails.delay()
        wait_until(lambda: any(line.startswith("failure ValueError") for line in noted()))
        quiet.delay("ignored")
        quiet.delay("done")
        wait_until(lambda: any("False None" in line for line in noted()))
    kinds = [line.split()[0] for line in noted()]
    assert kinds == ["accepted", "success", "failure", "retry", "accepted", "success", "failure", "accepted",
                     "accepted", "success"]  # fmt: skip
    assert "retry ValueError('again')" in noted()
    assert "failure ValueError('again') True" in noted()


@pytest.mark.row("F142", "F139")
def test_it_is_told_of_limits_and_of_lost_processes(app: LocalQ, noted):
    @app.task(base=NotingTask)
    def ends(how):
        if how == "lost":
            os._exit(3)
        try:
            time.sleep(60)
        except BaseException:
            return "told"

    with start_worker(app, "prefork", concurrency=1):
        assert ends.apply_async(("soft",), soft_time_limit=0.3).get(timeout=30) == "told"
        ends.apply_async(("hard",), time_limit=1).get(timeout=30, propagate=False)
        ends.delay("lost").get(timeout=30, propagate=False)
        wait_until(lambda: any("WorkerLostError" in line for line in noted()))
    told = [line.partition(";")[0].replace('"', "'") for line in noted() if line.split()[0] in ("timeout", "failure")]
    assert told == [
        "timeout True 0.3", "failure TimeLimitExceeded(1) False", "timeout False 1",
        "failure WorkerLostError('Worker exited prematurely: exitcode 3",
    ]  # fmt: skip


@pytest.mark.row("F139", "F141", "F142")
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_it_is_told_of_coroutine_tasks_in_the_same_words(app: LocalQ, noted, pool):
    told = []

    def heard(sender=None, **_):
        told.append(sender.name)

    @app.task(base=NotingTask, bind=True, max_retries=1, default_retry_delay=0)
    async def ends(self, how):
        if how == "again":
            raise self.retry(exc=ValueError(how))
        if how == "ignored":
            raise Ignore
        if how != "well":
            await asyncio.sleep(60)
        return how

    def said(*kinds):
        return [line.partition(" {")[0] for line in noted() if line.split()[0] in kinds]

    for signal in (signals.task_failure, signals.task_revoked):
        signal.connect(heard, weak=False)
    try:
        with start_worker(app, pool, concurrency=1):
            assert ends.delay("well").get(timeout=30) == "well"
            ends.delay("again").get(timeout=30, propagate=False)
            ends.apply_async(("soft",), soft_time_limit=0.3).get(timeout=30, propagate=False)
            ends.apply_async(("hard",), time_limit=0.3).get(timeout=30, propagate=False)
            ends.apply_async(("hard",), time_limit=0.3, ignore_result=True)
            ends.delay("ignored")
            wait_until(lambda: len(said("timeout")) == 3)
            running = ends.delay("revoked")
            wait_until(lambda: len(said("accepted")) == 8)
            running.revoke(terminate=True)
            wait_until(lambda: "failure TaskRevokedError('terminated') False" in said("failure"))
    finally:
        for signal in (signals.task_failure, signals.task_revoked):
            signal.disconnect(heard)
    assert len(said("accepted")) == 8
    first, *others = said("timeout", "failure", "retry")
    assert first.startswith("failure Retry(")
    assert others == [
        "retry ValueError('again')", "failure ValueError('again') True",
        "timeout True 0.3", "failure SoftTimeLimitExceeded(0.3) True",
        "failure TimeLimitExceeded(0.3) False", "timeout False 0.3",
        "failure TimeLimitExceeded(0.3) False", "timeout False 0.3",
        "failure TaskRevokedError('terminated') False",
    ]  # fmt: skip
    if pool == "solo":
        assert len(told) == 5, "the signals' receivers hear of each end once"


@pytest.mark.row("F139")
def test_a_class_that_does_not_exist_is_said_and_its_tasks_run(app: LocalQ, caplog):
    add = app.task(name="add", Request="no.such:Thing")(lambda x, y: x + y)
    with start_worker(app, "solo"):
        assert add.delay(1, 2).get(timeout=30) == 3
    assert "No module named 'no'" in caplog.text


@pytest.fixture
def request_(app: LocalQ):
    task = app.task(name="proj.add")(lambda x, y: x + y)
    headers = '{"timelimit": [5, 4], "root_id": "root", "parent_id": "above", "shadow": "shown"}'
    message = Message("an-id", "proj.add", b"[[1], {}]", headers=headers, group_id="g", position=2, expires_at=1.0)
    return Request(Claim(1, 1, 0, message), task, app, (1,), {"y": 2}, hostname="w@h")


@pytest.mark.row("F140")
def test_a_request_has_celerys_attributes(request_, app):
    r = request_
    assert (r.id, r.task_id, r.name, r.task_name, r.type) == ("an-id", "an-id", "proj.add", "proj.add", "proj.add")
    assert (r.task, r.app, r.args, r.kwargs, r.hostname) == (app.tasks["proj.add"], app, (1,), {"y": 2}, "w@h")
    assert (r.argsrepr, r.kwargsrepr) == ("(1,)", "{'y': 2}")
    assert (r.eta, r.expires.isoformat(), r.maybe_expire()) == (None, "1970-01-01T00:00:01+00:00", True)
    assert (r.root_id, r.parent_id, r.correlation_id, r.reply_to) == ("root", "above", "an-id", None)
    assert (r.group, r.group_index, r.groups, r.time_limits) == ("g", 2, ["g"], (5, 4))
    assert (r.body, r.content_type, r.content_encoding) == (b"[[1], {}]", "application/json", "utf-8")
    assert (r.ignore_result, r.store_errors, r.acknowledged, r.utc, r.eventer) == (False, True, False, True, None)
    assert (r.stamps, r.stamped_headers, r.replaced_task_nesting, r.errbacks) == (None, None, 0, None)
    assert (r.time_start, r.worker_pid, r.on_ack, r.on_reject, str(r.tzlocal)) == (None, None, None, None, "UTC")
    assert r.delivery_info["routing_key"] == "celery"
    assert r.request_dict["id"] == "an-id"
    assert r.message.id == "an-id"
    with pytest.raises(AttributeError, match="'nothing'"):
        r.nothing


@pytest.mark.row("F141")
def test_a_request_says_what_it_cannot_do(request_):
    for act in (request_.execute, request_.execute_using_pool, request_.reject, request_.terminate, request_.cancel):
        with pytest.raises(LocalqError, match="only tells what has happened"):
            act(None)
    assert request_.acknowledge() is request_.send_event("task-x") is None
    assert request_.info()["args"] == (1,)
    assert request_.info(safe=True)["args"] == "(1,)"
    assert request_.humaninfo() == "proj.add[an-id]"
    assert str(request_) == "proj.add[an-id] expires:[1970-01-01 00:00:01+00:00]"
    assert repr(request_) == "<Request: proj.add[an-id] (1,) {'y': 2}>"
    assert request_.revoked() is False


def test_a_notice_that_does_not_fit_is_dropped_with_a_warning(caplog):
    notices = Notices()
    claim = Claim(1, 1, 0, Message("small", "proj.add", b"[]"))
    notices.tell(SOFT, claim._replace(message=claim.message._replace(id="big", body=b"x" * 100 * MOST)))
    notices.tell(SOFT, claim, limit=3)
    assert [(each.kind, each.claim, each.facts) for each in notices.heard()] == [(SOFT, claim, {"limit": 3})]
    assert notices.heard() == []
    assert "handlers of the request of proj.add[big] are not called" in caplog.text
    notices.close()


def test_a_line_that_nobody_reads_never_stops_a_child(caplog):
    notices = Notices()
    claim = Claim(1, 1, 0, Message("id", "proj.add", b"x" * 1000))
    for _ in range(2000):
        notices.tell(SOFT, claim)
    assert 0 < len(notices.heard()) < 2000
    assert "are not called" in caplog.text
    notices.close()
