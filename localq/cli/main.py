"""The command group: global options before or after the command, "did you mean", errors without tracebacks."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from localq import __version__
from localq.cli.errors import Mistake
from localq.exceptions import ImproperlyConfigured, LocalqError, StoreError
from localq.registry import nearest

#: Command -> module that has it; imported when it is asked for, so that `--help` stays quick.
COMMANDS = {
    "worker": "localq.cli.worker", "status": "localq.cli.status", "task": "localq.cli.task",
    "graph": "localq.cli.graph", "report": "localq.cli.report",
}  # fmt: skip

#: Celery's commands that are not here yet.
LATER = (
    "amqp", "beat", "call", "control", "events", "inspect", "list", "logtool", "migrate", "multi", "purge",
    "result", "shell", "upgrade",
)  # fmt: skip

#: Options that may stand before or after the command.
GLOBAL: tuple[Any, ...] = (
    click.Option(
        ["-A", "--app", "app_spec"], metavar="MODULE[:APP]", help="The app: module, module:attribute or file.py."
    ),
    # Not from the environment: there LOCALQ_STORE is weaker than what the app was told, as it is in a script.
    click.Option(
        ["-b", "--broker", "--store", "store"],
        metavar="PATH",
        help="The store, if not the app's own.",
        allow_from_autoenv=False,
    ),
    click.Option(["--workdir"], metavar="DIR", help="Change to this directory first."),
    click.Option(["-C", "--no-color", "no_color"], is_flag=True, help="No colour."),
    click.Option(["-q", "--quiet"], is_flag=True, help="No banner."),
    click.Option(["--debug"], is_flag=True, help="Show Python tracebacks of errors."),
)


class Commands(click.Group):
    """A group of commands; an unknown one names the nearest."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            raise Mistake("LQ100", self.absent(args[0], known), hint=f"{ctx.command_path} --help lists them")
        return super().resolve_command(ctx, args)

    def absent(self, name: str, known: list[str]) -> str:
        """Say that there is no such command."""
        return f"no command is named {name!r}{nearest(name, known)}"


class Group(Commands):
    """Commands by name, loaded late."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def absent(self, name: str, known: list[str]) -> str:
        if name in LATER:
            return f"command {name!r} is Celery's, and not built in this version of localq"
        return super().absent(name, known)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name]).command
        return _with_globals(command)


def _with_globals(command: click.Command) -> click.Command:
    """Let a command, and each of a group's, take the global options too."""
    known = {opt for param in command.params for opt in param.opts}
    command.params += [option for option in GLOBAL if not known & set(option.opts)]
    for each in getattr(command, "commands", {}).values():
        _with_globals(each)
    return command


@click.group(
    cls=Group,
    params=list(GLOBAL),
    context_settings={"auto_envvar_prefix": "LOCALQ", "help_option_names": ["-h", "--help"]},
    epilog="Start here:  localq -A tasks worker",
)
@click.version_option(__version__, prog_name="localq")
@click.pass_context
def cli(ctx: click.Context, /, **options: Any) -> None:
    """Task queue with no broker and no server: Celery's words, one directory."""
    ctx.obj = {**options, "app_spec": options["app_spec"] or ctx.obj}


def joined(ctx: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Join the options given before a command with those after it; the later ones win."""
    before = ctx.obj or {}
    return {**options, **{name: options.get(name) or before[name] for name in before}}


def merged(ctx: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Join the options as `joined` does, and go where they say; what a command that acts begins with."""
    found = joined(ctx, options)
    if found.get("workdir"):
        os.chdir(found["workdir"])
    return found


def main(args: Sequence[str] | None = None, app: Any = None) -> int:
    """Run a command, of this app if its words name no other; return its exit code."""
    words = list(sys.argv[1:] if args is None else args) or ["--help"]
    try:
        result = cli.main(words, prog_name="localq", standalone_mode=False, obj=app)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.Abort:
        return 130
    except Mistake as exc:
        return _say(exc, words)
    except click.UsageError as exc:
        return _say(Mistake("LQ101", exc.format_message(), hint=_usage_hint(exc)), words)
    except ImproperlyConfigured as exc:
        return _say(Mistake("LQ010", str(exc)), words)
    except StoreError as exc:
        return _say(Mistake("LQ020", str(exc), exit_code=74), words)
    except LocalqError as exc:
        return _say(Mistake("LQ030", str(exc), exit_code=1), words)
    except Exception as exc:
        # The user's own module failed while it was imported: its last line is what helps.
        return _say(Mistake("LQ005", f"{type(exc).__name__}: {exc}", cause=_own_frame(exc),
                            hint="--debug shows the whole traceback"), words)  # fmt: skip
    return int(result or 0)


def _say(mistake: Mistake, words: Sequence[str]) -> int:
    if "--debug" in words:
        traceback.print_exc()
    click.echo(str(mistake), err=True)
    return mistake.exit_code


def _usage_hint(exc: click.UsageError) -> str:
    path = exc.ctx.command_path if exc.ctx else "localq"
    return f"{path} --help"


def _own_frame(exc: BaseException) -> str | None:
    frames = traceback.extract_tb(exc.__traceback__)
    here = os.path.dirname(os.path.dirname(__file__))
    own = [
        f
        for f in frames
        if not f.filename.startswith((here, "<frozen")) and os.sep + "click" + os.sep not in f.filename
    ]
    return f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else None


def run() -> None:
    """The console script."""
    sys.exit(main())
