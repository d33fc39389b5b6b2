"""Rate limits and annotations."""

import time
from itertools import pairwise

from celery import Celery
from observing import note, noted, outcome, shows, value

app = Celery("rate_limits")


def wrapping(run):
    def wrapped(self, *args, **kwargs):
        note("wrapped", self.name)
        return run(*args, **kwargs)

    return wrapped


class Annotations:
    def annotate(self, task):
        return {"from_object": task.name} if task.name.startswith("rate_limits.") else None


app.conf.task_annotations = (
    {"rate_limits.limited": {"rate_limit": "10/s"}, "*": {"for_all": "yes"}},
    {"rate_limits.annotated": {"time_limit": 77, "@run": wrapping}},
    Annotations(),
)


@app.task
def limited(number):
    return time.time()


@app.task
def annotated():
    return "done"


@app.task(rate_limit="600/m")
def per_minute(number):
    return time.time()


@app.task(rate_limit="5/s")
def with_eta():
    return time.time()


@app.task
def free():
    return time.time()


def gaps(results):
    times = sorted(value(result) for result in results)
    return [later - earlier for earlier, later in pairwise(times)]


@shows("F135", "F058")
def annotations_are_attributes():
    return [
        limited.rate_limit,
        annotated.time_limit,
        annotated.for_all,
        limited.for_all,
        free.from_object,
        hasattr(limited, "from_object"),
    ]


@shows("F038", "F135")
def ten_a_second_are_a_tenth_apart():
    spaces = gaps([limited.delay(number) for number in range(6)])
    return [sum(spaces) >= 0.45, min(spaces) >= 0.05]


@shows("F038")
def per_minute_too():
    return sum(gaps([per_minute.delay(number) for number in range(5)])) >= 0.35


@shows("F137", "F097")
def a_limited_task_is_not_earlier_than_its_eta():
    begin = time.time()
    results = [with_eta.apply_async(countdown=0.3) for _ in range(3)]
    times = sorted(value(result) for result in results)
    return [times[0] - begin >= 0.3, times[-1] - times[0] >= 0.35]


@shows("F138")
def tasks_without_a_limit_pass():
    held = [with_eta.delay() for _ in range(4)]
    passed = value(free.delay())
    return passed < max(value(result) for result in held)


@shows("F136")
def the_default_is_a_setting():
    other = Celery("other", set_as_current=False, task_default_rate_limit="7/m")

    @other.task(name="other.task")
    def task():
        return None

    @other.task(name="other.own", rate_limit="1/s")
    def own():
        return None

    return [task.rate_limit, own.rate_limit, free.rate_limit]


@shows("F135")
def a_method_may_be_wrapped():
    return [outcome(annotated.delay()), noted(1, "wrapped")]
