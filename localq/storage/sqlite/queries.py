"""The statements of `queries.sql`, by name. Holds no SQL of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from localq.storage.base import STEP

HERE = Path(__file__).parent


@cache
def texts() -> dict[str, str]:
    """Return every statement by its name, comments left out."""
    found = {}
    for part in re.split(r"^-- name: *", (HERE / "queries.sql").read_text("utf-8"), flags=re.MULTILINE)[1:]:
        name, _, rest = part.partition("\n")
        lines = [line for line in rest.splitlines() if line.strip() and not line.startswith("--")]
        found[name.strip()] = "\n".join(lines).rstrip(";")
    return found


@cache
def query(name: str) -> str:
    """Return a statement."""
    return texts()[name].replace("{record}", texts()["columns_of_record"])


@cache
def whole(name: str) -> str:
    """Return a statement that reads whole records."""
    columns = f"{texts()['columns_of_record']}, {texts()['columns_of_whole_record']}"
    return texts()[name].replace("{record}", columns)


@cache
def with_rows(name: str, rows: int, columns: int) -> str:
    """Return a statement for so many rows of so many columns."""
    row = f"({','.join('?' * columns)})"
    return _asking(texts()[name].replace("{rows}", ",".join([row] * rows)))


@cache
def claim(queues: int) -> str:
    """Return the claim for so many queues."""
    return _asking(texts()["claim"].replace("{first}", _of_queues("first", queues)))


@cache
def claim_chosen() -> str:
    """Return the claim of messages that were chosen one by one."""
    return _asking(texts()["claim"].replace("{first}", texts()["chosen"]))


@cache
def candidates(queues: int) -> str:
    """Return the statement that reads what a claim of so many queues may choose from."""
    return _of_queues("candidates", queues)


def reading(
    ids: Sequence[str],
    group_id: str | None,
    failed_after: int | None,
    hold: str | None,
    stamped_after: int | None,
    follows: str | None,
    start: int | None,
) -> tuple[str, tuple[Any, ...]]:
    """Return the name of the statement that `Storage.records` needs, and its values."""
    if len(ids) == 1:
        return "record", (ids[0],)
    if group_id is not None:
        return ("members", (group_id,)) if start is None else ("members_from", (group_id, start, STEP))
    if follows is not None:
        return "followers", (follows, start or 0, STEP)
    for name, key in (("failed", failed_after), ("stamped", stamped_after), ("held", hold)):
        if key is not None:
            return name, (key, STEP)
    return "records", (json.dumps(list(ids)),)


def _asking(text: str) -> str:
    return text.replace("{has_rules}", texts()["has_rules"])


def _of_queues(what: str, queues: int) -> str:
    if queues == 1:
        return texts()[f"{what}_of_one"]
    each = " union all ".join([texts()[f"{what}_of_each"]] * queues)
    return texts()[f"{what}_of_all"].replace("{queues}", each)
