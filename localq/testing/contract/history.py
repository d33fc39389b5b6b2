"""The contract: random histories of a storage, beside a model; both must always say the same.

The model keeps everything in one dict and sorts when it is asked, so that it is plainly right. Must not
be fast, and must not share code with any storage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test

from localq.exceptions import DuplicateTaskId
from localq.message import LEADS_BY_GROUP, LEADS_BY_ID, Claim, Message, Outcome, Want
from localq.revocation import rule_of_id
from localq.states import ENDED, FAILURE, HELD, IGNORED, PENDING, READY, RETRY, REVOKED, SUCCESS, WAITING
from localq.storage.base import Old, Storage
from localq.storage.news import KEPT, NEWS, news_of
from localq.testing.clock import FakeClock
from localq.testing.contract.words import by_hand, revoked

QUEUES = ("celery", "mail")
#: How an attempt may end: state, whether it ends the message, whether it runs again, whether it is charged.
ENDS = {
    "success": (SUCCESS, True, False, 0),
    "ignored result": (IGNORED, True, False, 0),
    "failure": (FAILURE, True, False, 0),
    "revoked": (REVOKED, True, False, 0),
    "ignore": (None, True, False, 0),
    "retry": (RETRY, False, True, 0),
    "given back": (None, False, False, 0),
    "crashed": (None, False, False, 1),
    "given up": (FAILURE, True, False, 1),
}


@dataclass
class Item:
    """A message as the model keeps it."""

    message: Message
    seq: int
    place: str = READY
    hold: str | None = None
    #: Where it begins is the storage's choice; from there it rises by one a claim.
    token: int | None = None
    redeliveries: int = 0
    state: str = PENDING
    result: bytes | None = None
    missing: int = 0
    ended_at: float = 0.0
    #: States that were no end, in order.
    told: tuple[str, ...] = ()
    #: It was revoked while an owner had it.
    is_marked: bool = False

    def end_revoked(self, now: float) -> None:
        self.place, self.hold, self.ended_at = ENDED, None, now
        self.state, self.result = REVOKED, b"revoked"

    def open(self, now: float) -> None:
        waits = self.message.visible_at is not None and self.message.visible_at > now
        self.place, self.hold = (WAITING if waits else READY), None


class Model:
    """What a storage should do, said as plainly as possible."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        #: Ids that must not run once they are claimed.
        self.rules: set[str] = set()
        self._seq = count(1)

    def put(self, messages: list[Message], now: float) -> None:
        for message in messages:
            item = self.items[message.id] = Item(message, next(self._seq), missing=message.waits_for)
            if item.missing:
                item.place, item.hold = HELD, f"after:{message.after}"
            else:
                item.open(now)

    def claim(self, want: Want, claims: list[Claim]) -> list[tuple[str, int, int, bool]]:
        for item in self.items.values():
            if item.place == WAITING and (item.message.visible_at or 0) <= want.now:
                item.open(want.now)
        ready = [item for item in self.items.values() if item.place == READY and item.message.queue in want.queues]
        ready.sort(key=lambda item: (item.message.priority, item.seq))
        begun = {claim.message.id: claim.token for claim in claims}
        expected = []
        for item in ready[: want.limit]:
            token = begun.get(item.message.id, 0) if item.token is None else item.token + 1
            item.place, item.hold, item.token = HELD, f"owner:{want.owner}", token
            expected.append((item.message.id, token, item.redeliveries, item.message.id in self.rules))
        return expected

    def settle(self, outcome: Outcome, now: float) -> bool:
        if not self.is_claimed(outcome.id, outcome.token):
            return False
        item = self.items[outcome.id]
        if outcome.state is not None:
            item.state, item.result = outcome.state, outcome.result
        item.redeliveries += outcome.charged
        if item.is_marked and not outcome.ended:
            item.end_revoked(now)
            self.fail(item, b"revoked", b'"group"')
            return True
        item.message = outcome.again or item.message
        if not outcome.ended:
            item.told += (RETRY,) if outcome.again else ()
            item.open(now)
            return True
        item.place, item.hold, item.ended_at = ENDED, None, now
        if outcome.state in (SUCCESS, IGNORED):
            self.progress(item, now)
        elif outcome.state in (FAILURE, REVOKED):
            self.fail(item, outcome.result, outcome.group_failure)
        return True

    def run_again(self, message: Message, now: float) -> bool:
        item = self.items.get(message.id)
        if item is None or item.place != ENDED or item.state not in (FAILURE, REVOKED):
            return False
        item.message, item.state, item.result, item.redeliveries = message, PENDING, None, 0
        item.told += (PENDING,)
        item.is_marked = False
        item.open(now)
        return True

    def revoke(self, id: str, now: float) -> bool:
        item = self.items.get(id)
        if item is None or item.place == ENDED:
            return False
        if (item.hold or "").startswith("owner:"):
            item.is_marked = True
            return False
        item.end_revoked(now)
        self.fail(item, b"revoked", b'"group"')
        return True

    def failed(self) -> list[str]:
        items = self.items.values()
        return [item.message.id for item in items if item.place == ENDED and item.state == FAILURE]

    def is_claimed(self, id: str, token: int) -> bool:
        item = self.items.get(id)
        return item is not None and item.token == token and (item.hold or "").startswith("owner:")

    def behind(self, message: Message, leads: int, key: str | None) -> list[Item]:
        return [item for item in self.items.values() if item.hold == f"after:{key}"] if message.leads & leads else []

    def progress(self, item: Item, now: float) -> None:
        message = item.message
        behind = self.behind(message, LEADS_BY_ID, message.id)
        for each in behind + self.behind(message, LEADS_BY_GROUP, message.group_id):
            each.missing -= 1
            if not each.missing:
                after = each.message.visible_at
                if after is not None and after < 0:
                    each.message = each.message._replace(visible_at=now + abs(after))
                each.open(now)

    def fail(self, item: Item, result: bytes | None, group_result: bytes | None) -> None:
        message = item.message
        for leads, key, data in ((LEADS_BY_ID, message.id, result), (LEADS_BY_GROUP, message.group_id, group_result)):
            for each in self.behind(message, leads, key):
                each.place, each.hold, each.state, each.result = ENDED, None, FAILURE, data
                each.ended_at = item.ended_at
                self.fail(each, data, group_result)

    def forget_old(self, ended_before: float, failed_before: float) -> int:
        """Drop what has had its time, but what feeds somebody who has not ended."""
        used = {item.message.after for item in self.items.values() if item.place != ENDED}
        old = [
            id
            for id, item in self.items.items()
            if item.place == ENDED
            and item.ended_at < (failed_before if item.state in (FAILURE, REVOKED) else ended_before)
            and not used & {id, item.message.group_id}
        ]
        for id in old:
            del self.items[id]
        return len(old)


class History(RuleBasedStateMachine):
    """Two owners, two queues, one clock, and whatever hypothesis thinks of."""

    claims: Any = Bundle("claims")

    def __init__(self, storage: Storage) -> None:
        super().__init__()
        self.clock = FakeClock().__enter__()
        self.storage, self.model = storage, Model()
        self.owners = [storage.enlist({}, journal=False) for _ in range(2)]
        self.numbers = count()

    def teardown(self) -> None:
        for owner in self.owners:
            owner.close()
        self.storage.close()
        self.clock.__exit__(None, None, None)

    def message(self, priority: int = 5, queue: str = "celery", delay: float | None = None, **columns: Any) -> Message:
        id = f"m{next(self.numbers)}"
        visible_at = None if delay is None else self.clock.now() + delay
        return Message(id, "t", id.encode(), queue, priority, visible_at=visible_at, **columns)

    def put(self, messages: list[Message]) -> None:
        self.storage.put(messages)
        self.model.put(messages, self.clock.now())

    specs = st.tuples(
        st.sampled_from([0, 5, 9]), st.sampled_from(QUEUES), st.sampled_from([None, None, -1.0, 5.0, 60.0])
    )

    @rule(specs=st.lists(specs, min_size=1, max_size=4))
    def put_some(self, specs: list[tuple[int, str, float | None]]) -> None:
        self.put([self.message(*spec) for spec in specs])

    @rule(length=st.integers(2, 4), delay=st.sampled_from([None, 5.0]), is_counted_from_the_end=st.booleans())
    def put_chain(self, length: int, delay: float | None, is_counted_from_the_end: bool) -> None:
        steps = [self.message(leads=LEADS_BY_ID)]
        for _ in range(length - 1):
            step = self.message(delay=delay, after=steps[-1].id, waits_for=1, leads=LEADS_BY_ID)
            steps.append(step._replace(visible_at=-delay) if is_counted_from_the_end and delay else step)
        self.put(steps)

    @rule(size=st.integers(1, 3))
    def put_chord(self, size: int) -> None:
        """A chord whose first member is the second step of a chain, and whose body has a follower."""
        group: dict[str, Any] = {"group_id": f"g{next(self.numbers)}", "leads": LEADS_BY_GROUP}
        before = self.message(leads=LEADS_BY_ID)
        members = [self.message(after=before.id, waits_for=1, position=0, **group)]
        members += [self.message(position=position, **group) for position in range(1, size)]
        body = self.message(after=group["group_id"], waits_for=size, leads=LEADS_BY_ID)
        self.put([before, *members, body, self.message(after=body.id, waits_for=1)])

    @rule(data=st.data(), is_same=st.booleans())
    def put_again(self, data: st.DataObject, is_same: bool) -> None:
        if not self.model.items:
            return
        known = self.model.items[data.draw(st.sampled_from(sorted(self.model.items)))].message
        if is_same:
            self.storage.put([known._replace(queue="elsewhere")])
            return
        try:
            self.storage.put([self.message(), known._replace(body=b"another")])
        except DuplicateTaskId:
            return
        raise AssertionError("another message of a known id was not refused")

    @rule(target=claims, owner=st.integers(0, 1), limit=st.integers(0, 4), queues=st.sets(st.sampled_from(QUEUES)))
    def claim(self, owner: int, limit: int, queues: set[str]) -> Any:
        return multiple(*self.turn((), self.want(owner, limit, tuple(sorted(queues)))))

    @rule(target=claims, claim=claims, end=st.sampled_from(sorted(ENDS)), delay=st.sampled_from([None, 5.0]),
          limit=st.integers(0, 2))  # fmt: skip
    def settle(self, claim: Claim, end: str, delay: float | None, limit: int) -> Any:
        state, ended, is_again, charged = ENDS[end]
        asked = claim.message
        visible_at = None if delay is None else self.clock.now() + delay
        outcome = Outcome(
            claim.seq, claim.token, asked.id, state, ended,
            again=asked._replace(retries=asked.retries + 1, visible_at=visible_at) if is_again else None,
            charged=charged, result=f"{end} {asked.id}".encode() if state else None, group_failure=b'"group"',
            group_id=asked.group_id, leads=asked.leads, reply_to=asked.reply_to, ended_at=self.clock.now(),
        )  # fmt: skip
        return multiple(*self.turn((outcome,), self.want(0, limit, QUEUES)))

    @rule(claim=claims)
    def update(self, claim: Claim) -> None:
        known = self.model.is_claimed(claim.message.id, claim.token)
        news = Outcome(claim.seq, claim.token, claim.message.id, "PROGRESS", result=b"50")
        assert self.storage.update(claim.seq, claim.token, news) == known
        if known:
            item = self.model.items[claim.message.id]
            item.state, item.result = "PROGRESS", b"50"
            item.told += ("PROGRESS",)

    @rule(data=st.data(), delay=st.sampled_from([None, 5.0]))
    def run_again_by_hand(self, data: st.DataObject, delay: float | None) -> None:
        if not self.model.items:
            return
        # One of the failed if there are any; else whatever there is.
        candidates = self.model.failed() or sorted(self.model.items)
        known = self.model.items[data.draw(st.sampled_from(candidates))].message
        visible_at = None if delay is None else self.clock.now() + delay
        message = known._replace(retries=0, visible_at=visible_at, waits_for=0)
        expected = self.model.run_again(message, self.clock.now())
        assert self.storage.update(0, 0, by_hand(message)) == expected

    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from([*sorted(self.model.items), "nobody"]))
        end = revoked(id, ended_at=self.clock.now())
        assert self.storage.update(0, 0, end) == self.model.revoke(id, self.clock.now())

    @rule(number=st.integers(0, 40), is_there=st.booleans())
    def write_a_rule(self, number: int, is_there: bool) -> None:
        key = rule_of_id(f"m{number}")
        known = "" if f"m{number}" in self.model.rules else None
        assert self.storage.write(key, "" if is_there else None, known)
        (self.model.rules.add if is_there else self.model.rules.discard)(f"m{number}")

    @rule(seconds=st.sampled_from([1.0, 5.0, 100.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-100.0, -5.0, 100.0]))
    def set_the_clock(self, seconds: float) -> None:
        self.clock.jump(seconds)

    @rule()
    def forget_what_ended(self) -> None:
        self.storage.forget(sorted(self.model.items))
        self.model.items = {id: item for id, item in self.model.items.items() if item.place != ENDED}

    @rule(keep=st.sampled_from([0.0, 5.0]), keep_failed=st.sampled_from([0.0, 50.0]))
    def forget_what_had_its_time(self, keep: float, keep_failed: float) -> None:
        now = self.clock.now()
        found = self.storage.forget(old=Old(0, now - keep, now - keep_failed))
        assert (found.number, found.seq) == (self.model.forget_old(now - keep, now - keep_failed), 0)

    def want(self, owner: int, limit: int, queues: tuple[str, ...]) -> Want:
        return Want(self.owners[owner].name, queues, limit, self.clock.now())

    def turn(self, outcomes: tuple[Outcome, ...], want: Want) -> list[Claim]:
        turn = self.storage.settle(outcomes, want)
        assert turn.stale == [each for each in outcomes if not self.model.settle(each, self.clock.now())]
        claimed = [(each.message.id, each.token, each.redeliveries, each.revoked) for each in turn.claims]
        assert claimed == self.model.claim(want, turn.claims)
        return turn.claims

    @invariant()
    def every_task_stands_as_in_the_model(self) -> None:
        found = self.storage.records(sorted(self.model.items), whole=True)
        assert {
            id: (each.place, each.hold, each.state, each.result, each.retries, each.redeliveries)
            for id, each in found.items()
        } == {
            id: (item.place, item.hold, item.state, item.result, item.message.retries, item.redeliveries)
            for id, item in self.model.items.items()
        }  # fmt: skip

    @invariant()
    def every_state_that_was_no_end_is_told_in_order(self) -> None:
        found: dict[str, list[str]] = {}
        for entry in self.storage.entries(NEWS):
            id = entry.key.split(":")[1]
            news = news_of(id, entry)
            assert news is not None
            item = self.model.items[id]
            assert news.number == max(0, len(item.told) - KEPT) + len(found.setdefault(id, [])) + 1
            found[id].append(news.state)
        assert found == {id: list(item.told[-KEPT:]) for id, item in self.model.items.items() if item.told}

    @invariant()
    def the_failed_are_those_of_the_model(self) -> None:
        assert list(self.storage.records(failed_after=0)) == self.model.failed()

    @invariant()
    def the_sums_are_those_of_the_model(self) -> None:
        items = self.model.items.values()
        assert {(each.queue, each.place): each.number for each in self.storage.counts()} == dict(
            Counter((item.message.queue, item.place) for item in items)
        )
        waiting = sorted(item.message.visible_at or 0 for item in items if item.place == WAITING)
        assert self.storage.due(1000) == waiting


def check_histories(make: Callable[[Path], Storage], directory: Path, histories: int, steps: int) -> None:
    """Compare so many histories, of so many steps each, with the model; always the same ones."""
    numbers = count()

    class Mine(History):
        def __init__(self) -> None:
            super().__init__(make(directory / f"history{next(numbers)}"))

    chosen = settings(
        max_examples=histories, stateful_step_count=steps, deadline=None, derandomize=True, database=None,
        report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(Mine, settings=chosen)
