"""The setting `task_remote_tracebacks`: what `get()` raises can be followed into the worker's code."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st
from working import work_off

from localq import LocalQ
from localq.tracebacks import with_remote


@pytest.fixture
def app():
    made = LocalQ("proj", store="memory:", task_remote_tracebacks=True)
    yield made
    made.close()


def frames(exc):
    return [frame.name for frame in traceback.extract_tb(exc.__traceback__)]


def deep(n):
    if n:
        deep(n - 1)
    try:
        raise KeyError("cause")
    except KeyError as exc:
        raise ValueError("why") from exc


@pytest.mark.row("F184")
def test_a_failure_brings_the_workers_frames(app):
    pytest.importorskip("tblib")

    @app.task
    def fail():
        deep(2)

    result = fail.delay()
    work_off(app)
    with pytest.raises(ValueError, match="why") as failure:
        result.get(timeout=0)
    assert frames(failure.value)[-4:] == ["fail", "deep", "deep", "deep"]
    assert frames(failure.value)[0].startswith("test_a_failure")


@pytest.mark.row("F184")
def test_without_the_setting_it_brings_only_ones_own(app):
    app.conf.task_remote_tracebacks = False

    @app.task
    def fail():
        deep(0)

    result = fail.delay()
    work_off(app)
    with pytest.raises(ValueError, match="why") as failure:
        result.get(timeout=0)
    assert "deep" not in frames(failure.value)


@pytest.mark.row("F184")
@given(st.one_of(st.none(), st.text(), st.text().map("Traceback (most recent call last):\n".__add__)))
def test_whatever_the_text_is_the_exception_is_what_it_was(text):
    pytest.importorskip("tblib")
    exc = ValueError("why")
    assert with_remote(exc, text) is exc
