"""Random workflows come to what the model says: here and now, and on a worker.

Same values, same exceptions, same number of executions of every task with the same arguments, same callbacks.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from building import Builder, Tasks, seen
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from model import Call, Chain, Chord, Chunks, Group, Map, Seen, model, rules
from strategies import ALL, workflows
from waiting import wait_until

import localq
from localq import LocalQ, states
from localq.testing.worker import start_worker

A, B, C = map(Call, "abc")
FAILS = Call("f", "fails")

# Those of NOT_COMPARED warn.
pytestmark = pytest.mark.filterwarnings("ignore::localq.exceptions.LocalqWarning")

#: Features that are not drawn yet: (feature, the smallest workflow that shows it, what happens instead).
NOT_DRAWN = (("replacing", Call("t", becomes=Call("x")), "there is no Task.replace yet"),)
#: Rules that are drawn and not compared yet, by how their names begin; the same three.
NOT_COMPARED = (
    ("lost: chunks", Chain((Chord((A, FAILS), Chunks("n", 1, 1)), Map("m", 0))), "what is behind shows ChordError"),
    ("read: a group, of which", Group((Chord((FAILS,), A), B)), "get() raises the exception of the chord's header"),
)
#: Rules by which a workflow may end in one of several ways.
OPEN = ("lost: a group behind several",)
DRAWN = frozenset(ALL) - {feature for feature, _, _ in NOT_DRAWN}

#: Cases of the default run, and of each of the long tier's.
CASES, MANY, SEEDS = 500, 250, 16


def is_compared(flow: Any) -> bool:
    return not any(rule.startswith((*OPEN, *(name for name, _, _ in NOT_COMPARED))) for rule in rules(flow))


class Stage:
    """An app with a worker that runs until the module's tests are over."""

    def __init__(self, folder: Path) -> None:
        self.app = LocalQ("canvas", store=folder / "store", set_as_current=True)
        self.tasks = Tasks(self.app, localq)
        self._cases = (str(folder / f"case{number}") for number in itertools.count())

    def eagerly(self, flow: Any, fed: Sequence[Any] = (), is_text: bool = False) -> Seen:
        case = next(self._cases)
        return seen(self._built(flow, case, is_text).apply(fed), case, 0)

    def on_worker(self, flow: Any, fed: Sequence[Any] = (), is_text: bool = False) -> Seen:
        case = next(self._cases)
        result = self._built(flow, case, is_text).apply_async(fed)
        wait_until(self.is_idle, what="the worker has nothing left to do")
        return seen(result, case, 0)

    def _built(self, flow: Any, case: str, is_text: bool) -> Any:
        """Return the signature of a workflow, perhaps by way of JSON."""
        sig = Builder(self.tasks, case).built(flow)
        return localq.signature(json.loads(json.dumps(sig)), app=self.app) if is_text else sig

    def is_idle(self) -> bool:
        """Whether nothing runs, or may; what waits for ever is not counted: it shows in `get`."""
        storage = self.app.storage
        before = storage.counts()
        if any(count.place in (states.READY, states.WAITING) for count in before):
            return False
        # An end between two looks makes one more ended.
        holders = (storage.records(hold=f"owner:{owner.name}") for owner in storage.owners())
        return not any(holders) and storage.counts() == before


@contextmanager
def standing(folder: Path) -> Iterator[Stage]:
    made = Stage(folder)
    with start_worker(made.app, "prefork"):
        yield made
    made.app.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with standing(tmp_path_factory.mktemp("canvas")) as made:
        yield made


def check(stage: Stage, flow: Any, fed: Sequence[Any] = (), is_text: bool = False) -> None:
    assert stage.eagerly(flow, fed, is_text) == model(flow, *fed, keeps_all=True)
    assert stage.on_worker(flow, fed, is_text) == model(flow, *fed)


def cases(**more: Any) -> Callable[[Any], Any]:
    """Make a test of random workflows, sent with up to two arguments, perhaps by way of JSON."""

    def decorated(test: Any) -> Any:
        drawn = given(
            flow=workflows(DRAWN).filter(is_compared), fed=st.lists(st.integers(0, 9), max_size=2),
            is_text=st.booleans(),
        )  # fmt: skip
        return settings(deadline=None, suppress_health_check=list(HealthCheck), **more)(drawn(test))

    return decorated


@pytest.mark.row(
    "F219", "F221", "F223", "F224", "F225", "F234", "F235", "F237", "F241", "F242", "F244", "F251", "F252", "F253"
)
@pytest.mark.timeout(300)
@cases(max_examples=CASES, derandomize=True)
def test_a_workflow_comes_to_what_the_model_says_here_and_on_a_worker(stage, flow, fed, is_text):
    check(stage, flow, fed, is_text)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", range(SEEDS))
def test_thousands_of_workflows_come_to_what_the_model_says(tmp_path, number):
    @seed(number)
    @cases(max_examples=MANY, database=None)
    def each(flow, fed, is_text):
        check(stage, flow, fed, is_text)

    with standing(tmp_path) as stage:
        each()


@pytest.mark.parametrize(("name", "flow", "instead"), NOT_DRAWN + NOT_COMPARED)
def test_what_is_not_compared_differs_still(stage, name, flow, instead):
    """Whoever mends one takes it off its list."""
    try:
        ways = {"here": (stage.eagerly(flow), True), "on a worker": (stage.on_worker(flow), False)}
    except ValueError:
        return  # it cannot be sent
    agree = [way for way, (found, keeps_all) in ways.items() if found == model(flow, keeps_all=keeps_all)]
    assert len(agree) < len(ways), f"{name}: no longer {instead!r}; take {flow} off the list"


@pytest.mark.parametrize(("name", "flow", "instead"), NOT_COMPARED)
def test_every_rule_that_is_not_compared_is_one_of_the_models(name, flow, instead):
    assert any(rule.startswith(name) for rule in rules(flow))
