"""What a worker does besides running tasks: the services that look after its store.

    Upkeep     checkpoints, syncs, and notices when the store is gone
    Sweeper    frees the claims of the dead
    Recaller   lets nothing wait behind a long task
    Due        wakes sleepers when a waiting message's time has come
    Expiry     forgets results that had their time (expiry.py)
    Herald     calls the user's handlers of attempts whose process cannot (herald.py)
    Terminator has tasks ended that were revoked while they run (terminator.py)

In prefork they live in a process of their own, in a solo worker in a thread. Each service is started in
order and stopped in reverse; between them runs one timer heap. They look at the store once a second, and
for a second after somebody rang or wrote as closely as is promised. Nothing here is single: two stewards
on one store do no harm, because every act is a transaction of the store. Must not run tasks.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Protocol

from localq import clock
from localq.exceptions import StoreBusy, StoreFull
from localq.message import Want
from localq.recovery import recall, sweep
from localq.storage.base import DUE_BELL, SYNC_BELL, Doing, Storage
from localq.worker.expiry import Expiry
from localq.worker.herald import Herald
from localq.worker.notices import Notices
from localq.worker.terminator import Terminator
from localq.worker.timer import Timer

logger = logging.getLogger("localq.worker.steward")

#: Seconds between two rounds of upkeep and of sweeping when nobody asks for one.
ROUND_S = 1.0
#: Seconds between two close looks: a write is synced within 50 ms, a result waits at most 100 ms for a long task.
LOOK_S = 0.02
#: Seconds after the last ring or write in which a steward looks closely, and need not be rung.
CLOSELY_S = 1.0
#: Seconds after which a task is long, and after which an owner that was given a message should have noticed.
LONG_S, UNNOTICED_S = 0.02, 1.0
#: How many of the nearest due times are looked at: turns that nobody takes stand before the next one.
NEAR = 50
#: Seconds a steward rests after a ring, so that a flood of them costs little.
REST_S = 0.005
#: Seconds by which the wall clock may have moved against the other one before due times are looked up anew.
STEP_S = 0.05


class Service(Protocol):
    """A part of a worker that runs beside its tasks."""

    def start(self) -> None: ...

    def rung(self) -> None:
        """Somebody rang the steward's bell."""

    def look(self, again_in_s: float | None) -> bool:
        """See to what needs seeing to; returns whether there is reason to look again soon.

        Args:
            again_in_s: when the next look is planned; None if that is left to the next ring or round.
        """

    def stop(self) -> None: ...


class Upkeep:
    """Keeps the store small and safe."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def start(self) -> None:
        self.look(None)

    def rung(self) -> None:
        return

    def look(self, again_in_s: float | None) -> bool:
        found: list[bool] = []
        patiently(lambda: found.append(self._storage.maintain(again_in_s)))
        return any(found)

    def stop(self) -> None:
        self.look(None)


class Sweeper:
    """Frees the claims of the dead: of this worker's children at once, of others within a second."""

    def __init__(self, storage: Storage, timer: Timer, mine: Any, limit: int, herald: Herald | None = None) -> None:
        self._storage, self._timer, self._mine, self._limit, self._herald = storage, timer, mine, limit, herald
        self.reasons: dict[int, str] = {}
        self.whole_worker = False
        self._unexplained: set[str] = set()

    def start(self) -> None:
        self.sweep()
        self._timer.every(ROUND_S, self.sweep)

    def rung(self) -> None:
        return

    def look(self, again_in_s: float | None) -> bool:
        return False

    def sweep(self) -> None:
        self._sweep(None if self.whole_worker else self._unexplained)

    def _sweep(self, unexplained: set[str] | None) -> None:
        patiently(
            lambda: sweep(
                self._storage, self._mine, self.reasons, self._limit, self.whole_worker, unexplained, self._herald
            )
        )

    def stop(self) -> None:
        self._sweep(None)


class Recaller:
    """Lets nothing wait behind a long task, nor with an owner that does not notice what it was given."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        #: What each owner was at, and when it is asked next if it still is.
        self._seen: dict[str, tuple[Doing, float]] = {}

    def start(self) -> None:
        return

    def rung(self) -> None:
        return

    def look(self, again_in_s: float | None) -> bool:
        now = clock.monotonic()
        seen: dict[str, tuple[Doing, float]] = {}
        for owner in self._storage.owners():
            if owner.alive and owner.doing is not None:
                doing, next_at = self._seen.get(owner.name, (None, now))
                # What coroutines note beside one long task must not make it a new one at each look.
                if doing is None or doing[:3] != owner.doing[:3]:
                    # One that runs something may hold more than its notes know of, and is asked once it is long.
                    next_at = now + (LONG_S if owner.doing.seq else UNNOTICED_S)
                elif now >= next_at:
                    self._recall(owner.name, owner.doing.batch)
                    next_at = now + (LONG_S if owner.doing.is_behind else UNNOTICED_S)
                seen[owner.name] = (owner.doing, next_at)
        self._seen = seen
        return any(doing.is_behind for doing, _ in seen.values())

    def _recall(self, owner: str, batch: int) -> None:
        patiently(lambda: recall(self._storage, owner, batch))

    def stop(self) -> None:
        return


class Due:
    """Wakes sleepers for messages whose time has come; of a million times, keeps the next in memory.

    A due time is wall time and the heap's is not. So once the clock was set, or the machine slept, the next is
    looked up anew: at the latest a round afterwards.
    """

    def __init__(self, storage: Storage, timer: Timer) -> None:
        self._storage, self._timer = storage, timer
        self._entry: Any = None
        self._ahead_s = 0.0
        #: Sleepers were woken for whatever was due by then.
        self._told = 0.0

    def start(self) -> None:
        self._plan()

    def rung(self) -> None:
        self._plan()

    def look(self, again_in_s: float | None) -> bool:
        if abs(clock.now() - clock.monotonic() - self._ahead_s) > STEP_S:
            self._told = 0.0
            self._plan()
        return False

    def stop(self) -> None:
        if self._entry is not None:
            self._entry.cancel()

    def _plan(self) -> None:
        self.stop()
        self._entry = None
        # Noted before the clock is read for the plan: if it is set in between, the next look sees that.
        self._ahead_s = clock.now() - clock.monotonic()
        times = self._storage.due(NEAR)
        # Those up to the last look that moved nothing are turns that found everybody busy.
        at = next((at for at in times if at > self._told), None)
        if times:
            self._entry = self._timer.after(ROUND_S if at is None else at - clock.now(), self._promote)

    def _promote(self) -> None:
        # Planned before it is tried: whatever becomes of this, it is tried again.
        self._entry = self._timer.after(ROUND_S, self._promote)
        now = clock.now()
        moved: list[int] = []
        if patiently(lambda: moved.append(self._storage.settle((), Want("", (), 0, now)).moved)):
            self._told = 0.0 if any(moved) else now
            self._plan()


def patiently(act: Callable[[], object]) -> bool:
    """Do something that a full disk or a shut gate may prevent; it is tried again at the next round."""
    try:
        act()
    except (StoreFull, StoreBusy) as exc:
        logger.warning("the steward waits: %s", exc)
        return False
    return True


class Steward:
    """The services of one worker on one thread.

    Args:
        app: whose store to see to, and whose tasks this worker knows.
        about: facts that others see of this worker.
        mine: the facts of the worker's main process, which its children name as their parent.
        line: a descriptor on which the main process tells of dead children and asks to stop.
        notices: what the children tell.
        ask: a descriptor on which the main process is asked to end tasks; None if it cannot.
    """

    def __init__(
        self,
        app: Any,
        about: dict[str, object],
        mine: Any,
        line: int | None = None,
        notices: Notices | None = None,
        ask: int | None = None,
    ) -> None:
        storage: Storage = app.storage
        self._storage, self._line = storage, line
        self.timer = Timer()
        self._owner = storage.enlist({"kind": "worker", **about}, journal=False)
        self._bell = storage.bell((DUE_BELL, SYNC_BELL))
        herald = Herald(app, str(about.get("node") or ""), notices)
        self.sweeper = Sweeper(storage, self.timer, mine, app.conf.task_max_redeliveries, herald)
        self.services: list[Service] = [
            Upkeep(storage), herald, self.sweeper, Recaller(storage), Due(storage, self.timer),
            Terminator(storage, self.timer, mine, ask),
            Expiry(app.backend, self.timer, patiently),
        ]  # fmt: skip
        self.is_stopping = False
        self._is_planned = False
        self._closely_until = 0.0

    def run(self) -> None:
        """Run the services until asked to stop."""
        for service in self.services:
            service.start()
        self.timer.every(ROUND_S, self._round)
        try:
            rang = True
            while not self.is_stopping:
                self._bell.raise_()
                if rang:
                    self._watch()
                    for service in self.services:
                        service.rung()
                rang = self._bell.sleep(self.timer.tick(), self._line)
                self._listen()
                if rang:
                    # The flag stays down a moment: 20,000 puts a second are 200 wake-ups, not 20,000.
                    time.sleep(REST_S)
            for service in reversed(self.services):
                service.stop()
            self._storage.retire(self._owner.name)
        finally:
            self._bell.close()
            self._owner.close()

    def _watch(self) -> None:
        """Look closely from now on, until nothing has happened for a while."""
        self._closely_until = clock.monotonic() + CLOSELY_S
        self._plan()

    def _plan(self) -> None:
        if not self._is_planned:
            self._is_planned = True
            self.timer.after(LOOK_S, self._look_closely)

    def _look_closely(self) -> None:
        self._is_planned = False
        if clock.monotonic() < self._closely_until:
            self._plan()
        if self._look():
            self._watch()

    def _round(self) -> None:
        if not self._is_planned and self._look():
            self._watch()

    def _look(self) -> bool:
        again_in_s = LOOK_S if self._is_planned else None
        found = [service.look(again_in_s) for service in self.services]  # all of them, whatever the first says
        return any(found)

    def _listen(self) -> None:
        """Read what the main process has to say; its end means that it is gone."""
        if self._line is None:
            return
        try:
            data = os.read(self._line, 65536)
        except BlockingIOError:
            return
        if not data:
            self.is_stopping = True
        for text in data.splitlines():
            self._obey(json.loads(text))

    def _obey(self, said: dict[str, Any]) -> None:
        act: Callable[[], None] | None = None
        if "died" in said:
            self.sweeper.reasons[int(said["died"])] = str(said["reason"])
            act = self.sweeper.sweep
        self.sweeper.whole_worker = self.sweeper.whole_worker or bool(said.get("cold"))
        self.is_stopping = self.is_stopping or bool(said.get("stop"))
        if act is not None:
            act()

    def name_node(self, wanted: str, may_vary: bool, facts: dict[str, object]) -> str | None:
        """Take a node name for this worker; returns it, or None if a live worker has it."""
        name, _, host = wanted.partition("@")
        alive = {owner.name for owner in self._storage.owners() if owner.alive}
        for number in range(1, 1000):
            node = wanted if number == 1 else f"{name}{number}@{host}"
            entries = [entry for entry in self._storage.entries(f"worker:{node}") if entry.key == f"worker:{node}"]
            before = entries[0].value if entries else None
            is_free = before is None or json.loads(before).get("owner") not in alive
            value = json.dumps({"owner": self._owner.name, **facts, "node": node})
            if is_free and self._storage.write(f"worker:{node}", value, before):
                self._node = (f"worker:{node}", value)
                return node
            if not may_vary:
                return None
        return None

    def free_node(self) -> None:
        """Give the node name up."""
        self._storage.write(self._node[0], None, self._node[1])
