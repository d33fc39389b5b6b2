"""When something is to happen again: every so often (`schedule`), or by the calendar (`crontab`).

Celery's classes and arguments. Pure functions of the times they are given: a schedule keeps no state, reads
no clock of its own but `localq.clock`, and sends nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

from localq import clock

#: Years that `crontab` looks ahead: 29 February comes within eight.
HORIZON_YEARS = 9

Field = str | int | Iterable[int]


class ParseException(Exception):
    """A crontab field cannot be read."""


class Due(NamedTuple):
    """Whether it is time, and in how many seconds to ask again."""

    is_due: bool
    next: float


class Schedule(Protocol):
    """What can say when something is due."""

    def is_due(self, last_run_at: datetime) -> Due: ...


class schedule:
    """Every `run_every`.

    Args:
        run_every: seconds or a timedelta; more than nothing.
        relative: count from round times (the full hour for hours, the full minute for minutes).
    """

    def __init__(self, run_every: float | timedelta, relative: bool = False) -> None:
        self.run_every = run_every if isinstance(run_every, timedelta) else timedelta(seconds=run_every)
        self.relative = relative
        if self.run_every <= timedelta(0):
            raise ValueError(f"run_every={run_every!r}: a schedule needs more than nothing between two runs")

    def next_after(self, when: datetime) -> datetime:
        """Return the first due time after `when`."""
        if not self.relative:
            return when + self.run_every
        since = when - when.replace(hour=0, minute=0, second=0, microsecond=0)
        return when + self.run_every - since % self.run_every

    def is_due(self, last_run_at: datetime) -> Due:
        """Say whether it is time again, given the last time."""
        return _due(self.next_after(last_run_at), self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, schedule) and (self.run_every, self.relative) == (other.run_every, other.relative)

    def __hash__(self) -> int:
        return hash((self.run_every, self.relative))

    def __repr__(self) -> str:
        return f"<freq: {self.run_every}>"


class _Span(NamedTuple):
    name: str
    low: int
    high: int
    words: tuple[str, ...] = ()


_WEEK = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_YEAR = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MINUTE, _HOUR = _Span("minute", 0, 59), _Span("hour", 0, 23)
_WEEKDAY, _DAY = _Span("day_of_week", 0, 6, _WEEK), _Span("day_of_month", 1, 31)
_MONTH = _Span("month_of_year", 1, 12, ("", *_YEAR))


class crontab:
    """At the times that match every field.

    As in Celery, and unlike cron, a day must match `day_of_week` and `day_of_month` both. Times are those of
    the datetimes given: give them in the zone that is meant.

    Args:
        minute, hour, day_of_week, day_of_month, month_of_year: a number, an iterable of numbers, or
            text: `*`, `*/15`, `8-17`, `8-17/2`, `mon-fri`, `jan,jul`, `22-2` (over the end).

    Raises:
        ParseException, ValueError: a field cannot be read, or is out of range.
    """

    def __init__(
        self,
        minute: Field = "*",
        hour: Field = "*",
        day_of_week: Field = "*",
        day_of_month: Field = "*",
        month_of_year: Field = "*",
    ) -> None:
        self._given = (minute, hour, day_of_week, day_of_month, month_of_year)
        self.minute, self.hour = _numbers(minute, _MINUTE), _numbers(hour, _HOUR)
        self.day_of_week, self.day_of_month = _numbers(day_of_week, _WEEKDAY), _numbers(day_of_month, _DAY)
        self.month_of_year = _numbers(month_of_year, _MONTH)

    @classmethod
    def from_string(cls, text: str) -> crontab:
        """Read five fields in cron's order: minute hour day_of_month month_of_year day_of_week."""
        fields = text.split()
        if len(fields) != 5:
            raise ValueError(f"{text!r} has {len(fields)} fields; a crontab has five")
        minute, hour, day_of_month, month_of_year, day_of_week = fields
        return cls(minute, hour, day_of_week, day_of_month, month_of_year)

    def next_after(self, when: datetime) -> datetime:
        """Return the first matching minute after `when`.

        Raises:
            ValueError: no time matches (30 February).
        """
        first = when.replace(second=0, microsecond=0) + timedelta(minutes=1)
        day = first.replace(hour=0, minute=0)
        for _ in range(366 * HORIZON_YEARS):
            if self._has_day(day):
                found = self._time_on(day, first)
                if found is not None:
                    return found
            day += timedelta(days=1)
        raise ValueError(f"{self!r} never happens")

    def _has_day(self, day: datetime) -> bool:
        return (
            day.month in self.month_of_year
            and day.day in self.day_of_month
            and (day.weekday() + 1) % 7 in self.day_of_week
        )

    def _time_on(self, day: datetime, first: datetime) -> datetime | None:
        start = (first.hour, first.minute) if first.date() == day.date() else (0, 0)
        times = ((hour, minute) for hour in sorted(self.hour) for minute in sorted(self.minute))
        found = next((time for time in times if time >= start), None)
        return None if found is None else day.replace(hour=found[0], minute=found[1])

    def is_due(self, last_run_at: datetime) -> Due:
        """Say whether it is time again, given the last time."""
        return _due(self.next_after(last_run_at), self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, crontab) and self._sets() == other._sets()

    def __hash__(self) -> int:
        return hash(self._sets())

    def _sets(self) -> tuple[frozenset[int], ...]:
        return self.minute, self.hour, self.day_of_week, self.day_of_month, self.month_of_year

    def __repr__(self) -> str:
        minute, hour, weekday, day, month = self._given
        return f"<crontab: {minute} {hour} {day} {month} {weekday} (m/h/dM/MY/d)>"


def maybe_schedule(found: Any, relative: bool = False) -> Any:
    """Make a schedule of seconds or a timedelta; whatever is one already stays."""
    return schedule(found, relative) if isinstance(found, int | float | timedelta) else found


def _due(next_at: datetime, each: schedule | crontab) -> Due:
    now = datetime.fromtimestamp(clock.now(), next_at.tzinfo or UTC)
    if next_at.tzinfo is None:
        now = now.replace(tzinfo=None)
    left = (next_at - now).total_seconds()
    return Due(False, left) if left > 0 else Due(True, (each.next_after(now) - now).total_seconds())


def _numbers(field: Field, span: _Span) -> frozenset[int]:
    if isinstance(field, int):
        found = {field}
    elif isinstance(field, str):
        found = {number for part in field.split(",") for number in _part(part.strip(), span)}
    else:
        found = set(field)
    wrong = sorted(number for number in found if not span.low <= number <= span.high)
    if wrong or not found:
        raise ValueError(f"{span.name}={field!r}: expected numbers from {span.low} to {span.high}")
    return frozenset(found)


def _part(text: str, span: _Span) -> list[int]:
    """Read one part of a field: `*`, `5`, `5-10`, each with an optional `/step`."""
    what, slash, step = text.partition("/")
    if slash and (not step.isdigit() or int(step) == 0):
        raise ParseException(f"{span.name}={text!r}: a step is a number above 0")
    if what == "*":
        numbers = list(range(span.low, span.high + 1))
    else:
        first, dash, last = what.partition("-")
        low = _number(first, text, span)
        high = _number(last, text, span) if dash else low
        after = [] if low <= high else list(range(span.low, high + 1))
        numbers = list(range(low, (high if low <= high else span.high) + 1)) + after
    return numbers[:: int(step)] if slash else numbers


def _number(word: str, text: str, span: _Span) -> int:
    if word.isdigit():
        # 7 is Sunday too, as in cron.
        return 0 if span is _WEEKDAY and word == "7" else int(word)
    for at, known in enumerate(span.words):
        if known and word.lower().startswith(known):
            return at
    raise ParseException(f"{span.name}={text!r}: {word!r} is no number{' or name' if span.words else ''}")
