"""Draws the workflows that programs/drawn_canvases.py plays: those of tests/canvas, without what Celery cannot do.

python tests/parity/drawing.py     draws the recorded ones anew; then record the program's answers (stage.py)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "canvas"), str(HERE.parent)]

from building import plain  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from model import TIMES, Call, Chain, Chord, Chunks, Group, folded, is_void, last_of, rules  # noqa: E402
from strategies import workflows  # noqa: E402
from test_model import DRAWN, is_compared  # noqa: E402

FILE = HERE / "drawn_canvases.json"
#: How many are recorded, and how many a live run draws.
RECORDED, LIVE = 60, 40


# -- Where Celery is not compared --------------------------------------------------------------------


def holds_chunks(flow: Any) -> bool:
    return any(isinstance(each, Chunks) for each in all_of(flow)) and not isinstance(flow, Chunks)


def holds_groups_in_a_header(flow: Any) -> bool:
    def is_nested(found: Any) -> bool:
        return isinstance(found, Group) and any(isinstance(each, Group) for each in found.members)

    return any(
        any(isinstance(each, Group) for each in found.header) if isinstance(found, Chord)
        else isinstance(found, Chain) and any(map(is_nested, all_of(found)))
        for found in all_of(flow)
    )  # fmt: skip


def loses_a_body(flow: Any) -> bool:
    """Whether a header fails that is not a plain one of tasks, before a task, with nothing around them."""
    is_lost = any(rule.startswith("lost: ") and rule != "lost: step" for rule in rules(flow))
    if not is_lost:
        return False
    # Which exception of a header's task that has retried is read is a matter of time there.
    is_plain = isinstance(flow, Chord) and all(
        isinstance(each, Call) and each.deed not in TIMES for each in (*flow.header, flow.body)
    )
    return not is_plain


def loses_a_group(flow: Any) -> bool:
    """Whether a step fails, and a chain ends in a group: perhaps that one, which never runs then."""
    ends = (last_of(each) for each in all_of(flow) if isinstance(each, Chain))
    return "lost: step" in rules(flow) and any(isinstance(each, Group) for each in ends)


def has_links_and_nothings(flow: Any) -> bool:
    """Whether a group has callbacks, of its own or by a group around it, and a member that is empty."""
    found = [each for each in all_of(flow) if isinstance(each, Group)]
    return any(each.links for each in found) and any(is_void(member) for each in found for member in each.members)


def has_nothings_in_a_header(flow: Any) -> bool:
    return any(isinstance(each, Chord) and any(map(is_void, each.header)) for each in all_of(flow))


def feeds_a_chord_from_a_body(flow: Any) -> bool:
    """Whether a chord, whose header is fed, is written behind one that ends in a group."""
    return any(
        isinstance(found, Chain) and any(
            isinstance(before, Chord) and isinstance(last_of(before), Group) and isinstance(step, Chord)
            for before, step in pairwise(found.steps)
        )
        for found in all_of(flow)
    )  # fmt: skip


def tells_of_a_chain_in_a_chain(flow: Any) -> bool:
    return any(
        isinstance(each, Chain) and each.told
        for found in all_of(flow) if isinstance(found, Chain) for part in found.steps for each in all_of(part)
    )  # fmt: skip


A, B, C, D = map(Call, "abcd")
FAILS = Call("f", "fails")
#: (What is not drawn, the smallest workflow that shows it, what Celery does instead.)
RESTRICTIONS = (
    (holds_chunks, Group((A, Chunks("b", 2, 1))), "it sends one task, whose value is its messages' ids (R1)"),
    (holds_groups_in_a_header, Chord((A, Group((B, C))), D), "the body is fed their values in another order (F235)"),
    (loses_a_body, Chain((Chord((FAILS, A), B), Group((C, D)))), "get() waits for ever for what never runs (F227)"),
    (loses_a_group, Chain((FAILS, Group((A, B)))), "get() waits for ever for what never runs (F227)"),
    (
        has_links_and_nothings,
        Group((Chain(()), A, B), links=(C,)),
        "the callback is the empty chain's: it never runs (R16)",
    ),
    (
        feeds_a_chord_from_a_body,
        Chain((Chord((A,), Group((B, C))), Chord((D,), FAILS._replace(deed="returns")))),
        "the second header is sent once for each task of the group (F241)",
    ),
    (has_nothings_in_a_header, Chord((Chain((Chain((), True),)), A), Chord((B,), C)), "sending it raises (F229)"),
    (tells_of_a_chain_in_a_chain, Chain((Chain((A, FAILS), told=(("e", "new"),)),)), "nobody is told (F226)"),
)
#: A group, and a header, waits for ever for a task that is silent (R2).
FEATURES = DRAWN - {"silent"}


def is_shaped(flow: Any) -> bool:
    """Whether the forms of the results are compared as well.

    Celery's results forget the steps in a body (F222), show a header without members as a group, and a member that ends
    in a group as that group, where localq has the task that gathers its list.
    """
    return not any(map(has_parents_there, laid(flow))) and not any(
        isinstance(last_of(each), Group) for found in laid(flow) for each in members(found)
    )


def has_parents_there(flow: Any) -> bool:
    """Whether it is a chord of which Celery shows other parents; a step behind one is in its body there."""
    if isinstance(flow, Chain):
        return any(isinstance(last_of(step), Call) and isinstance(step, Chord) for step in folded(flow)[:-1])
    return isinstance(flow, Chord) and (
        is_void(Group(flow.header)) or isinstance(flow.body, Chain | Chord) or is_void(flow.body)
    )


def members(flow: Any) -> tuple[Any, ...]:
    found = flow.header if isinstance(flow, Chord) else flow.members if isinstance(flow, Group) else ()
    return tuple(each for each in found if not isinstance(each, Group))


# -- Drawing -----------------------------------------------------------------------------------------


def parts(flow: Any) -> tuple[Any, ...]:
    """Return what stands within a workflow, as it is written."""
    if isinstance(flow, Chain):
        return flow.steps
    if isinstance(flow, Group):
        return flow.members
    return (*flow.header, flow.body) if isinstance(flow, Chord) else ()


def all_of(flow: Any) -> Iterator[Any]:
    yield flow
    for each in parts(flow):
        yield from all_of(each)


def laid(flow: Any) -> Iterator[Any]:
    """Go through all that there is of a workflow as it runs: chains as their steps, groups before steps as headers."""
    yield flow
    for each in folded(flow) if isinstance(flow, Chain) else parts(flow):
        yield from laid(each)


def is_played(flow: Any) -> bool:
    return is_compared(flow) and not is_void(flow) and not any(restricts(flow) for restricts, *_ in RESTRICTIONS)


def form(flow: Any) -> Any:
    """Return of what kinds of parts it is: chance makes many of one form."""
    return [type(flow).__name__, *map(form, parts(flow))]


def drawn(number: int, of: int) -> list[Any]:
    """Draw so many, no two of one form: the workflow, what it is sent with, whether its result's form is compared."""
    found: dict[str, Any] = {}

    @seed(of)
    @settings(max_examples=number * 5, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(flow=workflows(FEATURES).filter(is_played), fed=st.lists(st.integers(0, 9), max_size=2))
    def draw(flow: Any, fed: list[int]) -> None:
        found.setdefault(json.dumps(form(flow)), [plain(flow), fed, is_shaped(flow)])

    draw()
    return list(found.values())[:number]


def write(file: Path, found: list[Any]) -> None:
    file.write_text("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n", "utf-8")


if __name__ == "__main__":
    write(FILE, drawn(RECORDED, of=1))
