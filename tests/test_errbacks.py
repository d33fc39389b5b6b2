"""`link_error`: who is told of a failure, and how."""

from __future__ import annotations

import os

import pytest
from forking import ended, forked
from waiting import wait_until
from working import claims_of, work_off

from localq import LocalQ, Signature, chord, group
from localq.exceptions import InvalidTaskError, WorkerLostError
from localq.executor import Executor
from localq.message import Message
from localq.recovery import EARLY, _settled, verdicts
from localq.serialization import checksum
from localq.storage.base import Estate, Started


@pytest.fixture
def fail(app):
    @app.task(name="proj.fail")
    def fail(x=0):
        raise ValueError("why")

    return fail


@pytest.fixture
def note(tmp_path):
    """Write a line that the test can read, from whatever process; without a line: read them."""

    def note(line=None):
        file = tmp_path / "notes"
        if line is not None:
            with file.open("a") as out:
                out.write(line + "\n")
        return file.read_text().splitlines() if file.exists() else []

    return note


@pytest.mark.row("F106")
def test_an_errback_of_the_new_kind_is_called_with_request_exception_and_traceback(app, running, fail, note):
    @app.task(name="proj.told")
    def told(request, exc, traceback, *more):
        note(f"{request.id} {request.errbacks[0]['task']} {exc!r} {'Traceback' in traceback} {more}")

    with running():
        result = fail.apply_async((), link_error=told.s("more"), task_id="f")
        with pytest.raises(ValueError, match="why"):
            result.get(timeout=30)
        assert note() == ["f proj.told ValueError('why') True ('more',)"]


@pytest.mark.row("F106")
def test_what_an_errbacks_signature_gives_it_does_not_count_as_a_place_for_the_failure(app, running, fail, note):
    @app.task(name="proj.told")
    def told(who, where, traceback=None, name=None):
        note(f"{who} {name}" if isinstance(who, str) else f"{type(where).__name__} {name}")

    with running():
        result = fail.apply_async((), link_error=[told.s(where="here", name="old"), told.s(name="new")], task_id="f")
        with pytest.raises(ValueError, match="why"):
            result.get(timeout=30)
        wait_until(lambda: sorted(note()) == ["ValueError new", "f old"])


@pytest.mark.row("F106")
@pytest.mark.parametrize("bind", [False, True])
def test_an_errback_of_the_old_kind_or_a_bound_one_is_a_task_with_the_failed_id(app, running, fail, note, bind):
    if bind:

        @app.task(bind=True, name="proj.told")
        def told(self, id, more):
            note(f"{id} {more} {self.request.parent_id} {self.request.root_id}")

    else:

        @app.task(name="proj.told")
        def told(id):
            note(f"{id} more f f")

    with running():
        fail.apply_async((), link_error=[told.s("more") if bind else told.s()], task_id="f")
        wait_until(note)
    assert note() == ["f more f f"]


@pytest.mark.row("F106")
def test_an_errback_that_is_not_registered_here_is_sent_all_the_same(app, fail):
    fail.apply_async((), link_error=Signature("elsewhere.told", app=app), task_id="f")
    owner = app.storage.enlist({"kind": "test"}, journal=False)
    (claim,) = claims_of(app, owner.name)
    outcome = Executor(app.conf).execute(fail, claim)
    assert [message.name for message in outcome.sends] == ["elsewhere.told"]
    assert app.AsyncResult(outcome.sends[0].id).exists() is False
    app.storage.settle([outcome])
    assert app.AsyncResult(outcome.sends[0].id).exists()
    assert app.AsyncResult("f").state == "FAILURE"


@pytest.mark.row("F106")
def test_an_errback_that_fails_is_logged_and_the_failure_stays(app, fail, caplog):
    @app.task
    def told(request, exc, traceback):
        raise KeyError("broken errback")

    result = fail.apply_async((), link_error=told.s())
    work_off(app)
    assert "broken errback" in caplog.text
    with pytest.raises(ValueError, match="why"):
        result.get(timeout=0)


@pytest.mark.row("F106")
def test_an_errback_is_not_told_of_a_success_nor_of_a_retry(app, note):
    @app.task
    def told(request, exc, traceback):
        note("told")

    @app.task(bind=True)
    def second_time(self):
        if not self.request.retries:
            raise self.retry(countdown=0)

    second_time.apply_async(link_error=told.s())
    work_off(app)
    assert note() == []


@pytest.mark.row("F106")
def test_an_errback_is_told_once_when_there_are_no_retries_left(app, note):
    @app.task
    def told(request, exc, traceback):
        note(f"{request.retries} {exc}")

    @app.task(bind=True, max_retries=2)
    def never(self):
        raise self.retry(exc=ValueError("no"), countdown=0)

    never.apply_async(link_error=told.s())
    work_off(app)
    assert note() == ["2 no"]


@pytest.mark.row("F105", "F081")
def test_a_callback_gets_the_result_and_the_request_knows_of_it(app, running, note):
    @app.task(name="proj.told")
    def told(*args):
        note(repr(args))

    @app.task(bind=True)
    def add(self, x, y):
        note(f"{[each['task'] for each in self.request.callbacks]} {self.request.errbacks}")
        return x + y

    with running():
        add.apply_async((1, 2), link=[told.s(4), told.si("alone")])
        wait_until(lambda: len(note()) == 3)
    assert sorted(note()) == ["('alone',)", "(3, 4)", "['proj.told', 'proj.told'] None"]


@pytest.mark.row("F105")
def test_a_callback_of_a_call_by_name_is_sent_too(app, note):
    @app.task(name="proj.told")
    def told(*args):
        note(repr(args))

    @app.task(name="proj.one")
    def one():
        return 1

    app.send_task("proj.one", link=told.s())
    work_off(app)
    assert note() == ["(1,)"]


# -- A process that dies -------------------------------------------------------------------------------


@pytest.fixture
def lost(app):
    """Send a message whose process dies in the middle of it."""

    def lose(send):
        def run():
            owner = app.storage.enlist({"kind": "test"})
            send()
            (claim,) = claims_of(app, owner.name)
            owner.begin(claim, EARLY, 0)
            os._exit(0)

        assert ended(forked(run)) == 0

    return lose


@pytest.mark.row("F106")
def test_an_errback_of_a_task_whose_process_died_is_told_by_a_worker_whoever_swept(app, fail, lost, note):
    @app.task(name="proj.told")
    def told(request, exc, traceback):
        request_facts = (request.id, request.task, request.args, request.kwargs, request.root_id, len(request.errbacks))
        note(f"{request_facts} {type(exc).__name__} {traceback[:25]}")

    @app.task(bind=True, name="proj.sent")
    def sent(self, id):
        note(f"{id} {self.request.parent_id}")

    lost(lambda: fail.apply_async((), {"x": 2}, task_id="f", link_error=[told.s(), sent.s()], link=told.s()))
    client = LocalQ("client", store=app.backend.location.path, set_as_current=False)
    with pytest.raises(WorkerLostError):
        client.AsyncResult("f").get(timeout=30)
    client.close()
    assert note() == []
    work_off(app)
    assert note() == [
        "('f', 'proj.fail', [], {'x': 2}, 'f', 2) WorkerLostError Worker exited prematurely", "f f",
    ]  # fmt: skip
    work_off(app)
    assert len(note()) == 2, "told once"
    assert app.AsyncResult("f").state == "FAILURE"


@pytest.mark.row("F106")
def test_errbacks_of_a_chains_step_are_told_what_was_fed_to_it(app, fail, note):
    @app.task(name="proj.told")
    def told(request, exc, traceback):
        note(f"{request.args} {request.task}")

    add = app.task(name="proj.add")(lambda x, y: x + y)
    (add.s(1, 2) | fail.s().on_error(told.s())).apply_async()
    owner = app.storage.enlist({"kind": "test"}, journal=False)
    (first,) = claims_of(app, owner.name)
    app.storage.settle([Executor(app.conf).execute(add, first)])
    (claim,) = claims_of(app, owner.name)
    estate = Estate([claim], [Started(claim.seq, claim.token, EARLY)])
    assert _settled(app.storage, estate, verdicts(estate, True, "gone", 3), None) == 1
    work_off(app)
    assert note() == ["[3] proj.fail"]


@pytest.mark.parametrize(("headers", "sends"), [
    ('{"errbacks": [], "root_id"', 0), ('{"errbacks": []}', 0), ('{"errbacks": [{"task": 5}]}', 1),
    ('{"link": "errbacks"}', 0), (None, 0),
])  # fmt: skip
def test_one_whose_errbacks_cannot_be_read_ends_all_the_same(app, caplog, headers, sends):
    app.storage.put([Message("f", "proj.fail", b"[[], {}]", headers=headers, checksum=checksum(b"[[], {}]"))])
    (claim,) = claims_of(app, app.storage.enlist({"kind": "test"}, journal=False).name)
    estate = Estate([claim], [Started(claim.seq, claim.token, EARLY)])
    assert _settled(app.storage, estate, verdicts(estate, True, "gone", 3), None) == 1
    assert app.AsyncResult("f").state == "FAILURE"
    assert len(work_off(app)) == sends
    assert ("errbacks of proj.fail[f] cannot be told" in caplog.text) is (headers is not None and headers[-1] != "}")


@pytest.mark.row("F106")
def test_an_errand_for_errbacks_cannot_be_sent_by_anybody_else(app):
    with pytest.raises(InvalidTaskError, match=r"celery\.errbacks is localq's own"):
        app.tasks["celery.errbacks"].apply((1,), throw=True)


# -- What never ran --------------------------------------------------------------------------------


@pytest.mark.row("F239")
def test_a_bodys_errbacks_are_told_once_when_its_header_fails(app, fail, note, running):
    @app.task(name="proj.tell")
    def tell(request, exc, traceback):
        note(f"{type(exc).__name__} {request.id}")

    @app.task(name="proj.old")
    def old(id):
        note(f"old {id}")

    body = fail.s().on_error(tell.s()).on_error(old.s())
    with running():
        result = chord([fail.s(1), fail.s(2)], body).delay()
        wait_until(lambda: len(note()) == 2)
    assert sorted(note()) == sorted([f"ChordError {result.id}", f"old {result.id}"])


@pytest.mark.row("F239")
def test_of_a_body_that_is_a_group_each_member_tells_the_cause(app, fail, note, running):
    @app.task(name="proj.tell")
    def tell(request, exc, traceback):
        note(f"{type(exc).__name__} {request.id}")

    with running():
        result = chord([fail.s(1)], group(fail.s(), fail.s()).on_error(tell.s())).delay()
        wait_until(lambda: len(note()) == 2)
    assert sorted(note()) == sorted(f"ValueError {each.id}" for each in result)
