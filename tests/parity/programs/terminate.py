"""Stopping the processes of tasks that run."""

import time

from celery import Celery, signals
from observing import note, noted, outcome, shows, until, value

app = Celery("terminate")


@app.task
def add(*numbers):
    return sum(numbers)


@app.task
def busy():
    note("began")
    time.sleep(30)


@app.task(acks_late=True, reject_on_worker_lost=True)
def kept():
    note("began")
    time.sleep(30)


@signals.task_revoked.connect(weak=False)
def told(sender=None, request=None, **what):
    seen = {key: what[key] for key in what if key != "signal"}
    note("revoked", sender.name, request.id is not None, {**seen, "signum": what["signum"] and int(what["signum"])})


def begun(task, **options):
    value(add.delay())
    noted(0)
    result = task.apply_async(**options)
    noted(1, "began")
    return result


@shows("F167", "F300")
def what_runs_is_stopped():
    result = begun(busy)
    result.revoke(terminate=True, wait=True, timeout=1)
    return outcome(result)


@shows("F167", "F302")
def by_whatever_signal():
    found = []
    for name in ("SIGKILL", "KILL", "TERM"):
        result = begun(busy)
        app.control.terminate(result.id, signal=name, reply=True, timeout=1)
        found.append(outcome(result))
    return found


@shows("F167", "F331")
def receivers_are_told_of_the_signal():
    result = begun(busy)
    result.revoke(terminate=True, signal="KILL", wait=True, timeout=1)
    outcome(result)
    return noted(1, "revoked")


@shows("F167", "F300")
def it_does_not_run_again_although_its_process_was_lost():
    result = begun(kept)
    result.revoke(terminate=True, wait=True, timeout=1)
    return [outcome(result), until(lambda: noted(1, "began"), 1)]


@shows("F167", "F264", "F301")
def what_runs_and_has_a_stamp_is_stopped():
    result = begun(busy, stamped_headers=["lot"], lot="a")
    result.revoke_by_stamped_headers({"lot": "a"}, terminate=True, wait=True, timeout=1)
    return outcome(result)


@shows("F167", "F300")
def what_has_not_begun_is_revoked():
    result = add.apply_async((1,), countdown=60)
    result.revoke(terminate=True, wait=True, timeout=1)
    return outcome(result)
