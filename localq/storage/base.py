"""The contract between localq and whatever keeps its work.

                put             settle(want)            settle(outcomes, want)
    client ---------> ready ------------------> claim --------------------------> ended
      ^                 ^ ^                       |                                | |
      |                 | +--- again, give back --+                                | |
      |                 +--------------- update(again): a retry by hand -----------+ |
      +------------------------------ records <--------------------------------------+

A storage has sixteen verbs. Each is atomic: a crash inside it leaves the state before it or the
state after it. `localq.testing.contract` is this page as tests; a storage that passes it works.

    put       messages exist from now on, all of them or none
    settle    outcomes become true, and the owner gets its next claims, in the same transaction
    update    a state that is not an end: STARTED, PROGRESS, from the attempt that holds the claim; or by hand:
              PENDING, for a message that failed and runs again, and the end of one that shall not run
    forget    results are gone, those named or those that had their time; a message that still has to run stays
    records   how tasks, the members of a group, the failed, or those who wait stand
    estate    what an owner holds: what a dead one leaves behind, what waits behind a living one's long task
    due       when the next waiting messages become visible
    counts    how many messages are where
    enlist    this process may hold claims from now on, and is known to live until it dies
    owners    who may hold claims, and whether they live
    retire    a dead owner's traces are removed, once it holds nothing
    bell      something to sleep on until work, or a result, is there
    entries   read keys (worker registry and the like)
    write     write or delete one key, if it is still what the caller saw
    maintain  housekeeping that somebody must do now and then
    close     let go of everything

A storage must not know tasks, apps or serializers, and must not run anything of the user's.
It may be used by any thread; what belongs to one thread it keeps apart itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from localq.message import Claim, Message, Outcome, Record, Turn, Want
from localq.states import PROPAGATE_STATES

#: The "queue" whose bell rings when a message starts to wait for its time.
DUE_BELL = "@due"
#: The "queue" whose bell rings when a child of a worker has written and nobody has synced since.
SYNC_BELL = "@sync"
#: How many records of those that nobody counted (the failed, those who wait) are read at once.
STEP = 200
#: Seconds for which states that are no end are kept, unless somebody says otherwise: Celery's for results.
NEWS_KEPT_S: float | None = 86400.0


class Count(NamedTuple):
    """How many messages of a queue are in a place."""

    queue: str
    place: str
    number: int


class Old(NamedTuple):
    """Which results have had their time.

    Attributes:
        after: look at messages that arrived behind this `seq`.
        ended_before: those that ended before this wall time; 0 for none.
        failed_before: the same for those that ended in FAILURE or were revoked.
    """

    after: int
    ended_before: float
    failed_before: float

    def has_had_its_time(self, state: str, ended_at: float) -> bool:
        """Whether what ended so, and then, may be forgotten."""
        return ended_at < (self.failed_before if state in PROPAGATE_STATES else self.ended_before)

    def is_too_young(self, sent_at: float, now: float) -> bool:
        """Whether neither what was sent then nor what came after it can have ended so long ago."""
        # What was sent by a clock that was wrong, and is still to come by this one, says nothing of those behind it.
        return max(self.ended_before, self.failed_before) < sent_at <= now


class Forgotten(NamedTuple):
    """What `forget` did.

    Attributes:
        number: how many results, and entries that had expired, are gone.
        seq: where to look on; 0 if there is nothing behind it that could be old enough.
    """

    number: int
    seq: int = 0


class Entry(NamedTuple):
    """A key with its value (text); gone after `expires_at` (wall time)."""

    key: str
    value: str
    expires_at: float | None


class Doing(NamedTuple):
    """What an owner is at, as its notes say at this moment.

    Attributes:
        batch: which of its batches; rises.
        seq, token: the claim of the task that began last; 0 if none of this batch has.
        left: how many more of the batch are to come after it.
        noted: bytes of outcomes that are noted and not settled.
    """

    batch: int
    seq: int
    token: int
    left: int
    noted: int

    @property
    def is_behind(self) -> bool:
        """Whether anything waits for the running task that need not."""
        return bool(self.left or self.noted)


class OwnerInfo(NamedTuple):
    """An owner as others see it.

    Attributes:
        alive: its lock is held, by whatever process.
        about: what it told when it enlisted (`pid`, `node`, `kind`, ...).
        doing: None if it keeps no notes.
    """

    name: str
    alive: bool
    about: dict[str, object]
    doing: Doing | None = None


class Started(NamedTuple):
    """A task that an owner has begun, as its notes say.

    Attributes:
        seq, token: its claim.
        mode: what becomes of it if its process dies, as its owner noted it (`recovery.mode_of`).
        deadline: when it will have run too long, by the monotonic clock; 0 for never.
        reason: why its process was killed for its sake, if it was.
        place: 0 if it runs alone; others run at the same time, see `Owner.begin`.
    """

    seq: int
    token: int
    mode: int = 0
    deadline: float = 0.0
    reason: str = ""
    place: int = 0


class Estate(NamedTuple):
    """What an owner leaves behind when it dies.

    Attributes:
        claims: what it holds, in (priority, arrival) order.
        started: the tasks it was running; nothing if it was between tasks.
        ended: outcomes that it had noted and not settled.
        batch: which of its batches it was at.
    """

    claims: list[Claim]
    started: Sequence[Started] = ()
    ended: Sequence[Outcome] = ()
    batch: int = 0


class Owner(Protocol):
    """This process's right to hold claims; ends with the process at the latest."""

    name: str

    def turn(self) -> bool:
        """Note that a new batch begins; called before it is claimed. Returns whether the one before was recalled."""

    def begin(self, claim: Claim, mode: int, left: int = 0, deadline: float = 0.0, place: int = 0) -> bool:
        """Note that a task is about to run, so that its death can be told from a mere reservation.

        Args:
            mode: what becomes of the task if this process dies; 64 bits that only `recovery` reads.
            left: how many of the batch are to come after it.
            deadline: when it will have run too long, by the monotonic clock; 0 for never.
            place: 0 for the one task that runs alone; those that run at the same time have a place each, from 1 on,
                until it is freed.

        Returns:
            False if the batch was recalled: the task must not run, what has not begun is given back.
        """

    def free(self, place: int) -> None:
        """Note that what ran in a place is settled."""

    def end(self, outcome: Outcome) -> bool:
        """Note how it ended, so that the outcome survives this process before it is settled.

        Returns False if it could not be noted: then settle before the next task begins.
        """

    def settled(self) -> bool:
        """Note that everything noted is settled. Returns whether the batch that begins was recalled meanwhile."""

    def close(self) -> None:
        """Give the right up; claims still held count as a dead owner's."""


class Bell(Protocol):
    """Something to sleep on. A hint, never the truth: who wakes looks again, and who sleeps too long looks too.

    Raise it first, look second, sleep third: a ring between look and sleep ends the sleep at once.

    Attributes:
        is_unsure: for an owner's bell: it may have been given a message whose copy did not come. Its `estate` tells.
        raised: how often it was raised.
    """

    is_unsure: bool
    raised: int

    def raise_(self) -> None:
        """Ask to be rung."""

    def lower(self) -> None:
        """Do not ask any more."""

    def is_up(self) -> bool:
        """Whether it has been raised, and neither lowered nor rung since."""

    def sleep(self, timeout_s: float, also: int | None = None) -> bool:
        """Sleep until rung, at most `timeout_s`; returns whether it rang.

        With `also`, a descriptor: until that can be read, too. Storages that are not shared ignore it.
        """

    def looked(self) -> None:
        """Be sure again: the owner looks now at what it holds, and copies of that which come later are void."""

    def copies(self) -> list[tuple[Any, ...]]:
        """Return, once, what the last ring brought: fields of a claim for an owner, of a record for a waiter.

        A storage that brings nothing always answers with an empty list.
        """

    def close(self) -> None: ...


class Storage(Protocol):
    """Where messages, claims and results live. See the module for the whole picture."""

    #: What a user would write to open it again.
    url: str
    #: Whether other processes can open the same store.
    shared: bool
    #: Make nothing where there is no store: for those who follow somebody who has opened it.
    must_exist: bool
    #: Seconds after which states that are no end are forgotten; None: with the result.
    news_kept_s: float | None

    def put(self, messages: Sequence[Message]) -> None:
        """Make messages exist: ready, waiting until `visible_at`, or held until `after` has ended.

        A message whose id exists already with the same name and body is left as it is; so sending
        the same again is safe. One idle owner is woken for each ready message; a single message may be put
        straight into the hands of one that sleeps, which then holds it as if it had claimed it.

        Raises:
            DuplicateTaskId: an id exists with another name or body; nothing was written.
            StoreFull, StoreReadOnly, StoreBusy: nothing was written.
            OutcomeUnknown: the disk failed; the messages exist or not. Putting them again is safe.
        """

    def settle(self, outcomes: Sequence[Outcome], want: Want | None = None) -> Turn:
        """Make outcomes true and hand out the next claims, in one transaction.

        For each outcome whose token is still the message's newest and whose message is still held:
        the state and result are written (no state: both stay); the message ends, goes back (`again`), or
        is given back (`ended=False` and no `again`: to wait again, if the clock was set back before its time), or
        waits under a key (`hold`); `sends` exist; those who waited for it go on (after SUCCESS and IGNORED), stay (an
        end without a state), or fail with it (any other state). An outcome whose token is stale changes nothing and
        is returned. Due messages are promoted first, and those under the keys `want.frees` (of each as many as are
        wanted, or some hundreds); then up to `want.limit` ready ones are claimed in (priority, arrival) order. Waiters
        named by `reply_to` are woken.

        A claim is `revoked` if there is an entry for it (`localq.revocation.rules_of`), written before it was claimed;
        then it is settled without being run. So nothing is handed over by `put` while there are such entries.

        Messages of the tasks in `want.rates` are claimed only with a token, at most one a time and then first;
        without one they wait under `Rate.hold`, and are claimed from there (see `localq.rates`). An entry with
        the name of a key exists as long as messages wait under it.
        """

    def update(self, seq: int, token: int, outcome: Outcome) -> bool:
        """Write a state that is no end; returns False if the claim is stale or the task has ended.

        It is kept as an entry as well, next to the last ones before it (see `localq.storage.news`), and so is the
        state of an outcome that `settle` is given with `again`. The bell of `reply_to` is rung.

        With `seq` 0 the message is found by `outcome.id`, whoever holds it, if it has not ended.

        With `outcome.again` as well, and no end, a message that ended in FAILURE or REVOKED runs again: it is that
        message from now on, in the place that a new one would get, with the outcome's state and result and
        with no crash charged. It keeps its order of arrival and its token, so whatever an earlier claim
        still says of it is stale. One idle owner is woken. Returns False, and nothing changes, if it has
        not ended so. Those who failed with it stay as they are.

        With `seq` 0 and `outcome.ended_at`, it is the end of a message that no owner has, wherever it waits: as in
        `settle`, those who waited for it fail with it. Of one that an owner has, the end is kept, and comes as soon as
        an outcome would have the message run again (`again`, given back, `hold`), in its place; an outcome that ends
        it is what counts. Returns False then, and if there is no such message or it has ended.
        With `again` besides, it is the end of that message, which nobody knew: it is put and ended at once. Returns
        False, and nothing changes, if its id is known.
        """

    def forget(self, ids: Sequence[str] = (), old: Old | None = None) -> Forgotten:
        """Drop the results of tasks that have ended, and the states before it: their ids become unknown. Others stay.

        With `old` instead of ids, at most STEP messages are looked at, in order of arrival, and those that have had
        their time are dropped, unless a message that has not ended waits for them or is fed by them; expired entries
        too, at most some hundreds.
        """

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
        """Return how these tasks stand, by id; unknown ids are absent.

        Args:
            ids: these tasks; only one of these arguments but `whole` and `start` is given.
            group_id: the members of that group, in the order of their positions.
            failed_after: those that ended in FAILURE, in order of arrival from behind this `seq`, the first
                STEP of them. Found by an index that has nothing but them.
            hold: those that this holds (`after:<id>`: they wait for that end), the first STEP of them.
            whole: with `seq`, `redeliveries` and `message`; without, reading costs less.
            stamped_after: those that have stamps and have not ended, in order of arrival from behind this `seq`, the
                first STEP of them.
            follows: those that wait, or waited, for this end (a message's id, or a group's), in order of arrival, the
                first STEP of them.
            start: with `group_id`, from this position on; with `follows`, from this `seq` on; the first STEP of them.
        """

    def estate(self, owner: str, recalled: int | None = None) -> Estate:
        """Return what an owner holds and what it noted of its last batch.

        Args:
            recalled: a batch of which a living owner shall begin nothing more; what the answer does not call
                started will not be, unless its `batch` is another by now.
        """

    def due(self, limit: int) -> list[float]:
        """Return the wall times at which the next messages become visible, or have their turn, earliest first."""

    def counts(self) -> list[Count]:
        """Return how many messages are in each place of each queue."""

    def enlist(self, about: dict[str, object], journal: bool = True) -> Owner:
        """Let this process hold claims.

        Args:
            about: facts for others to see.
            journal: keep a slot and a journal, so that others can tell started from reserved.
        """

    def owners(self) -> list[OwnerInfo]:
        """Return everybody who enlisted and has not been retired."""

    def retire(self, owner: str) -> None:
        """Remove the traces of a dead owner, unless it holds a claim (given to it at the last moment)."""

    def bell(self, queues: Sequence[str] = (), replies: str | None = None, owner: str | None = None) -> Bell:
        """Return a bell of this thread's own.

        Args:
            queues: ring when a message is ready in one of these.
            replies: ring when a message with this `reply_to` ends; `"*"` for any message.
            owner: the owner that sleeps on it, which may be given messages of these queues while it sleeps.
        """

    def entries(self, prefix: str) -> list[Entry]:
        """Return the entries whose key begins with `prefix` and that have not expired."""

    def write(self, key: str, value: str | None, expected: str | None, expires_at: float | None = None) -> bool:
        """Set a key (None deletes it), if its value is still `expected` (None: absent); says whether it was.

        Whoever sleeps for DUE_BELL is woken for a key that begins with TERMINATE.
        """

    def maintain(self, again_in_s: float | None = None) -> bool:
        """Do what keeps the store small and safe: checkpoint, sync. Called by every steward.

        Args:
            again_in_s: the caller will be here again in so many seconds, so nobody need ask for it until then.

        Returns:
            Whether anything was written since the last time, as far as the storage can tell.

        Raises:
            StoreReplaced: the store's files are gone or are others.
        """

    def close(self) -> None:
        """Let go of everything this process has of the store. Using it again opens it again."""
