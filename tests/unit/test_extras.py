"""What needs a package that need not be there says which, and nothing else minds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from localq.exceptions import LocalqWarning
from localq.tracebacks import with_remote


@pytest.mark.row("N48", "F057")
def test_a_task_with_models_says_what_to_install_and_no_other_task_notices(tmp_path):
    program = (
        "import sys; sys.modules['pydantic'] = None\n"
        "from localq import LocalQ\n"
        "app = LocalQ('proj', store='memory:')\n"
        "app.task(name='plain')(lambda: 1)\n"
        "assert 'inspect' not in sys.modules\n"
        "app.task(name='typed', pydantic=True)(lambda: 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("localq.exceptions.ImproperlyConfigured: a task says pydantic=True")
    assert "pip install 'localq[pydantic]'" in last


@pytest.mark.row("F184")
def test_remote_tracebacks_say_what_to_install_and_the_exception_is_raised_all_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "tblib", None)
    exc = ValueError("why")
    with pytest.warns(LocalqWarning, match=r"pip install 'localq\[tblib\]'"):
        assert with_remote(exc, "Traceback (most recent call last):\n") is exc
