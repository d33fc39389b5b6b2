"""The house keeps its order: what imports what, how big things are, what nothing is called (DESIGN.md 7).

Everything is read from the source; nothing of localq is imported.
"""

from __future__ import annotations

import ast
import io
import statistics
import tokenize
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

HOUSE = Path(__file__).parents[1] / "localq"

#: From the lowest to the highest. A name stands for a module, or for a package with all it holds.
FLOORS = (
    ("words", "exceptions states clock registry signals faults version"),
    (
        "data",
        """serialization message options moments schedules settings sources config rates queues routing context current
        lazy stamping signatures maps workflows canvas plan annotations log revocation parameters retries models
        wrapping tracebacks coroutines""",
    ),
    ("store", "storage"),
    (
        "acts",
        """backend recovery dead whereabouts remainder sequel meta resultstore waiting graph groups result announcement
        errbacks awaitable awaiting executor eager publisher control broker outline drawing""",
    ),
    ("users", "task makers tasks loader report parts registrar app"),
    ("worker", "worker"),
    ("faces", "cli testing contrib __main__ __init__"),
)
#: Imports inside functions, and imports by name, and why each has to be: (module, what) -> reason.
LATE = {
    ("registry", "importlib.metadata"): "entry points are read only for a name that nothing else has; 20 ms",
    ("registry", "import_module"): "a storage or codec is imported when its scheme or name is first used",
    ("sources", "import_module"): "a configuration module, as the program or a variable names it",
    ("exceptions", "click"): "10 ms, and only commands raise the exception that is one of click's",
    ("moments", "zoneinfo"): "3 ms, and few projects name a time zone",
    ("sources", "tomllib"): "6 ms, and few projects keep settings in a TOML file",
    ("loader", "import_module"): "the modules in which tasks are, as settings and autodiscover_tasks name them",
    ("wrapping", "localq.models"): "pydantic is optional, and with inspect 100 ms",
    ("tracebacks", "tblib"): "optional, for a setting that few set",
    ("executor", "localq.awaiting"): "it imports asyncio: 40 ms, for whoever runs coroutine tasks in eager mode",
    ("app", "localq.awaiting"): "the same, for `adelay`",
    ("tasks", "localq.awaiting"): "the same, for `map` of a coroutine task",
    ("awaitable", "localq.awaiting"): "the same, for `aget` and `aas_completed`",
    ("worker.child", "localq.worker.coroutines"): "the same, for a child that meets its first coroutine task",
    ("task", "import_module"): "an unpickled task is looked up in the module that made it",
    ("cli.main", "import_module"): "start-up: --help does not import the commands",
    ("cli.finder", "import_module"): "start-up: the user's module, as -A names it",
}
#: Words that say nothing, in a module's or a class's name.
EMPTY_WORDS = ("utils", "util", "common", "helpers", "misc")
EMPTY_ENDS = ("Manager", "Helper", "Util", "Utils")


class Import(NamedTuple):
    """One import statement, or one call that imports."""

    module: str
    target: str
    line: int
    is_late: bool


@cache
def modules() -> dict[str, ast.Module]:
    """Return every module of the house, by its name without `localq.`; a package is its directory's name."""
    found = {}
    for path in sorted(HOUSE.rglob("*.py")):
        parts = path.relative_to(HOUSE).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        found[".".join(parts)] = ast.parse(path.read_text("utf-8"), str(path))
    return found


def path_of(module: str) -> Path:
    plain = HOUSE.joinpath(*module.split(".")).with_suffix(".py")
    return plain if plain.exists() else HOUSE.joinpath(*module.split("."), "__init__.py")


def floor_of(module: str) -> int:
    head = module.partition(".")[0]
    return next((at for at, (_, names) in enumerate(FLOORS) if head in names.split()), -1)


@cache
def imports() -> list[Import]:
    return [found for module, tree in modules().items() for found in _imports_of(module, tree, is_late=False)]


def _imports_of(module: str, node: ast.AST, is_late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside = is_late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.Import):
            yield from (Import(module, alias.name, child.lineno, is_late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (Import(module, target, child.lineno, is_late) for target in _targets(child))
        elif isinstance(child, ast.Call) and _called(child) in ("import_module", "__import__"):
            yield Import(module, _called(child), child.lineno, True)
        yield from _imports_of(module, child, inside)


def _targets(node: ast.ImportFrom) -> Iterator[str]:
    """`from localq.storage import base` imports localq.storage.base; of other names, only the module counts."""
    assert node.level == 0, f"relative import, line {node.lineno}"
    assert node.module is not None
    for alias in node.names:
        full = f"{node.module}.{alias.name}"
        is_module = _inside(full) in modules() or full == "importlib.metadata"
        yield full if is_module else node.module


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _inside(target: str) -> str:
    """Return a target's name within the house, or nothing if it is outside."""
    if target == "localq":
        return "__init__"
    return target.removeprefix("localq.") if target.startswith("localq.") else ""


def edges() -> dict[str, set[str]]:
    """Return which modules of the house each module imports, late imports included."""
    found: dict[str, set[str]] = {module: set() for module in modules()}
    for each in imports():
        target = _inside(each.target)
        if target in found and target != each.module:
            found[each.module].add(target)
    return found


def test_every_module_has_a_floor():
    assert [module for module in modules() if floor_of(module) < 0] == []


def test_a_module_imports_from_its_own_floor_or_below():
    wrong = [
        f"{path_of(each.module)}:{each.line}: {FLOORS[floor_of(each.module)][0]} imports {each.target}"
        for each in imports()
        if (target := _inside(each.target)) and floor_of(target) > floor_of(each.module)
    ]
    assert wrong == []


def test_no_import_cycles_even_by_late_imports():
    assert cycle(edges()) == []


def test_imports_inside_functions_are_those_with_a_reason():
    found = {(each.module, each.target) for each in imports() if each.is_late}
    without_reason = sorted(found - LATE.keys())
    assert without_reason == [], "import it at the top of the file, or give the reason in LATE"
    assert sorted(LATE.keys() - found) == [], "LATE names imports that are gone"


def test_no_module_or_class_has_an_empty_name():
    names = [name for module in modules() for name in module.split(".") if name in EMPTY_WORDS]
    classes = [node.name for tree in modules().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert names + [name for name in classes if name.endswith(EMPTY_ENDS)] == []


def test_every_module_says_what_it_is():
    assert [module for module, tree in modules().items() if not ast.get_docstring(tree)] == []


def test_functions_are_short():
    lengths = {}
    for module, tree in modules().items():
        code = code_lines(module)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                lengths[f"{module}:{node.lineno} {node.name}"] = len(code & {*range(node.lineno, node.end_lineno + 1)})
    assert {name: length for name, length in lengths.items() if length > 60} == {}
    assert statistics.median(lengths.values()) <= 8


def test_modules_are_small():
    lengths = {module: len(code_lines(module)) for module in modules()}
    assert {module: length for module, length in lengths.items() if length > 400} == {}


@cache
def code_lines(module: str) -> set[int]:
    """Return the numbers of a module's lines that hold code: no comments, no docstrings, no blank lines."""
    source = path_of(module).read_text("utf-8")
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            assert node.end_lineno is not None
            found -= {*range(node.lineno, node.end_lineno + 1)}
    return found


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return one cycle of a graph, its first node repeated at the end; nothing if there is none."""
    done: set[str] = set()

    def walk(path: list[str]) -> list[str]:
        for target in sorted(graph[path[-1]]):
            if target in path:
                return [*path[path.index(target) :], target]
            if target not in done and (found := walk([*path, target])):
                return found
        done.add(path[-1])
        return []

    return next((found for node in sorted(graph) if node not in done and (found := walk([node]))), [])


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b", "c"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]),
        ({"a": set(), "b": {"a", "c"}, "c": {"a", "b"}}, ["b", "c", "b"]),
    ],
)
def test_the_search_for_cycles_finds_them(graph, expected):
    found = cycle(graph)
    assert found == expected
    assert all(after in graph[before] for before, after in pairwise(found))
