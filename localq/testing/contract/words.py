"""The words that the tests of the contract are made of: messages, outcomes, claims, processes.

Public, for the tests of a storage's own traits. Must not know any storage.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from localq import clock
from localq.message import LEADS_BY_GROUP, LEADS_BY_ID, Claim, Message, Outcome, Record, Want, new_id
from localq.serialization import checksum
from localq.states import FAILURE, PENDING, RETRY, REVOKED, SUCCESS
from localq.storage.base import Bell, Owner, Storage

#: Long enough for any machine, in seconds; only a failing test waits so long.
PATIENCE_S = 30.0


def message(id: str = "", **columns: Any) -> Message:
    """A message of little interest but for the columns given."""
    return Message(**{"id": id or new_id(), "name": "t.add", "body": b"[[1, 2], {}]", **columns})


def outcome(claim: Claim, state: str | None = SUCCESS, **columns: Any) -> Outcome:
    """How the attempt of a claim ended, with what an executor copies from the message."""
    asked = claim.message
    copied = {"group_id": asked.group_id, "leads": asked.leads, "reply_to": asked.reply_to}
    return Outcome(claim.seq, claim.token, asked.id, state, **{"ended_at": clock.now(), **copied, **columns})


def failure(claim: Claim, state: str = FAILURE, **columns: Any) -> Outcome:
    result = b'{"exc_type": "ValueError"}'
    written = {"result": result, "content_type": "application/json", "checksum": checksum(result), "traceback": "at t"}
    return outcome(claim, state, **{**written, **columns})


def given_back(claim: Claim, **columns: Any) -> Outcome:
    return outcome(claim, None, ended=False, ended_at=None, **columns)


def again(claim: Claim, message: Message, **columns: Any) -> Outcome:
    return outcome(claim, RETRY, ended=False, ended_at=None, again=message, **columns)


def by_hand(message: Message, **columns: Any) -> Outcome:
    """What lets a message that failed run again as `message`, when `update` is given it."""
    return Outcome(0, 0, message.id, PENDING, ended=False, again=message, **columns)


def revoked(id: str, **columns: Any) -> Outcome:
    """The end of a message that no owner has, when `update` is given it."""
    written = {"result": b"revoked", "content_type": "application/json", "checksum": checksum(b"revoked")}
    told = {"state": REVOKED, "group_failure": b'"group"', "ended_at": clock.now()}
    return Outcome(0, 0, id, **{**written, **told, **columns})


def want(owner: Owner, limit: int = 10, queues: Sequence[str] = ("celery",)) -> Want:
    return Want(owner.name, tuple(queues), limit, clock.now())


def take(
    storage: Storage, owner: Owner, limit: int = 10, queues: Sequence[str] = ("celery",), **more: Any
) -> list[Claim]:
    return storage.settle((), want(owner, limit, queues)._replace(**more)).claims


def parked(claim: Claim, hold: str) -> Outcome:
    return given_back(claim, hold=hold)


def received(storage: Storage, owner: Owner, bell: Bell) -> list[Claim]:
    """What an owner has after a ring: what it was given while it slept, and what it claims now."""
    copies = bell.copies()
    given = [Claim(copy[0], copy[1], copy[2], Message(*copy[3:])) for copy in copies]
    if bell.is_unsure:
        bell.looked()
        given = storage.estate(owner.name).claims
    return given + take(storage, owner)


def take_one(storage: Storage, owner: Owner) -> Claim:
    (claim,) = take(storage, owner, 1)
    return claim


def ids(claims: Sequence[Claim]) -> list[str]:
    return [claim.message.id for claim in claims]


def record(storage: Storage, id: str) -> Record:
    return storage.records([id])[id]


def places(storage: Storage, *of: str) -> list[str]:
    found = storage.records(of)
    return [found[id].place for id in of]


def chain(*of: str, **columns: Any) -> list[Message]:
    """Messages of which each waits for the one before."""
    first = message(of[0], leads=LEADS_BY_ID, **columns)
    return [first, *(message(id, after=before, waits_for=1, leads=LEADS_BY_ID) for before, id in pairwise(of))]


def chord(group_id: str, *members: str, body: str = "body", **columns: Any) -> list[Message]:
    """Members of a group, and a body that waits for all of them."""
    header = [
        message(id, group_id=group_id, position=position, leads=LEADS_BY_GROUP) for position, id in enumerate(members)
    ]
    return [*header, message(body, after=group_id, waits_for=len(members), **columns)]


def in_threads(*work: Callable[[], object]) -> None:
    """Run these at the same time, to their ends; what one raises is raised here."""
    raised: list[BaseException] = []

    def run(act: Callable[[], object]) -> None:
        try:
            act()
        except BaseException as exc:  # raised again below, on the test's own thread
            raised.append(exc)

    threads = [threading.Thread(target=run, args=[act]) for act in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def in_child(act: Callable[[], None]) -> None:
    """Run this in a forked process, which ends without any clean-up."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
