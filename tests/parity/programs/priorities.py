"""Priorities: the order of execution, and where a priority comes from."""

from celery import Celery
from observing import note, noted, shows, value

WORKER = ["-c", "1"]

app = Celery("priorities", worker_prefetch_multiplier=1)


@app.task
def mark(number):
    note("ran", number)


@app.task(bind=True)
def read(self):
    return self.request.delivery_info["priority"]


@app.task(bind=True, priority=3)
def by_attribute(self):
    return self.request.delivery_info["priority"]


@app.task(bind=True)
def again(self):
    if not self.request.retries:
        raise self.retry(countdown=0.01)
    return self.request.delivery_info["priority"]


@app.task
def beget():
    return read.delay().id


def before_the_worker():
    for number in (9, 3, 6, 0, 9, 3, 6, 0):
        mark.apply_async((number,), priority=number)


@shows("F132", "X3", "R14", "F101")
def zero_is_the_highest_and_equals_keep_their_order():
    return noted(8, "ran")


@shows("F132", "F077")
def a_task_sees_its_priority():
    return [value(read.apply_async(priority=number)) for number in (0, 6, 9)]


@shows("F132", "F051")
def a_class_may_have_one():
    return [value(by_attribute.delay()), value(by_attribute.apply_async(priority=6))]


@shows("F132")
def a_retry_keeps_it():
    return value(again.apply_async(priority=6))


@shows("F132", "N52")
def a_task_that_names_none_has_the_default():
    return value(read.delay())


@shows("F132", "N52")
def children_have_their_own():
    return value(app.AsyncResult(value(beget.apply_async(priority=9))))
