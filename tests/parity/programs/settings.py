"""`app.conf`: where settings come from, how they are read, their defaults."""

import os
import sys
import types

from celery import Celery
from celery.exceptions import ImproperlyConfigured
from observing import ordered, raised, shows

WORKER = None


def made(**settings):
    return Celery("settings", set_as_current=False, **settings)


class OnObject:
    task_serializer = "json"
    result_expires = 30
    task_default_queue = "object"


@shows("F010")
def settings_are_attributes_and_keys():
    conf = made().conf
    conf.task_track_started = True
    conf["task_acks_late"] = True
    return [
        conf["task_track_started"],
        conf.task_acks_late,
        conf.get("task_serializer"),
        conf.get("nope", "mine"),
        "task_serializer" in conf,
        raised(lambda: conf.nope),
        raised(lambda: conf["nope"]),
    ]


@shows("F011")
def update_before_and_after_the_first_look():
    before = made()
    before.conf.update(result_expires=7, task_default_queue="early")
    after = made()
    after.conf.task_serializer
    after.conf.update({"result_expires": 8}, task_default_queue="late")
    return [[each.conf.result_expires, each.conf.task_default_queue] for each in (before, after)]


@shows("F012")
def from_an_object():
    app = made()
    app.config_from_object(OnObject)
    return [app.conf.result_expires, app.conf.task_default_queue]


@shows("F012")
def from_a_module_by_name():
    module = types.ModuleType("parity_config")
    module.result_expires = 31
    module.task_default_queue = "module"
    sys.modules["parity_config"] = module
    app = made()
    app.config_from_object("parity_config")
    return [app.conf.result_expires, app.conf.task_default_queue]


@shows("F012")
def from_an_object_within_a_module():
    module = types.ModuleType("parity_holder")
    module.Inner = OnObject
    sys.modules["parity_holder"] = module
    app = made()
    app.config_from_object("parity_holder:Inner")
    return [app.conf.result_expires]


@shows("F012")
def with_a_namespace():
    app = made()
    app.config_from_object(
        types.SimpleNamespace(CELERY_RESULT_EXPIRES=32, CELERY_TASK_DEFAULT_QUEUE="upper", OTHER=1), namespace="CELERY"
    )
    return [app.conf.result_expires, app.conf.task_default_queue]


@shows("F012")
def from_an_environment_variable():
    module = types.ModuleType("parity_by_variable")
    module.result_expires = 33
    sys.modules["parity_by_variable"] = module
    os.environ["PARITY_CONFIG"] = "parity_by_variable"
    app = made()
    app.config_from_envvar("PARITY_CONFIG")
    return [app.conf.result_expires, raised(made().config_from_envvar, "PARITY_CONFIG_THAT_IS_NOT_SET")]


@shows("F012")
def added_defaults_are_weaker_than_settings():
    app = made(result_expires=34)
    app.add_defaults({"result_expires": 99, "task_default_queue": "added"})
    return [app.conf.result_expires, app.conf.task_default_queue]


@shows("F012")
def words_of_a_command_line():
    app = made()
    app.config_from_cmdline(["worker.prefetch_multiplier=2", "result.expires=35"], namespace="worker")
    return [app.conf.worker_prefetch_multiplier]


@shows("F010", "R17")
def old_names_in_an_object_are_understood():
    app = made()
    app.config_from_object(
        types.SimpleNamespace(
            CELERY_TASK_RESULT_EXPIRES=36, CELERY_DEFAULT_QUEUE="old", CELERY_ALWAYS_EAGER=True, CELERYD_CONCURRENCY=3
        )
    )
    return [
        app.conf.result_expires,
        app.conf.task_default_queue,
        app.conf.task_always_eager,
        app.conf.worker_concurrency,
    ]


@shows("F010")
def old_and_new_names_do_not_mix():
    app = made()
    app.config_from_object(types.SimpleNamespace(CELERY_TASK_RESULT_EXPIRES=36, task_default_queue="new"))
    try:
        app.conf.result_expires
    except ImproperlyConfigured:
        return "ImproperlyConfigured"
    return "mixed"


@shows("F010")
def settings_can_be_looked_at():
    app = made(result_expires=37, security_key="hush")
    app.conf.task_serializer
    table = app.conf.table(with_defaults=False, censored=True)
    text = app.conf.humanize(with_defaults=False, censored=True)
    return [table["result_expires"], "hush" in str(table), "result_expires: 37" in text, "hush" in text]


@shows("F010")
def what_was_set_is_apart_from_defaults():
    app = made(result_expires=38)
    app.conf.task_serializer
    return [
        "result_expires" in app.conf.without_defaults(),
        "task_serializer" in app.conf.without_defaults(),
        app.conf.value_set_for("result_expires"),
        app.conf.value_set_for("task_serializer"),
    ]


@shows("F010")
def settings_can_be_found():
    conf = made().conf
    return [conf.find_option("track_started", namespace="task").key, conf.get_by_parts("task", "track_started")]


@shows("F010")
def a_copy_is_a_dictionary_of_its_own():
    conf = made(result_expires=39).conf
    copy = conf.copy()
    copy["result_expires"] = 40
    return [conf.result_expires, copy["result_expires"]]


@shows("F025")
def the_settings_of_the_notes():
    app = made(
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        timezone="Europe/Oslo",
        enable_utc=True,
        task_routes={"tasks.add": "low-priority"},
        task_annotations={"tasks.add": {"rate_limit": "10/m"}},
        task_default_rate_limit=None,
    )
    names = (
        "task_serializer",
        "result_serializer",
        "accept_content",
        "timezone",
        "enable_utc",
        "task_routes",
        "task_annotations",
        "task_default_rate_limit",
    )
    return {name: app.conf[name] for name in names}


@shows("F338")
def general_defaults():
    conf = made().conf
    return {
        name: listed(conf[name])
        for name in ("accept_content", "result_accept_content", "timezone", "enable_utc", "imports", "include")
    }


def listed(value):
    return list(value) if isinstance(value, tuple | list | set) else value


@shows("F339")
def task_defaults():
    names = """acks_late acks_on_failure acks_on_timeout acks_on_failure_or_timeout allow_error_cb_on_chord_header
    always_eager annotations compression create_missing_queues default_delivery_mode
    default_exchange_type default_queue default_queue_type default_rate_limit
    eager_propagates ignore_result inherit_parent_priority protocol publish_retry publish_retry_policy
    queue_max_priority reject_on_worker_lost remote_tracebacks repr_maxlevels retry_on_worker_lost routes
    send_sent_event serializer soft_time_limit store_eager_result store_errors_even_if_ignored time_limit
    track_started"""
    conf = made().conf
    return {name: listed(conf[f"task_{name}"]) for name in names.split()}


@shows("F132", "X3", "N52")
def the_default_priority():
    return made().conf.task_default_priority


@shows("F340")
def result_defaults():
    conf = made().conf
    names = """backend_always_retry backend_max_retries backend_base_sleep_between_retries_ms
    backend_max_sleep_between_retries_ms cache_max chord_join_timeout chord_retry_interval
    compression exchange exchange_type extended persistent serializer"""
    return {name: conf[f"result_{name}"] for name in names.split()}


@shows("F340")
def results_expire_after_a_day():
    expires = made().conf.result_expires
    return expires if isinstance(expires, int | float) else expires.total_seconds()


@shows("F341")
def worker_defaults():
    names = """cancel_long_running_tasks_on_connection_loss concurrency deduplicate_successful_tasks direct
    disable_prefetch disable_rate_limits enable_prefetch_count_reduction enable_remote_control
    enable_soft_shutdown_on_idle eta_task_limit hijack_root_logger log_color log_format lost_wait
    max_memory_per_child max_tasks_per_child pool pool_restarts pool_start_method prefetch_multiplier
    proc_alive_timeout redirect_stdouts redirect_stdouts_level send_task_events soft_shutdown_timeout state_db
    task_log_format timer_precision"""
    conf = made().conf
    return {name: conf[f"worker_{name}"] for name in names.split()}


@shows("F342")
def other_defaults():
    conf = made().conf
    names = """beat_max_loop_interval beat_schedule beat_schedule_filename beat_sync_every event_queue_expires
    event_queue_ttl event_queue_prefix event_serializer control_queue_ttl security_key security_certificate"""
    return {name: conf[name] for name in names.split()}


@shows("F343", "R17")
def a_configuration_for_another_broker_loads():
    settings = types.SimpleNamespace(
        broker_connection_timeout=3,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=10,
        broker_heartbeat=20,
        broker_heartbeat_checkrate=3.0,
        broker_pool_limit=5,
        broker_transport_options={"visibility_timeout": 3600},
        broker_login_method="PLAIN",
        broker_use_ssl=False,
        redis_max_connections=20,
        redis_socket_timeout=5.0,
        cassandra_table="results",
        s3_bucket="bucket",
        mongodb_backend_settings={"database": "db"},
        database_short_lived_sessions=True,
        elasticsearch_timeout=10,
        result_backend_transport_options={},
        couchbase_backend_settings=None,
        arangodb_backend_settings=None,
    )
    app = made()
    app.config_from_object(settings)
    return [
        app.conf.broker_heartbeat,
        app.conf.redis_max_connections,
        app.conf.s3_bucket,
        app.conf.broker_transport_options,
        ordered(vars(settings))[:2],
    ]


@shows("F343")
def a_users_own_setting_is_kept():
    app = made(my_own_word="kept")
    return [app.conf.my_own_word, app.conf["my_own_word"]]


@shows("F339")
def a_setting_may_be_changed_after_the_first_task():
    app = made()

    @app.task(name="settings.changing")
    def changing():
        return None

    app.finalize()
    app.conf.task_acks_late = True
    return app.conf.task_acks_late
