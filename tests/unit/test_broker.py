"""What stands where Celery has a broker: health checks go on working, and what needs a broker says so."""

from __future__ import annotations

import pytest

from localq import LocalQ
from localq.exceptions import ImproperlyConfigured, OperationalError

pytestmark = pytest.mark.row("N33")


@pytest.fixture
def app(tmp_path):
    made = LocalQ("proj", store=tmp_path / "store")
    yield made
    made.close()


@pytest.mark.parametrize("name", ["connection", "connection_for_read", "connection_for_write", "connection_or_acquire"])
def test_a_connection_is_the_store_which_opens_when_it_is_needed(app, name, tmp_path):
    with getattr(app, name)() as connection:
        assert not connection.connected
        assert not (tmp_path / "store").exists()
        assert connection.ensure_connection(max_retries=3) is connection
        assert connection.connected
        assert connection.as_uri() == app.backend.url
        assert "store" in repr(connection)
    connection.release()
    assert app.send_task("x").exists()


def test_a_store_that_cannot_be_used_is_told_to_the_callback_and_raised(tmp_path):
    (tmp_path / "file").write_text("in the way")
    app = LocalQ("proj", store=tmp_path / "file" / "store", set_as_current=False)
    told = []
    with pytest.raises(OperationalError):
        app.connection().ensure_connection(lambda exc, interval: told.append(exc))
    assert len(told) == 1


def test_a_connection_to_another_place_is_refused_and_its_password_not_told(app):
    assert app.connection(app.backend.url).as_uri() == app.backend.url
    with pytest.raises(ImproperlyConfigured, match="no connection to host/") as told:
        app.connection("amqp://me:secret@host//")
    assert "secret" not in str(told.value)


def test_what_is_passed_along_is_used(app):
    mine = object()
    assert app.connection_or_acquire(mine) is mine
    assert app.producer_or_acquire(mine) is mine


def test_producers_and_connections_can_be_had_from_pools(app):
    with app.pool.acquire(block=True) as connection:
        assert connection.ensure_connection()
    with app.producer_pool.acquire(block=True) as producer, app.producer_or_acquire() as other:
        assert producer.connection.as_uri() == other.connection.as_uri()
        assert app.send_task("x", producer=producer).exists()
    with app.amqp.producer_pool.acquire():
        app.pool.force_close_all()


def test_what_needs_a_broker_says_what_to_do_instead(app):
    for thing, name, instead in (
        (app.producer_or_acquire(), "publish", "apply_async"),
        (app.connection(), "default_channel", r"app\.storage"),
        (app.amqp, "TaskConsumer", "task_routes"),
        (app.pool, "resize", "acquire"),
    ):
        with pytest.raises(AttributeError, match=f"{name}.*localq has no broker.*{instead}"):
            getattr(thing, name)


def test_the_queues_are_known_by_name(app):
    app.conf.task_default_queue = "usual"
    assert list(app.amqp.queues) == [app.amqp.default_queue] == ["usual"]
