"""Queues and exchanges: what is declared, where keys lead, what a worker serves."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localq.config import Settings
from localq.exceptions import ImproperlyConfigured, QueueNotFound
from localq.queues import nodes_serving, own_queue, topic_matches
from localq.routing import Broadcast, Exchange, Queue, Queues, binding, worker_direct

UUID = "8a3f6c1e-0d7b-4f2a-9c55-1b2d3e4f5a6b"


def queues(**conf):
    return Queues(Settings(conf))


def ways(queue):
    return [(queue.exchange.name, queue.exchange.type, queue.routing_key)]


def names(found):
    return [queue.name for queue in found]


# -- What is declared ------------------------------------------------------------------------------


@pytest.mark.row("F126")
def test_there_is_one_queue_unless_others_are_declared_and_its_exchange_and_key_bear_its_name():
    table = queues()
    assert list(table) == ["celery"]
    assert ways(table["celery"]) == [("celery", "direct", "celery")]
    assert ways(queues(task_default_queue="main")["main"]) == [("main", "direct", "main")]


@pytest.mark.row("F126")
def test_a_queue_that_names_no_exchange_or_key_has_the_default_ones():
    table = queues(
        task_queues=[Queue("default", routing_key="task.#"), Queue("feeds", Exchange("feeds", "topic"))],
        task_default_exchange="tasks", task_default_exchange_type="topic", task_default_routing_key="task.default",
    )  # fmt: skip
    assert ways(table["default"]) == [("tasks", "topic", "task.#")]
    assert ways(table["feeds"]) == [("feeds", "topic", "task.default")]


@pytest.mark.row("F127")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["mail"], [("mail", "direct", "mail")]),
        ([Queue("mail", Exchange("media", type="topic"), routing_key="mail.#")], [("media", "topic", "mail.#")]),
        ([Queue("mail", "media", "m")], [("media", "direct", "m")]),
        ({"mail": {"exchange": "media", "exchange_type": "topic", "routing_key": "m.#"}}, [("media", "topic", "m.#")]),
        ({"mail": {"exchange": "media", "binding_key": "m"}}, [("media", "direct", "m")]),
        ({"mail": {}}, [("celery", "direct", "mail")]),
        ({"mail": None}, [("celery", "direct", "mail")]),
        (
            {"mail": Queue("mail", Exchange("mail"), "mail", durable=True, max_priority=10)},
            [("mail", "direct", "mail")],
        ),
    ],
)
def test_queues_are_declared_as_a_list_or_a_dict(given, expected):
    assert ways(queues(task_queues=given)["mail"]) == expected


@pytest.mark.row("F127")
def test_a_queue_that_is_not_declared_is_made_up_or_refused():
    made = queues(task_queues=["mail"])["other"]
    assert (made.name, *ways(made)) == ("other", ("other", "direct", "other"))
    strict = queues(task_queues=["mail"], task_create_missing_queues=False)
    words = r"^Queue 'mial' missing from task_queues, and task_create_missing_queues is off.*; did you mean 'mail'\?$"
    with pytest.raises(QueueNotFound, match=words) as caught:
        strict["mial"]
    assert isinstance(caught.value, KeyError)
    assert "mial" not in strict
    assert strict.get("mial") is None
    assert "mail" in strict


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ([3], "3 is no queue"),
        ({"mail": "media"}, "'media' is no queue"),
        ([Queue("a"), SimpleNamespace(name="", exchange=None, routing_key="")], "'' is no name"),
        ({"mail": {"exchang": "media"}}, "no option 'exchang'; did you mean 'exchange'"),
        ({"mail": {"exchange_type": "headers"}}, "type 'headers'; localq has direct, topic, fanout"),
    ],
)
def test_what_is_no_queue_is_a_configuration_error_that_names_it(given, complaint):
    with pytest.raises(ImproperlyConfigured, match=complaint.replace("(", r"\(")):
        list(queues(task_queues=given))


def test_an_option_of_no_meaning_anywhere_is_refused():
    with pytest.raises(TypeError, match="Queue 'a' takes no option 'durabel'; did you mean 'durable'"):
        Queue("a", durabel=True)
    with pytest.raises(TypeError, match="Exchange 'x' takes no option 'kind'"):
        Exchange("x", kind="topic")


def test_new_settings_count_and_added_queues_stay():
    conf = Settings({"task_queues": ["a"]})
    table = Queues(conf)
    table.add(Queue("own", Exchange("x"), "k"))
    assert sorted(table) == ["a", "own"]
    conf.task_queues = ["b"]
    table.settle()
    assert sorted(table) == ["b", "own"]


# -- kombu's objects -------------------------------------------------------------------------------


class KombuLikeExchange:
    def __init__(self, name, type):
        self.name, self.type = name, type


class KombuLikeQueue:
    def __init__(self, name, exchange, routing_key, alias=None, bindings=()):
        self.name, self.exchange, self.routing_key = name, exchange, routing_key
        self.alias, self.bindings = alias, set(bindings)


@pytest.mark.row("F131", "N59")
def test_queues_of_another_library_are_read_by_their_attributes_and_left_as_they_are():
    theirs = KombuLikeQueue("feed", KombuLikeExchange("", "direct"), "")
    table = queues(task_queues=[theirs, KombuLikeQueue("t", KombuLikeExchange("x", "topic"), "t.*")])
    assert ways(table["feed"]) == [("celery", "direct", "celery")]
    assert names(table.reached("x", "t.1")) == ["t"]
    assert (theirs.exchange.name, theirs.routing_key) == ("", "")


@pytest.mark.row("F131", "N59")
def test_a_broadcast_of_another_library_is_known_by_its_exchange():
    kind = type("Broadcast", (KombuLikeQueue,), {})
    table = queues(
        task_queues=[
            kind(f"bcast.{UUID}", KombuLikeExchange("news", "fanout"), "", alias="news"),
            kind("shared", KombuLikeExchange("talk", "fanout"), "", alias="talk"),
        ]
    )
    assert [(queue.name, queue.is_broadcast) for queue in table.values()] == [("news", True), ("shared", False)]
    assert table["talk"].name == "shared"


@pytest.mark.row("F131", "N59")
@pytest.mark.skipif(importlib.util.find_spec("kombu") is None, reason="kombu is not installed here")
def test_kombus_own_objects_are_accepted():
    import kombu
    from kombu.common import Broadcast as KombuBroadcast

    media = kombu.Exchange("media", type="topic")
    table = queues(
        task_queues=(
            kombu.Queue("plain"),
            kombu.Queue("images", exchange=media, routing_key="image.#"),
            kombu.Queue("all", [kombu.binding(media, routing_key="#"), kombu.binding(media, routing_key="x")]),
            KombuBroadcast("news"),
            KombuBroadcast("talk", queue="shared"),
        )
    )
    assert ways(table["plain"]) == [("celery", "direct", "celery")]
    assert names(table.reached("media", "image.png")) == ["images", "all"]
    assert table["news"].is_broadcast
    assert not table["talk"].is_broadcast
    assert (table["talk"].name, table["talk"].exchange.type) == ("shared", "fanout")


def test_importing_routing_does_not_import_kombu():
    code = "import sys, localq.routing; print('kombu' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- Where keys lead -------------------------------------------------------------------------------

words = st.lists(st.sampled_from(["a", "b", "c"]), max_size=4)
parts = st.lists(st.sampled_from(["a", "b", "*", "#"]), max_size=5)


def model_matches(pattern, key):
    """Every way to spell it out, tried one by one."""
    if not pattern:
        return not key
    first, *rest = pattern
    if first == "#":
        return any(model_matches(rest, key[count:]) for count in range(len(key) + 1))
    return bool(key) and first in ("*", key[0]) and model_matches(rest, key[1:])


@pytest.mark.row("F131")
@given(parts, words)
def test_a_topic_pattern_matches_word_by_word(pattern, key):
    assert topic_matches(".".join(pattern), ".".join(key)) == model_matches(pattern, key)


@pytest.mark.row("F131")
@pytest.mark.parametrize(
    ("pattern", "key", "fits"),
    [
        ("usa.#", "usa", True), ("usa.#", "usa.news.sports", True), ("*.news", "usa.news", True),
        ("*.news", "news", False), ("#.news.#", "usa.news.x", True), ("#", "", True), ("*", "", False),
        ("a.#", "ab", False), ("", "", True),
    ],
)  # fmt: skip
def test_a_star_is_one_word_and_a_hash_any_number(pattern, key, fits):
    assert topic_matches(pattern, key) is fits


def bound():
    media, news = Exchange("media", "direct"), Exchange("news", "fanout")
    topics = Exchange("topics", "topic")
    return queues(
        task_queues=[
            Queue("video", media, "video"), Queue("audio", media, "audio"), Queue("films", media, "video"),
            Queue("usa", topics, "usa.#"), Queue("weather", topics, "*.weather"),
            Queue("radio", news), Queue("paper", news, "unused"),
            Queue("both", [binding(media, "audio"), binding(topics, "#")]),
        ]
    )  # fmt: skip


@pytest.mark.row("F131")
@pytest.mark.parametrize(
    ("exchange", "key", "expected"),
    [
        ("media", "video", ["video", "films"]),
        ("media", "audio", ["audio", "both"]),
        ("topics", "usa.weather", ["usa", "weather", "both"]),
        ("topics", "mars", ["both"]),
        ("news", "", ["radio", "paper"]),
        ("news", "whatever", ["radio", "paper"]),
        ("C.dq2", "w1@host", ["w1@host.dq2"]),
    ],
)
def test_an_exchange_leads_to_every_queue_that_is_bound_to_it_with_that_key(exchange, key, expected):
    assert names(bound().reached(exchange, key)) == expected


@pytest.mark.row("F131")
@pytest.mark.parametrize(
    ("exchange", "key", "expected"),
    [
        ("media", "usa", ["usa"]),  # a declared queue has the key's name
        ("nowhere", "fresh", ["fresh"]),  # nobody knows the exchange: a queue is made up for the key
        ("media", "text", ["celery"]),  # the exchange is known and has no use for the key
        ("nowhere", "", ["celery"]),
    ],
)
def test_a_message_that_leads_nowhere_is_not_lost(exchange, key, expected):
    assert names(bound().reached(exchange, key)) == expected


@pytest.mark.row("F127", "F131")
def test_a_message_that_leads_nowhere_is_refused_if_no_queue_may_be_made_up():
    table = queues(task_queues=[Queue("video", Exchange("media"), "video")], task_create_missing_queues=False)
    with pytest.raises(QueueNotFound, match="no queue of task_queues is bound to exchange 'media' for routing key 'x'"):
        table.reached("media", "x")


# -- What a worker serves --------------------------------------------------------------------------


@pytest.mark.row("F130")
def test_a_worker_serves_all_queues_those_it_is_told_or_those_it_is_not_told_to_leave():
    table = queues(task_queues=["a", "b", "c"])
    assert table.chosen() == ("a", "b", "c")
    assert table.chosen("b, c") == table.chosen(["b", "c", "b"]) == ("b", "c")
    assert table.chosen(None, "a,c") == ("b",)
    assert table.chosen(["a", "x"], "a") == ("x",)
    assert table.chosen(worker_direct("w1@h")) == ("w1@h.dq2",)
    assert queues().chosen() == ("celery",)


@pytest.mark.row("F130")
def test_to_exclude_what_is_not_served_is_worth_a_warning(caplog):
    assert queues(task_queues=["mail", "web"]).chosen(None, "mial") == ("mail", "web")
    assert "queue 'mial' is excluded, but would not have been served; did you mean 'mail'?" in caplog.text


@pytest.mark.row("F130")
def test_a_worker_is_not_started_for_an_unknown_queue_nor_for_none():
    table = queues(task_queues=["a", "b"], task_create_missing_queues=False)
    for wrong in (("x", None), (None, "x")):
        with pytest.raises(ImproperlyConfigured, match=r"'x' missing from task_queues.*there are a, b"):
            table.chosen(*wrong)
    with pytest.raises(ImproperlyConfigured, match="no queue is left to serve"):
        table.chosen(None, "a,b")


@pytest.mark.row("F130", "N33")
def test_selecting_deselecting_and_adding_change_what_workers_serve():
    table = queues(task_queues=["a", "b", "c"])
    table.deselect("c")
    assert list(table.consume_from) == ["a", "b"]
    table.select_add(Queue("extra", Exchange("x"), "k"))
    assert list(table.consume_from) == ["a", "b", "extra"]
    table.select(["b", "made"])
    table.select_add("more", exchange="x", routing_key="k")
    assert list(table.consume_from) == ["b", "made", "more"] == list(table.chosen())
    assert names(table.reached("x", "k")) == ["extra", "more"]
    table.select([])
    assert list(table.consume_from) == ["b", "made", "more"]


@pytest.mark.row("F130")
def test_an_alias_is_another_name():
    table = queues(task_queues=[Queue("mail-v2", "mail", "mail", alias="mail")])
    assert table["mail"].name == "mail-v2"
    assert "mail" in table
    assert table.chosen("mail") == ("mail-v2",)


@pytest.mark.row("F133")
def test_a_worker_may_have_a_queue_of_its_own():
    own = worker_direct("w1@host")
    assert (own.name, *ways(own)) == ("w1@host.dq2", ("C.dq2", "direct", "w1@host"))
    assert worker_direct(own) is own
    assert queues().claimed(["celery"], "w1@host") == ("celery",)
    assert queues(worker_direct=True).claimed(["celery"], "w1@host") == ("celery", "w1@host.dq2")


@pytest.mark.row("F131")
def test_a_worker_claims_its_own_copies_of_a_broadcast():
    table = queues(task_queues=[Broadcast("news"), Queue("a", "a", "a")])
    assert table.claimed(table.chosen(), "w1@host") == ("news", "a", own_queue("news", "w1@host"))
    assert table.claimed(["a"], "w1@host") == ("a",)


def test_a_broadcast_with_a_queue_of_a_name_is_shared():
    shared = Broadcast("news", queue="readers")
    assert (shared.name, shared.alias, shared.exchange.type, shared.is_broadcast) == (
        "readers",
        "news",
        "fanout",
        False,
    )
    assert Broadcast("news", queue="readers", unique=True).is_broadcast


def test_a_node_is_live_as_long_as_one_of_its_processes_is():
    def owner(name, alive, **about):
        return SimpleNamespace(name=name, alive=alive, about=about)

    owners = [
        owner("c1", True, kind="child", node="w1@h", queues=["news", "news.w1@h"]),
        owner("c2", False, kind="child", node="w2@h", queues=["news", "news.w2@h"]),
        owner("c4", True, kind="child", node="w4@h", queues=["news"]),  # to this worker's app it is no broadcast
        owner("s3", True, kind="worker", node="localq@h", queues=["news", "news.localq@h"]),
    ]
    entries = [
        SimpleNamespace(value=json.dumps({"owner": "s3", "node": "w3@h", "broadcasts": ["news"]})),
        SimpleNamespace(value=json.dumps({"owner": "s2", "node": "w2@h", "broadcasts": ["news"]})),
        SimpleNamespace(value=json.dumps({"owner": "s3", "node": "old@h"})),
    ]
    assert nodes_serving("news", owners, entries) == ["w1@h", "w3@h"]
