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
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from localq import clock, faults
from localq.message import Claim, Message, Want
from localq.rates import (
    BUCKET,
    RATE,
    REMEMBERED_S,
    STALE_S,
    WIDE,
    Candidate,
    Choice,
    bucket_text,
    choose,
    next_start,
    next_turns,
    task_of,
)
from localq.revocation import rules_of
from localq.storage.sqlite.queries import candidates, claim_chosen, query
from localq.storage.sqlite.queries import claim as claim_query

Execute = Callable[..., Any]
#: As many are freed at once, where nothing is claimed.
FREED = 500
_COLUMNS = 3 + len(Message._fields)


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
    return _as_claims(execute, rows)


def claim_in_turn(execute: Execute, want: Want) -> Claimed:
    """Claim the next messages where some tasks may start only so often."""
    if not want.queues:
        return Claimed([])
    faults.at("claim.held")
    # Not `want.now`: time has passed at the gate, and a token counts from when it is taken.
    now, moved = clock.now(), 0
    buckets = {key: text for key, text, _ in _entries(execute, BUCKET, now)}
    waiting = _next_in_turn(execute, want, now, buckets)
    # If messages at the head have to wait, more are looked at; those beyond are met by the next claim.
    for most in (want.limit, WIDE):
        ready = map(Candidate._make, execute(candidates(len(want.queues)), _asked(want, most)).fetchall())
        choice = choose(heapq.merge(ready, waiting), want, now, buckets.get)
        for hold, seqs in choice.parked.items():
            moved += execute(query("park"), (hold, json.dumps(seqs))).rowcount
            execute(query("mark"), (hold,)).fetchall()
        if not choice.parked or len(choice.taken) == want.limit:
            break
    claims = _take(execute, want, choice, now)
    faults.at("claim.written")
    return Claimed(claims, moved, _due(execute, want, choice, now, buckets))


def _due(execute: Execute, want: Want, choice: Choice, now: float, buckets: Mapping[str, str]) -> float | None:
    """Return when the next may start of those that wait since this claim, or wait still after it took a token."""
    wait = {rate for rate in want.rates.values() if any(task_of(hold) == rate.task for hold in choice.parked)}
    times = [next_start(buckets.get(rate.bucket), now, rate) for rate in wait - {choice.token}]
    token = choice.token
    if token is not None and (token in wait or any(
        execute(query("first_held"), (token.hold(queue),)).fetchone() for queue in want.queues
    )):  # fmt: skip
        times.append(now + token.period_s)
    return min(times, default=None)


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
    return _as_claims(execute, rows)


def _as_claims(execute: Execute, rows: list[tuple[Any, ...]]) -> list[Claim]:
    """Make claims of rows, each of which says last whether there is any rule by which one may not run.

    The claim may be a transaction of its own that is over by now. The gate is not: no rule can have come in between.
    """
    claims = [as_claim(row) for row in rows]
    if not (rows and rows[0][-1]):
        return claims
    now = clock.now()
    execute(query("drop_expired_entries"), (now,))
    rules = {claim.seq: rules_of(claim.message) for claim in claims}
    asked = json.dumps([rule for each in rules.values() for rule in each])
    hits = {key for (key,) in execute(query("rules"), (asked, now)).fetchall()}
    return [claim._replace(revoked=not hits.isdisjoint(rules[claim.seq])) for claim in claims]


def _next_in_turn(execute: Execute, want: Want, now: float, buckets: Mapping[str, str]) -> list[Candidate]:
    """Of each task and queue whose messages wait, and that has a token, the one whose turn is next."""
    waiting = {key for key, _, _ in _entries(execute, RATE, now)}
    if not waiting:
        return []
    have = [rate for rate in set(want.rates.values()) if next_start(buckets.get(rate.bucket), now, rate) <= now]
    holds = {rate.hold(queue) for rate in have for queue in want.queues} & waiting
    found = [execute(query("first_held"), (hold,)).fetchone() for hold in holds]
    return sorted(Candidate(*row) for row in found if row is not None)


def turns(execute: Execute, now: float, ready: Counter[str] | None) -> float:
    """Return when the next of those will have their turn that wait for it; what has it already is not waited for.

    Args:
        ready: counts, by queue, those that have their turn now; None if nobody is to be woken for them.
    """
    holds = [key for key, _, _ in _entries(execute, RATE, now)]
    if not holds:
        return float("inf")
    times = next_turns((text for _, text, _ in _entries(execute, BUCKET, now)), holds)
    earliest = float("inf")
    for hold, at in times.items():
        first = execute(query("first_held"), (hold,)).fetchone()
        if first is None:
            execute(query("delete_entry"), (hold,))
        elif at > now:
            earliest = min(earliest, at)
        elif ready is not None and at > now - STALE_S:
            ready[first[4]] += 1
    return earliest


def free(execute: Execute, want: Want, ready: Counter[str]) -> int:
    """Let messages that wait under the keys wanted be ready; returns how many there were.

    Of each key at most FREED, or as many as are to be claimed: more would only be parked again by others.
    """
    moved, most = 0, want.limit or FREED
    for key in want.frees:
        rows = execute(query("free"), (key, most)).fetchall()
        ready.update(queue for (queue,) in rows)
        moved += len(rows)
        if len(rows) < most:
            execute(query("delete_entry"), (key,))
    return moved


def as_claim(row: tuple[Any, ...]) -> Claim:
    """Make a claim of its columns, whatever comes after them."""
    return Claim(row[0], row[1], row[2], Message(*row[3:_COLUMNS]))


def _asked(want: Want, limit: int) -> tuple[Any, ...]:
    values = [value for queue in want.queues for value in (queue, limit)]
    return (*values, limit) if len(want.queues) > 1 else tuple(values)


def _entries(execute: Execute, prefix: str, now: float) -> list[tuple[str, str, float | None]]:
    found: list[tuple[str, str, float | None]] = execute(query("entries"), (prefix, prefix, now)).fetchall()
    return found
