"""The verbs of a storage over rows and ordered indexes, for keepers that are no databases.

    RowStorage    the verbs of `storage.base`, each one transaction
    Transaction   what happens inside one: rows move, places are counted, rings are noted
    Table         what a keeper has to bring: get, set, items, add, remove, first

Every place is an index; a row stands in the one of its place:

    ready:<queue>    (priority, seq)       after:<id>     (priority, seq)
    waiting          (visible_at, seq)     owner:<name>   (priority, seq)
    ended            (0, seq)              rate:<task>@<queue>, name:<task>@<queue>   (priority, seq)

and in these beside it:

    failed           (0, seq)              group:<id>     (position, seq)
    followers:<id>   (0, seq)              behind:<id>    (0, seq), until it has ended

Must not know how rows are kept, what makes a transaction atomic, or how a sleeper is woken.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, takewhile
from typing import Any, Protocol, TypeVar

from localq import clock
from localq.exceptions import DuplicateTaskId
from localq.message import (
    Claim,
    Message,
    Outcome,
    Record,
    Turn,
    Want,
)
from localq.rates import BUCKET, RATE, REMEMBERED_S, STALE_S, WIDE, Candidate, bucket_text, choose, next_turns
from localq.revocation import MARK, RULE, TERMINATE, end_text, rules_of, with_end
from localq.states import ENDED, HELD, PROPAGATE_STATES, READY, WAITING
from localq.storage.base import NEWS_KEPT_S, STEP, Bell, Count, Entry, Estate, Forgotten, Old, Owner, OwnerInfo
from localq.storage.followers import follow
from localq.storage.news import KEPT, news_key, news_text
from localq.storage.row import (
    Order,
    Row,
    begun,
    claim_of,
    ended,
    indexes_of,
    made_ready,
    opened,
    record_of,
    written,
)

T = TypeVar("T")

#: Waiting messages that one claim makes ready at most, so that no claim pays for a whole backlog.
PROMOTED = 500


class Table(Protocol):
    """What keeps the rows. Called only inside a transaction, which its keeper makes atomic.

    Values are of a kind: `row` (Row), `entry` (Entry) or `number` (int), and None stands for absence.
    """

    def get(self, kind: str, key: str) -> Any: ...

    def set(self, kind: str, key: str, value: Any) -> None: ...

    def items(self, kind: str, prefix: str) -> Iterable[tuple[str, Any]]:
        """Return a copy of what is there under keys that begin with `prefix`."""

    def add(self, index: str, order: Order, id: str) -> None: ...

    def remove(self, index: str, order: Order, id: str) -> None: ...

    def first(self, index: str, limit: int | None, start: Order | None = None) -> list[tuple[Order, str]]:
        """Return the first entries of an index, or the first from `start` on, in order; all if `limit` is None."""


class Transaction:
    """One transaction. `ready`, `waits` and `replies` name whom to wake once it is true."""

    def __init__(self, table: Table) -> None:
        self._table = table
        #: When states that are no end, written here, are forgotten.
        self.news_until: float | None = None
        self._tallies: Counter[str] = Counter()
        #: id -> queue, of the messages that became ready here and were not claimed here.
        self.ready: dict[str, str] = {}
        #: Queues of messages whose turn it is, each to be claimed from where it waits.
        self.turns: set[str] = set()
        #: Whether a message began to wait for its time here.
        self.waits = False
        #: Whether several messages were claimed here: some may have to wait behind a long one.
        self.reserves = False
        #: `reply_to` of the messages whose state is news.
        self.replies: set[str | None] = set()
        self._moved = 0
        self._held: list[str] = []

    def finish(self) -> None:
        """Write what was only counted so far; the last thing before the transaction is made true."""
        for key, change in self._tallies.items():
            if change:
                self._table.set("number", key, ((self._table.get("number", key) or 0) + change) or None)

    # -- put, settle, update, forget ---------------------------------------------------------

    def put(self, messages: Iterable[Message]) -> None:
        for message in messages:
            known = self._row(message.id)
            if known is None:
                self._begin(message)
            elif (known.message.name, known.message.body) != (message.name, message.body):
                raise DuplicateTaskId(f"{message.id!r} is the id of another {known.message.name!r}; nothing was sent")

    def settle(self, outcomes: Iterable[Outcome], want: Want | None) -> Turn:
        stale = [outcome for outcome in outcomes if not self._apply(outcome)]
        claims = []
        if want is not None:
            self._free(want)
            claims = self._claim(want)
        return Turn(claims, stale, self._moved, tuple(self._held))

    def update(self, seq: int, token: int, outcome: Outcome) -> bool:
        if outcome.again is not None and not outcome.ended:
            return self._run_again(outcome.id, outcome, outcome.again)
        if not seq and outcome.ended_at is not None:
            return self._revoke(outcome)
        row = self._claimed(outcome.id, seq, token) if seq else self._row(outcome.id)
        if row is None or row.place == ENDED:
            return False
        new = written(row, outcome)
        self.move(row, new._replace(traceback=row.traceback, children=row.children, worker=new.worker or row.worker))
        self._tell(row.message, outcome)
        return True

    def _revoke(self, outcome: Outcome) -> bool:
        if outcome.again is not None:
            if self._row(outcome.id) is not None:
                return False
            self._begin(outcome.again)
        row = self._row(outcome.id)
        if row is None or row.place == ENDED:
            return False
        if (row.hold or "").startswith("owner:"):
            self.move(row, row._replace(revoked=end_text(outcome)))
            return False
        kept = outcome._replace(
            traceback=outcome.traceback or row.traceback, children=outcome.children or row.children,
            worker=outcome.worker or row.worker,
        )  # fmt: skip
        self.move(row, ended(written(row, kept), outcome))
        follow(self, row.message, outcome)
        return True

    def _tell(self, message: Message, outcome: Outcome) -> None:
        """Keep a state that is no end, and have the bell of those who wait rung."""
        count = f"states {message.id}"
        number = (self._table.get("number", count) or 0) + 1
        self._table.set("number", count, number)
        key = news_key(message.id, number)
        self._table.set("entry", key, Entry(key, news_text(outcome), self.news_until))
        if number > KEPT:
            self._table.set("entry", news_key(message.id, number - KEPT), None)
        self.replies.add(message.reply_to)

    def forget(self, ids: Iterable[str]) -> Forgotten:
        return Forgotten(sum(self._forget(self._row(id)) for id in ids))

    def _forget(self, row: Row | None) -> bool:
        if row is None or row.place != ENDED:
            return False
        self.move(row, None)
        count = f"states {row.message.id}"
        last = self._table.get("number", count) or 0
        for number in range(max(0, last - KEPT), last):
            self._table.set("entry", news_key(row.message.id, number + 1), None)
        self._table.set("number", count, None)
        return True

    def forget_old(self, old: Old) -> Forgotten:
        """Drop what has had its time, among the next STEP that have ended."""
        now, number = clock.now(), 0
        found = self.rows("ended", STEP, (0.0, old.after + 1))
        rows = list(takewhile(lambda row: not old.is_too_young(row.message.sent_at, now), found))
        for row in rows:
            ended_at = row.message.sent_at if row.ended_at is None else row.ended_at
            if old.has_had_its_time(row.state, ended_at) and not self._has_followers(row.message):
                number += self._forget(row)
        if len(rows) == STEP:
            return Forgotten(number, rows[-1].seq)
        return Forgotten(number + self.purge())

    def _has_followers(self, message: Message) -> bool:
        """Whether anybody who has not ended waits for this one, or is fed by it."""
        keys = (f"behind:{id}" for id in (message.id, message.group_id) if id is not None)
        return any(self._table.first(key, 1) for key in keys)

    # -- what can be read --------------------------------------------------------------------

    def records(
        self,
        ids: Iterable[str],
        group_id: str | None,
        failed_after: int | None,
        hold: str | None,
        whole: bool,
        stamped_after: int | None,
        follows: str | None,
        start: int | None,
    ) -> dict[str, Record]:
        if group_id is not None:
            rows = self.rows(f"group:{group_id}", *(() if start is None else (STEP, (float(start), 0))))
        elif follows is not None:
            rows = self.rows(f"followers:{follows}", STEP, (0.0, start or 0))
        elif failed_after is not None:
            rows = self.rows("failed", STEP, (0.0, failed_after + 1))
        elif hold is not None:
            rows = self.rows(hold, STEP)
        elif stamped_after is not None:
            rows = self._stamped(stamped_after)
        else:
            rows = [row for id in dict.fromkeys(ids) if (row := self._row(id)) is not None]
        return {row.message.id: record_of(row, whole) for row in rows}

    def _stamped(self, after: int) -> list[Row]:
        rows = (row for _, row in self._table.items("row", "") if row.seq > after and row.place != ENDED)
        return sorted((row for row in rows if MARK in (row.message.headers or "")), key=lambda row: row.seq)[:STEP]

    def claims(self, owner: str) -> list[Claim]:
        return [claim_of(row) for row in self.rows(f"owner:{owner}")]

    def due(self, limit: int) -> list[float]:
        times = [visible_at for (visible_at, _), _ in self._table.first("waiting", limit)]
        return sorted([*times, *(at for at in self._turns().values() if at > clock.now() - STALE_S)])[:limit]

    def counts(self) -> list[Count]:
        found = []
        for key, number in self._table.items("number", "in "):
            _, place, queue = key.split(" ", 2)
            found.append(Count(queue, place, number))
        return sorted(found)

    # -- entries -----------------------------------------------------------------------------

    def entries(self, prefix: str) -> list[Entry]:
        return sorted(entry for _, entry in self._table.items("entry", prefix) if _is_valid(entry))

    def write(self, entry: Entry, value: str | None, expected: str | None) -> bool:
        known = self._table.get("entry", entry.key)
        if (known.value if known and _is_valid(known) else None) != expected:
            return False
        self._table.set("entry", entry.key, None if value is None else entry)
        if entry.key.startswith(RULE):
            self._tallies[RULE] += (value is not None) - (known is not None)
        self.waits = self.waits or entry.key.startswith(TERMINATE)
        return True

    def purge(self) -> int:
        """Drop the entries that have expired; return how many there were."""
        expired = [key for key, entry in self._table.items("entry", "") if not _is_valid(entry)]
        for key in expired:
            self._table.set("entry", key, None)
            self._tallies[RULE] -= key.startswith(RULE)
        return len(expired)

    # -- the moves ---------------------------------------------------------------------------

    def _row(self, id: str) -> Row | None:
        found: Row | None = self._table.get("row", id)
        return found

    def rows(self, index: str, limit: int | None = None, start: Order | None = None) -> list[Row]:
        return [row for _, id in self._table.first(index, limit, start) if (row := self._row(id)) is not None]

    def _claimed(self, id: str, seq: int, token: int) -> Row | None:
        """Return the row if this very claim still holds it."""
        row = self._row(id)
        if row is None or (row.seq, row.token) != (seq, token) or not (row.hold or "").startswith("owner:"):
            return None
        return row

    def _begin(self, message: Message) -> None:
        seq = (self._table.get("number", "seq") or 0) + 1
        self._table.set("number", "seq", seq)
        self.move(None, begun(Row(message, seq)))

    def _apply(self, outcome: Outcome) -> bool:
        row = self._claimed(outcome.id, outcome.seq, outcome.token)
        if row is None:
            return False
        if row.revoked is not None and not outcome.ended:
            end = with_end(row.revoked, outcome)
            outcome = end._replace(ended_at=clock.now(), traceback=None, children=None, worker=row.worker)
        new = written(row, outcome)._replace(redeliveries=row.redeliveries + outcome.charged)
        if outcome.ended:
            self.move(row, ended(new, outcome))
        elif outcome.hold is not None:
            self._park(new._replace(token=new.token + 1), outcome.hold)
        else:
            self.move(row, opened(new._replace(message=outcome.again or new.message)))
            if outcome.again is not None:
                self._tell(row.message, outcome)
        # What a task sends must not keep its own end from being written, so an id in use is passed over.
        self.put(message for message in outcome.sends if self._row(message.id) is None)
        if outcome.ended:
            follow(self, row.message, outcome)
        return True

    def _run_again(self, id: str, outcome: Outcome, message: Message) -> bool:
        row = self._row(id)
        if row is None or row.place != ENDED or row.state not in PROPAGATE_STATES:
            return False
        self.move(row, begun(written(Row(message, row.seq, row.token), outcome)))
        self._tell(message, outcome)
        return True

    def _claim(self, want: Want) -> list[Claim]:
        self._promote(want.now)
        if not want.limit:
            self._wake_for_turns(want.now)
        rows = self._in_turn(want) if want.rates and want.limit else self._first(want, want.limit)
        claims = [self._hand_out(row, want.owner) for row in rows]
        self.reserves = len(claims) > 1
        if not self._table.get("number", RULE):
            return claims
        return [claim._replace(revoked=self._is_revoked(claim.message)) for claim in claims]

    def _is_revoked(self, message: Message) -> bool:
        return any(self._entry_text(rule) is not None for rule in rules_of(message))

    def _first(self, want: Want, limit: int) -> list[Row]:
        """Return the next messages of these queues, in the order of claims."""
        fronts = [self._table.first(f"ready:{queue}", limit) for queue in dict.fromkeys(want.queues)]
        ids = [id for _, id in islice(heapq.merge(*fronts), limit)]
        return [row for id in ids if (row := self._row(id)) is not None]

    def _in_turn(self, want: Want) -> list[Row]:
        """Return the next messages that may start now; those ahead of them that may not have to wait."""
        now = clock.now()
        holds = {rate.hold(queue) for rate in want.rates.values() for queue in want.queues}
        rows = [*self._first(want, WIDE), *(row for hold in holds for row in self.rows(hold, 1))]
        known = {row.seq: row for row in rows}
        candidates = sorted(Candidate(r.message.priority, r.seq, r.message.name, r.hold, r.message.queue) for r in rows)
        choice = choose(candidates, want, now, self._entry_text)
        for hold, seqs in choice.parked.items():
            for seq in seqs:
                self._park(known[seq], hold)
        token = choice.token
        if token is not None:
            until = now + token.period_s + REMEMBERED_S
            self._table.set("entry", token.bucket, Entry(token.bucket, bucket_text(token, now), until))
            self.waits = True
        return [known[seq] for seq in choice.taken]

    def _park(self, row: Row, hold: str) -> None:
        self.move(self._row(row.message.id), row._replace(place=HELD, hold=hold))
        self._moved += 1
        self.waits = True
        if self._table.get("entry", hold) is None:
            self._table.set("entry", hold, Entry(hold, "", None))
            self._held.append(hold)

    def _free(self, want: Want) -> None:
        most = want.limit or PROMOTED
        for key in want.frees:
            rows = self.rows(key, most)
            for row in rows:
                self.move(row, made_ready(row))
            self._moved += len(rows)
            if len(rows) < most:
                self._table.set("entry", key, None)

    def _turns(self) -> dict[str, float]:
        """Return when the next of each key may start, of those that wait for their turn."""
        holds = [entry.key for entry in self.entries(RATE) if self.rows(entry.key, 1)]
        return next_turns((entry.value for entry in self.entries(BUCKET)), holds) if holds else {}

    def _entry_text(self, key: str) -> str | None:
        entry: Entry | None = self._table.get("entry", key)
        return entry.value if entry is not None and _is_valid(entry) else None

    def _promote(self, now: float) -> None:
        for (visible_at, _), id in self._table.first("waiting", PROMOTED):
            row = self._row(id)
            if visible_at > now or row is None:
                break
            self.move(row, made_ready(row))
            self._moved += 1

    def _wake_for_turns(self, now: float) -> None:
        for hold, at in self._turns().items():
            if now - STALE_S < at <= now:
                # Not moved, only woken for: whoever comes takes it with its token.
                self.turns.update(row.message.queue for row in self.rows(hold, 1))

    def _hand_out(self, row: Row, owner: str) -> Claim:
        new = row._replace(place=HELD, hold=f"owner:{owner}", token=row.token + 1)
        self.move(row, new)
        return claim_of(new)

    def move(self, old: Row | None, new: Row | None) -> None:
        """Every change of a row is one of these: the row, its indexes and the tallies move together."""
        id = (new or old).message.id  # type: ignore[union-attr]  # one of them is a row
        before, after = indexes_of(old), indexes_of(new)
        for index, order in before - after:
            self._table.remove(index, order, id)
        for index, order in after - before:
            self._table.add(index, order, id)
        self._table.set("row", id, new)
        self._tally(old, -1)
        self._tally(new, +1)
        if new is None or new.place != READY:
            self.ready.pop(id, None)
        elif old is None or old.place != READY:
            self.ready[id] = new.message.queue
        self.waits = self.waits or (new is not None and new.place == WAITING)

    def _tally(self, row: Row | None, change: int) -> None:
        if row is not None:
            self._tallies[f"in {row.place} {row.message.queue}"] += change


class RowStorage(ABC):
    """The verbs that are about messages and entries; owners, bells and the rest are the keeper's."""

    url: str
    shared: bool
    must_exist = False
    news_kept_s = NEWS_KEPT_S

    @abstractmethod
    def _run(self, act: Callable[[Transaction], T]) -> T:
        """Run `act` in a transaction that happens wholly or not at all, then wake whom it names."""

    @abstractmethod
    def _notes(self, owner: str, claims: list[Claim]) -> Estate:
        """Complete an estate with what its owner noted."""

    @abstractmethod
    def _recall(self, owner: str, batch: int) -> None:
        """Have a living owner begin nothing more of a batch."""

    def put(self, messages: Sequence[Message]) -> None:
        self._run(lambda transaction: transaction.put(messages))

    def settle(self, outcomes: Sequence[Outcome], want: Want | None = None) -> Turn:
        return self._run(lambda transaction: self._with_news(transaction).settle(outcomes, want))

    def update(self, seq: int, token: int, outcome: Outcome) -> bool:
        return self._run(lambda transaction: self._with_news(transaction).update(seq, token, outcome))

    def _with_news(self, transaction: Transaction) -> Transaction:
        if self.news_kept_s is not None:
            transaction.news_until = clock.now() + self.news_kept_s
        return transaction

    def forget(self, ids: Sequence[str] = (), old: Old | None = None) -> Forgotten:
        if old is not None:
            return self._run(lambda transaction: transaction.forget_old(old))
        return self._run(lambda transaction: transaction.forget(ids))

    def records(
        self,
        ids: Sequence[str] = (),
        group_id: str | None = None,
        failed_after: int | None = None,
        hold: str | None = None,
        whole: bool = False,
        stamped_after: int | None = None,
        follows: str | None = None,
        start: int | None = None,
    ) -> dict[str, Record]:
        return self._run(
            lambda transaction: transaction.records(
                ids, group_id, failed_after, hold, whole, stamped_after, follows, start
            )
        )

    def estate(self, owner: str, recalled: int | None = None) -> Estate:
        if recalled is not None:
            self._recall(owner, recalled)
        return self._notes(owner, self._run(lambda transaction: transaction.claims(owner)))

    def due(self, limit: int) -> list[float]:
        return self._run(lambda transaction: transaction.due(limit))

    def counts(self) -> list[Count]:
        return self._run(lambda transaction: transaction.counts())

    def entries(self, prefix: str) -> list[Entry]:
        return self._run(lambda transaction: transaction.entries(prefix))

    def write(self, key: str, value: str | None, expected: str | None, expires_at: float | None = None) -> bool:
        entry = Entry(key, value or "", expires_at)
        return self._run(lambda transaction: transaction.write(entry, value, expected))

    def maintain(self, again_in_s: float | None = None) -> bool:
        self._run(lambda _: None)  # it sees whether the store is still there
        return False

    @abstractmethod
    def enlist(self, about: dict[str, object], journal: bool = True) -> Owner: ...

    @abstractmethod
    def owners(self) -> list[OwnerInfo]: ...

    @abstractmethod
    def retire(self, owner: str) -> None: ...

    @abstractmethod
    def bell(self, queues: Sequence[str] = (), replies: str | None = None, owner: str | None = None) -> Bell: ...

    @abstractmethod
    def close(self) -> None: ...


def _is_valid(entry: Entry) -> bool:
    return entry.expires_at is None or entry.expires_at > clock.now()
