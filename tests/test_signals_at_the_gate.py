"""Signals at random moments of a `delay()` loop: the gate is never left locked, and what was returned exists.

SIGINT and SIGALRM raise in Python, SIGTSTP stops the process. The oracle is outside the store: ids as `delay`
returned them, appended to a file by the sender.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from localq import LocalQ

SIGNALS = 3000

SENDER = """
import os, signal, sys, threading
from localq import LocalQ

app = LocalQ("sender", store=sys.argv[1])

@app.task
def add(x, y):
    return x + y

class Struck(BaseException):
    pass

armed = False

def strike(number, frame):
    global armed
    if armed:
        armed = False  # once a call, so that none strikes while another is being handled
        raise Struck

signal.signal(signal.SIGINT, strike)
signal.signal(signal.SIGALRM, strike)
if sys.argv[3] == "threads":
    # A thread of the user's that takes signals: their handlers still run on the main thread.
    threading.Thread(target=threading.Event().wait, daemon=True).start()
out = os.open(sys.argv[2], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
add.delay(0, 0)  # opens the store
print("ready", flush=True)
struck = 0
while True:
    try:
        armed = True
        id = add.delay(1, 2).id
        armed = False
        os.write(out, (id + "\\n").encode())
        for session in app.storage._sessions:
            assert not session.connection.in_transaction
    except Struck:
        struck += 1
    except BaseException as exc:
        print("FAULT", repr(exc), flush=True)
        raise
"""


@pytest.mark.parametrize("kind", ["alone", "threads"])
def test_signals_never_leave_the_gate_locked_and_lose_no_id(tmp_path: Path, kind: str) -> None:
    store, ids = tmp_path / "store", tmp_path / "ids"
    watcher = LocalQ("watcher", store=store)

    @watcher.task
    def touch():
        pass

    touch.delay()
    # A thread that does not block SIGTSTP has the whole process stopped, whatever the main thread is doing.
    numbers = (signal.SIGINT, signal.SIGALRM, *([signal.SIGTSTP] if kind == "alone" else []))
    command = [sys.executable, "-c", SENDER, str(store), str(ids), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sender:
        assert sender.stdout is not None
        assert sender.stdout.readline() == "ready\n"
        stop = threading.Timer(50, sender.kill)
        stop.start()
        pick = random.Random(kind)
        for number in range(SIGNALS // 2):
            time.sleep(pick.uniform(0, 0.0015))
            kind_of_signal = pick.choice(numbers)
            os.kill(sender.pid, kind_of_signal)
            if kind_of_signal == signal.SIGTSTP:
                if number % 20 == 0:
                    # Stopped, it must not hold the gate: this put would wait for ever.
                    touch.delay()
                os.kill(sender.pid, signal.SIGCONT)
        touch.delay()
        stop.cancel()
        sender.kill()
        rest = sender.stdout.read()
    assert rest == ""
    returned = ids.read_text().split()
    assert len(returned) > 10  # signals come so thick that a slow machine finishes few calls
    known = watcher.storage.records(returned)
    assert [id for id in returned if id not in known] == []
    watcher.close()
