"""Has tasks ended that were revoked while they run: revoke(terminate=True) leaves a word in the store for their worker.

    terminate:<task id>    {"signal": ..., "seq": ..., "token": ..., "owner": ...}

The steward of the worker whose child that owner is takes the word out of the store, and its supervisor does the rest.
Must not end anything itself, nor decide what becomes of the task.
"""

from __future__ import annotations

import json
import logging
import os
import signal
from typing import Any

from localq import clock
from localq.exceptions import StoreBusy, StoreFull
from localq.revocation import TERMINATE
from localq.storage.base import Storage
from localq.worker.timer import Timer

logger = logging.getLogger("localq.worker")

#: Signals that a task may be ended with: none that stops its process or has it go on.
ENDING = signal.valid_signals() - {signal.SIGCONT, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
#: Seconds between two looks when nobody rings.
ROUND_S = 1.0
#: Seconds that a coroutine's child has for ending it; then its loop counts as stuck.
STUCK_S = 3.0


class Terminator:
    """Passes on which of a worker's tasks are to end.

    Args:
        mine: the facts of the worker's main process, which its children name as their parent.
        ask: a descriptor on which the main process is asked; None if it cannot end a task.
    """

    def __init__(self, storage: Storage, timer: Timer, mine: Any, ask: int | None) -> None:
        self._storage, self._timer, self._mine, self._ask = storage, timer, mine, ask
        # What is left to a child: when it was seen first.
        self._left: dict[str, float] = {}

    def start(self) -> None:
        self._timer.every(ROUND_S, self.rung)

    def rung(self) -> None:
        try:
            self._take()
        except (StoreFull, StoreBusy) as exc:
            logger.warning("what asks for a task's end stays in the store for now: %s", exc)  # until the next round

    def _take(self) -> None:
        entries = self._storage.entries(TERMINATE)
        self._left = {key: at for key, at in self._left.items() if any(entry.key == key for entry in entries)}
        if not entries:
            return
        mine = {owner.name: owner for owner in self._storage.owners() if owner.about.get("parent") == self._mine}
        for entry in entries:
            said = read(entry.value)
            owner = mine.get(str(said.get("owner")))
            # A coroutine's child ends it itself, if it can.
            if owner is not None and not (self._runs_beside(owner.name, said) and self._is_left(entry.key)):
                # Taken out afterwards: a steward that dies in between leaves it to the next one. To be told twice of
                # the same attempt is nothing to the supervisor.
                self._pass_on(entry.key.removeprefix(TERMINATE), {**said, "pid": owner.about.get("pid")})
                self._storage.write(entry.key, None, entry.value)

    def _is_left(self, key: str) -> bool:
        """Whether a coroutine's child has time yet; a process that cannot be ended has it for ever."""
        now = clock.monotonic()
        return self._ask is None or now - self._left.setdefault(key, now) < STUCK_S

    def _runs_beside(self, owner: str, said: dict[str, Any]) -> bool:
        key = (said.get("seq"), said.get("token"))
        return any(each.place and (each.seq, each.token) == key for each in self._storage.estate(owner).started)

    def _pass_on(self, id: str, said: dict[str, Any]) -> None:
        wanted = {name: said.get(name) for name in ("pid", "owner", "seq", "token", "signal")}
        numbers = [wanted[name] for name in ("pid", "seq", "token")]
        if not all(type(number) is int for number in numbers) or wanted["signal"] not in ENDING:
            logger.warning("task %s is revoked, and goes on: %s names no task, or no signal that ends one", id, said)
        elif self._ask is None:
            logger.warning("task %s is revoked, and goes on: the solo pool cannot end a task that runs", id)
        else:
            os.write(self._ask, json.dumps(wanted).encode() + b"\n")

    def look(self, again_in_s: float | None) -> bool:
        return False

    def stop(self) -> None:
        return


def read(value: str | None) -> dict[str, Any]:
    """Return what an entry says; nothing if somebody else has written it."""
    try:
        found = json.loads(value or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
