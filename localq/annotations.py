"""The setting `task_annotations`: attributes that the configuration sets on tasks, whatever their code says.

    {"proj.add": {"rate_limit": "10/m"}}    one task; the name "*" means every task
    {"*": {"on_failure": report}}           a function becomes a method
    {"proj.add": {"@run": timed}}           "@method" wraps a method: it becomes what `timed(method)` returns

The setting may also be a list of such dicts, objects with `annotate(task)` or `annotate_any()`, or dotted names of
either. As in Celery, the first of a list that names a task counts, and the first that speaks of every task; where both
say something, what is said of every task wins. Must not know tasks by more than a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localq.exceptions import ImproperlyConfigured
from localq.options import TASK_OPTIONS, check_names, refuse_of_task
from localq.registry import symbol


def attributes_for(setting: Any, task: Any) -> dict[str, Any]:
    """Return what the setting says of a task: its attributes by name, wrappers by "@name".

    Raises:
        ImproperlyConfigured: the setting is nothing that says so, or names what is almost an option.
        TypeError, ValueError, SerializerNotInstalled: an option cannot have that value.
    """
    if setting is None:
        return {}
    sources = [_source(each) for each in (setting if isinstance(setting, list | tuple) else (setting,))]
    of_one = next(filter(None, (_of_one(source, task) for source in sources)), {})
    of_any = next(filter(None, map(_of_any, sources)), {})
    found = {**of_one, **of_any}
    try:
        check_names(task.name, found, lambda name: name.startswith("@") or hasattr(task, name))
    except TypeError as exc:
        raise ImproperlyConfigured(f"task_annotations: {exc}") from None
    for name, value in found.items():
        if name in TASK_OPTIONS:
            refuse_of_task(TASK_OPTIONS[name], value, f"task {task.name!r} in task_annotations")
    return found


def annotated(kind: type, attributes: Mapping[str, Any]) -> type:
    """Make a class like `kind` with these attributes set and these methods wrapped."""
    body: dict[str, Any] = {name: value for name, value in attributes.items() if not name.startswith("@")}
    for name, around in attributes.items():
        if name.startswith("@"):
            body[name[1:]] = _wrapped(kind, name[1:], around)
    body.update(__doc__=kind.__doc__, __module__=kind.__module__, __qualname__=kind.__qualname__)
    return type(kind.__name__, (kind,), body)


def _source(given: Any) -> Any:
    if isinstance(given, str):
        try:
            given = symbol(given)
        except (ImportError, AttributeError, ValueError) as exc:
            raise ImproperlyConfigured(
                f"task_annotations: {given!r} names nothing that can be imported: {exc}"
            ) from exc
        given = given() if isinstance(given, type) else given
    if isinstance(given, Mapping) or hasattr(given, "annotate") or hasattr(given, "annotate_any"):
        return given
    raise ImproperlyConfigured(
        f"task_annotations: {given!r} says nothing of tasks; give a dict of task name -> attributes, an object with "
        "annotate(task) or annotate_any(), a dotted name of one, or a list of those"
    )


def _of_any(source: Any) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return _checked("*", source.get("*"))
    return _checked("*", source.annotate_any() if hasattr(source, "annotate_any") else None)


def _of_one(source: Any, task: Any) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return _checked(task.name, source.get(task.name))
    return _checked(task.name, source.annotate(task) if hasattr(source, "annotate") else None)


def _checked(name: str, found: Any) -> dict[str, Any]:
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise ImproperlyConfigured(f"task_annotations: {name!r} is given {found!r}; give a dict of attributes")
    return dict(found)


def _wrapped(kind: type, name: str, around: Any) -> Any:
    """Wrap a method; what wraps it is a method in any case, as in Celery, and gets the task first."""
    original = getattr(kind, name, None)
    if not callable(original) or not callable(around):
        raise ImproperlyConfigured(f"task_annotations: '@{name}' must wrap a method with a function, got {around!r}")
    method = around(original)
    method.__wrapped__ = original
    return method
