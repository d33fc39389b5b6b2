"""What users say of time: countdown, eta and expires, as a call takes them and as a task sees them."""

from __future__ import annotations

import logging
import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from working import claims_of, work_off

from localq import LocalQ, chain, chord, clock, group, moments
from localq.exceptions import ImproperlyConfigured, MaxRetriesExceededError, TaskRevokedError
from localq.executor import Executor
from localq.message import Want
from localq.testing.clock import FakeClock

NOW = 1_700_000_000.0
THEN = datetime.fromtimestamp(NOW + 60, UTC)


@pytest.fixture
def app():
    made = LocalQ("proj", store="memory:")
    yield made
    made.close()


@pytest.fixture
def fake():
    with FakeClock(NOW) as fake:
        yield fake


@pytest.fixture
def noop(app):
    @app.task(name="proj.noop")
    def noop(*args):
        return list(args)

    return noop


@pytest.fixture
def sent(app, noop, fake):
    """Send a call with these options; returns its message."""

    def send(**options):
        noop.apply_async((), **options)
        claims = app.storage.settle((), Want("reader", ("celery",), 100, clock.now() + 1e12)).claims
        return claims[-1].message

    return send


# -- countdown -------------------------------------------------------------------------------------


@pytest.mark.row("F097")
@pytest.mark.parametrize("countdown", [60, 60.0, Decimal(60), Fraction(60), timedelta(minutes=1)], ids=repr)
def test_a_countdown_is_seconds_from_now(sent, countdown):
    assert sent(countdown=countdown).visible_at == NOW + 60


@pytest.mark.row("F097")
@pytest.mark.parametrize("countdown", [None, 0, 0.0, -0.0, timedelta()], ids=repr)
def test_no_countdown_is_at_once(app, noop, fake, countdown):
    result = noop.apply_async((), countdown=countdown)
    assert work_off(app) == [result.id]


@pytest.mark.row("F097")
@pytest.mark.parametrize("countdown", [-1, -0.5, -2147483648], ids=repr)
def test_a_countdown_that_is_over_is_at_once(app, noop, fake, countdown):
    result = noop.apply_async((), countdown=countdown)
    assert work_off(app) == [result.id]


@pytest.mark.row("F097")
@pytest.mark.parametrize("countdown", [-2147483649, -1e300, 10**400, 1e15], ids=str)
def test_a_countdown_out_of_range_is_an_error_and_nothing_is_sent(app, noop, countdown):
    with pytest.raises(ValueError, match="countdown is out of range: "):
        noop.apply_async((), countdown=countdown)
    assert app.storage.counts() == []


@pytest.mark.row("F097")
@pytest.mark.parametrize("countdown", [math.inf, -math.inf, math.nan], ids=str)
def test_what_is_not_finite_is_no_time_and_nothing_is_sent(app, noop, countdown):
    with pytest.raises(ValueError, match=r"countdown=\S+ is no time: give a finite number of seconds"):
        noop.apply_async((), countdown=countdown)
    assert app.storage.counts() == []


@pytest.mark.row("F097")
@pytest.mark.parametrize("countdown", [True, False, "5", "", [], {}, object(), THEN])
def test_what_is_no_number_of_seconds_is_an_error_and_nothing_is_sent(app, noop, countdown):
    with pytest.raises(TypeError, match=r"countdown=.* is no time: give seconds"):
        noop.apply_async((), countdown=countdown)
    assert app.storage.counts() == []


@pytest.mark.row("F097", "F098")
def test_of_a_countdown_and_an_eta_the_countdown_wins(sent):
    assert sent(countdown=5, eta=THEN).visible_at == NOW + 5
    assert sent(countdown=0, eta=THEN).visible_at == NOW + 60


# -- eta -------------------------------------------------------------------------------------------


@pytest.mark.row("F098")
@pytest.mark.parametrize("eta", [
    THEN, THEN.astimezone(timezone(timedelta(hours=5, minutes=30))), THEN.astimezone(ZoneInfo("Europe/Oslo")),
    THEN.isoformat(), THEN.isoformat().replace("+00:00", "Z"), "2023-11-15T03:44:20+05:30", "2023-11-14 22:14:20Z",
    THEN.replace(tzinfo=None), "2023-11-14T22:14:20", "20231114T221420Z", timedelta(minutes=1),
], ids=str)  # fmt: skip
def test_an_eta_is_a_datetime_or_iso_text(sent, eta):
    assert sent(eta=eta).visible_at == NOW + 60


@pytest.mark.row("F098")
def test_an_eta_that_is_a_date_is_its_midnight(sent):
    assert sent(eta="2030-01-31").visible_at == datetime(2030, 1, 31, tzinfo=UTC).timestamp()


@pytest.mark.row("F098")
@pytest.mark.parametrize("eta", [THEN - timedelta(minutes=1), "2001-01-01", "0001-01-01T00:00:00+14:00"], ids=str)
def test_a_past_eta_is_at_once(app, noop, fake, eta):
    result = noop.apply_async((), eta=eta)
    assert work_off(app) == [result.id]


@pytest.mark.row("F098")
def test_a_task_starts_at_its_eta_and_not_before(app, noop, fake):
    result = noop.apply_async((), eta=THEN)
    fake.advance(59.75)
    assert work_off(app) == []
    fake.advance(0.25)
    assert work_off(app) == [result.id]


@pytest.mark.row("F098")
@pytest.mark.parametrize("eta", ["soon", "", "99999-01-01", "2030-02-30", "2030-01-01T25:00", "12:00"])
def test_text_that_is_no_time_is_an_error_and_nothing_is_sent(app, noop, eta):
    with pytest.raises(ValueError, match=f"eta='{eta}' is no ISO time, such as "):
        noop.apply_async((), eta=eta)
    assert app.storage.counts() == []


@pytest.mark.row("F098")
@pytest.mark.parametrize("eta", [True, 60, NOW + 60, math.nan, [], date(2030, 1, 1), b"2030-01-01"], ids=repr)
def test_what_is_no_datetime_is_an_error_that_tells_of_countdown(app, noop, eta):
    with pytest.raises(TypeError, match=r"eta=.* is no time: give a datetime or ISO text; .*countdown"):
        noop.apply_async((), eta=eta)
    assert app.storage.counts() == []


@pytest.mark.row("F098")
def test_the_last_moment_there_is_can_be_said_and_none_behind_it(sent, app, noop):
    assert moments.LAST == sent(eta="9999-12-31T23:59:59Z").visible_at
    behind = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(hours=-2)))
    for eta in (behind, timedelta.max):
        with pytest.raises(ValueError, match="eta is out of range"):
            noop.apply_async((), eta=eta)


@pytest.mark.row("F019", "F098")
@pytest.mark.parametrize(("settings", "naive", "utc"), [
    ({}, "2030-07-01T12:00", "2030-07-01T12:00"),
    ({"timezone": "UTC"}, "2030-07-01T12:00", "2030-07-01T12:00"),
    ({"timezone": "Europe/Oslo"}, "2030-07-01T12:00", "2030-07-01T10:00"),
    ({"timezone": "Europe/Oslo"}, "2030-01-01T12:00", "2030-01-01T11:00"),
    ({"timezone": "Europe/Oslo", "enable_utc": False}, "2030-07-01T12:00", "2030-07-01T10:00"),
    ({"timezone": "Asia/Kolkata"}, "2030-01-01", "2029-12-31T18:30"),
    # What the clocks show twice is the first time, and what they skip is after they were put forward.
    ({"timezone": "Europe/Oslo"}, "2030-10-27T02:30", "2030-10-27T00:30"),
    ({"timezone": "Europe/Oslo"}, "2030-03-31T02:30", "2030-03-31T01:30"),
], ids=str)  # fmt: skip
def test_a_time_without_a_zone_is_in_the_apps(app, sent, settings, naive, utc):
    app.conf.update(settings)
    expected = datetime.fromisoformat(utc).replace(tzinfo=UTC).timestamp()
    for when in (naive, datetime.fromisoformat(naive)):
        message = sent(eta=when, expires=when)
        assert message.visible_at == message.expires_at == expected


@pytest.mark.row("F019", "F098")
def test_the_second_time_that_clocks_show_an_hour_can_be_said(app, sent):
    app.conf.timezone = "Europe/Oslo"
    first = datetime(2030, 10, 27, 2, 30)
    assert sent(eta=first.replace(fold=1)).visible_at == sent(eta=first).visible_at + 3600


@pytest.mark.row("F019", "F098")
def test_without_utc_and_without_a_zone_it_is_this_machines(app, sent):
    app.conf.enable_utc = False
    naive = datetime(2030, 7, 1, 12)
    assert sent(eta=naive).visible_at == naive.astimezone().timestamp()


@pytest.mark.row("F019")
def test_a_zone_that_nobody_knows_is_an_error_that_names_the_setting(app, noop):
    with pytest.raises(ImproperlyConfigured, match=r"timezone = 'Mars/Base'"):
        app.conf.timezone = "Mars/Base"
        noop.apply_async((), eta="2030-01-01")
    assert app.storage.counts() == []


@pytest.mark.row("F019")
def test_a_zone_may_be_an_object(app):
    zone = ZoneInfo("Europe/Oslo")
    assert moments.zone_of(SimpleNamespace(timezone=zone, enable_utc=True)) is zone


@pytest.mark.row("F098")
@given(st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(9998, 1, 1), timezones=st.timezones()))
def test_any_aware_datetime_is_the_same_moment_as_its_text(when):
    assert moments.moment("eta", when, 0.0, UTC) == when.timestamp()
    assert moments.moment("eta", when.isoformat(), 0.0, UTC) == when.timestamp()


# -- expires ---------------------------------------------------------------------------------------


@pytest.mark.row("F099", "X13")
@pytest.mark.parametrize("expires", [60, 60.0, Decimal(60), timedelta(minutes=1), THEN, THEN.isoformat()], ids=repr)
def test_an_expiry_is_seconds_from_publishing_or_a_moment(app, noop, fake, expires):
    result, other = (noop.apply_async((), expires=expires) for _ in range(2))
    fake.advance(59.75)
    assert claims_of(app, "me")[0].message.id == result.id
    fake.advance(0.25)
    work_off(app)
    assert other.state == "REVOKED"


@pytest.mark.row("F099")
def test_what_expired_is_not_run_and_says_so(app, fake):
    ran = []

    @app.task
    def work():
        ran.append(1)

    result = work.apply_async(expires=1)
    fake.advance(2)
    work_off(app)
    assert (result.state, ran) == ("REVOKED", [])
    with pytest.raises(TaskRevokedError, match=r"^expired$"):
        result.get(timeout=0)


@pytest.mark.row("F099")
@pytest.mark.parametrize("expires", [-5, timedelta(seconds=-5), "2001-01-01", THEN - timedelta(days=1)], ids=str)
def test_an_expiry_that_is_past_warns_and_the_task_is_not_run(app, noop, fake, caplog, expires):
    with caplog.at_level(logging.WARNING, "localq"):
        result = noop.apply_async((), expires=expires)
    assert "this call is sent to end as REVOKED" in caplog.text
    work_off(app)
    assert result.state == "REVOKED"


@pytest.mark.row("F099")
def test_an_expiry_of_zero_seconds_is_at_once(app, noop, fake, caplog):
    result = noop.apply_async((), expires=0)
    work_off(app)
    assert (result.state, caplog.text) == ("REVOKED", "")


@pytest.mark.row("F099")
@pytest.mark.parametrize(("expires", "error"), [
    (True, TypeError), ([], TypeError), (date(2030, 1, 1), TypeError), ("soon", ValueError), ("60", ValueError),
    (math.nan, ValueError), (math.inf, ValueError), (-2147483649, ValueError), (1e15, ValueError),
], ids=str)  # fmt: skip
def test_what_is_no_expiry_is_an_error_and_nothing_is_sent(app, noop, expires, error):
    with pytest.raises(error, match="expires"):
        noop.apply_async((), expires=expires)
    assert app.storage.counts() == []


@pytest.mark.row("F099")
def test_a_tasks_own_expiry_counts_unless_the_call_has_one(app, fake):
    @app.task(expires=30)
    def short():
        """Is not worth much later."""

    own, calls, none = short.delay(), short.apply_async(expires=90), short.apply_async(expires=None)
    fake.advance(60)
    work_off(app)
    assert (own.state, calls.state, none.state) == ("REVOKED", "SUCCESS", "SUCCESS")


@pytest.mark.row("F098", "F099")
def test_what_expires_before_its_eta_is_never_run(app, noop, fake):
    result = noop.apply_async((), countdown=60, expires=30)
    fake.advance(31)
    assert (work_off(app), result.state) == ([], "PENDING")
    fake.advance(29)
    work_off(app)
    assert result.state == "REVOKED"


@pytest.mark.row("F098", "F099")
def test_what_expires_after_its_eta_is_run_in_between(app, noop, fake):
    result = noop.apply_async((), countdown=30, expires=60)
    fake.advance(59)
    work_off(app)
    assert result.state == "SUCCESS"


@pytest.mark.row("F099")
def test_those_who_waited_for_what_expired_fail_with_it(app, noop, fake):
    result = chain(noop.s().set(expires=1), noop.s()).apply_async()
    fake.advance(2)
    work_off(app)
    assert (result.parent.state, result.state) == ("REVOKED", "FAILURE")
    with pytest.raises(TaskRevokedError):
        result.get(timeout=0)


# -- In workflows ----------------------------------------------------------------------------------


@pytest.mark.row("F097", "F099")
def test_a_chains_step_counts_from_the_end_of_the_one_before(app, noop, fake):
    first, second = noop.s(1).set(countdown=100), noop.s(2).set(countdown=10, expires=20)
    result = chain(first, second)()
    fake.advance(100)
    assert work_off(app) == [result.parent.id]
    fake.advance(9.75)
    assert work_off(app) == []
    fake.advance(0.25)
    assert work_off(app) == [result.id]
    assert result.state == "SUCCESS"


@pytest.mark.row("F099")
def test_a_chains_step_that_comes_too_late_after_the_one_before_expires(app, noop, fake):
    result = chain(noop.s(1), noop.s(2).set(expires=20))()
    fake.advance(100)
    owner = app.storage.enlist({}, journal=False)
    (claim,) = claims_of(app, owner.name)
    app.storage.settle([Executor(app.conf).execute(noop, claim)])
    fake.advance(20)
    work_off(app)
    assert result.state == "REVOKED"


@pytest.mark.row("F098")
def test_a_chains_step_with_an_eta_waits_for_that(app, noop, fake):
    result = chain(noop.s(1), noop.s(2).set(eta=THEN))()
    work_off(app)
    fake.advance(59)
    assert work_off(app) == []
    fake.advance(1)
    assert work_off(app) == [result.id]


@pytest.mark.row("F097")
def test_a_chords_body_counts_from_the_end_of_its_header(app, noop, fake):
    result = chord([noop.s(1), noop.s(2).set(countdown=50)], noop.s().set(countdown=timedelta(seconds=10)))()
    work_off(app)
    fake.advance(50)
    assert len(work_off(app)) == 1
    fake.advance(9)
    assert work_off(app) == []
    fake.advance(1)
    assert work_off(app) == [result.id]


@pytest.mark.row("F097", "F098")
@pytest.mark.parametrize("when", [{"countdown": 60}, {"eta": THEN}], ids=str)
@pytest.mark.parametrize("workflow", [
    lambda one: chord([one, one], one), lambda one: group(one, one), lambda one: chain(one, one),
    lambda one: chain(group(one, one), one),
], ids=["chord", "group", "chain", "chain of a group"])  # fmt: skip
def test_a_workflow_for_later_begins_later(app, noop, fake, workflow, when):
    workflow(noop.si(1)).apply_async(**when)
    fake.advance(59)
    assert work_off(app) == []
    fake.advance(1)
    assert len(work_off(app)) == sum(each.number for each in app.storage.counts())


@pytest.mark.row("F097")
@pytest.mark.parametrize("countdown", [0, -5], ids=str)
def test_a_step_without_a_delay_follows_at_once(app, noop, fake, countdown):
    result = chain(noop.s(1), noop.s(2).set(countdown=countdown))()
    assert work_off(app) == [result.parent.id, result.id]


@pytest.mark.row("F097", "F098", "F099")
@pytest.mark.parametrize("options", [{"countdown": "5"}, {"eta": 5}, {"expires": "soon"}], ids=str)
def test_a_step_with_a_time_that_makes_no_sense_keeps_the_whole_workflow_from_being_sent(app, noop, options):
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        chain(noop.s(1), noop.s(2).set(**options))()
    assert app.storage.counts() == []


# -- In a running task -----------------------------------------------------------------------------


@pytest.mark.row("F075")
def test_a_task_sees_its_times_as_iso_text_with_an_offset(app, fake):
    seen = []

    @app.task(bind=True)
    def look(self):
        seen.append((self.request.eta, self.request.expires))

    look.apply_async(countdown=60, expires="2023-11-15T03:45:20+05:30")
    look.delay()
    fake.advance(60)
    work_off(app)
    assert seen == [("2023-11-14T22:14:20+00:00", "2023-11-14T22:15:20+00:00"), (None, None)]


def retrying(app, **how):
    @app.task(bind=True, name="proj.flaky", max_retries=3)
    def flaky(self):
        if not self.request.retries:
            raise self.retry(**how)
        return [self.request.eta, self.request.expires]

    return flaky


@pytest.mark.row("F099")
@pytest.mark.parametrize(("how", "state"), [
    ({"countdown": 20}, "SUCCESS"), ({"countdown": 40}, "REVOKED"), ({"countdown": 40, "expires": 60}, "SUCCESS"),
    ({"countdown": 20, "expires": 10}, "REVOKED"), ({"countdown": 40, "expires": None}, "SUCCESS"),
], ids=str)  # fmt: skip
def test_a_retry_keeps_the_first_expiry_unless_it_brings_one(app, fake, how, state):
    result = retrying(app, **how).apply_async(expires=30)
    work_off(app)
    assert result.state == "RETRY"
    fake.advance(how["countdown"])
    work_off(app)
    assert result.state == state


@pytest.mark.row("F152")
@pytest.mark.parametrize(("how", "delay"), [
    ({}, 180), ({"countdown": 0}, 0), ({"countdown": timedelta(seconds=7)}, 7), ({"eta": THEN}, 60),
    ({"eta": THEN, "countdown": 5}, 60), ({"eta": THEN.isoformat()}, 60), ({"countdown": -5}, -5),
], ids=str)  # fmt: skip
def test_a_retry_waits_for_its_eta_or_its_countdown_or_the_tasks_own_delay(app, fake, how, delay):
    retrying(app, **how).delay()
    (claim,) = claims_of(app, "me")
    again = Executor(app.conf).execute(app.tasks["proj.flaky"], claim).again
    assert again.visible_at == NOW + delay


@pytest.mark.row("F097", "F098")
@pytest.mark.parametrize("how", [{"countdown": "5"}, {"countdown": math.nan}, {"eta": "soon"}, {"eta": 5}], ids=str)
def test_a_retry_at_no_time_is_the_tasks_failure(app, fake, how):
    result = retrying(app, **how).delay()
    work_off(app)
    assert result.state == "FAILURE"
    with pytest.raises((TypeError, ValueError), match=next(iter(how))):
        result.get(timeout=0)


@pytest.mark.row("F152")
def test_a_delay_of_the_task_that_is_none_is_named_where_it_is_given(app, fake):
    with pytest.raises(TypeError, match="default_retry_delay='soon'"):
        retrying(app).default_retry_delay = "soon"


# -- Eagerly ---------------------------------------------------------------------------------------


def test_eagerly_nothing_is_waited_for(app, noop, fake):
    app.conf.task_always_eager = True
    assert noop.apply_async((1,), countdown=3600).get() == [1]
    assert noop.apply_async((1,), eta="2100-01-01").get() == [1]
    assert chain(noop.s(1), noop.s(2).set(countdown=3600, expires=7200))().get() == [[1], 2]
    assert retrying(app, countdown=3600).delay().state == "SUCCESS"
    assert clock.now() == NOW


@pytest.mark.row("F099")
def test_eagerly_what_expired_is_not_run_either(app, noop, fake):
    app.conf.task_always_eager = True
    assert noop.apply_async((), expires=0).state == "REVOKED"
    assert noop.apply_async((), expires=60).state == "SUCCESS"
    result = chain(noop.s(1), noop.s(2).set(expires=60))()
    assert result.state == "SUCCESS"


@pytest.mark.row("F097", "F098", "F099")
@pytest.mark.parametrize("options", [{"countdown": "5"}, {"eta": 5}, {"expires": "soon"}], ids=str)
def test_eagerly_a_time_that_makes_no_sense_is_an_error_too(app, noop, options):
    app.conf.task_always_eager = True
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        noop.apply_async((), **options)


def test_a_retry_that_has_run_out_of_attempts_looks_at_no_time(app, fake):
    @app.task(bind=True, max_retries=0)
    def once(self):
        raise self.retry(countdown=5)

    result = once.delay()
    work_off(app)
    with pytest.raises(MaxRetriesExceededError):
        result.get(timeout=0)
