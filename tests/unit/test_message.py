"""The records that travel, and their ids."""

from __future__ import annotations

import pickle
import threading
import time
import uuid

from forking import Line, ended, forked

from localq.message import Message, Outcome, Record, new_id


def test_an_id_is_a_uuid_of_version_7():
    found = uuid.UUID(new_id())
    assert found.version == 7
    assert found.variant == uuid.RFC_4122


def test_an_id_tells_the_millisecond_it_was_made_in():
    before = time.time_ns() // 1_000_000
    found = uuid.UUID(new_id()).int >> 80
    assert before <= found <= time.time_ns() // 1_000_000


def test_ids_of_a_later_millisecond_sort_behind():
    first = new_id()
    made_in = uuid.UUID(first).int >> 80
    while time.time_ns() // 1_000_000 <= made_in:
        pass
    assert first < new_id()


def test_ids_differ_between_threads():
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append([new_id() for _ in range(2000)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each for ids in found for each in ids}) == 8000


def test_a_forked_child_makes_other_ids_than_its_parent():
    line = Line()
    assert ended(forked(lambda: line.say("".join(new_id()[15:] for _ in range(100))))) == 0
    mine = {new_id()[15:] for _ in range(100)}
    text = line.hear()
    theirs = {text[at : at + 21] for at in range(0, len(text), 21)}
    assert len(theirs) == 100
    assert not mine & theirs


def test_a_plain_message_says_only_what_is_asked():
    message = Message("id", "proj.add", b"[]")
    assert (message.queue, message.priority, message.retries) == ("celery", 5, 0)
    assert message.visible_at is message.expires_at is message.after is message.headers is None


def test_a_record_has_ended_when_its_message_is_in_the_place_for_that():
    fields = dict.fromkeys(Record._fields)
    assert Record(**{**fields, "place": "ended"}).ended
    assert not Record(**{**fields, "place": "held"}).ended


def test_an_outcome_ends_its_message_unless_it_says_otherwise():
    assert Outcome(1, 1, "id").ended
    assert Outcome(1, 1, "id").again is None


def test_messages_are_plain_tuples_that_survive_pickling():
    message = Message("id", "proj.add", b"[]", visible_at=5.0)
    assert pickle.loads(pickle.dumps(message)) == message
    assert tuple(message)[:3] == ("id", "proj.add", b"[]")
