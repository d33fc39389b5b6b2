"""Settings: Celery's names, checked when they are set."""

from __future__ import annotations

import copy
import sys
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localq import LocalQ
from localq.config import Settings
from localq.exceptions import ImproperlyConfigured
from localq.settings import FOLLOWS, NAMES, OLD_NAMES, SETTINGS

#: Every setting of Celery 5.7 (celery.app.defaults), so that a project's configuration loads unchanged.
CELERYS = """
accept_content result_accept_content enable_utc imports include timezone beat_enable_remote_control
beat_remote_control_max_tick_age beat_max_loop_interval beat_schedule beat_scheduler beat_schedule_filename
beat_sync_every beat_cron_starting_deadline broker_url broker_read_url broker_write_url broker_transport
broker_transport_options broker_connection_timeout broker_connection_retry broker_connection_retry_on_startup
broker_connection_max_retries broker_channel_error_retry broker_failover_strategy broker_heartbeat
broker_heartbeat_checkrate broker_login_method broker_native_delayed_delivery_queue_type broker_pool_limit
broker_pool_acquire_timeout broker_use_ssl broker_host broker_port broker_user broker_password broker_vhost
cache_backend cache_backend_options cassandra_entry_ttl cassandra_keyspace cassandra_port cassandra_read_consistency
cassandra_servers cassandra_bundle_path cassandra_table cassandra_write_consistency cassandra_auth_provider
cassandra_auth_kwargs cassandra_options s3_access_key_id s3_secret_access_key s3_bucket s3_base_path s3_endpoint_url
s3_region azureblockblob_container_name azureblockblob_retry_initial_backoff_sec azureblockblob_retry_increment_base
azureblockblob_retry_max_attempts azureblockblob_base_path azureblockblob_connection_timeout
azureblockblob_read_timeout gcs_bucket gcs_project gcs_base_path gcs_ttl control_queue_ttl control_queue_expires
control_queue_exclusive control_queue_durable control_exchange couchbase_backend_settings arangodb_backend_settings
mongodb_backend_settings cosmosdbsql_database_name cosmosdbsql_collection_name cosmosdbsql_consistency_level
cosmosdbsql_max_retry_attempts cosmosdbsql_max_retry_wait_time event_queue_expires event_queue_ttl
event_queue_prefix event_queue_exclusive event_queue_durable event_serializer event_exchange redis_backend_use_ssl
redis_db redis_host redis_max_connections redis_username redis_password redis_port redis_socket_timeout
redis_socket_connect_timeout redis_retry_on_timeout redis_socket_keepalive result_backend result_cache_max
result_compression result_exchange result_exchange_type result_expires result_chord_expires result_failure_expires
result_persistent result_extended result_serializer result_backend_transport_options result_chord_retry_interval
result_chord_join_timeout result_backend_max_sleep_between_retries_ms result_backend_max_retries
result_backend_base_sleep_between_retries_ms result_backend_always_retry elasticsearch_retry_on_timeout
elasticsearch_max_retries elasticsearch_timeout elasticsearch_save_meta_as_text security_certificate
security_cert_store security_key security_key_password security_digest database_url database_engine_options
database_engine_callback database_short_lived_sessions database_table_schemas database_table_names
database_create_tables_at_setup task_acks_late task_acks_on_failure_or_timeout task_acks_on_failure
task_acks_on_timeout task_always_eager task_annotations task_compression task_create_missing_queues
task_create_missing_queue_type task_create_missing_queue_exchange_type task_inherit_parent_priority
task_default_delivery_mode task_default_queue task_default_queue_type task_default_exchange
task_default_exchange_type task_default_routing_key task_default_rate_limit task_default_priority
task_eager_propagates task_ignore_result task_store_eager_result task_protocol task_publish_retry
task_publish_retry_policy task_queues task_queue_max_priority task_reject_on_worker_lost task_retry_on_worker_lost
task_remote_tracebacks task_repr_maxlevels task_routes task_send_sent_event task_serializer task_soft_time_limit
task_time_limit task_store_errors_even_if_ignored task_track_started task_allow_error_cb_on_chord_header
worker_agent worker_autoscaler worker_cancel_long_running_tasks_on_connection_loss worker_soft_shutdown_timeout
worker_enable_soft_shutdown_on_idle worker_concurrency worker_consumer worker_direct worker_disable_rate_limits
worker_deduplicate_successful_tasks worker_enable_remote_control worker_hijack_root_logger worker_log_color
worker_log_datefmt worker_log_format worker_lost_wait worker_max_memory_per_child worker_max_tasks_per_child
worker_pool worker_pool_putlocks worker_pool_restarts worker_pool_start_method worker_proc_alive_timeout
worker_prefetch_multiplier worker_eta_task_limit worker_enable_prefetch_count_reduction worker_disable_prefetch
worker_redirect_stdouts worker_redirect_stdouts_level worker_send_task_events worker_state_db
worker_task_log_datefmt worker_task_log_format worker_timer worker_timer_precision worker_detect_quorum_queues
worker_executable worker_gid worker_uid worker_umask worker_logfile worker_pidfile beat_executable beat_gid beat_uid
beat_umask beat_logfile beat_pidfile events_executable events_gid events_uid events_umask events_logfile
events_pidfile result_backend_thread_safe
""".split()

OF_KIND = {
    bool: st.booleans(), str: st.text(), int: st.integers(), float: st.floats(), list: st.lists(st.text()),
    tuple: st.tuples(st.text()), set: st.sets(st.text()), frozenset: st.frozensets(st.text()),
    dict: st.dictionaries(st.text(), st.text()),
}  # fmt: skip
anything = st.one_of(st.none(), *OF_KIND.values())


@pytest.mark.row("F338", "F339", "F340", "F341", "F342", "F343", "N42", "N47", "N52")
def test_every_setting_of_celerys_is_known(caplog):
    assert len(CELERYS) == len(set(CELERYS)) == 226
    assert sorted(set(CELERYS) - set(SETTINGS)) == []
    conf = Settings({name: SETTINGS[name].default for name in CELERYS})
    assert [name for name in CELERYS if conf[name] != SETTINGS[name].default and name not in FOLLOWS] == []
    assert caplog.text == ""


@pytest.mark.row("F338", "F339", "F340", "F341", "F342", "F025")
@pytest.mark.parametrize(("name", "value"), [
    ("accept_content", ("json",)), ("enable_utc", True), ("timezone", None), ("imports", ()),
    ("task_serializer", "json"), ("result_serializer", "json"), ("task_routes", None), ("task_annotations", None),
    ("task_default_rate_limit", None), ("task_acks_on_failure_or_timeout", True), ("task_default_queue", "celery"),
    ("task_publish_retry_policy", {"max_retries": 3, "interval_start": 0, "interval_max": 1, "interval_step": 0.2}),
    ("task_reject_on_worker_lost", None), ("result_expires", timedelta(days=1)), ("result_chord_join_timeout", 3.0),
    ("worker_lost_wait", 10.0), ("worker_pool", "prefork"), ("worker_prefetch_multiplier", 4),
    ("worker_redirect_stdouts_level", "WARNING"), ("beat_schedule", {}), ("event_queue_expires", 60.0),
    ("control_queue_ttl", 300.0), ("security_digest", "sha256"), ("broker_pool_limit", 10), ("broker_url", None),
    ("result_backend", None), ("redis_socket_timeout", 120.0), ("mongodb_backend_settings", None),
])  # fmt: skip
def test_a_setting_nobody_gave_has_celerys_default(name, value):
    assert Settings()[name] == value


@pytest.mark.row("N52")
def test_only_the_default_priority_is_ours_not_celerys():
    assert (Settings().task_default_priority, Settings().task_inherit_parent_priority) == (5, False)
    assert (Settings().task_queue_max_priority, Settings().task_priority_order) == (None, "low_first")


def test_the_exchange_and_the_routing_key_follow_the_default_queue():
    conf = Settings({"task_default_queue": "mail"})
    assert (conf.task_default_exchange, conf.task_default_routing_key) == ("mail", "mail")
    conf.task_default_exchange = "media"
    assert (conf.task_default_exchange, conf.task_default_routing_key) == ("media", "mail")


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_default_is_a_value_that_may_be_set(name):
    conf = Settings()
    conf[name] = SETTINGS[name].default
    assert conf[name] == SETTINGS[name].default or name in FOLLOWS
    assert SETTINGS[name].doc


@given(st.sampled_from(sorted(SETTINGS)), anything)
def test_a_value_is_taken_as_it_is_or_refused_with_the_settings_name(name, value):
    conf = Settings()
    before = conf[name]
    fault = ""
    try:
        conf.update({name: value})
    except ImproperlyConfigured as exc:
        fault = str(exc)
    if fault:
        assert name in fault
        assert getattr(conf, name) == before
        assert conf.without_defaults() == {}
    elif SETTINGS[name].kinds == NAMES and isinstance(value, str):
        assert conf[name] == (value,)
    elif value is None and name in FOLLOWS:
        assert conf[name] == "celery"
    else:
        assert conf[name] is value
        assert value is None or isinstance(value, SETTINGS[name].kinds)


@given(st.integers())
def test_the_default_priority_is_0_to_255(value):
    if 0 <= value <= 255:
        assert Settings({"task_default_priority": value}).task_default_priority == value
    else:
        with pytest.raises(ImproperlyConfigured, match="expected 0 to 255"):
            Settings({"task_default_priority": value})


def test_a_truth_value_is_no_number():
    with pytest.raises(ImproperlyConfigured, match="worker_concurrency"):
        Settings({"worker_concurrency": True})


@pytest.mark.parametrize(("wrong", "right"), [
    ("task_serialiser", "task_serializer"), ("worker_concurency", "worker_concurrency"),
    ("CELERY_TASK_SERIALISER", "CELERY_TASK_SERIALIZER"), ("time_zone", "timezone"), ("inculde", "include"),
    ("accept_contents", "accept_content"), ("broker_urls", "broker_url"),
    ("timezon", "timezone"), ("task_routs", "task_routes"), ("store_durabilty", "store_durability"),
])  # fmt: skip
def test_a_misspelt_name_is_an_error_that_names_the_nearest(wrong, right):
    with pytest.raises(ImproperlyConfigured, match=f"{wrong}.*did you mean '{right}'"):
        Settings({wrong: 1})


def test_a_name_with_one_of_our_prefixes_must_exist():
    with pytest.raises(ImproperlyConfigured, match="worker_frobnicate"):
        Settings({"worker_frobnicate": 1})


@pytest.mark.parametrize("name", [
    "email_host", "EMAIL_HOST_PASSWORD", "sentry_dsn", "SENTRY_ENVIRONMENT", "proj_task_root", "REDIS_URL", "redis_url",
    "SECRET_KEY", "DEBUG", "database_uri", "DATABASE_URL_RO", "db_url", "api_token", "aws_region", "s3_bucket_name",
    "admin_email", "base_dir", "log_level", "log_format", "environment", "project_name", "smtp_port", "cache_ttl",
    "max_retries", "retry_delay", "queue_prefix", "upload_dir", "feature_flags", "slack_webhook", "STATIC_ROOT",
    "ALLOWED_HOSTS", "tasks_module", "results_dir", "workers", "exclude", "exports", "broker_hosts", "CELERY_ENABLED",
    "CELERYD_LOG_LEVEL", "CELERY_SEND_TASK_ERROR_EMAILS", "concurrency", "mongo_url", "event_log", "beat_log_path",
])  # fmt: skip
def test_a_private_name_of_a_project_is_kept(name, caplog):
    conf = Settings({name: 42})
    assert getattr(conf, name) == conf[name] == conf.get(name) == 42
    assert name in conf
    assert caplog.text.count(f"'{name}'") == 1


@pytest.mark.row("F343")
def test_private_names_are_told_in_one_line(caplog):
    Settings({"email_host": "x", "sentry_dsn": "y", "timezone": "UTC"})
    assert [r.getMessage() for r in caplog.records] == [
        "settings 'email_host', 'sentry_dsn' are not localq's; kept in app.conf"
    ]


def test_a_name_that_app_conf_needs_itself_is_refused():
    with pytest.raises(ImproperlyConfigured, match=r"named keys: app\.conf has a method"):
        Settings({"keys": 1})


@pytest.mark.parametrize("name", ["_mine", "", 3, None])
def test_what_can_be_no_name_is_refused(name):
    with pytest.raises(ImproperlyConfigured, match="no setting is named"):
        Settings({name: 1})


def test_all_faults_are_told_at_once_and_nothing_is_set():
    conf = Settings()
    with pytest.raises(ImproperlyConfigured) as raised:
        conf.update(task_serialiser="x", task_default_priority=999, timezone="Europe/Berlin")
    assert "task_serialiser" in str(raised.value)
    assert "task_default_priority" in str(raised.value)
    assert conf.timezone is None


def test_reading_an_unknown_name_names_the_nearest():
    with pytest.raises(AttributeError, match="did you mean 'timezone'"):
        _ = Settings().timezome
    with pytest.raises(KeyError, match="did you mean 'timezone'"):
        _ = Settings()["timezome"]


def test_a_setting_is_an_attribute_an_item_and_a_member():
    conf = Settings()
    conf.task_default_queue = "mail"
    assert conf["task_default_queue"] == conf.get("task_default_queue") == "mail"
    conf["timezone"] = "UTC"
    assert conf.timezone == "UTC"
    assert "timezone" in conf
    assert "nobody" not in conf
    assert conf.get("nobody", 3) == 3
    assert set(SETTINGS) <= set(conf)


def test_setdefault_keeps_what_was_given():
    conf = Settings({"timezone": "UTC"})
    assert conf.setdefault("timezone", "Europe/Berlin") == "UTC"
    assert conf.setdefault("task_default_queue", "mail") == "mail"


def test_what_was_given_is_listed_without_the_defaults():
    assert Settings({"timezone": "UTC"}).without_defaults() == {"timezone": "UTC"}
    assert repr(Settings({"timezone": "UTC"})) == "<Settings {'timezone': 'UTC'}>"


def test_durability_has_two_names():
    for word in ("standard", "full"):
        assert Settings({"store_durability": word}).store_durability == word
    with pytest.raises(ImproperlyConfigured, match="standard, full"):
        Settings({"store_durability": "off"})


# -- Old names -------------------------------------------------------------------------------------


@pytest.mark.row("F010")
@pytest.mark.parametrize(("old", "name", "value"), [
    ("CELERY_TASK_SERIALIZER", "task_serializer", "json-strict"), ("CELERYD_CONCURRENCY", "worker_concurrency", 3),
    ("BROKER_URL", "broker_url", "memory:"), ("CELERY_RESULT_BACKEND", "result_backend", "memory:"),
    ("CELERY_ALWAYS_EAGER", "task_always_eager", True), ("CELERY_TASK_RESULT_EXPIRES", "result_expires", 60),
    ("CELERYBEAT_SCHEDULE", "beat_schedule", {"a": {}}), ("CELERY_ROUTES", "task_routes", {}),
    ("CELERY_TIMEZONE", "timezone", "Europe/Berlin"), ("CELERY_QUEUES", "task_queues", []),
    ("CELERY_REDIRECT_STDOUTS", "worker_redirect_stdouts", False), ("ENABLE_UTC", "enable_utc", False),
])  # fmt: skip
def test_an_old_name_writes_and_reads_the_setting(old, name, value):
    conf = Settings({old: value})
    assert conf[name] == conf[old] == getattr(conf, old) == conf.get(old) == getattr(conf, name) == value
    assert old in conf
    assert conf.without_defaults() == {name: value}
    del conf[old]
    assert conf.without_defaults() == {}


def test_each_setting_has_one_old_name_and_no_two_the_same():
    assert len(OLD_NAMES) == len(SETTINGS)
    assert not OLD_NAMES.keys() & SETTINGS.keys()


# -- What app.conf can -----------------------------------------------------------------------------


@pytest.mark.row("F010")
def test_app_conf_is_a_mapping():
    conf = Settings({"timezone": "UTC"})
    assert len(conf) == len(list(conf)) == len(conf.keys()) == len(SETTINGS)
    assert dict(conf) == dict(conf.items())
    assert "UTC" in conf.values()
    assert {**conf}["timezone"] == "UTC"


@pytest.mark.row("F010")
def test_what_was_set_can_be_taken_back():
    conf = Settings({"timezone": "UTC", "task_default_queue": "mail", "my_own": 1})
    del conf["timezone"]
    del conf.my_own
    assert conf.timezone is None
    assert "my_own" not in conf
    assert conf.pop("task_default_queue") == "mail"
    with pytest.raises(KeyError, match="has not set"):
        del conf["timezone"]
    with pytest.raises(AttributeError, match="has not set"):
        del conf.timezone
    conf.enable_utc = False
    conf.clear()
    assert conf.without_defaults() == {}


@pytest.mark.row("F010")
def test_humanize_and_table_show_what_was_given_and_no_secrets():
    conf = Settings({
        "broker_url": "redis://me:hunter2@host/0", "redis_password": "hunter2", "task_default_queue": "mail",
        "mongodb_backend_settings": {"password": "hunter2", "port": 1}, "security_key": "hunter2",
        "broker_failover_strategy": ["amqp://a:hunter2@x", "amqp://y"], "task_default_routing_key": "mail.x",
    })  # fmt: skip
    assert "hunter2" not in conf.humanize() + str(conf.table()) + repr(conf)
    assert "task_default_queue: 'mail'" in conf.humanize().splitlines()
    assert "task_default_routing_key: 'mail.x'" in conf.humanize().splitlines()
    assert "broker_url: 'redis://me:********@host/0'" in conf.humanize()
    assert conf.table()["mongodb_backend_settings"] == {"password": "********", "port": 1}
    assert conf.table(censored=False)["redis_password"] == "hunter2"
    assert "hunter2" in conf.humanize(censored=False)
    assert set(conf.table()) == set(conf.without_defaults())
    assert set(conf.table(with_defaults=True)) == set(SETTINGS)
    assert "worker_pool: 'prefork'" in conf.humanize(with_defaults=True)


@pytest.mark.row("F010")
def test_find_option_finds_by_the_short_name():
    conf = Settings({"worker_concurrency": 3, "timezone": "UTC"})
    found = conf.find_option("disable_rate_limits")
    assert tuple(found) == ("worker", "disable_rate_limits", SETTINGS["worker_disable_rate_limits"])
    assert conf.find_option("serializer", "result")[:2] == ("result", "serializer")
    assert conf.find_option("Timezone")[:2] == (None, "timezone")
    assert conf.find_value_for_key("concurrency") == conf.get_by_parts("worker", "concurrency") == 3
    assert conf.find_value_for_key("timezone") == conf.get_by_parts("", "timezone") == "UTC"
    with pytest.raises(KeyError, match="did you mean 'timezone'"):
        conf.find_option("timezome")


@pytest.mark.row("F010")
def test_value_set_for_tells_what_was_given_from_a_default():
    conf = Settings({"CELERY_TIMEZONE": "UTC"})
    assert conf.value_set_for("timezone")
    assert conf.value_set_for("CELERY_TIMEZONE")
    assert not conf.value_set_for("task_serializer")


@pytest.mark.row("F010")
def test_a_copy_changes_by_itself():
    conf = Settings({"timezone": "UTC", "my_own": 1})
    twin = copy.copy(conf)
    assert dict(twin) == dict(conf)
    twin.timezone = "Europe/Berlin"
    twin.beat_schedule["a"] = {}
    assert (conf.timezone, conf.beat_schedule) == ("UTC", {})
    assert Settings().beat_schedule == {}


def test_reading_a_setting_is_a_plain_look_up():
    conf = Settings({"timezone": "UTC"})
    assert conf.task_default_queue == "celery"
    calls = []
    sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_name) if event == "call" else None)
    _ = conf.timezone, conf.task_default_queue, conf.task_default_exchange
    sys.setprofile(None)
    assert calls == []


@pytest.mark.row("R17", "F343", "N47")
def test_what_has_no_effect_is_known_and_what_has_one_is_not_in_the_list():
    conf = Settings({
        "broker_heartbeat": 3, "worker_state_db": "x", "timezone": "UTC", "my_own": 1, "broker_url": "redis://x",
        "task_store_errors_even_if_ignored": True, "task_track_started": True, "worker_lost_wait": 3.0,
    })  # fmt: skip
    assert conf.without_effect() == ["broker_heartbeat", "worker_lost_wait", "worker_state_db"]


@pytest.mark.parametrize("value", ["10/s", "10/m", "1.5/h", "7", "", 3, 0.5, None])
def test_a_rate_may_be(value):
    assert Settings({"task_default_rate_limit": value}).task_default_rate_limit == value


@pytest.mark.parametrize(("name", "value", "words"), [
    ("task_default_rate_limit", "10/y", "'10/s', '100/m', '10/h'"), ("task_default_rate_limit", -1, "10/s"),
    ("timezone", "Mars/Olympus", "no such time zone"), ("task_annotations", 3, "annotate"),
    ("task_priority_order", "up", "low_first, high_first"), ("task_rate_limit_scope", "x", "host, worker"),
    ("task_unknown_policy", "x", "park, fail"), ("result_expires", timedelta(-1), "at least 0"),
    ("worker_concurrency", "4", "expected int"), ("task_always_eager", "False", "expected bool"),
])  # fmt: skip
def test_a_wrong_value_is_refused_with_what_would_be_right(name, value, words):
    with pytest.raises(ImproperlyConfigured, match=f"{name} = .*{words}"):
        Settings({name: value})


def test_one_name_is_as_good_as_a_list_of_one():
    assert Settings({"imports": "proj.tasks"}).imports == ("proj.tasks",)
    assert LocalQ("a", include="proj.tasks", set_as_current=False).conf.include == ("proj.tasks",)


def test_a_change_that_the_app_cannot_live_with_is_not_made():
    conf = Settings({"timezone": "UTC", "my_own": 1})
    assert conf.timezone == "UTC"

    def refuse():
        raise ValueError("not so")

    conf.on_change(refuse)
    for change in (lambda: conf.update(timezone="Asia/Kolkata", other=2), conf.clear, lambda: conf.pop("my_own")):
        with pytest.raises(ValueError, match="not so"):
            change()
        assert conf.without_defaults() == {"timezone": "UTC", "my_own": 1}
        assert "other" not in conf


def test_settings_that_the_app_cannot_live_with_are_refused_at_every_look():
    conf = Settings()

    def refuse():
        raise ValueError("not so")

    conf.on_change(refuse)
    for _ in range(2):
        with pytest.raises(ValueError, match="not so"):
            _ = conf.timezone
