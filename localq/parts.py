"""What an app has besides tasks and a store, under Celery's names: loader, logging, clock, commands, connections.

All of it is made at its first use. Must not know how tasks are made or sent: it is the part of `LocalQ` that only needs
its settings and its backend.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from functools import cached_property
from typing import Any

from localq import clock
from localq.backend import Backend
from localq.broker import Amqp, Connection, NotBuilt, Pool, Producer, connection_of
from localq.config import Settings
from localq.control import Control
from localq.loader import Loader
from localq.log import Logging
from localq.moments import zone_named
from localq.registry import symbol


class Parts:
    """The parts of an app that stand by themselves; see `localq.app.LocalQ`, which is one."""

    conf: Settings
    backend: Backend

    #: Classes of what an app has, or their dotted names; for subclasses.
    amqp_cls: Any = Amqp
    control_cls: Any = Control
    events_cls: Any = None
    loader_cls: Any = Loader
    log_cls: Any = Logging

    # -- Time ----------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """Return the time, in the app's time zone."""
        return datetime.fromtimestamp(clock.now(), self.timezone)

    @property
    def timezone(self) -> tzinfo:
        """The time zone of times that name none: the setting `timezone`, or UTC, or without `enable_utc` the host's."""
        if self.conf.timezone:
            return zone_named(self.conf.timezone)
        here = datetime.fromtimestamp(clock.now(), UTC).astimezone().tzinfo
        return UTC if self.conf.enable_utc or here is None else here

    def uses_utc_timezone(self) -> bool:
        """Whether the app's time zone is UTC."""
        conf = self.conf
        return str(conf.timezone) == "UTC" if conf.timezone else bool(conf.enable_utc)

    # -- Commands ------------------------------------------------------------------------------------

    def start(self, argv: Sequence[str] | None = None) -> int:
        """Run a command of `localq` for this app, `["worker", "-c", "4"]`; return its exit code.

        Args:
            argv: the command's words, without the program's name; this program's own if None.
        """
        try:
            return int(symbol("localq.cli.main:main")(argv, self))
        except SystemExit as exc:  # a worker ends like this
            return exc.code if isinstance(exc.code, int) else int(exc.code is not None)

    def worker_main(self, argv: Sequence[str] | None = None) -> int:
        """Run a worker of this app, as `localq worker` does.

        Raises:
            ValueError: the words are no worker's.
        """
        words = sys.argv[1:] if argv is None else list(argv)
        if "worker" not in words:
            raise ValueError(f"no 'worker' in {words}: app.start() runs other commands")
        return self.start(words)

    def Worker(self, **options: Any) -> Any:  # noqa: N802
        """Make a worker of this app; `run()` makes it work. See `localq.worker.Worker`."""
        return symbol("localq.worker:Worker")(self, **options)

    WorkController = Worker

    def Beat(self, **options: Any) -> Any:  # noqa: N802
        """Say that there is no beat yet."""
        return NotBuilt("app.Beat", "run what is periodic from cron or a systemd timer")()

    def bugreport(self) -> str:
        """Describe the app, its store and its settings, secrets masked; what `localq report` shows."""
        # Not imported above: it needs modules that no other call does.
        return str(symbol("localq.report:bugreport")(self))

    # -- What stands where Celery has a broker -------------------------------------------------------

    @cached_property
    def loader(self) -> Any:
        """What imports the modules in which tasks are."""
        return named(self.loader_cls)(self)

    @cached_property
    def log(self) -> Any:
        """What configures logging."""
        return named(self.log_cls)(self)

    @cached_property
    def amqp(self) -> Any:
        """The queues."""
        return named(self.amqp_cls)(self)

    @cached_property
    def control(self) -> Any:
        """Remote control of workers: as yet, `revoke` and what belongs to it."""
        return named(self.control_cls)(self)

    @cached_property
    def events(self) -> Any:
        """Events of workers."""
        if self.events_cls is not None:
            return named(self.events_cls)(self)
        return NotBuilt("app.events", "use the signals of localq.signals in the worker's processes")

    def connection(self, url: str | None = None, **_: Any) -> Connection:
        """Return what stands for a connection: the app's store. See `localq.broker`."""
        return connection_of(self.backend, url)

    connection_for_read = connection_for_write = broker_connection = connection

    def connection_or_acquire(self, connection: Any = None, pool: bool = True, *_: Any, **__: Any) -> Any:
        """Return this connection, or one of the app's, for a `with` block."""
        return connection if connection is not None else self.connection()

    def producer_or_acquire(self, producer: Any = None) -> Any:
        """Return this producer, or one of the app's, for a `with` block."""
        return producer if producer is not None else Producer(self.connection())

    default_connection, default_producer = connection_or_acquire, producer_or_acquire

    @property
    def pool(self) -> Pool:
        """Connections for the asking."""
        return Pool(self.connection)

    @property
    def producer_pool(self) -> Pool:
        """Producers for the asking."""
        return Pool(self.producer_or_acquire)


def named(given: Any) -> Any:
    """Return what a dotted name names, anything else as it is."""
    return symbol(given) if isinstance(given, str) else given
