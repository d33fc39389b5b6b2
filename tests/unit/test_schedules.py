"""Schedules say when, and agree with looking at every minute in turn."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localq.schedules import ParseException, crontab, maybe_schedule, schedule
from localq.testing.clock import FakeClock

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)  # a Sunday


@given(
    st.sets(st.integers(0, 59), min_size=1, max_size=3),
    st.sets(st.integers(0, 23), min_size=1, max_size=3),
    st.sets(st.integers(0, 6), min_size=1),
    st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1)),
)
def test_the_next_time_is_the_first_minute_that_matches(minutes, hours, weekdays, when):
    tab = crontab(minutes, hours, weekdays)

    def matches(at):
        return at.minute in minutes and at.hour in hours and (at.weekday() + 1) % 7 in weekdays

    at = when.replace(second=0, microsecond=0) + timedelta(minutes=1)
    while not matches(at):
        at += timedelta(minutes=1)
    assert tab.next_after(when) == at


@pytest.mark.parametrize(("field", "expected"), [
    ("*/15", {0, 15, 30, 45}), ("8-10", {8, 9, 10}), ("50-5/5", {50, 55, 0, 5}), ("1,3,5-7", {1, 3, 5, 6, 7}), (7, {7}),
])  # fmt: skip
def test_minutes_are_read_as_celery_reads_them(field, expected):
    assert crontab(minute=field).minute == expected


def test_days_and_months_have_names():
    assert crontab(day_of_week="mon-fri").day_of_week == {1, 2, 3, 4, 5}
    assert crontab(day_of_week="sunday,7").day_of_week == {0}
    assert crontab(month_of_year="jan,jul").month_of_year == {1, 7}


@pytest.mark.parametrize("wrong", ["61", "x", "*/0", "5-x", "", "1/y"])
def test_a_field_that_makes_no_sense_is_refused(wrong):
    with pytest.raises((ParseException, ValueError), match="minute"):
        crontab(minute=wrong)


def test_a_day_that_never_comes_is_an_error():
    with pytest.raises(ValueError, match="never"):
        crontab(0, 0, day_of_month=30, month_of_year=2).next_after(NOON)


def test_a_leap_day_is_found():
    tab = crontab(0, 0, day_of_month=29, month_of_year=2)
    assert tab.next_after(NOON) == datetime(2028, 2, 29, tzinfo=UTC)


def test_a_crontab_is_read_from_a_line():
    assert crontab.from_string("5 4 * * mon") == crontab(5, 4, "mon")


def test_what_is_due_is_due_and_says_when_next():
    with FakeClock(NOON.timestamp()):
        assert crontab(minute="*/5").is_due(NOON - timedelta(minutes=7)) == (True, 300)
        assert schedule(60).is_due(NOON - timedelta(seconds=15)) == (False, 45)
        assert schedule(60).is_due(NOON - timedelta(seconds=60)) == (True, 60)


def test_a_relative_schedule_falls_on_round_times():
    hourly = schedule(timedelta(hours=1), relative=True)
    assert hourly.next_after(NOON + timedelta(minutes=7)) == NOON + timedelta(hours=1)


def test_seconds_become_a_schedule_and_a_schedule_stays():
    assert maybe_schedule(30) == schedule(timedelta(seconds=30))
    assert maybe_schedule(tab := crontab()) is tab
