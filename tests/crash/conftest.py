"""Lets the tests here use what tests/canvas has: the model of workflows, how they are drawn and built."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "canvas"))
