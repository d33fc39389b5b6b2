"""Kill anything, lose nothing: producers and workers under `kill -9`, against an oracle outside the store.

The usual run kills 150 times, and 40 times while the wall clock is set forwards and back; `nox -s crash` kills
2,000 times, over 70,000 tasks.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import sys
from pathlib import Path

import pytest
from field import Field, Verdict, WallClock, faketime, field, judge, judge_what_is_left
from forking import ended, forked
from waiting import wait_until

from localq import LocalQ, clock
from localq.message import Want
from localq.recovery import sweep

if sys.platform != "linux":
    pytest.skip("finds its victims through /proc", allow_module_level=True)

LONG = pytest.mark.crash


def tell(there: Field, verdict: Verdict) -> None:
    kills = ", ".join(f"{number} {kind}s" for kind, number in there.kills.items())
    print(
        f"{verdict.accepted} accepted, {there.kills.total()} kills ({kills}); lost 0, double 0 of {len(there.seen)} "
        f"read; {verdict.redelivered} redelivered, {verdict.failed} early failures, {verdict.given_up} given up, "
        f"{verdict.instants} killed in an instant ({verdict.unseen} before the first line, {verdict.complete} after "
        f"the last), {verdict.unknown} of senders that died before they told"
    )


@pytest.mark.row("F046", "F048", "F065", "P1", "R5", "R21")
@pytest.mark.parametrize(("kills", "tasks"), [(150, 1500), pytest.param(2000, 70_000, marks=LONG)])
@pytest.mark.timeout(1800)
def test_nothing_accepted_is_lost_and_nothing_ends_twice(tmp_path: Path, kills: int, tasks: int) -> None:
    """One worker for the first half of the kills, two for the second."""
    with field(tmp_path, seed=kills) as there:
        there.kill(kills // 2)
        there.add_worker()
        there.kill(kills - kills // 2, tasks)
        there.finish()
        verdict = judge(there)
        tell(there, verdict)
        assert verdict.instants <= 2 + kills // 10
        judge_what_is_left(there)


@pytest.mark.parametrize("kills", [60, pytest.param(600, marks=LONG)])
@pytest.mark.timeout(900)
def test_coroutines_beside_plain_tasks_are_not_lost_either(tmp_path: Path, kills: int) -> None:
    """Half of all tasks are coroutines, of which a child runs many at a time."""
    with field(tmp_path, seed=kills + 1, FIELD_BESIDE="1") as there:
        there.kill(kills)
        there.finish()
        verdict = judge(there, at_a_time=101)
        tell(there, verdict)
        judge_what_is_left(there)


@pytest.mark.row("P1", "R4")
@pytest.mark.parametrize("kills", [40, pytest.param(400, marks=LONG)])
@pytest.mark.timeout(900)
def test_no_result_depends_on_the_clock(tmp_path: Path, kills: int) -> None:
    """The wall clock is a day ahead, a day behind or right, by turns of chance, and is set before every kill."""
    library = faketime()
    if not library:
        pytest.skip("libfaketime is not installed (pip install libfaketime), or does not work here")
    wall = WallClock(tmp_path, library)
    with field(tmp_path, kills, workers=2, FIELD_LATER="1", FIELD_WORK_S="0.02", **wall.variables) as there:
        for _ in range(kills):
            wall.set(there.pick.choice(["+1d", "-1d", "+0"]))
            there.kill(1)
        # What was sent for an hour later, by whatever clock, is due now; a claim looks for what is due. Nobody sends
        # any more: what is sent by this clock is due an hour after it.
        there.stop_producers()
        wall.set("+3d")
        wait_until(lambda: there.app.storage.due(1) == [], what="everything that is due runs")
        there.finish()
        verdict = judge(there)
        tell(there, verdict)
        ends = [record.ended_at for record in there.seen.values()]
        assert max(ends) - min(ends) > 24 * 3600, "the clock was not set"
        assert verdict.instants <= 2 + kills // 10
        judge_what_is_left(there)


@pytest.mark.row("P6")
def test_a_dead_workers_traces_are_gone_once_another_has_swept(tmp_path: Path) -> None:
    with field(tmp_path, seed=1) as there:
        wait_until(lambda: there.runs(), what="the worker runs tasks")
        there.stop_producers()
        os.killpg(there.workers[0].pid, signal.SIGKILL)
        there.workers.pop().wait()
        wait_until(lambda: dead(there), what="the dead are known as such")
        there.add_worker()
        wait_until(lambda: dead(there) == [], what="the dead are swept away")


def dead(there: Field) -> list[str]:
    return [owner.name for owner in there.app.storage.owners() if not owner.alive]


@pytest.mark.row("P1")
def test_claims_of_an_owner_whose_file_is_gone_are_freed_all_the_same(tmp_path: Path) -> None:
    app = LocalQ("watcher", store=tmp_path / "store", set_as_current=False)
    app.send_task("nobody.knows")

    def claim_and_die():
        owner = app.storage.enlist({"kind": "child"})
        assert app.storage.settle((), Want(owner.name, ("celery",), 1, clock.now())).claims
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        assert ended(forked(claim_and_die)) == -signal.SIGKILL
        for file in (tmp_path / "store" / "owners").iterdir():
            file.unlink()
        sweep(app.storage)
        assert [count.place for count in app.storage.counts()] == ["ready"]
    finally:
        app.close()


@pytest.mark.row("P1")
@pytest.mark.parametrize(("module", "step"), [
    (os, "fchmod"), (os, "write"), (fcntl, "lockf"), (mmap, "mmap"), (os, "rename"),
], ids=["empty", "filling", "locking", "noting", "naming"])  # fmt: skip
def test_nothing_is_left_of_a_process_that_died_while_it_enlisted(
    tmp_path: Path, monkeypatch, module: object, step: str
) -> None:
    app = LocalQ("watcher", store=tmp_path / "store", set_as_current=False)
    app.storage.counts()

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def enlist() -> None:
        monkeypatch.setattr(module, step, die)
        app.storage.enlist({"kind": "child"})

    try:
        assert ended(forked(enlist)) == -signal.SIGKILL
        sweep(app.storage)
        app.storage.maintain()
        mine = app.storage.enlist({"kind": "test"})
        mine.close()
        app.storage.retire(mine.name)
        assert os.listdir(tmp_path / "store" / "owners") == []
    finally:
        app.close()
