"""Time limits: how a task that takes too long ends, what it may do before, who is told; children that are replaced."""

import os
import time

from celery import Celery, Task
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery.signals import task_failure
from celery.worker.request import Request
from observing import logged, note, noted, outcome, raised, shows, value

app = Celery("limits")
WORKER = ["-c", "2"]


class Told(Request):
    def on_timeout(self, soft, timeout):
        super().on_timeout(soft, timeout)
        note("on_timeout", self.task.name, bool(soft), timeout, self.id is not None, list(self.args))

    def on_failure(self, exc_info, send_failed_event=True, return_ok=False):
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
        exc = getattr(exc_info.exception, "exc", exc_info.exception)
        note("request", type(exc).__name__, return_ok, os.getpid() == self.worker_pid)


class TellingTask(Task):
    Request = Told


class Handled(Task):
    def on_failure(self, exc, task_id, args, kwargs, einfo):
        note("handler", repr(exc), list(args), kwargs)


@app.task
def sleeps(seconds):
    time.sleep(seconds)
    return "slept"


@app.task(time_limit=1)
def limited():
    time.sleep(30)


@app.task(soft_time_limit=1)
def tidy():
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded as exc:
        return ["tidied", repr(exc), str(exc), list(exc.args)]


@app.task(soft_time_limit=1)
def careless():
    time.sleep(30)


@app.task(base=TellingTask)
def telling(seconds):
    time.sleep(seconds)


@app.task(base=TellingTask, soft_time_limit=1)
def warned(seconds):
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        return "warned"


@app.task(base=TellingTask)
def fails():
    raise ValueError("on purpose")


@app.task(base=Handled, time_limit=1)
def handled(seconds, more=None):
    time.sleep(seconds)


@task_failure.connect(sender=handled)
def failed(sender=None, task_id=None, exception=None, args=None, kwargs=None, **_):
    note("signal", sender.name, repr(exception), list(args), kwargs)


@shows("F192", "F044")
def a_task_that_takes_too_long_is_ended():
    result = sleeps.apply_async((30,), time_limit=1)
    return [*outcome(result), repr(result.result), list(result.result.args)]


@shows("F044")
def a_task_has_limits_of_its_own_and_a_call_another():
    result = limited.delay()
    return [limited.time_limit, limited.soft_time_limit, sleeps.time_limit, *outcome(result)]


@shows("F192", "F044")
def a_task_is_told_and_may_clean_up():
    return value(tidy.delay())


@shows("F192")
def a_task_that_was_told_and_does_not_mind_fails():
    result = careless.delay()
    return [*outcome(result), repr(result.result)]


@shows("F044")
def a_soft_limit_above_the_hard_one_is_refused():
    return raised(sleeps.apply_async, (1,), time_limit=1, soft_time_limit=2)


@shows("F192")
def what_the_exceptions_look_like():
    return [
        [str(kind(5)), repr(kind(5)), str(kind()), issubclass(kind, Exception)]
        for kind in (SoftTimeLimitExceeded, TimeLimitExceeded)
    ]


@shows("F142")
def the_worker_says_which_limit_was_used_up():
    hard = sleeps.apply_async((30,), time_limit=1)
    soft = careless.delay()
    outcome(hard)
    outcome(soft)
    return [
        logged(rf"Hard time limit \((\w+)s\) exceeded for (limits\.sleeps)\[{hard.id}\]"),
        logged(rf"Soft time limit \((\w+)s\) exceeded for (limits\.careless)\[{soft.id}\]"),
    ]


@shows("F139", "F142")
def a_request_of_ones_own_hears_of_a_hard_limit():
    outcome(telling.apply_async((30,), time_limit=1))
    return noted(2)


@shows("F139", "F142")
def a_request_of_ones_own_hears_of_a_soft_limit():
    return [value(warned.delay(30)), noted(1)]


@shows("F139", "F141")
def a_request_of_ones_own_hears_of_a_failure():
    return [outcome(fails.delay()), noted(1)]


@shows("F142")
def the_tasks_handler_is_called_though_its_process_is_dead():
    outcome(handled.delay(30, more=1))
    return [each for each in noted(2) if each[0] == "handler"]


@shows("F142")
def the_signals_receiver_is_called_though_its_process_is_dead():
    outcome(handled.delay(30, more=1))
    return [each for each in noted(2) if each[0] == "signal"][:1]


@shows("F192")
def a_worker_goes_on_after_all_that():
    return [value(sleeps.delay(0)) for _ in range(5)]
