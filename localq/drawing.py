"""A workflow drawn: as text for a terminal, for Graphviz and Mermaid to draw, and as JSON for programs.

    walk       the rows of a drawing; of a long list only the ends, and whoever failed
    text       those as a tree
    dot, mermaid    those as nodes, with what waits for what
    as_json    all steps, none left out

Nothing recurses. Must not read the store.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from localq.outline import Group, Outline, Part, Step, counts, inner, sequence, whole
from localq.states import FAILURE, PENDING, PROPAGATE_STATES, SUCCESS

#: Of a long list, how many are shown at its beginning, and at the end of a sequence; and of those that failed.
SHOWN, FAILED_SHOWN = 10, 5
#: How deep it is drawn.
DEEPEST = 12
SCHEMA = "localq/1"


class Fold(NamedTuple):
    """What is left out of a drawing.

    Attributes:
        number: how many members or steps in a row.
        parts: all that is in them.
    """

    name: str
    number: int
    parts: list[Part]


class Row(NamedTuple):
    """One row of a drawing.

    Attributes:
        path: for every level above, whether it is the last of its level.
        begins: it is the first of its sequence.
        word: what that sequence is to what stands above.
    """

    path: tuple[bool, ...]
    begins: bool
    word: str
    what: Part | Fold


class Folding:
    """What is left out: the middle of long lists, and what is very deep.

    Args:
        asked: an id that is always shown, unless it is too deep.
        is_open: nothing is left out.
    """

    def __init__(self, asked: str, is_open: bool = False) -> None:
        self._asked, self._is_open, self._number = asked, is_open, 0

    def fold(self, parts: list[Part], last: int, inside: Callable[[Part], Iterable[Part]]) -> list[Part | Fold]:
        """Return a list as it is shown.

        Args:
            last: how many are shown at its end.
            inside: goes through all that is in one of them.
        """
        if self._is_open or len(parts) <= SHOWN + last + 1:
            return [*parts]
        found: list[Part | Fold] = []
        hidden: list[Part] = []
        failed = 0
        for at, part in enumerate(parts):
            is_shown = at < SHOWN or at >= len(parts) - last
            if not is_shown:
                is_asked, has_failed = self._is_told(inside(part))
                is_shown = is_asked or (has_failed and failed < FAILED_SHOWN)
                failed += has_failed
            if not is_shown:
                hidden.append(part)
                continue
            found += [*self._folded(hidden, inside), part]
            hidden = []
        return found + self._folded(hidden, inside)

    def too_deep(self, parts: list[Part], depth: int) -> list[Fold]:
        """Return what stands for parts that are not drawn."""
        return [] if self._is_open or depth < DEEPEST else self._folded(parts, lambda part: whole([part]))

    def _folded(self, parts: list[Part], inside: Callable[[Part], Iterable[Part]]) -> list[Fold]:
        if not parts:
            return []
        self._number += 1
        return [Fold(f"fold {self._number}", len(parts), [each for part in parts for each in inside(part)])]

    def _is_told(self, parts: Iterable[Part]) -> tuple[bool, bool]:
        """Whether something was asked for, and whether something in it has failed."""
        is_asked = has_failed = False
        for part in parts:
            is_asked = is_asked or part.id == self._asked
            has_failed = has_failed or (isinstance(part, Step) and part.state in PROPAGATE_STATES)
        return is_asked, has_failed


def walk(outline: Outline, folding: Folding) -> Iterator[Row]:
    """Go through the rows of a drawing, from the top."""
    left: list[Row | tuple[tuple[bool, ...], str, Part]] = [((), "", top) for top in reversed(outline.tops)]
    while left:
        row = left.pop()
        if not isinstance(row, Row):
            path, word, first = row
            parts = folding.fold(list(sequence(first)), SHOWN, _alone)
            left += [Row(path, not at, word, part) for at, part in reversed([*enumerate(parts)])]
            continue
        yield row
        if not isinstance(row.what, Fold):
            left += reversed([*_below(row.what, row.path, folding)])


def _alone(part: Part) -> Iterator[Part]:
    """Go through a part and what is in it, not what comes next."""
    yield part
    yield from whole(inner(part))


def _below(part: Part, path: tuple[bool, ...], folding: Folding) -> Iterator[Row | tuple[tuple[bool, ...], str, Part]]:
    parts: list[Part | Fold] = [*folding.too_deep(inner(part), len(path))]
    parts = parts or folding.fold(inner(part), 0, lambda each: whole([each]))
    callbacks = len(part.callbacks) if isinstance(part, Step) else 0
    for at, each in enumerate(parts):
        below = (*path, at == len(parts) - 1)
        if isinstance(each, Fold):
            yield Row(below, True, "", each)
        else:
            yield below, "" if isinstance(part, Group) else "callback: " if at < callbacks else "sent: ", each


# -- Text -----------------------------------------------------------------------------------------


class Style(NamedTuple):
    """How text is drawn.

    Attributes:
        clean: makes text of the user's fit to be shown.
        paint: colours a state.
        is_plain: with nothing but ASCII.
    """

    clean: Callable[[str], str]
    paint: Callable[[str], str]
    width: int = 80
    is_plain: bool = False


def text(outline: Outline, asked: str, style: Style, is_open: bool = False) -> Iterator[str]:
    """Draw a workflow as lines of text; the id that was asked for is marked with `<`."""
    number = len(outline.steps)
    yield f"workflow of {_many(number, 'task')}: {said(counts(outline.steps.values()))}"
    if not outline.is_whole:
        yield f"there are more: only {number:,} are read"
    senders = {part.sent_by for part in outline.steps.values() if part.sent_by and part.sent_by not in outline.steps}
    yield from (style.clean(f"sent by {sender}") for sender in sorted(senders)[:SHOWN])
    yield ""
    for row in walk(outline, Folding(asked, is_open)):
        yield _line(row, asked, style)


def said(numbers: Counter[str]) -> str:
    """Say how many tasks there are in each state."""
    return ", ".join(f"{number:,} {state}" for state, number in sorted(numbers.items(), key=lambda each: -each[1]))


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _line(row: Row, asked: str, style: Style) -> str:
    head = _branches(row, style.is_plain) + row.word * row.begins
    if isinstance(row.what, Fold):
        return f"{head}{'...' if style.is_plain else '…'} {style.clean(_folded(row.what))}"
    mark = " <" if row.what.id == asked else ""
    if isinstance(row.what, Group):
        return f"{head}group of {len(row.what.ends):,}  {style.clean(row.what.id)}{mark}"
    id, state = style.clean(row.what.id), style.clean(row.what.state)
    name = style.clean(row.what.name)
    room = max(12, style.width - len(head) - max(8, len(state)) - len(id) - 5)
    if len(name) > room:
        # Its end says more than its beginning.
        name = f"{'...' if style.is_plain else '…'}{name[-room + (3 if style.is_plain else 1) :]}"
    return f"{head}{style.paint(state)}{' ' * (8 - len(state))} {name}  {id}{mark}"


def _branches(row: Row, is_plain: bool) -> str:
    """Draw the lines that lead to a row."""
    if not row.path:
        return ""
    *above, is_last = row.path
    through, fork, end = ("|  ", "|- ", "`- ") if is_plain else ("│  ", "├─ ", "└─ ")
    lead = (end if is_last else fork) if row.begins else "   " if is_last else through
    return "".join("   " if each else through for each in above) + lead


def _folded(fold: Fold) -> str:
    numbers = counts(fold.parts)
    tasks = numbers.total()
    more = f", {tasks:,} tasks" if tasks != fold.number else ""
    return f"{fold.number:,} more{more}: {said(numbers)}"


# -- Graphs ---------------------------------------------------------------------------------------

_COLOURS = {SUCCESS: "palegreen", FAILURE: "lightcoral", PENDING: "lightgrey"}


class _Graph:
    """The nodes of a drawing, and the edges between those."""

    def __init__(self, outline: Outline, asked: str, is_open: bool) -> None:
        self.nodes: dict[str, Part | Fold] = {}
        self._hidden: dict[str, str] = {}
        for row in walk(outline, Folding(asked, is_open)):
            if isinstance(row.what, Fold):
                self.nodes[row.what.name] = row.what
                self._hidden |= {part.id: row.what.name for part in row.what.parts}
            else:
                self.nodes[row.what.id] = row.what
        #: From, to, and whether the one has sent the other while it ran. A dict, for its order.
        self.edges = dict.fromkeys(self._edges(outline))

    def _edges(self, outline: Outline) -> Iterator[tuple[str, str, bool]]:
        for step in outline.steps.values():
            ends = [(step.after, step.id, False), (step.id, step.group_id, False)]
            if step.after is None:
                ends.append((step.sent_by, step.id, True))
            for begin, end, is_sent in ends:
                tail, head = self._node(begin), self._node(end)
                if tail is not None and head is not None and tail != head:
                    yield tail, head, is_sent

    def _node(self, id: str | None) -> str | None:
        shown = self._hidden.get(str(id), id)
        return shown if shown in self.nodes else None


def _label(what: Part | Fold) -> list[str]:
    if isinstance(what, Fold):
        return _folded(what).split(": ", 1)
    return [what.name, what.state] if isinstance(what, Step) else [f"group of {len(what.ends):,}"]


def dot(outline: Outline, asked: str, is_open: bool = False) -> Iterator[str]:
    """Draw a workflow as lines that Graphviz reads."""
    graph = _Graph(outline, asked, is_open)
    yield "digraph workflow {"
    yield '    node [shape="box", style="filled", fillcolor="white"];'
    for id, what in graph.nodes.items():
        shape = "box" if isinstance(what, Step) else "ellipse" if isinstance(what, Group) else "note"
        colour = _COLOURS.get(what.state, "lightyellow") if isinstance(what, Step) else "white"
        more = ', penwidth="3"' if id == asked else ""
        label = r"\n".join(_escaped(line) for line in _label(what))
        yield f'    "{_escaped(id)}" [label="{label}", shape="{shape}", fillcolor="{colour}"{more}];'
    for tail, head, is_sent in graph.edges:
        style = ' [style="dashed"]' if is_sent else ""
        yield f'    "{_escaped(tail)}" -> "{_escaped(head)}"{style};'
    yield "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")


def mermaid(outline: Outline, asked: str, is_open: bool = False) -> Iterator[str]:
    """Draw a workflow as lines that Mermaid reads."""
    graph = _Graph(outline, asked, is_open)
    names = {id: f"n{number}" for number, id in enumerate(graph.nodes)}
    yield "flowchart TD"
    for id, what in graph.nodes.items():
        label = "<br/>".join(_entities(line) for line in _label(what))
        begin, end = ("[", "]") if isinstance(what, Step) else ("([", "])") if isinstance(what, Group) else ("[/", "/]")
        yield f'    {names[id]}{begin}"{label}"{end}'
    for tail, head, is_sent in graph.edges:
        yield f"    {names[tail]} {'-.->' if is_sent else '-->'} {names[head]}"
    for colour in dict.fromkeys([*_COLOURS.values(), "lightyellow"]):
        which = [names[id] for id, what in graph.nodes.items() if _colour(what) == colour]
        if which:
            yield f"    classDef {colour} fill:{colour}"
            yield f"    class {','.join(which)} {colour}"


def _colour(what: Part | Fold) -> str:
    return _COLOURS.get(what.state, "lightyellow") if isinstance(what, Step) else "white"


def _entities(text: str) -> str:
    """Write text so that nothing in it is Mermaid's or HTML's."""
    return "".join(c if c.isalnum() or c in " .,:_-/()" else f"#{ord(c)};" for c in text)


# -- For programs ---------------------------------------------------------------------------------


def as_json(outline: Outline, asked: str) -> str:
    """Write a workflow as one JSON document; see `SCHEMA` for which."""
    steps = [
        {
            "id": step.id, "name": step.name, "state": step.state, "after": step.after, "group_id": step.group_id,
            "position": step.position, "sent_by": step.sent_by,
        }
        for step in outline.steps.values()
    ]  # fmt: skip
    found: dict[str, Any] = {
        "schema": SCHEMA, "id": asked, "is_whole": outline.is_whole, "states": dict(counts(outline.steps.values())),
        "tasks": steps,
        "groups": [{"id": group.id, "members": [end.id for end in group.ends]} for group in outline.groups.values()],
    }  # fmt: skip
    return json.dumps(found)
