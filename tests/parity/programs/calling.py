"""Sending tasks: delay, apply_async and its arguments, send_task, what is refused, where errors come from."""

import time
from datetime import UTC, datetime, timedelta

from celery import Celery, signature
from celery.exceptions import NotRegistered
from kombu.exceptions import EncodeError, OperationalError
from observing import described, logged, outcome, raised, shows, value

app = Celery("calling")


@app.task
def add(x, y=0):
    return x + y


@app.task(bind=True)
def read(self, *names, **_):
    return {name: getattr(self.request, name) for name in names}


@app.task
def charge(account, card=None):
    return f"charged {account}"


@app.task
def listen(*args, **kwargs):
    return [list(args), kwargs]


@app.task
def boom():
    raise ValueError("it fails")


@shows("F093")
def delay_takes_the_tasks_own_arguments():
    return [value(add.delay(1)), value(add.delay(1, 2)), value(add.delay(1, y=2)), value(add.delay(x=1, y=2))]


@shows("F094")
def apply_async_takes_them_in_two_parcels():
    return [
        value(add.apply_async((1, 2))),
        value(add.apply_async([1], {"y": 2})),
        value(add.apply_async(kwargs={"x": 1})),
        value(listen.apply_async()),
    ]


@shows("F094")
def arguments_of_another_kind_are_refused():
    return [
        raised(add.apply_async, "ab"),
        raised(add.apply_async, 5),
        raised(add.apply_async, (1,), "no mapping"),
        raised(add.apply_async, {"x": 1}),
    ]


@shows("F094")
def a_call_answers_with_a_result():
    result = add.delay(1, 2)
    before = type(result).__name__
    return [before, value(result), result.ready(), result.successful(), result.failed(), result.state, result.result]


@shows("F095")
def apply_runs_here():
    result = add.apply((1, 2))
    failed = boom.apply()
    return [type(result).__name__, result.get(), result.state, failed.state, described(failed.result)]


@shows("F095")
def apply_may_throw():
    return [raised(boom.apply, throw=True), raised(boom.apply().get), add.apply(args=(1,), kwargs={"y": 4}).get()]


@shows("F095")
def apply_has_a_request():
    seen = read.apply(("id", "retries", "headers"), task_id="eager-id", retries=2, headers={"tenant": "blue"}).get()
    return [seen["id"], seen["retries"], seen["headers"]]


@shows("F096")
def a_direct_call_sends_nothing():
    return [add(1, 2), raised(boom)]


@shows("F100")
def an_id_of_ones_own():
    result = add.apply_async((1, 2), task_id="calling-1")
    return [result.id, value(result), value(app.AsyncResult("calling-1"))]


@shows("F015", "N33")
def send_task_needs_no_task_here():
    return [
        value(app.send_task("calling.add", (1, 2))),
        value(app.send_task("calling.add", args=[1], kwargs={"y": 5})),
        value(app.send_task("calling.read", ["id"], task_id="calling-2")),
    ]


@shows("F015", "R25")
def an_unknown_name_fails():
    result = app.send_task("calling.nobody.knows.it")
    try:
        return ["SUCCESS", result.get(timeout=2)]
    except NotRegistered as exc:
        return [result.state, *described(exc)]
    except Exception as exc:
        return [result.state, type(exc).__name__]


@shows("F116")
def a_tilde_sends_and_waits():
    return [~add.s(1, 2), ~signature("calling.add", args=(2, 3), app=app)]


@shows("F107")
def options_are_seen_in_the_request():
    names = (
        "shadow",
        "headers",
        "timelimit",
        "argsrepr",
        "kwargsrepr",
        "root_id",
        "parent_id",
        "group",
        "retries",
        "reply_to",
        "ignore_result",
    )
    return value(
        read.apply_async(
            names,
            shadow="a.shadow",
            headers={"a": 1},
            time_limit=30,
            soft_time_limit=20,
            argsrepr="(hidden)",
            kwargsrepr="{hidden}",
            root_id="r",
            parent_id="p",
            group_id="g",
            group_index=4,
            retries=1,
            reply_to="somebody",
            ignore_result=False,
        )
    )


@shows("F107", "F068")
def the_place_in_a_group_may_be_given():
    return value(read.apply_async(("group", "group_index"), group_id="g", group_index=4))


@shows("F107", "F086")
def any_property_may_be_given():
    return value(read.apply_async(("properties",), app_id="an-app"))["properties"]["app_id"]


@shows("F108")
def secrets_are_hidden_where_people_look():
    account = value(charge.s("acc", card="1234 5678").set(kwargsrepr=repr({"card": "****"})).delay())
    seen = value(read.apply_async(("argsrepr", "kwargsrepr"), {"card": "1234"}, kwargsrepr="{'card': '****'}"))
    return [account, seen["kwargsrepr"], logged("1234 5678", number=0)]


@shows("F109")
def long_arguments_are_cut():
    seen = value(long_one.delay("x" * 5000))
    return [len(seen) < 1100, seen[:5]]


@app.task(bind=True)
def long_one(self, text):
    return self.request.argsrepr


@shows("F102", "F120")
def an_unknown_serializer_is_refused_here():
    return [raised(add.apply_async, (1, 2), serializer="nope")]


@shows("F102", "F118")
def what_json_cannot_say_is_refused_here():
    try:
        add.delay(object())
    except EncodeError:
        return "EncodeError"
    return "sent"


@shows("F107")
def a_policy_for_retries_is_accepted():
    policy = {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2}
    return [
        value(add.apply_async((1, 2), retry=True, retry_policy=policy)),
        value(add.apply_async((1, 2), retry=False)),
    ]


@shows("F115")
def operational_error_is_what_a_task_says_it_is():
    return [issubclass(add.OperationalError, OperationalError), issubclass(OperationalError, Exception)]


@shows("F097")
def countdown_is_a_number_of_seconds():
    begin = time.time()
    then = value(now.apply_async(countdown=0.4))
    at_once = value(now.apply_async(countdown=0))
    return [0.4 <= then - begin < 5, at_once - then < 5, raised(now.apply_async, countdown=-2147483649)]


@app.task
def now():
    return time.time()


@app.task(bind=True)
def eta_of(self):
    return [time.time(), self.request.eta]


@shows("F098", "F346")
def eta_is_a_moment():
    moment = datetime.now(UTC) + timedelta(seconds=0.5)
    ran, eta = value(eta_of.apply_async(eta=moment))
    return [ran >= moment.timestamp(), datetime.fromisoformat(eta) == moment]


@shows("F098")
def an_eta_in_the_past_runs_at_once():
    return outcome(add.apply_async((1, 2), eta=datetime.now(UTC) - timedelta(hours=1)))


@shows("F098")
def a_naive_eta_is_in_the_apps_zone():
    moment = datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=0.3)
    ran, _ = value(eta_of.apply_async(eta=moment))
    return ran >= moment.replace(tzinfo=UTC).timestamp()


@shows("F098")
def a_countdown_wins_over_an_eta():
    begin = time.time()
    ran, _ = value(eta_of.apply_async(countdown=0.2, eta=datetime.now(UTC) + timedelta(hours=1)))
    return 0.2 <= ran - begin < 5


@shows("F099", "X13")
def an_expired_task_is_revoked():
    late = add.apply_async((1, 2), expires=0.05, countdown=0.3)
    past = add.apply_async((1, 2), expires=datetime.now(UTC) - timedelta(minutes=1))
    return [outcome(late), outcome(past)]


@shows("F099")
def one_in_time_runs():
    return [
        outcome(add.apply_async((1, 2), expires=60)),
        outcome(add.apply_async((1, 2), expires=datetime.now(UTC) + timedelta(minutes=1))),
    ]


@shows("F346")
def none_of_many_runs_too_early():
    begin = time.time()
    delays = [0.05 * (number % 10) for number in range(50)]
    results = [now.apply_async(countdown=delay) for delay in delays]
    return sum(value(result) - begin < delay for result, delay in zip(results, delays, strict=True))
