"""Settings: Celery's lower-case names, each declared once with its type, default and reason.

`app.conf` is a `Settings`. A name that is close to one of ours is an error naming it, a setting of
another broker or backend is kept without a meaning. Reads no file and no environment by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from localq.exceptions import ImproperlyConfigured
from localq.registry import nearest

logger = logging.getLogger("localq.config")


class Setting(NamedTuple):
    """One setting.

    Attributes:
        kinds: the types a value may have; None is allowed where it is the default.
        check: returns what is wrong with a value, or an empty text.
        is_built: whether anything obeys it yet.
    """

    name: str
    kinds: tuple[type, ...]
    default: Any
    doc: str
    check: Callable[[Any], str] | None = None
    is_built: bool = True


def one_of(*words: str) -> Callable[[Any], str]:
    """A check: the value is one of these words."""
    return lambda value: "" if value in words else f"expected one of {', '.join(words)}"


def between(low: float, high: float) -> Callable[[Any], str]:
    """A check: low <= value <= high."""
    return lambda value: "" if low <= value <= high else f"expected {low} to {high}"


def at_least(low: float) -> Callable[[Any], str]:
    """A check: value >= low."""
    return lambda value: "" if value >= low else f"expected at least {low}"


def _is_routes(value: Any) -> str:
    is_right = callable(value) or isinstance(value, dict | list | tuple | str) or hasattr(value, "route_for_task")
    return "" if is_right else "expected dict, list, function, path, or an object with route_for_task"


NUMBER = (int, float)
NAMES = (list, tuple, set, frozenset)
SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("accept_content", NAMES, ("json",), "serializers a reader takes"),
        Setting("result_accept_content", NAMES, None, "the same for results; None: accept_content"),
        Setting("enable_utc", (bool,), True, "naive datetimes are UTC"),
        Setting("timezone", (str,), None, "time zone of naive datetimes and of logs; None: UTC"),
        Setting("imports", NAMES, (), "modules a worker imports"),
        Setting("include", NAMES, (), "more modules a worker imports"),
        Setting("json_allow_nan", (bool,), True, "NaN and Infinity may be written"),
        Setting("store_durability", (str,), "standard", "what a power cut may lose", one_of("standard", "full")),
        Setting("task_always_eager", (bool,), False, "run tasks where they are sent, at once"),
        Setting("task_eager_propagates", (bool,), False, "an eager task's exception is raised to its caller"),
        Setting("task_store_eager_result", (bool,), False, "eager results are written to the store", None, False),
        Setting("task_serializer", (str,), "json", "serializer of arguments"),
        Setting("result_serializer", (str,), "json", "serializer of results"),
        Setting("result_extended", (bool,), False, "results tell name, arguments, worker, retries, queue", None, False),
        Setting("result_expires", NUMBER, 86400.0, "seconds a result is kept", at_least(0), False),
        Setting("task_acks_late", (bool,), False, "default of acks_late"),
        Setting("task_reject_on_worker_lost", (bool,), False, "default of reject_on_worker_lost"),
        Setting("task_retry_on_worker_lost", (bool,), False, "default of retry_on_worker_lost"),
        Setting("task_max_redeliveries", (int,), 3, "crashes after which a task is given up", at_least(0)),
        Setting("task_ignore_result", (bool,), False, "default of ignore_result"),
        Setting("task_store_errors_even_if_ignored", (bool,), False, "errors are kept although results are ignored"),
        Setting("task_track_started", (bool,), False, "write the state STARTED"),
        Setting("task_default_queue", (str,), "celery", "queue of tasks that name none"),
        Setting("task_default_priority", (int,), 5, "0 is the highest", between(0, 255)),
        Setting("task_routes", (object,), None, "task name or pattern -> queue, or functions that say", _is_routes),
        Setting("task_queues", (dict, list, tuple), None, "queues that workers serve; None: the default queue"),
        Setting("task_create_missing_queues", (bool,), True, "a queue that task_queues lacks is made up"),
        Setting("task_default_exchange", (str,), None, "exchange of queues that name none; None: task_default_queue"),
        Setting("task_default_exchange_type", (str,), "direct", "its type", one_of("direct", "topic", "fanout")),
        Setting("task_default_routing_key", (str,), None, "key of queues that name none; None: task_default_queue"),
        Setting("task_queue_max_priority", (int,), None, "accepted: every queue has priorities 0 to 255", at_least(0)),
        Setting(
            "task_priority_order", (str,), "low_first", "which priority is first", one_of("low_first", "high_first")
        ),
        Setting("task_inherit_parent_priority", (bool,), False, "a task's priority is that of the task that sent it"),
        Setting("worker_direct", (bool,), False, "a worker serves a queue of its own, <node>.dq2"),
        Setting("task_default_rate_limit", (str, int, float), None, "default of rate_limit", None, False),
        Setting("task_annotations", (dict, list, tuple), None, "attributes to set on tasks", None, False),
        Setting(
            "worker_concurrency", (int,), None, "child processes; None: the CPUs this process may use", at_least(1)
        ),
        Setting("worker_pool", (str,), "prefork", "prefork or solo"),
        Setting("worker_hijack_root_logger", (bool,), True, "a worker configures the root logger if nobody has"),
        Setting("worker_log_format", (str,), "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s", "log lines"),
        Setting(
            "worker_task_log_format",
            (str,),
            "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s",
            "log lines of tasks",
        ),
        Setting("worker_log_color", (bool,), None, "colour; None: if the log is a terminal"),
    )
}

#: Beginnings of names that are ours: a name that has one and is not declared is a mistake ...
OURS = ("task_", "result_", "worker_", "store_")
#: ... unless it is one of Celery's that mean something only with a broker, or later.
FOREIGN = (
    "broker_", "result_backend", "result_exchange", "result_persistent", "result_cache", "result_chord", "beat_",
    "event_", "control_", "security_", "redis_", "database_", "mongodb_", "cassandra_", "s3_", "task_queue",
    "task_default_exchange", "task_default_routing_key", "task_default_delivery_mode", "task_protocol",
    "task_create_missing", "task_publish_retry", "worker_prefetch", "worker_send", "worker_cancel",
    "worker_enable", "worker_state", "worker_timer", "worker_lost_wait", "worker_direct", "worker_max",
    "worker_soft", "worker_redirect", "worker_disable", "worker_deduplicate", "worker_detect", "worker_pool_",
    "worker_proc", "worker_agent", "worker_autoscaler", "worker_consumer", "worker_log_datefmt", "worker_eta",
    "worker_task_log_datefmt", "task_send_sent", "task_time_limit", "task_soft_time_limit", "task_compression",
    "result_compression", "task_remote", "task_acks_on", "task_allow", "task_inherit", "task_repr",
    "task_default_queue_type", "result_failure", "worker_executable", "worker_gid", "worker_uid", "worker_umask",
    "worker_logfile", "worker_pidfile",
)  # fmt: skip


class Settings:
    """What `app.conf` is: every declared setting as an attribute, and whatever else was given.

    Reading an attribute is a plain dictionary look-up; every write is checked first.
    """

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        self.__dict__.update({name: setting.default for name, setting in SETTINGS.items()})
        self.__dict__["_changed"] = set()
        #: Called after every change.
        self.__dict__["_on_change"] = lambda: None
        self.update(given or {})

    def update(self, given: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Set several at once, or none of them.

        Raises:
            ImproperlyConfigured: every fault that was found, in one message.
        """
        values = {**(given or {}), **more}
        faults = [fault for name, value in values.items() if (fault := _fault(name, value))]
        if faults:
            raise ImproperlyConfigured("; ".join(faults))
        for name in values:
            if name not in SETTINGS and not name.startswith(FOREIGN):
                logger.warning("setting %r is not one of localq's; it is kept in app.conf", name)
        self.__dict__.update(values)
        self.__dict__["_changed"].update(values)
        self.__dict__["_on_change"]()

    def on_change(self, act: Callable[[], None]) -> None:
        """Have `act` called after every change."""
        self.__dict__["_on_change"] = act

    def __setattr__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no setting is named {name!r}{nearest(name, SETTINGS)}")

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError as exc:
            raise KeyError(str(exc)) from None

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __contains__(self, name: object) -> bool:
        return name in self.__dict__ and not str(name).startswith("_")

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.__dict__ if not name.startswith("_"))

    def get(self, name: str, default: Any = None) -> Any:
        """Return a setting, or the default if it is not known."""
        return self.__dict__.get(name, default)

    def setdefault(self, name: str, default: Any) -> Any:
        """Return a setting that was given; set it first if it was not."""
        if name not in self._changed:
            self.update({name: default})
        return self[name]

    def without_defaults(self) -> dict[str, Any]:
        """Return what was given, defaults left out."""
        return {name: self.__dict__[name] for name in sorted(self._changed)}

    def without_effect(self) -> list[str]:
        """Return the names of settings that were given and that nothing here obeys."""
        return [name for name in sorted(self._changed) if name not in SETTINGS or not SETTINGS[name].is_built]

    def __repr__(self) -> str:
        return f"<Settings {self.without_defaults()!r}>"


def _fault(name: str, value: Any) -> str:
    setting = SETTINGS.get(name)
    if setting is None:
        hint = nearest(name, SETTINGS)
        unknown = name.startswith("_") or (not name.startswith(FOREIGN) and (hint or name.startswith(OURS)))
        return f"no setting is named {name!r}{hint}" if unknown else ""
    if value is None and setting.default is None:
        return ""
    right = isinstance(value, setting.kinds) and not (isinstance(value, bool) and bool not in setting.kinds)
    if not right:
        kinds = " or ".join(kind.__name__ for kind in setting.kinds)
        return f"{name} = {value!r}: expected {kinds} ({setting.doc})"
    wrong = setting.check(value) if setting.check else ""
    return f"{name} = {value!r}: {wrong} ({setting.doc})" if wrong else ""
