"""result_extended: results tell of the call."""

from celery import Celery
from observing import shows, value

app = Celery("extended_results", result_extended=True)


@app.task(bind=True)
def add(self, x, y):
    return x + y


@shows("F163", "F181")
def a_result_tells_of_the_call():
    result = add.apply_async((1,), {"y": 2})
    value(result)
    seen = app.AsyncResult(result.id)
    return [seen.name, seen.args, seen.kwargs, seen.retries, seen.queue, "@" in seen.worker]


@shows("F181")
def its_meta_does_too():
    result = add.apply_async((1,), {"y": 2})
    value(result)
    meta = app.backend.get_task_meta(result.id)
    return {name: meta[name] for name in ("name", "args", "kwargs", "retries", "queue", "status", "result")}
