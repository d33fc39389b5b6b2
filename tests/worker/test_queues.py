"""Workers and their queues: who serves what, in which order, and what everybody gets."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from commands import localq, python, worker
from waiting import wait_until

from localq.routing import Broadcast, Exchange, Queue, worker_direct
from localq.testing.worker import start_worker
from localq.worker import banner

TASKS = """
from localq import LocalQ
from localq.routing import Broadcast, Exchange, Queue, worker_direct

app = LocalQ("proj", task_queues=[
    Queue("fast"), Queue("slow", Exchange("topics", type="topic"), routing_key="slow.#"), Broadcast("news"),
])

@app.task(bind=True)
def who(self, *_):
    return self.request.hostname
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


@pytest.fixture
def who(app):
    """A task that says which worker runs it, and what it knows of its way."""

    @app.task(bind=True)
    def who(self):
        return self.request.hostname, self.request.delivery_info

    return who


@pytest.mark.row("F134", "F130")
def test_two_workers_with_two_queues_run_each_their_own(app, who):
    with start_worker(app, "solo", queues=["fast"]) as fast, start_worker(app, "solo", queues="slow") as slow:
        assert fast.node != slow.node
        sent = [who.apply_async(queue=("fast", "slow")[number % 2]) for number in range(20)]
        ran = [result.get(timeout=30) for result in sent]
    assert [node for node, _ in ran] == [fast.node, slow.node] * 10
    assert [info["routing_key"] for _, info in ran] == ["fast", "slow"] * 10


@pytest.mark.row("F134")
def test_a_flood_in_one_queue_does_not_delay_another(app, tmp_path):
    go = tmp_path / "go"

    @app.task
    def flood():
        wait_until(go.exists)

    @app.task
    def quick():
        return "done"

    with start_worker(app, "prefork", 1, ["bulk"]), start_worker(app, "solo", queues=["quick"]):
        blocked = [flood.apply_async(queue="bulk") for _ in range(50)]
        assert quick.apply_async(queue="quick").get(timeout=30) == "done"
        assert not any(result.ready() for result in blocked)
        go.touch()


@pytest.mark.row("F127", "F130")
@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_worker_serves_all_declared_queues_unless_told_otherwise(app, who, pool):
    app.conf.task_queues = ["a", "b"]
    with start_worker(app, pool, 1) as worker:
        assert worker.queues == ("a", "b")
        for queue in ("a", "b"):
            assert who.apply_async(queue=queue).get(timeout=30)[1]["routing_key"] == queue
        assert who.delay().ready() is False  # the default queue is not among them


@pytest.mark.row("F126", "F131")
def test_the_banner_tells_of_every_queue_how_it_is_reached(app):
    app.conf.worker_direct = True
    app.conf.task_queues = [Queue("feed", Exchange("topics", "topic"), "feed.#"), Queue("plain")]
    with start_worker(app, "solo") as worker:
        lines = [" ".join(line.split()) for line in banner.facts(worker, "1")["queues"].splitlines()]
    assert lines == [
        ".> feed exchange=topics(topic) key=feed.#",
        ".> plain exchange=celery(direct) key=celery",
        f".> {worker.node}.dq2 exchange=C.dq2(direct) key={worker.node}",
    ]


@pytest.mark.row("N33", "F130")
def test_a_worker_serves_what_its_app_has_selected(app, who):
    app.select_queues(["chosen"])
    with start_worker(app, "solo") as worker:
        assert worker.queues == ("chosen",)
        assert who.apply_async(queue="chosen").get(timeout=30)


@pytest.mark.row("R14", "F132", "X3")
@pytest.mark.parametrize("order", ["low_first", "high_first"])
def test_one_worker_runs_256_priorities_in_strict_order(app, order):
    app.conf.task_priority_order = order
    ran = []

    @app.task(bind=True)
    def note(self, number):
        ran.append((self.request.delivery_info["priority"], number))

    priorities = [*range(256), *range(256)]
    random.Random(7).shuffle(priorities)
    sent = [note.apply_async((number,), priority=priority) for number, priority in enumerate(priorities)]
    with start_worker(app, "solo"):
        for result in sent:
            result.get(timeout=30)
    sign = 1 if order == "low_first" else -1
    assert ran == sorted(ran, key=lambda pair: (sign * pair[0], pair[1]))
    assert [priority for priority, _ in ran] == sorted(priorities, reverse=sign < 0)


@pytest.mark.row("F132", "F101")
def test_a_task_sees_its_priority_and_its_queue(app, running):
    @app.task(bind=True, default_retry_delay=0)
    def look(self):
        if not self.request.retries:
            raise self.retry()
        info = self.request.delivery_info
        return info["priority"], info["routing_key"]

    with running() if running.mode == "eager" else start_worker(app, running.mode, 1, ["mail"]):
        assert list(look.apply_async(priority=77, queue="mail").get(timeout=30)) == [77, "mail"]


@pytest.mark.row("F133")
def test_a_worker_serves_its_own_queue_if_it_is_to(app, who):
    app.conf.worker_direct = True
    with start_worker(app, "solo") as one, start_worker(app, "prefork", 1, ["celery", "other"]):
        assert one.queues == ("celery", f"{one.node}.dq2")
        nodes = wait_until(lambda: len(found := alive(app)) == 2 and found, what="two workers")
        for node in nodes:
            for options in ({"queue": worker_direct(node)}, {"exchange": "C.dq2", "routing_key": node}):
                ran_by, info = who.apply_async(**options).get(timeout=30)
                assert ran_by == node
                assert info["routing_key"] in (f"{node}.dq2", node)


def alive(app, queue=""):
    """The node names of live children, of those that serve this queue."""
    children = [o.about for o in app.storage.owners() if o.alive and o.about.get("kind") == "child"]
    return sorted({about["node"] for about in children if not queue or queue in about["queues"]})


@pytest.mark.row("F131")
def test_every_worker_that_is_up_runs_a_broadcast(app, tmp_path):
    app.conf.task_queues = [Broadcast("news"), "celery"]

    @app.task(bind=True)
    def tell(self):
        with (tmp_path / "heard").open("a") as file:
            file.write(f"{self.request.hostname}\n")
        return self.request.hostname

    def heard():
        return sorted((tmp_path / "heard").read_text().split()) if (tmp_path / "heard").exists() else []

    with start_worker(app, "solo") as one, start_worker(app, "prefork", 2), start_worker(app, "solo", queues="celery"):
        nodes = wait_until(lambda: len(found := alive(app)) == 3 and found, what="three workers")
        serving = alive(app, "news")
        assert one.node in serving
        assert len(serving) == 2 < len(nodes)
        assert tell.apply_async(queue="news").get(timeout=30) in serving
        wait_until(lambda: len(heard()) >= 2, what="both have heard it")
    assert heard() == serving


@pytest.mark.row("F131")
def test_a_broadcast_that_nobody_could_hear_is_heard_by_the_first_worker(app, who):
    app.conf.task_queues = [Broadcast("news")]
    result = who.apply_async(queue="news")
    with start_worker(app, "solo") as first:
        assert first.queues == ("news", f"news.{first.node}")
        assert result.get(timeout=30)[0] == first.node
    with start_worker(app, "solo", queues="news"):
        assert who.apply_async(queue="news").get(timeout=30)
    assert [count for count in app.storage.counts() if count.place == "ready"] == []


@pytest.mark.row("F131")
@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_topic_leads_to_the_queues_that_match(app, who, pool):
    topics = Exchange("topics", "topic")
    app.conf.task_queues = [Queue("usa", topics, "usa.#"), Queue("weather", topics, "*.weather")]
    with start_worker(app, pool, 1):
        result = who.apply_async(exchange="topics", routing_key="usa.weather")
        node, info = result.get(timeout=30)
        assert (result.queue, info["exchange"], info["routing_key"]) == ("usa", "topics", "usa.weather")
        assert app.AsyncResult(f"{result.id}.weather").get(timeout=30)[0] == node


# -- The command -----------------------------------------------------------------------------------


def call(here, options):
    return python("-c", f"import tasks; print(tasks.who.apply_async({options}).get(timeout=30))", cwd=here).strip()


@pytest.mark.row("F130", "F126")
def test_the_command_serves_what_q_names_and_not_what_x_names(here):
    with worker("-A", "tasks", "worker", "-c", "1", "-X", "news,slow", cwd=here) as one:
        one.saw("queues: fast")
        assert "slow" not in one.text
        with worker("-A", "tasks", "worker", "-c", "1", "--queue", "slow, made", "-n", "w2", cwd=here) as two:
            two.saw("queues: slow, made")
            assert call(here, "queue='fast'").startswith("localq@")
            for options in ("queue='slow'", "exchange='topics', routing_key='slow.mail'", "queue='made'"):
                assert call(here, options).startswith("w2@")


@pytest.mark.row("F130")
@pytest.mark.parametrize("words", [("-Q", "fats"), ("-X", "fats"), ("-X", "fast,slow,news")])
def test_a_queue_that_cannot_be_served_ends_the_command_with_2_and_says_why(here, words):
    (here / "strict.py").write_text(f"{TASKS}\napp.conf.task_create_missing_queues = False\n")
    done = localq("-A", "strict", "worker", *words, cwd=here)
    assert done.returncode == 2
    assert "error[LQ010]" in done.stderr
    assert ("did you mean 'fast'" in done.stderr) == (words[1] == "fats")
    assert ("no queue is left to serve" in done.stderr) == (words[1] != "fats")
    assert not (here / ".localq").exists()
