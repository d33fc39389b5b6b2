"""What is revoked does not run, whoever has it and whether a worker is up or not; and the answer says what was done."""

from __future__ import annotations

import json
import signal as signals_of_processes
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from forking import ended, forked
from waiting import wait_until

from localq import LocalQ, chain, chord, clock, group, signals
from localq.control import ENDED, NOTED, REVOKED, RUNNING, TERMINATING, signal_number
from localq.exceptions import ChordError, TaskRevokedError
from localq.message import Want
from localq.recovery import given_back
from localq.revocation import REMEMBERED_S, TERMINATE
from localq.storage.base import DUE_BELL
from localq.testing.clock import FakeClock
from localq.testing.worker import start_worker

#: Longest that a task waits for its file, in seconds.
LONG_S = 60.0
POOLS = pytest.mark.parametrize("pool", ["solo", "prefork"])


class Tasks:
    """Tasks that leave a line for every run, outside the store."""

    def __init__(self, app, directory: Path) -> None:
        self._ran, self.go = directory / "ran", directory / "go"
        self._ran.touch()

        def note(task):
            with self._ran.open("a") as file:
                file.write(f"{task.request.id}\n")

        def wait():
            deadline = time.monotonic() + LONG_S
            while not self.go.exists() and time.monotonic() < deadline:
                time.sleep(0.005)

        @app.task(bind=True, name="quick")
        def quick(this, *args):
            note(this)
            return args

        @app.task(bind=True, name="long")
        def long(this):
            note(this)
            wait()
            return "done"

        @app.task(bind=True, name="again", max_retries=5)
        def again(this):
            note(this)
            wait()
            raise this.retry(countdown=3600)

        self.quick, self.long, self.again = quick, long, again

    def ran(self) -> list[str]:
        return self._ran.read_text().split()


@pytest.fixture
def tasks(app, tmp_path):
    return Tasks(app, tmp_path)


@contextmanager
def told():
    """The calls of a receiver of `task_revoked`."""
    calls = []

    def receiver(sender=None, **what):
        calls.append((sender, what))

    signals.task_revoked.connect(receiver)
    try:
        yield calls
    finally:
        signals.task_revoked.disconnect(receiver)


def is_revoked(result):
    with pytest.raises(TaskRevokedError, match=r"^revoked$"):
        result.get(timeout=10)
    return result.state == "REVOKED"


# -- With no worker --------------------------------------------------------------------------------


@pytest.mark.row("F167", "R9", "F300")
def test_without_a_worker_it_ends_at_once_and_no_later_worker_runs_it(app, tasks):
    now, later, live = tasks.quick.delay(), tasks.quick.apply_async(countdown=0.05), tasks.quick.delay()
    assert (now.revoke(), later.revoke()) == (REVOKED, REVOKED)
    assert is_revoked(now)
    assert is_revoked(later)
    for _ in range(3):
        with start_worker(app):
            live.get(timeout=10)
            tasks.quick.delay().get(timeout=10)
    assert not {now.id, later.id} & set(tasks.ran())
    assert (now.revoke(), live.revoke(), live.state) == (REVOKED, ENDED, "SUCCESS")


@pytest.mark.row("F167")
def test_what_waits_for_its_next_try_does_not_try_again(app, tasks):
    result = tasks.again.delay()
    tasks.go.touch()
    with start_worker(app):
        wait_until(lambda: result.state == "RETRY")
        assert result.revoke() == REVOKED
        assert is_revoked(result)


@pytest.mark.row("F167", "F246")
def test_those_behind_it_fail_with_it(app, tasks):
    last = chain(tasks.quick.s(), tasks.quick.s(), tasks.quick.s()).apply_async()
    body = chord([tasks.quick.s(), tasks.quick.s()])(tasks.quick.s())
    assert last.parent.revoke() == REVOKED
    member = body.parent.results[0]
    assert member.revoke() == REVOKED
    with start_worker(app):
        last.parent.parent.get(timeout=10)
        with pytest.raises(TaskRevokedError):
            last.get(timeout=10)
        with pytest.raises(ChordError, match=rf"Dependency {member.id} raised TaskRevokedError\('revoked'\)"):
            body.get(timeout=10, follow_parents=False)
        body.parent.results[1].get(timeout=10)
    assert sorted(tasks.ran()) == sorted([last.parent.parent.id, body.parent.results[1].id])


@pytest.mark.row("F167", "F175", "R9")
def test_of_a_group_every_member_is_revoked_that_has_not_ended(app, tasks):
    result = group(tasks.quick.s(number) for number in range(40)).apply_async()
    with start_worker(app):
        result.results[0].get(timeout=10)
        result.get(timeout=10)
    assert set(result.revoke().values()) == {ENDED}
    result = group(tasks.quick.s(number) for number in range(40)).apply_async()
    assert result.revoke() == {each.id: REVOKED for each in result}
    assert [each.state for each in result] == ["REVOKED"] * 40


@pytest.mark.row("F300", "F302")
def test_control_takes_one_id_or_several_and_their_handles(app, tasks):
    a, b, c = (tasks.quick.delay() for _ in range(3))
    assert app.control.revoke(a.id) == {a.id: REVOKED}
    assert app.control.revoke([a.id, b], reply=True, timeout=5) == {a.id: REVOKED, b.id: REVOKED}
    assert app.control.terminate({c.id}, signal="KILL") == {c.id: REVOKED}
    assert app.control.revoke([]) == {}


@pytest.mark.row("F167")
@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"task_id": ""}, TypeError, "expected the id of a task"),
        ({"task_id": ["a", 7]}, TypeError, r"task_id=\['a', 7\]"),
        ({"task_id": "a", "signal": "OOPS"}, ValueError, "signal 'OOPS': expected a name as 'TERM'"),
        ({"task_id": "a", "signal": 1000}, ValueError, "signal 1000"),
        (
            {"task_id": "a", "destination": ["w1@here"]},
            TypeError,
            "destination=.*every worker finds it; leave this out",
        ),
        ({"task_id": "a", "pattern": "w*"}, TypeError, r"pattern='w\*'"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_revoked(app, given, error, words):
    with pytest.raises(error, match=words):
        app.control.revoke(**given)
    with pytest.raises(TypeError, match=r'expected stamps by name, {"header": value or'):
        app.control.revoke_by_stamped_headers(["a=b"])
    assert app.storage.entries("revoked:") == []


def test_signals_are_named_or_numbered():
    assert {signal_number(given) for given in ("KILL", "SIGKILL", "kill", 9, signals_of_processes.SIGKILL)} == {9}
    assert signal_number(None) == 15


# -- What is not there yet -------------------------------------------------------------------------


@POOLS
@pytest.mark.row("F167", "R9", "F300")
def test_what_is_revoked_before_it_is_sent_never_runs(app, tasks, pool):
    assert app.control.revoke(["mine", "other"]) == {"mine": NOTED, "other": NOTED}
    with start_worker(app, pool, concurrency=1):
        tasks.quick.delay().get(timeout=10)
        mine = tasks.quick.apply_async(task_id="mine")  # its child sleeps: without a rule it would be handed over
        last = chain(tasks.quick.signature(task_id="other"), tasks.quick.s()).apply_async()
        free = tasks.quick.delay()
        assert is_revoked(mine)
        with pytest.raises(TaskRevokedError):
            last.get(timeout=10)
        free.get(timeout=10)
    assert not {"mine", "other", last.id} & set(tasks.ran())


@pytest.mark.row("R9")
def test_it_is_remembered_for_three_hours_and_a_retry_by_hand_ends_it(app, tasks):
    with FakeClock() as at:
        app.control.revoke(["a", "b"])
        at.advance(REMEMBERED_S - 1)
        revoked = tasks.quick.apply_async(task_id="a")
        with start_worker(app):
            wait_until(lambda: revoked.state == "REVOKED")
            revoked.retry()
            wait_until(lambda: revoked.state == "SUCCESS")
            at.advance(2)
            late = tasks.quick.apply_async(task_id="b")
            wait_until(lambda: late.state == "SUCCESS")
        assert app.storage.entries("revoked:") == []


@pytest.mark.row("R9")
def test_a_message_of_which_no_worker_knows_the_task_is_revoked_as_well(app):
    app.control.revoke("mine")
    with start_worker(app):
        result = app.send_task("nobody.knows", task_id="mine")
        assert is_revoked(result)


# -- Stamps ----------------------------------------------------------------------------------------


@POOLS
@pytest.mark.row("F167", "F301", "F264", "R9")
def test_what_has_a_stamp_is_revoked_be_it_queued_or_still_to_come(app, tasks, pool):
    def send(**stamps):
        return tasks.quick.apply_async(stamped_headers=[*stamps], **stamps)

    queued = [send(batch="x"), send(batch=["w", "x"]), send(batch="y", user=3)]
    spared = [send(batch="z"), send(user=4), tasks.quick.delay()]
    done = app.control.revoke_by_stamped_headers({"batch": ["x", "y"], "user": 3})
    assert done == {each.id: REVOKED for each in queued}
    assert all(map(is_revoked, queued))
    with start_worker(app, pool, concurrency=1):
        for each in spared:
            each.get(timeout=10)
        to_come = [send(batch="x"), send(user=3)]
        spared.append(send(batch="z"))
        assert all(map(is_revoked, to_come))
        spared[-1].get(timeout=10)
    assert set(tasks.ran()) == {each.id for each in spared}
    assert spared[0].revoke_by_stamped_headers({"batch": "z"}, terminate=True) == {}


# -- In the hands of a worker ----------------------------------------------------------------------


@POOLS
@pytest.mark.row("F167", "R9", "F300")
def test_what_is_reserved_behind_a_long_task_is_taken_back(app, tasks, pool):
    short = [tasks.quick.delay() for _ in range(300)]  # so that a child claims a hundred at once
    long = tasks.long.delay()
    behind = [tasks.quick.delay() for _ in range(20)]
    with start_worker(app, pool, concurrency=1):
        wait_until(lambda: long.id in tasks.ran())
        assert behind[3].revoke() == REVOKED
        assert app.control.revoke([behind[5].id, behind[7].id]) == {behind[5].id: REVOKED, behind[7].id: REVOKED}
        assert is_revoked(behind[3])
        tasks.go.touch()
        behind[-1].get(timeout=10)
        assert short[-1].get(timeout=10) == []
    assert set(tasks.ran()) >= {each.id for at, each in enumerate(behind) if at not in (3, 5, 7)}
    assert not set(tasks.ran()) & {behind[at].id for at in (3, 5, 7)}


@POOLS
@pytest.mark.row("F167", "F300")
def test_what_runs_goes_on_and_its_end_counts(app, tasks, pool):
    result = tasks.long.delay()
    with start_worker(app, pool, concurrency=1):
        wait_until(lambda: result.id in tasks.ran())
        assert result.revoke() == RUNNING
        tasks.go.touch()
        assert result.get(timeout=10) == "done"


@POOLS
@pytest.mark.row("F167", "F300")
def test_what_runs_is_not_tried_again(app, tasks, pool):
    last = chain(tasks.again.s(), tasks.quick.s()).apply_async()
    with start_worker(app, pool, concurrency=1):
        wait_until(lambda: last.parent.id in tasks.ran())
        assert last.parent.revoke() == RUNNING
        tasks.go.touch()
        assert is_revoked(last.parent)
        with pytest.raises(TaskRevokedError):
            last.get(timeout=10)
    assert tasks.ran() == [last.parent.id]


@POOLS
@pytest.mark.row("F167", "R9")
def test_a_task_may_revoke_what_its_own_child_has_reserved(app, tasks, pool):
    @app.task(name="revoking")
    def revoking(id):
        return app.control.revoke(id)

    short = [tasks.quick.delay() for _ in range(300)]
    result = revoking.apply_async(("next",), task_id="mine")
    behind = tasks.quick.apply_async(task_id="next")
    last = tasks.quick.delay()
    with start_worker(app, pool, concurrency=1):
        assert result.get(timeout=10) == {"next": REVOKED}
        assert is_revoked(behind)
        last.get(timeout=10)
        assert short[-1].get(timeout=10) == []
    assert "next" not in tasks.ran()


@pytest.mark.row("R9")
def test_what_a_dead_worker_had_ends_as_revoked(app, tasks):
    """It was only reserved: a sweep, whoever's, ends it instead of giving it back."""
    result, other = tasks.quick.delay(), tasks.quick.delay()

    def claim():
        owner = app.storage.enlist({"kind": "child"})
        owner.turn()
        app.storage.settle((), Want(owner.name, ("celery",), 10, clock.now()))

    assert ended(forked(claim)) == 0
    assert app.storage.records([result.id])[result.id].place == "held"
    assert result.revoke() == REVOKED
    with start_worker(app):
        other.get(timeout=10)
    assert tasks.ran() == [other.id]


@pytest.mark.row("F167", "R9")
def test_terminate_asks_the_worker_that_has_it_to_stop_its_process(app, tasks):
    reserved = tasks.quick.delay()
    assert reserved.revoke(terminate=True, signal="KILL") == REVOKED
    assert app.storage.entries(TERMINATE) == []
    owner = app.storage.enlist({"kind": "child"})
    result = tasks.long.delay()
    owner.turn()
    (claim,) = app.storage.settle((), Want(owner.name, ("celery",), 10, clock.now())).claims
    owner.begin(claim, 0)
    bell = app.storage.bell((DUE_BELL,))
    for name, number in (("TERM", 15), ("KILL", 9)):
        bell.raise_()
        assert result.revoke(terminate=True, signal=name) == TERMINATING
        assert bell.sleep(0)
        (entry,) = app.storage.entries(TERMINATE)
        assert entry.key == f"terminate:{result.id}"
        assert json.loads(entry.value) == {
            "signal": number, "seq": claim.seq, "token": claim.token, "owner": owner.name,
        }  # fmt: skip
        assert 0 < entry.expires_at - clock.now() <= 60
    bell.close()
    owner.close()


def test_of_an_owner_that_keeps_no_notes_nobody_knows_whether_it_has_begun(app, tasks):
    owner = app.storage.enlist({}, journal=False)
    result = tasks.quick.delay()
    (claim,) = app.storage.settle((), Want(owner.name, ("celery",), 10, clock.now())).claims
    assert result.revoke() == RUNNING
    app.storage.settle([given_back(claim)])
    assert is_revoked(result)
    owner.close()


@pytest.mark.row("R9")
@pytest.mark.parametrize("scheme", ["memory:", "diskcache:///"])
def test_other_storages_do_the_same(tmp_path, scheme):
    store = f"diskcache:///{tmp_path / 'cache'}" if scheme.startswith("diskcache") else scheme
    with LocalQ("other", store=store, set_as_current=False) as app:
        tasks = Tasks(app, tmp_path)
        app.control.revoke("mine")
        app.control.revoke_by_stamped_headers({"lot": 1})
        queued = tasks.quick.delay()
        assert queued.revoke() == REVOKED
        with start_worker(app):
            mine = tasks.quick.apply_async(task_id="mine")
            stamped = tasks.quick.apply_async(stamped_headers=["lot"], lot=1)
            last = chain(tasks.again.s(), tasks.quick.s()).apply_async()
            wait_until(lambda: last.parent.id in tasks.ran())
            assert last.parent.revoke() == RUNNING
            tasks.go.touch()
            assert all(map(is_revoked, (queued, mine, stamped, last.parent)))
            tasks.quick.delay().get(timeout=10)
        assert len(tasks.ran()) == 2


# -- Who is told -----------------------------------------------------------------------------------


@pytest.mark.row("F331")
def test_receivers_are_told_where_it_is_revoked(app, tasks):
    with told() as calls:
        result = tasks.quick.apply_async((1,), countdown=3600)
        result.revoke()
        result.revoke()
        app.control.revoke(["nobody"])
    ((sender, what),) = calls
    assert (sender, what["request"].id, what["request"].task) == (tasks.quick, result.id, "quick")
    assert (what["terminated"], what["signum"], what["expired"]) == (False, None, False)


@pytest.mark.row("F331", "F276")
def test_receivers_are_told_where_a_rule_is_met(app, tasks, caplog):
    caplog.set_level("INFO", "localq.task.trace")
    app.control.revoke("mine")
    with told() as calls, start_worker(app):
        assert is_revoked(tasks.quick.apply_async(task_id="mine"))
        wait_until(lambda: calls)
    ((sender, what),) = calls
    assert (sender, what["request"].id, what["expired"]) == (tasks.quick, "mine", False)
    assert "Discarding revoked task: quick[mine]" in caplog.text


@pytest.mark.row("F167")
def test_a_revoked_task_takes_no_further_state(app, tasks):
    result = tasks.quick.delay()
    result.revoke()
    tasks.quick.update_state(result.id, "PROGRESS", {"done": 1})
    assert is_revoked(result)
