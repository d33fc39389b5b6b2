"""Where settings come from, and who wins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import types
from datetime import timedelta
from pathlib import Path

import pytest

from localq import LocalQ
from localq.exceptions import ConfigNotFound, ImproperlyConfigured
from localq.settings import SETTINGS
from localq.sources import value_of
from localq.testing.worker import start_worker


@pytest.fixture
def app(tmp_path):
    made = LocalQ("proj", store="memory:", set_as_current=False)
    made.conf._hold(_base=str(tmp_path))
    yield made
    made.close()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module and let it be found; it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


class Config:
    task_default_queue = "mail"
    timezone = "Europe/Berlin"
    _private = 1

    def helper(self):
        """No setting."""


# -- Objects and modules ---------------------------------------------------------------------------


@pytest.mark.row("F012")
@pytest.mark.parametrize("source", [
    Config, Config(), {"task_default_queue": "mail", "timezone": "Europe/Berlin"},
    types.SimpleNamespace(task_default_queue="mail", timezone="Europe/Berlin"), f"{__name__}:Config",
    f"{__name__}.Config",
])  # fmt: skip
def test_settings_come_from_an_object_a_class_a_mapping_or_a_path(app, source):
    assert app.config_from_object(source) is None
    assert (app.conf.task_default_queue, app.conf.timezone) == ("mail", "Europe/Berlin")
    assert set(app.conf.without_defaults()) == {"task_default_queue", "timezone"}


@pytest.mark.row("F012")
def test_of_a_module_only_what_can_be_a_setting_is_one(app, module, caplog):
    module("conf_of_all_sorts", """
from __future__ import annotations
import os
from typing import TYPE_CHECKING, Optional
from pathlib import Path
def helper(): ...
def task_routes(name, args, kwargs, options, **more): return "mail"
_hidden = 1
task_default_queue = os.environ.get("NOBODY_SETS_THIS", "mail")
email_host = "localhost"
""")  # fmt: skip
    caplog.set_level("INFO", "localq.config")
    app.config_from_object("conf_of_all_sorts")
    assert set(app.conf.without_defaults()) == {"task_routes", "task_default_queue", "email_host"}
    assert [r.getMessage() for r in caplog.records] == [
        "setting 'email_host' is not localq's; kept in app.conf (from conf_of_all_sorts)"
    ]
    assert caplog.records[0].levelname == "INFO"  # a module has variables of its own: no program prints this


@pytest.mark.row("F012")
def test_a_source_is_read_at_the_first_look(app, module):
    module("conf_read_late", "timezone = 'UTC'")
    app.config_from_object("conf_read_late")
    app.conf.update(task_default_queue="mail")
    app.add_defaults(lambda: {"enable_utc": "conf_read_late" not in sys.modules})
    assert "conf_read_late" not in sys.modules
    assert app.conf.timezone == "UTC"
    assert app.conf.enable_utc is False
    assert "conf_read_late" in sys.modules


@pytest.mark.row("F012")
def test_a_source_is_read_at_once_if_forced_or_if_settings_have_been_read(app, module):
    module("conf_forced", "timezone = 'UTC'")
    assert app.config_from_object("conf_forced", force=True) is app.conf
    assert "conf_forced" in sys.modules
    assert app.config_from_object({"timezone": "Asia/Kolkata"}) is app.conf
    with pytest.raises(ImproperlyConfigured, match="no such time zone"):
        app.config_from_object({"timezone": "nowhere"})
    assert app.conf.timezone == "Asia/Kolkata"
    app.conf.task_default_queue = "mail"
    assert app.conf.timezone == "Asia/Kolkata"


def test_a_later_source_takes_the_place_of_an_earlier_one(app):
    app.config_from_object({"timezone": "UTC", "task_default_queue": "mail"})
    app.config_from_object({"timezone": "Asia/Kolkata"})
    assert (app.conf.timezone, app.conf.task_default_queue) == ("Asia/Kolkata", "celery")


@pytest.mark.row("F012")
@pytest.mark.parametrize(("path", "words"), [
    ("no_such_module", "no module 'no_such_module'"), ("localq:nothing", "localq has no attribute 'nothing'"),
    ("no_such.module.attr", "no module"), ("no_such.py", "give the module's name: 'no_such'"),
    ("no_such.toml", "no such file"),
])  # fmt: skip
def test_a_source_that_is_not_there_is_an_error_unless_it_may_be_silent(app, path, words):
    app.config_from_object(path)
    for _ in range(2):
        with pytest.raises(ConfigNotFound, match=f"{re.escape(path)}.*{re.escape(words)}"):
            _ = app.conf.timezone
    with pytest.raises(ImportError):
        app.config_from_object(path, force=True)
    app.config_from_object(path, silent=True)
    assert app.conf.timezone is None


def test_what_goes_wrong_inside_a_module_is_not_silenced_and_names_the_source(app, module):
    module("conf_broken", "import a_module_that_nobody_has")
    app.config_from_object("conf_broken", silent=True)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has") as raised:
        _ = app.conf.timezone
    assert raised.value.__notes__ == ["while reading settings from conf_broken"]


def test_all_faults_of_a_source_are_told_with_its_name(app):
    app.config_from_object({"task_serialiser": "json", "task_default_priority": 999})
    with pytest.raises(ImproperlyConfigured, match=r"a dict: .*task_serialiser.*; task_default_priority") as raised:
        _ = app.conf.timezone
    assert "while reading settings from a dict" in raised.value.__notes__


@pytest.mark.parametrize("source", [3, b"x", print, pytest.fixture])
def test_what_can_hold_no_settings_is_refused(app, source):
    app.config_from_object(source)
    with pytest.raises(ImproperlyConfigured, match="give a module, a class, or a mapping"):
        _ = app.conf.timezone


def test_a_configuration_module_may_look_into_the_settings_it_is_part_of(module, tmp_path):
    module("conf_of_itself", """
from proj_of_itself import app
task_default_queue = app.conf.task_default_queue + "_more"
""")  # fmt: skip
    module("proj_of_itself", """
from localq import LocalQ
app = LocalQ("x", store="memory:", set_as_current=False)
app.config_from_object("conf_of_itself")
@app.task
def add(x, y):
    return x + y
""")  # fmt: skip
    code = "from proj_of_itself import app, add; print(app.conf.task_default_queue, add.app is app)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=30
    )
    assert run.stdout.split() == ["celery_more", "True"], run.stderr


def test_settings_read_in_many_threads_at_once_are_the_same_in_all(app):
    barrier, seen = threading.Barrier(8), []

    class Slow:
        @property
        def timezone(self):
            return "UTC"

    app.config_from_object(Slow())

    def look():
        barrier.wait(10)
        seen.append((app.conf.timezone, app.conf["timezone"], len(app.conf)))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert seen == [("UTC", "UTC", len(SETTINGS))] * 8


def test_tasks_take_what_the_settings_say_whenever_they_come(app):
    @app.task
    def early():
        """Defined before there is a configuration."""

    app.config_from_object({"task_acks_late": True})
    assert early.acks_late is True
    app.conf.task_acks_late = False
    assert early.acks_late is False


# -- Namespaces and old names ------------------------------------------------------------------------


@pytest.mark.row("F012")
@pytest.mark.parametrize("namespace", ["CELERY", "celery", "CELERY_"])
def test_a_namespace_says_which_names_are_settings(app, namespace, caplog):
    app.config_from_object({
        "CELERY_TASK_DEFAULT_QUEUE": "mail", "celery_worker_concurrency": 3, "DEBUG": True, "ALLOWED_HOSTS": ["*"],
        "CELERY_ENABLED": True,
    }, namespace=namespace)  # fmt: skip
    assert app.conf.without_defaults() == {"task_default_queue": "mail", "worker_concurrency": 3, "enabled": True}
    assert app.conf.CELERY_WORKER_CONCURRENCY == app.conf["CELERY_WORKER_CONCURRENCY"] == 3
    assert caplog.text.count("'enabled'") == 1
    assert "DEBUG" not in caplog.text


def test_a_misspelt_name_in_a_namespace_is_an_error(app):
    app.config_from_object({"CELERY_TASK_SERIALISER": "json"}, namespace="CELERY")
    with pytest.raises(ImproperlyConfigured, match="'task_serialiser'; did you mean 'task_serializer'"):
        _ = app.conf.timezone


def test_the_apps_own_namespace_is_that_of_its_sources():
    app = LocalQ("a", namespace="CELERY", config_source={"CELERY_TIMEZONE": "UTC", "X": 1}, set_as_current=False)
    assert app.conf.without_defaults() == {"timezone": "UTC"}


def test_djangos_time_zone_counts_if_there_is_no_other(app):
    app.config_from_object({"TIME_ZONE": "Europe/Berlin"}, namespace="CELERY")
    assert app.conf.timezone == "Europe/Berlin"
    app.config_from_object({"TIME_ZONE": "Europe/Berlin", "CELERY_TIMEZONE": "UTC"}, namespace="CELERY")
    assert app.conf.timezone == "UTC"


@pytest.mark.row("F010", "R17")
def test_old_and_new_names_are_not_mixed_in_one_source(app):
    app.config_from_object({"CELERY_TIMEZONE": "UTC", "BROKER_URL": "memory:", "task_serializer": "json"})
    with pytest.raises(ImproperlyConfigured, match=r"task_serializer +-> CELERY_TASK_SERIALIZER"):
        _ = app.conf.timezone
    app.config_from_object({"CELERY_TIMEZONE": "UTC", "broker_url": "memory:", "task_serializer": "json"})
    with pytest.raises(ImproperlyConfigured, match=r"CELERY_TIMEZONE +-> timezone"):
        _ = app.conf.timezone


def test_both_names_of_one_setting_may_be_given_and_the_new_one_counts(app):
    app.config_from_object({"BROKER_URL": "redis://old", "broker_url": "redis://new"})
    assert app.conf.broker_url == "redis://new"


# -- Who wins --------------------------------------------------------------------------------------


@pytest.mark.row("F011")
def test_the_program_wins_over_the_source_whenever_it_speaks():
    app = LocalQ(
        "a", broker="memory:kw", include=["kw"], timezone="UTC", changes={"task_default_queue": "changed"},
        config_source={"broker_url": "memory:file", "include": ["file"], "timezone": "Asia/Kolkata",
                       "task_default_queue": "file", "enable_utc": False, "task_track_started": True},
        set_as_current=False,
    )  # fmt: skip
    app.conf.update(task_track_started=False)
    assert (app.conf.broker_url, app.conf.include, app.conf.timezone) == ("memory:kw", ("kw",), "UTC")
    assert (app.conf.task_default_queue, app.conf.enable_utc, app.conf.task_track_started) == ("changed", False, False)
    app.conf.update({"enable_utc": True}, worker_concurrency=2)
    app.config_from_object({"enable_utc": False, "worker_concurrency": 9})
    assert (app.conf.enable_utc, app.conf.worker_concurrency) == (True, 2)


@pytest.mark.row("F012")
def test_added_defaults_stand_between_the_program_and_the_source(app):
    app.config_from_object({"timezone": "UTC", "enable_utc": False})
    app.add_defaults({"timezone": "Asia/Kolkata", "task_default_queue": "first", "my_own": 1})
    app.add_defaults(lambda: {"task_default_queue": "second"})
    assert (app.conf.timezone, app.conf.task_default_queue, app.conf.my_own) == ("Asia/Kolkata", "second", 1)
    app.conf.task_default_queue = "program"
    app.add_defaults(lambda: {"task_default_queue": "third", "task_track_started": True})
    assert (app.conf.task_default_queue, app.conf.task_track_started) == ("program", True)


def test_the_environment_fills_what_the_program_and_the_source_leave_open(monkeypatch):
    monkeypatch.setenv("LOCALQ_TIMEZONE", "Asia/Kolkata")
    monkeypatch.setenv("LOCALQ_TASK_DEFAULT_QUEUE", "env")
    monkeypatch.setenv("LOCALQ_WORKER_CONCURRENCY", "7")
    app = LocalQ("a", config_source={"timezone": "UTC"}, task_default_queue="code", set_as_current=False)
    assert (app.conf.timezone, app.conf.task_default_queue, app.conf.worker_concurrency) == ("UTC", "code", 7)
    assert [app.conf.told_by(name) for name in ("task_default_queue", "timezone", "worker_concurrency", "imports")] == [
        "program", "a dict", "environment", "default",
    ]  # fmt: skip


# -- Variables -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "text", "value"), [
    ("task_always_eager", "true", True), ("task_always_eager", "0", False), ("worker_concurrency", "3", 3),
    ("worker_concurrency", "none", None), ("accept_content", "json, pickle", ["json", "pickle"]),
    ("imports", '["a", "b"]', ["a", "b"]), ("task_routes", '{"a.*": "mail"}', {"a.*": "mail"}),
    ("task_routes", "json:dumps", "json:dumps"), ("task_default_rate_limit", "10/m", "10/m"),
    ("task_time_limit", "1.5", 1.5), ("task_time_limit", "2", 2), ("result_expires", "60", 60),
    ("result_expires", "None", None), ("task_publish_retry_policy", '{"max_retries": 1}', {"max_retries": 1}),
    ("broker_heartbeat", "7", 7), ("worker_pool_putlocks", "no", False), ("redis_host", "box", "box"),
    ("store_durability", "full", "full"),
])  # fmt: skip
def test_every_setting_has_a_variable_read_by_its_type(name, text, value, monkeypatch):
    monkeypatch.setenv(f"LOCALQ_{name.upper()}", text)
    found = LocalQ("a", set_as_current=False).conf[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("name", "text", "words"), [
    ("task_always_eager", "maybe", "expected true or false"), ("worker_concurrency", "many", "'many' is no number"),
    ("worker_concurrency", "0", "expected at least 1"), ("task_publish_retry_policy", "{", "is not JSON"),
    ("timezone", "Mars", "no such time zone"), ("task_priority_order", "up", "low_first"),
])  # fmt: skip
def test_a_bad_value_names_the_variable_and_the_setting(name, text, words, monkeypatch):
    monkeypatch.setenv(f"LOCALQ_{name.upper()}", text)
    with pytest.raises(ImproperlyConfigured, match=f"variable LOCALQ_{name.upper()}: {name}.*{words}"):
        _ = LocalQ("a", set_as_current=False).conf.timezone


def test_an_empty_variable_sets_nothing_and_so_does_one_of_somebody_elses(monkeypatch, caplog):
    monkeypatch.setenv("LOCALQ_TIMEZONE", "")
    monkeypatch.setenv("LOCALQ_WORKER_HOSTNAME", "w1@%h")
    assert LocalQ("a", set_as_current=False).conf.timezone is None
    assert caplog.text == ""


@pytest.mark.row("F012")
@pytest.mark.parametrize(("variable", "meant"), [
    ("LOCALQ_WORKER_CONCURENCY", "LOCALQ_WORKER_CONCURRENCY"), ("LOCALQ_DURABILTY", "LOCALQ_DURABILITY"),
    ("LOCALQ_STOER", "LOCALQ_STORE"), ("LOCALQ_CONFIG_MODUL", "LOCALQ_CONFIG_MODULE"),
    ("LOCALQ_TASK_ALLWAYS_EAGERLY", "LOCALQ_TASK_ALWAYS_EAGER"),
])  # fmt: skip
def test_a_misspelt_variable_is_an_error_that_names_the_right_one(variable, meant, monkeypatch):
    monkeypatch.setenv(variable, "full")
    with pytest.raises(ImproperlyConfigured, match=rf"^variable {variable} sets nothing; did you mean '{meant}'\?$"):
        _ = LocalQ("a", set_as_current=False).conf.timezone


@pytest.mark.row("F012")
def test_a_variable_may_name_the_source(module, monkeypatch, tmp_path):
    monkeypatch.setenv("CELERY_CONFIG_MODULE", module("conf_named_by_celerys", "timezone = 'UTC'"))
    assert LocalQ("a", set_as_current=False).conf.timezone == "UTC"
    monkeypatch.setenv("LOCALQ_CONFIG_MODULE", module("conf_named_by_ours", "timezone = 'Asia/Kolkata'"))
    app = LocalQ("a", set_as_current=False)
    assert "conf_named_by_ours" not in sys.modules
    assert app.conf.timezone == "Asia/Kolkata"
    app.config_from_object({"task_default_queue": "mail"})
    assert app.conf.timezone is None
    monkeypatch.setenv("LOCALQ_CONFIG_FILE", "settings.toml")
    with pytest.raises(ImproperlyConfigured, match="both set"):
        LocalQ("a", set_as_current=False)
    monkeypatch.delenv("LOCALQ_CONFIG_MODULE")
    (tmp_path / "settings.toml").write_text('timezone = "Europe/Berlin"')
    assert LocalQ("a", set_as_current=False).conf.timezone == "Europe/Berlin"
    monkeypatch.setenv("LOCALQ_CONFIG_FILE", "nowhere.toml")
    with pytest.raises(ConfigNotFound, match=re.escape(str(tmp_path / "nowhere.toml"))):
        _ = LocalQ("a", set_as_current=False).conf.timezone


@pytest.mark.row("F012")
def test_config_from_envvar_takes_the_module_a_variable_names(app, module, monkeypatch):
    monkeypatch.setenv("MY_CONFIG", module("conf_of_envvar", "timezone = 'UTC'"))
    assert app.config_from_envvar("MY_CONFIG") is None
    assert app.conf.timezone == "UTC"
    assert app.config_from_envvar("NOT_SET_AT_ALL", silent=True) is False
    with pytest.raises(ImproperlyConfigured, match="NOT_SET_AT_ALL is not set"):
        app.config_from_envvar("NOT_SET_AT_ALL")


@pytest.mark.row("F012")
def test_celerys_variables_name_the_store_if_nothing_else_does(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CELERY_BROKER_URL", "sqlite:///jobs")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://host/1")
    app = LocalQ("a", set_as_current=False)
    assert app.backend.location.path == str(tmp_path / "jobs")
    assert app.conf.result_backend == "redis://host/1"
    assert LocalQ("a", broker="memory:", set_as_current=False).backend.location.scheme == "memory"
    monkeypatch.setenv("LOCALQ_STORE", "other")
    assert LocalQ("a", set_as_current=False).backend.location.path == str(tmp_path / "other")


# -- Files and command lines -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "head"), [
    ("settings.toml", ""), ("settings.toml", "[localq]"), ("pyproject.toml", "[tool.localq.settings]"),
])  # fmt: skip
def test_settings_come_from_a_toml_file_beside_the_app(app, tmp_path, name, head):
    (tmp_path / name).write_text(f"{head}\ntimezone = 'UTC'\nimports = ['a']\ntask_routes = {{ 'a.*' = 'mail' }}\n")
    app.config_from_object(name)
    assert app.conf.without_defaults() == {"timezone": "UTC", "imports": ["a"], "task_routes": {"a.*": "mail"}}
    app.config_from_object(Path(tmp_path, name), force=True)
    assert app.conf.timezone == "UTC"


def test_a_file_that_is_no_toml_is_named(app, tmp_path):
    (tmp_path / "bad.toml").write_text("timezone = ")
    app.config_from_object("bad.toml")
    with pytest.raises(ImproperlyConfigured, match=re.escape(str(tmp_path / "bad.toml"))):
        _ = app.conf.timezone


@pytest.mark.row("F012")
def test_a_command_line_sets_by_type(app):
    app.config_from_cmdline([
        "worker.concurrency=4", "task_always_eager=yes", 'task_routes=(json){"a": "mail"}', ".timezone=UTC",
        "my.own=(float)1.5", "task_default_rate_limit=10/m", "BROKER_URL=memory:",
    ])  # fmt: skip
    assert app.conf.without_defaults() == {
        "worker_concurrency": 4, "task_always_eager": True, "task_routes": {"a": "mail"}, "timezone": "UTC",
        "my_own": 1.5, "task_default_rate_limit": "10/m", "broker_url": "memory:",
    }  # fmt: skip
    app.config_from_cmdline(["_concurrency=5"], namespace="worker")
    assert app.conf.worker_concurrency == 5


@pytest.mark.parametrize("word", ["timezone", "=x", "worker.concurrency=many", "x=(complex)1", "task_routes=(json){"])
def test_a_word_that_sets_nothing_is_an_error(app, word):
    with pytest.raises(ImproperlyConfigured):
        app.config_from_cmdline([word])
    assert app.conf.without_defaults() == {}


def test_every_default_that_a_text_can_say_is_read_back_from_it():
    for setting in SETTINGS.values():
        if isinstance(setting.default, bool | int | float | str) and setting.default != "":
            assert value_of(setting, str(setting.default)) == setting.default
        elif setting.default is None:
            assert value_of(setting, "none") is None


# -- Real projects ---------------------------------------------------------------------------------

DJANGO = """
import os
from pathlib import Path
BASE_DIR = Path("/srv/shop")
SECRET_KEY = "django-insecure"
DEBUG = False
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["django.contrib.admin", "django_celery_beat", "django_celery_results", "shop"]
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql"}}
TIME_ZONE = "Europe/Berlin"
USE_TZ = True
CELERY_BROKER_URL = os.environ.get("SHOP_REDIS", "redis://:hunter2@localhost:6379/0")
CELERY_RESULT_BACKEND = "django-db"
CELERY_CACHE_BACKEND = "django-cache"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_SERIALIZER = "json"
CELERY_RESULT_SERIALIZER = "json"
CELERY_RESULT_EXTENDED = True
CELERY_TASK_TRACK_STARTED = True
CELERY_TASK_TIME_LIMIT = 30 * 60
CELERY_TASK_ALWAYS_EAGER = False
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_SCHEDULE = {"nightly": {"task": "shop.tasks.nightly", "schedule": 86400.0}}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 3600}
CELERY_WORKER_MAX_TASKS_PER_CHILD = 100
CELERY_TASK_ROUTES = {"shop.tasks.mail": {"queue": "mail"}}
CELERY_WORKER_SEND_TASK_EVENTS = True
CELERYD_PREFETCH_MULTIPLIER = 1
"""
OLD = """
from datetime import timedelta
BROKER_URL = "amqp://guest:hunter2@localhost:5672//"
BROKER_HEARTBEAT = 10
BROKER_POOL_LIMIT = None
CELERY_RESULT_BACKEND = "rpc"
CELERY_TASK_SERIALIZER = "json"
CELERY_RESULT_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json", "pickle"]
CELERY_TIMEZONE = "Europe/Oslo"
CELERY_ENABLE_UTC = True
CELERY_IMPORTS = ("proj.tasks",)
CELERY_ROUTES = {"proj.tasks.add": "low-priority"}
CELERY_ANNOTATIONS = {"tasks.add": {"rate_limit": "10/m"}}
CELERY_TASK_RESULT_EXPIRES = 3600
CELERY_SEND_TASK_ERROR_EMAILS = False
CELERYD_CONCURRENCY = 4
CELERYD_TASK_TIME_LIMIT = 300
CELERYD_LOG_LEVEL = "INFO"
CELERYBEAT_SCHEDULE = {"every": {"task": "proj.tasks.add", "schedule": timedelta(seconds=30), "args": (1, 2)}}
"""
BROKERS = """
broker_url = ["amqp://a:hunter2@one//", "amqp://b:hunter2@two//"]
broker_read_url = broker_write_url = "amqp://a:hunter2@one//"
broker_transport = "amqp"
broker_transport_options = {"confirm_publish": True}
broker_connection_timeout = 4.0
broker_connection_retry = True
broker_connection_retry_on_startup = True
broker_connection_max_retries = 100
broker_channel_error_retry = False
broker_failover_strategy = "round-robin"
broker_heartbeat = 120
broker_heartbeat_checkrate = 3.0
broker_login_method = "AMQPLAIN"
broker_native_delayed_delivery_queue_type = "quorum"
broker_pool_limit = 10
broker_pool_acquire_timeout = 5.0
broker_use_ssl = {"keyfile": "/etc/key.pem"}
broker_host, broker_port, broker_user, broker_password, broker_vhost = "one", 5672, "a", "hunter2", "/"
result_backend = "db+postgresql://me:hunter2@localhost/results"
database_engine_options = {"echo": True}
database_table_names = {"task": "t"}
"""
CLOUDS = """
broker_url = "sqs://AKIA:hunter2@"
result_backend = "s3://bucket"
s3_access_key_id = "AKIA"
s3_secret_access_key = "hunter2"
s3_bucket = "results"
redis_max_connections = 20
redis_socket_keepalive = True
redis_backend_health_check_interval = 30
mongodb_backend_settings = {"database": "jobs", "taskmeta_collection": "taskmeta"}
cassandra_servers = ["localhost"]
elasticsearch_timeout = 10
result_backend_transport_options = {"retry_policy": {"timeout": 5.0}}
task_queues = {"mail": {"exchange": "mail"}}
worker_prefetch_multiplier = 1
task_acks_late = True
"""


@pytest.mark.row("F343", "R17", "N42", "F010")
@pytest.mark.parametrize(("text", "namespace", "value"), [
    (DJANGO, "CELERY", {"timezone": "Europe/Berlin", "task_time_limit": 1800, "worker_prefetch_multiplier": 1,
                        "task_routes": {"shop.tasks.mail": {"queue": "mail"}}, "result_backend": "django-db"}),
    (OLD, None, {"timezone": "Europe/Oslo", "worker_concurrency": 4, "imports": ("proj.tasks",),
                 "result_expires": 3600, "CELERY_SEND_TASK_ERROR_EMAILS": False}),
    (BROKERS, None, {"broker_vhost": "/", "broker_heartbeat": 120}),
    (CLOUDS, None, {"task_acks_late": True, "s3_bucket": "results"}),
], ids=["django", "upper-case", "twenty broker keys", "clouds"])  # fmt: skip
def test_the_configuration_of_a_real_project_loads(text, namespace, value, module, tmp_path, caplog):
    app = LocalQ("shop", store=tmp_path / "store", set_as_current=False)
    app.config_from_object(module("conf_of_a_real_project", text), namespace=namespace)
    assert {name: app.conf[name] for name in value} == value
    assert app.backend.location.path == str(tmp_path / "store")
    ignored = [r.getMessage() for r in caplog.records if "is ignored" in r.getMessage()]
    assert len(ignored) == 1
    assert str(tmp_path / "store") in ignored[0]
    assert len(caplog.records) <= 2  # ... and the private names, in one line
    assert "hunter2" not in caplog.text + app.conf.humanize() + repr(app.conf)
    assert not set(app.conf.without_effect()) & {"broker_url", "result_backend", "timezone"}


@pytest.mark.row("R17", "F343")
def test_a_worker_runs_on_a_configuration_with_twenty_broker_settings_and_names_them_once(module, tmp_path, caplog):
    app = LocalQ("shop", store=tmp_path / "store", set_as_current=False)
    app.config_from_object(module("conf_with_a_broker", BROKERS))

    @app.task
    def add(x, y):
        return x + y

    with start_worker(app, "solo"):
        assert add.delay(2, 2).get(timeout=30) == 4
    app.close()
    told = [r.getMessage() for r in caplog.records if "no effect" in r.getMessage()]
    assert len(told) == 1
    assert told[0].count("broker_") == len([name for name in app.conf.without_effect() if name.startswith("broker_")])


@pytest.mark.row("N42")
@pytest.mark.parametrize("backend", [
    "django-db", "rpc", "redis", "disabled", "proj.backends:Mine", "file:///tmp/results", "cache+memory://",
    "redis://a;redis://b", "mongodb+srv://x/y", "elasticsearch://x", "dynamodb://x", "azureblockblob://x",
])  # fmt: skip
def test_a_foreign_result_backend_is_ignored_with_a_warning(backend, tmp_path, caplog):
    app = LocalQ("a", store=tmp_path / "store", backend=backend, set_as_current=False)
    assert app.backend.location.path == str(tmp_path / "store")
    assert caplog.text.count("is ignored: localq keeps its work in") == 1


def test_a_store_named_by_a_configuration_file_is_used(module, tmp_path):
    app = LocalQ("a", set_as_current=False)
    app.config_from_object(module("conf_with_a_store", f"broker_url = 'sqlite:///{tmp_path}/jobs'"))
    assert app.backend.location.path == os.path.join(tmp_path, "jobs")


def test_nothing_is_read_to_make_an_app_or_to_show_its_settings(module, monkeypatch):
    app = LocalQ("a", config_source=module("conf_not_read", "raise RuntimeError"), set_as_current=False,
                 result_expires=timedelta(1))  # fmt: skip
    assert repr(app.conf) == f"<Settings {{'result_expires': {timedelta(1)!r}}}>"
    assert "conf_not_read" not in sys.modules
