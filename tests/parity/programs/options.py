"""Options of tasks that the worker obeys."""

from celery import Celery, Task
from observing import logged, note, noted, outcome, raised, shows, value

app = Celery("options")


@app.task(ignore_result=True)
def ignored(x):
    note("ran", x)
    return x


@app.task(ignore_result=True)
def ignored_failure():
    note("failing")
    raise ValueError("nobody looks")


@app.task(ignore_result=True, store_errors_even_if_ignored=True)
def ignored_but_for_errors():
    raise ValueError("kept")


@app.task
def add(x, y):
    return x + y


@app.task(trail=True)
def parent():
    add.delay(1, 1)
    add.apply_async((2, 2), add_to_parent=False)
    return "parent"


@app.task(trail=False)
def untrailed():
    add.delay(1, 1)
    return "untrailed"


@app.task(bind=True, track_started=True)
def tracked(self):
    note("started", app.AsyncResult(self.request.id).state, sorted(app.AsyncResult(self.request.id).info or {}))
    return "done"


@app.task(bind=True)
def untracked(self):
    note("started", app.AsyncResult(self.request.id).state)
    return "done"


class Expected(Exception):
    pass


@app.task(throws=(Expected,))
def throws():
    raise Expected("as agreed")


@app.task
def fails():
    raise KeyError("not agreed")


@app.task(resultrepr_maxsize=20)
def long_result():
    return "x" * 200


@app.task(serializer="json", compression="zlib", bind=True)
def compressed(self, x):
    return len(x)


@app.task(queue="celery", priority=7, bind=True)
def routed_by_attribute(self):
    return self.request.delivery_info["routing_key"]


@app.task(expires=0.000001)
def expires_at_once():
    return "ran"


class Shadowed(Task):
    def shadow_name(self, args, kwargs, options):
        return "a shadow"


@app.task(base=Shadowed, bind=True)
def shadowed(self):
    return [self.request.task, self.request.shadow]


@app.task(bind=True)
def shadow_given(self):
    return [self.request.task, self.request.shadow]


@app.task(bind=True)
def updates(self):
    self.update_state(state="PROGRESS", meta={"done": 50})
    note("progress", app.AsyncResult(self.request.id).state, app.AsyncResult(self.request.id).info)
    return "done"


@app.task(bind=True, send_events=False)
def quiet(self):
    return self.send_events


@shows("F039")
def a_caller_who_knows_gets_none_at_once():
    result = ignored.delay(1)
    return [result.get(timeout=10), result.ignored, noted(1, "ran")]


@shows("F039", "F107")
def ignore_result_of_a_call():
    result = add.apply_async((1, 2), ignore_result=True)
    return [result.get(timeout=10), result.ignored]


@shows("F039")
def ignore_result_may_be_turned_off_by_a_call():
    return outcome(ignored.apply_async((3,), ignore_result=False))


@shows("F040", "N47")
def errors_are_kept_if_asked_for():
    result = app.AsyncResult(ignored_but_for_errors.delay().id)
    return outcome(result)


@shows("F041", "F090")
def children_are_in_the_result():
    result = parent.delay()
    value(result)
    return [value(child) for child in result.children]


@shows("F041")
def without_a_trail_there_are_no_children():
    result = untrailed.delay()
    value(result)
    return result.children or []


@shows("F045", "N47")
def started_is_seen_if_asked_for():
    value(tracked.delay())
    return noted(1, "started")


@shows("F045", "N47")
def and_not_otherwise():
    value(untracked.delay())
    return noted(1, "started")


@shows("F050")
def an_expected_exception_is_a_failure_still():
    return [outcome(throws.delay()), len(logged(r"INFO/.*options\.throws\[.*raised expected: Expected\('as agreed'\)"))]


@shows("F050")
def another_exception_is_logged_with_its_traceback():
    return [
        outcome(fails.delay()),
        len(logged(r"ERROR/.*options\.fails\[.*raised unexpected: KeyError\('not agreed'\)")),
    ]


@shows("F052")
def a_long_result_is_cut_in_the_log():
    value(long_result.delay())
    (shown,) = logged(r"options\.long_result\[.*succeeded in .*s: (.*)")
    return [len(shown) < 40, shown.startswith("'xxx")]


@shows("F043")
def serializer_and_compression_are_attributes_and_options():
    return [value(compressed.delay("a" * 1000)), value(add.apply_async((1, 2), serializer="json", compression="gzip"))]


@shows("F044")
def a_soft_limit_above_the_hard_one_is_refused():
    def impossible():
        return None

    decorate = app.task(name="options.impossible", time_limit=5, soft_time_limit=10)
    return raised(lambda: decorate(impossible).delay())


@shows("F051")
def class_attributes_are_options_of_calls():
    return [value(routed_by_attribute.delay()), outcome(expires_at_once.delay())[:2]]


@shows("F054")
def a_shadow_is_a_name_for_people():
    return [value(shadowed.delay()), value(shadow_given.apply_async(shadow="given"))]


@shows("N32", "F145")
def update_state_is_seen_at_once():
    value(updates.delay())
    return noted(1, "progress")


@shows("F030")
def send_events_is_an_attribute():
    return value(quiet.delay())


@shows("F030")
def options_of_acknowledgement_are_accepted():
    @app.task(
        acks_late=True, acks_on_failure=False, acks_on_timeout=True, reject_on_worker_lost=True, name="options.acks"
    )
    def acks():
        return None

    return [acks.acks_late, acks.acks_on_failure, acks.acks_on_timeout, acks.reject_on_worker_lost]


@shows("F030")
def further_options_are_attributes():
    @app.task(retry_on_worker_lost=True, name="options.further")
    def further():
        return None

    return [further.retry_on_worker_lost, further.backend is not None]


@shows("N32")
def requests_can_be_pushed_and_popped():
    add.push_request(id="pushed", args=(1,))
    seen = [add.request.id, list(add.request.args)]
    add.pop_request()
    return [*seen, add.request.id]


@app.task(bind=True)
def copies_itself(self, x):
    made = self.signature_from_request(self.request, args=(x + 1,))
    return [made.task, list(made.args), made.options["task_id"] == self.request.id]


@shows("N32")
def a_signature_can_be_made_of_a_request():
    return value(copies_itself.delay(1))


@app.task(bind=True)
def sends_an_event(self):
    self.send_event("task-custom", detail="seen")
    return "sent"


@shows("N32", "F146")
def a_task_may_send_an_event():
    return outcome(sends_an_event.delay())


@shows("F039")
def a_failure_that_is_ignored_is_logged_only():
    ignored_failure.delay()
    return [noted(1, "failing"), len(logged(r"ERROR/.*options\.ignored_failure\[.*ValueError\('nobody looks'\)"))]
