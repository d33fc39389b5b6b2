"""What becomes of the claims of a process that died: the table of DESIGN.md 5, and who may say so."""

from __future__ import annotations

import os
import signal

import pytest
from forking import Line, ended, forked
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

from localq import LocalQ
from localq.exceptions import ImproperlyConfigured
from localq.message import LEADS_BY_GROUP, Claim, Message, Outcome, Want
from localq.recovery import (
    EARLY,
    LATE,
    LATE_REJECT,
    RETRY,
    STOPPED,
    Mode,
    exit_reason,
    given_back,
    mode_of,
    sweep,
    verdicts,
)
from localq.serialization import decode, exception_from
from localq.storage.base import Estate, Started
from localq.storage.owners import identity
from localq.testing.clock import FakeClock

#: A task that may be retried twice, a minute after its process died.
TWICE = Mode(RETRY, 2, 60.0).packed()
FOR_EVER = Mode(RETRY, None, 0.0).packed()
modes = st.sampled_from([EARLY, LATE, LATE_REJECT, TWICE, FOR_EVER])


def claim(seq=1, token=1, redeliveries=0, **fields):
    return Claim(seq, token, redeliveries, Message(f"id-{seq}", "proj.work", b"[]", **fields))


def verdict(mode, parent_lives, redeliveries=0, limit=3, **fields):
    one = claim(redeliveries=redeliveries, **fields)
    (outcome,) = verdicts(Estate([one], [Started(1, 1, mode)]), parent_lives, "signal 9 (SIGKILL)", limit)
    return outcome


def error(outcome):
    return exception_from(decode(outcome.result, outcome.content_type, ("json",), outcome.checksum))


# -- The table -------------------------------------------------------------------------------------


@pytest.mark.row("F046", "F048", "F289", "F193", "R5")
@pytest.mark.parametrize(("mode", "parent_lives", "runs_again"), [
    (EARLY, True, False), (EARLY, False, False),
    (LATE, True, False), (LATE, False, True),
    (LATE_REJECT, True, True), (LATE_REJECT, False, True),
])  # fmt: skip
def test_a_started_task_ends_by_its_acknowledgement_mode(mode, parent_lives, runs_again):
    outcome = verdict(mode, parent_lives)
    if runs_again:
        assert (outcome.ended, outcome.again, outcome.charged) == (False, None, 1)
    else:
        assert (outcome.ended, outcome.state, outcome.charged) == (True, "FAILURE", 1)
        assert type(error(outcome)).__name__ == "WorkerLostError"
        assert str(error(outcome)).startswith("Worker exited prematurely: signal 9 (SIGKILL)")


@pytest.mark.row("F049", "R5")
@pytest.mark.parametrize("parent_lives", [True, False])
def test_a_started_task_is_retried_if_it_asks_for_that(parent_lives):
    with FakeClock() as clock:
        outcome = verdict(TWICE, parent_lives, retries=1, visible_at=5.0, reply_to="me")
    assert (outcome.ended, outcome.state, outcome.charged, outcome.reply_to) == (False, "RETRY", 1, "me")
    assert outcome.again == claim(retries=2, visible_at=clock.now() + 60, reply_to="me").message
    assert type(error(outcome)).__name__ == "WorkerLostError"
    assert str(error(outcome)) == "Worker exited prematurely: signal 9 (SIGKILL)"


@pytest.mark.parametrize("parent_lives", [True, False])
def test_a_task_that_has_used_up_its_retries_is_lost(parent_lives):
    outcome = verdict(TWICE, parent_lives, retries=2)
    assert (outcome.ended, outcome.state, outcome.again) == (True, "FAILURE", None)
    assert "Given up after 2 retries (max_retries=2)" in str(error(outcome))


def test_retries_without_a_limit_are_ended_by_the_crashes():
    assert verdict(FOR_EVER, True, redeliveries=2, retries=50).state == "RETRY"
    outcome = verdict(FOR_EVER, True, redeliveries=3, retries=51)
    assert outcome.state == "FAILURE"
    assert "4 attempts that ended so (task_max_redeliveries=3)" in str(error(outcome))


@pytest.mark.row("F283", "R5")
@pytest.mark.parametrize("mode", [EARLY, LATE, LATE_REJECT, TWICE])
@pytest.mark.parametrize("parent_lives", [True, False])
def test_a_reserved_task_goes_back_uncharged_in_every_mode(mode, parent_lives):
    estate = Estate([claim(1), claim(2)], [Started(1, 1, mode)])
    outcome = verdicts(estate, parent_lives, "gone", 3)[1]
    assert (outcome.seq, outcome.ended, outcome.charged, outcome.state) == (2, False, 0, None)


def test_an_ended_task_ends_as_it_was_noted():
    noted = Outcome(1, 1, "id-1", "SUCCESS", result=b"1")
    assert verdicts(Estate([claim(1)], [Started(1, 1, EARLY)], [noted]), False, "gone", 3) == [noted]


def test_a_note_of_an_older_claim_counts_for_nothing():
    noted = Outcome(1, 1, "id-1", "SUCCESS", result=b"1")
    assert verdicts(Estate([claim(1, token=2)], (), [noted]), False, "gone", 3) == [given_back(claim(1, token=2))]


def test_between_two_tasks_nothing_counts_as_started():
    outcomes = verdicts(Estate([claim(1), claim(2)], ()), False, "gone", 3)
    assert [(o.ended, o.charged) for o in outcomes] == [(False, 0)] * 2


@given(modes, st.booleans(), st.integers(0, 6), st.integers(0, 6))
def test_no_task_is_charged_beyond_the_limit(mode, parent_lives, redeliveries, limit):
    outcome = verdict(mode, parent_lives, redeliveries, limit)
    if redeliveries >= limit:
        assert outcome.ended
        assert outcome.state == "FAILURE"
    if not outcome.ended:
        assert redeliveries + outcome.charged <= limit


@pytest.mark.row("R5")
def test_giving_up_says_after_how_many_attempts_and_which_setting_decides():
    text = str(error(verdict(LATE_REJECT, True, redeliveries=3)))
    assert "4 attempts" in text
    assert "task_max_redeliveries=3" in text


@pytest.mark.parametrize(("mode", "by_itself"), [
    (EARLY, ("A task that may run twice does so by itself with acks_late=True, reject_on_worker_lost=True, or with "
             "retry_on_worker_lost=True")),
    (LATE, "It would do so by itself with reject_on_worker_lost=True as well"),
])  # fmt: skip
def test_a_lost_task_says_why_how_it_runs_again_and_how_others_do_so_by_themselves(mode, by_itself):
    assert str(error(verdict(mode, True))) == (
        "Worker exited prematurely: signal 9 (SIGKILL); run it again with `localq task retry id-1` or "
        f"AsyncResult('id-1').retry(). {by_itself}"
    )


def test_the_command_that_runs_a_lost_task_again_names_the_store():
    (outcome,) = verdicts(Estate([claim(1)], [Started(1, 1, EARLY)]), True, "gone", 3, "sqlite:////my jobs/q")
    assert "`localq -b 'sqlite:////my jobs/q' task retry id-1`" in str(error(outcome))


def test_a_task_that_was_given_up_says_how_it_runs_again():
    assert str(error(verdict(LATE_REJECT, True, redeliveries=3))).endswith(
        "; run it again with `localq task retry id-1` or AsyncResult('id-1').retry()"
    )


def test_those_who_wait_for_a_lost_member_get_a_chord_error():
    outcome = verdict(EARLY, True, group_id="g", position=0, leads=LEADS_BY_GROUP)
    assert type(exception_from(decode(outcome.group_failure, "application/json", ("json",)))).__name__ == "ChordError"


@given(st.lists(st.sampled_from(["ended", "started", "reserved"]), max_size=8), modes)
def test_every_claim_of_an_estate_gets_exactly_one_verdict(parts, mode):
    claims = [claim(seq) for seq in range(1, len(parts) + 1)]
    ended = [
        Outcome(c.seq, c.token, c.message.id, "SUCCESS") for c, p in zip(claims, parts, strict=True) if p == "ended"
    ]
    running = [Started(c.seq, c.token, mode) for c, p in zip(claims, parts, strict=True) if p == "started"]
    outcomes = verdicts(Estate(claims, running, ended), True, "gone", 3)
    assert [(o.seq, o.token) for o in outcomes] == [(c.seq, c.token) for c in claims]


@pytest.mark.parametrize(("options", "mode"), [
    ({}, EARLY), ({"acks_late": True}, LATE), ({"acks_late": True, "reject_on_worker_lost": True}, LATE_REJECT),
    ({"reject_on_worker_lost": True}, EARLY),
    ({"retry_on_worker_lost": True}, Mode(RETRY, 3, 180.0).packed()),
    ({"retry_on_worker_lost": True, "max_retries": None, "default_retry_delay": 1.5}, Mode(RETRY, None, 1.5).packed()),
    # Celery 5.7's own order: the retry first, and a task without any left fails.
    ({"retry_on_worker_lost": True, "acks_late": True, "reject_on_worker_lost": True}, Mode(RETRY, 3, 180.0).packed()),
])  # fmt: skip
def test_the_mode_comes_from_the_tasks_options(options, mode):
    app = LocalQ("proj", store="memory:", set_as_current=False)
    task = app.task(**options)(lambda: None)
    assert mode_of(task) == task.lost_mode == mode


def test_the_mode_comes_from_the_settings_if_the_task_says_nothing():
    app = LocalQ("proj", store="memory:", set_as_current=False, task_retry_on_worker_lost=True)
    assert app.task(lambda: None).lost_mode == Mode(RETRY, 3, 180.0).packed()
    assert app.task(name="not", retry_on_worker_lost=False)(lambda: None).lost_mode == EARLY


@pytest.mark.parametrize("options", [
    {"default_retry_delay": "soon"}, {"default_retry_delay": None}, {"default_retry_delay": float("nan")},
    {"max_retries": "3"}, {"max_retries": 2.5},
])  # fmt: skip
def test_retry_options_that_are_no_numbers_are_an_error_where_the_task_is_made(options):
    app = LocalQ("proj", store="memory:", set_as_current=False)
    with pytest.raises(ImproperlyConfigured, match=r"'proj.slow'.*retry_on_worker_lost.*default_retry_delay"):
        app.task(name="proj.slow", retry_on_worker_lost=True, **options)(lambda: None)


@given(st.integers(0, 3), st.none() | st.integers(0, 10**6), st.integers(0, 10**9), st.booleans(), st.booleans())
def test_a_mode_is_read_as_it_was_written(kind, max_retries, milliseconds, again_in_time, keeps_errors):
    mode = Mode(kind, max_retries, milliseconds / 1000, again_in_time, keeps_errors)
    assert Mode.unpacked(mode.packed()) == mode


@given(st.integers(0, 3), st.none() | st.integers(), st.floats(allow_nan=False, allow_infinity=False))
def test_any_mode_fits_into_64_bits(kind, max_retries, delay):
    number = Mode(kind, max_retries, delay).packed()
    assert 0 <= number < 2**64
    found = Mode.unpacked(number)
    assert (found.kind, found.max_retries is None) == (kind, max_retries is None)
    assert found.delay <= max(delay, 0) + 0.001


@given(st.integers(0, 2**64 - 1))
def test_any_number_is_a_mode(number):
    assert Mode.unpacked(number).packed() == number


# -- Killed for its sake ---------------------------------------------------------------------------


def condemned(reason, mode=EARLY, **fields):
    one = claim(**fields)
    (outcome,) = verdicts(Estate([one], [Started(1, 1, mode, 5.0, reason)]), True, "signal 9 (SIGKILL)", 3)
    return outcome


@pytest.mark.row("F192")
@pytest.mark.parametrize("mode", [EARLY, LATE, LATE_REJECT, TWICE, FOR_EVER])
def test_a_task_that_ran_out_of_time_is_over_in_every_mode(mode, caplog):
    outcome = condemned('{"why": "time limit", "limit": 5}', mode, headers='{"shadow": "shown"}')
    assert (outcome.state, outcome.ended, outcome.charged) == ("FAILURE", True, 1)
    assert repr(error(outcome)) == "TimeLimitExceeded(5)"
    assert caplog.messages == ["Hard time limit (5s) exceeded for shown[id-1]"]


@pytest.mark.row("F047")
@pytest.mark.parametrize(("redeliveries", "state"), [(0, None), (2, None), (3, "FAILURE")])
def test_one_that_may_run_again_in_time_goes_back_until_it_has_had_enough(redeliveries, state):
    mode = Mode(LATE, again_in_time=True).packed()
    one = claim(redeliveries=redeliveries)
    (outcome,) = verdicts(
        Estate([one], [Started(1, 1, mode, 5.0, '{"why": "time limit", "limit": 5}')]), True, "gone", 3
    )
    assert (outcome.state, outcome.ended, outcome.charged) == (state, state is not None, 1)


@pytest.mark.row("F047")
@pytest.mark.parametrize(("options", "may_run_again"), [
    ({}, False), ({"acks_on_timeout": False}, False), ({"acks_late": True}, False),
    ({"acks_late": True, "acks_on_timeout": False}, True), ({"acks_late": True, "acks_on_timeout": True}, False),
    ({"acks_late": True, "acks_on_failure_or_timeout": False}, True),
    ({"acks_late": True, "acks_on_failure_or_timeout": False, "acks_on_timeout": True}, False),
    ({"acks_late": True, "acks_on_failure": False}, False),
    ({"acks_late": True, "retry_on_worker_lost": True, "acks_on_timeout": False}, True),
])  # fmt: skip
def test_whether_it_may_is_what_acks_on_timeout_says(options, may_run_again):
    app = LocalQ("proj", store="memory:", set_as_current=False)
    assert Mode.unpacked(app.task(**options)(lambda: None).lost_mode).again_in_time is may_run_again
    named = {f"task_{name}": value for name, value in options.items()}
    app = LocalQ("proj", store="memory:", set_as_current=False, changes=named)
    assert Mode.unpacked(app.task(lambda: None).lost_mode).again_in_time is may_run_again


def test_a_task_that_was_revoked_while_it_ran_is_revoked():
    outcome = condemned('{"why": "revoked", "signal": 15}', LATE_REJECT, leads=LEADS_BY_GROUP, group_id="g")
    assert (outcome.state, outcome.ended) == ("REVOKED", True)
    assert repr(error(outcome)) == "TaskRevokedError('terminated')"
    assert b"ChordError" in outcome.group_failure


@pytest.mark.parametrize("reason", ["", "{", "3", "[]", '{"why": "boredom"}', '{"limit": 5}'])
def test_a_reason_that_is_none_changes_nothing(reason):
    with FakeClock():
        assert condemned(reason) == condemned("")
    assert type(error(condemned(reason))).__name__ == "WorkerLostError"


def test_what_was_noted_as_ended_before_its_process_was_killed_has_ended_so():
    noted = Outcome(1, 1, "id-1", "SUCCESS")
    started = [Started(1, 1, EARLY, 5.0, '{"why": "time limit", "limit": 5}')]
    assert verdicts(Estate([claim(1)], started, [noted]), True, "gone", 3) == [noted]


@pytest.mark.row("F193")
@pytest.mark.parametrize(("status", "text"), [
    (-9, "signal 9 (SIGKILL, maybe out of memory)"), (-11, "signal 11 (SIGSEGV)"), (-60, "signal 60 (unknown)"),
    (3, "exitcode 3"), (0, "exitcode 0"),
])  # fmt: skip
def test_the_end_of_a_process_is_said_in_words(status, text):
    assert exit_reason(status) == text


# -- Sweeping, with processes that really die ------------------------------------------------------


@pytest.fixture
def storage(tmp_path):
    app = LocalQ("proj", store=tmp_path / "store", set_as_current=False)
    for number in range(3):
        app.storage.put([Message(f"id-{number}", "proj.work", b"[]", checksum=1)])
    yield app.storage
    app.close()


def in_a_process(act):
    """Run `act` in a forked process that kills itself afterwards; return once it is dead and reaped."""

    def live():
        kept = act()
        os.kill(os.getpid(), signal.SIGKILL)
        return kept

    pid = forked(live)
    assert ended(pid) == -signal.SIGKILL
    return pid


def take(storage, about=None, begin=None, mode=EARLY, ended=()):
    owner = storage.enlist({"kind": "child", **(about or {})})
    claims = storage.settle((), Want(owner.name, ("celery",), 3, 0.0)).claims
    for at in ended:
        owner.begin(claims[at], mode)
        owner.end(Outcome(claims[at].seq, claims[at].token, claims[at].message.id, "SUCCESS", result=b"1",
                          content_type="application/json", checksum=1))  # fmt: skip
    if begin is not None:
        owner.begin(claims[begin], mode)
    return owner


def places(storage):
    found = storage.records([f"id-{number}" for number in range(3)])
    return [(found[f"id-{n}"].place, found[f"id-{n}"].state) for n in range(3)]


def test_the_claims_of_a_dead_process_go_back_and_its_traces_vanish(storage):
    in_a_process(lambda: take(storage))
    assert sweep(storage) == 3
    assert places(storage) == [("ready", "PENDING")] * 3
    assert storage.owners() == []


def test_ended_started_and_reserved_are_told_apart(storage):
    in_a_process(lambda: take(storage, ended=(0,), begin=1))
    sweep(storage)
    assert places(storage) == [("ended", "SUCCESS"), ("ended", "FAILURE"), ("ready", "PENDING")]


def test_whoever_sweeps_retries_a_task_that_it_knows_nothing_of(storage):
    with FakeClock() as clock:
        in_a_process(lambda: take(storage, begin=0, mode=TWICE))
        sweep(storage)
        assert places(storage) == [("waiting", "RETRY"), ("ready", "PENDING"), ("ready", "PENDING")]
        assert storage.due(2) == [clock.now() + 60]
        clock.advance(60)
        (again, *_) = storage.settle((), Want("me", ("celery",), 3, clock.now())).claims
    assert (again.message.id, again.message.retries, again.redeliveries) == ("id-0", 1, 1)


def test_sweeping_again_does_nothing(storage):
    in_a_process(lambda: take(storage, begin=0, mode=LATE_REJECT))
    assert sweep(storage) == 3
    assert sweep(storage) == 0


@pytest.mark.row("F283", "R5")
def test_what_goes_back_keeps_its_place_in_the_order_and_its_charge(storage):
    in_a_process(lambda: take(storage, begin=0, mode=LATE_REJECT))
    sweep(storage)
    claims = storage.settle((), Want("me", ("celery",), 3, 0.0)).claims
    assert [c.message.id for c in claims] == ["id-0", "id-1", "id-2"]
    assert [c.redeliveries for c in claims] == [1, 0, 0]


def test_the_reason_of_a_death_is_told_if_it_is_known(storage):
    pid = in_a_process(lambda: take(storage, begin=0))
    sweep(storage, reasons={pid: "signal 9 (SIGKILL)"})
    record = storage.records(["id-0"])["id-0"]
    assert "signal 9" in str(exception_from(decode(record.result, record.content_type, ("json",))))


def test_a_round_leaves_its_own_worker_a_moment_to_say_of_what_a_child_died(storage):
    worker = identity()
    pid = in_a_process(lambda: take(storage, {"parent": worker}, begin=0))
    seen = set()
    assert sweep(storage, worker, {}, unexplained=seen) == 0
    assert sweep(storage, worker, {pid: "signal 11 (SIGSEGV)"}, unexplained=seen) == 3
    record = storage.records(["id-0"])["id-0"]
    assert "signal 11" in str(exception_from(decode(record.result, record.content_type, ("json",))))


def test_a_death_that_nobody_explains_is_not_waited_for_twice(storage):
    worker = identity()
    in_a_process(lambda: take(storage, {"parent": worker}, begin=0))
    seen = set()
    assert sweep(storage, worker, {}, unexplained=seen) == 0
    assert sweep(storage, worker, {}, unexplained=seen) == 3


def test_the_child_of_a_dead_worker_needs_no_explanation(storage):
    in_a_process(lambda: take(storage, {"parent": {"pid": -1}}, begin=0))
    assert sweep(storage, identity(), {}, unexplained=set()) == 3


@pytest.mark.row("R4")
def test_a_live_process_is_never_robbed(storage):
    line = Line()

    def live():
        kept = take(storage, begin=0)
        line.say()
        signal.pause()
        return kept

    pid = forked(live)
    line.hear()
    try:
        assert sweep(storage) == 0
        # A process that is stopped is slow, not dead.
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        assert sweep(storage) == 0
    finally:
        os.kill(pid, signal.SIGKILL)
    # Dead, but not reaped yet: dead all the same.
    wait_until(lambda: sweep(storage) == 3)
    os.waitpid(pid, 0)


def test_a_dead_child_of_a_live_worker_is_left_to_that_worker(storage):
    worker = identity()
    in_a_process(lambda: take(storage, {"parent": worker}))
    assert sweep(storage, mine={"pid": -1}) == 0
    assert sweep(storage) == 0
    assert sweep(storage, mine=worker) == 3


@pytest.mark.row("F289", "R18")
def test_late_tasks_of_a_worker_that_is_stopped_by_force_go_back(storage):
    worker = identity()
    in_a_process(lambda: take(storage, {"parent": worker}, begin=0, mode=LATE))
    sweep(storage, mine=worker, whole_worker=True)
    assert places(storage)[0] == ("ready", "PENDING")


def test_children_of_a_worker_that_is_stopped_by_force_need_not_be_explained_one_by_one(storage):
    worker = identity()
    in_a_process(lambda: take(storage, {"parent": worker}, begin=0))
    sweep(storage, worker, {}, whole_worker=True)
    record = storage.records(["id-0"])["id-0"]
    text = str(exception_from(decode(record.result, record.content_type, ("json",))))
    assert text.startswith("Worker exited prematurely: its worker was stopped at once; run it again with")


def test_many_may_sweep_at_once_and_each_claim_is_freed_once(storage):
    in_a_process(lambda: take(storage, begin=0, mode=LATE_REJECT))
    line = Line()
    pids = [forked(lambda: line.say(str(sweep(storage)))) for _ in range(4)]
    assert [ended(pid) for pid in pids] == [0] * 4
    assert sum(map(int, line.hear())) == 3
    (first, *_) = storage.settle((), Want("me", ("celery",), 3, 0.0)).claims
    assert first.redeliveries == 1


@pytest.mark.parametrize("mode", [LATE, LATE_REJECT])
def test_a_worker_that_is_stopped_at_once_says_nothing_against_its_tasks(mode):
    """However often that is: it is counted, and never too much."""
    (found,) = verdicts(Estate([claim(1)._replace(redeliveries=9)], [Started(1, 1, mode)]), False, STOPPED, 3)
    assert (found.state, found.ended, found.charged) == (None, False, 1)


@pytest.mark.parametrize(("mode", "state", "charged"), [
    (EARLY, "FAILURE", 1), (LATE, "FAILURE", 1), (LATE_REJECT, None, 1), (Mode(RETRY, 3, 1.0).packed(), None, 1),
])  # fmt: skip
def test_who_ran_beside_a_task_that_was_ended_did_nothing_wrong(mode, state, charged):
    started = [Started(1, 1, EARLY, 0.0, '{"why": "time limit", "limit": 1}', 1), Started(2, 1, mode, place=2)]
    often = claim(2)._replace(redeliveries=3)
    culprit, other = verdicts(Estate([claim(1), often], started), True, "signal 9 (SIGKILL)", 3)
    assert culprit.state == "FAILURE"
    assert (other.state, other.charged) == (state, charged)
    if state:
        assert b"killed to end another task" in other.result
