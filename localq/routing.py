"""Which queue a task goes to, and which options it gets on the way.

    call's options  >  task's attributes  >  task_routes  >  settings

Each of the first three may name a destination: a queue, or an exchange and a routing key. The first that does
decides where the message goes; one that gives a routing key alone only adds it to what the next one says. Of the
other options of a route (priority, serializer...) those count that neither the call nor the task gives.

A message for several queues becomes one message in each. The first keeps the task's id, and it is that one whose
result `AsyncResult` reads; the others have ids of their own and name the first as their root.

What Celery users import from kombu or celery.utils.nodenames is here too: `Queue`, `Exchange`, `binding`,
`Broadcast`, `worker_direct`. Must not know messages or stores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import translate
from typing import Any, Self

from localq.exceptions import ImproperlyConfigured, QueueNotFound, SerializerNotInstalled
from localq.options import CALL_OPTIONS, refuse_near_miss
from localq.queues import (
    DIRECT,
    Broadcast,
    Exchange,
    Queue,
    Queues,
    binding,
    exchange_of,
    is_queue,
    queue_of,
    worker_direct,
)
from localq.registry import symbol

__all__ = ["Broadcast", "Exchange", "Queue", "Queues", "Routed", "Router", "binding", "compiled", "worker_direct"]

#: Options that say where a message goes.
DESTINATION = frozenset({"queue", "exchange", "exchange_type", "routing_key"})
#: Asked with (name, args, kwargs, options, task=...): a queue, a mapping of options, or None.
Asked = Callable[..., Any]


class Routed(str):
    """The name of the queue a message goes to, where that is not all there is to say.

    Attributes:
        also: names of the further queues that get a copy.
        broadcasts: which of all of them stand for the queues of every live worker.
        exchange, routing_key: how it got there; both empty if the queue was named.
    """

    __slots__ = ("also", "broadcasts", "exchange", "routing_key")
    also: tuple[str, ...]
    broadcasts: frozenset[str]
    exchange: str
    routing_key: str

    def __new__(
        cls,
        name: str,
        also: tuple[str, ...] = (),
        broadcasts: frozenset[str] = frozenset(),
        exchange: str = "",
        routing_key: str = "",
    ) -> Self:
        made = super().__new__(cls, name)
        made.also, made.broadcasts, made.exchange, made.routing_key = also, broadcasts, exchange, routing_key
        return made


class Router:
    """Finds the queues of an app's calls.

    Attributes:
        queues: the app's queues.
        plain: the default queue, as long as nothing else needs to be asked for a call that names no destination.
    """

    plain: str | None

    def __init__(self, conf: Any) -> None:
        self._conf = conf
        self.queues = Queues(conf, self._derive)
        self.settle()

    def settle(self) -> None:
        """Read the settings again: at once what every call needs, the rest when it is asked for."""
        self._routes: list[Asked] | None = None
        self.queues.settle()
        self._derive()

    def _derive(self) -> None:
        is_plain = not self._conf.task_routes and self.queues.is_plain
        self.plain = self._conf.task_default_queue if is_plain else None
        self._takes_any_name = is_plain and self._conf.task_create_missing_queues

    def route(
        self,
        name: str,
        args: Any = (),
        kwargs: Any = None,
        options: Mapping[str, Any] | None = None,
        own: Mapping[str, Any] | None = None,
        task: Any = None,
    ) -> tuple[str, dict[str, Any]]:
        """Find the queue of a call.

        Args:
            options: the call's options.
            own: what the task says of its destination.
            task: the task, if this process knows it; routers may look at it.

        Returns:
            The queue, a `Routed` if there are several or an exchange led there; and the options of the route.

        Raises:
            QueueNotFound: it is not declared, and task_create_missing_queues is off.
            TypeError: a queue is no queue, or a router returned no route.
            ImproperlyConfigured: task_routes or task_queues cannot be read.
        """
        own = own or {}
        given = {key: value for key, value in (options or {}).items() if value is not None}
        said = given if "queue" in given else {**own, **given}
        queue = said.get("queue")
        if isinstance(queue, Routed):  # it has been through here
            return str(queue), {}
        if self._takes_any_name and queue and type(queue) is str and "exchange" not in said:
            return queue, {}  # most calls that name a queue: there is nothing to ask
        route = self._ask(name, args, kwargs or {}, {**own, **given}, task)
        where: dict[str, Any] = {}
        for level in (route, own, given):
            named = {key: level[key] for key in DESTINATION & level.keys()}
            where = named if "queue" in named or "exchange" in named else {**where, **named}
        try:
            return self._destination(**where), {key: route[key] for key in route.keys() - DESTINATION}
        except (TypeError, QueueNotFound) as exc:
            if DESTINATION & route.keys():
                exc.add_note(f"task_routes sends task {name!r} there: {route!r}")
            raise

    def _ask(self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any], task: Any) -> dict[str, Any]:
        """Return what the first router that knows this call says of it."""
        if self._routes is None:
            self._routes = compiled(self._conf.task_routes)
        for ask in self._routes:
            found = ask(name, args, kwargs, dict(options), task=task)
            if found is not None:
                return _route(found, name)
        return {}

    def _destination(
        self, queue: Any = None, exchange: Any = None, exchange_type: str | None = None, routing_key: str | None = None
    ) -> str:
        if queue is None and exchange is None:
            queue = self._conf.task_default_queue
        target = None if queue is None else self._queue(queue)
        if exchange is not None:
            way = exchange_of(exchange)
            type = self.queues.exchange_type(way.name) or Exchange(way.name, exchange_type or way.type).type
            if way.name and (routing_key or type != DIRECT):
                return self._reached(way.name, routing_key or (target.routing_key if target else ""), target)
        if target is None:
            target = self._queue(self._conf.task_default_queue)
        if target.exchange.type == DIRECT:
            return target.name  # as with Celery, a queue that is named is reached whatever its key
        return self._reached(target.exchange.name, routing_key or target.routing_key, target)

    def _queue(self, queue: Any) -> Queue:
        return self.queues[queue] if isinstance(queue, str) else queue_of(queue)

    def _reached(self, exchange: str, key: str, target: Queue | None) -> Routed:
        found = self.queues.reached(exchange, key, target)
        first, *others = (queue.name for queue in found)
        broadcasts = frozenset(queue.name for queue in found if queue.is_broadcast)
        return Routed(first, tuple(others), broadcasts, exchange, key)


def _route(found: Any, name: str) -> dict[str, Any]:
    if isinstance(found, Mapping):
        return {key: value for key, value in found.items() if value is not None}
    if isinstance(found, str) or is_queue(found):
        return {"queue": found}
    raise TypeError(
        f"task_routes: the route of task {name!r} is {found!r}: give the name of a queue or a dict of options"
    )


# -- task_routes -----------------------------------------------------------------------------------


def fault_of_routes(routes: Any) -> str:
    """Say what is wrong with `task_routes`, as far as it can be said before a call is routed; empty if nothing is.

    What a path names is not imported for it, since its module may be the one that is being imported now.
    """
    try:
        for each in routes if isinstance(routes, list | tuple) and not _is_pair(routes) else [routes]:
            if not isinstance(each, str):
                _refuse_wrong(each)
    except (TypeError, ValueError, ImproperlyConfigured, SerializerNotInstalled) as exc:
        return str(exc).removeprefix("task_routes: ")
    return ""


def _refuse_wrong(route: Any) -> None:
    """Raise an error if an element of `task_routes` is no router, or sends somewhere that cannot be."""
    if callable(route) or hasattr(route, "route_for_task"):
        return
    pair = [route] if _is_pair(route) else route
    _router(pair)
    for pattern, target in pair.items() if isinstance(pair, Mapping) else pair:
        where = f"the route of {getattr(pattern, 'pattern', pattern)!r}"
        if target is not None and not isinstance(target, str | Mapping) and not is_queue(target):
            raise TypeError(f"{where} is {target!r}: give the name of a queue or a dict of options")
        for key, value in target.items() if isinstance(target, Mapping) else ():
            if key in CALL_OPTIONS:
                CALL_OPTIONS[key].refuse(value, where)
            else:
                refuse_near_miss(key, where)


def compiled(routes: Any) -> list[Asked]:
    """Turn `task_routes` into routers, to be asked in order.

    Raises:
        ImproperlyConfigured: one of them is no router.
    """
    if not routes:
        return []
    if not isinstance(routes, list | tuple):
        return [_router(routes)]
    found: list[Any] = []
    for each in routes:
        if not _is_pair(each):
            found.append(each)
        elif found and _is_pairs(found[-1]):
            found[-1] = [*found[-1], each]
        else:
            found.append([each])
    return [_router(each) for each in found]


def _is_pair(thing: Any) -> bool:
    """Whether this is (pattern, target), given without the list around it that Celery wants."""
    return isinstance(thing, list | tuple) and len(thing) == 2 and isinstance(thing[0], str | re.Pattern)


def _is_pairs(thing: Any) -> bool:
    return isinstance(thing, list) and all(map(_is_pair, thing))


def _router(route: Any) -> Asked:
    """Make a router of one element of `task_routes`."""
    if isinstance(route, str):
        try:
            route = symbol(route)
        except (ImportError, AttributeError, ValueError) as exc:
            raise ImproperlyConfigured(f"task_routes names {route!r}, which cannot be imported: {exc}") from exc
    if isinstance(route, type) and hasattr(route, "route_for_task"):
        route = route()
    if hasattr(route, "route_for_task"):
        return lambda name, args, kwargs, *_, **__: route.route_for_task(name, args, kwargs)
    if isinstance(route, Mapping | list | tuple):
        return _table(route)
    if callable(route):
        return route  # type: ignore[no-any-return]
    raise ImproperlyConfigured(f"task_routes: {route!r} is no router: give a dict, pairs, a function or its path")


def _table(route: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> Asked:
    try:
        pairs = [(name, target) for name, target in (route.items() if isinstance(route, Mapping) else route)]
    except (TypeError, ValueError):
        raise ImproperlyConfigured(f"task_routes: {route!r} is no list of pairs (pattern, queue)") from None
    for name, _ in pairs:
        if not isinstance(name, str | re.Pattern):
            raise ImproperlyConfigured(
                f"task_routes: {name!r} is no name of tasks: give text, perhaps with * in it, or a compiled pattern"
            )
    exact = {name: target for name, target in pairs if isinstance(name, str) and not _is_pattern(name)}
    patterns = [
        (name if isinstance(name, re.Pattern) else re.compile(translate(name)), target)
        for name, target in pairs
        if not isinstance(name, str) or _is_pattern(name)
    ]

    def look_up(name: str, *_: Any, **__: Any) -> Any:
        if name in exact:
            return exact[name]
        return next((target for pattern, target in patterns if pattern.match(name)), None)

    return look_up


def _is_pattern(name: str) -> bool:
    return any(mark in name for mark in "*?[")
