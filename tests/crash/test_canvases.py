"""Workflows under `kill -9`: each comes to what the model says, its messages are sent once, and none is left hanging.

Producers send random workflows, drawn before by tests/canvas/strategies; the runs' lines stand outside the store, and
what each workflow must come to is said by tests/canvas/model, which knows no store either. Of a task that died with its
process (only if it is acknowledged early, or died once too often) the store says that it did; the model says what comes
of the rest. The usual run kills 100 times, `nox -s crash` 1,000 times.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import building
import pytest
from field import Field, field, judge_what_is_left
from hypothesis import HealthCheck, Phase, given, seed, settings
from model import (
    TIMES,
    Bad,
    Call,
    End,
    Many,
    Map,
    Seen,
    World,
    first_failed,
    has_failed,
    own_exception,
    raised_by,
    read,
    unrolled,
)  # fmt: skip
from strategies import workflows
from test_model import DRAWN, NOT_COMPARED, is_compared

from localq.errbacks import ERRAND
from localq.message import Record
from localq.recovery import MAX_REDELIVERIES
from localq.result import result_from_tuple

if sys.platform != "linux":
    pytest.skip("finds its victims through /proc", allow_module_level=True)

TASKS = """
import ctypes, json, os, random, sys, time, uuid, warnings

sys.path.insert(0, os.environ["FIELD_CANVAS"])
import building
import localq
from localq import LocalQ
from localq.exceptions import LocalqWarning, MaxRetriesExceededError

warnings.simplefilter("ignore", LocalqWarning)  # those of NOT_COMPARED
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: nothing of this outlives the test, whatever becomes of it
# The tasks of maps have no options of their own: they are always late ones.
app = LocalQ(
    "field", store=os.environ["FIELD_STORE"], result_expires=0, result_failure_expires=0, task_acks_late=True,
    task_reject_on_worker_lost=True,
)
runs = os.open(os.environ["FIELD_RUNS"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)

def note(case, *what):
    os.write(runs, (json.dumps([case, *what]) + "\\n").encode())

building.note = note

def ended(function):
    def run(self, *values, case, tag, **known):
        try:
            return function(self, *values, case=case, tag=tag, **known)
        finally:
            if os.urandom(1)[0] < 192:  # every fourth takes no time at all: then a child reserves many at once
                time.sleep(0.02)
            note(case, "end", tag, (), self.request.id)
    return run

def told_the_old_way(self, id, tag, case):
    note(case, "told", tag, "", self.request.id)

FUNCTIONS = {
    "run": ended(building.run), "silent": ended(building.run), "replaced": ended(building.replaced),
    "counted": building.counted, "old": told_the_old_way, "new": building.told_the_new_way,
}

EXPECTED = (ValueError, LookupError, MaxRetriesExceededError)  # no traceback in the log
for name in ("celery.map", "celery.starmap"):
    app.tasks[name].throws = EXPECTED

class Tasks(building.Tasks):
    def __init__(self, mode, **options):
        self.app, self.words, self.of = app, localq, {}
        for name, function in FUNCTIONS.items():
            how = {**building.KINDS[name][1], **options, "bind": name not in ("counted", "new"), "throws": EXPECTED}
            self.of[name] = app.task(name=f"{mode}.{name}", **how)(function)
        self.of["replaced"].tasks = self

tasks = {"early": Tasks("early", acks_late=False, reject_on_worker_lost=False), "late": Tasks("late")}

def leaves(result):
    members = getattr(result, "results", None)
    return [result.id] if members is None else [id for each in members for id in leaves(each)]

def produce():
    with open(os.environ["FIELD_FLOWS"]) as file:
        flows = json.load(file)
    ids, sent = (os.open(os.environ[name], os.O_APPEND | os.O_WRONLY) for name in ("FIELD_IDS", "FIELD_SENT"))
    pick = random.Random(os.urandom(8))
    while True:
        number, mode = pick.randrange(len(flows)), pick.choice(("early", "late"))
        fed = [pick.randrange(10) for _ in range(pick.choice((0, 0, 1, 2)))]
        case = "/".join([str(number), mode, json.dumps(fed), uuid.uuid4().hex])
        flow = building.revived(flows[number])
        result = building.Builder(tasks[mode], case).built(flow).apply_async(fed)
        os.write(sent, (json.dumps([case, result.as_tuple()]) + "\\n").encode())
        os.write(ids, "".join(f"{mode} {id}\\n" for id in leaves(result)).encode())
        time.sleep(0.05)

if __name__ == "__main__":
    produce()
else:
    # A burst of deaths makes a worker pause for a second. That has a test of its own; here it would only take time.
    from localq.worker import supervisor
    supervisor.CRASH_PAUSE_S = 0.01
"""
CANVAS = Path(__file__).resolve().parents[1] / "canvas"
LOST = "WorkerLostError"


def drawn(number: int, of: int) -> list[Any]:
    """Draw so many workflows, always the same ones."""
    found: list[Any] = []

    @seed(of)
    @settings(max_examples=number, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(workflows(DRAWN).filter(is_compared))
    def draw(flow: Any) -> None:
        found.append(flow)

    draw()
    return found


@pytest.mark.row("F227", "F235", "F237", "F238", "F239", "R6")
@pytest.mark.parametrize(("kills", "flows"), [(100, 150), pytest.param(1000, 2000, marks=pytest.mark.crash)])
@pytest.mark.timeout(1800)
def test_workflows_come_to_what_the_model_says_whoever_dies(tmp_path: Path, kills: int, flows: int) -> None:
    found = drawn(flows, of=kills)
    file, sent = tmp_path / "flows", tmp_path / "sent"
    file.write_text(json.dumps([building.plain(flow) for flow in found]))
    sent.touch()
    env = {"FIELD_FLOWS": str(file), "FIELD_SENT": str(sent), "FIELD_CANVAS": str(CANVAS)}
    with field(tmp_path, seed=kills + 3, producers=2, workers=2, tasks=TASKS, **env) as there:
        there.kill(kills)
        there.finish()
        judged = Judge(there, found)
        judged.judge_all(sent)
        tell(there, judged)
        judge_what_is_left(there)


class Case(NamedTuple):
    """All there is of one workflow that was sent.

    Attributes:
        messages: what the store has of it, by tag.
        lines: what the oracle saw: (what, tag, arguments or exception, id).
    """

    messages: dict[str, list[Record]]
    lines: list[Any]


class Judge:
    """Compares what each workflow came to with what the model says, and counts what there was."""

    def __init__(self, there: Field, flows: Sequence[Any]) -> None:
        self._there, self._flows = there, flows
        self.found: Counter[str] = Counter()
        self.cases: dict[str, Case] = defaultdict(lambda: Case(defaultdict(list), []))
        ids = [id for (id,) in there.app.storage._session().read("select id from messages")]
        for record in there.app.storage.records(ids, whole=True).values():
            case, tag = known_by(record)
            self.cases[case].messages[tag].append(record)
        for line in map(json.loads, there.runs_path.read_text().splitlines()):
            self.cases[line[0]].lines.append(line[1:])

    def judge_all(self, sent: Path) -> None:
        """Assert."""
        results = dict(map(json.loads, sent.read_text().splitlines()))
        assert [case for case in results if case not in self.cases and self._is_something(case)] == [], "lost"
        for name, case in self.cases.items():
            if name:
                self._judge_noted(name, case, results.get(name))

    def _is_something(self, name: str) -> bool:
        return bool(comes_to(*self._asked(name), frozenset())[0].runs)

    def _asked(self, name: str) -> tuple[Any, list[int]]:
        number, _, fed, _ = name.split("/")
        return self._flows[int(number)], json.loads(fed)

    def _judge_noted(self, name: str, case: Case, result: Any) -> None:
        flow, fed = self._asked(name)
        try:
            self._judge(name, case, flow, fed, result)
        except AssertionError as exc:
            exc.add_note(f"{name}: {flow}")
            exc.add_note("\n".join(map(str, case.lines)))
            for each in (each for found in case.messages.values() for each in found):
                exc.add_note(
                    f"{known_by(each)[1]} {each.id} {each.name} {each.state} {each.redeliveries} {each.result!r}"
                )
            raise

    def _judge(self, name: str, case: Case, flow: Any, fed: list[int], result: Any) -> None:
        records = [each for found in case.messages.values() for each in found]
        lost = frozenset(key_of(each) for each in records if is_lost(each))
        self._judge_losses(name, records)
        expected, whole, rules = comes_to(flow, fed, lost)
        self._judge_runs(case, expected, lost)
        is_compared = not any(rule.startswith(tuple(rule for rule, *_ in NOT_COMPARED)) for rule in rules)
        self.found["workflows"] += 1
        self.found["tasks"] += len(records)
        self.found["redelivered"] += sum(each.redeliveries for each in records if not is_lost(each))
        self.found["workflows with a death"] += any(each.redeliveries for each in records)
        if not is_compared:
            return
        self._judge_told(case, expected)
        if result is None:
            self.found["of senders that died before they told"] += 1
        else:
            seen = building.seen(result_from_tuple(result, self._there.app), "", 0)
            # A result that is read by its id alone knows nothing of a task that ignores it, and its group keeps it.
            assert fits(seen.value, expected.value, whole.value), f"not {expected.value}"
            assert seen.raised in (expected.raised, whole.raised)
            self.found["ended well" if not seen.raised else f"ended with {seen.raised}"] += 1

    def _judge_losses(self, name: str, records: list[Record]) -> None:
        for each in records:
            if is_lost(each):
                assert json.loads(each.result or b"")["exc_type"] == LOST
                given_up = each.redeliveries == MAX_REDELIVERIES + 1
                assert given_up or ("/early/" in name and each.redeliveries == 1), "given up too early"
                self.found["given up" if given_up else "lost with their process"] += 1
            elif "/early/" in name and not each.name.startswith("celery."):
                assert each.redeliveries == 0, "acknowledged early, and redelivered"

    def _judge_runs(self, case: Case, expected: Seen, lost: frozenset[str]) -> None:
        """Every task has run with the model's arguments, once, and once more for each of its attempts that died."""
        asked = Counter(expected.runs)
        began = Counter((tag, json.dumps(what)) for word, tag, what, _ in case.lines if word == "run")
        ended = Counter(tag for word, tag, *_ in case.lines if word == "end")
        assert began.keys() <= asked.keys(), "run, and should not have been"
        for (tag, args), times in asked.items():
            messages = [each for each in case.messages[tag] if not is_told(each)]
            ids = {id for word, other, _, id in case.lines if word == "run" and other == tag}
            assert len(ids) <= 1, "sent more than once"
            charged = sum(each.redeliveries for each in messages)
            assert began[tag, args] <= times + charged, "run more often than its attempts died"
            assert began[tag, args] >= times or tag_is_lost(tag, lost), "not run"
            if ids != {None}:  # an item of a map has no end of its own
                assert len(messages) == 1, "sent more than once"
                assert ended[tag] >= times or tag_is_lost(tag, lost), "not run to its end"
                self.found["killed before the first line"] += tag in lost and not began[tag, args]
                self.found["killed after the last"] += tag in lost and ended[tag] == times
                self.found["runs"] += began[tag, args]

    def _judge_told(self, case: Case, expected: Seen) -> None:
        """Errbacks that are tasks are sent once; those that are called are, once more at most for each death."""
        asked = Counter((tag, exc) for tag, exc, _ in expected.told)
        sent = Counter((tag, "") for tag, found in case.messages.items() for each in found if is_told(each))
        assert sent == Counter({key: number for key, number in asked.items() if not key[1]}), "errbacks as tasks"
        called = Counter((tag, exc) for word, tag, exc, _ in case.lines if word == "told" and exc)
        deaths = sum(each.redeliveries for found in case.messages.values() for each in found)
        assert all(called[key] >= number for key, number in asked.items() if key[1]), "errbacks that are called"
        more = called - asked
        assert not more or deaths, f"errbacks called too often: {more}"
        self.found["errbacks"] += asked.total()
        self.found["errbacks called twice"] += more.total()


# -- Who is who ------------------------------------------------------------------------------------


def known_by(record: Record) -> tuple[str, str]:
    """Return a message's case and tag; empty if it has none (a map without items, an errand)."""
    assert record.message is not None
    _, known = json.loads(record.message.body)[:2]
    if record.name == ERRAND:
        return "", ""
    if "it" in known:
        first = next(iter(known["it"]), ("", ""))
        return first[0], first[1]
    return known.get("case", ""), known.get("tag", "")


def key_of(record: Record) -> str:
    """Name a message within its case, as `Deaths` does."""
    assert record.message is not None
    _, known = json.loads(record.message.body)[:2]
    return f"{known_by(record)[1]}/{known['it'][0][2]}" if known.get("it") else known_by(record)[1]


def tag_is_lost(tag: str, lost: frozenset[str]) -> bool:
    return any(each.partition("/")[0] == tag for each in lost)


def is_lost(record: Record) -> bool:
    """Whether a task ended because its process died; those behind it show the same, and were not charged."""
    return record.state == "FAILURE" and record.redeliveries > 0 and LOST.encode() in (record.result or b"")


def is_told(record: Record) -> bool:
    return record.name.endswith(".old")


class Deaths(World):
    """A world in which some tasks die.

    Args:
        lost: their tags; of a map's message, with the number of its first item: "tag/3".
    """

    def __init__(self, lost: frozenset[str]) -> None:
        super().__init__()
        self._lost = lost

    def call(self, call: Call, fed: Sequence[Any]) -> End:
        """A task that dies fails like others, even one that is silent; it may or may not have run."""
        if call.tag not in self._lost:
            return super().call(call, fed)
        args = [*([] if call.immutable else fed), *call.args]
        self.runs += [(call.tag, json.dumps(args))] * TIMES.get(call.deed, 1)
        self.tell(call.told, LOST, call.tag)
        return Bad(LOST, LOST)

    def map(self, map: Map, items: Sequence[int]) -> End:
        if not items or f"{map.tag}/{items[0]}" not in self._lost:
            return super().map(map, items)
        self.runs += [(map.tag, json.dumps([item])) for item in items]
        self.tell(map.told, LOST, "")
        return Bad(LOST, LOST)


def comes_to(flow: Any, fed: Sequence[Any], lost: frozenset[str]) -> tuple[Seen, Seen, set[str]]:
    """Say what a workflow comes to if these of its tasks die, also with what tasks ignore; and by which rules."""
    world = Deaths(lost)
    end = world.end_of(unrolled(flow, world.rules), fed)
    if isinstance(end, Many) and has_failed(end) and first_failed(end).raised != own_exception(end):
        world.rules.add("read: a group, of which a member failed by what stood before it")
    runs, told = tuple(sorted(world.runs)), tuple(sorted(world.told))
    few, all = (Seen(read(end, keeps_all), raised_by(end, keeps_all), runs, told) for keeps_all in (False, True))
    return few, all, world.rules


def fits(value: Any, *either: Any) -> bool:
    """Whether every part of a value is one of those that it may be."""
    if value in either:
        return True
    parts = [each for each in (value, *either) if isinstance(each, list)]
    return len({len(each) for each in parts}) == 1 < len(parts) and all(map(fits, *parts))


def tell(there: Field, judged: Judge) -> None:
    kills = ", ".join(f"{number} {kind}s" for kind, number in there.kills.items())
    print(
        f"{there.kills.total()} kills ({kills}); lost 0, hanging 0;",
        ", ".join(f"{name}: {number}" for name, number in sorted(judged.found.items())),
    )
