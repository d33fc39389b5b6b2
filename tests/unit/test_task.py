"""Tasks: what a decorated function becomes, and what calling it means."""

from __future__ import annotations

import functools
import inspect
import pickle
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from working import work_off

from localq import LocalQ, Task, current_task
from localq.exceptions import EncodeError, LocalqWarning, MaxRetriesExceededError, Retry
from localq.recovery import EARLY, LATE, LATE_REJECT
from localq.task import signature_check
from localq.testing.clock import FakeClock


@pytest.fixture
def app():
    made = LocalQ("proj", store="memory:")
    yield made
    made.close()


# -- What it is ------------------------------------------------------------------------------------


@pytest.mark.row("F030", "F096")
def test_a_task_is_still_the_function_it_was(app):
    @app.task
    def add(x: int, y: int = 2) -> int:
        """Add two numbers."""
        return x + y

    assert add(1) == 3
    assert add.__doc__ == "Add two numbers."
    assert add.__wrapped__.__annotations__ == {"x": "int", "y": "int", "return": "int"}
    assert add.__module__ == __name__


@pytest.mark.row("F030", "F050")
def test_options_become_attributes(app):
    @app.task(max_retries=7, acks_late=True, throws=(KeyError,))
    def configured(): ...

    assert (configured.max_retries, configured.acks_late, configured.throws) == (7, True, (KeyError,))


@pytest.mark.row("F032")
def test_a_bound_task_gets_itself_first(app):
    @app.task(bind=True)
    def me(self, x):
        return self.name, x

    assert me.apply((1,)).get() == [me.name, 1]
    assert me(1) == (me.name, 1)


@pytest.mark.row("F033")
def test_a_base_class_carries_state_and_handlers(app):
    class Counting(Task):
        abstract = True
        calls = 0

        def on_success(self, retval, task_id, args, kwargs):
            type(self).calls += 1

    @app.task(base=Counting)
    def work(): ...

    work.apply()
    work.apply()
    assert isinstance(work, Counting)
    assert type(work).calls == 2


def test_a_task_class_of_ones_own_can_be_registered(app):
    class Adder(Task):
        name = "proj.Adder"

        def run(self, x, y):
            return x + y

    task = app.register_task(Adder)
    assert task.delay(1, 2).id
    assert app.tasks["proj.Adder"] is task
    assert task.apply((1, 2)).get() == 3


@pytest.mark.row("F060")
def test_a_task_pickles_to_its_name(app):
    @app.task(name=f"{__name__}.pickled")
    def pickled(): ...

    assert pickle.loads(pickle.dumps(pickled)) is pickled


@pytest.mark.row("F039", "F046", "F048")
def test_a_setting_that_comes_after_the_task_counts(app):
    @app.task
    def left_open():
        """Leaves everything to the app."""

    @app.task(acks_late=False, ignore_result=False)
    def decided():
        """Has said what it wants."""

    app.conf.update(task_acks_late=True, task_ignore_result=True, task_reject_on_worker_lost=True)
    assert (left_open.acks_late, left_open.defaults.ignore_result, left_open.lost_mode) == (True, True, LATE_REJECT)
    assert (decided.acks_late, decided.defaults.ignore_result, decided.lost_mode) == (False, False, EARLY)
    app.conf.task_acks_late = False
    assert (left_open.acks_late, left_open.lost_mode) == (False, EARLY)


@pytest.mark.row("F047")
def test_what_fails_is_kept_whatever_acks_on_failure_says(app):
    @app.task(acks_late=True, acks_on_failure=False)
    def fail(x):
        raise ValueError(x)

    result = fail.delay(3)
    work_off(app)
    assert result.state == "FAILURE"
    result.retry()
    assert work_off(app) == [result.id]
    assert result.state == "FAILURE"


def test_an_option_that_is_set_after_the_task_was_made_counts(app):
    @app.task
    def work():
        """Nothing."""

    work.queue, work.acks_late, work.priority = "slow", True, 9
    sent = work.delay()
    app.conf.update(task_acks_late=False)
    assert (sent.queue, work.defaults.priority, work.acks_late, work.lost_mode) == ("slow", 9, True, LATE)


def test_a_handler_that_is_set_after_the_task_was_made_is_called(app):
    heard = []

    @app.task
    def work():
        return 5

    work.on_success = lambda retval, *_: heard.append(retval)
    work.apply()
    assert heard == [5]


def test_an_option_that_looks_like_a_mistake_is_an_error(app):
    with pytest.raises(TypeError, match="did you mean 'max_retries'"):

        @app.task(max_reties=3)
        def task(): ...


def test_an_option_that_is_not_built_yet_gives_a_warning_never_silence(app):
    with pytest.warns(LocalqWarning, match="compression"):

        @app.task(compression="gzip")
        def task(): ...


@pytest.mark.row("F030")
@pytest.mark.parametrize("wrong", [3, "add", None])
def test_only_functions_become_tasks(app, wrong):
    with pytest.raises(TypeError, match="must be a callable"):
        app.task(wrong)


@pytest.mark.row("F030")
def test_a_decorator_takes_one_function_at_most(app):
    with pytest.raises(TypeError, match="0 or 1 positional"):
        app.task(print, print)


# -- Checking arguments ----------------------------------------------------------------------------


@pytest.mark.row("F035")
@pytest.mark.parametrize("args", [(), (1,), (1, 2, 3)])
def test_arguments_that_do_not_fit_are_an_error_at_the_call(app, args):
    @app.task
    def add(x, y): ...

    with pytest.raises(TypeError, match=r"add\(\)"):
        add.delay(*args)
    assert app.storage.counts() == []


@pytest.mark.row("F035")
def test_without_typing_wrong_arguments_fail_in_the_worker(app):
    @app.task(typing=False)
    def add(x, y): ...

    result = add.delay(1)
    work_off(app)
    with pytest.raises(TypeError):
        result.get(timeout=0)


@pytest.mark.row("F035")
def test_strict_typing_of_the_app_is_every_tasks_default():
    app = LocalQ("proj", store="memory:", strict_typing=False, set_as_current=False)

    @app.task
    def add(x, y): ...

    assert add.delay(1).id


@pytest.mark.row("F034")
def test_the_arguments_of_a_decorated_function_are_those_of_the_original(app):
    def decorator(function):
        @functools.wraps(function)
        def inner(*args, **kwargs):
            return function(*args, **kwargs)

        return inner

    @app.task
    @decorator
    def add(x, y):
        return x + y

    with pytest.raises(TypeError):
        add.delay(1)
    assert add.apply((1, 2)).get() == 3


KINDS = inspect.Parameter
ALL_KINDS = [
    KINDS.POSITIONAL_ONLY, KINDS.POSITIONAL_OR_KEYWORD, KINDS.VAR_POSITIONAL, KINDS.KEYWORD_ONLY, KINDS.VAR_KEYWORD,
]  # fmt: skip
kinds = st.lists(st.tuples(st.sampled_from(ALL_KINDS), st.booleans()), max_size=6)


@st.composite
def functions(draw):
    """A function with any legal parameters, and its signature."""
    params, default_seen, used = [], False, set()
    for number, (kind, has_default) in enumerate(sorted(draw(kinds), key=lambda pair: pair[0])):
        if kind in (KINDS.VAR_POSITIONAL, KINDS.VAR_KEYWORD):
            if kind in used:
                continue
            used.add(kind)
            params.append(inspect.Parameter(f"p{number}", kind))
            continue
        if kind is not KINDS.KEYWORD_ONLY:
            has_default = default_seen = default_seen or has_default
        default = 0 if has_default else inspect.Parameter.empty
        params.append(inspect.Parameter(f"p{number}", kind, default=default))
    signature = inspect.Signature(params)
    scope = {}
    exec(f"def function{signature}: pass", scope)
    return scope["function"], signature


@given(functions(), st.lists(st.integers(), max_size=5), st.dictionaries(
    st.sampled_from([f"p{n}" for n in range(6)] + ["other"]), st.integers(), max_size=5))  # fmt: skip
def test_the_check_takes_what_python_takes_and_nothing_else(made, args, kwargs):
    function, _ = made
    check = signature_check(function)
    try:
        function(*args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError):
            check(*args, **kwargs)
    else:
        check(*args, **kwargs)


@given(functions(), st.lists(st.integers(), max_size=5))
def test_the_check_of_a_method_leaves_the_object_out(made, args):
    function, signature = made
    if not signature.parameters or next(iter(signature.parameters.values())).kind >= KINDS.KEYWORD_ONLY:
        return
    check = signature_check(function.__get__(object()))
    try:
        function(object(), *args)
    except TypeError:
        with pytest.raises(TypeError):
            check(*args)
    else:
        check(*args)


def test_what_has_no_readable_signature_is_not_checked():
    assert signature_check(functools.partial(print, 1)) is None
    assert signature_check(max) is None


@pytest.mark.parametrize("name", ["<lambda>", "class", "p0", "not a name"])
def test_any_name_of_a_function_can_be_checked(name):
    def function(p0): ...

    function.__name__ = name
    check = signature_check(function)
    check(1)
    with pytest.raises(TypeError):
        check()


# -- Calling with options --------------------------------------------------------------------------


@pytest.fixture
def noop(app):
    @app.task(name="proj.noop")
    def noop(*args, **kwargs):
        return [list(args), kwargs]

    return noop


@pytest.fixture
def queued(app):
    """Return the message of the last call."""

    def find():
        from localq import clock
        from localq.message import Want

        return app.storage.settle((), Want("reader", ("celery", "mail"), 100, clock.now() + 1e9)).claims[-1].message

    return find


@pytest.mark.row("F094")
@pytest.mark.parametrize("args", ["text", 5, {"a": 1}, {1}])
def test_args_must_be_a_list_or_a_tuple(noop, args):
    with pytest.raises(TypeError, match="list or tuple"):
        noop.apply_async(args)


@pytest.mark.row("F094")
def test_kwargs_must_be_a_mapping(noop):
    with pytest.raises(TypeError, match="mapping"):
        noop.apply_async((), [("a", 1)])


def test_an_option_that_does_not_exist_is_an_error_that_names_the_nearest(noop):
    with pytest.raises(TypeError, match="did you mean 'countdown'"):
        noop.apply_async((), countdwn=3)


def test_an_option_of_celerys_without_a_meaning_yet_warns(noop):
    with pytest.warns(LocalqWarning, match="compression"):
        noop.apply_async((), compression="zstd")


@pytest.mark.row("F066")
def test_a_task_id_of_ones_own_is_kept(noop):
    assert noop.apply_async((), task_id="mine").id == "mine"


def test_an_argument_that_cannot_be_written_is_named(app, noop):
    with pytest.raises(EncodeError, match=r"\(args, kwargs\)\[0\]\[1\] of type object"):
        noop.delay(1, object())
    assert app.storage.counts() == []


@pytest.mark.parametrize("priority", [-1, 256, 1000])
def test_a_priority_out_of_range_is_an_error(noop, priority):
    with pytest.raises(ValueError, match="0 is first, 255 last"):
        noop.apply_async((), priority=priority)


@pytest.mark.row("F101")
def test_the_priority_is_the_calls_or_the_tasks_or_the_settings(app, noop, queued):
    @app.task(priority=7)
    def seven(): ...

    noop.delay()
    assert queued().priority == 5
    seven.delay()
    assert queued().priority == 7
    seven.apply_async(priority=0)
    assert queued().priority == 0
    app.conf.task_default_priority = 9
    noop.delay()
    assert queued().priority == 9


NOW = 1_700_000_000.0


@pytest.mark.parametrize("when", [
    timedelta(seconds=60), datetime.fromtimestamp(NOW + 60, UTC),
    datetime.fromtimestamp(NOW + 60, UTC).replace(tzinfo=None), datetime.fromtimestamp(NOW + 60, UTC).isoformat(),
], ids=repr)  # fmt: skip
def test_a_moment_may_be_said_in_many_ways(app, noop, queued, when):
    with FakeClock(NOW):
        noop.apply_async((), eta=when, expires=when)
        message = queued()
    assert message.visible_at == message.expires_at == NOW + 60


def test_a_naive_time_is_in_the_apps_time_zone(app, noop, queued):
    app.conf.timezone = "Asia/Kolkata"
    noop.apply_async((), eta=datetime(2030, 1, 1, 5, 30))
    assert queued().visible_at == datetime(2030, 1, 1, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("when", [True, [], object()])
def test_what_is_no_time_is_an_error(noop, when):
    with pytest.raises(TypeError, match="is no time"):
        noop.apply_async((), eta=when)


def test_a_countdown_delays_and_nothing_is_claimed_before_it(app, noop):
    with FakeClock() as clock:
        result = noop.apply_async((), countdown=10)
        clock.advance(9.5)
        assert work_off(app) == []
        assert result.state == "PENDING"
        clock.advance(0.5)
        assert work_off(app) == [result.id]


@pytest.mark.row("X13")
def test_a_task_that_expired_does_not_run_and_ends_revoked(app, noop):
    with FakeClock() as clock:
        result = noop.apply_async((), expires=10)
        clock.advance(10.5)
        work_off(app)
        assert result.state == "REVOKED"


@pytest.mark.row("F051", "X13")
def test_a_tasks_own_expiry_is_every_calls_default(app, queued):
    @app.task(expires=30)
    def short(): ...

    with FakeClock(NOW):
        short.delay()
        assert queued().expires_at == NOW + 30


@pytest.mark.row("F083")
def test_headers_reach_the_request(app):
    @app.task(bind=True)
    def read(self):
        return self.request.headers

    assert read.apply(headers={"trace": "abc"}).get() == {"trace": "abc"}


# -- Inside a run ----------------------------------------------------------------------------------


def test_the_request_tells_who_asked_and_how(app):
    @app.task(bind=True, name="proj.look")
    def look(self, x):
        request = self.request
        return [request.id, request.task, list(request.args), request.retries, request.delivery_info["routing_key"],
                request.called_directly, request.is_eager]  # fmt: skip

    result = look.delay(4)
    work_off(app)
    assert result.get(timeout=0) == [result.id, "proj.look", [4], 0, "celery", False, False]


@pytest.mark.row("F062", "F079")
def test_a_direct_call_says_so(app):
    @app.task(bind=True)
    def look(self):
        return self.request.called_directly, self.request.id

    assert look() == (True, None)


def test_the_current_task_is_the_innermost(app):
    @app.task
    def inner():
        return current_task().name

    @app.task
    def outer():
        return [current_task().name, inner(), current_task().name]

    assert outer.apply().get() == [outer.name, inner.name, outer.name]
    assert current_task() is None


@pytest.mark.row("F084")
def test_a_task_sent_by_a_task_knows_its_parent_and_its_root(app):
    seen = {}

    @app.task(bind=True)
    def child(self, depth):
        seen[depth] = (self.request.id, self.request.parent_id, self.request.root_id)
        if depth:
            child.delay(depth - 1)

    top = child.delay(2)
    work_off(app)
    assert seen[2][0] == top.id
    assert seen[1][1:] == (top.id, top.id)
    assert seen[0][1:] == (seen[1][0], top.id)


# -- Retrying --------------------------------------------------------------------------------------


def retrying(app, **options):
    how = options.pop("how", {})

    @app.task(bind=True, name="proj.flaky", **options)
    def flaky(self, x=0):
        raise self.retry(**how)

    return flaky


def test_a_retry_waits_for_its_countdown_under_the_same_id(app):
    with FakeClock() as clock:
        result = retrying(app, how={"countdown": 30}).delay()
        assert work_off(app) == [result.id]
        assert result.state == "RETRY"
        clock.advance(29)
        assert work_off(app) == []
        clock.advance(1)
        assert work_off(app) == [result.id]


@pytest.mark.row("F037")
def test_a_retry_that_says_nothing_waits_for_the_tasks_delay(app):
    with FakeClock() as clock:
        retrying(app, default_retry_delay=7).delay()
        work_off(app)
        assert app.storage.due(1) == [clock.now() + 7]


def test_a_naive_eta_of_a_retry_is_in_the_apps_time_zone(app, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        retrying(app, how={"eta": datetime(2030, 1, 1)}).delay()
        work_off(app)
        assert app.storage.due(1) == [datetime(2030, 1, 1, tzinfo=UTC).timestamp()]
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.row("F036")
def test_retries_end_after_max_retries_with_celerys_error(app):
    result = retrying(app, max_retries=2, how={"countdown": 0}).delay()
    assert work_off(app) == [result.id] * 3
    with pytest.raises(MaxRetriesExceededError, match=r"proj\.flaky"):
        result.get(timeout=0)


@pytest.mark.row("F036")
def test_without_a_limit_retries_go_on(app):
    @app.task(bind=True, max_retries=None)
    def stubborn(self):
        if self.request.retries < 20:
            raise self.retry(countdown=0)
        return self.request.retries

    assert stubborn.apply().get() == 20


def test_a_retry_may_change_the_arguments(app):
    @app.task(bind=True)
    def grow(self, x):
        if x < 3:
            raise self.retry(args=(x + 1,), countdown=0)
        return x

    result = grow.delay(0)
    work_off(app)
    assert result.get(timeout=0) == 3


def test_a_retry_keeps_the_users_headers(app):
    @app.task(bind=True)
    def read(self):
        if not self.request.retries:
            raise self.retry(countdown=0)
        return self.request.headers

    result = read.apply_async(headers={"feed": "rss", "trace": 1})
    work_off(app)
    assert result.get(timeout=0) == {"feed": "rss", "trace": 1}


def test_a_retry_keeps_the_queue_the_priority_and_the_expiry(app, queued):
    with FakeClock():
        retrying(app, how={"countdown": 0}).apply_async(queue="mail", priority=1, expires=99)
        before = __import__("localq").clock.now() + 99
        from working import claims_of

        from localq.executor import Executor

        (claim,) = claims_of(app, "me", queues=("mail",))
        again = Executor(app.conf).execute(app.tasks["proj.flaky"], claim).again
    assert (again.queue, again.priority, again.expires_at, again.retries) == ("mail", 1, before, 1)


def test_a_direct_call_raises_the_cause_instead_of_retrying(app):
    flaky = retrying(app, how={"exc": KeyError("why")})
    with pytest.raises(KeyError, match="why"):
        flaky()
    with pytest.raises(Retry):
        retrying(LocalQ("other", store="memory:", set_as_current=False))()


def test_a_retry_of_a_task_called_by_another_ends_the_other(app):
    """`Retry` without a next attempt must not make the outer task run for ever."""
    runs = []
    inner = retrying(app)

    @app.task
    def outer():
        runs.append(1)
        if len(runs) <= 3:
            inner()

    result = outer.delay()
    work_off(app)
    assert runs == [1]
    assert result.ready()


def test_a_late_retry_option_that_does_not_exist_is_an_error(app):
    result = retrying(app, how={"countdwn": 3}).delay()
    work_off(app)
    with pytest.raises(TypeError, match="did you mean 'countdown'"):
        result.get(timeout=0)


def test_headers_keep_their_types(app):
    @app.task(bind=True)
    def read(self):
        return self.request.headers

    headers = {"when": datetime(2030, 1, 1, tzinfo=UTC), "odd": {"__type__": "set"}}
    result = read.apply_async(headers=headers)
    work_off(app)
    assert result.get(timeout=0) == headers
