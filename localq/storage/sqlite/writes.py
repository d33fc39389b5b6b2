"""Small transactions: a state that is no end, an entry, and results that are dropped.

Called inside the transaction. Must not ring.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from localq import clock
from localq.storage.news import KEPT, news_key
from localq.storage.sqlite.queries import query
from localq.storage.sqlite.session import Session


def update(session: Session, sql: str, values: tuple[Any, ...], id: str, text: str, until: float | None) -> list[Any]:
    rows: list[Any] = session.execute(query(sql), values).fetchall()
    if rows:
        tell(session.execute, id, text, until)
    return rows


def tell(execute: Callable[..., Any], id: str, text: str, until: float | None) -> None:
    """Keep a state that is no end, and of those before it the last ones."""
    ((number,),) = execute(query("tell"), {"id": id, "text": text, "until": until}).fetchall()
    if number > KEPT:
        execute(query("delete_entry"), (news_key(id, number - KEPT),))


def drop(session: Session, sql: str, values: Any) -> int:
    """Drop results, and what was told of their tasks before the end."""
    ids = [id for (id,) in session.execute(sql, values).fetchall()]
    if ids:
        session.execute(query("untell"), (json.dumps(ids),))
    return len(ids)


def expire(session: Session, values: dict[str, Any], now: float) -> int:
    number = drop(session, query("expire"), values)
    return number + int(session.execute(query("drop_expired_entries"), (now,)).rowcount)


def write_entry(session: Session, key: str, value: str | None, expected: str | None, expires_at: float | None) -> bool:
    now = clock.now()
    found = session.execute(query("entry"), (key, now)).fetchone()
    if (found[0] if found else None) != expected:
        return False
    session.execute(query("drop_expired_entries"), (now,))
    if value is None:
        session.execute(query("delete_entry"), (key,))
    else:
        session.execute(query("write_entry"), (key, value, expires_at))
    return True
