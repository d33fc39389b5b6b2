"""Settings: Celery's names, checked when they are set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localq.config import SETTINGS, Settings
from localq.exceptions import ImproperlyConfigured

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
""".split()

OF_KIND = {
    bool: st.booleans(), str: st.text(), int: st.integers(), float: st.floats(), list: st.lists(st.text()),
    tuple: st.tuples(st.text()), set: st.sets(st.text()), frozenset: st.frozensets(st.text()),
    dict: st.dictionaries(st.text(), st.text()),
}  # fmt: skip
anything = st.one_of(st.none(), *OF_KIND.values())


@pytest.mark.parametrize("name", CELERYS)
def test_a_setting_of_celerys_is_accepted(name, caplog):
    value = SETTINGS[name].default if name in SETTINGS else "anything"
    assert Settings({name: value})[name] == value
    if name.startswith(("broker_", "worker_", "task_", "beat_", "event_")):
        assert caplog.text == ""


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_default_is_a_value_that_may_be_set(name):
    conf = Settings()
    conf[name] = SETTINGS[name].default
    assert conf[name] == SETTINGS[name].default
    assert SETTINGS[name].doc


@given(st.sampled_from(sorted(SETTINGS)), anything)
def test_a_value_is_taken_as_it_is_or_refused_with_the_settings_name(name, value):
    conf = Settings()
    fault = ""
    try:
        conf.update({name: value})
    except ImproperlyConfigured as exc:
        fault = str(exc)
    if fault:
        assert name in fault
        assert getattr(conf, name) == SETTINGS[name].default
        assert conf.without_defaults() == {}
    else:
        assert getattr(conf, name) is value
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
    ("timezon", "timezone"), ("task_routs", "task_routes"), ("store_durabilty", "store_durability"),
])  # fmt: skip
def test_a_misspelt_name_is_an_error_that_names_the_nearest(wrong, right):
    with pytest.raises(ImproperlyConfigured, match=f"{wrong}.*did you mean '{right}'"):
        Settings({wrong: 1})


def test_a_name_with_one_of_our_prefixes_must_exist():
    with pytest.raises(ImproperlyConfigured, match="worker_frobnicate"):
        Settings({"worker_frobnicate": 1})


def test_any_other_name_is_kept_with_one_warning(caplog):
    conf = Settings({"my_secret_sauce": 42})
    assert conf.my_secret_sauce == conf["my_secret_sauce"] == 42
    assert caplog.text.count("my_secret_sauce") == 1


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
