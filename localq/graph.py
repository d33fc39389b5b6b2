"""The graph of what came of a task: who sent whom. Must not know what its nodes are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TextIO


class DependencyGraph:
    """Nodes, and edges from each to those that depend on it, in the order they were added.

    Args:
        formatter: Celery's; its `label(node)` names nodes in `to_dot`, if it has one.
    """

    def __init__(self, formatter: Any = None) -> None:
        self.formatter = formatter
        self.adjacent: dict[Any, list[Any]] = {}

    def add_arc(self, node: Any) -> None:
        """Add a node, unless it is there."""
        self.adjacent.setdefault(node, [])

    def add_edge(self, parent: Any, child: Any) -> None:
        """Add an edge between two nodes that are there."""
        self.adjacent[parent].append(child)

    def edges(self) -> list[tuple[Any, Any]]:
        """Return all edges."""
        return [(parent, child) for parent, children in self.adjacent.items() for child in children]

    def items(self) -> Iterator[tuple[Any, list[Any]]]:
        """Go through the nodes, each with those that depend on it."""
        yield from self.adjacent.items()

    def to_dot(self, fh: TextIO, formatter: Any = None) -> None:
        """Write the graph as Graphviz reads it."""
        label = getattr(formatter or self.formatter, "label", str)
        fh.write("digraph dependencies {\n")
        fh.writelines(f"    {_quoted(label(node))};\n" for node in self.adjacent)
        fh.writelines(f"    {_quoted(label(parent))} -> {_quoted(label(child))};\n" for parent, child in self.edges())
        fh.write("}\n")

    def __iter__(self) -> Iterator[Any]:
        return iter(self.adjacent)

    def __len__(self) -> int:
        return len(self.adjacent)

    def __contains__(self, node: object) -> bool:
        return node in self.adjacent

    def __getitem__(self, node: Any) -> list[Any]:
        return self.adjacent[node]

    def __repr__(self) -> str:
        return "\n".join(f"{node}({len(children)}): {', '.join(map(str, children))}" for node, children in self.items())


def _quoted(text: Any) -> str:
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
