"""The sixteen verbs of `localq.storage.base` on SQLite.

Each verb is at most one transaction under the gate. What needs time and not the gate (checksums,
encoding, ringing pipes) happens before or after. Holds no SQL: `queries.sql` does.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, TypeVar

from localq import clock, faults, states
from localq.exceptions import StoreReplaced, StoreUntrusted
from localq.message import Claim, Message, Outcome, Record, Turn, Want
from localq.rates import BUCKET, RATE, STALE_S, next_turns
from localq.revocation import TERMINATE
from localq.storage import place
from localq.storage.base import DUE_BELL, NEWS_KEPT_S, STEP, Bell, Count, Entry, Estate, Forgotten, Old, OwnerInfo
from localq.storage.bells import Bells, Sleeper
from localq.storage.gate import Gate
from localq.storage.news import news_text
from localq.storage.owners import LockedOwner, Owners
from localq.storage.sqlite.claims import as_claim, claim, claim_in_turn, free
from localq.storage.sqlite.claims import turns as next_turn
from localq.storage.sqlite.delivery import Columns, put_all, put_one, wake
from localq.storage.sqlite.queries import query, reading
from localq.storage.sqlite.queries import whole as whole_query
from localq.storage.sqlite.session import Gone, Session
from localq.storage.sqlite.settlement import Settlement, place_of
from localq.storage.sqlite.sync import Syncer
from localq.storage.sqlite.writes import drop, expire, update, write_entry

T = TypeVar("T")

#: Columns of a record that is not whole: all but seq, redeliveries and message.
RECORD_COLUMNS = len(Record._fields) - 3
#: How often one verb opens the store anew because its WAL was replaced meanwhile.
REOPENINGS = 20
#: Seconds between two looks for bells whose owners are gone.
BELL_SWEEP_S = 60.0
#: Bytes of WAL after which a steward checkpoints.
STEWARD_WAL_LIMIT = 4 * 1024 * 1024


class SqliteStorage:
    """A store in a directory. Safe to use from any thread, and after a fork."""

    shared = True

    def __init__(self, directory: Path, durability: str = "standard") -> None:
        self.directory = Path(directory)
        self.url = f"sqlite:///{self.directory}"
        self._full = durability == "full"
        self._swept_at = time.monotonic()
        self._opening = threading.RLock()
        self._is_open = False
        self.must_exist = False
        self.news_kept_s: float | None = NEWS_KEPT_S
        #: Locks held from before a fork until after it.
        self._held: list[Any] = []
        self._forget_everything()

    # -- Opening and closing -----------------------------------------------------------------

    def _forget_everything(self) -> None:
        # The list first: the thread-locals' end asks it whether there is anything to close.
        self._sessions: list[Session] = []
        self._local = threading.local()
        self._is_open = False

    def _session(self) -> Session:
        try:
            session: Session = self._local.session
            if not session.is_closed:
                return session
        except AttributeError:
            pass
        session = self._local.session = self._new_session()
        self._local.guard = _Guard(self, session)
        return session

    def _new_session(self) -> Session:
        with self._opening:
            if not self._is_open:
                place.prepare(self.directory, self.must_exist)
                self._bells = Bells(self.directory / "bells")
                self._owners = Owners(self.directory / "owners")
                self._sync = Syncer(self._bells)
                self._is_open = True
                _stores.add(self)
            session = Session(self.directory)
            self._sessions.append(session)
            return session

    def _with_session(self, act: Callable[[Session], T]) -> T:
        """Do something with this thread's session; if the files are others by now, again with a new one.

        Raises:
            StoreReplaced: there is no store at this path any more, or another one each time; nothing was written.
        """
        for _ in range(REOPENINGS):
            try:
                return act(self._session())
            except Gone:
                self._close_sessions()
                if not (self.directory / place.MARK).exists():
                    break
        raise place.removed(self.directory)

    def _write(self, act: Callable[[Session], T]) -> T:
        """Write, and in `full` see it on the disk before anybody hears of it."""
        result = self._with_session(act)
        if self._full:
            self._sync.now(self._session().wal_fd)
        return result

    def _wrote(self) -> None:
        """Have what was written synced soon; last of all, because whoever was rung need not wait for this."""
        if not self._full:
            self._sync.wrote(self._session().wal_fd)

    def _read(self, sql: str, *args: Any) -> list[Any]:
        return self._with_session(lambda session: session.read(sql, *args))

    def _close_sessions(self) -> None:
        """Close every connection of this process."""
        with self._opening:
            sessions, self._sessions = self._sessions, []
            self._is_open = False
            self._close_gated(sessions)  # nobody forks in the middle of a close

    def _close_gated(self, sessions: list[Session]) -> None:
        """Close connections under the gate of whatever store is at our path now."""
        try:
            gate = Gate(self.directory / place.MARK)
        except (FileNotFoundError, StoreUntrusted):
            _close_each(sessions)  # nobody is there to be disturbed, or there is no gate that could be shut
            return
        try:
            gate.hold(_close_each, sessions)
        finally:
            gate.close()

    def release(self, session: Session) -> None:
        """Close the session of a thread that has ended."""
        with self._opening:
            if session not in self._sessions:
                return
            self._sessions.remove(session)
            self._close_gated([session])

    def close(self) -> None:
        if self._is_open:
            self._sync.finish()
            self._close_sessions()
            self._bells.close()
        self._forget_everything()
        self.must_exist = False
        _stores.discard(self)

    def before_fork(self) -> None:
        """Have nothing going on while the process is copied: no thread of ours, no connection in use."""
        if self._is_open:
            self._sync.finish()
        self._held = []
        # One after the other: which sessions there are is certain once the first lock is held.
        for lock in chain((self._opening,), (session.lock for session in self._sessions)):
            lock.acquire()
            self._held.append(lock)

    def after_fork_in_parent(self) -> None:
        """Go on."""
        while self._held:
            self._held.pop().release()

    def after_fork_in_child(self) -> None:
        """Close the parent's connections before SQLite is used here; see `session.py` for why it may be done."""
        sessions = self._sessions
        self._opening = threading.RLock()
        for session in sessions:
            session.lock = threading.RLock()
        if sessions:
            self._close_sessions()
        self._forget_everything()
        self.must_exist = False
        _stores.discard(self)

    # -- Put ---------------------------------------------------------------------------------

    def put(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        now = clock.now()
        rows = [(*message, *place_of(message, now)) for message in messages]
        if len(rows) == 1:
            self._put_one(rows[0])
        else:
            slots = self._write(lambda session: session.transact(put_all, self._bells, session.execute, rows))
            faults.at("put.released")
            self._bells.ring(slots)
        self._wrote()

    def _put_one(self, row: Columns) -> None:
        given, slots = self._write(lambda session: session.write(put_one, self._bells, session.execute, row))
        faults.at("put.released")
        self._bells.ring(slots)
        if given is not None and not self._bells.hand(*given):
            # It died, or cannot take so much at once: back to where anybody finds it. One that found it by itself
            # has done the same.
            self.settle([Outcome(given[1][0], given[1][1], row[0], ended=False)])

    # -- Settle and claim ----------------------------------------------------------------------

    def settle(self, outcomes: Sequence[Outcome], want: Want | None = None) -> Turn:
        asked = want if want is not None else Want("", (), 0, clock.now())
        is_plain = not (asked.rates or asked.frees)
        if not outcomes and asked.limit and is_plain and 0 < asked.now < self._board_due():
            # Nothing to settle and nothing due: one statement is the whole transaction. Not announced for a sync:
            # a claim that a power cut undoes goes back to the queue, where it would be anyway.
            claims = self._write(lambda session: session.write(claim, session.execute, asked))
            if len(claims) > 1:
                self._wrote()  # for the steward's eyes: some of them may wait behind a long one
            return Turn(claims, [])
        if len(outcomes) == 1 and want is not None and not asked.limit and asked.now < self._board_due():
            outcome = outcomes[0]
            has_followers = outcome.leads or outcome.sends
            if outcome.ended and outcome.state is not None and not has_followers and not outcome.charged:
                return self._settle_one(outcome)
        self._session()
        settlement = Settlement(asked.now, self._bells.note_due, self._news_until())
        turn, slots = self._write(
            lambda session: session.write(self._settle_gated, session, settlement, outcomes, asked)
        )
        if outcomes:
            faults.at("settle.released")
        self._bells.ring(slots)
        if settlement.replies:
            self._bells.ring_replies(settlement.replies)
        if outcomes or turn.moved or len(turn.claims) > 1:
            self._wrote()
        return turn

    def _settle_one(self, o: Outcome) -> Turn:
        """Write an end that means nothing to other messages: one statement is the whole transaction."""
        values = (o.state, o.result, o.content_type, o.checksum, o.traceback, o.children, o.worker, o.ended_at)
        rows, waiters = self._write(lambda session: session.write(self._end_one, session, (*values, o.seq, o.token), o))
        faults.at("settle.released")
        if not rows:
            return Turn([], [o])
        self._bells.tell(waiters, rows[0])
        self._wrote()
        return Turn([], [])

    def _end_one(self, session: Session, values: tuple[Any, ...], o: Outcome) -> tuple[list[Any], list[Sleeper]]:
        faults.at("settle.held")
        rows = session.execute(query("settle_one"), values).fetchall()
        faults.at("settle.written")
        return rows, self._bells.waiters((o.reply_to,)) if rows else []

    def _settle_gated(
        self, session: Session, settlement: Settlement, outcomes: Sequence[Outcome], want: Want
    ) -> tuple[Turn, list[int]]:
        turn, due = session.transaction(self._settle_all, session, settlement, outcomes, want)
        if due is not None:
            # After the commit: a death before it must not leave the board more hopeful than the store.
            self._bells.set_next_due(due)
        return turn, wake(self._bells, settlement.ready)

    def _settle_all(
        self, session: Session, settlement: Settlement, outcomes: Sequence[Outcome], want: Want
    ) -> tuple[Turn, float | None]:
        execute, ready = session.execute, settlement.ready
        stale = settlement.apply(execute, outcomes) if outcomes else []
        if settlement.moved:
            ready[DUE_BELL] += 64  # what was parked has a turn to come, and a steward wakes somebody for it
        is_due = not (want.limit or outcomes) or bool(settlement.moved) or not 0 < want.now < self._bells.next_due()
        promoted = execute(query("promote"), (want.now,)).fetchall() if is_due else []
        ready.update(queue for (queue,) in promoted)
        moved = len(promoted) + free(execute, want, ready)
        claims = self._claim(session, settlement, want) if want.limit else []
        due = self._next_due(session, want.now, None if want.limit else ready) if is_due else None
        # What is left after this claim is for others; what was claimed needs nobody woken.
        for taken in claims:
            if ready[taken.message.queue] > 0:
                ready[taken.message.queue] -= 1
        return Turn(claims, stale, moved + settlement.moved, tuple(settlement.held)), due

    def _claim(self, session: Session, settlement: Settlement, want: Want) -> list[Claim]:
        if not want.rates:
            return claim(session.execute, want)
        claimed = claim_in_turn(session.execute, want)
        settlement.moved += claimed.moved
        if claimed.due is not None:
            settlement.waits(claimed.due)
        return claimed.claims

    def _board_due(self) -> float:
        self._session()
        return self._bells.next_due()

    def _next_due(self, session: Session, now: float, ready: Counter[str] | None) -> float:
        """Return when the next message is due: until then no claim needs to look."""
        (left,) = session.execute(query("next_due")).fetchone()
        return min(float("inf") if left is None else float(left), next_turn(session.execute, now, ready))

    def update(self, seq: int, token: int, outcome: Outcome) -> bool:
        if outcome.again is not None and not outcome.ended:
            message = outcome.again
            return self._by_hand(lambda settlement, execute: settlement.run_again(execute, outcome, message))
        if not seq and outcome.ended_at is not None:
            return self._by_hand(lambda settlement, execute: settlement.revoke(execute, outcome))
        values = (outcome.state, outcome.result, outcome.content_type, outcome.checksum, outcome.worker)
        sql, key = ("update_claimed", (seq, token)) if seq else ("update_by_id", (outcome.id,))
        told = (outcome.id, news_text(outcome), self._news_until())
        rows = self._write(lambda session: session.transact(update, session, sql, (*values, *key), *told))
        if rows:
            self._bells.ring_replies({rows[0][0]})
        self._wrote()
        return bool(rows)

    def _news_until(self) -> float | None:
        return None if self.news_kept_s is None else clock.now() + self.news_kept_s

    def _by_hand(self, move: Callable[[Settlement, Callable[..., Any]], bool]) -> bool:
        """Move a message that no claim of the caller's is needed for; returns whether it was moved."""
        self._session()
        settlement = Settlement(clock.now(), self._bells.note_due, self._news_until())

        def act(session: Session) -> tuple[bool, list[int]]:
            done = session.transaction(move, settlement, session.execute)
            return done, wake(self._bells, settlement.ready)

        done, slots = self._write(lambda session: session.write(act, session))
        self._bells.ring(slots)
        if done:
            self._bells.ring_replies(settlement.replies)
        self._wrote()
        return done

    def forget(self, ids: Sequence[str] = (), old: Old | None = None) -> Forgotten:
        if old is not None:
            return self._forget_old(old)
        number = self._write(lambda session: session.transact(drop, session, query("forget"), (json.dumps(list(ids)),)))
        self._wrote()
        return Forgotten(number)

    def _forget_old(self, old: Old) -> Forgotten:
        now, number = clock.now(), 0
        read = self._read(query("oldest"), old.after, STEP)
        rows = list(takewhile(lambda row: not old.is_too_young(row[1], now), read))
        chosen = [row[0] for row in rows if row[2] == states.ENDED and old.has_had_its_time(row[3], row[4])]
        if chosen or self._read(query("is_expired"), now):
            times = {"ended_before": old.ended_before, "failed_before": old.failed_before}
            values = {"seqs": json.dumps(chosen), **times}
            number = self._write(lambda session: session.transact(expire, session, values, now))
            self._wrote()
        return Forgotten(number, rows[-1][0] if len(rows) == STEP else 0)

    # -- Reading ---------------------------------------------------------------------------------

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
        name, values = reading(ids, group_id, failed_after, hold, stamped_after, follows, start)
        rows = self._read(whole_query(name) if whole else query(name), *values)
        found = {row[0]: _whole_record(row) if whole else Record(*row) for row in rows}
        if self._full and any(record.ended for record in found.values()):
            # An end that was read must not be undone by a power cut: its writer may not have synced it yet.
            self._sync.now(self._session().wal_fd)
        return found

    def estate(self, owner: str, recalled: int | None = None) -> Estate:
        self._session()
        if recalled is not None:
            self._owners.recall(owner, recalled)
        rows = self._read(query("claims_of"), f"owner:{owner}")
        return self._owners.notes(owner, [as_claim(row) for row in rows])

    def due(self, limit: int) -> list[float]:
        times = [at for (at,) in self._read(query("due"), limit)]
        holds = [entry.key for entry in self.entries(RATE)]
        if holds:
            # A turn that nobody takes is nobody's to be woken for, time and again.
            turns = next_turns((entry.value for entry in self.entries(BUCKET)), holds).values()
            times += [at for at in turns if at > clock.now() - STALE_S]
        return sorted(times)[:limit]

    def counts(self) -> list[Count]:
        return [Count(*row) for row in self._read(query("counts"))]

    # -- Owners, bells, entries ------------------------------------------------------------------

    def enlist(self, about: dict[str, object], journal: bool = True) -> LockedOwner:
        self._session()
        self.must_exist = True
        self._sync.by_steward = journal and bool(about.get("steward"))
        return self._owners.enlist(about, journal)

    def owners(self) -> list[OwnerInfo]:
        # Rows first: whoever claims later has its file by then.
        named = [hold.partition(":")[2] for (hold,) in self._read(query("holders"))]
        return self._owners.infos(named)

    def retire(self, owner: str) -> None:
        # Whoever saw its flag up has put its message once we are through the gate: then the next sweep finds it.
        self._session().gate.hold(self._bells.silence, owner)
        if not self._read(query("claims_of"), f"owner:{owner}"):
            self._owners.retire(owner)

    def bell(self, queues: Sequence[str] = (), replies: str | None = None, owner: str | None = None) -> Bell:
        return self._session().gate.hold(self._bells.bell, queues, replies, owner)

    def entries(self, prefix: str) -> list[Entry]:
        return [Entry(*row) for row in self._read(query("entries"), prefix, prefix, clock.now())]

    def write(self, key: str, value: str | None, expected: str | None, expires_at: float | None = None) -> bool:
        done = self._write(lambda session: session.transact(write_entry, session, key, value, expected, expires_at))
        if key.startswith(TERMINATE):
            self._session().gate.hold(self._bells.ring_idle, DUE_BELL, 64)
        self._wrote()
        return done

    # -- Housekeeping ----------------------------------------------------------------------------

    def maintain(self, again_in_s: float | None = None) -> bool:
        return self._with_session(lambda session: self._maintain(session, again_in_s))

    def _maintain(self, session: Session, again_in_s: float | None) -> bool:
        # Locked, because a thread that finds the WAL replaced closes every connection of the process.
        with session.lock:
            if session.is_closed:
                raise Gone
            if not session.is_current():
                raise StoreReplaced(f"{self.directory} was removed or replaced while in use")
            # Said before the look: what is written after it is found by the next look, or whoever writes it asks.
            self._bells.watch(0.0 if again_in_s is None else time.monotonic() + again_in_s)
            has_changed = self._sync_what_changed(session)
        session.checkpoint(STEWARD_WAL_LIMIT)
        if time.monotonic() - self._swept_at > BELL_SWEEP_S:
            self._swept_at = time.monotonic()
            session.gate.hold(self._bells.sweep)
        return has_changed

    def _sync_what_changed(self, session: Session) -> bool:
        found = os.fstat(session.wal_fd)
        seen = (found.st_ino, found.st_size, found.st_mtime_ns)
        has_changed = bool(getattr(self._local, "synced", None) != seen)
        if has_changed:
            self._sync.now(session.wal_fd)
            # A write in the same tick of the file's clock would look the same: look once more next time.
            self._local.synced = seen if found.st_mtime_ns < clock.now() * 1e9 - 2e7 else None
        return has_changed


class _Guard:
    """Dies with its thread, and has the thread's session closed; in a forked child it does nothing."""

    def __init__(self, store: SqliteStorage, session: Session) -> None:
        self._store, self._session, self._pid = weakref.ref(store), session, os.getpid()

    def __del__(self) -> None:
        store = self._store()
        # At the interpreter's end a daemon thread may hold what `release` waits for, and runs no more.
        if store is not None and os.getpid() == self._pid and not sys.is_finalizing():
            store.release(self._session)


def _whole_record(row: tuple[Any, ...]) -> Record:
    seq, redeliveries, *message = row[RECORD_COLUMNS:]
    return Record(*row[:RECORD_COLUMNS])._replace(seq=seq, redeliveries=redeliveries, message=Message(*message))


def open_url(rest: str, durability: str) -> SqliteStorage:
    """Open the store in a directory; `localq.storage.open_storage` calls it for `sqlite:` URLs."""
    return SqliteStorage(Path(rest), durability)


# -- Forks and the end of the process ------------------------------------------------------------

#: Those that are open. Kept alive until they are closed, at exit at the latest: a connection that the garbage
#: collector closes is closed outside the gate.
_stores: set[SqliteStorage] = set()


def _close_each(sessions: list[Session]) -> None:
    for session in sessions:
        session.close()


def _each(act: Callable[[SqliteStorage], None]) -> Callable[[], None]:
    def on_all() -> None:
        for store in list(_stores):
            act(store)

    return on_all


os.register_at_fork(
    before=_each(SqliteStorage.before_fork),
    after_in_parent=_each(SqliteStorage.after_fork_in_parent),
    after_in_child=_each(SqliteStorage.after_fork_in_child),
)
atexit.register(_each(SqliteStorage.close))
