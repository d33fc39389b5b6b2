"""Retries: by hand and by themselves, what is kept and what changes, when they end; Ignore, Reject, Retry."""

from datetime import datetime, timedelta, timezone

from celery import Celery, chain, signals
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject, Retry
from observing import described, logged, note, noted, outcome, raised, shows, until, value

app = Celery("retry")


class Flaky(Exception):
    pass


class Hopeless(Flaky):
    pass


@app.task
def add(x, y):
    return x + y


@app.task(bind=True, max_retries=3)
def again(self, times, **options):
    if self.request.retries < times:
        raise self.retry(countdown=0.01, **options)
    return self.request.retries


@app.task(bind=True, max_retries=2, default_retry_delay=0.01)
def with_exc(self, name="not yet"):
    raise self.retry(exc=Flaky(name))


@app.task(bind=True, max_retries=1, default_retry_delay=0.01)
def without_exc(self, *args, **kwargs):
    self.retry()


@app.task(bind=True, max_retries=0)
def in_a_handler(self):
    try:
        raise KeyError("first")
    except KeyError:
        try:
            self.retry(exc=Flaky("second"))
        except Flaky as exc:
            return [type(exc.__cause__).__name__, str(exc)]


@app.task(bind=True, max_retries=0)
def same_exc(self):
    try:
        raise Flaky("the very same")
    except Flaky as exc:
        self.retry(exc=exc)


@app.task(bind=True)
def seen(self, step="first"):
    request = self.request
    note(
        "seen", step, request.id, request.retries, request.root_id, request.group,
        request.delivery_info["routing_key"], request.delivery_info["priority"], request.headers, request.shadow,
        bool(request.expires), bool(request.delivery_info.get("redelivered")),
    )  # fmt: skip
    if not request.retries:
        raise self.retry(countdown=0.01, kwargs={"step": "second"})
    return step


@app.task(bind=True)
def changed(self, a, b=2, *rest, c=3, **more):
    note("called", a, b, list(rest), c, more)
    how = {0: more.pop("how", None)}.get(self.request.retries)
    if how == "args":
        raise self.retry(args=(10,), countdown=0)
    if how == "kwargs":
        raise self.retry(kwargs={"b": 20}, countdown=0)
    if how == "both":
        raise self.retry(args=(10, 11), kwargs={"c": 12}, countdown=0)
    if how == "more":
        raise self.retry(args=(10, 11, 12), countdown=0)


@app.task(bind=True)
def impossible(self, how):
    if how == "unwritable":
        raise self.retry(args=(object(),), countdown=0)
    raise self.retry(args=(1, 2, 3), kwargs={}, countdown=0)


@app.task(bind=True)
def shown(self):
    when = datetime(2100, 1, 1, tzinfo=timezone.utc)
    found = []
    for given in ({"countdown": 5}, {"eta": when}, {}, {"exc": Flaky("why"), "countdown": 1.5}):
        try:
            # Called eagerly: nothing is sent.
            self.retry(**given)
        except Retry as exc:
            found.append([str(exc), exc.humanize(), exc.is_eager, type(exc.exc).__name__])
    return found


@app.task(autoretry_for=(Flaky,), dont_autoretry_for=(Hopeless,), retry_kwargs={"max_retries": 2, "countdown": 0.01})
def by_itself(name):
    note("ran", name)
    raise {"flaky": Flaky, "hopeless": Hopeless, "key": KeyError}[name](name)


@app.task(bind=True, autoretry_for=(Exception,), retry_kwargs={"countdown": 0.01})
def predicates(self, name):
    note("ran", name, self.request.retries)
    if self.request.retries:
        return "second"
    raise {"ignore": Ignore(), "reject": Reject("no"), "error": Flaky()}[name]


@app.task(bind=True, autoretry_for=(Flaky,), retry_kwargs={"countdown": 0.01}, max_retries=3)
def override(self):
    note("ran", self.request.retries)
    raise self.retry(exc=Flaky("enough"), max_retries=1, countdown=0.01)


@app.task(bind=True, autoretry_for=(Flaky,), retry_backoff=True, retry_jitter=False, max_retries=12)
def growing(self):
    if self.request.retries < 12:
        raise Flaky
    return self.request.retries


@app.task(bind=True, acks_late=True)
def requeues(self):
    redelivered = self.request.delivery_info["redelivered"]
    note("requeues", redelivered)
    if not redelivered:
        raise Reject("once", requeue=True)
    return "came again"


@app.task(acks_late=True)
def rejects_late():
    raise Reject("no", requeue=False)


@app.task
def rejects():
    raise Reject("no", requeue=False)


@app.task(bind=True)
def ignores(self, state=None):
    if state:
        self.update_state(state=state, meta={"by": "hand"})
    note("ignores", state)
    raise Ignore


@app.task(bind=True)
def seen_waiting(self):
    raise self.retry(countdown=timedelta(minutes=5).total_seconds(), exc=Flaky("for a while"))


@signals.task_retry.connect(sender=growing)
def on_growing(reason=None, **_):
    note("delay", reason.when)


@shows("F150")
def a_retry_runs_again_until_it_returns():
    return [outcome(again.delay(times)) for times in (0, 1, 3)]


@shows("F151")
def the_exception_given_is_raised_in_the_end():
    return outcome(with_exc.delay())


@shows("F151")
def without_one_the_number_of_retries_is_said():
    got = without_exc.delay(1, x="y").get(timeout=5, propagate=False)
    return [type(got).__name__, str(got).partition("[")[0], str(got).partition("]")[2]]


@shows("F151")
def what_is_raised_in_the_end_has_a_cause():
    return value(in_a_handler.delay())


@shows("F151")
def the_very_exception_may_be_given():
    return outcome(same_exc.delay())


@shows("F151")
def the_error_knows_the_arguments():
    exc = MaxRetriesExceededError("words", task_args=[1], task_kwargs={"x": 2})
    return [*described(exc), exc.task_args, exc.task_kwargs]


@shows("F150")
def a_function_call_raises_the_exception():
    found = []
    for call in (with_exc, without_exc, lambda: by_itself("flaky"), lambda: by_itself.run("flaky")):
        try:
            call()
        except Exception as exc:
            found.append(described(exc))
    noted(2, "ran")
    return found


@shows("F150")
def the_next_attempt_is_the_same_call():
    sent = seen.apply_async(queue="celery", priority=3, headers={"h": 1}, shadow="shade", expires=60)
    value(sent)
    return noted(2, "seen")


@shows("F150")
def a_chain_goes_on_after_a_retry():
    return value(chain(again.s(2), add.s(10)).delay())


@shows("F154")
def arguments_that_change():
    found = {}
    for how in ("args", "kwargs", "both", "more"):
        changed.apply_async((1, 2), {"c": 4, "how": how})
        found[how] = noted(2, "called")
    return found


@shows("F155")
def a_retry_that_cannot_be_sent():
    return [outcome(impossible.delay(how))[:2] for how in ("unwritable", "fitting")]


@shows("F152", "F190")
def a_retry_says_when():
    return value(shown.apply())


@shows("F190")
def a_retry_in_words():
    when = datetime(2100, 1, 1)
    made = [Retry(), Retry("words"), Retry(exc=Flaky("why"), when=3), Retry(exc="text", when=when), Retry(when=when)]
    return [[str(each), each.humanize(), each.message, each.excs] for each in made]


@shows("F157")
def it_retries_by_itself():
    return [[outcome(by_itself.delay(name)), noted(times, "ran")] for name, times in (
        ("flaky", 3), ("hopeless", 1), ("key", 1))]  # fmt: skip


@shows("F157")
def which_predicates_are_retried():
    found = [outcome(predicates.delay("error")), outcome(predicates.delay("reject"))]
    ignored = predicates.delay("ignore")
    return [found, noted(5, "ran"), ignored.state]


@shows("F157")
def the_original_function_is_at_hand():
    return [raised(by_itself._orig_run, "flaky"), hasattr(add, "_orig_run"), noted(1, "ran")]


@shows("F159")
def a_limit_given_to_retry_holds_for_automatic_ones():
    return [outcome(override.delay()), noted(2, "ran")]


@shows("F158")
def delays_grow_to_a_most():
    return [value(growing.apply()), noted(12, "delay")]


@shows("F189")
def a_message_put_back_comes_again():
    return [outcome(requeues.delay()), noted(2, "requeues")]


@shows("F189", "X12")
def a_rejected_message_is_a_failure():
    return [outcome(rejects.delay()), outcome(rejects_late.delay())]


@shows("F188")
def what_is_ignored_keeps_its_state():
    found = []
    for state in (None, "HALF", "SUCCESS"):
        sent = ignores.delay(state)
        noted(1, "ignores")
        value(add.delay(1, 1))
        found.append([sent.state, sent.result])
    return found


@shows("F188")
def a_chain_stops_at_what_is_ignored():
    sent = chain(ignores.si(), add.si(1, 1)).delay()
    noted(1, "ignores")
    value(add.delay(1, 1))
    return [sent.state, sent.parent.state]


@shows("F188", "F189")
def ignored_and_rejected_in_the_log():
    return [len(logged(r"INFO.*Task retry\.ignores\[[^]]*\] ignored")) > 0,
            len(logged(r"WARNING.*Task retry\.rejects\[[^]]*\] reject requeue=False: no")) > 0]  # fmt: skip


@shows("F156")
def the_state_between():
    sent = seen_waiting.delay()
    until(lambda: sent.state == "RETRY")
    return [sent.state, *described(sent.result), "Flaky: for a while" in sent.traceback, sent.ready()]
