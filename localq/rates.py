"""Which of the next messages may start now, where a task may start only so often.

    ready                --claim-->  owner                  its bucket has a token, which is taken
    ready                --claim-->  rate:<task>@<queue>    it has none: it waits for its turn, in nobody's way
    rate:<task>@<queue>  --claim-->  owner                  in the order of priority and arrival, as tokens come

A bucket has room for one token, so starts are evenly spaced and there are never more of them in any time than
the limit allows. It is an entry of the store that says when the next token is there; whoever claims under the
same bucket shares the limit. Must not read or write a store: it is told what there is, and says what to do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from localq.message import Rate, Want

#: Beginnings of keys that hold messages of a task: those that wait for their turn, those that no worker knew ...
RATE, NAME = "rate:", "name:"
#: ... and of the keys of buckets.
BUCKET = "bucket:"
#: Most messages that one claim looks at when it meets some that have to wait.
WIDE = 500
#: Seconds after which nobody is woken for a turn any more: whoever sleeps has looked by itself since.
STALE_S = 1.0
#: Seconds that a bucket is remembered after its next token was due.
REMEMBERED_S = 60.0


class Candidate(NamedTuple):
    """A message that might be claimed; sorts as claims do. `hold` is the key it waits under, None if it is ready."""

    priority: int
    seq: int
    name: str
    hold: str | None
    queue: str


class Choice(NamedTuple):
    """What a claim does with its candidates.

    Attributes:
        taken: the seqs it takes, the one that needed a token first.
        parked: by key, the seqs that have to wait.
        token: whose token is taken.
    """

    taken: list[int]
    parked: dict[str, list[int]]
    token: Rate | None


def choose(candidates: Iterable[Candidate], want: Want, now: float, read: Callable[[str], str | None]) -> Choice:
    """Choose what to claim.

    One start that needs a token is all that a claim may take: a second one would wait behind it, and the time between
    its start and the next could be shorter than the limit allows.

    Args:
        candidates: in the order of claims.
        read: returns the text of an entry.
    """
    taken: list[int] = []
    parked: dict[str, list[int]] = {}
    token: Rate | None = None
    next_at: dict[str, float] = {}
    for each in candidates:
        if len(taken) == want.limit:
            break
        rate = want.rates.get(each.name)
        if rate is None:
            taken.append(each.seq)
            continue
        if rate.bucket not in next_at:
            next_at[rate.bucket] = next_start(read(rate.bucket), now, rate)
        if next_at[rate.bucket] > now:
            if each.hold is None:
                parked.setdefault(rate.hold(each.queue), []).append(each.seq)
        elif token is None:
            token = rate
            taken.insert(0, each.seq)
            next_at[rate.bucket] = now + rate.period_s
    return Choice(taken, parked, token)


def next_start(text: str | None, now: float, rate: Rate) -> float:
    """Return when the next may start, as a bucket's entry says; a clock that was set back does not stop a task."""
    at = float(json.loads(text)[0]) if text else 0.0
    return at if at <= now + rate.period_s else now


def bucket_text(rate: Rate, now: float) -> str:
    """Return the entry of a bucket whose token is taken now."""
    return json.dumps([now + rate.period_s, rate.task])


def next_turns(buckets: Iterable[str], holds: Iterable[str]) -> dict[str, float]:
    """Return when the next of each key may start: the earliest of its buckets, 0 if it has none.

    Args:
        buckets: texts of the buckets' entries.
        holds: keys under which messages wait for their turn.
    """
    found: dict[str, float] = {}
    for text in buckets:
        at, task = json.loads(text)
        found[task] = min(at, found.get(task, at))
    return {hold: found.get(task_of(hold), 0.0) for hold in holds}


def task_of(hold: str) -> str:
    """Return the task of a key under which messages wait."""
    return hold.partition(":")[2].rpartition("@")[0]


def parse(limit: object) -> float | None:
    """Return the seconds between two starts of a rate limit as Celery writes it; None if there is no limit.

    Args:
        limit: `"100/s"`, `"100/m"`, `"100/h"`, or a number of starts a second; None, 0 and "" are no limit.

    Raises:
        ValueError: it cannot be read, or is negative.
    """
    if not limit:
        return None
    number, _, unit = str(limit).strip().partition("/")
    try:
        starts = float(number) / _UNITS[unit.strip() or "s"]
    except (KeyError, ValueError):
        starts = -1.0
    if not starts >= 0 or isinstance(limit, bool):
        raise ValueError(f"rate_limit {limit!r}: expected {FORMS}")
    return 1 / starts if starts else None


#: How a rate limit is written, for errors.
FORMS = "a number of starts a second, or text such as '10/s', '100/m', '10/h'"
_UNITS: Mapping[str, int] = {"s": 1, "m": 60, "h": 3600}
