"""Results: what is known of a task, the forms of get, what comes before the end, and sets."""

import pickle

from celery import Celery, chain, group
from celery.exceptions import Ignore, IncompleteStream, TimeoutError
from celery.result import (
    AsyncResult,
    EagerResult,
    GroupResult,
    ResultSet,
    allow_join_result,
    denied_join_result,
    result_from_tuple,
)
from observing import LIMIT_S, described, note, noted, outcome, raised, shows, until, value

app = Celery("results")


@app.task
def add(x, y):
    return x + y


@app.task
def fail(text="it fails"):
    raise ValueError(text)


@app.task(bind=True)
def steps(self, number):
    for at in range(number):
        self.update_state(state="PROGRESS", meta={"at": at})
    return number


@app.task(bind=True)
def by_hand(self, state, end):
    self.update_state(state=state, meta={"by": "hand"})
    if end == "ignore":
        raise Ignore
    return "the end"


@app.task(bind=True, max_retries=1, default_retry_delay=0)
def again(self):
    raise self.retry(exc=ValueError(f"try {self.request.retries}"), countdown=0)


@app.task
def gate(name):
    noted(1, name)
    return name


@app.task
def leaf(n):
    return n * n


@app.task
def branch(n):
    return str(leaf.delay(n)) and n


@app.task
def root(n):
    group(branch.s(i) for i in range(n))()
    return n


@app.task
def ask(how):
    other = AsyncResult("never-sent")
    try:
        if how == "allowed":
            with allow_join_result():
                other.get(timeout=0.05)
        elif how == "denied":
            with allow_join_result(), denied_join_result():
                other.get(timeout=0.05)
        else:
            other.get(timeout=0.05, **({"disable_sync_subtasks": False} if how == "said" else {}))
    except RuntimeError as exc:
        return ["refused", "Never call result.get() within a task" in str(exc)]
    except TimeoutError:
        return "it waited"


@app.task(ignore_result=True)
def silent():
    return 1


@shows("F160")
def a_task_may_not_wait_for_another():
    return {how: value(ask.delay(how)) for how in ("", "said", "allowed", "denied")}


@shows("F162", "F172")
def a_result_is_its_id():
    result = app.AsyncResult("some-id")
    return [
        raised(app.AsyncResult, None), str(result), repr(result), result == "some-id", result == AsyncResult("some-id"),
        result == 7, hash(result) == hash("some-id"), result.task_id, result.parent, result.ignored,
    ]  # fmt: skip


@shows("F163", "F165")
def what_is_known_of_a_task():
    good, bad = add.delay(1, 2), fail.delay()
    value(good)
    bad.get(timeout=LIMIT_S, propagate=False)
    return [
        [each.state, each.status, each.ready(), each.successful(), each.failed(), bool(each.traceback),
         type(each.date_done).__name__, str(each.date_done.utcoffset()), str(each.info)]
        for each in (good, bad)
    ]  # fmt: skip


@shows("F164")
def get_has_many_forms():
    told = []
    result, bad = add.delay(1, 2), fail.delay()
    return [
        result.get(timeout=LIMIT_S, callback=lambda *what: told.append(len(what) and what[1])), told,
        result.get(timeout=LIMIT_S, interval=0.1, no_ack=False), result.wait(timeout=LIMIT_S), result.get(timeout=0),
        raised(bad.get, timeout=LIMIT_S), described(bad.get(timeout=LIMIT_S, propagate=False)),
        raised(app.AsyncResult("never").get, timeout=0.05),
    ]  # fmt: skip


@shows("F164")
def a_parents_failure_is_raised_by_its_child():
    result = chain(fail.s("first"), add.si(1, 1))()
    try:
        result.get(timeout=LIMIT_S)
    except Exception as exc:
        return [*described(exc), result.parent.failed()]


@shows("F165")
def maybe_throw_raises_or_returns():
    good, bad = add.delay(1, 2), fail.delay()
    value(good), bad.get(timeout=LIMIT_S, propagate=False)
    told = []
    return [
        good.maybe_throw(callback=lambda *what: told.append(what[1])), told, raised(bad.maybe_throw),
        described(bad.maybe_reraise(propagate=False)), raised(good.throw, KeyError("mine")),
    ]  # fmt: skip


@shows("F166", "F173")
def what_is_forgotten_is_pending_again():
    result = chain(add.s(1, 1), add.s(1))()
    # Celery sends the next step before it writes the result of this one.
    before = [value(result), *(until(app.AsyncResult(each.id).exists) for each in (result, result.parent))]
    result.forget()
    seen = [app.AsyncResult(each) for each in (result.id, result.parent.id)]
    return [before, [[each.state, each.exists(), each.result] for each in seen]]


@shows("F168")
def then_is_called_once_at_the_end():
    seen = []
    result = add.delay(1, 2)
    result.then(lambda each: seen.append([each is result, each.state]))
    value(result)
    until(lambda: seen)
    value(result)
    result.then(lambda each: seen.append("at once"))
    bad = fail.delay()
    bad.then(lambda each: seen.append(each.state))
    bad.get(timeout=LIMIT_S, propagate=False)
    until(lambda: len(seen) == 3)
    return seen


@shows("F168")
def what_a_callback_raises_goes_to_on_error():
    seen = []
    result = add.delay(1, 2)
    value(result)

    def broken(_):
        raise KeyError("broken")

    result.then(broken, on_error=lambda exc: seen.append(type(exc).__name__))
    return [seen, raised(result.then, broken)]


@shows("F169", "F185")
def all_that_came_of_a_task_is_collected():
    result = root.delay(2)
    value(result)
    until(lambda: result.children and all(each.ready() and each.children for each in result.children[0]))
    leaves = [child for each in result.children[0] for child in each.children]
    until(lambda: all(each.ready() for each in leaves))
    found = list(app.AsyncResult(result.id).collect())
    return [[type(node).__name__, got] for node, got in found]


@shows("F169", "F170")
def what_has_not_ended_is_incomplete():
    result = gate.delay("go-collect")
    try:
        return [
            raised(lambda: list(result.iterdeps())), raised(result.build_graph),
            [node is result for _, node in result.iterdeps(intermediate=True)],
            issubclass(IncompleteStream, Exception),
        ]  # fmt: skip
    finally:
        note("go-collect")
        value(result)


@shows("F170")
def the_leaf_is_the_last_that_came_of_it():
    result = branch.delay(3)
    value(result)
    until(lambda: result.children and result.children[0].ready())
    graph = result.graph
    return [result.get_leaf(), len(graph), [len(each) for _, each in graph.items()]]


@shows("F171")
def results_travel_as_tuples():
    result = chain(add.s(1, 1), add.s(1))()
    value(result)
    found = result_from_tuple(result.as_tuple(), app)
    return [result.as_tuple(), result.as_list(), found == result, found.parent == result.parent, found.as_tuple()]


@shows("F174")
def every_state_is_told_in_order():
    told = []
    result = steps.delay(3)
    got = result.get(timeout=LIMIT_S, on_message=told.append, propagate=False)
    metas = [meta for meta in told if meta["task_id"] == result.id]
    return [got, [[meta["status"], meta["result"], meta["traceback"], meta["children"]] for meta in metas],
            sorted(metas[0]), [bool(meta["date_done"]) for meta in metas]]  # fmt: skip


@shows("F174")
def retries_are_told_too():
    told = []
    result = again.delay()
    result.get(timeout=LIMIT_S, on_message=told.append, propagate=False)
    return [[meta["status"], *described(meta["result"])] for meta in told if meta["task_id"] == result.id]


@shows("F161")
def before_ignore_a_state_by_hand_stays():
    kept, mine = by_hand.delay("SUCCESS", "ignore"), by_hand.delay("MINE", "return")
    until(lambda: kept.state == "SUCCESS")
    return [kept.get(timeout=LIMIT_S), kept.state, outcome(mine)]


@shows("F175")
def members_of_a_set_come_and_go():
    one, two, three = (app.AsyncResult(f"id-{n}") for n in range(3))
    results = app.ResultSet([one])
    results.add(two), results.add(one), results.update([two, three]), results.remove(two), results.discard(two)
    found = [
        len(results), results[1].id, [each.id for each in results], raised(results.remove, two), repr(results),
        results == app.ResultSet([one, three]), results == ResultSet([one]), app.ResultSet([]).get(),
    ]  # fmt: skip
    results.clear()
    return [*found, len(results)]


@shows("F175", "F176")
def how_a_set_stands_and_what_it_returns():
    good = app.ResultSet([add.delay(n, n) for n in range(3)])
    bad = app.ResultSet([add.delay(1, 1), fail.delay("first")])
    values = [good.get(timeout=LIMIT_S), good.join(timeout=LIMIT_S), good.join_native(timeout=LIMIT_S)]
    told = []
    returned = [
        good.join(timeout=LIMIT_S, callback=lambda _, got: told.append(got)),
        good.get(timeout=LIMIT_S, callback=lambda _, got: told.append(got)),
    ]
    errors = [raised(bad.join, timeout=LIMIT_S), str(bad.join(timeout=LIMIT_S, propagate=False)[1])]
    stand = [[each.ready(), each.waiting(), each.successful(), each.failed(), each.completed_count()]
             for each in (good, bad)]  # fmt: skip
    return [values, returned, sorted(told), errors, stand, raised(bad.maybe_throw)]


@shows("F175")
def members_are_yielded_with_their_metas():
    results = app.ResultSet([add.delay(n, n) for n in range(3)])
    return sorted(
        [meta["result"], meta["status"], id == meta["task_id"]] for id, meta in results.iter_native(timeout=5)
    )


@shows("F176")
def the_time_of_a_set_is_for_all_of_it():
    return raised(app.ResultSet([app.AsyncResult(f"never-{n}") for n in range(3)]).join, timeout=0.05)


@shows("F177")
def a_group_is_saved_and_restored():
    result = group(add.s(n, n) for n in range(2))()
    value(result)
    result.save()
    found = GroupResult.restore(result.id, app=app)
    same = [
        found == result,
        found.id == result.id,
        found.get(timeout=LIMIT_S),
        app.GroupResult.restore(result.id) == result,
    ]
    result.delete()
    return [same, GroupResult.restore(result.id, app=app)]


@shows("F177")
def a_group_is_its_id():
    one = app.AsyncResult("one")
    found = app.GroupResult("g", [one])
    return [
        str(found), repr(found), found == "g", found == app.GroupResult("g", [one]), bool(found),
        bool(app.GroupResult(None, [])), found.children == [one], found.as_tuple(), hash(found) == hash("g"),
    ]  # fmt: skip


@shows("F178")
def an_eager_result_is_there_and_can_be_revoked():
    good, bad = add.apply((1, 2)), fail.apply()
    good.forget()
    found = [
        good.state,
        good.get(),
        good.ready(),
        bool(good.supports_native_join),
        repr(good).startswith("<EagerResult: "),
    ]
    bad.revoke()
    made = EagerResult("x", "no exception", "FAILURE")
    copied = pickle.loads(pickle.dumps(good))
    return [
        found, bad.state, bad.traceback, described(bad.result), raised(bad.get), described(bad.get(propagate=False)),
        raised(made.get), copied.get(), add.apply((1, "x")).state,
    ]  # fmt: skip


@shows("F178")
def ignoring_eagerly_gives_nothing():
    found = by_hand.apply(("SUCCESS", "ignore"))
    return [found.state, found.get()]


@shows("F039", "F183")
def an_ignored_result_is_none_at_once():
    return [silent.delay().get(), add.apply_async((1, 1), ignore_result=True).get(),
            silent.apply_async(ignore_result=False).get(timeout=LIMIT_S)]  # fmt: skip


@shows("F187")
def a_backend_stores_and_tells():
    backend, found = app.backend, []
    backend.store_result("stored-1", 42, "SUCCESS")
    meta = backend.get_task_meta("stored-1")
    found += [
        meta["status"],
        meta["result"],
        meta["traceback"],
        meta["task_id"],
        app.AsyncResult("stored-1").get(timeout=1),
    ]
    backend.mark_as_started("stored-2", pid=7)
    found += [backend.get_state("stored-2"), backend.get_result("stored-2")]
    backend.mark_as_done("stored-2", 3)
    found += [backend.get_state("stored-2"), backend.get_status("stored-2"), backend.get_result("stored-2")]
    backend.mark_as_failure("stored-3", ValueError("no"), traceback="at t")
    found += [
        backend.get_state("stored-3"),
        described(backend.get_result("stored-3")),
        backend.get_traceback("stored-3"),
    ]
    backend.mark_as_revoked("stored-4", "why")
    backend.mark_as_retry("stored-5", ValueError("again"))
    found += [backend.get_state("stored-4"), described(backend.get_result("stored-4")), backend.get_state("stored-5")]
    backend.reload_task_result("stored-1")
    found += [backend.get_state("nobody"), backend.get_result("nobody"), backend.task_result_exists("stored-1")]
    backend.forget("stored-1")
    return [*found, backend.task_result_exists("stored-1"), backend.get_state("stored-1")]


@shows("F182")
def a_success_is_not_overwritten():
    result = add.delay(1, 2)
    value(result)
    app.backend.store_result(result.id, ValueError("late"), "FAILURE")
    return [app.AsyncResult(result.id).state, app.AsyncResult(result.id).result]
