"""What users say of time, made into wall time: seconds, `timedelta`, `datetime`, ISO text.

Every word of `countdown`, `eta` and `expires` is judged here, where it is said: nothing that is no time gets
into a message. Must not ask what time it is, and must not decide what a time means for a task.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from localq.exceptions import ImproperlyConfigured

#: The least number of seconds that Celery takes.
LEAST_S = -2147483648
#: The last wall time that can be shown as a date.
LAST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
#: Seconds that are no time at all, and are not 0.
NO_TIME_S = 1e-9


def seconds(what: str, value: Any) -> float:
    """Return a number of seconds, given as a number or a `timedelta`.

    Args:
        what: the option's name, for errors.

    Raises:
        TypeError, ValueError: it is none, or too far away to mean anything; names the option and the value.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{what}={value!r} is no time: give seconds as a number, or a timedelta{_more(what)}")
    try:
        found = float(value)
    except OverflowError:
        raise ValueError(f"{what} is out of range: years up to 9999 are possible") from None
    if not math.isfinite(found):
        raise ValueError(f"{what}={value!r} is no time: give a finite number of seconds")
    if not LEAST_S <= found < math.inf:
        raise ValueError(f"{what} is out of range: {value!r}; give seconds, {LEAST_S} at least")
    return found


def _more(what: str) -> str:
    """Name what else is taken where seconds are not all: for errors."""
    return ", a datetime or ISO text" if what.startswith("expires") else ""


def later(what: str, value: Any, now: float | None) -> float:
    """Return the wall time so many seconds after `now`; see `seconds`.

    Args:
        now: None: nobody knows yet, since the message waits for an end. Then the seconds themselves, below 0
            (`localq.message.released`).
    """
    after_s = seconds(what, value)
    at = _possible(what, value, (now or 0.0) + after_s)
    return at if now is not None else -max(after_s, NO_TIME_S)


def moment(what: str, value: Any, now: float | None, zone: tzinfo | None) -> float:
    """Return the wall time that a `datetime`, ISO text or a `timedelta` from `now` stands for.

    Args:
        zone: what a time without a zone is in; None: the zone of this machine.

    Raises:
        TypeError, ValueError: see `seconds`. A bare number is refused too: seconds from when?
    """
    if isinstance(value, timedelta):
        return later(what, value, now)
    if isinstance(value, str):
        value = _read(what, value)
    if not isinstance(value, datetime):
        raise TypeError(f"{what}={value!r} is no time: give a datetime or ISO text; for seconds from now, countdown")
    try:
        at = (value if value.utcoffset() is not None else value.replace(tzinfo=zone)).timestamp()
    except (OverflowError, ValueError, OSError):
        at = math.inf
    return _possible(what, value, at)


def end(what: str, value: Any, now: float | None, zone: tzinfo | None) -> float:
    """Return the wall time that seconds from `now`, or whatever `moment` takes, stands for."""
    is_moment = isinstance(value, datetime | str)
    return moment(what, value, now, zone) if is_moment else later(what, value, now)


def zone_of(conf: Any) -> tzinfo | None:
    """Return the zone of times that name none, by the settings `timezone` and `enable_utc`; None: this machine's."""
    name = conf.timezone
    if not name:
        return UTC if conf.enable_utc else None
    if isinstance(name, tzinfo):
        return name
    try:
        return zone_named(name)
    except (KeyError, ValueError, OSError) as exc:
        raise ImproperlyConfigured(
            f"timezone = {name!r}: no such time zone is known here; write one like 'Europe/Oslo' "
            "(on a system that knows none: pip install tzdata)"
        ) from exc


def zone_named(name: str) -> tzinfo:
    """Return a time zone of this machine.

    Raises:
        KeyError, ValueError, OSError: there is none of this name.
    """
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)


def _read(what: str, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as exc:
        raise ValueError(f"{what}={text!r} is no ISO time, such as 2030-01-31T12:00:00+00:00: {exc}") from None


def _possible(what: str, value: Any, at: float) -> float:
    if not at <= LAST:
        raise ValueError(f"{what} is out of range: {value!r}; years up to 9999 are possible")
    return max(at, 0.0)  # nothing here is older than 1970, and below 0 means something else
