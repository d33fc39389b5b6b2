"""Every exception of Celery's by its name, and what it says."""

from __future__ import annotations

import copy
import pickle
from datetime import datetime

import pytest

from localq import exceptions
from localq.exceptions import MaxRetriesExceededError, Reject, Retry
from localq.recovery import exit_reason, lost
from localq.testing.contract import words

#: Celery's names, and those above each.
TREE = {
    "CeleryError": ["Exception"], "ImproperlyConfigured": ["CeleryError"], "SecurityError": ["CeleryError"],
    "TaskPredicate": ["CeleryError"], "Ignore": ["TaskPredicate"], "Reject": ["TaskPredicate"],
    "Retry": ["TaskPredicate"], "RetryTaskError": ["TaskPredicate"], "TaskError": ["CeleryError"],
    "QueueNotFound": ["KeyError", "TaskError"], "IncompleteStream": ["TaskError"],
    "NotRegistered": ["KeyError", "TaskError"], "AlreadyRegistered": ["TaskError"], "TimeoutError": ["TaskError"],
    "MaxRetriesExceededError": ["TaskError"], "TaskRevokedError": ["TaskError"], "InvalidTaskError": ["TaskError"],
    "ChordError": ["TaskError"], "BackendError": ["Exception"], "BackendGetMetaError": ["BackendError"],
    "BackendStoreError": ["BackendError"], "OperationalError": ["Exception"], "SoftTimeLimitExceeded": ["Exception"],
    "TimeLimitExceeded": ["Exception"], "WorkerLostError": ["Exception"], "Terminated": ["Exception"],
    "CPendingDeprecationWarning": ["PendingDeprecationWarning"], "CDeprecationWarning": ["DeprecationWarning"],
    "CeleryWarning": ["UserWarning"], "AlwaysEagerIgnored": ["CeleryWarning"],
    "DuplicateNodenameWarning": ["CeleryWarning"], "DuplicateTaskNameWarning": ["CeleryWarning"],
    "FixupWarning": ["CeleryWarning"], "NotConfigured": ["CeleryWarning"], "SecurityWarning": ["CeleryWarning"],
    "WorkerShutdown": ["SystemExit"], "WorkerTerminate": ["SystemExit"], "SystemTerminate": ["SystemExit"],
}  # fmt: skip


@pytest.mark.row("F191")
@pytest.mark.parametrize("name", TREE)
def test_each_of_celerys_exceptions_is_here_and_where_it_was(name):
    kind = getattr(exceptions, name)
    above = [getattr(exceptions, each, None) or getattr(__import__("builtins"), each) for each in TREE[name]]
    assert all(issubclass(kind, each) for each in above)
    assert kind.__doc__


@pytest.mark.row("F191")
def test_old_names_are_the_same_classes():
    assert exceptions.RetryTaskError is Retry
    assert exceptions.SystemTerminate is exceptions.WorkerTerminate


@pytest.mark.row("F191")
def test_a_command_ends_with_words_and_an_exit_code():
    kind = exceptions.CeleryCommandException
    exc = kind("it is not there", 66)
    assert (exc.message, exc.exit_code, kind.__mro__[1].__name__) == ("it is not there", 66, "ClickException")
    assert exceptions.CeleryCommandException is kind
    with pytest.raises(AttributeError, match="NoSuchError"):
        exceptions.NoSuchError


@pytest.mark.row("F191")
def test_what_backends_raised_knows_the_task():
    assert repr(exceptions.BackendGetMetaError("no", task_id="7")) == "BackendGetMetaError('no') task_id:7"
    found = exceptions.BackendStoreError("no", state="SUCCESS", task_id="7")
    assert repr(found) == "BackendStoreError('no') state:SUCCESS task_id:7"


@pytest.mark.row("F191")
def test_an_exception_is_raised_once_more_with_a_traceback_or_without():
    try:
        raise ValueError("why")
    except ValueError as exc:
        first, traceback = exc, exc.__traceback__
    with pytest.raises(ValueError, match="why") as again:
        exceptions.reraise(ValueError, first, traceback)
    assert again.value is first
    with pytest.raises(ValueError, match="why") as bare:
        exceptions.reraise(ValueError, first)
    assert bare.value.__traceback__.tb_next.tb_next is None


@pytest.mark.row("F190")
@pytest.mark.parametrize(("made", "when", "text"), [
    (Retry(when=5), "in 5s", "Retry in 5s"), (Retry(when=0.5), "in 0.5s", "Retry in 0.5s"),
    (Retry(when=datetime(2100, 1, 1)), "at 2100-01-01 00:00:00", "Retry at 2100-01-01 00:00:00"),
    (Retry("again", when=5), "in 5s", "again"),
    (Retry(exc=KeyError("k"), when=5), "in 5s", "Retry in 5s: KeyError('k')"),
    (Retry(exc="words", when=5), "in 5s", "Retry in 5s: words"), (Retry(), "at None", "Retry at None"),
], ids=repr)  # fmt: skip
def test_a_retry_says_when_and_why(made, when, text):
    assert (made.humanize(), str(made)) == (when, text)


@pytest.mark.row("F190")
def test_a_retry_can_be_sent_to_another_process():
    made = Retry("again", KeyError("k"), 5, is_eager=True, sig=object())
    for found in (pickle.loads(pickle.dumps(made)), copy.copy(made)):
        assert (found.message, repr(found.exc), found.excs, found.when) == (
            "again",
            "KeyError('k')",
            "KeyError('k')",
            5,
        )
    assert pickle.loads(pickle.dumps(Retry(exc="words"))).excs == "words"


def test_a_retry_can_be_made_for_an_exception_without_words():
    class Hostile(Exception):
        def __repr__(self):
            raise RuntimeError

    assert str(Retry(exc=Hostile(), when=1)) == "Retry in 1s: <Hostile without words>"


@pytest.mark.row("F189")
def test_a_reject_says_why_and_whether_it_goes_back():
    made = pickle.loads(pickle.dumps(Reject("no", requeue=True)))
    assert (made.reason, made.requeue, repr(made)) == ("no", True, "reject requeue=True: no")
    assert Reject().requeue is False


@pytest.mark.row("F151")
def test_too_many_retries_know_the_arguments():
    exc = MaxRetriesExceededError("words", task_args=[1], task_kwargs={"x": 2})
    assert (str(exc), exc.task_args, exc.task_kwargs) == ("words", [1], {"x": 2})


@pytest.mark.row("F193")
@pytest.mark.parametrize(("status", "text"), [
    (-9, "signal 9 (SIGKILL"), (-15, "signal 15 (SIGTERM"), (1, "exitcode 1"), (70, "exitcode 70"),
    (-99, "signal 99 (unknown"),
])  # fmt: skip
def test_a_lost_process_is_said_in_celerys_words(status, text):
    claim = words.Claim(1, 1, 0, words.Message("the-id", "proj.add", b"[[],{}]"))
    outcome = lost(claim, f"Worker exited prematurely: {exit_reason(status)}")
    assert f"Worker exited prematurely: {text}".encode() in outcome.result
