"""Which queue a task goes to, with which priority, and what becomes of a message for several queues."""

from __future__ import annotations

import functools
import json
import re
from fnmatch import fnmatchcase
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from working import claims_of, work_off

from localq import LocalQ, chain, group, signals
from localq.config import Settings
from localq.exceptions import ImproperlyConfigured, QueueNotFound
from localq.routing import Broadcast, Exchange, Queue, Routed, Router, worker_direct

names = st.lists(st.sampled_from(["proj", "mail", "send", "a"]), min_size=1, max_size=3).map(".".join)
patterns = names | st.sampled_from(["proj.*", "*.send", "*", "p?oj.*", "[am]*", "mail.*.send"])
queues = st.sampled_from(["q1", "q2", "q3"])


def routed(routes=None, name="proj.add", args=(), options=None, own=None, **conf):
    """Return where a call goes, and the options of its route."""
    return Router(Settings({"task_routes": routes, **conf})).route(name, args, {}, options, own)


def found(routes, name="proj.add", **more):
    return routed(routes, name, **more)[0]


# -- task_routes -----------------------------------------------------------------------------------


@pytest.mark.row("F128")
@given(st.dictionaries(patterns, queues, max_size=5), names)
def test_an_exact_name_beats_patterns_and_patterns_are_tried_in_order(table, name):
    matching = [queue for pattern, queue in table.items() if fnmatchcase(name, pattern)]
    expected = table.get(name) or (matching[0] if matching else "celery")
    assert found(table, name) == expected


@pytest.mark.row("F128")
@given(st.lists(st.dictionaries(patterns, queues, max_size=3), max_size=4), names)
def test_the_first_router_that_knows_the_task_wins(tables, name):
    answers = [answer for table in tables if (answer := found(table, name)) != "celery"]
    assert found(tables, name) == (answers[0] if answers else "celery")


@pytest.mark.row("F128")
@given(names, queues)
def test_a_target_is_a_queue_its_name_or_a_mapping_with_one(name, queue):
    assert found({name: queue}, name) == found({name: {"queue": queue}}, name) == queue
    assert found({name: Queue(queue, queue, queue)}, name) == queue


@pytest.mark.row("F128")
def test_a_route_without_a_queue_means_the_default_queue():
    routes = [{"proj.add": {"priority": 3}}, {"proj.*": "slow"}]
    assert routed(routes) == ("celery", {"priority": 3})
    assert routed([{"proj.add": {}}, {"*": "slow"}]) == ("celery", {})


@pytest.mark.row("F128")
def test_a_compiled_expression_is_a_pattern():
    assert found({re.compile(r"proj\.(add|mul)$"): "math"}) == "math"
    assert found({re.compile(r"proj\.(add|mul)$"): "math"}, "proj.address") == "celery"


@pytest.mark.row("F128")
def test_pairs_are_understood_with_celerys_second_list_and_without():
    pairs = [("proj.*", {"queue": "p"}), (re.compile("x"), "x"), ("*", "rest")]
    for routes in ((pairs,), [pairs], pairs, tuple(pairs)):
        assert [found(routes, name) for name in ("proj.add", "xy", "y")] == ["p", "x", "rest"]
    assert len(pairs) == 3
    assert found([{"y": "first"}, *pairs], "y") == "first"
    assert found([*pairs[:1], [("z", "in-list")], ("*", "rest")], "z") == "in-list"


@pytest.mark.row("F128")
def test_a_function_may_route_by_arguments_options_and_task():
    seen = []

    def by_size(name, args, kwargs, options, task=None, **kw):
        seen.append((name, kwargs, options, task))
        return {"queue": "big"} if args and args[0] > 10 else None

    routes = [by_size, {"*": "small"}]
    assert found(routes, args=(100,)) == "big"
    assert found(routes, args=(1,), options={"priority": 3, "queue": None}, own={"routing_key": "k"}) == "small"
    assert seen[1] == ("proj.add", {}, {"priority": 3, "routing_key": "k"}, None)
    assert found(functools.partial(by_size), args=(11,)) == "big"


@pytest.mark.row("F128")
def test_an_object_or_class_with_route_for_task_is_a_router():
    class Old:
        def route_for_task(self, task, args=None, kwargs=None):
            return "old" if task == "proj.add" else None

    for routes in (Old(), Old, [Old(), {"*": "rest"}], SimpleNamespace(route_for_task=Old().route_for_task)):
        assert found(routes) == "old"
    assert found([Old, {"*": "rest"}], "other") == "rest"


@pytest.mark.row("F128")
def test_a_dotted_path_names_a_router(tmp_path, monkeypatch):
    (tmp_path / "router_of_the_test.py").write_text(
        "def route(name, *a, **k): return 'by-path'\nTABLE = {'proj.*': 'by-table'}\n"
        "class Old:\n    def route_for_task(self, *a): return 'by-class'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert found("router_of_the_test.route") == "by-path"
    assert found(["router_of_the_test:TABLE", {"*": "rest"}]) == "by-table"
    assert found("router_of_the_test.Old") == "by-class"


@pytest.mark.parametrize("routes", [None, {}, [], ()])
def test_no_routes_mean_the_default_queue(routes):
    assert found(routes) == "celery"


@pytest.mark.parametrize(
    ("routes", "complaint"),
    [
        ("no_such_module.route", "task_routes names 'no_such_module.route'"),
        ("json.no_such", "task_routes names 'json.no_such'"),
        ([3], "3 is no router"),
        ([("a", "b", "c")], "no list of pairs"),
    ],
)
def test_routes_that_cannot_be_read_are_a_configuration_error(routes, complaint):
    with pytest.raises(ImproperlyConfigured, match=complaint):
        found(routes)


def test_routes_of_no_known_kind_are_refused_where_they_are_set():
    with pytest.raises(ImproperlyConfigured, match="task_routes = 3: 3 is no router: give a dict, pairs, a function"):
        Settings({"task_routes": 3})


def test_a_router_that_returns_no_route_is_an_error_that_names_the_task():
    with pytest.raises(TypeError, match=r"the route of task 'proj.add' is 3"):
        found(lambda *_, **__: 3)


# -- Call, task, route, settings -------------------------------------------------------------------


@pytest.mark.row("F129")
@pytest.mark.parametrize(
    ("call", "own", "route", "expected"),
    [
        ({"queue": "c"}, {"queue": "t"}, {"queue": "r"}, "c"),
        ({}, {"queue": "t"}, {"queue": "r"}, "t"),
        ({"queue": None}, {}, {"queue": "r"}, "r"),
        ({}, {}, {}, "celery"),
        ({"queue": "c"}, {}, {"exchange": "topics", "routing_key": "a.b"}, "c"),
        ({"exchange": "topics", "routing_key": "a.b"}, {"queue": "t"}, {"queue": "r"}, "ab"),
        ({"routing_key": "a.b"}, {}, {"exchange": "topics"}, "ab"),
        ({"routing_key": "a.b"}, {}, {"queue": "ab"}, "ab"),
        ({"routing_key": "whatever"}, {}, {"queue": "r"}, "r"),  # direct: who is named is reached
        ({"queue": "c", "exchange": "nowhere", "routing_key": "x"}, {}, {}, "c"),
        ({"exchange": "nowhere"}, {}, {}, "celery"),
        ({"exchange": "nowhere", "routing_key": "x"}, {}, {}, "x"),
        ({"exchange": ""}, {"queue": "t"}, {}, "celery"),
        ({"exchange": "topics", "exchange_type": "topic", "routing_key": "a.b"}, {"queue": "t"}, {}, "ab"),
        ({"exchange": "new", "exchange_type": "fanout"}, {}, {}, "celery"),
    ],
)
def test_the_first_that_names_a_destination_decides(call, own, route, expected):
    table = [Queue("ab", Exchange("topics", "topic"), "a.*"), Queue("r", "r", "r")]
    assert found({"proj.add": route}, options=call, own=own, task_queues=table) == expected


@given(
    st.sampled_from([None, "c1", "c2"]), st.sampled_from([None, "t1"]),
    st.dictionaries(patterns, queues | queues.map(lambda queue: {"queue": queue}) | st.just({}), max_size=4),
    names, st.sampled_from(["celery", "main"]),
)  # fmt: skip
@pytest.mark.row("F128", "F129")
def test_a_call_goes_where_a_plain_model_says(call, own, table, name, default):
    exact = [table[name]] if name in table else []
    routes = exact + [target for pattern, target in table.items() if pattern != name and fnmatchcase(name, pattern)]
    route = routes[0] if routes else None
    route = route.get("queue") if isinstance(route, dict) else route
    where = found(table, name, options={"queue": call}, own={"queue": own} if own else None, task_default_queue=default)
    assert where == (call or own or route or default)


ends = st.lists(st.tuples(st.sampled_from("dtf"), st.sampled_from(["a", "a.b", "*", "#", "a.*"])), max_size=4)


@pytest.mark.row("F131")
@given(ends, st.sampled_from("dtf"), st.sampled_from(["a", "a.b", "b"]))
def test_an_exchange_leads_where_a_plain_model_says(bound, exchange, key):
    types = {"d": "direct", "t": "topic", "f": "fanout"}
    table = [Queue(f"q{at}", Exchange(name, types[name]), key) for at, (name, key) in enumerate(bound)]

    def fits(name, pattern):
        if name == "t":
            return fnmatchcase(key, pattern.replace("#", "*")) and (pattern != "*" or "." not in key)
        return name == "f" or key == pattern

    expected = [f"q{at}" for at, (name, pattern) in enumerate(bound) if name == exchange and fits(name, pattern)]
    where = found(None, options={"exchange": exchange, "routing_key": key}, task_queues=table)
    unbound = key if exchange not in [name for name, _ in bound] else "celery"
    assert [str(where), *where.also] == (expected or [unbound])


@pytest.mark.row("F127", "F129")
def test_an_unknown_queue_is_refused_wherever_it_was_named():
    conf = {"task_queues": ["celery", "mail"], "task_create_missing_queues": False}
    assert found({"proj.add": "mail"}, **conf) == "mail"
    for routes, options, own in (("x", {}, {}), (None, {"queue": "x"}, {}), (None, {}, {"queue": "x"})):
        with pytest.raises(QueueNotFound, match="Queue 'x' missing from task_queues"):
            found({"proj.add": routes} if routes else None, options=options, own=own, **conf)
    assert found(None, options={"queue": Queue("mine", "mine", "mine")}, **conf) == "mine"


@pytest.mark.parametrize("queue", [3, "", b"mail", ["mail"]])
def test_a_queue_that_is_no_name_is_refused(queue):
    with pytest.raises(TypeError, match="is no name of a queue"):
        found(None, options={"queue": queue})


@pytest.mark.row("F131")
def test_a_queue_of_a_topic_exchange_is_reached_with_its_key_and_so_are_its_neighbours():
    topics = Exchange("tasks", "topic")
    table = [Queue("all", topics, "#"), Queue("feed", topics, "feed.#"), Queue("web", topics, "web.#")]
    where = found(None, options={"queue": "feed"}, task_queues=table)
    # The one that was named comes first: it is the one that AsyncResult follows.
    assert [str(where), *where.also] == ["feed", "all"]
    where = found({"*": {"queue": "feed", "routing_key": "web.x"}}, task_queues=table)
    assert [str(where), *where.also] == ["all", "web"]


@pytest.mark.row("F133")
def test_a_workers_own_queue_is_reached_by_name_by_object_and_by_exchange():
    for options in (
        {"queue": worker_direct("w1@h")}, {"queue": "w1@h.dq2"}, {"exchange": "C.dq2", "routing_key": "w1@h"},
    ):  # fmt: skip
        assert found(None, options=options) == "w1@h.dq2"


# -- Through the app -------------------------------------------------------------------------------


@pytest.fixture
def make():
    made = []

    def make(**conf):
        made.append(LocalQ("proj", store="memory:", set_as_current=False, **conf))
        return made[-1]

    yield make
    for app in made:
        app.close()


@pytest.fixture
def app(make):
    return make(task_routes={"proj.*": "routed"})


def queue_of(app, name="proj.add", **kwargs):
    return app.send_task(name, (), **kwargs).queue


def messages(app, *queues):
    """Take every message out of these queues, in their order."""
    return [claim.message for claim in claims_of(app, "reader", 1000, queues)]


@pytest.mark.row("F101", "F129")
def test_a_calls_own_queue_beats_everything(app):
    @app.task(name="proj.special", queue="special")
    def special(): ...

    assert queue_of(app, queue="mine") == special.apply_async(queue="mine").queue == "mine"


@pytest.mark.row("F101")
def test_a_tasks_queue_beats_the_routes_and_may_be_changed(app):
    @app.task(name="proj.special", queue="special")
    def special(): ...

    assert special.delay().queue == "special"
    special.queue = "else"
    assert special.delay().queue == "else"
    special.queue = None
    assert special.delay().queue == "routed"


@pytest.mark.row("F101", "F131")
def test_a_task_may_name_an_exchange_and_a_key(make):
    app = make(task_queues=[Queue("images", Exchange("media"), "image"), "celery"])

    @app.task(exchange="media", routing_key="image")
    def shrink(): ...

    assert shrink.delay().queue == "images"
    assert shrink.apply_async(queue="celery").queue == "celery"


@pytest.mark.row("F126", "F128")
def test_routes_beat_the_default_queue(app):
    assert queue_of(app) == "routed"
    assert queue_of(app, "other.add") == "celery"
    app.conf.task_default_queue = "main"
    assert queue_of(app, "other.add") == "main"


@pytest.mark.row("F128")
def test_new_routes_and_queues_count_at_the_next_call(app):
    app.conf.task_routes = {"proj.*": "elsewhere"}
    assert queue_of(app) == "elsewhere"
    app.conf.task_routes = None
    assert queue_of(app) == "celery"
    app.conf.task_queues = [Queue("a", Exchange("x", "topic"), "#")]
    assert queue_of(app, exchange="x", routing_key="k") == "a"
    app.conf.update(task_queues=["b"], task_create_missing_queues=False)
    with pytest.raises(QueueNotFound):
        queue_of(app)


@pytest.mark.row("F128")
def test_a_route_gives_other_options_that_neither_call_nor_task_gives(make):
    app = make(task_routes={"*": {"queue": "q", "priority": 7, "ignore_result": True, "shadow": "other"}})

    @app.task
    def plain(): ...

    @app.task(priority=2)
    def urgent(): ...

    plain.delay()
    plain.apply_async(priority=1, shadow=None)
    urgent.delay()
    sent = messages(app, "q")
    assert [(message.name, message.priority) for message in sent] == [
        (plain.name, 1), (urgent.name, 2), (plain.name, 7),
    ]  # fmt: skip
    assert all(message.ignore_result and json.loads(message.headers)["shadow"] == "other" for message in sent)


def test_a_routes_mistaken_option_is_refused(make):
    app = make(task_routes=lambda *_, **__: {"queue": "q", "priorty": 7})
    with pytest.raises(TypeError, match="task_routes takes no option 'priorty'; did you mean 'priority'"):
        queue_of(app)


@pytest.mark.row("F128")
def test_a_router_is_given_the_task(make):
    seen = []
    app = make(task_routes=lambda name, args, kwargs, options, task=None: seen.append(task))

    @app.task
    def known(): ...

    known.delay()
    queue_of(app, "unknown")
    assert seen == [known, None]


def test_a_message_keeps_no_trace_of_how_its_queue_was_found(app):
    queue_of(app, "other", queue="x")
    assert [(type(message.queue), message.headers) for message in messages(app, "x")] == [(str, None)]


# -- Several queues --------------------------------------------------------------------------------


@pytest.mark.row("F131")
def test_a_message_for_several_queues_becomes_one_in_each_and_the_first_keeps_the_id(make):
    news = Exchange("news", "fanout")
    app = make(task_queues=[Queue("radio", news), Queue("paper", news), Queue("tv", news)])
    ran = []

    @app.task(bind=True)
    def tell(self, what):
        ran.append((self.request.id, self.request.root_id, what, dict(self.request.delivery_info)))
        return len(ran)

    result = tell.apply_async(("rain",), exchange="news", task_id="t1")
    assert result.id == "t1"
    work_off(app, ("radio", "paper", "tv"))
    delivery = {"exchange": "news", "routing_key": "", "priority": 5, "redelivered": False}
    assert ran == [(id, "t1", "rain", delivery) for id in ("t1", "t1.paper", "t1.tv")]
    assert result.get(timeout=1) == 1
    assert app.AsyncResult("t1.tv").get(timeout=1) == 3


@pytest.mark.row("F131")
def test_all_copies_are_put_together_or_none_is(make, monkeypatch):
    app = make(task_queues=[Queue("a", Exchange("x", "fanout")), Broadcast("x"), Queue("b", Exchange("x", "fanout"))])
    app.storage.enlist({"kind": "child", "node": "w1@h", "queues": ["x.w1@h"]}, journal=False)
    puts = []
    monkeypatch.setattr(app.storage, "put", puts.append)
    group(app.signature("t", (1,), exchange="x"), app.signature("t", (2,)))()
    assert [[message.queue for message in messages] for messages in puts] == [["a", "x.w1@h", "b", "celery"]]


@pytest.mark.row("F131")
def test_sending_the_same_again_makes_no_second_copy(make):
    app = make(task_queues=[Queue("a", Exchange("x", "fanout")), Queue("b", Exchange("x", "fanout"))])
    for _ in range(2):
        app.send_task("t", (1,), exchange="x", task_id="t1")
    assert [message.id for message in messages(app, "a", "b")] == ["t1", "t1.b"]


@pytest.mark.row("F131")
def test_copies_in_a_workflow_wait_too_but_nobody_waits_for_them(make):
    both = Exchange("both", "fanout")
    app = make(task_queues=[Queue("a", both), Queue("b", both), "celery"])
    ran = []

    @app.task(bind=True)
    def add(self, x, y):
        ran.append((self.request.id, x))
        return x + y

    @app.task
    def total(values):
        return sum(values)

    everywhere = add.s(10).set(exchange="both", task_id="second")
    result = chain(add.s(1, 2), everywhere, add.s(100))()
    summed = (group(add.s(1, 1).set(exchange="both"), add.s(2, 2)) | total.s())()
    work_off(app, ("celery", "a", "b"))
    assert result.get(timeout=1) == 113
    assert summed.get(timeout=1) == 6
    assert [(id, x) for id, x in ran if id.startswith("second")] == [("second", 3), ("second.b", 3)]


@pytest.mark.row("F131")
def test_a_retry_stays_in_its_own_queue_unless_it_is_sent_elsewhere(make):
    app = make(
        task_queues=[Queue("a", Exchange("x", "fanout")), Queue("b", Exchange("x", "fanout"))],
        task_create_missing_queues=False,
    )
    ran = []

    @app.task(bind=True, default_retry_delay=0)
    def again(self):
        info = self.request.delivery_info
        ran.append((self.request.id, self.request.retries, info["exchange"], info["routing_key"]))
        if not self.request.retries:
            raise self.retry()
        if self.request.retries == 1:
            raise self.retry(queue=Queue("c", "c", "c"))

    again.apply_async(exchange="x", task_id="t")
    work_off(app, ("a",))
    assert ran == [("t", 0, "x", ""), ("t", 1, "x", "")]
    work_off(app, ("c",))
    assert ran[2:] == [("t", 2, "", "c")]
    assert [message.id for message in messages(app, "b")] == ["t.b"]


@pytest.mark.row("F131")
def test_a_broadcast_waits_for_the_first_worker_if_none_is_up(make):
    app = make(task_queues=[Broadcast("news"), "celery"])
    assert queue_of(app, queue="news") == "news"
    assert len(messages(app, "news")) == 1


@pytest.mark.row("F131")
def test_each_live_worker_gets_its_copy_of_a_broadcast(make):
    app = make(task_queues=[Broadcast("news"), "celery"])
    for node, served in (
        ("w1@h", ["news", "news.w1@h"]), ("w2@h", ["celery", "news", "news.w2@h"]), ("w3@h", ["celery"]),
    ):  # fmt: skip
        app.storage.enlist({"kind": "child", "node": node, "queues": served}, journal=False)
    app.send_task("t", (), queue="news", task_id="t1")
    assert messages(app, "news") == []
    assert [message.id for message in messages(app, "news.w1@h")] == ["t1"]
    assert [message.id for message in messages(app, "news.w2@h")] == ["t1.news.w2@h"]


@pytest.mark.row("F131")
def test_a_broadcast_that_only_the_caller_knows_is_run_by_one_worker(make):
    """Its workers serve a queue of that name, as any other: none of them has a queue of its own for it."""
    app = make()
    app.storage.enlist({"kind": "child", "node": "w1@h", "queues": ["news"]}, journal=False)
    app.send_task("t", (), queue=Broadcast("news"))
    assert len(messages(app, "news")) == 1


def test_signals_tell_the_priority_that_was_given(make):
    app = make(task_priority_order="high_first")
    told = []

    def note(sender, properties, **_):
        told.append(properties["priority"])

    signals.before_task_publish.connect(note)
    try:
        app.send_task("t", (), priority=9)
    finally:
        signals.before_task_publish.disconnect(note)
    assert told == [9]


def test_signals_tell_of_every_message_and_how_it_was_routed(make):
    app = make(task_queues=[Queue("a", Exchange("x", "topic"), "k"), Queue("b", Exchange("x", "topic"), "#")])
    told = []

    def note(sender, headers, exchange, routing_key, **_):
        told.append((headers["id"], exchange, routing_key))

    signals.before_task_publish.connect(note)
    try:
        app.send_task("t", (), exchange="x", routing_key="k", task_id="1")
        app.send_task("t", (), queue="plain", task_id="2")
    finally:
        signals.before_task_publish.disconnect(note)
    assert told == [("1", "x", "k"), ("1.b", "x", "k"), ("2", "", "plain")]


def test_the_router_is_asked_nothing_if_there_is_nothing_to_ask():
    router = Router(Settings())
    assert router.plain == "celery"
    assert router.route("t", options={"queue": "x"}) == ("x", {})
    router.queues.add(Queue("b", Exchange("x", "fanout")))
    assert router.plain is None
    assert isinstance(router.route("t", options={"exchange": "x"})[0], Routed)


@pytest.mark.row("N33")
def test_an_app_selects_the_queues_of_its_workers(make):
    app = make(task_queues=["a", "b"])
    app.select_queues(["b", "made"])
    assert list(app.router.queues.consume_from) == ["b", "made"]
    app.conf.task_create_missing_queues = False
    with pytest.raises(QueueNotFound):
        app.select_queues("other")


# -- Priorities ------------------------------------------------------------------------------------


def priorities(app, *queues):
    return [message.priority for message in messages(app, *(queues or ("celery",)))]


@pytest.mark.row("F101", "F132", "N52")
def test_a_calls_priority_beats_the_tasks_which_beats_the_routes_which_beats_the_settings(make):
    app = make(task_routes={"proj.routed": {"priority": 30}}, task_default_priority=40)

    @app.task(name="proj.routed", priority=20)
    def own(): ...

    own.apply_async(priority=10)
    own.apply_async(priority=None)
    app.send_task("proj.routed")
    own.priority = None
    own.delay()
    app.send_task("other")
    assert priorities(app) == [10, 20, 20, 30, 40]


@pytest.mark.row("F132", "X3")
def test_the_default_priority_is_5(make):
    app = make()
    app.send_task("t")
    assert app.conf.task_default_priority == 5
    assert priorities(app) == [5]


@pytest.mark.row("F132", "X3")
@pytest.mark.parametrize(
    ("priority", "error"), [(-1, ValueError), (256, ValueError), (True, TypeError), (1.0, TypeError), ("1", TypeError)]
)
def test_a_priority_that_is_none_is_refused_and_nothing_is_sent(make, priority, error):
    app = make()

    for use in (app.task(priority=priority), lambda _: app.send_task("t", priority=priority)):
        with pytest.raises(error, match=re.escape(f"priority={priority!r}")):
            use(lambda: None)
    assert messages(app, "celery") == []


@pytest.mark.row("X3", "F132")
def test_high_first_is_rabbitmqs_order_and_a_message_that_says_nothing_is_the_last(make):
    app = make(task_priority_order="high_first")
    seen = []

    @app.task(bind=True, default_retry_delay=0)
    def note(self):
        seen.append(self.request.delivery_info["priority"])
        if not self.request.retries:
            raise self.retry()

    for priority in (0, 9, None, 255):
        note.apply_async(priority=priority)
    work_off(app)
    assert sorted(seen) == [0, 0, 0, 0, 9, 9, 255, 255]
    assert [seen.index(priority) for priority in (255, 9, 0)] == [0, 1, 2]
    for priority in (0, 9, None, 255):
        note.apply_async(priority=priority)
    assert priorities(app) == [0, 246, 255, 255]


@pytest.mark.row("X3")
def test_a_default_priority_that_was_set_counts_in_either_order(make):
    app = make(task_priority_order="high_first", task_default_priority=5)
    app.send_task("t")
    assert priorities(app) == [250]


@pytest.mark.row("F132")
def test_a_retry_keeps_its_priority_or_takes_the_one_it_is_given(make):
    app = make()

    @app.task(bind=True, default_retry_delay=0, priority=9)
    def again(self, priority=None):
        seen.append(self.request.delivery_info["priority"])
        if not self.request.retries:
            raise self.retry(priority=priority)

    for order, expected in (("low_first", [3, 3, 3, 200]), ("high_first", [3, 3, 3, 200])):
        seen = []
        app.conf.task_priority_order = order
        again.apply_async(priority=3)
        work_off(app)
        again.apply_async((200,), priority=3)
        work_off(app)
        assert seen == expected


@pytest.mark.row("F132", "N52")
@pytest.mark.parametrize("order", ["low_first", "high_first"])
def test_children_inherit_a_priority_if_told_to_and_if_they_have_none(make, order):
    app = make(task_inherit_parent_priority=True, task_priority_order=order)
    seen = {}

    @app.task(bind=True)
    def child(self, name):
        seen[name] = self.request.delivery_info["priority"]

    @app.task
    def parent():
        child.delay("inherits")
        child.apply_async(("own",), priority=7)
        app.send_task(child.name, ("by name",))
        child.s("signature").apply_async()

    parent.apply_async(priority=3)
    work_off(app)
    child.delay("no parent")
    work_off(app)
    usual = 5 if order == "low_first" else 0
    assert seen == {"inherits": 3, "own": 7, "by name": 3, "signature": 3, "no parent": usual}


@pytest.mark.row("F132", "N52")
@pytest.mark.parametrize("is_eager", [False, True])
def test_the_steps_of_a_workflow_inherit_from_what_they_wait_for(make, is_eager):
    app = make(task_inherit_parent_priority=True, task_always_eager=is_eager)
    seen = {}

    @app.task(bind=True)
    def note(self, name):
        seen[name] = self.request.delivery_info["priority"]

    chain(
        note.si("a").set(priority=3), note.si("b"), note.si("c").set(priority=9), note.si("d"),
        group(note.si("e"), note.si("f")), note.si("g"),
    )()  # fmt: skip
    if not is_eager:
        work_off(app)
    assert seen == {"a": 3, "b": 3, "c": 9, "d": 9, "e": 9, "f": 9, "g": 9}


@pytest.mark.row("F132")
def test_nobody_inherits_a_priority_if_it_is_not_wanted(make):
    app = make()
    seen = []

    @app.task(bind=True)
    def child(self):
        seen.append(self.request.delivery_info["priority"])

    @app.task
    def parent():
        child.delay()

    parent.apply_async(priority=3)
    chain(child.si().set(priority=4), child.si())()
    work_off(app)
    assert sorted(seen) == [4, 5, 5]


@pytest.mark.row("R14", "F132")
@settings(max_examples=10)  # 256 messages each
@given(st.permutations(range(256)))
def test_every_one_of_256_priorities_is_a_level_of_its_own(order):
    with LocalQ("proj", store="memory:", set_as_current=False) as app:
        for priority in order:
            app.send_task("t", priority=priority)
        assert priorities(app) == list(range(256))


@pytest.mark.row("F132")
def test_a_queues_highest_priority_is_accepted(make):
    app = make(task_queue_max_priority=10, task_queues=[Queue("a", "a", "a", max_priority=10)])
    assert queue_of(app, queue="a", priority=200) == "a"
