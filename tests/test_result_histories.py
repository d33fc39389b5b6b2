"""Whatever happens to a task, a reader sees only legal moves, one end, and every state once and in order."""

from __future__ import annotations

from itertools import count, pairwise

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from localq import LocalQ, clock
from localq.exceptions import Ignore, RetryRefused
from localq.executor import Executor
from localq.message import Claim, Outcome, Want
from localq.recovery import given_back, lost

#: What a reader may see next, by what it sees; OWN stands for every state of the user's.
OWN = "own"
MOVES = {
    "PENDING": {"STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED", OWN},
    "STARTED": {"RETRY", "SUCCESS", "FAILURE", "REVOKED", OWN},
    OWN: {"STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED", OWN},
    "RETRY": {"STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED", OWN},
    "SUCCESS": set(),
    "FAILURE": {"PENDING"},
    "REVOKED": {"PENDING"},
}
ENDS = ("return", "raise", "retry", "ignore")


class TaskHistory(RuleBasedStateMachine):
    """One task, two workers that take it from each other, a caller who looks after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.app = app = LocalQ("proj", store="memory:", set_as_current=False)
        self.numbers = count()
        self.said: list[tuple[str, object]] = []

        @app.task(bind=True, name="proj.play", max_retries=None, default_retry_delay=0)
        def play(task):
            for at in range(self.words):
                self.say(lambda state, meta: task.update_state(state=state, meta=meta), f"STEP{at}")
            if self.end == "raise":
                raise ValueError("the end")
            if self.end == "retry":
                raise task.retry(exc=ValueError("again"))
            if self.end == "ignore":
                raise Ignore
            return "value"

        self.task = play
        self.result = play.apply_async(task_id="t")
        self.owner = app.storage.enlist({}, journal=False)
        self.claim: Claim | None = None
        self.old_claims: list[Claim] = []
        self.state, self.is_ended, self.ended_as = "PENDING", False, None
        self.story: list[str] = []

    def teardown(self) -> None:
        self.owner.close()
        self.app.close()

    def say(self, write, state: str) -> None:
        meta = next(self.numbers)
        write(state, meta)
        self.story.append(state)
        self.state = state

    @precondition(lambda self: self.claim is None)
    @rule()
    def take(self) -> None:
        claims = self.app.storage.settle((), Want(self.owner.name, ("celery",), 1, clock.now())).claims
        assert bool(claims) == (not self.is_ended)
        self.claim = claims[0] if claims else None

    @precondition(lambda self: self.claim is not None)
    @rule(end=st.sampled_from(ENDS), words=st.integers(0, 2), is_told_late=st.booleans())
    def run(self, end: str, words: int, is_told_late: bool) -> None:
        self.end, self.words = end, words
        claim = self.claim
        outcome = Executor(self.app.conf, "w@box").execute(self.task, claim)
        if is_told_late:
            # It is taken from this worker before its end is written, and given to another.
            self.app.storage.settle([given_back(claim)])
            self.take_again()
            assert self.app.storage.settle([outcome]).stale == [outcome]
            return
        assert self.app.storage.settle([outcome]).stale == []
        self.settled(claim, {"return": "SUCCESS", "raise": "FAILURE", "retry": "RETRY", "ignore": self.state}[end])

    def take_again(self) -> None:
        self.old_claims.append(self.claim)
        self.claim = None
        self.take()

    def settled(self, claim: Claim, state: str) -> None:
        self.old_claims.append(claim)
        self.claim = None
        self.state = state
        if self.end == "retry":
            self.story.append(state)
        else:
            self.is_ended, self.ended_as = True, (state, repr(self.result.result))

    @precondition(lambda self: self.claim is not None)
    @rule()
    def die(self) -> None:
        self.end = "raise"
        assert self.app.storage.settle([lost(self.claim, "its process is gone")]).stale == []
        self.settled(self.claim, "FAILURE")

    @rule(number=st.integers(0, 5))
    def say_by_id(self, number: int) -> None:
        outcome = self.app.backend.said("t", f"MINE{number}", next(self.numbers))
        assert self.app.storage.update(0, 0, outcome) == (not self.is_ended)
        if not self.is_ended:
            self.story.append(f"MINE{number}")
            self.state = f"MINE{number}"

    @precondition(lambda self: self.old_claims)
    @rule(data=st.data(), state=st.sampled_from(["SUCCESS", "FAILURE", "LATE"]))
    def an_old_worker_speaks(self, data: st.DataObject, state: str) -> None:
        claim = data.draw(st.sampled_from(self.old_claims))
        late = Outcome(claim.seq, claim.token, "t", state, ended=state != "LATE", ended_at=clock.now())
        if late.ended:
            assert self.app.storage.settle([late]).stale == [late]
        else:
            assert not self.app.storage.update(claim.seq, claim.token, late)

    @rule()
    def retry_by_hand(self) -> None:
        if self.is_ended and self.ended_as[0] in ("FAILURE", "REVOKED"):
            self.result.retry()
            self.state, self.is_ended, self.ended_as, self.story = "PENDING", False, None, []
            return
        try:
            self.app.AsyncResult("t").retry()
        except RetryRefused:
            return
        raise AssertionError("what has not failed was retried")

    @invariant()
    def a_reader_sees_what_was_said_last(self) -> None:
        seen = self.app.AsyncResult("t")
        assert (seen.state, seen.ready(), seen.exists()) == (self.state, self.is_ended, True)
        if self.is_ended:
            assert self.ended_as == (seen.state, repr(seen.result)) == (seen.state, repr(self.result.result))

    @invariant()
    def every_move_is_a_legal_one(self) -> None:
        path = ["PENDING", *self.story, *([self.ended_as[0]] if self.is_ended and self.end != "ignore" else [])]
        assert all(_kind(after) in MOVES[_kind(before)] for before, after in pairwise(path))
        assert self.app.AsyncResult("t").state == path[-1]

    @invariant()
    def a_listener_hears_every_state_in_order_and_then_the_end(self) -> None:
        if not self.is_ended:
            return
        told: list[str] = []
        numbers: list[int] = []

        def tell(meta) -> None:
            told.append(meta["status"])
            if isinstance(meta["result"], int):
                numbers.append(meta["result"])

        self.app.AsyncResult("t").get(timeout=0, propagate=False, on_message=tell)
        assert told == [*self.story, self.ended_as[0]]
        heard = numbers[:-1] if self.end == "ignore" and len(numbers) > 1 else numbers
        assert heard == sorted(set(heard))


def _kind(state: str) -> str:
    return state if state in MOVES else OWN


@pytest.mark.row("F161", "F174", "F182")
def test_no_history_has_an_illegal_move_or_a_second_end():
    chosen = settings(
        max_examples=60, stateful_step_count=25, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(TaskHistory, settings=chosen)
