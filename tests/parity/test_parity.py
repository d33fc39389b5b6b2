"""localq answers as Celery does: each observation of the programs, against what Celery 5.7 was recorded to answer.

`expected/` holds Celery's answers, `differences.toml` what localq answers on purpose instead. `nox -s parity` plays the
programs on a live Celery and compares the recordings with it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import stage

PYTHON = os.environ.get("PARITY_PYTHON", sys.executable)


RECORDED = [
    pytest.param(subject, name, id=f"{subject}-{name}", marks=pytest.mark.row(*shown["rows"]))
    for subject in stage.SUBJECTS
    for name, shown in stage.expected(subject).items()
]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Return a function that plays a program on localq, once."""
    return cache(lambda subject: stage.answers("localq", subject, tmp_path_factory.mktemp(subject)))


@pytest.mark.parametrize(("subject", "name"), RECORDED)
def test_localq_answers_as_celery_does(subject, name, played):
    answer = played(subject)[name]["answer"]
    assert "escaped" not in str(answer)[:12], answer["escaped"]
    differs = stage.differences().get(subject, {}).get(name)
    assert answer == (differs["localq"] if differs else stage.expected(subject)[name]["answer"])


@pytest.mark.parametrize("subject", stage.SUBJECTS)
def test_every_observation_is_recorded_with_its_rows(subject, played):
    recorded = stage.expected(subject)
    assert {name: shown["rows"] for name, shown in played(subject).items()} == {
        name: shown["rows"] for name, shown in recorded.items()
    }


def test_every_recording_has_its_program():
    assert sorted(path.stem for path in stage.EXPECTED.glob("*.json")) == stage.SUBJECTS


def test_a_difference_is_one_and_has_a_reason_that_was_decided():
    for subject, names in stage.differences().items():
        for name, difference in names.items():
            assert re.match(r"(DESIGN 6|[XR]\d+|F\d+ says)\b.*: ", difference["reason"]), (subject, name)
            assert stage.expected(subject)[name]["answer"] != difference["localq"], (subject, name)


def test_readme_names_every_difference_and_no_other():
    readme = (stage.HERE.parents[1] / "README.md").read_text("utf-8").partition("## What differs from Celery")[2]
    named = re.findall(r"`(\w+\.\w+)`", readme.partition("\n## ")[0])
    known = [f"{subject}.{name}" for subject, names in stage.differences().items() for name in names]
    assert sorted(name for name in named if name.partition(".")[0] in stage.SUBJECTS) == sorted(known)


@pytest.mark.parity
@pytest.mark.parametrize("subject", stage.SUBJECTS)
def test_celery_still_answers_as_recorded(subject):
    if why := stage.why_not(PYTHON):
        pytest.skip(why)
    with stage.celery(PYTHON) as play:
        found = play(subject)
    assert json.loads(json.dumps(found)) == stage.expected(subject)
