"""Which messages must not run, and why that is known before they are there.

    revoked:id:<id>                  the message of this id, once somebody sends it
    revoked:stamp:[header, value]    every message with this stamp

Such a rule is an entry of the store. It is for messages that come after it: those that are there when somebody
revokes are ended, or marked, in their own rows. Whoever claims a message that a rule hits gets it with
`Claim.revoked`, and ends it. Must not read or write a store: it only knows what a rule is called, and what it hits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from localq.message import Message, Outcome

#: What the key of every rule begins with; a ';' comes next after ':'.
RULE = "revoked:"
#: What the key begins with by which the steward of an owner is asked to end its process: `terminate:<task id>`.
TERMINATE = "terminate:"
_ID, _STAMP = "revoked:id:", "revoked:stamp:"
#: Seconds for which a rule is remembered (Celery's REVOKE_EXPIRES).
REMEMBERED_S = 10800.0
#: What the headers of a message with stamps hold.
MARK = '"stamps"'


def rule_of_id(id: str) -> str:
    """Return the rule that hits the message of this id."""
    return f"{_ID}{id}"


def rules_of_stamps(stamps: Mapping[str, Any]) -> list[str]:
    """Return the rules that hit what has any of these stamps; of several values of one header, each has its own.

    Raises:
        TypeError: a value is nothing that a stamp could be, so no rule would ever hit.
    """
    return [_rule(header, value) for header, values in stamps.items() for value in _each(values)]


def rules_of(message: Message) -> list[str]:
    """Return every rule that would hit a message."""
    return [rule_of_id(message.id), *rules_of_stamps(stamps_of(message))]


def stamps_of(message: Message) -> Mapping[str, Any]:
    """Return the stamps that count: those of the headers that the sender called stamps, as in Celery."""
    if message.headers is None or MARK not in message.headers:
        return {}
    headers = json.loads(message.headers)
    stamps, names = headers.get("stamps"), headers.get("stamped_headers")
    if not isinstance(stamps, dict) or not isinstance(names, list):
        return {}  # another program's words, or half of ours
    return {name: stamps[name] for name in names if stamps.get(name) is not None}


def end_text(end: Outcome) -> str:
    """Write how a revoked message is to end, to be kept with it for as long as an owner has it."""
    texts = [None if data is None else data.decode("latin-1") for data in (end.result, end.group_failure)]
    return json.dumps([end.state, end.content_type, end.checksum, *texts])


def with_end(text: str, outcome: Outcome) -> Outcome:
    """Return an outcome with the end that `end_text` wrote."""
    state, content_type, checksum, *texts = json.loads(text)
    result, group_failure = (None if text is None else text.encode("latin-1") for text in texts)
    return outcome._replace(
        state=state, ended=True, again=None, hold=None, content_type=content_type, checksum=checksum, result=result,
        group_failure=group_failure,
    )  # fmt: skip


def _rule(header: str, value: Any) -> str:
    return f"{_STAMP}{json.dumps([header, value], sort_keys=True)}"


def _each(values: Any) -> Iterable[Any]:
    return values if isinstance(values, list | tuple | set | frozenset) else (values,)
