"""What stands where Celery has a broker: connections, a pool of them, producers, queues.

There is no broker, so a connection is the app's store, and `ensure_connection` says whether it can be used: health
checks, and code that passes connections along, go on working. What needs a broker's own words (exchanges, consumers,
bodies) raises an error that says what to do instead. Must not send anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Self

from localq.backend import Backend
from localq.exceptions import ImproperlyConfigured
from localq.queues import Queues


class Connection:
    """The app's store, as Celery's code uses a connection. Opened at the first need; nothing is to be closed."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def as_uri(self, include_password: bool = False, mask: str = "**") -> str:
        """Return where the store is."""
        return self._backend.url

    def ensure_connection(self, errback: Callable[..., Any] | None = None, *retries: Any, **policy: Any) -> Self:
        """Open the store if it is not open, and read a row of it.

        Args:
            errback: called with the error and 0 before it is raised.
            retries, policy: accepted: the store can be used, or an error says why not; waiting would not help.

        Raises:
            OperationalError: it cannot be used.
        """
        try:
            self._backend.storage.due(1)
        except Exception as exc:
            if errback is not None:
                errback(exc, 0)
            raise
        return self

    connect = ensure_connection

    @property
    def connected(self) -> bool:
        """Whether this process has the store open."""
        return "storage" in self._backend.__dict__

    def release(self) -> None:
        """Do nothing: the store belongs to the app, which others use as well. `app.close()` lets go of it."""

    close = collapse = release

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __getattr__(self, name: str) -> NoReturn:
        raise _no_broker(self, name, "the store itself is app.storage")

    def __repr__(self) -> str:
        return f"<Connection: {self.as_uri()}>"


class Producer:
    """What Celery's code passes along to send by; here a call needs none."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def release(self) -> None:
        """Do nothing."""

    close = release

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __getattr__(self, name: str) -> NoReturn:
        raise _no_broker(self, name, "send tasks with task.apply_async() or app.send_task()")


class Pool:
    """Connections or producers for the asking; there is no number of them that could run out."""

    limit = None

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def acquire(self, block: bool = False, timeout: float | None = None) -> Any:
        """Return one, to be used in a `with` block or not."""
        return self._make()

    def force_close_all(self) -> None:
        """Do nothing: none is kept."""

    def __getattr__(self, name: str) -> NoReturn:
        raise _no_broker(self, name, "acquire() is what it has")


class Amqp:
    """The queues of an app and ways to its store, under Celery's names; `app.amqp`."""

    def __init__(self, app: Any) -> None:
        self.app = app

    @property
    def queues(self) -> Queues:
        """The app's queues, by name."""
        queues: Queues = self.app.router.queues
        return queues

    @property
    def default_queue(self) -> str:
        """The queue of tasks that name none."""
        return str(self.app.conf.task_default_queue)

    @property
    def producer_pool(self) -> Pool:
        return Pool(lambda: Producer(Connection(self.app.backend)))

    def __getattr__(self, name: str) -> NoReturn:
        raise _no_broker(self, name, "routes are the setting task_routes, and app.send_task() sends")


class NotBuilt:
    """A part of Celery's app that this version of localq has not got yet: it says so when it is used.

    Args:
        name: what it is called (`app.control`).
        instead: what there is meanwhile.
    """

    def __init__(self, name: str, instead: str) -> None:
        self._name, self._instead = name, instead

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self._name}.{name}: this version of localq has no {self._name} yet; {self._instead}")

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"this version of localq has no {self._name} yet; {self._instead}")

    def __repr__(self) -> str:
        return f"<{self._name}: not built yet>"


def connection_of(backend: Backend, url: str | None) -> Connection:
    """Return the connection that Celery's code asks for by this URL; None is the app's own.

    Raises:
        ImproperlyConfigured: it is another place than the app's store.
    """
    if url is not None and url != backend.url:
        shown = url.rpartition("@")[2]  # what stands before the @ may be a password
        raise ImproperlyConfigured(
            f"no connection to {shown}: this app keeps its work in {backend.url}; make another app for another store"
        )
    return Connection(backend)


def _name_of(queue: Any) -> str:
    return str(getattr(queue, "name", queue))


def _no_broker(thing: object, name: str, instead: str) -> AttributeError:
    return AttributeError(f"{type(thing).__name__} has no {name!r}: localq has no broker; {instead}")
