"""What children tell their steward of single tasks: a soft limit has struck, or how one with a Request of its own went.

A datagram each, so that notices of many children do not mix, and a steward that takes over reads what the one
before has not. They are about what has happened already and is in the store, or will be: a notice that does not fit, or
finds the steward asleep for too long, is dropped with a warning. Must not be needed for any task's end.
"""

from __future__ import annotations

import logging
import marshal
import socket
from typing import Any, NamedTuple

from localq.message import Claim, Message

logger = logging.getLogger("localq.worker")

#: Bytes of the largest notice.
MOST = 128 * 1024
ACCEPTED, SOFT, ENDED = "accepted", "soft", "ended"


class Notice(NamedTuple):
    """One notice.

    Attributes:
        kind: ACCEPTED (`pid`, `at` by the monotonic clock), SOFT (`limit`), or ENDED (`state`, `value` as written,
            `content_type`, `traceback`, `runtime`, `over`: the hard limit that ended a coroutine).
    """

    kind: str
    claim: Claim
    facts: dict[str, Any]


class Notices:
    """The line from children to their steward; made before either of them is."""

    def __init__(self) -> None:
        self._read_end, self._write_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._read_end.setblocking(False)
        self._write_end.setblocking(False)

    def tell(self, kind: str, claim: Claim, **facts: Any) -> None:
        """Tell the steward; never waits."""
        what = (kind, claim.seq, claim.token, claim.redeliveries, tuple(claim.message), facts)
        try:
            self._write_end.send(marshal.dumps(what))
        except (OSError, ValueError) as exc:
            message = claim.message
            logger.warning("handlers of the request of %s[%s] are not called: %s", message.name, message.id, exc)

    def heard(self) -> list[Notice]:
        """Return what there is."""
        found: list[Notice] = []
        while True:
            try:
                data = self._read_end.recv(2 * MOST)
            except BlockingIOError:
                return found
            kind, seq, token, redeliveries, message, facts = marshal.loads(data)  # noqa: S302 - values of our own
            found.append(Notice(kind, Claim(seq, token, redeliveries, Message(*message)), facts))

    def close(self) -> None:
        """Let go of both ends."""
        self._read_end.close()
        self._write_end.close()
