"""The table of settings: each declared once, with its type, default, reason, check and old name.

Celery's whole set is here. Names that mean nothing without a broker are known too, with Celery's default, so that a
project's configuration loads unchanged. Holds no values that anybody gave and reads nothing: `config` does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

from localq import rates
from localq.moments import zone_named
from localq.queues import TYPES, fault_of_queues
from localq.registry import Registry, nearest
from localq.routing import fault_of_routes
from localq.serialization import fault_of_accepted, fault_of_serializer, safe_repr


class Setting(NamedTuple):
    """One setting.

    Attributes:
        kinds: the types a value may have; None is allowed where it is the default. `ANY`: whatever it is.
        check: returns what is wrong with a value, or an empty text.
        is_built: whether anything obeys it yet.
        old: its upper-case name of before Celery 4; `SETTINGS` fills in what follows from the rule.
    """

    name: str
    kinds: tuple[type, ...]
    default: Any
    doc: str
    check: Callable[[Any], str] | None = None
    is_built: bool = True
    old: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether it means something here, or will."""
        return self.doc is not FOREIGN


def one_of(*words: str) -> Callable[[Any], str]:
    """A check: the value is one of these words."""
    return lambda value: "" if value in words else f"expected one of {', '.join(words)}"


def between(low: float, high: float) -> Callable[[Any], str]:
    """A check: low <= value <= high."""
    return lambda value: "" if low <= value <= high else f"expected {low} to {high}"


def at_least(low: float) -> Callable[[Any], str]:
    """A check: value >= low; a timedelta counts in seconds."""
    return lambda value: (
        "" if (value.total_seconds() if isinstance(value, timedelta) else value) >= low else f"expected at least {low}"
    )


def is_zone(value: Any) -> str:
    """A check: this machine knows the time zone."""
    try:
        zone_named(value)
    except (LookupError, ValueError, OSError):
        return "no such time zone is known here; write it as Europe/Berlin or UTC"
    return ""


def is_rate(value: Any) -> str:
    """A check: the value can be read as a rate limit."""
    try:
        rates.parse(value)
    except ValueError:
        return f"expected {rates.FORMS}"
    return ""


def is_pool(value: str) -> str:
    """A check: a pool of ours or of Celery's, a path to a class, or one that an installed package adds.

    Celery's others are no mistake here: a program that only sends may have such a configuration. A worker refuses them.
    """
    if value in (*POOLS, *POOLS_LATER) or ":" in value or "." in value:
        return ""
    try:
        Registry("pool", "localq.pools").get(value)
    except LookupError:
        return f"no such pool, there are {', '.join(POOLS)}{nearest(value, POOLS)}"
    return ""


def annotates(value: Any) -> str:
    """A check: something `task_annotations` can be made of."""
    is_right = isinstance(value, dict | list | tuple | str) or hasattr(value, "annotate")
    return "" if is_right else "expected a dict, an object with annotate(), a dotted path, or a list of those"


POOLS = ("prefork", "processes", "solo")
#: Celery's pools that are not here yet.
POOLS_LATER = ("eventlet", "gevent", "threads", "custom")
FOREIGN = "one of Celery's that means nothing here"
ANY = (object,)
BOOL, INT, TEXT = (bool,), (int,), (str,)
NUMBER = (int, float)
SPAN = (int, float, timedelta)
NAMES = (list, tuple, set, frozenset)
#: A broker's or a result backend's place.
PLACE = (str, os.PathLike, list, tuple)
_LOG = "[%(asctime)s: %(levelname)s/%(processName)s] "


def _later(
    name: str, kinds: tuple[type, ...], default: Any, doc: str, check: Callable[[Any], str] | None = None, old: str = ""
) -> Setting:
    """Declare a setting that nothing obeys yet."""
    return Setting(name, kinds, default, doc, check, False, old)


_OURS: tuple[Setting, ...] = (
    # -- General ---------------------------------------------------------------------------------
    Setting("accept_content", NAMES, ("json",), "serializers a reader takes", fault_of_accepted,
            old="CELERY_ACCEPT_CONTENT"),
    Setting("result_accept_content", NAMES, None, "the same for results; None: accept_content", fault_of_accepted,
            old="RESULT_ACCEPT_CONTENT"),
    Setting("enable_utc", BOOL, True, "naive datetimes are UTC"),
    Setting("timezone", TEXT, None, "time zone of naive datetimes and of logs; None: UTC", is_zone,
            old="CELERY_TIMEZONE"),
    Setting("imports", NAMES, (), "modules a worker imports", old="CELERY_IMPORTS"),
    Setting("include", NAMES, (), "more modules a worker imports", old="CELERY_INCLUDE"),
    Setting("json_allow_nan", BOOL, True, "NaN and Infinity may be written"),
    Setting("store_durability", TEXT, "standard", "what a power cut may lose", one_of("standard", "full")),
    Setting("broker_url", PLACE, None, "where the store is; a URL of another system is ignored with a warning"),
    Setting("result_backend", PLACE, None, "the same; results are kept with the tasks"),
    # -- Sending ---------------------------------------------------------------------------------
    Setting("task_serializer", TEXT, "json", "serializer of arguments", fault_of_serializer,
            old="CELERY_TASK_SERIALIZER"),
    _later("task_compression", TEXT, None, "compression of arguments", old="CELERY_MESSAGE_COMPRESSION"),
    Setting("task_annotations", ANY, None, "attributes to set on tasks", annotates),
    Setting("task_always_eager", BOOL, False, "run tasks where they are sent, at once"),
    Setting("task_eager_propagates", BOOL, False, "an eager task's exception is raised to its caller",
            old="CELERY_EAGER_PROPAGATES_EXCEPTIONS"),
    Setting("task_store_eager_result", BOOL, False, "eager results are written to the store"),
    Setting("task_publish_retry", BOOL, True, "try again if the store is busy", old="CELERY_TASK_PUBLISH_RETRY"),
    Setting("task_publish_retry_policy", (dict,),
            {"max_retries": 3, "interval_start": 0, "interval_max": 1, "interval_step": 0.2},
            "how often, and how long apart in seconds", old="CELERY_TASK_PUBLISH_RETRY_POLICY"),
    Setting("task_repr_maxlevels", INT, 3, "levels of nesting that argsrepr and kwargsrepr show", at_least(0)),
    _later("task_send_sent_event", BOOL, False, "send the event task-sent", old="CELERY_SEND_TASK_SENT_EVENT"),
    # -- Routing ---------------------------------------------------------------------------------
    Setting("task_default_queue", TEXT, "celery", "queue of tasks that name none"),
    Setting("task_default_exchange", TEXT, None, "exchange of tasks that name none; None: the default queue's name"),
    Setting("task_default_exchange_type", TEXT, "direct", "type of exchanges that name none", one_of(*TYPES)),
    Setting("task_default_routing_key", TEXT, None, "routing key where none is named; None: the default queue's name"),
    Setting("task_queues", (*NAMES, dict), None, "the queues there are, by name", fault_of_queues,
            old="CELERY_QUEUES"),
    Setting("task_routes", (dict, list, tuple, str, object), None, "which queue a task goes to", fault_of_routes),
    Setting("task_create_missing_queues", BOOL, True, "a queue that task_queues does not name is made"),
    Setting("task_default_priority", INT, 5, "0 is the highest", between(0, 255)),
    Setting("task_queue_max_priority", INT, None, "a priority beyond it counts as this one", between(0, 255)),
    Setting("task_inherit_parent_priority", BOOL, False, "a task sent by a task has its priority"),
    Setting("task_priority_order", TEXT, "low_first", "which priority runs first: the low number or the high one",
            one_of("low_first", "high_first")),
    Setting("worker_direct", BOOL, False, "each worker has a queue of its own as well", old="CELERY_WORKER_DIRECT"),
    # -- Running ---------------------------------------------------------------------------------
    Setting("task_acks_late", BOOL, False, "default of acks_late"),
    Setting("task_acks_on_failure_or_timeout", BOOL, True, "default of acks_on_timeout"),
    Setting("task_acks_on_failure", BOOL, None, "what failed is kept either way"),
    Setting("task_acks_on_timeout", BOOL, None, "False: a task with acks_late that ran out of time runs again"),
    Setting("task_reject_on_worker_lost", BOOL, None, "default of reject_on_worker_lost"),
    Setting("task_retry_on_worker_lost", BOOL, False, "default of retry_on_worker_lost"),
    Setting("task_max_redeliveries", INT, 3, "crashes after which a task is given up", at_least(0)),
    Setting("task_ignore_result", BOOL, False, "default of ignore_result"),
    Setting("task_store_errors_even_if_ignored", BOOL, False, "errors are kept although results are ignored"),
    Setting("task_track_started", BOOL, False, "write the state STARTED"),
    Setting("task_time_limit", NUMBER, None, "seconds after which a task's process is killed", at_least(0),
            old="CELERYD_TASK_TIME_LIMIT"),
    Setting("task_soft_time_limit", NUMBER, None, "seconds after which SoftTimeLimitExceeded is raised in a task",
            at_least(0), old="CELERYD_TASK_SOFT_TIME_LIMIT"),
    Setting("task_default_rate_limit", (str, *NUMBER), None, "default of rate_limit", is_rate),
    Setting("task_rate_limit_scope", TEXT, "host", "what a rate limit counts: all workers here, or each for itself",
            one_of("host", "worker")),
    Setting("task_unknown_policy", TEXT, "park", "what becomes of a task that no worker knows",
            one_of("park", "fail")),
    _later("task_allow_error_cb_on_chord_header", BOOL, False, "a chord's error callback goes to its header too"),
    Setting("task_remote_tracebacks", BOOL, False, "what get() raises brings the worker's traceback; needs tblib"),
    # -- Results ---------------------------------------------------------------------------------
    Setting("result_serializer", TEXT, "json", "serializer of results", fault_of_serializer),
    _later("result_compression", TEXT, None, "compression of results"),
    Setting("result_extended", BOOL, False, "results tell name, arguments, worker, retries, queue"),
    Setting("result_expires", (*SPAN, type(None)), timedelta(days=1), "how long a result is kept, in seconds",
            at_least(0), old="CELERY_TASK_RESULT_EXPIRES"),
    # A week: whoever comes back on Monday can still run again what failed on Friday.
    Setting("result_failure_expires", (*SPAN, type(None)), timedelta(days=7),
            "the same for failures, which can be run again as long; None: result_expires", at_least(0)),
    _later("result_chord_expires", SPAN, None, "how long a chord's count is kept", at_least(0)),
    Setting("result_unknown_raises", BOOL, False, "get() of an id that was never sent raises"),
    # -- The worker ------------------------------------------------------------------------------
    Setting("worker_deduplicate_successful_tasks", BOOL, False,
            "accepted: a task that has succeeded is not in a queue any more, so it never comes again"),
    Setting("worker_concurrency", INT, None, "child processes; None: the CPUs this process may use", at_least(1)),
    Setting("worker_async_concurrency", INT, 100, "coroutine tasks that a child runs at a time", between(1, 256)),
    Setting("worker_pool", TEXT, "prefork", "prefork or solo", is_pool),
    _later("worker_prefetch_multiplier", INT, 4, "most tasks a child reserves at once", at_least(0)),
    _later("worker_disable_prefetch", BOOL, False, "a child reserves one task"),
    Setting("worker_max_tasks_per_child", INT, None, "tasks after which a child is replaced", at_least(0)),
    Setting("worker_max_memory_per_child", INT, None, "KiB of memory after which a child is replaced", at_least(0)),
    Setting("worker_disable_rate_limits", BOOL, False, "no rate limit counts", old="CELERY_DISABLE_RATE_LIMITS"),
    _later("worker_enable_remote_control", BOOL, True, "obey control commands", old="CELERY_ENABLE_REMOTE_CONTROL"),
    _later("worker_send_task_events", BOOL, False, "write events of tasks", old="CELERY_SEND_EVENTS"),
    _later("worker_soft_shutdown_timeout", NUMBER, 0.0, "seconds tasks have after a second signal", at_least(0)),
    _later("worker_enable_soft_shutdown_on_idle", BOOL, False, "the same with no task running"),
    _later("worker_pool_restarts", BOOL, False, "obey pool_restart"),
    _later("worker_proc_alive_timeout", NUMBER, 4.0, "seconds a child has to come up", at_least(0)),
    _later("worker_lost_wait", NUMBER, 10.0, "a lost process is known at once here", old="CELERYD_WORKER_LOST_WAIT"),
    _later("worker_state_db", TEXT, None, "revoked ids are kept in the store"),
    Setting("worker_hijack_root_logger", BOOL, True, "a worker configures the root logger if nobody has"),
    Setting("worker_log_format", TEXT, _LOG + "%(message)s", "log lines"),
    Setting("worker_task_log_format", TEXT, _LOG + "%(task_name)s[%(task_id)s]: %(message)s", "log lines of tasks"),
    _later("worker_log_datefmt", TEXT, None, "how log lines write the time"),
    _later("worker_task_log_datefmt", TEXT, None, "the same in log lines of tasks"),
    Setting("worker_log_color", BOOL, None, "colour; None: if the log is a terminal"),
    _later("worker_redirect_stdouts", BOOL, True, "what tasks print is logged", old="CELERY_REDIRECT_STDOUTS"),
    _later("worker_redirect_stdouts_level", (str, int), "WARNING", "at this level",
           old="CELERY_REDIRECT_STDOUTS_LEVEL"),
    # -- Schedules -------------------------------------------------------------------------------
    _later("beat_schedule", (dict,), {}, "what is sent, and when"),
    _later("beat_scheduler", TEXT, "celery.beat:PersistentScheduler", "who says when"),
    _later("beat_max_loop_interval", NUMBER, 0, "longest sleep of beat, in seconds", at_least(0)),
    _later("beat_cron_starting_deadline", NUMBER, None, "how late a crontab entry may be, in seconds", at_least(0)),
)  # fmt: skip

#: Settings of other systems and of parts that localq does not have; Celery's default is None ...
_FOREIGN_NAMES = """
    broker_read_url broker_write_url broker_transport broker_connection_retry_on_startup broker_failover_strategy
    broker_login_method broker_pool_acquire_timeout broker_host broker_port broker_user broker_password broker_vhost
    cache_backend cassandra_entry_ttl cassandra_keyspace cassandra_port cassandra_read_consistency cassandra_servers
    cassandra_bundle_path cassandra_table cassandra_write_consistency cassandra_auth_provider cassandra_auth_kwargs
    s3_access_key_id s3_secret_access_key s3_bucket s3_base_path s3_endpoint_url s3_region gcs_bucket gcs_project
    gcs_threadpool_maxsize dynamodb_endpoint_url couchbase_backend_settings arangodb_backend_settings
    mongodb_backend_settings redis_backend_use_ssl redis_backend_health_check_interval redis_client_name
    redis_backend_credential_provider redis_db redis_host redis_max_connections redis_username redis_password
    redis_port redis_socket_connect_timeout result_persistent elasticsearch_retry_on_timeout
    elasticsearch_max_retries elasticsearch_timeout security_certificate security_cert_store security_key
    security_key_password database_url database_engine_callback database_table_schemas database_table_names
    task_create_missing_queue_exchange_type worker_agent worker_eta_task_limit worker_timer worker_executable
    worker_gid worker_uid worker_umask worker_logfile worker_pidfile beat_executable beat_gid beat_uid beat_umask
    beat_logfile beat_pidfile events_executable events_gid events_uid events_umask events_logfile events_pidfile
    beat_remote_control_max_tick_age override_backends
"""
#: ... or this.
_FOREIGN_DEFAULTS: dict[str, Any] = {
    "broker_transport_options": {}, "broker_connection_timeout": 4, "broker_connection_retry": True,
    "broker_connection_max_retries": 100, "broker_channel_error_retry": False, "broker_heartbeat": 120,
    "broker_heartbeat_checkrate": 3.0, "broker_native_delayed_delivery_queue_type": "quorum",
    "broker_pool_limit": 10, "broker_use_ssl": False, "cache_backend_options": {}, "cassandra_options": {},
    "azureblockblob_container_name": "celery", "azureblockblob_retry_initial_backoff_sec": 2,
    "azureblockblob_retry_increment_base": 2, "azureblockblob_retry_max_attempts": 3, "azureblockblob_base_path": "",
    "azureblockblob_connection_timeout": 20, "azureblockblob_read_timeout": 120, "gcs_base_path": "", "gcs_ttl": 0,
    "control_queue_ttl": 300.0, "control_queue_expires": 10.0, "control_queue_exclusive": True,
    "control_queue_durable": False, "control_exchange": "celery", "cosmosdbsql_database_name": "celerydb",
    "cosmosdbsql_collection_name": "celerycol", "cosmosdbsql_consistency_level": "Session",
    "cosmosdbsql_max_retry_attempts": 9, "cosmosdbsql_max_retry_wait_time": 30, "event_queue_expires": 60.0,
    "event_queue_ttl": 5.0, "event_queue_prefix": "celeryev", "event_queue_exclusive": True,
    "event_queue_durable": False, "event_serializer": "json", "event_exchange": "celeryev",
    "redis_socket_timeout": 120.0, "redis_retry_on_timeout": False, "redis_socket_keepalive": False,
    "result_cache_max": -1, "result_exchange": "celeryresults", "result_exchange_type": "direct",
    "result_backend_transport_options": {}, "result_chord_retry_interval": 1.0, "result_chord_join_timeout": 3.0,
    "result_backend_max_sleep_between_retries_ms": 10000, "result_backend_max_retries": float("inf"),
    "result_backend_base_sleep_between_retries_ms": 10, "result_backend_always_retry": False,
    "result_backend_thread_safe": False, "elasticsearch_save_meta_as_text": True, "security_digest": "sha256",
    "database_engine_options": {"pool_pre_ping": True, "pool_recycle": 3600}, "database_short_lived_sessions": False,
    "database_create_tables_at_setup": True, "task_create_missing_queue_type": "classic",
    "task_default_delivery_mode": 2, "task_default_queue_type": "classic", "task_protocol": 2,
    "worker_autoscaler": "celery.worker.autoscale:Autoscaler",
    "worker_cancel_long_running_tasks_on_connection_loss": False, "worker_consumer": "celery.worker.consumer:Consumer",
    "worker_pool_putlocks": True, "worker_pool_start_method": "fork",
    "worker_enable_prefetch_count_reduction": True, "worker_timer_precision": 1.0,
    "worker_detect_quorum_queues": True, "beat_enable_remote_control": False,
    "beat_schedule_filename": "celerybeat-schedule", "beat_sync_every": 0,
}  # fmt: skip
#: Old names of theirs that the rule does not give.
_FOREIGN_OLD = {
    "result_cache_max": "CELERY_MAX_CACHED_RESULTS", "task_protocol": "CELERY_TASK_PROTOCOL",
    "database_url": "CELERY_RESULT_DBURI", "database_engine_options": "CELERY_RESULT_ENGINE_OPTIONS",
    "database_short_lived_sessions": "CELERY_RESULT_DB_SHORT_LIVED_SESSIONS",
    "database_table_names": "CELERY_RESULT_DB_TABLENAMES",
}  # fmt: skip


#: How names began before Celery 4, where they did not just begin as now.
_BEGAN = {
    "task": "CELERY", "worker": "CELERYD", "beat": "CELERYBEAT", "result": "CELERY_RESULT", "event": "CELERY_EVENT",
    "cache": "CELERY_CACHE", "couchbase": "CELERY_COUCHBASE", "arangodb": "CELERY_ARANGODB",
    "mongodb": "CELERY_MONGODB", "redis": "CELERY_REDIS", "elasticsearch": "CELERY_ELASTICSEARCH",
    "security": "CELERY_SECURITY",
}  # fmt: skip


def _old_name(name: str) -> str:
    namespace, _, key = name.partition("_")
    return f"{_BEGAN[namespace]}_{key}".upper() if namespace in _BEGAN else name.upper()


def _foreign(name: str, default: Any) -> Setting:
    return Setting(name, ANY, default, FOREIGN, None, False, _FOREIGN_OLD.get(name, ""))


SETTINGS: dict[str, Setting] = {
    each.name: each if each.old else each._replace(old=_old_name(each.name))
    for each in (
        *_OURS,
        *(_foreign(name, None) for name in _FOREIGN_NAMES.split()),
        *(_foreign(name, default) for name, default in _FOREIGN_DEFAULTS.items()),
    )
}
#: Upper-case name of before Celery 4 -> name.
OLD_NAMES: dict[str, str] = {each.old: each.name for each in SETTINGS.values()}
#: A setting that is None has the value of another.
FOLLOWS = {"task_default_exchange": "task_default_queue", "task_default_routing_key": "task_default_queue"}
#: Beginnings of names that are ours: a name that has one and is not declared is a mistake.
OURS = ("task_", "result_", "worker_", "store_")


def fault_of(name: str, value: Any) -> str:
    """Say what is wrong with a value of a known setting; empty if nothing is."""
    setting = SETTINGS[name]
    if value is None and setting.default is None:
        return ""
    right = isinstance(value, setting.kinds) and not (isinstance(value, bool) and not {bool, object} & {*setting.kinds})
    if not right:
        kinds = " or ".join("None" if kind is type(None) else kind.__name__ for kind in setting.kinds)
        return f"{name} = {safe_repr(value, 200)}: expected {kinds} ({setting.doc})"
    wrong = setting.check(value) if setting.check and value is not None else ""
    return f"{name} = {safe_repr(value, 200)}: {wrong} ({setting.doc})" if wrong else ""
