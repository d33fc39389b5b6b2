"""Workflows that were drawn by chance (tests/canvas/strategies): what each comes to, and of what form its result is.

They stand in a file, as tests/parity/drawing.py wrote it; PARITY_DRAWN names another one.
"""

import json
import os
from pathlib import Path

import building
import celery
import observing
from model import model
from observing import shows, until

app = celery.Celery("drawn_canvases")
tasks = building.Tasks(app, celery)

FILE = Path(os.environ.get("PARITY_DRAWN") or Path(__file__).resolve().parents[1] / "drawn_canvases.json")
ROWS = ("F219", "F221", "F222", "F223", "F224", "F225", "F227", "F234", "F235", "F238", "F241", "F242")


def shape(result):
    """A result's tuple without its ids: its parents, and its members."""

    def of(found):
        (_, above), members = found
        return [of(above) if above else "-", "-" if members is None else [of(each) for each in members]]

    return of(result.as_tuple())


def look(number, flow, fed, is_shaped):
    """Send it, and wait until as much has been run and told as the model says."""
    case = f"{os.environ['PARITY_NOTES']}.{number}"
    result = building.Builder(tasks, case).built(flow).apply_async(fed)
    expected = model(flow, *fed)
    whole = len(expected.runs) + len(expected.told)
    until(lambda: Path(case).exists() and len(Path(case).read_text().splitlines()) >= whole)
    seen = building.seen(result, case, observing.LIMIT_S / 2)
    return [seen.value, seen.raised, seen.runs, seen.told, shape(result) if is_shaped else "not compared"]


def show(number, flow, fed, is_shaped):
    def each():
        return look(number, flow, fed, is_shaped)

    each.__name__ = f"workflow_{number}"
    shows(*ROWS)(each)


for number, (flow, fed, is_shaped) in enumerate(json.loads(FILE.read_text("utf-8"))):
    show(number, building.revived(flow), fed, is_shaped)
