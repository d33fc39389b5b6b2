"""`localq graph`: a workflow drawn from the store, for people and for programs."""

from __future__ import annotations

import json
import os
import pty
import re
import sys
from pathlib import Path

import pytest
from commands import environment, localq
from working import work_off

from localq import LocalQ, chain, chord, group
from localq.cli.graph import command
from localq.drawing import Style, dot, mermaid, text
from localq.outline import read

STATEMENT = re.compile(
    r"\s*(?:digraph \w+ \{|\}|node \[(?P<all>[^\]]*)\];"
    r'|(?P<node>"(?:[^"\\]|\\.)*") \[(?P<attrs>(?:\w+="(?:[^"\\]|\\.)*"(?:, )?)+)\];'
    r'|(?P<tail>"(?:[^"\\]|\\.)*") -> (?P<head>"(?:[^"\\]|\\.)*")(?: \[(?P<style>[^\]]*)\])?;)'
)


@pytest.fixture
def app(tmp_path):
    made = LocalQ("proj", store=tmp_path / "store", set_as_current=False)
    yield made
    made.close()


@pytest.fixture
def add(app):
    return app.task(name="proj.tasks.add")(lambda x=0, y=0: x + y)


@pytest.fixture
def fails(app):
    def fails(*_):
        raise ValueError("no")

    return app.task(name="proj.tasks.fails")(fails)


@pytest.fixture
def store(app):
    return Path(app.backend.location.path)


def drawn(store, id, *words, **variables):
    """What the command says, from a place where there is no app."""
    done = localq("-b", store, "graph", id, *words, cwd=store.parent, **variables)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def lines_of(app, id, **style):
    return list(text(read(app.storage, id), id, Style(str, str, **style)))


def read_dot(lines):
    """Return the nodes and edges of a graph; every line has to be a statement."""
    found = [STATEMENT.fullmatch(line) for line in lines]
    assert all(found), [line for line, each in zip(lines, found, strict=True) if not each]
    nodes = {each["node"] for each in found if each["node"]}
    edges = [(each["tail"], each["head"]) for each in found if each["tail"]]
    assert {end for edge in edges for end in edge} <= nodes
    return nodes, edges


def test_a_workflow_is_drawn_as_a_tree_from_any_of_its_ids(app, store, add, fails):
    result = chain(add.s(1, 1), group(add.s(1), chain(add.s(2), fails.s())), add.si(5)).apply_async()
    work_off(app)
    members = result.parent
    shown = re.sub(r"[0-9a-f]{8}-[-0-9a-f]{27}", "ID", drawn(store, members.id))
    assert shown.splitlines() == [
        "workflow of 5 tasks: 3 SUCCESS, 2 FAILURE",
        "",
        "SUCCESS  proj.tasks.add  ID",
        "group of 2  ID <",
        "├─ SUCCESS  proj.tasks.add  ID",
        "└─ SUCCESS  proj.tasks.add  ID",
        "   FAILURE  proj.tasks.fails  ID",
        "FAILURE  proj.tasks.add  ID",
    ]
    of_body = drawn(store, result.id)
    assert of_body.replace(" <", "") == drawn(store, members[0].id).replace(" <", "")
    assert [line.split()[-2] for line in of_body.splitlines() if line.endswith("<")] == [result.id]


def test_callbacks_and_what_was_sent_are_named(app, store, add):
    @app.task(name="proj.tasks.sends")
    def sends():
        return str(add.delay(1, 1))

    result = sends.apply_async(link=add.s())
    work_off(app)
    assert [line.split()[1:3] for line in drawn(store, result.id).splitlines()[3:]] == [
        ["callback:", "FAILURE"], ["sent:", "SUCCESS"],
    ]  # fmt: skip


def test_an_unknown_id_is_a_clear_error(app, store, add):
    add.delay()
    done = localq("-b", store, "graph", "nobody", cwd=store.parent)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error[LQ041]: no task or group has the id 'nobody' in sqlite:")
    assert "  hint: " in done.stderr
    assert localq("-b", store, "graph", "nobody", "--format", "png", cwd=store.parent).returncode == 2


def test_large_groups_are_folded_but_for_those_that_failed(app, store, add, fails):
    header = [fails.si() if n in (20, 21) else add.si() for n in range(60)]
    result = chord(header, add.si()).apply_async()
    work_off(app)
    shown = lines_of(app, result.id)
    rows = [re.sub(r"\s+[-0-9a-f]{36}", "", line) for line in shown[2:]]
    assert rows == [
        "group of 60", *["├─ SUCCESS  proj.tasks.add"] * 10, "├─ … 10 more: 10 SUCCESS",
        *["├─ FAILURE  proj.tasks.fails"] * 2, "└─ … 38 more: 38 SUCCESS", "FAILURE  proj.tasks.add <",
    ]  # fmt: skip
    hidden = result.parent[50].id
    assert hidden not in "\n".join(shown)
    assert f"{hidden} <" in "\n".join(lines_of(app, hidden))
    assert len(drawn(store, result.id, "--all").splitlines()) == 64


def test_a_long_chain_is_folded_in_the_middle(app, add):
    result = chain(*[add.si()] * 5000).apply_async()
    shown = lines_of(app, result.id)
    assert (shown[0], len(shown)) == ("workflow of 5,000 tasks: 5,000 PENDING", 23)
    assert shown[12] == "… 4,980 more: 4,980 PENDING"


def test_what_is_folded_counts_its_tasks(app, add):
    result = group([chain(add.si(), add.si()) for _ in range(30)]).apply_async()
    assert lines_of(app, result.id)[-1] == "└─ … 20 more, 40 tasks: 40 PENDING"


def test_what_is_very_deep_is_folded(app, add):
    nest = group(add.si(), add.si())
    for _ in range(30):
        nest = group(chain(nest, add.si()), add.si())
    result = nest.apply_async()
    shown = lines_of(app, result.id)
    (folded,) = [line for line in shown if " more" in line]
    assert re.fullmatch(r"│  .*└─ … 2 more, \d+ tasks: \d+ PENDING", folded)
    assert max(map(len, shown)) < 120


def test_a_line_has_at_most_eighty_columns(app, add):
    long = app.task(name="a_package.of_long.names_that.go_on.and_on.tasks.add")(lambda: None)
    result = chain(add.si(), group(long.si(), chain(long.si(), group(long.si(), add.si())))).apply_async()
    shown = lines_of(app, result.id)
    assert max(map(len, shown)) == 78  # two are left for the mark
    assert all(line.rpartition("  ")[0].endswith(".tasks.add") for line in shown if "…" in line)


def test_without_unicode_it_is_drawn_with_ascii(app, store, add):
    result = group(add.si(), add.si()).apply_async()
    shown = drawn(store, result.id, PYTHONIOENCODING="ascii")
    assert [line[:3] for line in shown.splitlines()[3:]] == ["|- ", "`- "]


def test_only_a_terminal_gets_colours(app, store, add, monkeypatch):
    result = add.delay()
    work_off(app)

    def on_terminal(*words, **variables):
        master, slave = pty.openpty()
        done = os.spawnvpe(
            os.P_NOWAIT, "sh", ["sh", "-c", f'exec "$@" > {os.ttyname(slave)}', "sh", sys.executable, "-m", "localq",
            "-b", str(store), "graph", result.id, *words], environment(TERM="xterm", **variables),
        )  # fmt: skip
        assert os.waitpid(done, 0)[1] == 0
        os.close(slave)
        shown = os.read(master, 4096).decode()
        os.close(master)
        return shown

    assert "\x1b[" not in drawn(store, result.id)
    assert "\x1b[32mSUCCESS\x1b[0m" in on_terminal()
    assert "\x1b[" not in on_terminal("--no-color")
    assert "\x1b[" not in on_terminal(NO_COLOR="1")


def test_names_change_nothing_on_the_terminal(app, store):
    bad = app.task(name='evil\x1b[31m"\\\n')(lambda: None)
    result = bad.delay()
    for form in ("text", "dot", "mermaid"):
        shown = drawn(store, result.id, "--format", form)
        assert "\x1b" not in shown
    read_dot(drawn(store, result.id, "--format", "dot").splitlines())


def test_graphviz_and_mermaid_are_given_the_same_graph(app, add):
    first = add.si()
    first.link(add.si())
    result = chain(first, group([add.si() for _ in range(30)]), add.si()).apply_async()
    outline = read(app.storage, result.id)
    nodes, edges = read_dot(dot(outline, result.id))
    # The first, its callback, the group with ten members and what is folded, and the last.
    assert len(nodes) == 1 + 1 + 1 + 11 + 1
    assert len(edges) == len(set(edges)) == 1 + 11 + 11 + 1
    lines = list(mermaid(outline, result.id))
    assert lines[0] == "flowchart TD"
    assert len([line for line in lines if re.fullmatch(r"    n\d+ (-->|-\.->) n\d+", line)]) == len(edges)
    assert len([line for line in lines if re.fullmatch(r'    n\d+(\[|\(\[|\[/)"[^"]+"(\]|\]\)|/\])', line)]) == len(
        nodes
    )


def test_json_has_every_task_and_names_its_schema(app, store, add):
    result = chord([add.si() for _ in range(40)], add.si()).apply_async()
    found = json.loads(drawn(store, result.id, "--format", "json"))
    assert (found["schema"], found["id"], found["is_whole"]) == ("localq/1", result.id, True)
    assert found["states"] == {"PENDING": 41}
    assert found["groups"] == [{"id": result.parent.id, "members": [each.id for each in result.parent]}]
    (body,) = [each for each in found["tasks"] if each["after"]]
    assert body == {
        "id": result.id, "name": "proj.tasks.add", "state": "PENDING", "after": result.parent.id, "group_id": None,
        "position": None, "sent_by": None,
    }  # fmt: skip
    assert [each["position"] for each in found["tasks"] if each["group_id"]] == list(range(40))


def test_the_command_says_what_it_is_for(tmp_path):
    assert command.help.startswith("Draw the whole workflow")
    assert "--format [text|dot|mermaid|json]" in localq("graph", "--help", cwd=tmp_path).stdout
