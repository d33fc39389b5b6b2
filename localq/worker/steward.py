"""What a worker does besides running tasks: the services that look after its store.

    Upkeep     checkpoints, syncs, and notices when the store is gone
    Sweeper    frees the claims of the dead
    Due        wakes sleepers when a waiting message's time has come

In prefork they live in a process of their own, in a solo worker in a thread. Each service is started in
order and stopped in reverse; between them runs one timer heap. Nothing here is single: two stewards on
one store do no harm, because every act is a transaction of the store. Must not run tasks.
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
from localq.recovery import sweep
from localq.storage.base import DUE_BELL, SYNC_BELL, Storage
from localq.worker.timer import Timer

logger = logging.getLogger("localq.worker.steward")

#: Seconds between two rounds of upkeep and of sweeping when nobody asks for one.
ROUND_S = 1.0
#: Seconds after a ring within which the store is synced (50 ms are promised).
SYNC_S = 0.03
#: Seconds after the last write in which a steward looks for the next of its own accord, and need not be rung.
CLOSELY_S = 1.0
#: Seconds a steward rests after a ring, so that a flood of them costs little.
REST_S = 0.005
#: How many due times are kept in memory; the others stay in the store's index.
NEAR = 100


class Service(Protocol):
    """A part of a worker that runs beside its tasks."""

    def start(self) -> None: ...

    def rung(self) -> None:
        """Somebody rang the steward's bell."""

    def stop(self) -> None: ...


class Upkeep:
    """Keeps the store small and safe: looks closely while somebody writes, now and then otherwise."""

    def __init__(self, storage: Storage, timer: Timer) -> None:
        self._storage, self._timer = storage, timer
        self._is_planned = False
        self._closely_until = 0.0

    def start(self) -> None:
        self._maintain()
        self._timer.every(ROUND_S, self._round)

    def rung(self) -> None:
        self._closely_until = clock.monotonic() + CLOSELY_S
        self._plan()

    def stop(self) -> None:
        self._maintain()

    def _round(self) -> None:
        if not self._is_planned:
            self._maintain()

    def _plan(self) -> None:
        if not self._is_planned:
            self._is_planned = True
            self._timer.after(SYNC_S, self._look)

    def _look(self) -> None:
        self._is_planned = False
        now = clock.monotonic()
        if now < self._closely_until:
            self._plan()
        if self._maintain(SYNC_S if self._is_planned else None):
            self._closely_until = now + CLOSELY_S

    def _maintain(self, again_in_s: float | None = None) -> bool:
        found: list[bool] = []
        patiently(lambda: found.append(self._storage.maintain(again_in_s)))
        return any(found)


class Sweeper:
    """Frees the claims of the dead: of this worker's children at once, of others within a second."""

    def __init__(self, storage: Storage, timer: Timer, mine: Any, limit: int) -> None:
        self._storage, self._timer, self._mine, self._limit = storage, timer, mine, limit
        self.reasons: dict[int, str] = {}
        self.whole_worker = False

    def start(self) -> None:
        self.sweep()
        self._timer.every(ROUND_S, self.sweep)

    def rung(self) -> None:
        return

    def sweep(self) -> None:
        patiently(lambda: sweep(self._storage, self._mine, self.reasons, self._limit, self.whole_worker))

    def stop(self) -> None:
        self.sweep()


class Due:
    """Wakes sleepers for messages whose time has come; keeps only the nearest times in memory."""

    def __init__(self, storage: Storage, timer: Timer) -> None:
        self._storage, self._timer = storage, timer
        self._entry: Any = None

    def start(self) -> None:
        self._plan()

    def rung(self) -> None:
        self._plan()

    def stop(self) -> None:
        if self._entry is not None:
            self._entry.cancel()

    def _plan(self) -> None:
        self.stop()
        self._entry = None
        times = self._storage.due(NEAR)
        if times:
            # Wall time, so looked at again now and then: the clock may be set.
            self._entry = self._timer.after(min(max(0.0, times[0] - clock.now()), 60.0), self._promote)

    def _promote(self) -> None:
        if patiently(lambda: self._storage.settle((), Want("", (), 0, clock.now()))):
            self._plan()
        else:
            self._entry = self._timer.after(ROUND_S, self._promote)


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
        about: facts that others see of this worker.
        mine: the facts of the worker's main process, which its children name as their parent.
        line: a descriptor on which the main process tells of dead children and asks to stop.
    """

    def __init__(
        self, storage: Storage, about: dict[str, object], mine: Any, limit: int, line: int | None = None
    ) -> None:
        self._storage, self._line = storage, line
        self.timer = Timer()
        self._owner = storage.enlist({"kind": "worker", **about}, journal=False)
        self._bell = storage.bell((DUE_BELL, SYNC_BELL))
        self.sweeper = Sweeper(storage, self.timer, mine, limit)
        self.services: list[Service] = [Upkeep(storage, self.timer), self.sweeper, Due(storage, self.timer)]
        self.is_stopping = False

    def run(self) -> None:
        """Run the services until asked to stop."""
        for service in self.services:
            service.start()
        try:
            rang = True
            while not self.is_stopping:
                self._bell.raise_()
                if rang:
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
