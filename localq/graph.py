"""The graph of what came of a task: who sent whom. Must not know what its nodes are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

#: What a line of `repr` is indented by, for each level.
INDENT = " " * 5


class GraphFormatter:
    """How a graph is written for Graphviz; a subclass may label and colour nodes as it likes.

    Args:
        root: what the graph was made of; noted in the text.
        type: `digraph`, or `graph` for edges without a direction.
        id: the graph's name.
        indent: levels by which every line is indented, each of them by `inw`.
        scheme: attributes of all nodes and edges, beside those of the class.
    """

    scheme: Mapping[str, Any] = {"shape": "box", "style": "filled", "arrowhead": "vee", "fontname": "HelveticaNeue"}
    edge_scheme: Mapping[str, Any] = {"color": "darkseagreen4", "arrowcolor": "black", "arrowsize": 0.7}
    node_scheme: Mapping[str, Any] = {"fillcolor": "palegreen3", "color": "palegreen4"}
    term_scheme: Mapping[str, Any] = {"fillcolor": "palegreen1", "color": "palegreen2"}
    graph_scheme: Mapping[str, Any] = {"bgcolor": "mintcream"}

    def __init__(
        self, root: Any = None, type: str = "digraph", id: str = "dependencies", indent: int = 0, inw: str = " " * 4,
        **scheme: Any,
    ) -> None:  # fmt: skip
        if type not in ("digraph", "graph"):
            raise ValueError(f"{type!r} is no type of a graph: digraph has directions, graph has none")
        self.root, self.type, self.id = root, type, id
        self._out, self._in = inw * indent, inw * (indent + 1)
        self.scheme = {**self.scheme, **scheme}
        self.graph_scheme = {**self.graph_scheme, "root": self.label(root)}

    def label(self, obj: Any) -> Any:
        """Return what a node is called; two of the same name are one."""
        return obj

    def head(self, **attrs: Any) -> str:
        """Return how the text begins."""
        lead = f"{self._out}{self.type} {self.id} {{"
        return f"{lead}\n{self._in}graph [{self.attrs(attrs, self.graph_scheme)}];"

    def tail(self) -> str:
        """Return how it ends."""
        return f"{self._out}}}"

    def node(self, obj: Any, **attrs: Any) -> str:
        """Return the line of a node that others depend on."""
        return self.draw_node(obj, self.node_scheme, attrs)

    def terminal_node(self, obj: Any, **attrs: Any) -> str:
        """Return the line of a node that none depends on."""
        return self.draw_node(obj, self.term_scheme, attrs)

    def edge(self, a: Any, b: Any, **attrs: Any) -> str:
        """Return the line of an edge."""
        return self.draw_edge(a, b, self.edge_scheme, attrs)

    def draw_node(self, obj: Any, scheme: Any = None, attrs: Any = None) -> str:
        return f"{self._in}{_quoted(self.label(obj))} [{self.attrs(attrs, scheme)}];"

    def draw_edge(self, a: Any, b: Any, scheme: Any = None, attrs: Any = None) -> str:
        arrow = "->" if self.type == "digraph" else "--"
        ends = f"{_quoted(self.label(a))} {arrow} {_quoted(self.label(b))}"
        return f"{self._in}{ends} [{self.attrs(attrs, self.edge_scheme if scheme is None else scheme)}];"

    def attr(self, name: str, value: Any) -> str:
        """Return one attribute."""
        return f"{name}={_quoted(value)}"

    def attrs(self, given: Mapping[str, Any] | None, scheme: Mapping[str, Any] | None = None) -> str:
        """Return attributes; those given win over those of a scheme, and they over everybody's."""
        all_of_them = {**self.scheme, **(scheme or {}), **(given or {})}
        return ", ".join(self.attr(name, value) for name, value in all_of_them.items())


class DependencyGraph:
    """Nodes, and edges from each to those that depend on it, in the order they were added.

    Args:
        it: pairs of a node and those that depend on it.
        formatter: how `to_dot` writes it.
    """

    def __init__(self, it: Iterable[tuple[Any, Iterable[Any]]] | None = None, formatter: Any = None) -> None:
        self.formatter = formatter or GraphFormatter()
        self.adjacent: dict[Any, list[Any]] = {}
        self.update(it or ())

    def add_arc(self, obj: Any) -> None:
        """Add a node, unless it is there."""
        self.adjacent.setdefault(obj, [])

    def add_edge(self, A: Any, B: Any) -> None:  # noqa: N803 - Celery's names
        """Add an edge, from a node that is there."""
        self.adjacent[A].append(B)

    def connect(self, graph: DependencyGraph) -> None:
        """Add the nodes of another graph; of a node that is in both, what depends on it there counts."""
        self.adjacent.update(graph.adjacent)

    def update(self, it: Iterable[tuple[Any, Iterable[Any]]]) -> None:
        """Add nodes, each with those that depend on it."""
        pairs = list(it)
        for node, _ in pairs:
            self.add_arc(node)
        for node, dependants in pairs:
            for each in dependants:
                self.add_edge(node, each)

    def edges(self) -> Iterator[Any]:
        """Go through the nodes from which edges go out, as Celery does; `items` has the edges."""
        return (node for node, dependants in self.items() if dependants)

    def items(self) -> Iterator[tuple[Any, list[Any]]]:
        """Go through the nodes, each with those that depend on it."""
        yield from self.adjacent.items()

    iteritems = items

    def topsort(self) -> list[Any]:
        """Return the nodes, each behind all that depend on it; nodes in a circle, in any order."""
        found: list[Any] = []
        seen: set[Any] = set()
        for node in self:
            left = [(node, False)]
            while left:
                each, is_done = left.pop()
                if is_done:
                    found.append(each)
                elif each not in seen:
                    seen.add(each)
                    left.append((each, True))
                    left += [(behind, False) for behind in reversed(self.adjacent.get(each, ()))]
        return found

    def valency_of(self, obj: Any) -> int:
        """Return how many edges can be gone from a node on; 0 for one that is not there."""
        return self._valencies().get(obj, 0)

    def _valencies(self) -> dict[Any, int]:
        found: dict[Any, int] = {}
        for node in self.topsort():
            behind = self.adjacent.get(node, ())
            found[node] = len(behind) + sum(found.get(each, 0) for each in behind)
        return found

    def to_dot(self, fh: TextIO, formatter: Any = None) -> None:
        """Write the graph as Graphviz reads it."""
        draw = formatter or self.formatter
        seen: set[Any] = set()
        lines = [draw.head()]
        for node, behind in self.items():
            if draw.label(node) not in seen:
                seen.add(draw.label(node))
                lines.append(draw.node(node) if behind else draw.terminal_node(node))
            lines += [draw.edge(node, each) for each in behind]
        fh.writelines(f"{line}\n" for line in [*lines, draw.tail()])

    def format(self, obj: Any) -> Any:
        """Return what a node is called."""
        return self.formatter.label(obj)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.adjacent)

    def __len__(self) -> int:
        return len(self.adjacent)

    def __contains__(self, obj: object) -> bool:
        return obj in self.adjacent

    def __getitem__(self, node: Any) -> list[Any]:
        return self.adjacent[node]

    def __repr__(self) -> str:
        valencies = self._valencies()
        return "\n".join(line for node in self for line in self._lines(node, 0, "{0}({1})", valencies))

    def repr_node(self, obj: Any, level: int = 1, fmt: str = "{0}({1})") -> str:
        """Return a node and all behind it as lines, each with its valency; `level` is that of those behind it."""
        return "\n".join(self._lines(obj, level - 1, fmt, self._valencies()))

    def _lines(self, obj: Any, level: int, fmt: str, valencies: Mapping[Any, int]) -> Iterator[str]:
        yield fmt.format(obj, valencies.get(obj, 0))
        left = [(level + 1, each) for each in reversed(self.adjacent.get(obj, ()))]
        while left:
            at, node = left.pop()
            yield INDENT * at + fmt.format(node, valencies.get(node, 0))
            if at - level <= len(self):  # deeper is a circle
                left += [(at + 1, each) for each in reversed(self.adjacent.get(node, ()))]


def _quoted(text: Any) -> str:
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
