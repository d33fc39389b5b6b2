"""The bug report: what is the matter, without secrets."""

from __future__ import annotations

import pytest

import localq
from localq import LocalQ

pytestmark = pytest.mark.row("F024")


@pytest.fixture
def app(tmp_path):
    made = LocalQ("proj", store=tmp_path / "store")
    yield made
    made.close()


def test_it_tells_versions_place_and_settings_and_makes_no_store(app, tmp_path):
    app.conf.task_default_queue = "mine"
    text = app.bugreport()
    for part in ("software -> localq:", "platform -> system:", f"{tmp_path}/store", "task_default_queue: 'mine'"):
        assert part in text
    assert not (tmp_path / "store").exists()
    assert localq.bugreport() == text


def test_it_tells_what_is_in_the_store_and_no_arguments(app):
    app.send_task("proj.x", ("hidden",))
    assert "queue celery: 1 ready" in app.bugreport()
    assert "hidden" not in app.bugreport()


def test_it_tells_no_secrets(app):
    app.conf.update(
        broker_url="redis://me:hush1@host/0", security_key="hush2", redis_password="hush3",
        result_backend_transport_options={"password": "hush4", "region": "north"},
    )  # fmt: skip
    text = app.bugreport()
    assert "hush" not in text
    assert "me:********@host" in text
    assert "north" in text
