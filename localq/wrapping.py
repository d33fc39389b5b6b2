"""What stands around a task's `run` because its options want it: models made of arguments, retries by themselves.

    run -> retries (autoretry_for) -> models (pydantic=True) -> the function as it was written

Derived when a task is bound and when its options change, so that a call pays nothing for options it does not use. Must
not know what a retry or a model is.
"""

from __future__ import annotations

from typing import Any

from localq.retries import retrying


def wrap(task: Any) -> None:
    """Have `run` do what the task's options want done around it."""
    own = task.__dict__
    if "_wrapped_run" in own and own.get("run") is not own["_wrapped_run"]:
        return  # another was put in its place
    unwrap(task)
    run = plain = task.run
    if task.pydantic:
        # Only now: it imports pydantic, and inspect.
        from localq.models import Models

        models = Models(task, plain)
        own["_dumped"], run = models.dumped, models.validating()
    if task.autoretry_for:
        own["_orig_run"], run = run, retrying(task, run)
    if run is not plain:
        own.update(_plain_run=plain, _wrapped_run=run, run=run)


def unwrap(task: Any) -> None:
    """Have the plain `run` again, which an annotation may be about to wrap."""
    own = task.__dict__
    plain, wrapped = own.pop("_plain_run", None), own.pop("_wrapped_run", None)
    for name in ("_orig_run", "_dumped"):
        own.pop(name, None)
    if wrapped is None or own.get("run") is not wrapped:
        return
    del own["run"]
    if getattr(plain, "__func__", plain) is not type(task).run:
        own["run"] = plain  # not the class's
