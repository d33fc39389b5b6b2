"""The graph of results: what it knows of its nodes, and how it is written."""

from __future__ import annotations

import io
import re

import pytest

from localq.graph import DependencyGraph, GraphFormatter

#: Longer than Python allows frames.
LONG = 3000


@pytest.fixture
def diamond():
    return DependencyGraph([("a", ["b", "c"]), ("b", ["d"]), ("c", ["d"]), ("d", [])])


def dot(graph, formatter=None):
    file = io.StringIO()
    graph.to_dot(file, formatter)
    return file.getvalue()


@pytest.mark.row("F258")
def test_nodes_and_edges_are_in_the_order_they_were_added(diamond):
    diamond.add_arc("e")
    diamond.add_arc("a")
    diamond.add_edge("d", "e")
    assert list(diamond) == ["a", "b", "c", "d", "e"]
    assert dict(diamond.items()) == dict(diamond.iteritems()) == diamond.adjacent
    assert list(diamond.edges()) == ["a", "b", "c", "d"]
    assert (len(diamond), "e" in diamond, "f" in diamond, diamond["a"]) == (5, True, False, ["b", "c"])
    with pytest.raises(KeyError):
        diamond.add_edge("nobody", "a")


@pytest.mark.row("F258")
def test_another_graph_is_connected(diamond):
    diamond.connect(DependencyGraph([("d", ["e"]), ("e", [])]))
    assert diamond["d"] == ["e"]
    assert list(diamond) == ["a", "b", "c", "d", "e"]


@pytest.mark.row("F258")
def test_the_valency_of_a_node_counts_all_that_come_behind_it(diamond):
    assert [diamond.valency_of(node) for node in (*diamond, "nobody")] == [4, 1, 1, 0, 0]


@pytest.mark.row("F258")
def test_a_node_is_sorted_behind_all_that_depend_on_it(diamond):
    order = diamond.topsort()
    assert sorted(order) == ["a", "b", "c", "d"]
    assert all(order.index(behind) < order.index(node) for node in diamond for behind in diamond[node])


@pytest.mark.row("F256", "X15")
def test_a_node_is_shown_with_all_behind_it_five_spaces_deeper(diamond):
    assert diamond.repr_node("b") == "b(1)\n     d(0)"
    assert repr(diamond).splitlines() == [
        "a(4)", "     b(1)", "          d(0)", "     c(1)", "          d(0)",
        "b(1)", "     d(0)", "c(1)", "     d(0)", "d(0)",
    ]  # fmt: skip


def test_neither_a_long_graph_nor_a_circle_is_too_much():
    long = DependencyGraph([(n, [n + 1]) for n in range(LONG)] + [(LONG, [])])
    assert long.valency_of(0) == LONG
    assert long.repr_node(0).endswith(f"{LONG}(0)")
    circle = DependencyGraph([("a", ["b"]), ("b", ["a"])])
    assert sorted(circle.topsort()) == ["a", "b"]
    assert len(repr(circle).splitlines()) < 20


@pytest.mark.row("F257")
def test_a_graph_is_written_for_graphviz(diamond):
    lines = dot(diamond).splitlines()
    assert (lines[0], lines[-1]) == ("digraph dependencies {", "}")
    assert re.fullmatch(r'    graph \[.*bgcolor="mintcream".*\];', lines[1])
    nodes = [re.fullmatch(r'    "(\w)" \[shape="box", .*fillcolor="(\w+)".*\];', line) for line in lines]
    assert [found.groups() for found in nodes if found] == [
        ("a", "palegreen3"), ("b", "palegreen3"), ("c", "palegreen3"), ("d", "palegreen1"),
    ]  # fmt: skip
    edges = [re.fullmatch(r'    "(\w)" -> "(\w)" \[.*arrowsize="0.7"\];', line) for line in lines]
    assert [found.groups() for found in edges if found] == [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]


@pytest.mark.row("F258")
def test_a_formatter_says_what_nodes_are_called_and_how_they_look(diamond):
    class Loud(GraphFormatter):
        def label(self, obj):
            return f'"{obj}"'.upper()

    text = dot(diamond, Loud(type="graph", id="mine", indent=1, shape="oval"))
    assert text.startswith("    graph mine {\n        graph [")
    assert r'        "\"A\"" -- "\"B\"" [shape="oval", ' in text
    assert diamond.format("a") == "a"
    assert DependencyGraph(formatter=Loud()).format("a") == '"A"'
    with pytest.raises(ValueError, match="'tree' is no type of a graph"):
        GraphFormatter(type="tree")
