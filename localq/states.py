"""The words for what a task is going through, and the two pictures of its life.

What a user sees (`AsyncResult.state`), Celery's words:

    PENDING -> (STARTED) -> SUCCESS
       ^        |    ^ |--> FAILURE --+
       |        v    |                |   by hand: `AsyncResult.retry`
       |       RETRY-+      REVOKED --+
       +------------------------------+
    REVOKED comes after any state that is not final. The retry by hand is the one way out of a final state.
    Custom states (`update_state`) may stand wherever STARTED stands. One that has a final state's name is no end
    either: the end is what the task returns or raises; after `raise Ignore()`, what was said last stays. What a task
    rejects with requeue=True is PENDING again.

Where its message is in the store (the column `place`):

                    put                      claim
    (nothing) ---+-----------> ready -----------------> held by an owner --+
                 |               ^                          |   settle     |
                 |  visible_at   |  promoted by any claim   |              v
                 +-----------> waiting <--------------------+            ended ---> ready
                 |                          retry, back-off, rejected,     ^    by hand, after
                 |                          a clock set back               |    FAILURE or REVOKED
                 +-----------> held until others end ----------------------+
                               (chain steps, chord bodies)   its predecessor failed

Every arrow is one transaction: a crash before it leaves the message where it was, a crash after it
leaves it where the arrow points. Nothing but these arrows moves a message.

    owner     a process that may hold claims, known alive by its lock
    claim     a message in the hands of an owner, with the token of that one attempt
    outcome   how an attempt ended, as data
    settle    to write an outcome and free the claim

Knows nothing of stores and workers: it only has the words and which of them are final.
"""

from __future__ import annotations

PENDING = "PENDING"
RECEIVED = "RECEIVED"
STARTED = "STARTED"
SUCCESS = "SUCCESS"
FAILURE = "FAILURE"
REVOKED = "REVOKED"
REJECTED = "REJECTED"
RETRY = "RETRY"
IGNORED = "IGNORED"

READY_STATES = frozenset({SUCCESS, FAILURE, REVOKED})
UNREADY_STATES = frozenset({PENDING, RECEIVED, STARTED, REJECTED, RETRY})
EXCEPTION_STATES = frozenset({RETRY, FAILURE, REVOKED})
PROPAGATE_STATES = frozenset({FAILURE, REVOKED})
ALL_STATES = frozenset({PENDING, RECEIVED, STARTED, SUCCESS, FAILURE, RETRY, REVOKED})

#: Ends after which whatever waited goes on; any other end makes it fail.
GOOD_STATES = frozenset({SUCCESS, IGNORED})

#: Places of a message in the store.
READY = "ready"
WAITING = "waiting"
HELD = "held"
ENDED = "ended"

#: From the most final to the least; None stands for every state of a user's own.
_PRECEDENCE: tuple[str | None, ...] = (
    SUCCESS, FAILURE, None, REVOKED, STARTED, RECEIVED, REJECTED, RETRY, PENDING,
)  # fmt: skip


def precedence(name: str) -> int:
    """Rank a state: the smaller, the more final. Custom states rank between FAILURE and REVOKED."""
    return _PRECEDENCE.index(name if name in _PRECEDENCE else None)


class state(str):
    """A state that can be compared by how final it is: `state("SUCCESS") > state("PENDING")`."""

    __slots__ = ()

    def __gt__(self, other: str) -> bool:
        return precedence(self) < precedence(other)

    def __ge__(self, other: str) -> bool:
        return precedence(self) <= precedence(other)

    def __lt__(self, other: str) -> bool:
        return precedence(self) > precedence(other)

    def __le__(self, other: str) -> bool:
        return precedence(self) >= precedence(other)
