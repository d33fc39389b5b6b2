"""Callbacks and errbacks."""

from celery import Celery, chain, group
from observing import note, noted, ordered, outcome, shows, until, value

app = Celery("links")


@app.task
def add(x, y):
    return x + y


@app.task
def write(what):
    note("wrote", what)
    return what


@app.task
def ring():
    note("rang")


@app.task
def boom():
    raise ValueError("it fails")


@app.task
def new_style(request, exc, traceback):
    note("error", request.id is not None, request.task, type(exc).__name__, str(exc), "Traceback" in str(traceback))


@app.task
def old_style(failed_id):
    note("failed", failed_id)


@app.task(bind=True)
def bound_style(self, failed_id):
    note("bound", failed_id)


@app.task
def failing_errback(request, exc, traceback):
    note("tried")
    raise RuntimeError("the errback fails too")


@shows("F105")
def a_callback_gets_the_result_first():
    result = add.apply_async((2, 2), link=add.s(16))
    mine = value(result)
    (child,) = until(lambda: result.children)
    return [mine, value(child)]


@shows("F105")
def several_callbacks_run_each():
    value(add.apply_async((1, 1), link=[write.s(), add.s(5), write.s()]))
    return noted(2, "wrote")


@shows("F105", "F349")
def an_immutable_callback_gets_nothing():
    value(add.apply_async((1, 1), link=ring.si()))
    return noted(1, "rang")


@shows("F105")
def a_callback_may_be_a_chain():
    value(add.apply_async((1, 1), link=chain(add.s(1), write.s())))
    return noted(1, "wrote")


@shows("F105")
def a_callback_may_be_a_group():
    value(add.apply_async((1, 1), link=group(write.s(), add.s(1) | write.s())))
    return ordered(noted(2, "wrote"))


@shows("F105")
def no_callback_after_a_failure():
    failed = outcome(boom.apply_async(link=write.s()))
    value(add.apply_async((5, 5), link=write.s()))
    return [failed, noted(1, "wrote")]


@shows("F105")
def signatures_are_linked_too():
    made = add.s(2, 2)
    made.link(write.s())
    made.link(add.s(1) | write.s())
    value(made.delay())
    return ordered(noted(2, "wrote"))


@shows("F106")
def an_errback_is_called_with_the_request_and_the_error():
    failed = outcome(boom.apply_async(link_error=new_style.s()))
    return [failed, noted(1, "error")]


@shows("F106")
def an_errback_of_one_argument_is_a_task_with_the_id():
    result = boom.apply_async(link_error=old_style.s())
    failed = outcome(result)
    return [failed, noted(1, "failed") == [["failed", result.id]]]


@shows("F106")
def a_bound_errback_is_a_task_too():
    result = boom.apply_async(link_error=[bound_style.s()])
    outcome(result)
    return noted(1, "bound") == [["bound", result.id]]


@shows("F106")
def several_errbacks_run_each():
    outcome(boom.apply_async(link_error=[new_style.s(), new_style.s()]))
    return noted(2, "error")


@shows("F106")
def no_errback_after_a_success():
    value(add.apply_async((1, 1), link_error=new_style.s()))
    outcome(boom.apply_async(link_error=new_style.s()))
    return len(noted(1, "error"))


@shows("F106")
def an_errback_that_fails_hurts_nobody():
    result = boom.apply_async(link_error=failing_errback.s())
    return [outcome(result), noted(1, "tried"), value(add.delay(1, 1))]


@shows("F106")
def on_error_is_the_same():
    outcome(boom.s().on_error(new_style.s()).delay())
    return noted(1, "error")
