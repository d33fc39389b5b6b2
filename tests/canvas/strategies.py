"""Random workflows, as the data of `model`: any construct inside any other, six deep.

Each construct is a feature that can be switched on by itself; ALL names them. Knows neither localq nor Celery.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st
from model import DEEDS, Call, Chain, Chord, Chunks, Group, Map, flat, folded, is_void, last_of

#: What a workflow may have in it, besides tasks, chains, groups and chords of two or more that all succeed.
ALL = {
    "bars": "chains written a | b",
    "nothings": "chains and groups without members, chords without a header",
    "ones": "chains and groups of one",
    "immutable": "tasks that are fed nothing",
    "silent": "tasks that ignore their results",
    "retries": "tasks that retry, and succeed in the end",
    "failures": "tasks that fail, and whose retries run out",
    "replacing": "tasks that replace themselves with a workflow",
    "maps": "map and starmap",
    "chunks": "chunks",
    "links": "callbacks of tasks",
    "errbacks": "errbacks of tasks",
    "links of workflows": "callbacks of chains, groups and chords",
    "errbacks of workflows": "errbacks of chains, groups and chords",
}

DEPTH, TASKS = 6, 12


@st.composite
def workflows(draw: Callable[..., Any], features: frozenset[str], tasks: int = TASKS) -> Any:
    """Draw a workflow that can be sent, of these features and at most so many tasks."""
    # What fails early leaves the rest unseen: some workflows are calm, others are small and have little else.
    mood = draw(st.sampled_from(["failing", "calm", "any"]))
    if mood == "calm":
        features -= {"failures"}
    elif mood == "failing" and "failures" in features:
        features, tasks = features & {"bars", "immutable", "failures", "errbacks", "maps"}, min(tasks, 6)
    found = Drawing(draw, features).flow(draw(st.sampled_from([*range(1, tasks + 1), *[tasks] * tasks])), DEPTH)
    return found if folds(found) else Call("t0")


def folds(flow: Any) -> bool:
    """Whether there is anything to send."""
    return not (isinstance(flow, Chain) and not folded(flow))


def takes_ears(flow: Any) -> bool:
    """Whether it is said whose callbacks its callbacks are: a group's are its first task's, others' a last task's."""
    if isinstance(flow, Group):
        members = flat(flow.members)
        return bool(members) and takes_ears(members[0])
    return isinstance(flow, Call) or not isinstance(last_of(flow), Group | Chunks | Map | None)


class Drawing:
    """One workflow that is being drawn."""

    def __init__(self, draw: Callable[..., Any], features: frozenset[str]) -> None:
        self.draw, self.features = draw, features
        self.tags: Iterator[str] = (f"t{number}" for number in itertools.count(1))

    def flow(self, budget: int, depth: int) -> Any:
        leaves = [self.call, *(getattr(self, name) for name in ("maps", "chunks") if name in self.features)]
        kinds = [*[self.call] * 6, *leaves]
        if depth and budget > 1:
            kinds = [*[self.chain, self.group, self.chord] * 5, *leaves]
        return self._with_ears(self.draw(st.sampled_from(kinds))(budget, depth))

    def call(self, budget: int, depth: int) -> Call:
        on = self.features
        deeds = ["returns"] * (8 if "silent" in on else 4)
        deeds += ["is silent"] if "silent" in on else []
        deeds += ["retries"] if "retries" in on else []
        deeds += [deed for deed, exc in DEEDS.items() if exc] if "failures" in on else []
        becomes = None
        if "replacing" in on and depth and self.draw(st.integers(0, 3)) == 0:
            becomes = self._some(max(budget - 1, 2), depth)
        return Call(
            next(self.tags), "returns" if becomes else self.draw(st.sampled_from(deeds)),
            tuple(self.draw(st.lists(st.integers(0, 9), max_size=1))), "immutable" in on and self.draw(st.booleans()),
            becomes=becomes,
        )  # fmt: skip

    def chain(self, budget: int, depth: int) -> Chain:
        parts = self._parts(budget, depth)
        # `a | group()` is `a`, of whatever kind that is.
        bar = "bars" in self.features and not any(map(is_void, parts)) and self.draw(st.booleans())
        return Chain(parts, bar)

    def group(self, budget: int, depth: int) -> Group:
        return Group(self._parts(budget, depth))

    def chord(self, budget: int, depth: int) -> Chord:
        body = self.draw(st.sampled_from(range(1, max(budget // 2, 1) + 1)))
        return Chord(self._parts(budget - body, depth), self._some(body, depth))

    def maps(self, budget: int, depth: int) -> Map:
        number, fails_at = self._items()
        return Map(next(self.tags), number, self.draw(st.booleans()), fails_at)

    def chunks(self, budget: int, depth: int) -> Chunks:
        number, fails_at = self._items()
        return Chunks(next(self.tags), max(number, 1), self.draw(st.integers(1, 3)), fails_at)

    def _items(self) -> tuple[int, int]:
        number = self.draw(st.integers(0, 4))
        fails = "failures" in self.features and self.draw(st.integers(0, 3)) == 3
        return number, self.draw(st.integers(-1, number - 1)) if fails else -1

    def _some(self, budget: int, depth: int) -> Any:
        """Draw a part that comes to something."""
        found = self.flow(budget, depth - 1)
        return found if folds(found) else Call(next(self.tags))

    def _parts(self, budget: int, depth: int) -> tuple[Any, ...]:
        fewest = 0 if "nothings" in self.features else 1 if "ones" in self.features else 2
        number = self.draw(st.sampled_from([2, 3, 2, 3, *(n for n in (1, 0) if n >= fewest)]))
        found = []
        for left in range(number, 0, -1):
            share = max(budget - left + 1, 1)
            share = share if left == 1 else self.draw(st.sampled_from(range(1, share + 1)))
            budget -= share
            found.append(self.flow(share, depth - 1))
        return tuple(found)

    def _with_ears(self, flow: Any) -> Any:
        """Give callbacks and errbacks to some."""
        suffix = "" if isinstance(flow, Call) else " of workflows"
        if not takes_ears(flow):
            return flow
        if "links" + suffix in self.features and self.draw(st.integers(0, 3)) == 0:
            link = Call(next(self.tags), immutable=self.draw(st.booleans()))
            flow = flow._replace(links=(link,))
        if "errbacks" + suffix in self.features and self.draw(st.integers(0, 3)) == 0:
            flow = flow._replace(told=((next(self.tags), self.draw(st.sampled_from(["old", "new"]))),))
        return flow
