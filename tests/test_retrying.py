"""Retries and what else ends an attempt on purpose, in each of the ways in which tasks run."""

from __future__ import annotations

import pytest
from waiting import wait_until

from localq import LocalQ, chain
from localq.exceptions import Ignore, MaxRetriesExceededError, Reject, Retry
from localq.executor import Executor
from localq.message import Claim, Want
from localq.recovery import sweep
from localq.testing.clock import FakeClock
from localq.testing.worker import start_worker

LIMIT_S = 30


class Flaky(Exception): ...


class Hopeless(Flaky): ...


@pytest.mark.row("F150", "F156")
def test_a_task_runs_again_under_its_id_until_it_returns(app, running):
    @app.task(bind=True)
    def work(self, x):
        if self.request.retries < 3:
            raise self.retry(exc=Flaky("not yet"), countdown=0)
        return [x, self.request.id, self.request.retries]

    with running():
        result = work.delay(7)
        assert result.get(timeout=LIMIT_S) == [7, result.id, 3]
    assert result.state == "SUCCESS"


@pytest.mark.row("F151")
def test_without_attempts_left_it_fails_with_the_exception_given(app, running):
    @app.task(bind=True, max_retries=2, default_retry_delay=0)
    def given(self):
        try:
            raise KeyError("inner")
        except KeyError:
            raise self.retry(exc=Flaky("why")) from None

    @app.task(bind=True, max_retries=2, default_retry_delay=0)
    def without(self, *args, **kwargs):
        self.retry()

    with running():
        with pytest.raises(Flaky, match="why"):
            given.delay().get(timeout=LIMIT_S)
        sent = without.delay(1, x="y")
        with pytest.raises(MaxRetriesExceededError) as failure:
            sent.get(timeout=LIMIT_S)
    assert str(failure.value) == f"Can't retry {without.name}[{sent.id}] args:(1,) kwargs:{{'x': 'y'}}"


@pytest.mark.row("F151")
def test_the_error_of_too_many_retries_has_the_arguments_and_hides_what_the_call_hides(app):
    @app.task(bind=True, max_retries=0)
    def work(self, *args, **new):
        try:
            self.retry(**({"args": (9,)} if new else {}))
        except MaxRetriesExceededError as exc:
            return [str(exc).partition(" args")[2], exc.task_args, exc.task_kwargs]

    assert work.apply((1,)).get() == [":(1,) kwargs:{}", [1], {}]
    assert work.apply((1,), argsrepr="(***)").get()[0] == ":(***) kwargs:{}"
    assert work.apply((1,), {"new": True}).get()[1:] == [[9], {"new": True}]


@pytest.mark.row("F150")
def test_called_as_a_function_it_raises_at_once(app):
    @app.task(bind=True)
    def work(self, exc=None, **options):
        self.retry(exc=exc, **options)

    with pytest.raises(Flaky, match="mine"):
        work(Flaky("mine"))
    with pytest.raises(Retry, match="Task can be retried"):
        work()
    with pytest.raises(Retry, match="Task can be retried"):
        work(throw=False)


@pytest.mark.row("F152")
@pytest.mark.parametrize(("given", "after_s", "words"), [
    ({}, 180, "in 180s"), ({"countdown": 0}, 0, "in 0s"), ({"countdown": 2.5}, 2.5, "in 2.5s"),
    ({"eta": "2023-11-14T22:15:00+00:00"}, 100, "at 2023-11-14T22:15:00+00:00"),
    ({"eta": "2023-11-14T22:15:00+00:00", "countdown": 7}, 100, "at 2023-11-14T22:15:00+00:00"),
], ids=str)  # fmt: skip
def test_the_next_attempt_comes_when_the_retry_says(app, given, after_s, words):
    @app.task(bind=True, default_retry_delay=180)
    def work(self):
        try:
            self.retry(**given)
        except Retry as exc:
            return [exc.sig.visible_at, exc.humanize()]

    with FakeClock(1_700_000_000.0):
        assert work.apply().get() == [1_700_000_000.0 + after_s, words]


@pytest.mark.row("F153", "X7")
def test_a_retry_that_does_not_throw_is_made_when_the_attempt_ends_however_it_ends(app, running, tmp_path):
    after = tmp_path / "after"

    @app.task(bind=True)
    def work(self, end):
        if self.request.retries:
            return "second"
        signal = self.retry(countdown=0, throw=False)
        with after.open("a") as file:
            file.write(f"{type(signal).__name__} {end}\n")
        if end == "fail":
            raise Flaky
        if end == "ignore":
            raise Ignore
        if end == "raise it":
            raise signal
        return "first"

    with running():
        ends = ("return", "fail", "ignore", "raise it")
        assert [work.delay(end).get(timeout=LIMIT_S) for end in ends] == ["second"] * 4
    assert after.read_text().splitlines() == [f"Retry {end}" for end in ends]


@pytest.mark.row("F154")
def test_other_arguments_for_the_next_attempt(app, running):
    @app.task(bind=True)
    def work(self, a, b=2, *rest, **kwargs):
        if not self.request.retries:
            raise self.retry(countdown=0, **kwargs)
        return [a, b, list(rest), kwargs]

    with running():
        assert work.delay(1, args=[7]).get(timeout=LIMIT_S) == [7, 2, [], {"args": [7]}]
        assert work.delay(1, args=[7, 8, 9]).get(timeout=LIMIT_S) == [7, 8, [9], {"args": [7, 8, 9]}]
        assert work.delay(1, kwargs={"b": 5}).get(timeout=LIMIT_S) == [1, 5, [], {}]
        assert work.delay(1, 3, args=[7], kwargs={"x": 5}).get(timeout=LIMIT_S) == [7, 2, [], {"x": 5}]


@pytest.mark.row("F155")
@pytest.mark.parametrize("given", [{"args": (object(),)}, {"args": (1, 2, 3)}], ids=["unwritable", "too many"])
def test_a_retry_that_cannot_be_written_rejects_the_message_and_the_task_fails(app, running, given):
    @app.task(bind=True)
    def work(self):
        self.retry(countdown=0, **given)

    with running():
        result = work.delay()
        with pytest.raises(Reject) as failure:
            result.get(timeout=LIMIT_S)
    assert result.state == "FAILURE"
    assert ("type object" in str(failure.value)) or ("takes 0 positional arguments" in str(failure.value))


@pytest.mark.row("F151")
def test_the_class_of_an_exception_stands_for_one_without_arguments(app, running):
    @app.task(bind=True, max_retries=1)
    def work(self):
        raise self.retry(exc=ValueError, countdown=0)

    with running():
        failed = work.delay().get(timeout=LIMIT_S, propagate=False)
    assert (type(failed), failed.args) == (ValueError, ())
    with pytest.raises(ValueError, match=r"^$"):
        work()


@pytest.mark.row("F151")
@pytest.mark.parametrize("kind", [UnicodeDecodeError, int])
def test_a_class_of_which_none_can_be_made_is_an_error_that_says_so(app, running, kind):
    @app.task(bind=True)
    def work(self):
        raise self.retry(exc=kind, countdown=0)

    with running(), pytest.raises(TypeError, match=rf"retry\(exc={kind.__name__}\).*an exception"):
        work.delay().get(timeout=LIMIT_S)


@pytest.mark.row("F150")
@pytest.mark.parametrize("name", ["task_id", "chord", "chain", "group_id", "link", "retries"])
def test_a_retry_is_the_same_call_and_says_so(app, name):
    @app.task(bind=True)
    def work(self):
        self.retry(**{name: "x"})

    with pytest.raises(TypeError, match=f"retry\\(\\) takes no {name}: the next attempt is the same call"):
        work.apply(throw=True)


@pytest.mark.row("F150")
def test_what_the_call_said_holds_for_the_next_attempt_until_it_says_otherwise(app, running):
    @app.task(bind=True)
    def work(self, **changes):
        if not self.request.retries:
            raise self.retry(countdown=0, kwargs={}, **changes)
        request = self.request
        return [request.delivery_info["priority"], request.headers, request.shadow, bool(request.expires)]

    call = {"priority": 3, "headers": {"h": 1}, "shadow": "shade", "expires": 60}
    with running():
        assert work.apply_async(**call).get(timeout=LIMIT_S) == [3, {"h": 1}, "shade", True]
        changed = work.apply_async((), {"priority": 9, "headers": {"h": 2}, "shadow": "other"}, **call)
        assert changed.get(timeout=LIMIT_S) == [9, {"h": 2}, "other", True]


@pytest.mark.row("F150")
def test_a_chain_goes_on_when_its_step_has_returned_at_last(app, running):
    @app.task(bind=True)
    def first(self):
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return self.request.retries

    @app.task
    def add(x, y):
        return x + y

    with running():
        assert chain(first.s(), add.s(10))().get(timeout=LIMIT_S) == 12


@pytest.mark.row("F157", "F056")
def test_exceptions_are_retried_by_themselves(app, running, tmp_path):
    ran = tmp_path / "ran"

    @app.task(autoretry_for=(Flaky,), dont_autoretry_for=(Hopeless,), retry_kwargs={"max_retries": 2, "countdown": 0})
    def work(name):
        with ran.open("a") as file:
            file.write(f"{name}\n")
        raise {"flaky": Flaky, "hopeless": Hopeless, "key": KeyError, "ignore": Ignore}[name](name)

    with running():
        for name, kind in (("flaky", Flaky), ("hopeless", Hopeless), ("key", KeyError)):
            with pytest.raises(kind):
                work.delay(name).get(timeout=LIMIT_S)
        work.delay("ignore")
        wait_until(lambda: "ignore" in ran.read_text())
    lines = ran.read_text().split()
    assert {name: lines.count(name) for name in lines} == {"flaky": 3, "hopeless": 1, "key": 1, "ignore": 1}


@pytest.mark.row("F156")
def test_between_two_attempts_the_state_is_retry_with_the_exception_and_its_traceback(app):
    @app.task(bind=True, track_started=True)
    def work(self):
        raise self.retry(exc=Flaky("later"), countdown=1000)

    with start_worker(app):
        result = work.delay()
        wait_until(lambda: result.state == "RETRY")
    assert isinstance(result.result, Flaky)
    assert "Retry in 1000s: Flaky('later')" in result.traceback
    assert not result.ready()


@pytest.mark.row("X7", "R6")
def test_the_state_and_the_next_attempt_are_written_together_or_not_at_all(app, tmp_path):
    seen = []

    @app.task(bind=True)
    def work(self):
        raise self.retry(exc=Flaky(), countdown=0)

    result = work.delay()
    owner = app.storage.enlist({"kind": "test"})
    (claim,) = app.storage.settle((), Want(owner.name, ("celery",), 9, 1e12)).claims
    outcome = Executor(app.conf).execute(work, claim)
    other = LocalQ("other", store=tmp_path / "store", set_as_current=False)
    for _ in range(2):
        record = other.storage.records([result.id])[result.id]
        seen.append((record.state, record.retries, record.place))
        stale = app.storage.settle([outcome]).stale
    other.close()
    # Nothing is sent before the end of the attempt; after it there is one message, and a second end is refused.
    assert seen == [("PENDING", 0, "held"), ("RETRY", 1, "ready")]
    assert stale == [outcome]
    again = app.storage.settle((), Want(owner.name, ("celery",), 9, 1e12)).claims
    assert [(each.message.id, each.message.retries) for each in again] == [(result.id, 1)]
    owner.close()


# -- Ignore and Reject -----------------------------------------------------------------------------


@pytest.mark.row("F188")
def test_what_is_ignored_keeps_the_state_it_had(app, running):
    @app.task(bind=True)
    def work(self, state):
        if state:
            self.update_state(state=state, meta={"by": "hand"})
        raise Ignore

    @app.task
    def done():
        return True

    with running():
        results = [work.delay(state) for state in (None, "HALF", "SUCCESS")]
        assert done.delay().get(timeout=LIMIT_S)
        if running.mode == "eager":  # nobody else can have looked
            assert [result.state for result in results] == ["IGNORED"] * 3
            return
        wait_until(lambda: results[-1].state == "SUCCESS")
        wait_until(lambda: all(app.storage.records([r.id])[r.id].place == "ended" for r in results))
    assert [(r.state, r.result) for r in results] == [
        ("PENDING", None), ("HALF", {"by": "hand"}), ("SUCCESS", {"by": "hand"})
    ]  # fmt: skip


@pytest.mark.row("F188")
def test_a_chain_goes_no_further_than_what_is_ignored(app):
    ran = []

    @app.task
    def leave():
        raise Ignore

    @app.task
    def after():
        ran.append(1)

    @app.task
    def done():
        return True

    with start_worker(app):
        result = chain(leave.si(), after.si())()
        assert done.delay().get(timeout=LIMIT_S)
        wait_until(lambda: app.storage.records([result.parent.id])[result.parent.id].place == "ended")
    assert (ran, result.state) == ([], "PENDING")


@pytest.mark.row("F189")
def test_a_message_that_is_put_back_comes_again_and_says_so(app, running):
    @app.task(bind=True, acks_late=True)
    def requeues(self):
        info = self.request.delivery_info
        if not info["redelivered"]:
            raise Reject("once", requeue=True)
        return [info["redelivered"], self.request.redelivered, self.request.retries]

    with running():
        result = requeues.delay()
        if running.mode == "eager":  # there is no queue to go back to
            assert (result.state, result.get()) == ("REJECTED", None)
        else:
            assert result.get(timeout=LIMIT_S) == [True, 1, 0]


@pytest.mark.row("F189")
def test_a_task_that_always_puts_back_keeps_no_other_waiting_and_is_no_crash(app):
    ran = []

    @app.task(acks_late=True)
    def endless():
        ran.append(1)
        raise Reject("never", requeue=True)

    @app.task
    def add(x, y):
        return x + y

    with start_worker(app):
        sent = endless.delay()
        wait_until(lambda: len(ran) > 6)  # more often than task_max_redeliveries
        assert add.delay(1, 1).get(timeout=LIMIT_S) == 2
    record = app.storage.records([sent.id], whole=True)[sent.id]
    assert (record.state, record.redeliveries, record.retries) == ("PENDING", 0, 0)


@pytest.mark.row("F189")
def test_the_pauses_of_a_task_that_always_puts_back_grow_to_a_second(app):
    @app.task(acks_late=True)
    def endless():
        raise Reject("never", requeue=True)

    executor, pauses = Executor(app.conf), []
    endless.delay()
    with FakeClock(2_000_000_000.0) as clock:
        owner = app.storage.enlist({"kind": "test"})
        (claim,) = app.storage.settle((), Want(owner.name, ("celery",), 1, clock.now())).claims
        for _ in range(10):
            again = executor.execute(endless, claim).again
            pauses.append(round((again.visible_at or clock.now()) - clock.now(), 2))
            claim = Claim(claim.seq, claim.token, 0, again)
        owner.close()
    assert pauses == [0, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1, 1, 1]


@pytest.mark.row("F189", "X12")
@pytest.mark.parametrize("options", [{}, {"acks_late": True}], ids=str)
def test_a_message_that_is_refused_is_a_failure(app, running, options):
    @app.task(**options)
    def rejects():
        raise Reject("no", requeue=False)

    with running():
        result = rejects.delay()
        with pytest.raises(Reject):
            result.get(timeout=LIMIT_S)
    assert (result.state, result.result.args) == ("FAILURE", ("no", False))


@pytest.mark.row("F189")
def test_without_late_acknowledgement_nothing_can_be_put_back_so_it_fails_and_is_not_lost(app, running):
    @app.task
    def rejects():
        raise Reject("no", requeue=True)

    with running():
        result = rejects.delay()
        with pytest.raises(Reject):
            result.get(timeout=LIMIT_S)
    assert result.state == "FAILURE"


# -- A success is once -----------------------------------------------------------------------------


@pytest.mark.row("N46")
@pytest.mark.parametrize("setting", [False, True])
def test_a_task_that_has_succeeded_cannot_be_delivered_again(app, setting, recwarn):
    app.conf.worker_deduplicate_successful_tasks = setting
    ran = []

    @app.task(acks_late=True)
    def once():
        ran.append(1)
        return "done"

    result = once.delay()
    owner = app.storage.enlist({"kind": "test"})
    (claim,) = app.storage.settle((), Want(owner.name, ("celery",), 9, 1e12)).claims
    owner.begin(claim, once.lost_mode)
    outcome = Executor(app.conf).execute(once, claim)
    app.storage.settle([outcome])
    # Its worker dies right after the one transaction that wrote the success and took the message away.
    owner.close()
    sweep(app.storage)
    heir = app.storage.enlist({"kind": "test"})
    assert app.storage.settle([outcome], Want(heir.name, ("celery",), 9, 1e12)).claims == []
    heir.close()
    assert (result.get(timeout=0), ran) == ("done", [1])
    assert list(recwarn) == []
