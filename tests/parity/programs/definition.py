"""Defining tasks: the decorator, names, options as attributes, direct calls, registering twice."""

import functools
import pickle
import re
import warnings

from celery import Celery, Task
from celery.exceptions import DuplicateTaskNameWarning
from observing import note, noted, outcome, raised, shows, value

app = Celery("definition")


class Counting(Task):
    def __init__(self):
        self.count = 0
        note("made", self.name)


class Abstract(Task):
    abstract = True
    mark = "abstract"

    def helper(self):
        return f"{self.mark} {self.name}"


@app.task
def add(x, y: int = 2) -> int:
    """Add two numbers."""
    return x + y


@app.task(name="a.name.of.its.own")
def named():
    return "named"


@app.task(bind=True)
def bound(self, x):
    return [self.name, self.request.id is not None, x]


@app.task(base=Abstract, bind=True)
def derived(self):
    return self.helper()


@app.task(base=Counting, bind=True)
def count(self):
    self.count += 1
    return [self.count, len({id(self), id(app.tasks[self.name])})]


@app.task(typing=False)
def untyped(x):
    return x


@app.task
def double(x):
    return 2 * x


def shout(function):
    @functools.wraps(function)
    def inner(*args):
        return f"{function(*args)}!"

    return inner


@app.task
@shout
def greet(name):
    return f"hello {name}"


@app.task(bind=True, base=Task)
def options_of_its_own(self, *, wanted):
    return [getattr(self, name) for name in wanted]


@app.task(my_word="mine", max_retries=None)
def with_a_word():
    return None


@shows("F030")
def a_task_looks_like_its_function():
    return [
        add.__name__,
        add.__doc__,
        add.__wrapped__(1, 1),
        add.__qualname__,
        {name: kind.__name__ for name, kind in add.__annotations__.items()},
    ]


@shows("F030")
def what_is_no_function_is_refused():
    return [raised(lambda: app.task("no function")), raised(lambda: app.task(add, double))]


@shows("F030")
def options_become_attributes():
    return [with_a_word.my_word, with_a_word.max_retries, hasattr(add, "my_word")]


@shows("F031")
def a_name_of_its_own():
    return [named.name, "a.name.of.its.own" in app.tasks, outcome(named.delay())]


@shows("F032")
def a_bound_task_gets_itself():
    return [value(bound.delay(1)), value(bound.delay(x=2)), raised(bound.delay)]


@shows("F033", "F148")
def a_base_may_be_abstract():
    return [isinstance(derived, Abstract), derived.mark, value(derived.delay())]


@shows("F034")
def the_task_decorator_is_the_outermost():
    return [greet.name, value(greet.delay("you"))]


@shows("F035")
def arguments_are_checked_where_it_is_called():
    return [
        raised(add.delay),
        raised(add.delay, 1, 2, 3),
        raised(add.delay, 1, z=3),
        raised(double.apply_async, (1, 2)),
    ]


@shows("F035")
def untyped_tasks_fail_in_the_worker():
    return outcome(untyped.delay(1, 2, 3))[:2]


@shows("F036", "F037", "X14")
def the_defaults_of_options():
    names = (
        "max_retries default_retry_delay rate_limit ignore_result trail send_events track_started acks_late throws "
        "store_errors_even_if_ignored serializer time_limit soft_time_limit reject_on_worker_lost "
        "acks_on_failure_or_timeout expires priority resultrepr_maxsize typing"
    ).split()
    found = {name: getattr(add, name) for name in names}
    found["throws"] = list(found["throws"])
    return found


@shows("F059")
def a_task_shows_its_name_and_app():
    return re.sub(r"0x[0-9a-f]+", "0x", repr(add))


@shows("F060")
def a_task_is_pickled_by_its_name():
    return pickle.loads(pickle.dumps(add)).name


@shows("F061")
def a_task_is_made_once_per_process():
    made = [count.name for kind, name in noted(0, "made") if name == count.name][:1]
    counts = [value(count.delay()) for _ in range(6)]
    return [made, all(same == 1 for _, same in counts), max(number for number, _ in counts) >= 3]


@shows("F062", "F096")
def a_direct_call_runs_here():
    return [add(2, 3), add(4), bound(5)]


@shows("F064", "F093")
def the_same_object_sends_and_runs():
    return [add(1, 1), value(add.delay(1, 1)), value(add.apply_async((1,), {"y": 1})), add.run(1, 1)]


@shows("F018")
def the_first_of_one_name_stays():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        @app.task(name="twice")
        def first():
            return "first"

        @app.task(name="twice")
        def second():
            return "second"

        app.finalize()
        found = app.tasks["twice"]()
    return [found, sum(issubclass(each.category, DuplicateTaskNameWarning) for each in caught)]


@shows("F058", "F006")
def on_bound_is_told_of_the_app():
    seen = []

    class Told(Task):
        @classmethod
        def on_bound(cls, app):
            seen.append(app.main)

    @app.task(base=Told, name="told")
    def told():
        return None

    told.name
    return sorted(set(seen))


@shows("F115")
def errors_are_attributes_of_tasks():
    return [
        add.OperationalError.__name__,
        add.MaxRetriesExceededError.__name__,
        issubclass(add.OperationalError, Exception),
    ]


@shows("N45", "F147")
def call_may_be_overridden():
    class Debug(Task):
        def __call__(self, *args, **kwargs):
            note("called", self.name)
            return self.run(*args, **kwargs)

    @app.task(base=Debug, name="debugged")
    def debugged(x):
        return x

    return [debugged(3), noted(1, "called")]


class Loud(Task):
    def __call__(self, *args, **kwargs):
        note("loud", self.request.called_directly, self.request.id is not None)
        return self.run(*args, **kwargs)


class Careless(Task):
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


@app.task(base=Loud)
def loud(x):
    return x


@app.task(base=Careless, bind=True)
def careless(self, x):
    return [x, self.request.id is not None, self.request.called_directly]


@shows("N45", "F147")
def an_overridden_call_is_called_in_the_worker():
    return [value(loud.delay(1)), noted(1, "loud")]


@shows("N45")
def calling_super_keeps_the_request():
    return value(careless.delay(1))
