"""`localq report`: what a bug report, or a puzzled user, needs to know. Never shows arguments or results."""

from __future__ import annotations

import platform
import sqlite3
from pathlib import Path
from typing import Any

import click

from localq import __version__
from localq.cli.finder import find_app
from localq.cli.main import merged
from localq.storage.place import filesystem


@click.command(epilog="\b\nExamples:\n  localq -A tasks report")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Show versions, where the store is and what is in it."""
    given = merged(ctx, options)
    app = find_app(given["app_spec"])
    if given["store"]:
        app.backend.use(given["store"])
    lines = [
        f"software -> localq:{__version__} py:{platform.python_version()} sqlite:{sqlite3.sqlite_version}",
        f"platform -> system:{platform.system()} arch:{platform.machine()} kernel:{platform.release()}",
        f"app      -> {app.main or '__main__'} made by {app.made_by or 'no file'}",
        f"store    -> {app.backend.url} durability:{app.conf.store_durability}",
        *(f"            {row}" for row in _contents(app)),
        f"settings -> {app.conf.table() or 'all defaults'}",
    ]
    click.echo("\n".join(lines))


def _contents(app: Any) -> list[str]:
    path = Path(app.backend.location.path)
    if app.backend.location.scheme != "sqlite" or not (path / "queue.db").exists():
        return ["(nothing has been sent yet)"]
    rows = [f"queue {count.queue}: {count.number} {count.place}" for count in app.storage.counts()]
    alive = sum(owner.alive and owner.about.get("kind") == "worker" for owner in app.storage.owners())
    kind = filesystem(path.stat().st_dev)
    return [f"file system {kind or 'unknown'}, {alive} live worker(s)", *rows]
