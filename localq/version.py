"""Which localq this is. Knows nothing else."""

from __future__ import annotations

from typing import NamedTuple


class VersionInfo(NamedTuple):
    """A version in parts, as Celery's `VERSION`."""

    major: int
    minor: int
    micro: int
    releaselevel: str = ""
    serial: str = ""


VERSION = VersionInfo(0, 1, 0)
__version__ = ".".join(map(str, VERSION[:3]))
