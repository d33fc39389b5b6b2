"""Which queue a task goes to.

The call's own option wins, then the task's attribute, then `task_routes`, then the default queue.
Knows names only: a queue exists as soon as a message is in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import translate
from typing import Any

from localq.registry import symbol

#: A router: (name, args, kwargs, options) -> queue name, mapping with "queue", or None.
Router = Callable[..., Any]


def compiled(routes: Any) -> list[Router]:
    """Turn `task_routes` into routers, to be asked in order."""
    if not routes:
        return []
    if callable(routes) or isinstance(routes, Mapping | str):
        routes = [routes]
    routes = [symbol(route) if isinstance(route, str) else route for route in routes]
    return [route if callable(route) else _table(route) for route in routes]


def _table(route: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> Router:
    pairs = list(route.items() if isinstance(route, Mapping) else route)
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


def queue_for(routers: list[Router], name: str, args: Any, kwargs: Any, options: Mapping[str, Any]) -> str | None:
    """Ask the routers in turn; returns the first queue named, or None."""
    for router in routers:
        found = router(name, args, kwargs, options)
        if found is None:
            continue
        queue = found.get("queue") if isinstance(found, Mapping) else found
        if queue is not None:
            return str(queue)
    return None
