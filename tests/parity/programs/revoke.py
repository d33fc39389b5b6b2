"""Revoking what has not begun, what is to come, and what runs."""

import os
import time

from celery import Celery, chain, chord, group, signals, uuid
from celery.exceptions import TaskRevokedError
from observing import described, note, noted, outcome, raised, shows, until, value

app = Celery("revoke")


@app.task
def add(*numbers):
    note("ran", *numbers)
    return sum(numbers)


@app.task(bind=True)
def busy(self, path):
    note("began")
    deadline = time.monotonic() + 5
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    return "done"


@app.task(bind=True, max_retries=3)
def again(self):
    raise self.retry(countdown=30)


@signals.task_revoked.connect(weak=False)
def told(sender=None, request=None, **what):
    note("revoked", sender.name, request.id is not None, {key: what[key] for key in what if key != "signal"})


def later(number=1, **options):
    return add.apply_async((number,), countdown=60, **options)


def quiet():
    """Whatever ran has said so by then."""
    value(add.delay(0))
    return [what for what in noted(1, "ran") if what != ["ran", 0]]


@shows("F167", "F300")
def a_task_that_waits_for_its_time_ends_at_once():
    value(add.delay(0))  # Celery's revokes are lost on a worker that is not up yet
    result = later()
    result.revoke(wait=True, timeout=1)
    return [outcome(result), result.ready(), result.successful(), result.failed(), result.traceback]


@shows("F167", "F165")
def its_result_raises():
    result = later()
    result.revoke(wait=True, timeout=1)
    until(result.ready)
    try:
        value(result)
    except TaskRevokedError as exc:
        return [described(exc), raised(result.maybe_throw), type(result.result).__name__, result.state]


@shows("F167", "F300")
def control_takes_one_id_or_several():
    results = [later(), later(), later()]
    app.control.revoke(results[0].id, reply=True, timeout=1)
    app.control.revoke([each.id for each in results[1:]], reply=True, timeout=1)
    return [outcome(each) for each in results]


@shows("F167", "F300")
def what_is_revoked_before_it_is_sent_does_not_run():
    noted(0)
    id = uuid()
    app.control.revoke(id, reply=True, timeout=1)
    result = add.apply_async((7,), task_id=id)
    return [outcome(result), quiet()]


@shows("F167", "F331")
def receivers_are_told():
    noted(0)
    id = uuid()
    app.control.revoke(id, reply=True, timeout=1)
    outcome(add.apply_async((7,), task_id=id))
    return noted(1, "revoked")


@shows("F167", "F300")
def what_has_ended_stays_as_it_is():
    result = add.delay(1, 2)
    value(result)
    result.revoke(wait=True, timeout=1)
    return outcome(result)


@shows("F167", "F300")
def what_runs_goes_on():
    noted(0)
    path = os.path.abspath(uuid())
    result = busy.delay(path)
    noted(1, "began")
    result.revoke(wait=True, timeout=1)
    open(path, "w").close()
    return outcome(result)


@shows("F167", "F300")
def what_waits_for_its_next_try_does_not_try_again():
    result = again.delay()
    until(lambda: result.state == "RETRY")
    result.revoke(wait=True, timeout=1)
    return outcome(result)


@shows("F167")
def a_chain_ends_at_a_revoked_step():
    noted(0)
    last = chain(add.si(1).set(countdown=60), add.s(10)).apply_async()
    last.parent.revoke(wait=True, timeout=1)
    until(last.parent.ready)
    return [raised(last.get, timeout=2), last.parent.state, quiet()]


@shows("F167", "F246")
def a_chord_whose_member_was_revoked_has_failed():
    noted(0)
    id = uuid()
    app.control.revoke(id, reply=True, timeout=1)
    body = chord([add.si(1), add.si(2).set(task_id=id)])(add.si(100))
    until(body.ready)
    return [body.state, *described(body.result), ["ran", 100] in quiet()]


@shows("F167", "F175")
def a_group_revokes_every_member():
    result = group(add.si(number).set(countdown=60) for number in range(3)).apply_async()
    result.revoke(wait=True, timeout=1)
    return [outcome(each) for each in result]


@shows("F167", "F264", "F301")
def what_has_a_stamp_does_not_run():
    noted(0)
    add.delay(0).revoke_by_stamped_headers({"lot": ["a", "b"]}, wait=True, timeout=1)
    app.control.revoke_by_stamped_headers({"user": 3}, reply=True, timeout=1)
    sent = [
        add.apply_async((1,), stamped_headers=["lot"], lot="a"),
        add.apply_async((2,), stamped_headers=["lot"], lot=["x", "b"]),
        add.apply_async((3,), stamped_headers=["user"], user=3),
        add.apply_async((4,), stamped_headers=["lot"], lot="c"),
        add.apply_async((5,), stamped_headers=["user"], user=4),
    ]
    return [outcome(each) for each in sent]


@shows("F167", "F300")
def revoked_twice_it_is_revoked():
    result = later()
    result.revoke(wait=True, timeout=1)
    until(result.ready)
    result.revoke(wait=True, timeout=1)
    return outcome(result)
