"""How messages are handed out, and how those wait that may not start yet, inside the transaction of a claim.

    ready  -- claim --> owner
    ready  -- park ---> rate:<task>   -- claim, as tokens come --> owner
    owner  -- park ---> name:<task>
    either -- free ---> ready

Where no task has a rate limit, a claim is one statement. Must not open a transaction, ring, or write outcomes.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from localq import clock, faults
from localq.message import Claim, Message, Want
from localq.rates import (
    BUCKET,
    RATE,
    REMEMBERED_S,
    WIDE,
    Candidate,
    Choice,
    bucket_text,
    choose,
    next_start,
    next_turns,
)
from localq.storage.sqlite.queries import candidates, claim_chosen, query
from localq.storage.sqlite.queries import claim as claim_query

Execute = Callable[..., Any]
#: As many as the statement `free` frees at once.
FREED = 500


class Claimed(NamedTuple):
    """What a claim did.

    Attributes:
        moved: how many messages have to wait for their turn since.
        due: when the first of those that wait may start; None if that has not changed.
    """

    claims: list[Claim]
    moved: int = 0
    due: float | None = None


def claim(execute: Execute, want: Want) -> list[Claim]:
    """Claim the next messages, whatever tasks they are of."""
    if not want.queues:
        return []
    faults.at("claim.held")
    rows = execute(claim_query(len(want.queues)), (f"owner:{want.owner}", *_asked(want, want.limit))).fetchall()
    faults.at("claim.written")
    # RETURNING promises no order.
    rows.sort(key=lambda row: (row[7], row[0]))
    return [as_claim(row) for row in rows]


def claim_in_turn(execute: Execute, want: Want) -> Claimed:
    """Claim the next messages where some tasks may start only so often."""
    if not want.queues:
        return Claimed([])
    faults.at("claim.held")
    # Not `want.now`: time has passed at the gate, and a token counts from when it is taken.
    now, moved = clock.now(), 0
    waiting = _next_in_turn(execute, want, now)
    # If messages at the head have to wait, more are looked at; those beyond are met by the next claim.
    for most in (want.limit, WIDE):
        ready = map(Candidate._make, execute(candidates(len(want.queues)), _asked(want, most)).fetchall())
        choice = choose(heapq.merge(ready, waiting), want, now, lambda key: _entry(execute, key))
        for hold, seqs in choice.parked.items():
            moved += execute(query("park"), (hold, json.dumps(seqs))).rowcount
            execute(query("mark"), (hold,)).fetchall()
        if not choice.parked or len(choice.taken) == want.limit:
            break
    claims = _take(execute, want, choice, now)
    faults.at("claim.written")
    return Claimed(claims, moved, _due(execute, want, choice, now))


def _due(execute: Execute, want: Want, choice: Choice, now: float) -> float | None:
    """Return when the next may start of those that wait since this claim, or wait still after it took a token."""
    wait = {rate for rate in want.rates.values() if rate.hold in choice.parked}
    if choice.token is not None and execute(query("first_held"), (choice.token.hold,)).fetchone():
        wait.add(choice.token)
    return min((next_start(_entry(execute, rate.bucket), now, rate) for rate in wait), default=None)


def _take(execute: Execute, want: Want, choice: Choice, now: float) -> list[Claim]:
    token = choice.token
    if token is not None:
        execute(query("write_entry"), (token.bucket, bucket_text(token, now), now + token.period_s + REMEMBERED_S))
    if not choice.taken:
        return []
    rows = execute(claim_chosen(), (f"owner:{want.owner}", json.dumps(choice.taken))).fetchall()
    # The one that took a token starts first: the time of its start is the time of its token.
    first = choice.taken[0] if token is not None else 0
    rows.sort(key=lambda row: (row[0] != first, row[7], row[0]))
    return [as_claim(row) for row in rows]


def _next_in_turn(execute: Execute, want: Want, now: float) -> list[Candidate]:
    """Of each task whose messages wait, the one whose turn is next, if its queue is wanted."""
    holds = {rate.hold for rate in want.rates.values()} & {key for key, _, _ in _entries(execute, RATE, now)}
    found = [execute(query("first_held"), (hold,)).fetchone() for hold in holds]
    return sorted(Candidate(*row[:4]) for row in found if row is not None and row[4] in want.queues)


def turns(execute: Execute, now: float, ready: Counter[str]) -> float:
    """Return when the next of those may start that wait for their turn; count those who may now."""
    holds = [key for key, _, _ in _entries(execute, RATE, now)]
    if not holds:
        return float("inf")
    times = next_turns((text for _, text, _ in _entries(execute, BUCKET, now)), holds)
    earliest = float("inf")
    for hold, at in times.items():
        first = execute(query("first_held"), (hold,)).fetchone()
        if first is None:
            execute(query("delete_entry"), (hold,))
            continue
        earliest = min(earliest, at)
        if at <= now:
            ready[first[4]] += 1
    return earliest


def free(execute: Execute, keys: Iterable[str], ready: Counter[str]) -> int:
    """Let messages that wait under these keys be ready; returns how many there were, at most FREED of each."""
    moved = 0
    for key in keys:
        rows = execute(query("free"), (key,)).fetchall()
        ready.update(queue for (queue,) in rows)
        moved += len(rows)
        if len(rows) < FREED:
            execute(query("delete_entry"), (key,))
    return moved


def as_claim(row: tuple[Any, ...]) -> Claim:
    """Make a claim of its columns."""
    return Claim(row[0], row[1], row[2], Message(*row[3:]))


def _asked(want: Want, limit: int) -> tuple[Any, ...]:
    values = [value for queue in want.queues for value in (queue, limit)]
    return (*values, limit) if len(want.queues) > 1 else tuple(values)


def _entries(execute: Execute, prefix: str, now: float) -> list[tuple[str, str, float | None]]:
    found: list[tuple[str, str, float | None]] = execute(query("entries"), (prefix, prefix, now)).fetchall()
    return found


def _entry(execute: Execute, key: str) -> str | None:
    found = execute(query("entry"), (key, clock.now())).fetchone()
    return found[0] if found else None
