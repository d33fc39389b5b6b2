"""`app.control`, as far as it goes: tasks that shall not run, or not go on, by whatever worker.

A revoke is a fact in the store, told to nobody: it needs no worker, survives all of them, and says what it did.

    revoked        it has not begun and will not: its state is REVOKED
    running        it has begun; how it ends counts, but it is not tried again: REVOKED in its place
    terminating    the same, and its process is being stopped
    ended          it had ended before; nothing was changed
    noted          nobody has sent it yet: it ends as REVOKED if somebody does within three hours

What a worker has reserved and not begun is taken out of its hands first. Between the last look and the answer a
running task may end like any other. Must not stop a process itself, and must not wait for a worker.
"""

from __future__ import annotations

import json
import signal as signals_of_processes
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from localq import clock, signals, states
from localq.context import ClaimContext, current_app
from localq.exceptions import ChordError, TaskRevokedError
from localq.message import Claim, Outcome
from localq.recovery import recall, sweep
from localq.revocation import REMEMBERED_S, TERMINATE, rule_of_id, rules_of_stamps, stamps_of
from localq.serialization import checksum, encode, exception_data
from localq.storage.base import Storage

#: What became of a task; see above.
REVOKED, RUNNING, TERMINATING, ENDED, NOTED = "revoked", "running", "terminating", "ended", "noted"
#: How often a task is looked at that goes from hand to hand meanwhile.
LOOKS = 8
#: Seconds within which a worker must have seen that a process is to be stopped; until then the task may be another's.
ASKED_S = 60.0


class Control:
    """What can be said to all workers of a store at once.

    Args:
        app: whose store.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    @property
    def _storage(self) -> Storage:
        storage: Storage = self.app.backend.storage
        return storage

    def revoke(
        self,
        task_id: Any,
        destination: Any = None,
        terminate: bool = False,
        signal: str | int | None = "SIGTERM",
        connection: Any = None,
        reply: bool = False,
        timeout: float | None = None,
        **more: Any,
    ) -> dict[str, str]:
        """Have tasks not run; those behind them (chain steps, chord bodies) fail as behind any other bad end.

        Args:
            task_id: an id, or several.
            terminate: stop the process of one that runs, too.
            signal: by which one: a name (`"KILL"`) or a number.
            connection, reply, timeout: accepted for Celery's sake: no worker is asked, so none is waited for.
            destination, more: Celery's choices among workers, which are refused: this holds for every worker.

        Returns:
            By id, what became of it: revoked, running, terminating, ended or noted (see the module).

        Raises:
            TypeError: an id is no text, or an argument chooses among workers.
            ValueError: there is no such signal.
            OperationalError: the store could not do it; those that come first may be revoked.
        """
        _check_choices(destination, more)
        ids = _ids(task_id)
        number = signal_number(signal)
        return {id: self._revoke(id, number if terminate else None) for id in ids}

    def terminate(
        self, task_id: Any, destination: Any = None, signal: str | int | None = "SIGTERM", **more: Any
    ) -> dict[str, str]:
        """Do as `revoke` with `terminate=True`."""
        return self.revoke(task_id, destination, True, signal, **more)

    def revoke_by_stamped_headers(
        self,
        headers: Mapping[str, Any],
        destination: Any = None,
        terminate: bool = False,
        signal: str | int | None = "SIGTERM",
        connection: Any = None,
        reply: bool = False,
        timeout: float | None = None,
        **more: Any,
    ) -> dict[str, str]:
        """Revoke whatever has one of these stamps, and whatever with one of them is sent within three hours.

        Args:
            headers: a value, or a list of values, by the stamp's name.
            terminate, signal, connection, reply, timeout, destination, more: as for `revoke`.

        Returns:
            What became of those that are there, by id.

        Raises:
            TypeError: headers is no mapping, or a value is no JSON; or an argument chooses among workers.
            ValueError: there is no such signal.
            OperationalError: the store could not do it; those that come first may be revoked.
        """
        _check_choices(destination, more)
        if not isinstance(headers, Mapping):
            raise TypeError(f'headers={headers!r}: expected stamps by name, {{"header": value or [values]}}')
        number, rules = signal_number(signal), rules_of_stamps(headers)
        self._note(rules)
        # Those that come from now on meet the rules. Of the others, every one is found by this walk.
        return {id: self._revoke(id, number if terminate else None) for id in self._stamped(frozenset(rules))}

    def _stamped(self, rules: frozenset[str]) -> Iterable[str]:
        seq = 0
        while step := self._storage.records(stamped_after=seq, whole=True):
            for id, record in step.items():
                seq = record.seq
                if record.message is not None and not rules.isdisjoint(rules_of_stamps(stamps_of(record.message))):
                    yield id

    def _revoke(self, id: str, number: int | None) -> str:
        """Revoke one; `number` is the signal that stops it if it runs, None if it may go on."""
        storage, end, is_noted = self._storage, end_of(id), False
        for look in range(LOOKS):
            if storage.update(0, 0, end):
                self._tell(id)
                return REVOKED
            record = storage.records((id,)).get(id)
            if record is None and is_noted:
                return NOTED
            if record is None:
                # Sent between the look and this, it may be in a worker's hands before there was a rule: look again.
                self._note([rule_of_id(id)])
                is_noted = True
            elif record.ended:
                if record.state == states.REVOKED and look:
                    self._tell(id)  # taken out of a worker's hands just now
                return REVOKED if record.state == states.REVOKED else ENDED
            elif (record.hold or "").startswith("owner:"):
                owner = (record.hold or "").partition(":")[2]
                claim = self._begun(id, owner, end)
                if claim is not None:
                    return RUNNING if number is None else self._ask_to_stop(claim, owner, number)
        return RUNNING

    def _begun(self, id: str, owner: str, end: Outcome) -> Claim | None:
        """Return the claim of a task if it runs; one that is only reserved is taken back, and ends as it is marked."""
        storage = self._storage
        if all(each.name != owner or not each.alive for each in storage.owners()):
            sweep(storage, limit=self.app.conf.task_max_redeliveries)
        claim = None
        for _ in range(LOOKS):
            storage.update(0, 0, end)  # marks it; the one before this may have been a moment too early
            estate = storage.estate(owner)
            claim = next((claim for claim in estate.claims if claim.message.id == id), None)
            if claim is None:
                return None
            # Without a batch its owner keeps no notes, and nobody can tell.
            if not estate.batch or any((each.seq, each.token) == claim[:2] for each in estate.started):
                return claim
            recall(storage, owner, estate.batch)
        return claim

    def _ask_to_stop(self, claim: Claim, owner: str, number: int) -> str:
        """Have the worker that has it stop its process."""
        value = json.dumps({"signal": number, "seq": claim.seq, "token": claim.token, "owner": owner})
        self._write(f"{TERMINATE}{claim.message.id}", value, ASKED_S)
        return TERMINATING

    def _note(self, rules: Iterable[str]) -> None:
        for rule in rules:
            self._write(rule, "", REMEMBERED_S)

    def _write(self, key: str, value: str, lasts_s: float) -> None:
        """Write an entry, whatever it was; whoever writes the same at the same time means the same."""
        for _ in range(LOOKS):
            known = next((entry.value for entry in self._storage.entries(key) if entry.key == key), None)
            if self._storage.write(key, value, known, clock.now() + lasts_s):
                return

    def _tell(self, id: str) -> None:
        """Tell the receivers of `task_revoked` here: no worker will ever see the message."""
        if not signals.task_revoked.receivers:
            return
        record = self._storage.records((id,), whole=True).get(id)
        if record is not None and record.message is not None:
            claim = Claim(record.seq, 0, record.redeliveries, record.message)
            signals.task_revoked.send(
                self.app.tasks.get(record.name), request=ClaimContext(claim, (), {}, None, False), terminated=False,
                signum=None, expired=False,
            )  # fmt: skip

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"app.control.{name}: this version of localq has revoke, terminate and revoke_by_stamped_headers of "
            "app.control; stop a worker with SIGTERM, and look into the store with `localq report`"
        )


class RevocableTask:
    """A handle on a task that can be revoked."""

    __slots__ = ()
    id: str
    app: Any

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | int | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> str:
        """Have the task not run; returns what became of it. See `Control.revoke`, for what is accepted, too."""
        done: dict[str, str] = _control_of(self).revoke(
            self.id, connection=connection, terminate=terminate, signal=signal, reply=wait, timeout=timeout
        )
        return done[self.id]

    def revoke_by_stamped_headers(
        self,
        headers: Mapping[str, Any],
        connection: Any = None,
        terminate: bool = False,
        signal: str | int | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> dict[str, str]:
        """Have no task run that has one of these stamps, be it this one; see `Control.revoke_by_stamped_headers`."""
        done: dict[str, str] = _control_of(self).revoke_by_stamped_headers(
            headers, connection=connection, terminate=terminate, signal=signal, reply=wait, timeout=timeout
        )
        return done


class RevocableGroup:
    """A handle on several tasks that can be revoked."""

    __slots__ = ()
    app: Any
    leaves: Callable[[], list[Any]]

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | int | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> dict[str, str]:
        """Have no member run; returns what became of each. See `Control.revoke`."""
        leaves = self.leaves()
        for leaf in leaves:
            if leaf.app is None:
                leaf.revoke()  # it ran where it was called, and no store has it
        done: dict[str, str] = _control_of(self).revoke(
            [leaf.id for leaf in leaves if leaf.app is not None], connection=connection, terminate=terminate,
            signal=signal, reply=wait, timeout=timeout,
        )  # fmt: skip
        return done


def _control_of(handle: Any) -> Any:
    return (handle.app or current_app()).control


def end_of(id: str) -> Outcome:
    """Return how a revoked task ends that has not begun."""
    exc = TaskRevokedError("revoked")
    data, content_type = encode(exception_data(exc), "json")
    group_failure, _ = encode(exception_data(ChordError(f"Dependency {id} raised {exc!r}")), "json")
    return Outcome(
        0, 0, id, states.REVOKED, result=data, content_type=content_type, checksum=checksum(data),
        ended_at=clock.now(), group_failure=group_failure,
    )  # fmt: skip


def signal_number(given: str | int | None) -> int:
    """Return the number of a signal: `"KILL"`, `"SIGKILL"`, 9; None is SIGTERM.

    Raises:
        ValueError: there is no such signal.
    """
    try:
        if given is None or isinstance(given, int):
            return int(signals_of_processes.Signals(signals_of_processes.SIGTERM if given is None else given))
        name = given.upper()
        return int(signals_of_processes.Signals[name if name.startswith("SIG") else f"SIG{name}"])
    except (AttributeError, KeyError, ValueError):
        raise ValueError(f"signal {given!r}: expected a name as 'TERM' or 'SIGKILL', or a number as 9") from None


def _ids(given: Any) -> list[str]:
    """Return ids without repeats; handles of tasks will do as well."""
    several = given if isinstance(given, list | tuple | set | frozenset) else [given]
    ids: list[Any] = [getattr(each, "id", each) for each in several]
    for id in ids:
        if not isinstance(id, str) or not id:
            raise TypeError(f"task_id={given!r}: expected the id of a task, or a list of ids")
    return list(dict.fromkeys(ids))


def _check_choices(destination: Any, more: Mapping[str, Any]) -> None:
    wanted = {**({} if destination is None else {"destination": destination}), **more}
    if wanted:
        names = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
        raise TypeError(f"{names}: a revoke is kept in the store, where every worker finds it; leave this out")
