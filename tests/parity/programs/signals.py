"""Signals around a task: their order, their arguments, who sends them."""

import os

from celery import Celery, signals
from observing import logged, note, noted, outcome, shows, value

app = Celery("signals")


@app.task
def add(x, y):
    return x + y


@app.task
def boom():
    raise ValueError("it fails")


@app.task(bind=True, max_retries=1)
def again(self):
    if not self.request.retries:
        raise self.retry(countdown=0.3, exc=ValueError("not yet"))
    return "done"


@app.task
def other():
    return None


@app.task
def where():
    return os.getpid()


class Client:
    """What was seen in the client."""

    seen = []


@signals.before_task_publish.connect
def before_publish(
    sender=None,
    body=None,
    exchange=None,
    routing_key=None,
    headers=None,
    properties=None,
    declare=None,
    retry_policy=None,
    **_,
):
    Client.seen.append(
        [
            "before",
            sender,
            [list(body[0]), body[1], body[2]],
            exchange,
            routing_key,
            headers["task"],
            headers["id"] == properties["correlation_id"],
        ]
    )
    if sender == "signals.stamped":
        headers["added"] = "by a receiver"


@signals.after_task_publish.connect
def after_publish(sender=None, headers=None, body=None, exchange=None, routing_key=None, **_):
    Client.seen.append(["after", sender, headers["task"], exchange, routing_key])


NAMES = ("task_received", "task_prerun", "task_postrun", "task_success", "task_failure", "task_retry")


def receiver(name):
    def receive(sender=None, **named):
        named.pop("signal", None)
        task = getattr(sender, "name", None)
        if task is None or task.startswith("signals."):
            note("signal", name, task, sorted(named))

    getattr(signals, name).connect(receive, weak=False)


for each in NAMES[1:]:
    receiver(each)


@signals.task_received.connect
def received(request=None, **_):
    note("received", request.name, os.getpid(), request.id is not None)


@signals.task_prerun.connect(sender=other)
def for_one_only(task_id=None, task=None, args=None, kwargs=None, **_):
    note("one", task.name, list(args), kwargs)


@signals.task_postrun.connect(sender=add)
def values_after(task_id=None, task=None, args=None, kwargs=None, retval=None, state=None, **_):
    note("postrun", task.name, list(args), kwargs, retval, state)


@signals.task_success.connect(sender=add)
def success(sender=None, result=None, **_):
    note("success", sender.name, result)


@signals.task_failure.connect(sender=boom)
def failure(sender=None, task_id=None, exception=None, args=None, kwargs=None, traceback=None, einfo=None, **_):
    note(
        "failure",
        sender.name,
        type(exception).__name__,
        str(exception),
        traceback is not None,
        "ValueError" in str(einfo),
    )


@signals.task_retry.connect(sender=again)
def retried(sender=None, request=None, reason=None, einfo=None, **_):
    note("retry", sender.name, request.retries, str(reason))


@signals.task_prerun.connect(sender=add)
def faulty(**_):
    raise RuntimeError("a receiver that fails")


@signals.worker_ready.connect
def ready(sender=None, **_):
    note("worker", "ready")


@signals.worker_process_init.connect
def process_init(**_):
    note("worker", "process_init")


@app.task(bind=True, name="signals.stamped")
def stamped(self):
    return getattr(self.request, "added", None) or (self.request.headers or {}).get("added")


def marks(number):
    return [line[1:3] for line in noted(number, "signal")]


@shows("F332")
def the_worker_says_that_it_is_ready():
    return sorted({name for _, name in noted(3, "worker")})


@shows("F330", "N51")
def publishing_is_told_before_and_after():
    Client.seen.clear()
    value(add.apply_async((1,), {"y": 2}))
    return Client.seen


@shows("F330")
def a_receiver_may_add_a_header():
    return value(stamped.delay())


@shows("F331")
def the_order_for_a_success():
    noted(0)
    value(add.delay(1, 2))
    return marks(3)


@shows("F331")
def the_order_for_a_failure():
    noted(0)
    failed = outcome(boom.delay())
    return [failed, marks(3)]


@shows("F331")
def the_order_for_a_retry():
    noted(0)
    value(again.delay())
    return marks(6)


@shows("F331")
def what_they_are_told():
    noted(0)
    value(other.delay())
    lines = noted(3, "signal")
    return {line[1]: line[3] for line in lines}


@shows("F331")
def what_a_failure_is_told():
    outcome(boom.delay())
    return noted(1, "failure")


@shows("F331")
def what_a_failure_is_told_by_name():
    outcome(boom.delay())
    return {line[1]: line[3] for line in noted(3, "signal") if line[1] == "task_failure"}


@shows("F331")
def what_a_retry_is_told():
    value(again.delay())
    return noted(1, "retry")


@shows("F331")
def what_a_success_is_told():
    value(add.delay(1, 2))
    return noted(1, "success")


@shows("F331")
def what_comes_after_is_told_the_value():
    value(add.delay(1, y=2))
    return noted(1, "postrun")


@shows("F331")
def receiving_is_told_with_a_request():
    value(other.delay())
    return [[name, is_known] for _, name, _, is_known in noted(1, "received")]


@shows("F331")
def receiving_is_told_outside_the_process_that_runs_it():
    noted(0)
    child = value(where.delay())
    return noted(1, "received")[0][2] != child


@shows("F334")
def a_receiver_of_one_sender_hears_only_that():
    noted(0)
    value(other.delay())
    value(add.delay(1, 1))
    return noted(1, "one")


@shows("F334")
def a_receiver_that_fails_hurts_nobody():
    return [outcome(add.delay(1, 2)), len(logged("a receiver that fails")) > 0]


class Listener:
    def __init__(self, name):
        self.name = name

    def hear(self, **_):
        return self.name


@shows("F334")
def receivers_of_different_objects_are_different():
    one, two = Listener("one"), Listener("two")
    signals.worker_shutdown.connect(one.hear, weak=False)
    signals.worker_shutdown.connect(two.hear, weak=False)
    answers = sorted(answer for _, answer in signals.worker_shutdown.send(sender=None) if answer)
    gone = signals.worker_shutdown.disconnect(one.hear)
    left = [answer for _, answer in signals.worker_shutdown.send(sender=None) if answer]
    signals.worker_shutdown.disconnect(two.hear)
    return [answers, bool(gone), left]


@shows("F334")
def a_dispatch_uid_connects_once():
    def hear(**_):
        return "heard"

    def hear_too(**_):
        return "heard too"

    signals.worker_shutdown.connect(hear, dispatch_uid="once", weak=False)
    signals.worker_shutdown.connect(hear_too, dispatch_uid="once", weak=False)
    answers = [answer for _, answer in signals.worker_shutdown.send(sender=None)]
    signals.worker_shutdown.disconnect(dispatch_uid="once")
    return [answers, [answer for _, answer in signals.worker_shutdown.send(sender=None)]]


@shows("F334")
def an_exception_is_an_answer():
    def fail(**_):
        raise KeyError("mine")

    signals.worker_shutdown.connect(fail, weak=False)
    answers = [type(answer).__name__ for _, answer in signals.worker_shutdown.send(sender=None)]
    signals.worker_shutdown.disconnect(fail)
    return answers


@shows("F334")
def a_weak_receiver_is_forgotten():
    def connect():
        def hear(**_):
            return "heard"

        signals.worker_shutdown.connect(hear)
        return len(signals.worker_shutdown.send(sender=None))

    before = connect()
    return [before, len(signals.worker_shutdown.send(sender=None))]


@shows("F331", "F332", "F333")
def the_signals_there_are():
    names = """before_task_publish after_task_publish task_received task_prerun task_postrun task_success
    task_retry task_failure task_internal_error task_revoked task_rejected task_unknown celeryd_init
    celeryd_after_setup import_modules worker_init worker_before_create_process worker_process_init
    worker_process_shutdown worker_ready worker_shutting_down worker_shutdown heartbeat_sent setup_logging
    after_setup_logger after_setup_task_logger beat_init beat_embedded_init eventlet_pool_started
    eventlet_pool_preshutdown eventlet_pool_postshutdown eventlet_pool_apply user_preload_options task_sent"""
    return [name for name in names.split() if hasattr(signals, name)]
