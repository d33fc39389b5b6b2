"""Bells: hints that end a sleep, and never the truth."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from forking import Line, ended, forked, killed

from localq.storage.bells import QUEUES, SLOTS, Bells


@pytest.fixture
def bells(tmp_path):
    made = Bells(tmp_path / "bells")
    yield made
    made.close()


def raised(bell):
    bell.raise_()
    return bell


def test_a_raised_bell_of_the_queue_rings(bells):
    bell = raised(bells.bell(("celery",), None))
    bells.ring_idle("celery", 1)
    assert bell.sleep(0)
    assert not bell.sleep(0)


def test_a_bell_that_is_not_raised_is_left_in_peace(bells):
    bell = bells.bell(("celery",), None)
    bells.ring_idle("celery", 1)
    assert not bell.sleep(0)
    bell.raise_()
    bell.lower()
    bells.ring_idle("celery", 1)
    assert not bell.sleep(0)


def test_a_bell_of_another_queue_does_not_ring(bells):
    other = raised(bells.bell(("mail",), None))
    bells.ring_idle("celery", 5)
    assert not other.sleep(0)


def test_one_message_wakes_one_sleeper(bells):
    sleepers = [raised(bells.bell(("celery",), None)) for _ in range(5)]
    bells.ring_idle("celery", 2)
    assert sum(bell.sleep(0) for bell in sleepers) == 2
    bells.ring_idle("celery", 9)
    assert sum(bell.sleep(0) for bell in sleepers) == 3


def test_a_bell_rings_once_for_each_time_it_was_raised(bells):
    bell = raised(bells.bell(("celery",), None))
    bells.ring_idle("celery", 1)
    bells.ring_idle("celery", 1)
    assert bell.sleep(0)
    bells.ring_idle("celery", 1)
    assert not bell.sleep(0)


def test_a_ring_between_the_look_and_the_sleep_ends_the_sleep_at_once(bells):
    bell = raised(bells.bell(("celery",), None))
    bells.ring_idle("celery", 1)  # the sleeper has looked, and has not gone to sleep yet
    assert bell.sleep(30)


def test_a_reply_rings_whoever_waits_for_it_and_who_waits_for_any(bells):
    mine, others, anybodys = (raised(bells.bell((), name)) for name in ("me", "other", "*"))
    bells.ring_replies({"me", None})
    assert (mine.sleep(0), others.sleep(0), anybodys.sleep(0)) == (True, False, True)


def test_work_does_not_ring_those_who_wait_for_replies(bells):
    waiting = raised(bells.bell((), "me"))
    bells.ring_idle("celery", 5)
    assert not waiting.sleep(0)


def test_a_sleep_ends_when_something_else_can_be_read(bells):
    bell = raised(bells.bell(("celery",), None))
    read_end, write_end = os.pipe()
    os.write(write_end, b"!")
    assert bell.sleep(30, read_end) is False
    os.close(read_end)
    os.close(write_end)


def test_a_sleeper_of_another_process_is_woken(bells):
    line = Line()

    def sleeper():
        bell = raised(Bells(bells.directory).bell(("celery",), None))
        line.say()
        assert bell.sleep(30)

    pid = forked(sleeper)
    line.hear()
    bells.ring_idle("celery", 1)
    assert ended(pid) == 0


def test_a_sleeper_that_was_killed_stops_nobody(bells):
    line = Line()

    def sleeper():
        bell = raised(Bells(bells.directory).bell(("celery",), None))
        line.say()
        bell.sleep(30)

    pid = forked(sleeper)
    line.hear()
    os.kill(pid, signal.SIGSTOP)
    killed(pid)
    living = raised(bells.bell(("celery",), None))
    bells.ring_idle("celery", 2)
    assert living.sleep(0)


def test_sweeping_frees_the_slots_and_pipes_of_the_dead_only(bells):
    def sleepers():
        view = Bells(bells.directory)
        kept = [raised(view.bell(("celery",), None)) for _ in range(5)]
        assert len(kept) == 5

    assert ended(forked(sleepers)) == 0
    living = raised(bells.bell(("celery",), None))
    assert len(os.listdir(bells.directory)) == 7
    bells.sweep()
    assert len(os.listdir(bells.directory)) == 2
    bells.ring_idle("celery", 1)
    assert living.sleep(0)


def test_a_closed_bell_gives_its_slot_and_its_pipe_back(bells):
    before = os.listdir(bells.directory)
    for _ in range(SLOTS + 5):
        bells.bell(("celery",), None).close()
    assert os.listdir(bells.directory) == before


def test_a_slot_that_was_given_to_another_rings_the_other(bells):
    first = raised(bells.bell(("celery",), None))
    bells.ring_idle("celery", 1)
    first.close()
    second = raised(bells.bell(("celery",), None))
    bells.ring_idle("celery", 1)
    assert second.sleep(0)


def test_a_flood_of_rings_blocks_nobody(bells):
    bell = bells.bell(("celery",), None)
    for _ in range(70_000):
        bells.ring([0])
    assert bell.sleep(0)


def test_threads_have_bells_of_their_own(bells):
    woken = []
    lock = threading.Lock()

    def sleeper():
        with lock:
            bell = raised(bells.bell(("celery",), None))
        ready.release()
        woken.append(bell.sleep(30))
        bell.close()

    ready = threading.Semaphore(0)
    threads = [threading.Thread(target=sleeper) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in threads:
        ready.acquire()
    bells.ring_idle("celery", 4)
    for thread in threads:
        thread.join()
    assert woken == [True] * 4


def test_a_pipe_that_was_replaced_by_something_else_is_not_written_to(bells):
    bell = raised(bells.bell(("celery",), None))
    (pipe,) = [entry for entry in bells.directory.iterdir() if entry.name != "board"]
    pipe.unlink()
    pipe.write_text("somebody else's")
    bells.ring_idle("celery", 1)
    assert pipe.read_text() == "somebody else's"
    assert not bell.sleep(0)


def test_the_time_of_the_last_sync_is_seen_by_everybody(bells):
    assert bells.synced_at() == 0.0
    bells.stamp_sync(123.5)
    assert Bells(bells.directory).synced_at() == 123.5


def test_a_ring_ends_a_sleep_that_has_begun(bells):
    bell = raised(bells.bell(("celery",), None))
    ring = threading.Timer(0.02, bells.ring_idle, ("celery", 1))
    ring.start()
    assert bell.sleep(30)
    ring.join()


# -- Many queues -------------------------------------------------------------------------------------


def test_of_any_number_of_queues_only_the_right_one_rings(bells):
    sleepers = {name: raised(bells.bell((name,), None, f"{name:0>16}")) for name in map(str, range(60))}
    for number in range(1000):
        bells.ring_idle(f"nobody serves {number}", 9)
        assert bells.taker(f"nobody serves {number}") is None
    assert not any(bell.sleep(0) for bell in sleepers.values())
    for name, bell in sleepers.items():
        assert bells.taker(name).name == f"{name:0>16}"
        bells.ring_idle(name, 9)
        assert [each for each, other in sleepers.items() if other.sleep(0)] == [name]
        bell.lower()


def test_queues_that_find_no_place_of_their_own_ring_and_are_handed_nothing(bells):
    late = [raised(bells.bell((str(number),), None, f"{number:0>16}")) for number in range(QUEUES + 5)][-5:]
    name = str(QUEUES + 2)
    assert bells.taker(name) is None
    bells.ring_idle(name, 9)
    assert late[2].sleep(0)


def test_a_queue_is_the_same_for_another_process_that_came_before_it(bells, tmp_path):
    other = Bells(tmp_path / "bells")
    other.ring_idle("celery", 1)  # nobody knows the name yet
    bell = raised(bells.bell(("celery",), None))
    other.ring_idle("celery", 1)
    assert bell.sleep(0)
    other.close()
