"""The contract of `localq.storage.base` as tests. A storage that passes them works with localq.

    from localq.testing.contract import StorageContract

    class TestMine(StorageContract):
        def make(self, directory):
            return MyStorage(directory)

    messages    put, waiting, claims           facts      records, counts, entries
    attempts    settle, update, forget         owners     owners, estates, other processes
    followers   chains and chords              bells      wake-ups
    dead        what failed, and runs again    history    random histories beside a model
    holds       parked messages, rate limits        past      states before the end, results that had their time
    holds       parked messages, rate limits
    revokes     what was revoked: before it was sent, before it began, and while it ran
    words       what the tests are made of, for tests of your own

Needs pytest and hypothesis. Time stands still in every test but for `clock.advance`, and no test
waits for a time to go by. Must not look behind the verbs: what they answer is all that counts.
"""

from __future__ import annotations

from pathlib import Path

from localq.testing.contract.attempts import AttemptContract
from localq.testing.contract.bells import BellContract
from localq.testing.contract.dead import DeadContract
from localq.testing.contract.facts import FactContract
from localq.testing.contract.followers import FollowerContract
from localq.testing.contract.history import check_histories
from localq.testing.contract.holds import HoldContract
from localq.testing.contract.messages import MessageContract
from localq.testing.contract.owners import OwnerContract
from localq.testing.contract.past import PastContract
from localq.testing.contract.revokes import RevokeContract


class StorageContract(
    MessageContract,
    AttemptContract,
    FollowerContract,
    DeadContract,
    HoldContract,
    PastContract,
    RevokeContract,
    FactContract,
    OwnerContract,
    BellContract,
):
    """Every test of the contract; subclass it and say in `make` how to make a storage."""

    #: How many histories hypothesis tries, of how many steps.
    histories, steps = 25, 30

    def test_every_history_goes_as_in_the_model(self, tmp_path: Path) -> None:
        check_histories(self.make, tmp_path, self.histories, self.steps)
