"""celery.contrib.abortable."""

import time

from celery import Celery
from celery.contrib.abortable import AbortableAsyncResult, AbortableTask
from observing import note, noted, shows, until, value

app = Celery("abortable")


@app.task(bind=True, base=AbortableTask)
def work(self):
    note("began")
    for _ in range(500):
        if self.is_aborted():
            noted(1, "looked at")  # its end takes the place of the state that is to be seen
            return "gave up"
        time.sleep(0.02)
    return "finished"


@app.task(bind=True, base=AbortableTask)
def look(self):
    return self.is_aborted()


@shows("N29")
def a_task_sees_that_it_was_aborted():
    result = work.delay()
    noted(1, "began")
    before = result.is_aborted()
    result.abort()
    during = [result.state, result.is_aborted()]
    note("looked at")
    until(lambda: result.state == "SUCCESS")
    return [type(result).__name__, before, during, value(result)]


@shows("N29")
def one_that_was_not_runs_through():
    return value(look.delay())


@shows("N29")
def a_result_may_be_had_by_its_id():
    result = look.delay()
    value(result)
    return [AbortableAsyncResult(result.id, app=app).is_aborted(), look.AsyncResult(result.id).state]
