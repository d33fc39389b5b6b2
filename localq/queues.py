"""Queues and exchanges: what `task_queues` declares, and where an exchange and a routing key lead.

    exchange    routing key leads to
    direct      the queues bound with that very key
    topic       those whose key matches it, word by word: `*` is one word, `#` is any number of them
    fanout      all that are bound
    C.dq2       the worker's own queue, by its node's name (`worker_direct`)

To the store a queue is a name, an exchange is nothing. `Queue`, `Exchange`, `binding` and `Broadcast` take what
kombu's do, and keep what matters without a broker; kombu's own objects are read by their attributes, so kombu is
never imported. Must not know tasks, messages or stores.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from localq.exceptions import ImproperlyConfigured, QueueNotFound
from localq.registry import nearest

logger = logging.getLogger("localq.queues")

#: How alike the name of an exchange that nobody knows must be to one of ours to be a mistake.
_ALIKE = 0.75
DIRECT, TOPIC, FANOUT = TYPES = ("direct", "topic", "fanout")
#: The exchange of workers' own queues, and the end of their names.
DIRECT_EXCHANGE, DIRECT_END = "C.dq2", ".dq2"
#: What kombu's objects take for a broker's sake.
_FOR_BROKERS = frozenset({
    "arguments", "auto_delete", "binding_arguments", "channel", "consumer_arguments", "delivery_mode", "durable",
    "exchange_arguments", "exchange_auto_delete", "exchange_durable", "exclusive", "expires", "max_length",
    "max_length_bytes", "max_priority", "message_ttl", "no_ack", "no_declare", "on_declared", "passive",
    "queue_arguments", "queue_auto_delete", "queue_durable", "unbind_arguments",
})  # fmt: skip
_UUID_AT_END = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"


class Exchange:
    """A name under which queues can be reached by routing keys.

    Args:
        name: its name; empty means the default exchange.
        type: `direct`, `topic` or `fanout`.
        options: what kombu takes besides, without an effect here.
    """

    def __init__(self, name: str = "", type: str = DIRECT, **options: Any) -> None:
        self.name, self.type = name or "", type or DIRECT
        _check_options(f"Exchange {self.name!r}", options, ())
        if self.type not in TYPES:
            raise ImproperlyConfigured(
                f"exchange {self.name!r} is of type {self.type!r}; localq has {', '.join(TYPES)}"
            )

    def __repr__(self) -> str:
        return f"Exchange({self.name!r}, {self.type!r})"


class binding:
    """One way from an exchange to a queue."""

    def __init__(self, exchange: Any = None, routing_key: str = "", **options: Any) -> None:
        _check_options("binding", options, ())
        self.exchange, self.routing_key = exchange_of(exchange), routing_key or ""

    def leads(self, exchange: str, key: str) -> bool:
        """Whether a message to this exchange with this routing key comes this way."""
        if self.exchange.name != exchange:
            return False
        if self.exchange.type == TOPIC:
            return topic_matches(self.routing_key, key)
        return self.exchange.type == FANOUT or self.routing_key == key

    def __repr__(self) -> str:
        return f"binding({self.exchange!r}, {self.routing_key!r})"


class Queue:
    """A queue, and how it is reached.

    Args:
        name: its name.
        exchange: an exchange or its name; or a list of bindings.
        routing_key: the key, or topic pattern, with which it is bound to that exchange.
        bindings: further bindings.
        alias: another name for it, in calls and with -Q.
        options: what kombu takes besides, without an effect here.
    """

    #: Whether every worker that serves it runs each message.
    is_broadcast = False

    def __init__(
        self,
        name: str = "",
        exchange: Any = None,
        routing_key: str = "",
        bindings: Iterable[Any] | None = None,
        alias: str | None = None,
        **options: Any,
    ) -> None:
        _check_options(f"Queue {name!r}", options, ("exchange", "routing_key", "bindings", "alias"))
        if isinstance(exchange, list | tuple | set | frozenset):
            exchange, bindings = None, exchange
        self.name, self.alias = _name(name), alias
        self.exchange, self.routing_key = exchange_of(exchange), routing_key or ""
        self.bindings = tuple(binding(each.exchange, each.routing_key) for each in bindings or ())

    def is_reached(self, exchange: str, key: str) -> bool:
        """Whether a message to this exchange with this routing key comes here."""
        return any(way.leads(exchange, key) for way in (binding(self.exchange, self.routing_key), *self.bindings))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.exchange!r}, {self.routing_key!r})"


class Broadcast(Queue):
    """A queue whose messages are run by every worker that serves it and is up when they are sent.

    Each of those gets a copy in a queue of its own, `<name>.<node>`. A copy waits there if its worker stops, until
    a worker of that node's name is up again. With no worker up, the message waits for the first one that comes.

    Args:
        name: the name of the queue, and of its fanout exchange.
        queue: a name for one queue that all of them share, which is then an ordinary one.
        unique: every worker has its own, whatever `queue` says.
    """

    def __init__(
        self,
        name: str = "",
        queue: str | None = None,
        unique: bool = False,
        exchange: Any = None,
        alias: str | None = None,
        **options: Any,
    ) -> None:
        self.is_broadcast = unique or not queue
        own = name if self.is_broadcast else queue
        super().__init__(own or "", exchange or Exchange(name, FANOUT), alias=alias or name, **options)


def own_queue(name: str, node: str) -> str:
    """Name the queue of one worker's copies of a broadcast."""
    return f"{name}.{node}"


def worker_direct(hostname: Any) -> Any:
    """Return the queue that only the worker of this node name serves; a queue is returned as it is."""
    if not isinstance(hostname, str):
        return hostname
    return Queue(hostname + DIRECT_END, DIRECT_EXCHANGE, hostname)


def exchange_of(thing: Any) -> Exchange:
    """Read an exchange: ours, kombu's, or a name."""
    if isinstance(thing, Exchange):
        return thing
    if thing is None or isinstance(thing, str):
        return Exchange(thing or "")
    if not is_exchange(thing):
        raise TypeError(f"{thing!r} is no exchange: give its name, or an Exchange")
    return Exchange(thing.name, thing.type)


def is_exchange(thing: Any) -> bool:
    """Whether this is an exchange, of ours or of kombu's, and not just a name."""
    return hasattr(thing, "name") and hasattr(thing, "type")


def is_queue(thing: Any) -> bool:
    """Whether this is a queue with bindings, of ours or of kombu's, and not just a name."""
    return all(hasattr(thing, name) for name in ("name", "exchange", "routing_key"))


def queue_of(thing: Any) -> Queue:
    """Read a queue: ours, or kombu's."""
    if isinstance(thing, Queue):
        return thing
    if not is_queue(thing):
        raise TypeError(f"queue {thing!r} is no name of a queue: give text, or a Queue")
    if any(kind.__name__ == "Broadcast" for kind in type(thing).__mro__) and re.search(_UUID_AT_END, thing.name):
        # kombu invents a name for each process's own queue; the one that all of them know is the exchange's.
        return Broadcast(thing.exchange.name, alias=getattr(thing, "alias", None))
    ways = getattr(thing, "bindings", None)
    return Queue(thing.name, thing.exchange, thing.routing_key, ways, getattr(thing, "alias", None))


def topic_matches(pattern: str, key: str) -> bool:
    """Whether a routing key fits a topic pattern: `*` stands for one word, `#` for any number, none included."""
    words = key.split(".") if key else []
    #: After how many words of the key the pattern may have come so far.
    at = {0}
    for part in pattern.split(".") if pattern else []:
        if part == "#":
            at = set(range(min(at), len(words) + 1))
        else:
            at = {here + 1 for here in at if here < len(words) and part in ("*", words[here])}
        if not at:
            return False
    return len(words) in at


class Queues(Mapping[str, Queue]):
    """The queues of an app, by name: those of `task_queues`, or the default queue.

    Asking for one that is not there makes it up, with a direct exchange of its own name, unless
    `task_create_missing_queues` is off. What was added or selected here outlasts a change of the settings.

    Args:
        conf: the app's settings.
        on_change: called when a queue was added.
    """

    def __init__(self, conf: Any, on_change: Callable[[], None] = lambda: None) -> None:
        self._conf, self._on_change = conf, on_change
        self._added: dict[str, Queue] = {}
        self._selected: list[str] | None = None
        self._excluded: set[str] = set()
        self._declared: dict[str, Queue] | None = None

    def settle(self) -> None:
        """Read the settings again, at the next question."""
        self._declared = None

    @property
    def is_plain(self) -> bool:
        """Whether nothing is declared, so that a queue is reached by its name only."""
        conf = self._conf
        return not self._added and not conf.task_queues and conf.task_default_exchange_type == DIRECT

    # -- Which there are -------------------------------------------------------------------------

    @property
    def _table(self) -> dict[str, Queue]:
        if self._declared is None:
            self._declared = {**self._read(), **self._added}
        return self._declared

    def _read(self) -> dict[str, Queue]:
        given = self._conf.task_queues
        if not given:
            name = self._conf.task_default_queue
            return {name: self._completed(Queue(name))}
        pairs = given.items() if isinstance(given, Mapping) else [(None, each) for each in given]
        found = [self._declare(name, each) for name, each in pairs]
        return {queue.name: queue for queue in found}

    def _declare(self, name: str | None, given: Any) -> Queue:
        try:
            made = _declared(name, given)
        except TypeError as exc:
            raise ImproperlyConfigured(f"task_queues: {exc}") from None
        return made if isinstance(given, str) else self._completed(made)

    def _completed(self, queue: Queue) -> Queue:
        """Fill what a queue leaves to the settings: the exchange, and the key it is bound with."""
        conf = self._conf
        if queue.exchange.name or queue.bindings:
            exchange = queue.exchange
        else:
            exchange = Exchange(conf.task_default_exchange or conf.task_default_queue, conf.task_default_exchange_type)
        key = queue.routing_key or conf.task_default_routing_key or conf.task_default_queue
        filled = Queue(queue.name, exchange, key, queue.bindings, queue.alias)
        filled.is_broadcast = queue.is_broadcast
        return filled

    def add(self, queue: Any, **options: Any) -> Queue:
        """Add a queue: an object, or a name with the options of a dict in `task_queues`."""
        made = self._declare(queue, options) if isinstance(queue, str) else self._declare(None, queue)
        self._added[made.name] = made
        self.settle()
        self._on_change()
        return made

    def __getitem__(self, name: str) -> Queue:
        found = self._find(name)
        if found is not None:
            return found
        if not self._conf.task_create_missing_queues:
            raise QueueNotFound(
                f"Queue {name!r} missing from task_queues, and task_create_missing_queues is off: declare it, or set "
                f"that to True{nearest(name, self._table)}"
            )
        return _automatic(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a queue that is declared, or the default."""
        return self._find(name) or default

    def known(self, name: str) -> Queue:
        """Return a queue by its name, one that a worker has for itself included."""
        return self._find(name) or (
            worker_direct(name.removesuffix(DIRECT_END)) if name.endswith(DIRECT_END) else _automatic(name)
        )

    def _find(self, name: str) -> Queue | None:
        found = self._table.get(name)
        return found or next((queue for queue in self._table.values() if queue.alias == name), None)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    # -- Where a message goes --------------------------------------------------------------------

    def exchange_type(self, name: str) -> str | None:
        """Return the type of an exchange by its name; None if no queue is bound to it."""
        return next((way.exchange.type for way in self._ways() if way.exchange.name == name), None)

    def _ways(self) -> Iterator[binding]:
        for queue in self._table.values():
            yield binding(queue.exchange, queue.routing_key)
            yield from queue.bindings

    def reached(self, exchange: str, key: str, also: Queue | None = None) -> list[Queue]:
        """Return the queues to which a routing key leads, `also` before the others if it is among them.

        If it leads nowhere, nothing is lost: the message goes to `also`; or to the declared queue of the key's name;
        to an automatic queue of that name if nobody knows the exchange; else to the default queue.

        Raises:
            QueueNotFound: it leads nowhere, and task_create_missing_queues is off.
        """
        if exchange == DIRECT_EXCHANGE and key:
            return [worker_direct(key)]
        known = {**({also.name: also} if also else {}), **self._table}
        found = [queue for queue in known.values() if queue.is_reached(exchange, key)]
        if found or also:
            return found or [also]  # type: ignore[list-item]
        if not self._conf.task_create_missing_queues and key not in self:
            raise QueueNotFound(
                f"no queue of task_queues is bound to exchange {exchange!r} for routing key {key!r}, and "
                "task_create_missing_queues is off: bind one, or set that to True"
            )
        is_free = self.exchange_type(exchange) is None and key
        if is_free:
            self._refuse_misspelt(exchange)
        return [self[key if is_free or key in self else self._conf.task_default_queue]]

    def _refuse_misspelt(self, exchange: str) -> None:
        hint = nearest(exchange, {way.exchange.name for way in self._ways()} - {""}, _ALIKE)
        if hint:
            raise QueueNotFound(f"no queue is bound to an exchange {exchange!r}{hint}; if not, bind one in task_queues")

    # -- Which a worker serves -------------------------------------------------------------------

    @property
    def consume_from(self) -> dict[str, Queue]:
        """The queues that a worker serves if it is not told which."""
        wanted = list(self) if self._selected is None else self._selected
        return {name: self[name] for name in wanted if name not in self._excluded}

    def select(self, include: Any) -> None:
        """Have workers serve only these."""
        names = _names(include)
        if names:
            self._selected, self._excluded = list(dict.fromkeys(self[name].name for name in names)), set()

    def deselect(self, exclude: Any) -> None:
        """Have workers not serve these."""
        self._excluded |= {self[name].name if name in self else name for name in _names(exclude)}

    def select_add(self, queue: Any, **options: Any) -> Queue:
        """Add a queue, and have workers serve it besides those selected."""
        made = self.add(queue, **options)
        self._excluded.discard(made.name)
        if self._selected is not None and made.name not in self._selected:
            self._selected.append(made.name)
        return made

    def chosen(self, include: Any = None, exclude: Any = None) -> tuple[str, ...]:
        """Name the queues of a worker that was told to serve `include` (or was not) and not `exclude`.

        Raises:
            ImproperlyConfigured: one is unknown and must not be made up, or none is left.
        """
        try:
            wanted = [self[name].name for name in _names(include)] or list(self.consume_from)
            unwanted = {self[name].name for name in _names(exclude)}
        except QueueNotFound as exc:
            raise ImproperlyConfigured(f"{exc}; there are {', '.join(self)}") from None
        for name in sorted(unwanted.difference(wanted)):
            logger.warning("queue %r is excluded, but would not have been served%s", name, nearest(name, wanted))
        left = tuple(name for name in dict.fromkeys(wanted) if name not in unwanted)
        if not left:
            raise ImproperlyConfigured(f"no queue is left to serve: {', '.join(wanted) or 'all of them'} excluded")
        return left

    def claimed(self, names: Iterable[str], node: str) -> tuple[str, ...]:
        """Name what a worker of these queues claims from, with the queues that are its node's alone."""
        names = tuple(names)
        own = [own_queue(name, node) for name in self.broadcasts(names)]
        if self._conf.worker_direct:
            own.append(worker_direct(node).name)
        return tuple(dict.fromkeys((*names, *own)))

    def broadcasts(self, names: Iterable[str]) -> list[str]:
        """Name those of which every worker gets a copy."""
        return [name for name in names if name in self and self[name].is_broadcast]


def nodes_serving(queue: str, owners: Iterable[Any], entries: Iterable[Any]) -> list[str]:
    """Name the live workers that claim their own copies of a broadcast.

    Args:
        owners: everybody who enlisted with the store; a worker's children say there what they claim from.
        entries: the store's `worker:` entries; one is live if its owner is, even while no child is.
    """
    live: dict[str, Mapping[str, Any]] = {owner.name: owner.about for owner in owners if owner.alive}
    nodes = {str(about.get("node")) for about in live.values() if _claims_own(queue, about)}
    facts = [json.loads(entry.value) for entry in entries]
    nodes |= {fact["node"] for fact in facts if fact.get("owner") in live and queue in fact.get("broadcasts", ())}
    return sorted(nodes)


def _claims_own(queue: str, about: Mapping[str, Any]) -> bool:
    return about.get("kind") == "child" and own_queue(queue, str(about.get("node"))) in about.get("queues", ())


def fault_of_queues(given: Any) -> str:
    """Say what in `task_queues` is no queue; empty if all are."""
    try:
        for name, each in given.items() if isinstance(given, Mapping) else [(None, each) for each in given]:
            _declared(name, each)
    except (TypeError, ImproperlyConfigured) as exc:
        return str(exc)
    return ""


def _declared(name: str | None, given: Any) -> Queue:
    """Read one element of `task_queues`, what it leaves open left open."""
    if is_queue(given):
        return queue_of(given)
    if name is not None and (given is None or isinstance(given, Mapping)):
        return _queue_from(name, given or {})
    if name is None and isinstance(given, str):
        return _automatic(given)
    raise TypeError(f"{given!r} is no queue: give names or Queue objects, or {{name: dict}}")


def _automatic(name: str) -> Queue:
    return Queue(name, Exchange(name), name)


def _queue_from(name: str, given: Mapping[str, Any]) -> Queue:
    """Make a queue of a dict in `task_queues`."""
    options = dict(given)
    exchange, type, key = (
        options.pop("exchange", None),
        options.pop("exchange_type", None),
        options.pop("binding_key", None),
    )
    if type is not None:
        exchange = Exchange(exchange_of(exchange).name, type)
    return Queue(name, exchange, options.pop("routing_key", None) or key or name, **options)


def _names(given: Any) -> list[str]:
    """Read names: a text with commas between them, or several texts or queues."""
    if given is None:
        return []
    if isinstance(given, str):
        return [name.strip() for name in given.split(",") if name.strip()]
    return [each if isinstance(each, str) else queue_of(each).name for each in ([given] if is_queue(given) else given)]


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise TypeError(f"queue {name!r} is no name of a queue: give text")
    return name


def _check_options(what: str, options: Mapping[str, Any], known: Iterable[str]) -> None:
    for name in options:
        if name not in _FOR_BROKERS:
            raise TypeError(f"{what} takes no option {name!r}{nearest(name, [*_FOR_BROKERS, *known])}")
