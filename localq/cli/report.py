"""`localq report`: the app's own bug report, and nothing else."""

from __future__ import annotations

from typing import Any

import click

from localq.cli.finder import find_app
from localq.cli.main import merged


@click.command(epilog="\b\nExamples:\n  localq -A tasks report")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Show versions, where the store is, what is in it, and the settings without secrets."""
    given = merged(ctx, options)
    app = find_app(given["app_spec"])
    if given["store"]:
        app.backend.use(given["store"])
    click.echo(app.bugreport())
