"""Where work is kept: one contract (`base`), several storages, opened by URL.

    base        the contract, in prose
    sqlite/     the default
    memory      one process, nothing on disk
    diskcache   the contract without SQL of ours, slowly
    place, gate, owners, bells   what the ones with a directory share

Must not import a storage before somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Callable

from localq.exceptions import ImproperlyConfigured
from localq.registry import Registry
from localq.storage.base import Storage

#: URL scheme -> function of (path, durability) that opens a storage.
storages: Registry[Callable[[str, str], Storage]] = Registry("storage", "localq.storages", ImproperlyConfigured)
storages.place("sqlite", "localq.storage.sqlite:open_url")
storages.place("memory", "localq.storage.memory:open_url")
storages.place("diskcache", "localq.storage.diskcache:open_url")


def open_storage(scheme: str, path: str, durability: str) -> Storage:
    """Open a storage.

    Args:
        scheme: which kind, `sqlite` for one.
        path: where; empty for kinds that have no place.
        durability: `standard` or `full`.

    Raises:
        ImproperlyConfigured: no storage has this scheme.
    """
    return storages.get(scheme)(path, durability)
