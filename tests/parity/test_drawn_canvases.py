"""Workflows drawn anew are played on a live Celery and on localq, and come to the same; see programs/drawn_canvases.py.

What is not drawn for Celery's sake is still what drawing.py says of it: whatever Celery mends is taken off that list.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import drawing
import pytest
import stage
from building import plain
from model import model
from test_parity import PYTHON

pytestmark = pytest.mark.parity
SEEDS = range(2, 6)


@pytest.fixture(autouse=True)
def _there_is_celery() -> None:
    if why := stage.why_not(PYTHON):
        pytest.skip(why)


def played(folder: Path, monkeypatch: Any, drawn: list[Any]) -> tuple[Any, Any]:
    """Play workflows on both; returns what each answered."""
    file = folder / "drawn.json"
    drawing.write(file, drawn)
    monkeypatch.setenv("PARITY_DRAWN", str(file))
    with stage.celery(PYTHON) as play:
        celery = play("drawn_canvases")
    return celery, stage.answers("localq", "drawn_canvases", folder / "localq")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", SEEDS)
def test_workflows_come_to_the_same_on_celery(tmp_path, monkeypatch, number):
    drawn = drawing.drawn(drawing.LIVE, number)
    celery, localq = played(tmp_path, monkeypatch, drawn)
    assert len(celery) == len(drawn) == len(localq)
    for name, shown in celery.items():
        flow = drawn[int(name.rpartition("_")[2])]
        assert (localq[name]["answer"], flow) == (shown["answer"], flow)


@pytest.mark.timeout(300)
def test_what_is_not_drawn_is_otherwise_on_celery(tmp_path, monkeypatch):
    flows = [flow for _, flow, _ in drawing.RESTRICTIONS]
    celery, localq = played(tmp_path, monkeypatch, [[plain(flow), [], False] for flow in flows])
    for number, (restricts, flow, instead) in enumerate(drawing.RESTRICTIONS):
        expected = json.loads(json.dumps(model(flow)))
        assert restricts(flow)
        answer = celery[f"workflow_{number}"]["answer"]
        assert "escaped" in answer or answer[:4] != expected, f"no longer: {instead}"
        assert localq[f"workflow_{number}"]["answer"][:4] == expected, flow
