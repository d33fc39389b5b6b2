"""In-process signals: they tell, and never decide."""

from __future__ import annotations

import gc

import pytest

from localq.signals import Signal


class Listener:
    def __init__(self):
        self.heard = []

    def hear(self, **named):
        self.heard.append(named)


def collector(heard):
    def receive(**named):
        heard.append(named)

    return receive


@pytest.mark.row("F334")
def test_a_receiver_gets_the_sender_the_signal_and_the_facts():
    signal, heard = Signal("moment"), []
    receive = collector(heard)
    signal.connect(receive)
    signal.send("me", answer=42)
    assert heard == [{"signal": signal, "sender": "me", "answer": 42}]


@pytest.mark.row("F334")
def test_connect_is_a_decorator_with_and_without_arguments():
    signal, heard = Signal("moment"), []

    @signal.connect
    def bare(**_):
        heard.append("bare")

    @signal.connect(sender="me")
    def picky(**_):
        heard.append("picky")

    signal.send("me")
    signal.send("you")
    assert heard == ["bare", "picky", "bare"]


@pytest.mark.row("F334")
def test_a_sender_can_be_named_by_the_name_of_its_task():
    class Task:
        name = "proj.add"

    signal, heard = Signal("moment"), []
    receive = collector(heard)
    signal.connect(receive, sender="proj.add")
    task = Task()
    signal.send(task)
    signal.send(object())
    assert [each["sender"] for each in heard] == [task]


@pytest.mark.row("F334")
def test_send_returns_what_each_receiver_answered():
    signal = Signal("moment")
    signal.connect(one := lambda **_: 1)
    signal.connect(two := lambda **_: 2)
    assert signal.send() == [(one, 1), (two, 2)]


@pytest.mark.row("F334")
def test_a_failing_receiver_is_logged_and_hurts_nobody(caplog):
    signal, heard = Signal("moment"), []

    @signal.connect
    def fail(**_):
        raise ValueError("broken receiver")

    receive = collector(heard)
    signal.connect(receive)
    answers = signal.send("me")
    assert len(heard) == 1
    assert isinstance(answers[0][1], ValueError)
    assert "broken receiver" in caplog.text


@pytest.mark.row("F334")
def test_the_same_receiver_is_connected_once():
    signal, heard = Signal("moment"), []
    receive = collector(heard)
    signal.connect(receive)
    signal.connect(receive)
    signal.send()
    assert len(heard) == 1


@pytest.mark.row("F334")
def test_a_second_receiver_with_the_same_dispatch_uid_is_not_connected():
    signal, heard = Signal("moment"), []
    first, second = collector(heard), collector(heard)
    signal.connect(first, dispatch_uid="only")
    signal.connect(second, dispatch_uid="only")
    signal.send()
    assert len(heard) == 1


@pytest.mark.row("F334")
def test_a_receiver_is_held_weakly_unless_it_is_told_otherwise():
    signal, heard = Signal("moment"), []
    signal.connect(collector(heard))
    gc.collect()
    signal.send()
    assert heard == []
    assert signal.receivers == []
    signal.connect(collector(heard), weak=False)
    gc.collect()
    signal.send()
    assert len(heard) == 1


@pytest.mark.row("F334")
def test_a_method_is_called_as_long_as_its_object_lives():
    signal, listener = Signal("moment"), Listener()
    signal.connect(listener.hear)
    gc.collect()
    signal.send()
    assert len(listener.heard) == 1
    del listener
    gc.collect()
    assert signal.send() == []


@pytest.mark.row("F334")
def test_the_methods_of_two_objects_are_two_receivers():
    signal, one, two = Signal("moment"), Listener(), Listener()
    signal.connect(one.hear)
    signal.connect(two.hear)
    signal.send()
    assert len(one.heard) == len(two.heard) == 1


@pytest.mark.row("F334")
def test_a_disconnected_receiver_hears_nothing_and_disconnect_says_whether_there_was_one():
    signal, heard = Signal("moment"), []
    receive = collector(heard)
    signal.connect(receive)
    assert signal.disconnect(receive) is True
    assert signal.disconnect(receive) is False
    signal.send()
    assert heard == []


@pytest.mark.row("F334")
def test_disconnect_with_a_sender_takes_out_only_that_connection():
    signal, heard = Signal("moment"), []
    receive = collector(heard)
    signal.connect(receive, sender="a")
    signal.connect(receive, sender="b")
    signal.disconnect(receive, sender="a")
    signal.send("a")
    signal.send("b")
    assert [each["sender"] for each in heard] == ["b"]


@pytest.mark.row("F334")
def test_a_receiver_may_disconnect_itself_while_it_is_called():
    signal, heard = Signal("moment"), []

    @signal.connect
    def once(**_):
        heard.append(1)
        signal.disconnect(once)

    other = collector(heard)
    signal.connect(other)
    signal.send()
    signal.send()
    assert len(heard) == 3
