"""Forks of a busy client: 8 threads that send all the time, 200 children that send too and leave in three ways.

A process by itself is forked, not pytest: its children really run what an interpreter does at its end. What was sent is
noted outside the store, by one write to a file opened with O_APPEND after each call that returned.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from commands import environment
from waiting import wait_until

from localq import LocalQ

if sys.platform != "linux":
    pytest.skip("looks at open files through /proc", allow_module_level=True)

FORKS = 200
#: Seconds that a child, or one call, may take; they take some milliseconds.
LIMIT_S = 5.0

CLIENT = """
import os, sys, threading, time
from localq import LocalQ, group

store, forks, limit_s = sys.argv[1], int(sys.argv[3]), float(sys.argv[4])
ids = os.open(sys.argv[2], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
app = LocalQ("forks", store=store)

@app.task
def add(x, y):
    return x + y

def note(*words):
    os.write(ids, (" ".join(words) + "\\n").encode())

def handles():
    "What this process has open, or mapped, of the store."
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            pass
    with open("/proc/self/maps") as maps:
        found += [line.split()[-1] for line in maps]
    # The board is a page that all processes share, as they share the file system.
    return {os.path.relpath(name, store) for name in found if name.startswith(store)} - {"bells/board"}

inherited = set()

def send(who, number):
    note("one", who, add.delay(number, 1).id)

def send_batch(who, size):
    sent = group(add.s(number, 2) for number in range(size))()
    note("batch", who, *[each.id for each in sent.results])

stop, longest = threading.Event(), [0.0] * 8

def enqueue(index):
    number = 0
    while not stop.is_set():
        number += 1
        began = time.monotonic()
        if index < 3:
            send_batch("parent", 20)
        else:
            send("parent", number)
        longest[index] = max(longest[index], time.monotonic() - began)
        time.sleep(0.04)

def child(turn):
    assert inherited == set(), f"inherited: {inherited}"
    who = f"child-{turn}"
    for number in range(3):
        send(who, number)
    send_batch(who, 5)
    assert {"queue.db", "queue.db-wal", "queue.db-shm", "gate.lock"} <= handles(), handles()
    if turn % 20 == 0:
        (said,) = app.storage._session().read("pragma integrity_check")
        assert said == ("ok",), said
    note("left", who)

def fork(turn):
    pid = os.fork()
    if pid:
        return pid
    try:
        child(turn)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(70)
    if turn % 2:
        os._exit(0)
    sys.exit(0)

def fork_in_a_thread(turn):
    "A child of a thread is a process of that thread alone; it can only leave at once."
    pids = []
    thread = threading.Thread(target=lambda: (send("parent", turn), pids.append(fork(turn))))
    thread.start()
    thread.join()
    return pids[0]

def give_up(text):
    os.write(2, text.encode())
    os._exit(1)

def ended(pid):
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    give_up(f"the child {pid} hangs")

def is_told(unraisable):
    "CPython 3.13's own: a process forked beside threads says this of each at its end, and fills our pipe with it."
    if "_DeleteDummyThreadOnDel" not in repr(unraisable.object):
        sys.__unraisablehook__(unraisable)

sys.unraisablehook = is_told
send("parent", 0)
# Registered after localq's own, so called after it: what is open now, localq has let the child keep.
os.register_at_fork(after_in_child=lambda: inherited.update(handles()))
threads = [threading.Thread(target=enqueue, args=(index,), daemon=True) for index in range(8)]
for thread in threads:
    thread.start()
slowest = 0.0
for turn in range(forks):
    began = time.monotonic()
    code = ended((fork_in_a_thread if turn % 4 == 1 else fork)(turn))
    slowest = max(slowest, time.monotonic() - began)
    if code:
        give_up(f"child {turn} ended with {code}")
    print(turn, flush=True)
stop.set()
for thread in threads:
    thread.join(30)
print("longest", max(longest), slowest, flush=True)
assert max(longest) < limit_s, longest
"""


@pytest.mark.row("R19")
def test_a_busy_client_forks_200_times_and_no_row_is_lost(tmp_path: Path) -> None:
    store, ids = tmp_path / "store", tmp_path / "ids"
    command = [sys.executable, "-c", CLIENT, str(store), str(ids), str(FORKS), str(LIMIT_S)]
    watcher = LocalQ("watcher", store=store, set_as_current=False)
    checks = 0
    # From 3.12 on Python warns of any fork of a process with threads; that is what is tried here.
    env = environment(PYTHONWARNINGS="error,ignore:This process:DeprecationWarning")
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        start_new_session=True,
    ) as client:  # fmt: skip
        assert client.stdout is not None
        assert client.stderr is not None
        # With its children, which have the ends of the pipes too.
        stop = threading.Timer(50, os.killpg, (client.pid, signal.SIGKILL))
        stop.start()
        for line in client.stdout:
            if line.startswith("longest"):
                _, call, child = line.split()
            else:
                assert watcher.storage._session().read("pragma integrity_check") == [("ok",)]
                checks += 1
        said = client.stderr.read()
        stop.cancel()
    assert (client.returncode, said) == (0, "")

    lines = [line.split() for line in ids.read_text().splitlines()]
    sent = [id for kind, _, *found in lines if kind != "left" for id in found]
    senders = Counter(who for kind, who, *found in lines if kind != "left" for _ in found)
    assert len(set(sent)) == len(sent), "two processes made the same id"
    assert {who: senders[who] for who in senders if who != "parent"} == {f"child-{turn}": 8 for turn in range(FORKS)}
    assert len([who for kind, who, *_ in lines if kind == "left"]) == FORKS
    known = watcher.storage.records(sent)
    assert [id for id in sent if id not in known] == []
    # And nothing but what was sent: a batch that a fork cut in two would leave members nobody was told of.
    assert sum(count.number for count in watcher.storage.counts()) == len(sent)
    assert watcher.storage._session().read("pragma integrity_check") == [("ok",)]
    watcher.close()
    wait_until(lambda: sorted(os.listdir(store)) == [".gitignore", "bells", "gate.lock", "owners", "queue.db"])
    print(
        f"{FORKS} forks, {len(sent)} sent, of them {senders['parent']} by the parent's 8 threads; 0 lost; slowest call "
        f"{float(call):.3f} s, slowest child {float(child):.3f} s; {checks} + {FORKS // 20} + 1 integrity checks"
    )
