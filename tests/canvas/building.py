"""Real signatures of a workflow that is data, and the tasks they call; every execution leaves a line in a file.

The file stands outside the store: one O_APPEND write a line. Knows neither localq nor Celery: whoever calls gives the
app and the words (`chain`, `group`, `chord`), so that the same workflows can be played on both.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterable
from functools import reduce
from pathlib import Path
from typing import Any

from model import Call, Chain, Chord, Chunks, Group, Map, Seen

#: Exceptions by deed.
FAILURES = {"fails": ValueError, "breaks": KeyError}


def note(case: str, *what: Any) -> None:
    """Write a line, in whatever process this is."""
    file = os.open(case, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.write(file, (json.dumps(what) + "\n").encode())
    finally:
        os.close(file)


class Tasks:
    """The tasks of workflows, defined on an app."""

    def __init__(self, app: Any, words: Any) -> None:
        self.app, self.words = app, words
        names = ("run", "silent", "replaced", "counted", "old", "new")
        self.of = {name: app.task(name=f"canvas.{name}", **KINDS[name][1])(KINDS[name][0]) for name in names}
        self.of["replaced"].tasks = self


def run(self: Any, *values: Any, tag: str, case: str, deed: str = "returns") -> Any:
    """Do a deed of model.DEEDS."""
    note(case, "run", tag, values, self.request.id)
    if deed in FAILURES:
        raise FAILURES[deed](tag)
    if deed == "retries" and self.request.retries < 2:
        raise self.retry(countdown=0)
    if deed == "gives up":
        raise self.retry(exc=LookupError(tag), countdown=0, max_retries=1)
    if deed == "runs out":
        raise self.retry(countdown=0, max_retries=1)
    return [tag, *values]


def replaced(self: Any, *values: Any, tag: str, case: str, becomes: Any) -> Any:
    note(case, "run", tag, values, self.request.id)
    return self.replace(Builder(self.tasks, case).built(revived(becomes)))


def counted(*item: Any) -> int:
    """One item's call: (case, tag, number, whether it fails), as one list or as arguments."""
    case, tag, number, fails = item[0] if len(item) == 1 else item
    note(case, "run", tag, [number], None)
    if fails:
        raise ValueError(tag)
    return number * 10


def told_the_old_way(id: str, tag: str, case: str) -> None:
    note(case, "told", tag, "", id)


def told_the_new_way(request: Any, exc: BaseException, traceback: Any, tag: str, case: str) -> None:
    note(case, "told", tag, type(exc).__name__, request.id)


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "run": (run, {"bind": True}), "silent": (run, {"bind": True, "ignore_result": True}),
    "replaced": (replaced, {"bind": True}), "counted": (counted, {}), "old": (told_the_old_way, {}),
    "new": (told_the_new_way, {}),
}  # fmt: skip


class Builder:
    """Builds signatures.

    Args:
        case: the file in which the tasks write.
    """

    def __init__(self, tasks: Tasks, case: str) -> None:
        self.tasks, self.words, self.case = tasks, tasks.words, case

    def built(self, flow: Any) -> Any:
        """Return the signature of a workflow."""
        sig = self._bare(flow)
        for link in flow.links:
            sig.link(self.built(link))
        for tag, style in flow.told:
            sig.link_error(self.tasks.of[style].s(tag=tag, case=self.case))
        return sig

    def _bare(self, flow: Any) -> Any:
        words = self.words
        if isinstance(flow, Call):
            return self._call(flow)
        if isinstance(flow, Chain):
            steps = [self.built(each) for each in flow.steps]
            return reduce(operator.or_, steps) if flow.bar and len(steps) > 1 else words.chain(*steps)
        if isinstance(flow, Group):
            return words.group([self.built(each) for each in flow.members])
        if isinstance(flow, Chord):
            return words.chord([self.built(each) for each in flow.header], self.built(flow.body))
        items = [[self.case, flow.tag, number, number == flow.fails_at] for number in range(flow.items)]
        task = self.tasks.of["counted"]
        if isinstance(flow, Chunks):
            return task.chunks(items, flow.size)
        assert isinstance(flow, Map)
        return task.starmap(items) if flow.star else task.map(items)

    def _call(self, call: Call) -> Any:
        known: dict[str, Any] = {"tag": call.tag, "case": self.case}
        name = "run"
        if call.becomes is not None:
            name, known["becomes"] = "replaced", plain(call.becomes)
        elif call.deed == "is silent":
            name = "silent"
        elif call.deed != "returns":
            known["deed"] = call.deed
        return self.tasks.of[name].signature(call.args, known, immutable=call.immutable)


def plain(flow: Any) -> Any:
    """Return a workflow as JSON has it."""
    if isinstance(flow, Call | Chain | Group | Chord | Map | Chunks):
        return {"is": type(flow).__name__, **{name: plain(value) for name, value in flow._asdict().items()}}
    return [plain(each) for each in flow] if isinstance(flow, tuple | list) else flow


def revived(found: Any) -> Any:
    """Undo `plain`."""
    if isinstance(found, dict):
        kinds = {each.__name__: each for each in (Call, Chain, Group, Chord, Map, Chunks)}
        return kinds[found["is"]](**{name: revived(value) for name, value in found.items() if name != "is"})
    return tuple(revived(each) for each in found) if isinstance(found, list) else found


# -- Looking at what became of it ----------------------------------------------------------------------


def seen(result: Any, case: str, timeout: float | None = None) -> Seen:
    """Look at a workflow's result, and at what its tasks wrote."""
    value, raised = _got(result, timeout), ""
    try:
        result.get(timeout=timeout)
    except Exception as exc:
        raised = type(exc).__name__
    lines = [json.loads(line) for line in Path(case).read_text().splitlines()] if os.path.exists(case) else []
    tags = {line[3]: line[1] for line in lines if line[0] == "run"}
    runs = ((line[1], json.dumps(line[2])) for line in lines if line[0] == "run")
    told = ((line[1], line[2], tags.get(line[3], "")) for line in lines if line[0] == "told")
    return Seen(value, raised, tuple(sorted(runs)), tuple(sorted(told)))


def _got(result: Any, timeout: float | None) -> Any:
    try:
        return _shown(result.get(timeout=timeout, propagate=False))
    except Exception as exc:
        return f"get(propagate=False) raised {type(exc).__name__}"


def _shown(value: Any) -> Any:
    if isinstance(value, BaseException):
        return ["!", type(value).__name__]
    return [_shown(each) for each in value] if isinstance(value, Iterable) and not isinstance(value, str) else value
