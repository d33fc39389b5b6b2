"""Messages put straight into the hands of an owner that sleeps, and what can go wrong on the way."""

from __future__ import annotations

import os
import signal
from enum import IntEnum, StrEnum

import pytest
from forking import Line, ended, forked, killed

from localq import faults
from localq.message import Claim, Message, Outcome, Want
from localq.recovery import sweep
from localq.serialization import checksum
from localq.states import HELD, READY
from localq.storage.bells import Bells
from localq.storage.sqlite import SqliteStorage
from localq.testing.contract.words import ids, received, take
from localq.testing.worker import start_worker
from localq.worker.child import Consumer


def message(id, body=b"[[1, 2], {}]", **columns):
    return Message(id, "proj.add", body, checksum=checksum(body), **columns)


@pytest.fixture
def storage(tmp_path):
    made = SqliteStorage(tmp_path / "store")
    yield made
    made.close()


@pytest.fixture
def owner(storage):
    made = storage.enlist({"kind": "child"})
    yield made
    made.close()


@pytest.fixture
def bell(storage, owner):
    made = storage.bell(["celery"], owner=owner.name)
    made.raise_()
    yield made
    made.close()


def place_of(storage, id):
    return storage.records([id])[id].place


def test_a_message_for_a_sleeper_is_held_by_it_at_once(storage, owner, bell):
    storage.put([message("a")])
    assert (place_of(storage, "a"), storage.records(["a"])["a"].hold) == (HELD, f"owner:{owner.name}")
    assert bell.sleep(0)
    (copy,) = bell.copies()
    assert Claim(copy[0], copy[1], copy[2], Message(*copy[3:])) == storage.estate(owner.name).claims[0]


def test_an_owner_that_does_not_sleep_is_given_nothing(storage, bell):
    bell.lower()
    storage.put([message("a")])
    assert place_of(storage, "a") == READY


def test_several_messages_at_once_are_given_to_nobody(storage, bell):
    storage.put([message("a"), message("b")])
    assert (place_of(storage, "a"), place_of(storage, "b")) == (READY, READY)
    assert bell.sleep(0)
    assert bell.copies() == []


def test_a_copy_that_comes_late_makes_the_owner_look(storage, owner, bell, monkeypatch):
    late = []
    monkeypatch.setattr(storage._bells, "hand", lambda *what: late.append(what) or True)
    storage.put([message("a")])
    monkeypatch.undo()
    assert not bell.sleep(0)
    # The flag was taken down and nobody rang: whoever did it may be dead.
    assert ids(received(storage, owner, bell)) == ["a"]
    bell.raise_()
    storage._bells.hand(*late[0])
    assert bell.sleep(0)
    assert bell.copies() == []
    assert bell.is_unsure


def test_a_ring_of_somebody_else_does_not_hide_what_a_dead_producer_gave(storage, owner, bell, monkeypatch):
    monkeypatch.setattr(storage._bells, "hand", lambda *what: True)  # as if killed before the ring
    storage.put([message("a")])
    storage._bells.ring([0])  # meant for an earlier sleep, and late
    assert bell.sleep(0)
    assert received(storage, owner, bell) == []
    bell.raise_()
    assert not bell.sleep(0)
    assert ids(received(storage, owner, bell)) == ["a"]


def test_a_producer_killed_with_a_message_given_and_the_gate_held_has_the_sleeper_look(storage, owner, bell):
    def die(point):
        if point == "put.written":
            os.kill(os.getpid(), signal.SIGKILL)

    def put():
        faults.at = die
        storage.put([message("a")])

    assert ended(forked(put)) == -signal.SIGKILL
    assert place_of(storage, "a") == HELD
    assert not bell.sleep(0)
    assert ids(received(storage, owner, bell)) == ["a"]


def test_a_second_put_of_the_same_leaves_the_sleeper_to_the_next(storage, owner, bell):
    storage.put([message("a")])
    assert bell.sleep(0)
    received(storage, owner, bell)
    bell.raise_()
    storage.put([message("a")])
    storage.put([message("b")])
    assert bell.sleep(0)
    assert ids(received(storage, owner, bell)) == ["b"]


def test_a_message_that_its_sleeper_cannot_be_told_of_is_anybodys(storage, owner, bell, monkeypatch):
    monkeypatch.setattr("localq.storage.bells._PIPE_BUF", 100)
    storage.put([message("a")])
    assert place_of(storage, "a") == READY


def test_values_of_somebodys_own_types_are_given_like_others(storage, owner, bell):
    queue = StrEnum("Q", {"MAIN": "celery"}).MAIN
    first = IntEnum("P", {"FIRST": 0}).FIRST
    storage.put([message("a", queue=queue, priority=first)])
    (claim,) = received(storage, owner, bell)
    assert (claim.message.queue, claim.message.priority, claim.redeliveries) == ("celery", 0, 0)


def test_what_was_put_for_a_sleeper_that_was_killed_is_anybodys_at_once(storage, owner):
    killed(sleeper(storage))
    storage.put([message("a")])
    assert place_of(storage, "a") == READY
    assert ids(take(storage, owner)) == ["a"]


def test_what_a_producer_left_unsaid_to_a_dead_owner_is_found_by_the_next_sweep(storage, owner, monkeypatch):
    killed(sleeper(storage))
    monkeypatch.setattr(storage._bells, "hand", lambda *what: True)  # as if killed before the ring
    storage.put([message("a")])
    assert place_of(storage, "a") == HELD
    sweep(storage)
    assert ids(take(storage, owner)) == ["a"]
    assert [info.name for info in storage.owners()] == [owner.name]


def test_a_dead_owner_that_was_given_something_is_not_retired_before_it_is_swept(storage, owner):
    dead = storage.enlist({})
    bell = storage.bell(["celery"], owner=dead.name)
    bell.raise_()
    storage.put([message("a")])
    dead.close()
    storage.retire(dead.name)
    assert dead.name in [info.name for info in storage.owners()]
    sweep(storage)
    assert ids(take(storage, owner)) == ["a"]
    assert dead.name not in [info.name for info in storage.owners()]
    bell.close()


def test_nothing_is_given_to_an_owner_that_is_retired(storage):
    dead = storage.enlist({})
    bell = storage.bell(["celery"], owner=dead.name)
    bell.raise_()
    dead.close()
    storage.retire(dead.name)
    storage.put([message("a")])
    assert place_of(storage, "a") == READY
    bell.close()


def test_a_worker_that_stops_gives_back_what_it_was_given_meanwhile(app):
    storage = app.storage
    consumer = Consumer(app, ("celery",), "w@box", {})
    owner = storage.enlist({})
    bell = storage.bell(["celery"], owner=owner.name)
    bell.raise_()
    storage.put([message("a")])
    bell.lower()
    consumer._finish(storage, owner, [])
    assert (place_of(storage, "a"), storage.estate(owner.name).claims) == (READY, [])
    bell.close()
    owner.close()


def test_a_busy_child_does_not_leave_what_it_was_given_lying(app, monkeypatch):
    """Given between its flag and its claim: it claims others then, and may not sleep for hours."""
    ran = []
    consumer = Consumer(app, ("celery",), "w@box", {})

    @app.task(name="proj.add")
    def add(x, y):
        ran.append(add.request.id)
        if len(ran) == 30:
            consumer.stop()

    real = app.storage.settle

    def settle(outcomes, want=None):
        if not ran and not app.storage.records(["given"]):
            app.storage.put([message("given")])
            app.storage.put([message(f"m{number}") for number in range(60)])
        return real(outcomes, want)

    monkeypatch.setattr(app.storage, "settle", settle)
    consumer.run()
    assert "given" in ran
    assert len(set(ran)) == len(ran)


def test_what_an_owner_has_found_by_itself_is_not_brought_to_it_again(storage, owner, bell, monkeypatch):
    """A producer that is slow between its commit and its ring, and an owner that looks between the two."""
    late = []
    monkeypatch.setattr(storage._bells, "hand", lambda *what: late.append(what) or True)
    storage.put([message("a")])
    bell.lower()
    bell.looked()
    assert ids(storage.estate(owner.name).claims) == ["a"]
    monkeypatch.undo()
    storage._bells.hand(*late[0])
    assert bell.sleep(0)
    assert bell.copies() == []
    assert bell.is_unsure


def test_what_comes_for_a_flag_of_before_is_not_run_but_given_back(app, monkeypatch):
    """By then a steward may have recalled it, and another child be running it."""
    storage, late, ran = app.storage, [], []
    consumer = Consumer(app, ("celery",), "w@box", {})

    @app.task(name="proj.add")
    def add(x, y):
        ran.append((add.request.id, len(late)))
        if add.request.id == "given":
            consumer.stop()

    real = storage.settle

    def settle(outcomes, want=None):
        if not late:
            with monkeypatch.context() as patch:
                patch.setattr(storage._bells, "hand", lambda *what: late.append(what) or True)
                storage.put([message("given")])
            storage.put([message("other"), message("another")])
            turn = real(outcomes, want)
            storage._bells.hand(*late[0])
            return turn
        return real(outcomes, want)

    token = lambda: storage._read("select token from messages where id = 'given'")[0][0]
    monkeypatch.setattr(storage, "settle", settle)
    consumer.run()
    assert [id for id, _ in ran].count("given") == 1
    assert token() > late[0][1][1]


def test_a_bell_that_is_lowered_is_not_unsure(bell):
    bell.lower()
    assert not bell.sleep(0)
    assert not bell.is_unsure


def test_in_full_durability_too(tmp_path):
    storage = SqliteStorage(tmp_path / "store", "full")
    owner = storage.enlist({})
    bell = storage.bell(["celery"], owner=owner.name)
    bell.raise_()
    storage.put([message("a", reply_to="me")])
    waiter = storage.bell(replies="me")
    waiter.raise_()
    assert bell.sleep(0)
    (claim,) = received(storage, owner, bell)
    storage.settle([Outcome(claim.seq, claim.token, "a", "SUCCESS", reply_to="me")], Want(owner.name, (), 0, 1.0))
    assert waiter.sleep(0)
    assert [copy[:3] for copy in waiter.copies()] == [("a", "proj.add", "SUCCESS")]
    for each in (bell, waiter, owner, storage):
        each.close()


def sleeper(storage):
    """A process that sleeps as an owner until it is killed."""
    line = Line()

    def sleep():
        owner = storage.enlist({})
        storage.bell(["celery"], owner=owner.name).raise_()
        line.say()
        signal.pause()

    pid = forked(sleep)
    line.hear()
    return pid


def test_a_child_gives_back_what_was_handed_to_it_by_mistake(app, monkeypatch):
    """Queues beyond those that have a bit of their own share one; whatever a child is given, it runs only its own."""
    ran = app.task(name="ran", bind=True)(lambda self: self.request.delivery_info["routing_key"])
    monkeypatch.setattr(Bells, "_mask", lambda self, queue: 1)
    with start_worker(app):
        other = ran.apply_async(queue="somebody.elses")
        assert [ran.delay().get(timeout=30) for _ in range(3)] == ["celery"] * 3
    assert (other.state, place_of(app.storage, other.id)) == ("PENDING", READY)
