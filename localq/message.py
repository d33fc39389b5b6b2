"""The records that travel: what is asked, who has it, how it ended, how it stands.

`Message -> Claim -> Outcome` is the life of one attempt; `Record` is what a reader sees. All of
them are plain tuples (NamedTuple: built in C, 0.3 us against 3 us for a frozen dataclass of this
width, and an SQL row is one already). Knows nothing of how or where they are kept.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping
from typing import NamedTuple

#: `Message.leads`: others wait for this message's end, by its id ...
LEADS_BY_ID = 1
#: ... or by the end of every member of its group ...
LEADS_BY_GROUP = 2
#: ... of whichever kind that end is, or for the first one that is bad.
LEADS_ANYWAY, LEADS_IF_BAD = 4, 8
#: `Message.leads`, of those who wait: for ends of any kind, or for a bad one.
WAITS_ANYWAY, WAITS_IF_BAD = 16, 32
#: If what it waits for fails, it shows that failure itself, and not that of a whole group.
SHOWS_CAUSE = 64
#: From here on it counts how many groups begin with it: if what it waits for fails, they are lost as a whole, and who
#: waits for one of them shows that failure, too.
ENTERS = 256


class Message(NamedTuple):
    """What is asked: one task to run once, with everything needed to run it.

    Attributes:
        body: the encoded `[args, kwargs]`.
        headers: JSON text of whatever differs from the defaults; None for a plain call.
        origin: the sender, `gen<pid>@<host>`.
        reply_to: names the sender's bell.
        visible_at: not before this wall time; None means now.
        expires_at: from this wall time on it must not start.
        after: the message waits for the end of this message id or group id ...
        waits_for: ... that is, for so many ends; 0 means it waits for nobody. Until they have come, the two times
            may be below 0: so many seconds after the last of them.
        group_id, position: membership in a group, and the place of its result in it.
        leads: whether others wait for this one (LEADS_...), and how it waits itself (the others below).
    """

    id: str
    name: str
    body: bytes
    queue: str = "celery"
    priority: int = 5
    content_type: str = "application/json"
    compression: str | None = None
    signature: bytes | None = None
    checksum: int = 0
    headers: str | None = None
    origin: str | None = None
    reply_to: str | None = None
    retries: int = 0
    sent_at: float = 0.0
    visible_at: float | None = None
    expires_at: float | None = None
    ignore_result: int = 0
    after: str | None = None
    waits_for: int = 0
    group_id: str | None = None
    position: int | None = None
    leads: int = 0


def released(message: Message, now: float) -> Message:
    """Return a message that has nobody left to wait for: times that counted from there are wall times now."""
    visible_at, expires_at = message.visible_at, message.expires_at
    return message._replace(
        waits_for=0,
        visible_at=now - visible_at if visible_at is not None and visible_at < 0 else visible_at,
        expires_at=now - expires_at if expires_at is not None and expires_at < 0 else expires_at,
    )


def key_of(message: Message) -> str:
    """Return the key under which a message waits for others' ends."""
    kind = "ends" if message.leads & WAITS_ANYWAY else "fails" if message.leads & WAITS_IF_BAD else "after"
    return f"{kind}:{message.after}"


class Claim(NamedTuple):
    """A message in the hands of an owner.

    `token` rises with every claim of this message: only the newest may settle it.
    `redeliveries` counts the attempts that a dead owner did not end. `revoked` says that it must not run: it was
    revoked before it was sent, or by a stamp that it has.
    """

    seq: int
    token: int
    redeliveries: int
    message: Message
    revoked: bool = False


class Rate(NamedTuple):
    """How often messages of one task may start.

    Attributes:
        task: whose messages; with their queue, it is the key under which they wait for their turn.
        bucket: the entry that says when the next may start; its owners share the limit.
        period_s: seconds between two starts.
    """

    task: str
    bucket: str
    period_s: float

    def hold(self, queue: str) -> str:
        """Return the key for messages of a queue: whoever serves others is not kept waiting by these."""
        return f"rate:{self.task}@{queue}"


class Want(NamedTuple):
    """What an owner would take: at most `limit` messages of these queues, due by `now`.

    Attributes:
        rates: by task name, what must not start more often than that.
        frees: keys whose messages are to become ready first.
    """

    owner: str
    queues: tuple[str, ...]
    limit: int
    now: float
    rates: Mapping[str, Rate] = {}
    frees: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """How an attempt ended, as data. `storage.settle` makes it true in one transaction.

    Attributes:
        state: the new state; None leaves it as it is (Ignore, a message given back).
        ended: the message will not run again.
        again: the message to run again under the same id (a retry, also one by hand), or None.
        hold: the key under which a message that has not ended waits, instead of becoming ready at once.
        charged: 1 if this attempt counts as a redelivery (its owner died while running it).
        result, content_type, checksum: the encoded result, or the exception as data.
        group_failure: what those who wait for the whole group get if this member failed.
        sends: further messages that exist from this moment on.
    """

    seq: int
    token: int
    id: str
    state: str | None = None
    ended: bool = True
    again: Message | None = None
    charged: int = 0
    result: bytes | None = None
    content_type: str | None = None
    checksum: int | None = None
    traceback: str | None = None
    children: str | None = None
    worker: str | None = None
    ended_at: float | None = None
    group_failure: bytes | None = None
    sends: tuple[Message, ...] = ()
    group_id: str | None = None
    leads: int = 0
    reply_to: str | None = None
    hold: str | None = None


class Record(NamedTuple):
    """How a task stands: what `AsyncResult` reads.

    `seq`, `redeliveries` and `message` are there only if the whole record was asked for.
    """

    id: str
    name: str
    state: str
    place: str
    result: bytes | None
    content_type: str | None
    checksum: int | None
    traceback: str | None
    children: str | None
    worker: str | None
    ended_at: float | None
    retries: int
    queue: str
    group_id: str | None
    position: int | None
    ignore_result: int
    hold: str | None
    seq: int = 0
    redeliveries: int = 0
    message: Message | None = None

    @property
    def ended(self) -> bool:
        return self.place == "ended"


class Turn(NamedTuple):
    """What `settle` answers.

    Attributes:
        claims: the next ones.
        stale: the outcomes refused because their claim was.
        moved: how many messages were promoted, freed, or have to wait for their turn; ask again if there are any.
        held: the keys under which messages wait that nothing waited under before.
    """

    claims: list[Claim]
    stale: list[Outcome]
    moved: int = 0
    held: tuple[str, ...] = ()


_PARTS = struct.Struct("=QH")


class _Ids:
    """UUIDv7 (RFC 9562): ordered by time, so that a million of them stay neighbours in an index.

    The 74 random bits are the kernel's, asked for and written out for 256 ids at once: a system call for each would
    be a tenth of what a put may cost in Python. A forked child asks anew.
    """

    def __init__(self) -> None:
        self.ask()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.ask)

    def ask(self) -> None:
        self._tails = iter([self._tail(low, high) for low, high in _PARTS.iter_unpack(os.urandom(256 * _PARTS.size))])

    def _tail(self, low: int, high: int) -> str:
        last = f"{0x8 << 60 | low >> 2:016x}"
        return f"7{high & 0xFFF:03x}-{last[:4]}-{last[4:]}"

    def new(self) -> str:
        tail = next(self._tails, None)
        while tail is None:
            self.ask()
            tail = next(self._tails, None)
        head = f"{time.time_ns() // 1_000_000:012x}"
        return f"{head[:8]}-{head[8:]}-{tail}"


new_id = _Ids().new
