"""`localq task`: what the store has of single tasks, and failed ones run again.

Shows arguments and results, to whoever may read the store. Needs no code of the user's if a store is named.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from localq import dead, states
from localq.cli.errors import Mistake
from localq.cli.finder import app_or_store
from localq.cli.main import Commands, joined, merged
from localq.exceptions import Reject, RetryRefused
from localq.message import LEADS_BY_GROUP, LEADS_BY_ID, Message, Record
from localq.recovery import retry_command, sweep
from localq.serialization import decode, safe_repr, value_of
from localq.storage.base import STEP, Storage
from localq.storage.place import MARK
from localq.whereabouts import whereabouts

#: Characters of arguments and results, and of an exception where each task has one line.
LIMIT, LINE_LIMIT = 4096, 120
#: How many of those who wait for a task are named.
NAMED = 10


@click.group(
    cls=Commands,
    invoke_without_command=True,
    epilog="\b\nExamples:\n  localq -A tasks task show 0198f0c2-...\n  localq -A tasks task retry --failed",
)
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Look at single tasks, and run failed ones again."""
    ctx.obj = joined(ctx, options)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@command.command(epilog="\b\nExamples:\n  localq -A tasks task show 0198f0c2-...\n  localq -b /srv/jobs task show ID")
@click.argument("id")
@click.pass_context
def show(ctx: click.Context, /, **options: Any) -> None:
    """Show what the store has of a task: its arguments, how it stands, and why it failed."""
    app = opened(merged(ctx, options))
    record = app.storage.records((options["id"],), whole=True).get(options["id"])
    if record is None:
        raise Mistake("LQ041", f"no task has the id {options['id']!r} in {app.backend.url}",
                      hint="it was forgotten, or sent to another store: -A or -b names one", exit_code=1)  # fmt: skip
    _say(f"{name:<10} ->{_indented(text)}" for name, text in facts(app, record, record.message) if text)


@command.command(
    epilog="\b\nExamples:\n  localq -A tasks task retry ID ID\n  localq -A tasks task retry --failed --dry-run"
)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--failed", is_flag=True, help="Every task that ended in FAILURE, in the order they were sent.")
@click.option("--dry-run", is_flag=True, help="Only say which tasks would run again, and why they failed.")
@click.pass_context
def retry(ctx: click.Context, /, **options: Any) -> int:
    """Run tasks that failed, or were revoked, once more: the same id and arguments, without an ETA or expiry.

    Those that waited for such a task (chain steps, callbacks, the body of a chord) failed with it and stay failed.
    Retry them when it has succeeded.
    """
    if options["ids"] and options["failed"]:
        raise click.UsageError("give the ids of tasks or --failed, not both")
    if not options["ids"] and not options["failed"]:
        raise click.UsageError("give the ids of the tasks to retry, or --failed for all that failed")
    app = opened(merged(ctx, options))
    act = _tried if options["dry_run"] else dead.retry
    ids: Iterable[str] = dict.fromkeys(options["ids"])
    if options["failed"]:
        ids = (record.id for record in dead.failed(app.storage))
    done, refused = _retry_each(app, ids, act, options["failed"])
    if options["failed"] and not done and not refused:
        _say([f"no task has failed in {app.backend.url}"])
    else:
        _say([_summary(done, refused, "would " if options["dry_run"] else "")])
    return 1 if refused and not options["failed"] else 0


def _summary(done: int, refused: int, would: str) -> str:
    tasks = "1 task" if done == 1 else f"{done} tasks"
    stay = f", {refused} {'stays' if refused == 1 else 'stay'} as before" if refused else ""
    return f"{tasks} {would}{'runs' if done == 1 and not would else 'run'} again{stay}"


def _retry_each(app: Any, ids: Iterable[str], act: Callable[[Storage, str], Record], stays: bool) -> tuple[int, int]:
    """Retry tasks one by one, telling of each; return how many run again and how many do not."""
    done = refused = 0
    for id in ids:
        try:
            record = act(app.storage, id)
        except RetryRefused as exc:
            refused += 1
            if stays:
                _say([f"stays: {exc}"])
            else:
                click.echo(printable(str(Mistake("LQ042", str(exc)))), err=True)
            continue
        done += 1
        why = " ".join(_reason(app, record).split())
        why = why if len(why) <= LINE_LIMIT else f"{why[: LINE_LIMIT - 3]}..."
        _say([f"{record.name}[{record.id}] in queue {record.queue!r}, was {record.state}: {why}"])
    return done, refused


def _tried(storage: Storage, id: str) -> Record:
    """What `dead.retry` does, without doing it."""
    record = dead.whole_record(storage, id)
    dead.next_attempt(storage, record)
    return record


def opened(given: dict[str, Any]) -> Any:
    """Return the app of a command, with its store; one that is not there is not made.

    Raises:
        Mistake: there is no store.
    """
    app = app_or_store(given["app_spec"], given["store"])
    path = app.backend.location.path
    if path and not (Path(path) / MARK).exists():
        raise Mistake("LQ040", f"there is no store at {app.backend.url}: nothing has been sent to it yet",
                      hint="-A names the app that has sent, -b its store", exit_code=1)  # fmt: skip
    app.backend.follow()
    # What a dead worker left stands as it is, not as that worker last wrote.
    sweep(app.storage, limit=app.conf.task_max_redeliveries)
    return app


# -- What is known of a task -----------------------------------------------------------------------


def facts(app: Any, record: Record, message: Message | None) -> Iterator[tuple[str, str]]:
    """Say what is known of a task, as names and texts; an empty text is not worth a line."""
    assert message is not None
    yield "task", record.name
    yield "id", record.id
    yield "state", record.state if record.ended else f"{record.state}: it {whereabouts(record)}"
    priority = 255 - message.priority if app.conf.task_priority_order == "high_first" else message.priority
    yield "queue", f"{record.queue}, priority {priority}"
    yield from zip(("args", "kwargs"), arguments(app, message), strict=True)
    yield "sent", _time(message.sent_at) + (f" by {message.origin}" if message.origin else "")
    yield "not before", _time(None if record.ended else message.visible_at)
    yield "expires", _time(message.expires_at)
    yield "group", f"{record.group_id}, member {record.position}" if record.group_id else ""
    yield "retries", str(record.retries)
    yield "crashes", f"{record.redeliveries} (attempts whose process died)"
    yield "worker", record.worker or _holder(app.storage, record)
    yield "ended", _time(record.ended_at)
    yield "result", _result(app, record) if record.state not in states.EXCEPTION_STATES else ""
    yield "exception", _reason(app, record) if record.state in states.EXCEPTION_STATES else ""
    yield "traceback", (record.traceback or "").rstrip()
    yield "who waits", _who_waits(app.storage, record, message)
    yield "run again", _way(app.storage, record) if record.state in states.PROPAGATE_STATES else ""


def arguments(app: Any, message: Message) -> tuple[str, str]:
    """Say with what a task was called; what its sender would rather have shown, if he said so."""
    try:
        headers = decode((message.headers or "{}").encode(), "application/json", ("json",))
        shown = headers.get("argsrepr"), headers.get("kwargsrepr")
    except Exception:
        shown = None, None  # the headers are damaged; the body may be whole
    try:
        args, kwargs = decode(message.body, message.content_type, app.conf.accept_content, message.checksum)
        read = safe_repr(args, LIMIT), safe_repr(kwargs, LIMIT)
    except Exception as exc:
        read = (f"(cannot be read: {exc})",) * 2
    return str(shown[0] or read[0]), str(shown[1] or read[1])


def _result(app: Any, record: Record) -> str:
    if record.result is None:
        return ""
    try:
        return safe_repr(value_of(record, app.conf), LIMIT)
    except Exception as exc:
        return f"(cannot be read: {exc})"


def _reason(app: Any, record: Record) -> str:
    """Say in words why a task failed."""
    try:
        exc = value_of(record, app.conf)
        return f"{type(exc).__name__}: {exc.reason if isinstance(exc, Reject) else exc}"
    except Exception as fault:
        return f"(cannot be read: {fault})"


def _holder(storage: Storage, record: Record) -> str:
    """Name the process that has a task now."""
    kind, _, name = (record.hold or "").partition(":")
    owner = next((each for each in storage.owners() if each.name == name), None) if kind == "owner" else None
    if owner is None:
        return ""
    gone = "" if owner.alive else ", which is dead: the next worker, or a waiting get(), frees its tasks"
    runs = owner.doing is not None and owner.doing.seq == record.seq
    what = "" if not owner.alive else ", which runs it now" if runs else ", which has not begun it"
    return f"{owner.about.get('node')}, process {owner.about.get('pid')}{gone or what}"


def _who_waits(storage: Storage, record: Record, message: Message) -> str:
    if record.ended:
        failed = message.leads and record.state in states.PROPAGATE_STATES
        return "those that did failed with it and stay failed; retry them when it has succeeded" if failed else ""
    keys = [record.id] if message.leads & LEADS_BY_ID else []
    keys += [str(record.group_id)] if message.leads & LEADS_BY_GROUP else []
    found = [f"{each.name}[{each.id}]" for key in keys for each in storage.records(hold=f"after:{key}").values()]
    more = len(found) - NAMED
    return "\n".join(found[:NAMED] + ([f"and {more} more" if more < STEP - NAMED else "and many more"] * (more > 0)))


def _way(storage: Storage, record: Record) -> str:
    try:
        dead.next_attempt(storage, record)
    except RetryRefused as exc:
        return f"not now: {exc}"
    return retry_command(record.id, storage.url)


def _time(at: float | None) -> str:
    if at is not None and at < 0:
        return f"{-at:g} s after the end that it waits for"
    return "" if at is None else datetime.fromtimestamp(at, UTC).astimezone().isoformat(" ", "seconds")


# -- On the terminal -------------------------------------------------------------------------------


def printable(text: str) -> str:
    """Return text that changes nothing on a terminal, and that this one can show: all else is escaped."""
    safe = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    encoding = sys.stdout.encoding or "utf-8"
    return safe.encode(encoding, "backslashreplace").decode(encoding)


def _indented(text: str) -> str:
    """A text behind its name, or below it if it has several lines."""
    lines = text.splitlines()
    return f" {text}" if len(lines) < 2 else "".join(f"\n    {line}" for line in lines)


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(printable(line))
