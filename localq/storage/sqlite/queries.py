"""The statements of `queries.sql`, by name. Holds no SQL of its own."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

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


def _asking(text: str) -> str:
    return text.replace("{has_rules}", texts()["has_rules"])


def _of_queues(what: str, queues: int) -> str:
    if queues == 1:
        return texts()[f"{what}_of_one"]
    each = " union all ".join([texts()[f"{what}_of_each"]] * queues)
    return texts()[f"{what}_of_all"].replace("{queues}", each)
