"""Runs calls and workflows here and now, with no store: the same messages, the same executor.

A call is encoded, decoded and run exactly as a worker would run it, so that a test that passes here does
not lie. Retries follow at once; what waits for others runs in the order of its plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from localq import clock, states
from localq.errbacks import told_of_lost
from localq.exceptions import ChordError
from localq.executor import Executor
from localq.message import ENTERS, SHOWS_CAUSE, WAITS_ANYWAY, WAITS_IF_BAD, Claim, Message, Outcome, Record, released
from localq.plan import ENDS, ERRAND, RESULT, RESULTS, Plan, Step
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
        flow = Flow()
        for step in plan.steps:
            if not step.leads & WAITS_IF_BAD:
                flow.take(step, partial(self._step, publisher, step, flow))
            elif flow.has_failed_before(step):
                self._tell_errbacks(step, flow)
        return flow.done

    def _tell_errbacks(self, step: Step, flow: Flow) -> None:
        known = step.sig.kwargs
        lost = flow.done[known["lost"]]
        told_of_lost(self._tasks[ERRAND].app, lost.name or "", known["id"], known["errbacks"], lost.result, True)

    def _step(self, publisher: Publisher, step: Step, flow: Flow, fed: tuple[Any, ...]) -> EagerResult[Any]:
        task = self._tasks[step.sig.task]
        message = publisher.message_of(step, task, flow.priorities.get(step.after or ""))
        for id in filter(None, (step.id, step.group_id)):
            flow.priorities.setdefault(id, message.priority)
        return self._run(task, released(message, clock.now()), fed)

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


class Flow:
    """A workflow that runs here and now: what has ended of it, and what that means to the next step."""

    def __init__(self) -> None:
        self.done: dict[str, EagerResult[Any]] = {}
        self.priorities: dict[str, int] = {}
        self._groups: dict[str, dict[int, EagerResult[Any]]] = {}
        # Of those that never ran: whose failure it was, and how many of the groups that they are in are lost whole.
        self._culprits: dict[str, tuple[EagerResult[Any], int]] = {}

    def take(self, step: Step, run: Callable[[tuple[Any, ...]], EagerResult[Any]]) -> None:
        """Run a step, or let it fail with those before it."""
        before = self._before(step)
        failed = next((each for each in before if each.state in states.PROPAGATE_STATES), None)
        if step.leads & WAITS_ANYWAY:
            result = run(_fed(step, before))
        elif failed is not None:
            result = EagerResult(step.id, self._passed_on(step, failed), "FAILURE", failed.traceback)
        elif not all(each.successful() for each in before):
            # Behind a task that was ignored nothing runs, here as in a worker.
            result = EagerResult(step.id, None, states.PENDING)
        else:
            result = run(_fed(step, before))
        self.done[step.id] = result
        if step.group_id is not None:
            self._groups.setdefault(step.group_id, {})[step.position or 0] = result

    def has_failed_before(self, step: Step) -> bool:
        """Whether one of those that a step waits for has failed, and not the whole group with what was before it."""
        failed = (each for each in self._before(step) if each.state in states.PROPAGATE_STATES)
        return any(not self._culprits.get(each.id, (each, 0))[1] for each in failed)

    def _passed_on(self, step: Step, failed: EagerResult[Any]) -> Any:
        """Return the exception of a step behind one that failed, for which somebody before that may be to blame."""
        culprit, lost = self._culprits.get(failed.id, (failed, 0))
        is_alone = step.after == failed.id
        self._culprits[step.id] = culprit, (lost if is_alone else max(lost - 1, 0)) + step.leads // ENTERS
        if is_alone or lost or step.leads & SHOWS_CAUSE:
            return failed.result
        return ChordError(f"Dependency {culprit.id} raised {safe_repr(culprit.result)}")

    def _before(self, step: Step) -> list[EagerResult[Any]]:
        """Return the results that a step waits for."""
        if step.after is None:
            return []
        if step.after in self.done:
            return [self.done[step.after]]
        return [result for _, result in sorted(self._groups.get(step.after, {}).items())]


def _fed(step: Step, before: list[EagerResult[Any]]) -> tuple[Any, ...]:
    if step.feed == ENDS:
        return ([(each.state, each.result) for each in before],)
    values = [each.result for each in before]
    if step.feed == RESULT:
        return (values[0],)
    return (values,) if step.feed == RESULTS else ()
