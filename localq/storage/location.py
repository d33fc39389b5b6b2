"""Where an app's store is: what was asked for, the environment, or beside the file that made the app.

Decides, and touches nothing: the storage makes what it needs.
"""

from __future__ import annotations

import os
import site
import sys
import zlib
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from localq.exceptions import ImproperlyConfigured
from localq.storage.place import NETWORK, filesystem

#: Name of the directory beside the file that made the app.
BESIDE = ".localq"
#: Schemes that mean another system; localq keeps its work itself.
FOREIGN = (
    "redis", "rediss", "amqp", "amqps", "pyamqp", "rpc", "sqs", "filesystem", "mongodb", "db+", "cache+", "sentinel",
    "kafka", "confluentkafka", "gcpubsub", "zookeeper", "consul", "pyro", "elasticsearch", "django-db", "librabbitmq",
    "file", "s3", "gs", "azure", "dynamodb", "cassandra", "couchbase", "couchdb", "arangodb", "cosmosdbsql", "etcd",
    "cache", "sqla+", "sqlalchemy+", "memcache", "pulsar", "qpid", "slmq",
)  # fmt: skip


class Location(NamedTuple):
    """A place for a store.

    Attributes:
        scheme, path: what `open_storage` takes; the path is absolute, or empty for `memory:`.
        note: something the user should be told once, or empty.
    """

    scheme: str
    path: str
    note: str = ""


def is_foreign(url: str) -> bool:
    """Whether a URL names a broker or a result backend of another system."""
    scheme = url.partition("://")[0].lower()
    return "://" in url and scheme.startswith(FOREIGN)


def locate(given: str | os.PathLike[str] | None, made_by: str | None, app_name: str | None) -> Location:
    """Find where an app's store is.

    Args:
        given: what the app was told; relative means to the file that made it.
        made_by: the file whose code made the app; None if it is not a file (a notebook, `-c`).
        app_name: the app's main name.
    """
    base = Path(made_by).parent if made_by else Path.cwd()
    if given is not None:
        return parse(given, base)
    variable = os.environ.get("LOCALQ_STORE")
    if variable:
        return parse(variable, Path.cwd())
    if made_by and not _is_elsewhere(Path(made_by)):
        return Location("sqlite", str(base / BESIDE))
    return _state_home(made_by, app_name)


def parse(given: str | os.PathLike[str], base: Path) -> Location:
    """Read a path or a URL (`sqlite:///relative`, `sqlite:////absolute`, `memory:`).

    Raises:
        ImproperlyConfigured: the URL has no place in it.
    """
    text = os.fspath(given)
    scheme, colon, rest = text.partition(":")
    if not colon or len(scheme) == 1 or os.sep in scheme:
        return Location("sqlite", str((base / Path(text).expanduser()).absolute()))
    if scheme == "memory":
        return Location("memory", rest.strip("/"))
    if not rest.startswith("///"):
        raise ImproperlyConfigured(
            f"store {text!r} names no directory: write {scheme}:///relative/path or {scheme}:////absolute/path"
        )
    return Location(scheme, str((base / unquote(rest[3:])).absolute()))


def _is_elsewhere(file: Path) -> bool:
    """Whether a store beside this file would be in the wrong place: installed code, a zip, a network."""
    if not file.is_file():
        return True
    installed = [*site.getsitepackages(), site.getusersitepackages(), sys.prefix + os.sep + "lib"]
    resolved = str(file.resolve())
    if any(resolved.startswith(str(Path(each).resolve()) + os.sep) for each in installed):
        return True
    return filesystem(file.stat().st_dev) in NETWORK


def _state_home(made_by: str | None, app_name: str | None) -> Location:
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    origin = made_by or str(Path.cwd())
    name = f"{app_name or 'app'}-{zlib.crc32(origin.encode()):08x}"
    path = home / "localq" / name
    why = f"none can be kept beside {made_by}" if made_by else "no file of yours makes the app"
    return Location("sqlite", str(path), f"the store is {path}, because {why}; store= or LOCALQ_STORE names another")
