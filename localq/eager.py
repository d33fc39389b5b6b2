"""Runs calls and workflows here and now, with no store: the same messages, the same executor.

A call is encoded, decoded and run exactly as a worker would run it, so that a test that passes here does
not lie. Retries follow at once; what waits for others runs in the order of its plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localq import clock, states
from localq.exceptions import ChordError
from localq.executor import Executor
from localq.message import Claim, Message, Outcome, Record, released
from localq.plan import RESULT, RESULTS, Plan, Step
from localq.publisher import Publisher
from localq.result import EagerResult
from localq.resultstore import keep
from localq.serialization import safe_repr, value_of
from localq.signatures import as_signature


class Eager:
    """Runs one app's tasks here and now.

    Args:
        conf: the app's settings.
        tasks: the app's tasks by name.
        backend: whose store takes the results of tasks that ask for it.
    """

    def __init__(self, conf: Any, tasks: Mapping[str, Any], backend: Any) -> None:
        self._conf, self._tasks, self._backend = conf, tasks, backend

    def call(
        self, publisher: Publisher, task: Any, args: Any, kwargs: Any, options: Mapping[str, Any]
    ) -> EagerResult[Any]:
        """Run one call; `throw` among the options raises its exception here."""
        options = dict(options)
        throw = options.pop("throw", None)
        links = options.get("link")
        result = self._run(task, publisher.message(task.name, args, kwargs, task.defaults, options), ())
        if result.successful():
            for link in [links] if isinstance(links, dict) else links or ():
                self.workflow(publisher, Plan(as_signature(link)._bound((result.result,))))
        if self._conf.task_eager_propagates if throw is None else throw:
            result.maybe_throw()
        return result

    def workflow(self, publisher: Publisher, plan: Plan) -> dict[str, EagerResult[Any]]:
        """Run the steps of a plan in their order; return the results by id."""
        done: dict[str, EagerResult[Any]] = {}
        groups: dict[str, list[EagerResult[Any]]] = {}
        priorities: dict[str, int] = {}
        unrun: set[str] = set()
        for step in plan.steps:
            before = _before(step, done, groups)
            failed = next((each for each in before if each.state in states.PROPAGATE_STATES), None)
            if failed is not None:
                exc = failed.result if failed.id in unrun else _passed_on(step, failed)
                result: EagerResult[Any] = EagerResult(step.id, exc, "FAILURE", failed.traceback)
                unrun.add(step.id)
            elif not all(each.successful() for each in before):
                # Behind a task that was ignored nothing runs, here as in a worker.
                result = EagerResult(step.id, None, states.PENDING)
            else:
                task = self._tasks[step.sig.task]
                message = released(publisher.message_of(step, task, priorities.get(step.after or "")), clock.now())
                for id in filter(None, (step.id, step.group_id)):
                    priorities.setdefault(id, message.priority)
                result = self._run(task, message, _fed(step, before))
            done[step.id] = result
            if step.group_id is not None:
                groups.setdefault(step.group_id, []).append(result)
        return done

    def _run(self, task: Any, message: Message, fed: tuple[Any, ...]) -> EagerResult[Any]:
        executor = Executor(self._conf, message.origin, is_eager=True)
        while True:
            outcome = executor.execute(task, Claim(0, 1, 0, message), fed)
            if outcome.state != states.RETRY or outcome.again is None:
                break
            message, fed = outcome.again, ()
        if outcome.again is not None:  # rejected: here it would come again for ever
            outcome = outcome._replace(state=states.REJECTED, again=None)
        is_ignored = message.ignore_result and outcome.state == states.SUCCESS  # here it is at hand all the same
        if task.store_eager_result and not is_ignored and outcome.state not in (states.IGNORED, states.REJECTED):
            keep(self._backend.storage, message, outcome)
        return self._result(message, outcome)

    def _result(self, message: Message, outcome: Outcome) -> EagerResult[Any]:
        record = Record(
            message.id, message.name, outcome.state or states.IGNORED, states.ENDED, outcome.result,
            outcome.content_type, outcome.checksum, outcome.traceback, None, None, outcome.ended_at,
            message.retries, message.queue, None, None, message.ignore_result, None,
        )  # fmt: skip
        value = value_of(record, self._conf, is_here=True)
        return EagerResult(message.id, value, record.state, outcome.traceback, message.name)


def _before(
    step: Step, done: Mapping[str, EagerResult[Any]], groups: Mapping[str, list[EagerResult[Any]]]
) -> list[EagerResult[Any]]:
    """Return the results that a step waits for."""
    if step.after is None:
        return []
    return [done[step.after]] if step.after in done else groups.get(step.after, [])


def _passed_on(step: Step, failed: EagerResult[Any]) -> Any:
    """Return the exception of a step whose predecessor failed."""
    if step.feed == RESULTS or step.after != failed.id:
        return ChordError(f"Dependency {failed.id} raised {safe_repr(failed.result)}")
    return failed.result


def _fed(step: Step, before: list[EagerResult[Any]]) -> tuple[Any, ...]:
    values = [each.result for each in before]
    if step.feed == RESULT:
        return (values[0],)
    return (values,) if step.feed == RESULTS else ()
