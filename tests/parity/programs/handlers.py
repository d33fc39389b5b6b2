"""A task's own handlers and classes: what is called, in which order, with what."""

import celery
from celery import Celery, signals
from celery.exceptions import Ignore, Reject
from observing import note, noted, outcome, shows, value

app = Celery("handlers")


class Flaky(Exception):
    pass


def short(thing):
    return type(thing).__name__ if isinstance(thing, BaseException) or thing is None else thing


def inner(einfo):
    """The exception itself, which Celery wraps to send it to another process."""
    wrapped = type(einfo.exception).__name__ == "ExceptionWithTraceback"
    return short(einfo.exception.exc if wrapped else einfo.exception)


class Told(celery.Task):
    abstract = True

    def before_start(self, task_id, args, kwargs):
        note("before_start", task_id == self.request.id, args, kwargs)

    def on_success(self, retval, task_id, args, kwargs):
        note("on_success", retval, task_id == self.request.id, args, kwargs)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        note("on_failure", short(exc), task_id == self.request.id, args, kwargs, inner(einfo),
             einfo.type.__name__, "Flaky: " in str(einfo), str(einfo) == einfo.traceback)  # fmt: skip

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        note("on_retry", short(exc), task_id == self.request.id, args, kwargs, inner(einfo),
             einfo.type.__name__, "raise " in einfo.traceback)  # fmt: skip

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        note("after_return", status, short(retval), task_id == self.request.id, args, kwargs)


class Quiet(Told):
    abstract = True

    def after_return(self, *args):
        note("after_return", args[0])


class Broken(celery.Task):
    abstract = True
    broken = ""

    def fail(self, name):
        note(name)
        if name == self.broken:
            raise ValueError(f"{name} is broken")

    def before_start(self, *args):
        self.fail("before_start")

    def on_success(self, *args):
        self.fail("on_success")

    def on_failure(self, *args):
        note("on_failure", short(args[0]))

    def after_return(self, *args):
        self.fail("after_return")


class Around(celery.Task):
    abstract = True

    def __call__(self, *args, **kwargs):
        note("in", self.request.called_directly)
        try:
            return self.run(*args, **kwargs)
        except Exception as exc:
            note("caught", type(exc).__name__)
            raise
        finally:
            note("out")


class Kept(celery.Task):
    abstract = True
    made = 0
    _db = None

    def __init__(self):
        type(self).made += 1

    @property
    def db(self):
        if self._db is None:
            self._db = object()
        return self._db


@app.task(bind=True, base=Told, name="work", max_retries=1)
def work(self, how="", x=None):
    if how == "fail":
        raise Flaky("why")
    if how == "retry" and not self.request.retries:
        raise self.retry(countdown=0.3, exc=Flaky("later"))
    if how == "retry without" and not self.request.retries:
        raise self.retry(countdown=0.3)
    return how


@app.task(base=Quiet)
def leave(how):
    raise {"ignore": Ignore(), "reject": Reject("no")}[how]


@app.task(base=Broken, broken="before_start")
def broken_before():
    note("ran")


@app.task(base=Broken, broken="on_success")
def broken_success():
    return 1


@app.task(base=Broken, broken="after_return")
def broken_after():
    return 2


@app.task(base=Around)
def around(x):
    return x


@app.task(base=Around, autoretry_for=(Flaky,), retry_kwargs={"max_retries": 1, "countdown": 0})
def around_retried():
    raise Flaky


@app.task(base=Kept, bind=True)
def kept(self):
    return [id(self.db), type(self).made, type(self.db).__name__]


@app.task(bind=True)
def progress(self):
    self.update_state(state="PROGRESS", meta={"done": 1})
    found = self.AsyncResult(self.request.id)
    return [found.state, found.info]


@signals.task_prerun.connect(sender=work)
@signals.task_postrun.connect(sender=work)
@signals.task_success.connect(sender=work)
@signals.task_failure.connect(sender=work)
@signals.task_retry.connect(sender=work)
def told(signal=None, **facts):
    note("signal", signal.name, facts.get("state"))


@signals.task_postrun.connect(sender=leave)
def left(state=None, retval=None, **_):
    note("postrun", state, short(retval))


@signals.task_failure.connect(sender=leave)
def failed(exception=None, **_):
    note("task_failure", short(exception))


@shows("F143")
def a_success():
    return [outcome(work.delay("return", x=1)), noted(6)]


@shows("F143")
def a_failure():
    return [outcome(work.delay("fail", x=1)), noted(6)]


@shows("F143")
def a_retry():
    return [outcome(work.delay("retry", x=1)), noted(11)]


@shows("F143")
def a_retry_without_an_exception():
    return [outcome(work.delay("retry without")), noted(11)]


@shows("F143", "F188")
def an_ignored_one():
    leave.delay("ignore")
    return noted(2)


@shows("F143", "X12")
def a_rejected_one():
    return [outcome(leave.delay("reject")), sorted(noted(3))]


@shows("F143")
def a_handler_that_fails():
    found = []
    for task, number in ((broken_before, 3), (broken_success, 3), (broken_after, 3)):
        found.append([outcome(task.delay()), noted(number)])
    return found


@shows("F143")
def a_handler_that_fails_where_the_task_was_called():
    found = []
    for task in (broken_success, broken_after):
        try:
            task.apply()
        except ValueError as exc:
            found.append(str(exc))
    noted(1)
    return found


@shows("F147")
def a_call_of_ones_own_is_around_each_attempt():
    return [value(around.delay(1)), noted(2), around(2), noted(2)]


@shows("F147", "F157")
def a_call_of_ones_own_sees_the_retry():
    return [outcome(around_retried.delay()), noted(6)]


@shows("F148")
def a_base_is_made_once_a_process():
    first, second = value(kept.delay()), value(kept.delay())
    return [first[1:], second[1:]]


@shows("F148")
def an_abstract_base_is_no_task():
    return [name for name in app.tasks if "Kept" in name or "Told" in name]


@shows("F145")
def a_state_of_ones_own():
    return value(progress.delay())
