"""task_always_eager: tasks run where they are sent."""

import warnings
from datetime import UTC, datetime, timedelta

from celery import Celery, chain, chord, group
from celery.exceptions import AlwaysEagerIgnored
from observing import described, note, noted, raised, shows

WORKER = None

app = Celery("eager")
app.conf.task_always_eager = True


@app.task
def add(x, y):
    return x + y


@app.task
def total(numbers):
    return sum(numbers)


@app.task
def boom():
    raise ValueError("it fails")


@app.task
def kind(x):
    return type(x).__name__


@app.task(bind=True)
def read(self, *names):
    return {name: getattr(self.request, name) for name in names}


@app.task(bind=True, max_retries=3, default_retry_delay=100)
def try_again(self, until):
    note("tried", self.request.retries)
    if self.request.retries < until:
        raise self.retry(exc=ValueError("not yet"))
    return self.request.retries


@app.task
def write(x):
    note("wrote", x)
    return x


@app.task
def new_style(request, exc, traceback):
    note("error", type(exc).__name__, str(exc))


@app.task
def old_style(failed_id):
    note("failed", isinstance(failed_id, str))


@shows("F110")
def it_is_done_when_it_is_sent():
    result = add.delay(1, 2)
    return [type(result).__name__, result.state, result.get(), result.ready(), result.successful()]


@shows("F110")
def arguments_go_through_the_serializer():
    return [kind.delay((1, 2)).get(), kind.delay({1: 2}).get(), raised(kind.delay, object())]


@shows("F110")
def eta_is_ignored():
    return [
        add.apply_async((1, 2), countdown=1000).get(),
        add.apply_async((1, 2), eta=datetime.now(UTC) + timedelta(days=1)).get(),
    ]


@shows("F110", "F074")
def the_request_says_so():
    return read.delay("is_eager", "called_directly", "retries").get()


@shows("F110", "F015")
def send_task_is_not_eager_and_warns():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = app.send_task("eager.add", (1, 2))
    return [type(result).__name__, any(issubclass(each.category, AlwaysEagerIgnored) for each in caught)]


@shows("F111")
def a_failure_is_a_result():
    result = boom.delay()
    return [
        result.state,
        described(result.result),
        raised(result.get),
        result.get(propagate=False).args,
        bool(result.traceback),
    ]


@shows("F111")
def a_failure_is_raised_if_asked_for():
    app.conf.task_eager_propagates = True
    try:
        return [raised(boom.delay), raised(boom.apply), add.delay(1, 1).get()]
    finally:
        app.conf.task_eager_propagates = False


@shows("F113")
def a_retry_is_made_at_once():
    return [try_again.delay(2).get(), noted(3, "tried")]


@shows("F113")
def the_last_retry_fails_with_the_exception():
    result = try_again.delay(99)
    return [result.state, described(result.result), len(noted(4, "tried"))]


@shows("F105", "F110")
def callbacks_run_too():
    result = add.apply_async((1, 2), link=[write.s(), write.s()])
    return [result.get(), noted(2, "wrote")]


@shows("F106", "F110")
def errbacks_run_too():
    boom.apply_async(link_error=[new_style.s(), old_style.s()])
    return [noted(1, "error")]


@shows("F110")
def workflows_run_too():
    return [
        chain(add.s(1, 2), add.s(3))().get(),
        group(add.s(1, 1), add.s(2, 2))().get(),
        chord([add.s(1, 1), add.s(2, 2)])(total.s()).get(),
    ]


@shows("F110", "F039")
def ignored_results_are_there_all_the_same():
    return add.apply_async((1, 2), ignore_result=True).get()


@shows("F112")
def results_are_not_stored():
    result = add.delay(1, 2)
    return app.AsyncResult(result.id).state


@shows("F112")
def results_are_stored_if_asked_for():
    other = Celery("stores", set_as_current=False, task_always_eager=True, task_store_eager_result=True)

    @other.task(name="stores.add")
    def stored(x, y):
        return x + y

    @other.task(name="stores.boom")
    def lost():
        raise ValueError("stored")

    seen, failed = (other.AsyncResult(each.id) for each in (stored.delay(1, 2), lost.delay()))
    return [seen.state, seen.result, failed.state, described(failed.result)]


@shows("F100", "F110")
def the_id_is_kept():
    return [add.apply_async((1, 2), task_id="eager-1").id, read.apply_async(("id",), task_id="eager-2").get()]


@shows("F083", "F110")
def headers_are_kept():
    return read.apply_async(("headers",), headers={"tenant": "blue"}).get()["headers"]
