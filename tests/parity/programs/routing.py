"""Queues: defaults, routes, options, workers that serve some of them."""

import re

from celery import Celery
from celery.exceptions import QueueNotFound
from kombu import Exchange, Queue
from observing import raised, shows, value

WORKER = ["-c", "2", "-Q", "celery,hipri,by.name,by.pattern,by.regex,by.function,by.class,by.list,first,media"]

app = Celery("routing")


def route_by_function(name, args, kwargs, options, task=None, **_):
    if name == "routing.by_function":
        return {"queue": "by.function"}
    return {"priority": 3} if name == "routing.priority_of" else None


class Router:
    def route_for_task(self, task, *args, **kwargs):
        return "by.class" if task == "routing.by_class" else None


app.conf.task_routes = (
    {
        "routing.exact": {"queue": "by.name"},
        "routing.text": "hipri",
        "feeds.*": {"queue": "by.pattern"},
        re.compile(r"(video|image)\..*"): {"queue": "by.regex"},
    },
    route_by_function,
    Router(),
    {"routing.exact": {"queue": "never"}, "routing.by_list": {"queue": "by.list"}},
)


@app.task(bind=True)
def plain_task(self):
    return self.request.delivery_info["routing_key"]


def task_named(name):
    @app.task(name=name, bind=True)
    def where(self):
        info = self.request.delivery_info
        return [info["routing_key"], info["exchange"]]

    return where


exact = task_named("routing.exact")
text = task_named("routing.text")
feed = task_named("feeds.rss.refresh")
image = task_named("image.resize")
by_function = task_named("routing.by_function")
by_class = task_named("routing.by_class")
by_list = task_named("routing.by_list")


@app.task(queue="first", bind=True)
def with_attribute(self):
    return self.request.delivery_info["routing_key"]


@app.task(bind=True)
def again(self):
    if not self.request.retries:
        raise self.retry(countdown=0.01)
    return self.request.delivery_info["routing_key"]


def queue_of(task, **options):
    found = value(task.apply_async(**options))
    return found if isinstance(found, str) else found[0]


@shows("F126")
def the_default_queue_is_celery():
    return [
        queue_of(plain_task),
        app.conf.task_default_queue,
        app.conf.task_default_exchange,
        app.conf.task_default_routing_key,
    ]


@shows("F128")
def the_first_router_that_answers_wins():
    return [queue_of(each) for each in (exact, text, feed, image, by_function, by_class, by_list)]


@shows("F129", "F101")
def the_queue_of_a_call_wins():
    return [queue_of(exact, queue="hipri"), queue_of(plain_task, queue="media")]


@shows("F101", "F129")
def a_queue_may_be_an_object():
    return queue_of(plain_task, queue=Queue("media", Exchange("media"), routing_key="media"))


@shows("F051", "F128")
def the_queue_of_a_class_is_an_option():
    return [queue_of(with_attribute), queue_of(with_attribute, queue="hipri")]


@shows("F128", "F015")
def send_task_is_routed_too():
    return value(app.send_task("routing.exact"))[0]


@shows("F128")
def signatures_are_routed_too():
    return [value(exact.s().apply_async())[0], value(exact.s().set(queue="media").delay())[0]]


@shows("F128", "F129")
def a_retry_stays_in_its_queue():
    return queue_of(again, queue="media")


@shows("F130", "F134")
def a_worker_serves_only_its_queues():
    kept = plain_task.apply_async(queue="nobody.serves.it")
    value(plain_task.delay())
    return [kept.state, kept.ready()]


@shows("F127")
def unknown_queues_are_made_unless_forbidden():
    other = Celery(
        "strict",
        broker=app.conf.broker_url,
        set_as_current=False,
        task_create_missing_queues=False,
        task_queues=[Queue("celery"), Queue("known")],
    )

    @other.task(name="strict.task")
    def strict():
        return None

    return [raised(strict.apply_async, queue="unknown"), issubclass(QueueNotFound, KeyError)]


@shows("F127")
def queues_are_listed():
    other = Celery(
        "listed",
        broker=app.conf.broker_url,
        set_as_current=False,
        task_queues=(Queue("celery"), Queue("video", routing_key="video.#")),
    )
    queues = other.amqp.queues
    return [sorted(queues), queues["video"].name, queues["video"].routing_key]


@shows("F127")
def queues_may_be_a_dictionary():
    other = Celery(
        "mapped",
        broker=app.conf.broker_url,
        set_as_current=False,
        task_queues={"cpubound": {"exchange": "cpubound", "routing_key": "cpubound"}},
    )
    return sorted(other.amqp.queues)


@shows("F131")
def exchanges_and_queues_are_objects():
    exchange = Exchange("media", type="topic")
    queue = Queue("video", exchange, routing_key="media.video.#")
    return [exchange.name, exchange.type, queue.name, queue.exchange.name, queue.routing_key]


@shows("F128")
def a_route_may_set_the_priority():
    return value(priority_of.apply_async())


@app.task(bind=True)
def priority_of(self):
    return self.request.delivery_info["priority"]
