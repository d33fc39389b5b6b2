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
    update    a state that is not an end: STARTED, PROGRESS, from the attempt that holds the claim; or
              PENDING, for a message that failed and runs again by hand
    forget    results are gone; a message that still has to run stays
    records   how tasks, the members of a group, the failed, or those who wait stand
    estate    what a dead owner leaves behind
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
from typing import NamedTuple, Protocol

from localq.message import Claim, Message, Outcome, Record, Turn, Want

#: The "queue" whose bell rings when a message starts to wait for its time.
DUE_BELL = "@due"
#: The "queue" whose bell rings when a child of a worker has written and nobody has synced since.
SYNC_BELL = "@sync"
#: How many records of those that nobody counted (the failed, those who wait) are read at once.
STEP = 200


class Count(NamedTuple):
    """How many messages of a queue are in a place."""

    queue: str
    place: str
    number: int


class Entry(NamedTuple):
    """A key with its value (text); gone after `expires_at` (wall time)."""

    key: str
    value: str
    expires_at: float | None


class OwnerInfo(NamedTuple):
    """An owner as others see it.

    Attributes:
        alive: its lock is held, by whatever process.
        about: what it told when it enlisted (`pid`, `node`, `kind`, ...).
    """

    name: str
    alive: bool
    about: dict[str, object]


class Estate(NamedTuple):
    """What an owner leaves behind when it dies.

    Attributes:
        claims: what it holds, in (priority, arrival) order.
        started: (seq, token) of the task it was running; None if it was between tasks.
        mode: the acknowledgement mode of that task, as its owner noted it (`recovery.mode_of`).
        ended: outcomes that it had noted and not settled.
    """

    claims: list[Claim]
    started: tuple[int, int] | None
    mode: int
    ended: list[Outcome]


class Owner(Protocol):
    """This process's right to hold claims; ends with the process at the latest."""

    name: str

    def begin(self, claim: Claim, mode: int) -> None:
        """Note that a task is about to run, so that its death can be told from a mere reservation.

        Args:
            mode: what becomes of the task if this process dies; 64 bits that only `recovery` reads.
        """

    def end(self, outcome: Outcome) -> bool:
        """Note how it ended, so that the outcome survives this process before it is settled.

        Returns False if it could not be noted: then settle before the next task begins.
        """

    def settled(self) -> None:
        """Note that everything noted is settled."""

    def close(self) -> None:
        """Give the right up; claims still held count as a dead owner's."""


class Bell(Protocol):
    """Something to sleep on. A hint, never the truth: who wakes looks again, and who sleeps too long looks too.

    Raise it first, look second, sleep third: a ring between look and sleep ends the sleep at once.
    """

    def raise_(self) -> None:
        """Ask to be rung."""

    def lower(self) -> None:
        """Do not ask any more."""

    def sleep(self, timeout_s: float, also: int | None = None) -> bool:
        """Sleep until rung, at most `timeout_s`; returns whether it rang.

        With `also`, a descriptor: until that can be read, too. Storages that are not shared ignore it.
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

    def put(self, messages: Sequence[Message]) -> None:
        """Make messages exist: ready, waiting until `visible_at`, or held until `after` has ended.

        A message whose id exists already with the same name and body is left as it is; so sending
        the same again is safe. One idle owner is woken for each ready message.

        Raises:
            DuplicateTaskId: an id exists with another name or body; nothing was written.
            StoreFull, StoreReadOnly, StoreBusy: nothing was written.
            OutcomeUnknown: the disk failed; the messages exist or not. Putting them again is safe.
        """

    def settle(self, outcomes: Sequence[Outcome], want: Want | None = None) -> Turn:
        """Make outcomes true and hand out the next claims, in one transaction.

        For each outcome whose token is still the message's newest and whose message is still held:
        the state and result are written (no state: both stay); the message ends, goes back (`again`), or
        is given back (`ended=False` and no `again`); `sends` exist; those who waited for it go on (after
        SUCCESS and IGNORED), stay (an end without a state), or fail with it (any other state). An outcome
        whose token is stale changes nothing and is returned. Due messages are promoted first, then up to
        `want.limit` ready ones are claimed in (priority, arrival) order. Waiters named by `reply_to` are
        woken.
        """

    def update(self, seq: int, token: int, outcome: Outcome) -> bool:
        """Write a state that is no end; returns False if the claim is stale or the task has ended.

        With `seq` 0 the message is found by `outcome.id`, whoever holds it, if it has not ended.

        With `outcome.again` as well, a message that ended in FAILURE or REVOKED runs again: it is that
        message from now on, in the place that a new one would get, with the outcome's state and result and
        with no crash charged. It keeps its order of arrival and its token, so whatever an earlier claim
        still says of it is stale. One idle owner is woken. Returns False, and nothing changes, if it has
        not ended so. Those who failed with it stay as they are.
        """

    def forget(self, ids: Sequence[str]) -> None:
        """Drop the results of tasks that have ended: their ids become unknown. Others stay."""

    def records(
        self,
        ids: Sequence[str] = (),
        group_id: str | None = None,
        failed_after: int | None = None,
        hold: str | None = None,
        whole: bool = False,
    ) -> dict[str, Record]:
        """Return how these tasks stand, by id; unknown ids are absent.

        Args:
            ids: these tasks; only one of the first four arguments is given.
            group_id: the members of that group, in the order of their positions.
            failed_after: those that ended in FAILURE, in order of arrival from behind this `seq`, the first
                STEP of them. Found by an index that has nothing but them.
            hold: those that this holds (`after:<id>`: they wait for that end), the first STEP of them.
            whole: with `seq`, `redeliveries` and `message`; without, reading costs less.
        """

    def estate(self, owner: str) -> Estate:
        """Return what an owner holds and what it noted of its last batch."""

    def due(self, limit: int) -> list[float]:
        """Return the wall times at which the next waiting messages become visible, earliest first."""

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
        """Remove the traces of a dead owner that holds no claims any more."""

    def bell(self, queues: Sequence[str] = (), replies: str | None = None) -> Bell:
        """Return a bell of this thread's own.

        Args:
            queues: ring when a message is ready in one of these.
            replies: ring when a message with this `reply_to` ends; `"*"` for any message.
        """

    def entries(self, prefix: str) -> list[Entry]:
        """Return the entries whose key begins with `prefix` and that have not expired."""

    def write(self, key: str, value: str | None, expected: str | None, expires_at: float | None = None) -> bool:
        """Set a key (None deletes it), if its value is still `expected` (None: absent); says whether it was."""

    def maintain(self) -> None:
        """Do what keeps the store small and safe: checkpoint, sync. Called by every steward.

        Raises:
            StoreReplaced: the store's files are gone or are others.
        """

    def close(self) -> None:
        """Let go of everything this process has of the store. Using it again opens it again."""
