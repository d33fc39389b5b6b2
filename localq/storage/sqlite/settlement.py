"""What outcomes do to the messages of a store, inside the transaction that settles them.

An end is written, its claim freed, whatever it sends put, and whoever waited for it goes on or fails with
it. Fenced by token: of an outcome that comes too late, nothing is written. Must not claim, and must not
ring; it says who should be rung.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from localq import faults, states
from localq.message import (
    ENTERS,
    LEADS_ANYWAY,
    LEADS_BY_GROUP,
    LEADS_BY_ID,
    LEADS_IF_BAD,
    SHOWS_CAUSE,
    Message,
    Outcome,
    key_of,
)
from localq.revocation import end_text, with_end
from localq.serialization import checksum
from localq.storage.base import DUE_BELL
from localq.storage.news import news_text
from localq.storage.sqlite.queries import query, with_rows
from localq.storage.sqlite.writes import tell

T = TypeVar("T")

#: Rows of one bulk statement, largest first: four texts serve every number of rows.
CHUNKS = (64, 16, 4, 1)
#: Columns of a put: a message's, its place and what holds it there.
MESSAGE_COLUMNS = len(Message._fields) + 2
_SETTLE_COLUMNS = 10


class Settlement:
    """The outcomes of one `settle`, written inside its transaction.

    Args:
        now: the wall time that decides what waits.
        note_due: told of every time that a message begins to wait for.
        news_until: when states that are no end are forgotten.

    Attributes:
        ready: by queue, how many messages became ready.
        moved: how many have to wait for their turn since.
        held: the keys under which they wait, and nothing waited before.
        replies: whose bells are to be rung.
    """

    def __init__(self, now: float, note_due: Callable[[float], None], news_until: float | None = None) -> None:
        self.now, self._note_due, self._news_until = now, note_due, news_until
        self.ready: Counter[str] = Counter()
        self.moved = 0
        self.held: list[str] = []
        self.replies: set[str | None] = set()

    def apply(self, execute: Callable[..., Any], outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Write outcomes; return those whose claim was stale."""
        self.execute = execute
        faults.at("settle.held")
        open_ones = self._end([outcome for outcome in outcomes if outcome.ended])
        stale = []
        for outcome in outcomes:
            key = (outcome.seq, outcome.token)
            if not self._is_written(outcome, key in open_ones):
                stale.append(outcome)
                continue
            open_ones.discard(key)  # the same outcome once more in the same settle is stale
            self.replies.add(outcome.reply_to)
            if outcome.charged and outcome.ended:
                execute(query("charge"), (outcome.charged, outcome.seq))
            if outcome.leads or outcome.sends:
                self._follow(outcome)
        faults.at("settle.written")
        return stale

    def _is_written(self, outcome: Outcome, has_ended: bool) -> bool:
        if outcome.ended:
            return has_ended
        return self._goes_back(outcome) or self._ends_revoked(outcome)

    def _goes_back(self, outcome: Outcome) -> bool:
        if outcome.hold is not None:
            return self._park(outcome, outcome.hold)
        return self._again(outcome) if outcome.again else self._give_back(outcome)

    def _ends_revoked(self, o: Outcome) -> bool:
        """End what was revoked while an owner had it, and is not to run again."""
        for id, group_id, leads, reply_to, text in self.execute(query("revoked"), (o.seq, o.token)).fetchall():
            end = with_end(text, Outcome(o.seq, o.token, id, group_id=group_id, leads=leads, reply_to=reply_to,
                                         ended_at=self.now))  # fmt: skip
            self._end([end])
            if o.charged:
                self.execute(query("charge"), (o.charged, o.seq))
            self.replies.add(reply_to)
            self._follow(end)
            return True
        return False

    def revoke(self, execute: Callable[..., Any], o: Outcome) -> bool:
        """End a message that no owner has, or mark the one that an owner has; returns whether it ended."""
        self.execute = execute
        if o.again is not None and not self._begin(o.again):
            return False
        values = (o.state, o.result, o.content_type, o.checksum, o.traceback, o.children, o.worker, o.ended_at, o.id)
        for seq, token, group_id, leads, reply_to in execute(query("revoke"), values).fetchall():
            self.replies.add(reply_to)
            self._follow(o._replace(seq=seq, token=token, group_id=group_id, leads=leads, reply_to=reply_to))
            return True
        execute(query("mark_revoked"), (end_text(o), o.id))
        return False

    def _begin(self, m: Message) -> bool:
        """Put a message; returns whether nobody knew it."""
        return bool(self.execute(with_rows("put", 1, MESSAGE_COLUMNS), (*m, *place_of(m, self.now))).rowcount)

    def _end(self, outcomes: Sequence[Outcome]) -> set[tuple[int, int]]:
        fresh: set[tuple[int, int]] = set()
        for chunk in chunks(outcomes):
            values: list[Any] = []
            for o in chunk:
                values += (o.seq, o.token, o.state, o.result, o.content_type, o.checksum, o.traceback, o.children,
                           o.worker, o.ended_at)  # fmt: skip
            fresh.update(self.execute(with_rows("settle", len(chunk), _SETTLE_COLUMNS), values).fetchall())
        return fresh

    def _give_back(self, o: Outcome) -> bool:
        rows = self.execute(query("give_back"), (self.now, o.charged, o.seq, o.token)).fetchall()
        self._opened(rows)
        return bool(rows)

    def _park(self, o: Outcome, hold: str) -> bool:
        is_held = bool(self.execute(query("park_one"), (hold, o.seq, o.token)).rowcount)
        if is_held:
            self.moved += 1
            self.held += [key for (key,) in self.execute(query("mark"), (hold,)).fetchall()]
        return is_held

    def _again(self, o: Outcome) -> bool:
        m = o.again
        assert m is not None
        where, _ = place_of(m, self.now)
        rows = self.execute(query("again"), (
            where, o.state, o.result, o.content_type, o.checksum, o.traceback, o.worker, m.name, m.body, m.queue,
            m.priority, m.content_type, m.checksum, m.headers, m.retries, m.visible_at, m.expires_at, o.charged,
            o.seq, o.token,
        )).fetchall()  # fmt: skip
        if rows:
            tell(self.execute, o.id, news_text(o), self._news_until)
        if where == states.READY:
            self.ready.update(queue for (queue,) in rows)
        elif rows and m.visible_at is not None:
            self.waits(m.visible_at)
        return bool(rows)

    def run_again(self, execute: Callable[..., Any], o: Outcome, m: Message) -> bool:
        """Let a message that ended in FAILURE or REVOKED run again, as `m`; returns whether it had ended so."""
        where, hold = place_of(m, self.now)
        rows = execute(query("run_again"), (
            where, hold, o.state, o.result, o.content_type, o.checksum, o.traceback, o.children, o.worker, m.name,
            m.body, m.queue, m.priority, m.content_type, m.checksum, m.headers, m.retries, m.visible_at, m.expires_at,
            m.waits_for, o.id,
        )).fetchall()  # fmt: skip
        for queue, reply_to in rows:
            self.replies.add(reply_to)
            if where == states.READY:
                self.ready[queue] += 1
            elif where == states.WAITING:
                self.waits(m.visible_at)
            tell(execute, o.id, news_text(o), self._news_until)
        return bool(rows)

    def _opened(self, rows: list[Any]) -> None:
        """Count messages that may run: now, or once their time has come."""
        for queue, where, visible_at in rows:
            if where == states.READY:
                self.ready[queue] += 1
            else:
                self.waits(visible_at)

    def waits(self, visible_at: Any) -> None:
        """Note that a message waits for a time, and have a steward woken who sees to it."""
        self._note_due(visible_at)
        self.ready[DUE_BELL] += 64

    def _follow(self, o: Outcome) -> None:
        """Do what an end means to others: send, let the waiting go on, or let them fail with it."""
        for chunk in chunks([(*sent, *place_of(sent, self.now)) for sent in o.sends]):
            sql = with_rows("put", len(chunk), MESSAGE_COLUMNS)
            self.execute(sql, [value for row in chunk for value in row])
            self.ready.update(row[3] for row in chunk if row[-2] == states.READY)
            for row in chunk:
                if row[-2] == states.WAITING:
                    self.waits(row[14])
        if not o.ended or not o.leads:
            return
        if o.state in states.GOOD_STATES:
            self._succeed_followers(o)
        elif o.state is not None:
            self._fail_followers(o)
        elif o.leads & LEADS_ANYWAY:
            self._progress(f"ends:{o.group_id}")

    def _succeed_followers(self, o: Outcome) -> None:
        if o.leads & LEADS_BY_ID:
            self._progress(f"after:{o.id}")
        if o.leads & LEADS_BY_GROUP:
            self._progress(f"after:{o.group_id}")
        if o.leads & LEADS_ANYWAY:
            self._progress(f"ends:{o.group_id}")
        if o.leads & LEADS_IF_BAD:
            for seq, waits_for in self.execute(query("progress"), (f"fails:{o.group_id}",)).fetchall():
                if waits_for <= 0:
                    self.execute(query("drop"), (seq,))  # all went well: what it waited for will not come

    def _progress(self, key: str, at_once: bool = False) -> None:
        for seq, waits_for in self.execute(query("progress"), (key,)).fetchall():
            if at_once or waits_for <= 0:
                self._opened(self.execute(query("release"), {"now": self.now, "seq": seq}).fetchall())

    def _fail_followers(self, o: Outcome) -> None:
        own = (o.result, o.content_type, o.checksum, o.traceback)
        group = own
        if o.group_failure is not None:
            group = (o.group_failure, "application/json", checksum(o.group_failure), o.traceback)
        # A list and no recursion: a chain may be longer than Python's stack.
        left = [(o.id, o.group_id, o.leads, own, 0)]
        while left:
            id, group_id, leads, failure, lost = left.pop()
            if leads & LEADS_BY_ID:
                left += self._failed_behind(f"after:{id}", failure, failure, lost, o.ended_at)
            if leads & LEADS_BY_GROUP:
                shown = failure if lost else group
                left += self._failed_behind(f"after:{group_id}", shown, failure, max(lost - 1, 0), o.ended_at)
            if leads & LEADS_IF_BAD:
                self._drop(f"fails:{group_id}") if lost else self._progress(f"fails:{group_id}", at_once=True)
            if leads & LEADS_ANYWAY:
                self._progress(f"ends:{group_id}")

    def _failed_behind(self, key: str, failure: Any, cause: Any, lost: int, ended_at: float | None) -> list[Any]:
        """End those who waited under a key.

        Args:
            lost: so many of the groups that they are in have failed as a whole.

        Returns:
            What others know of each, how it ended, and `lost` for those who wait for it.
        """
        rows = self.execute(query("fail_followers"), (*_alternately(failure, cause), ended_at, key)).fetchall()
        self.replies.update(row[3] for row in rows)
        return [(*row[:3], cause if row[2] & SHOWS_CAUSE else failure, lost + row[2] // ENTERS) for row in rows]

    def _drop(self, key: str) -> None:
        for seq, _ in self.execute(query("progress"), (key,)).fetchall():
            self.execute(query("drop"), (seq,))


def _alternately(failure: Any, cause: Any) -> list[Any]:
    return [value for pair in zip(cause, failure, strict=True) for value in pair]


def place_of(message: Message, now: float) -> tuple[str, str | None]:
    """Say where a new message goes, and what holds it there."""
    if message.waits_for:
        return states.HELD, key_of(message)
    if message.visible_at is not None and message.visible_at > now:
        return states.WAITING, None
    return states.READY, None


def chunks(rows: Sequence[T]) -> list[Sequence[T]]:
    """Cut rows into pieces of the sizes in CHUNKS."""
    found, at = [], 0
    for size in CHUNKS:
        while len(rows) - at >= size:
            found.append(rows[at : at + size])
            at += size
    return found
