"""Who may hold claims, and whether they live: a lock, and notes that outlive their writer."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import weakref
from enum import IntEnum

import pytest
from forking import Line, ended, forked, killed
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import wait_until

from localq.exceptions import StoreBusy, StoreFull, StoreReplaced
from localq.message import Claim, Message, Outcome
from localq.recovery import EARLY, LATE, LATE_REJECT
from localq.storage.base import Estate, Started
from localq.storage.owners import LAYOUT, NOTES_SIZE, Owners, identity, is_running


@pytest.fixture
def owners(tmp_path):
    return Owners(tmp_path / "owners")


def claim(seq=5, token=2):
    return Claim(seq, token, 0, Message(f"id-{seq}", "proj.work", b"[]"))


class Other:
    """Another process that enlists and then does as it is told."""

    def __init__(self, directory, then=lambda owner: None, about=None, journal=True):
        line = Line()

        def live():
            owner = Owners(directory).enlist({"kind": "other", **(about or {})}, journal)
            then(owner)
            line.say(owner.name)
            signal.pause()

        self.pid = forked(live)
        self.name = line.hear()

    def kill(self, reap=True):
        os.kill(self.pid, signal.SIGKILL)
        if reap:
            os.waitpid(self.pid, 0)


@pytest.fixture
def other(owners):
    made = Other(owners.directory)
    yield made
    try:
        made.kill()
    except (ProcessLookupError, ChildProcessError):
        pass


def is_alive_elsewhere(owners, name):
    """What another process says; an owner's own process may not be asked."""
    line = Line()
    assert ended(forked(lambda: line.say(str(Owners(owners.directory).is_alive(name))))) == 0
    return line.hear() == "True"


# -- Alive or not ----------------------------------------------------------------------------------


@pytest.mark.row("P6", "R4")
def test_an_owner_lives_as_long_as_its_process(owners, other):
    assert owners.is_alive(other.name)
    other.kill()
    assert not owners.is_alive(other.name)


@pytest.mark.row("P6")
def test_a_process_that_is_dead_and_not_yet_reaped_does_not_live(owners, other):
    other.kill(reap=False)
    wait_until(lambda: not owners.is_alive(other.name))
    os.waitpid(other.pid, 0)


@pytest.mark.row("R4")
def test_a_stopped_process_lives(owners, other):
    os.kill(other.pid, signal.SIGSTOP)
    os.waitpid(other.pid, os.WUNTRACED)
    assert owners.is_alive(other.name)


def test_asking_often_does_not_end_anybodys_life(owners, other):
    """The trap of POSIX locks: a close of the file by its owner's process drops the lock."""
    mine = owners.enlist({}, journal=True)
    for _ in range(3):
        assert {owner.name: owner.alive for owner in owners.infos()} == {mine.name: True, other.name: True}
    assert is_alive_elsewhere(owners, mine.name)


def test_a_second_view_in_the_same_process_does_not_take_it_for_dead(owners):
    mine = owners.enlist({}, journal=False)
    second = Owners(owners.directory)
    assert second.is_alive(mine.name)
    assert is_alive_elsewhere(owners, mine.name)


@pytest.mark.row("P6", "R19")
def test_a_forked_child_does_not_keep_its_parents_name_alive(owners):
    """A task's grandchild may outlive its worker: the lock must not be inherited."""
    line = Line()

    def live():
        mine = owners.enlist({}, journal=False)
        line.say(f"{mine.name} {forked(signal.pause)}")

    assert ended(forked(live)) == 0
    name, grandchild = line.hear().split()
    try:
        assert not owners.is_alive(name)
    finally:
        os.kill(int(grandchild), signal.SIGKILL)


def test_views_that_were_let_go_leave_no_hook_of_forks(tmp_path, monkeypatch):
    """Hooks cannot be taken back: 1,000 stores, opened and closed, would make every fork slower for good."""
    hooks = []
    monkeypatch.setattr(os, "register_at_fork", lambda **each: hooks.append(each))
    views = [weakref.ref(Owners(tmp_path / "owners")) for _ in range(3)]
    assert hooks == []
    assert [view() for view in views] == [None] * 3


def test_a_name_that_nobody_has_is_dead(owners):
    assert not owners.is_alive("0123456789abcdef")


def test_a_lock_that_is_gone_while_its_process_lives_is_no_death(owners, other):
    """Another program of the same process may close the file; the recorded process still counts."""
    other = Other(owners.directory, lambda owner: os.close(os.open(owners.directory / owner.name, os.O_RDONLY)))
    assert owners.is_alive(other.name)
    other.kill()
    assert not owners.is_alive(other.name)


@pytest.mark.row("P6", "R4")
def test_a_reused_process_number_is_not_the_process_it_was():
    facts = identity()
    assert is_running(facts)
    assert not is_running({**facts, "started": "1"})
    assert not is_running({**facts, "boot": "another boot"})
    assert not is_running({**facts, "pid_ns": "pid:[1]"})
    assert not is_running({})


def test_names_are_never_reused(owners):
    assert len({owners.enlist({}, journal=False).name for _ in range(50)}) == 50


def test_facts_are_for_others_to_see(owners):
    other = Other(owners.directory, about={"node": "w1@box", "queues": ["a"]})
    try:
        (found,) = owners.infos()
        assert (found.about["kind"], found.about["node"], found.about["queues"]) == ("other", "w1@box", ["a"])
        assert found.about["pid"] == other.pid
    finally:
        other.kill()


def test_a_retired_owner_leaves_no_file(owners, other):
    other.kill()
    owners.retire(other.name)
    assert owners.infos() == []
    assert list(owners.directory.iterdir()) == []


def enlist_for_ever(directory):
    view = Owners(directory)
    kept = []
    while True:
        kept.append(view.enlist({}, journal=True))


def test_a_name_is_never_seen_before_it_is_locked(owners):
    """Killed at any moment while enlisting: whatever is listed is alive, or its process is gone."""
    for _ in range(10):
        pid = forked(lambda: enlist_for_ever(owners.directory))
        wait_until(lambda: len(list(owners.directory.iterdir())) > 4)
        assert all(owner.alive for owner in owners.infos())
        killed(pid)
        for owner in owners.infos():
            assert not owner.alive
            owners.retire(owner.name)
        assert list(owners.directory.iterdir()) == []


def test_whoever_loses_its_empty_file_to_one_who_tidies_makes_another(owners, monkeypatch):
    """It looks as if its process had died before it could fill it."""
    fchmod, tidied = os.fchmod, []

    def tidied_first(*args):
        if len(tidied) < 3:
            tidied.append(ended(forked(Owners(owners.directory).infos)))
        return fchmod(*args)

    monkeypatch.setattr(os, "fchmod", tidied_first)
    mine = owners.enlist({}, journal=True)
    assert tidied == [0, 0, 0]
    assert sorted(os.listdir(owners.directory)) == [mine.name, f"{mine.name}.notes"]
    assert is_alive_elsewhere(owners, mine.name)


def test_who_finds_no_room_for_its_notes_leaves_nothing(owners, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreFull):
        owners.enlist({}, journal=True)
    assert (os.listdir(owners.directory), owners._mine) == ([], {})
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_a_directory_nobody_enlists(owners):
    owners.directory.rmdir()
    with pytest.raises(StoreReplaced, match="was removed"):
        owners.enlist({}, journal=True)
    assert owners._mine == {}


# -- Notes -----------------------------------------------------------------------------------------


def notes_after(owners, act):
    """What others read once a process that did this has been killed."""
    other = Other(owners.directory, act)
    other.kill()
    estate = owners.notes(other.name, [])
    return list(estate.started), list(estate.ended)


@pytest.mark.parametrize("mode", [EARLY, LATE, LATE_REJECT])
def test_a_task_that_has_begun_is_known_by_its_token_and_its_mode(owners, mode):
    assert notes_after(owners, lambda owner: owner.begin(claim(5, 2), mode)) == ([Started(5, 2, mode)], [])


def test_nothing_begun_nothing_noted(owners):
    assert notes_after(owners, lambda owner: None) == ([], [])


def test_a_task_that_has_ended_is_not_taken_for_running(owners):
    def act(owner):
        owner.begin(claim(1), EARLY)
        owner.end(Outcome(1, 2, "id-1", "SUCCESS"))

    started, ended = notes_after(owners, act)
    assert started == []
    assert [outcome.id for outcome in ended] == ["id-1"]


def test_ended_outcomes_are_noted_in_order_beside_the_running_task(owners):
    def act(owner):
        for seq in (1, 2):
            owner.begin(claim(seq), EARLY)
            owner.end(Outcome(seq, 2, f"id-{seq}", "SUCCESS", result=b"\0\xff"))
        owner.begin(claim(3), LATE)

    started, ended = notes_after(owners, act)
    assert started == [Started(3, 2, LATE)]
    assert [(o.seq, o.state, o.result) for o in ended] == [(1, "SUCCESS", b"\0\xff"), (2, "SUCCESS", b"\0\xff")]


def test_what_was_settled_is_not_noted_any_more(owners):
    def act(owner):
        owner.begin(claim(1), EARLY)
        owner.end(Outcome(1, 2, "id-1", "SUCCESS"))
        owner.settled()

    assert notes_after(owners, act) == ([], [])


def test_a_new_batch_after_a_long_one_leaves_nothing_of_the_old(owners):
    def act(owner):
        for seq in range(50):
            owner.begin(claim(seq + 1), EARLY)
            owner.end(Outcome(seq + 1, 2, "long", "SUCCESS", result=b"x" * 500))
        owner.settled()
        owner.begin(claim(99), EARLY)
        owner.end(Outcome(99, 2, "new", "SUCCESS"))

    _, ended = notes_after(owners, act)
    assert [outcome.id for outcome in ended] == ["new"]


def test_why_a_process_is_killed_is_noted_for_that_task_only(owners):
    def act(owner):
        owner.begin(claim(1), EARLY, deadline=5.5)
        owner.begin(claim(2), LATE, place=1)
        owners.condemn(owner.name, 2, 2, "its time is over: \u00fc" * 40)

    started, _ = notes_after(owners, act)
    assert [each.reason[:19] for each in started] == ["", "its time is over: \u00fc"]
    assert started[0] == Started(1, 2, EARLY, 5.5)
    owners.condemn("nobody", 1, 1, "gone already")


def test_an_outcome_that_does_not_fit_is_refused_and_what_was_noted_stays(owners):
    owner = owners.enlist({}, journal=True)
    assert owner.end(Outcome(1, 1, "small", "SUCCESS"))
    assert not owner.end(Outcome(2, 1, "big", "SUCCESS", result=b"x" * NOTES_SIZE))
    assert [outcome.id for outcome in owners.notes(owner.name, []).ended] == ["small"]


def test_an_outcome_of_which_a_part_is_of_a_users_class_is_refused_too(owners):
    class Level(IntEnum):
        HIGH = 3

    owner = owners.enlist({}, journal=True)
    again = Message("a", "t", b"[]", priority=Level.HIGH)
    assert not owner.end(Outcome(1, 1, "a", "RETRY", ended=False, again=again))


def test_without_a_journal_every_outcome_must_be_settled_at_once(owners):
    owner = owners.enlist({}, journal=False)
    owner.begin(claim(), EARLY)
    assert not owner.end(Outcome(1, 1, "id", "SUCCESS"))
    owner.settled()


some_text = st.none() | st.text(max_size=10)
outcomes = st.builds(
    Outcome, st.integers(0, 2**62), st.integers(0, 2**62), st.text(max_size=10),
    state=st.sampled_from([None, "SUCCESS", "FAILURE", "RETRY", "IGNORED"]), ended=st.booleans(),
    again=st.none() | st.builds(Message, st.text(), st.text(), st.binary(max_size=10), visible_at=st.floats()),
    charged=st.integers(0, 1), result=st.none() | st.binary(max_size=30), traceback=some_text,
    ended_at=st.none() | st.floats(), group_failure=st.none() | st.binary(max_size=5),
    sends=st.lists(st.builds(Message, st.text(), st.text(), st.binary(max_size=10)), max_size=2).map(tuple),
    group_id=some_text, leads=st.integers(0, 3), reply_to=some_text,
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(outcomes, max_size=4))
def test_any_outcome_is_read_as_it_was_noted(tmp_path_factory, noted):
    view = Owners(tmp_path_factory.mktemp("owners") / "owners")
    owner = view.enlist({}, journal=True)
    for outcome in noted:
        assert owner.end(outcome)
    assert repr(list(view.notes(owner.name, []).ended)) == repr(noted)
    owner.close()


@settings(max_examples=40)
@given(st.binary(max_size=200))
def test_notes_of_any_bytes_are_read_without_a_crash(tmp_path_factory, data):
    """A notes file that was cut or scribbled over must not stop a sweep."""
    view = Owners(tmp_path_factory.mktemp("owners") / "owners")
    owner = view.enlist({}, journal=True)
    with open(view.directory / f"{owner.name}.notes", "r+b") as file:
        file.seek(len(LAYOUT))
        file.write(data)
    ended = view.notes(owner.name, []).ended
    assert isinstance(ended, list)
    owner.close()


def _head_of(owners, name, head):
    with open(owners.directory / f"{name}.notes", "r+b") as file:
        file.write(head)


def _said(caplog):
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("head", [b"localq 2", b"\x01\0\0\0\0\0\0\0"])
def test_a_dead_owner_whose_notes_are_of_another_version_is_left_and_told_of_once(owners, other, caplog, head):
    _head_of(owners, other.name, head)
    assert [info.alive for info in owners.infos()] == [True]
    other.kill()
    assert owners.infos() == owners.infos([other.name]) == []
    (said,) = _said(caplog)
    assert f"{other.name}.notes" in said
    assert "another version of localq" in said
    assert "remove the file" in said
    assert (owners.directory / other.name).exists()
    (owners.directory / f"{other.name}.notes").unlink()
    assert [info.alive for info in owners.infos()] == [False]


def test_notes_of_another_version_are_neither_read_nor_written(owners, other):
    _head_of(owners, other.name, b"localq 2")
    before = (owners.directory / f"{other.name}.notes").read_bytes()
    assert (owners.doing(other.name), owners.notes(other.name, [claim()])) == (None, Estate([claim()]))
    owners.recall(other.name, 1)
    owners.condemn(other.name, 5, 2, "{}")
    assert (owners.directory / f"{other.name}.notes").read_bytes() == before


def test_notes_whose_first_page_a_power_cut_took_say_that_nothing_had_begun(owners, other, caplog):
    _head_of(owners, other.name, bytes(4096))
    other.kill()
    assert [info.alive for info in owners.infos()] == [False]
    assert owners.notes(other.name, [claim()]) == Estate([claim()])
    assert _said(caplog) == []


def test_a_recall_of_an_earlier_batch_does_not_undo_a_later_one(owners):
    """Two recall, one of them having looked before the owner went on: what the other took back must not begin."""
    owner = owners.enlist({}, True)
    owner.turn()
    owner.turn()
    owners.recall(owner.name, 2)
    owners.recall(owner.name, 1)
    assert not owner.begin(claim(), EARLY)
    owner.turn()
    assert owner.begin(claim(), EARLY)
    owner.close()


def test_notes_that_somebody_keeps_locked_are_not_waited_for_without_end(owners, monkeypatch):
    monkeypatch.setattr("localq.storage.owners.LOCKED_S", 0.01)
    owner = owners.enlist({}, True)
    owner.turn()
    with open(owners.directory / f"{owner.name}.notes", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreBusy, match=rf"notes of owner {owner.name} are locked"):
            owners.recall(owner.name, 1)
    assert owner.begin(claim(), EARLY)
    owner.close()
