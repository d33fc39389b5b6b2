"""`localq graph`: the whole workflow that a task is part of, as the store has it.

Celery's command of this name draws the worker's parts and the machines; ours draws what a user has built. Needs no code
of the user's if a store is named.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import click

from localq.cli.errors import Mistake
from localq.cli.main import merged
from localq.cli.task import opened, printable
from localq.drawing import Style, as_json, dot, mermaid, text
from localq.outline import Outline, read
from localq.states import FAILURE, RETRY, REVOKED, STARTED, SUCCESS

_COLOURS = {SUCCESS: "green", FAILURE: "red", REVOKED: "magenta", STARTED: "yellow", RETRY: "yellow"}


@click.command(
    epilog="\b\nExamples:\n  localq -A tasks graph 0198f0c2-...\n  localq -b jobs graph ID --format dot | dot -Tsvg"
)
@click.argument("id")
@click.option(
    "--format", "form", type=click.Choice(["text", "dot", "mermaid", "json"]), default="text", show_default=True,
    help="How to draw it.",
)  # fmt: skip
@click.option("--all", "is_open", is_flag=True, help="Leave nothing out of large groups and long chains.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Draw the whole workflow that a task, or a group, is part of, with the state of every task.

    Of large groups and long chains only the ends are drawn, and some that failed; JSON has all.
    """
    given = merged(ctx, options)
    app, id = opened(given), options["id"]
    outline = read(app.storage, id)
    if outline is None:
        raise Mistake("LQ041", f"no task or group has the id {id!r} in {app.backend.url}",
                      hint="it was forgotten, or sent to another store: -A or -b names one", exit_code=1)  # fmt: skip
    for line in _drawn(outline, id, options["form"], options["is_open"], not given["no_color"]):
        click.echo(line)


def _drawn(outline: Outline, id: str, form: str, is_open: bool, may_colour: bool) -> Iterator[str]:
    if form == "json":
        return iter([as_json(outline, id)])
    if form == "text":
        return text(outline, id, _style(may_colour), is_open)
    return map(printable, (dot if form == "dot" else mermaid)(outline, id, is_open))


def _style(may_colour: bool) -> Style:
    on_terminal = sys.stdout.isatty()
    may_colour = may_colour and on_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Style(
        clean=printable,
        paint=_painted if may_colour else str,
        width=max(80, shutil.get_terminal_size().columns) if on_terminal else 80,
        is_plain=printable("│├└─…") != "│├└─…",
    )


def _painted(state: str) -> str:
    colour = _COLOURS.get(state)
    return click.style(state, fg=colour) if colour else state
