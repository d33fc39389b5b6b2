"""What is special about the SQLite storage: its files, its plans, its forks, its full disks."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from forking import Line, ended, forked, killed
from waiting import wait_until

from localq.exceptions import (
    DuplicateTaskId,
    StoreCorrupt,
    StoreFull,
    StoreReplaced,
    StoreUntrusted,
    StoreVersionError,
)
from localq.message import Message, Outcome, Want
from localq.storage.gate import Gate
from localq.storage.sqlite import SqliteStorage, sync
from localq.storage.sqlite import session as session_module
from localq.storage.sqlite.queries import HERE, query, texts, whole
from localq.storage.sqlite.queries import claim as claim_query
from localq.storage.sqlite.session import VERSION, migrations


def message(id, body=b"[]", **fields):
    return Message(id, "proj.add", body, checksum=1, **fields)


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def storage(directory):
    made = SqliteStorage(directory)
    yield made
    made.close()


def ids_in(directory):
    """What another program finds in the store: a process of its own, for SQLite's locks' sake."""
    code = "import sqlite3,sys\nfor (i,) in sqlite3.connect(sys.argv[1]).execute('select id from messages'): print(i)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory / "queue.db")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.split())


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# -- Tables and plans ------------------------------------------------------------------------------


def tables_of(*scripts):
    connection = sqlite3.connect(":memory:")
    for script in scripts:
        connection.executescript(script)
    rows = connection.execute("select type, name, tbl_name, sql from sqlite_master order by 1, 2").fetchall()
    connection.close()
    return [(*row[:3], re.sub(r"\s+", " ", re.sub(r"--[^\n]*", "", row[3] or "")).strip()) for row in rows]


def test_migrations_lead_to_exactly_the_schema():
    assert tables_of(*migrations()) == tables_of((HERE / "schema.sql").read_text("utf-8"))
    assert len(migrations()) == VERSION


def test_a_new_store_has_the_schema_its_mark_and_its_version(storage, directory):
    storage.put([message("a")])
    storage.close()
    connection = sqlite3.connect(directory / "queue.db")
    assert connection.execute("pragma user_version").fetchone() == (VERSION,)
    assert connection.execute("pragma application_id").fetchone() == (0x6C636C71,)
    assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    rows = connection.execute("select type, name from sqlite_master order by 1, 2").fetchall()
    assert rows == [row[:2] for row in tables_of((HERE / "schema.sql").read_text("utf-8"))]
    connection.close()


@pytest.fixture
def planner():
    """Explains statements on a store with enough rows for an index to matter."""
    connection = sqlite3.connect(":memory:")
    connection.executescript((HERE / "schema.sql").read_text("utf-8"))
    connection.executescript(
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < 5000)"
        " insert into messages (id, name, body, queue, priority, content_type, checksum, retries, sent_at, visible_at,"
        " ignore_result, waits_for, leads, place, hold)"
        " select 'id' || i, 'n', x'', 'q' || (i % 3), 5, 'j', 0, 0, 0, i, 0, 0, 0,"
        " case i % 3 when 0 then 'ready' when 1 then 'waiting' else 'held' end,"
        " iif(i % 3 = 2, 'owner:' || (i % 30), null)"
        " from n; analyze;"
    )

    def plan(sql):
        named = dict.fromkeys(re.findall(r":([a-z_]+)", sql))
        values = [None] * sql.count("?") if "?" in sql else named
        return [row[3] for row in connection.execute(f"explain query plan {sql}", values).fetchall()]

    yield plan
    connection.close()


@pytest.mark.parametrize("queues", [1, 3])
def test_a_claim_reads_only_the_index_of_what_is_ready(planner, queues):
    plan = planner(claim_query(queues))
    # Whether any message may not run, is asked once and by the primary key.
    assert sum("SEARCH entries USING PRIMARY KEY (key>? AND key<?)" in step for step in plan) == 1
    assert not any("CORRELATED" in step for step in plan)
    touching = [step for step in plan if "messages" in step]
    assert sum("messages_ready (queue=?)" in step for step in touching) == queues
    for step in touching:
        assert "messages_ready (queue=?)" in step or "INTEGER PRIMARY KEY" in step, plan
    if queues == 1:
        # Already in the order of the index, so it stops at the limit and never sorts a backlog.
        inner = plan[: next(at for at, step in enumerate(plan) if "messages_ready" in step) + 1]
        assert not any("TEMP B-TREE" in step for step in inner), plan


#: Queries of which each reads a step of a long list.
STEPS = (
    "failed", "candidates_of_one", "first_held", "oldest", "drop_expired_entries", "members_from", "followers",
)  # fmt: skip


@pytest.mark.parametrize(("name", "index"), [
    ("promote", "messages_waiting"), ("due", "messages_waiting"), ("claims_of", "messages_held"),
    ("progress", "messages_held"), ("fail_followers", "messages_held"), ("record", "messages_id"),
    ("records", "messages_id"), ("members", "messages_members"), ("twin", "messages_id"), ("held", "messages_held"),
    ("failed", "messages_failed"), ("run_again", "messages_id"), ("charge", "INTEGER PRIMARY KEY"),
    ("candidates_of_one", "messages_ready"), ("first_held", "messages_held"), ("free", "messages_held"),
    ("park", "INTEGER PRIMARY KEY"), ("park_one", "INTEGER PRIMARY KEY"), ("entries", "PRIMARY KEY"),
    ("tell", "PRIMARY KEY"), ("untell", "PRIMARY KEY"), ("is_expired", "entries_expiring"),
    ("drop_expired_entries", "entries_expiring"), ("oldest", "INTEGER PRIMARY KEY"), ("expire", "messages_followers"),
    ("revoke", "messages_id"), ("mark_revoked", "messages_id"), ("revoked", "INTEGER PRIMARY KEY"),
    ("rules", "PRIMARY KEY"), ("members_from", "messages_members"), ("followers", "messages_followers"),
])  # fmt: skip
def test_every_lookup_uses_the_index_made_for_it(planner, name, index):
    for sql in {query(name), whole(name)}:
        plan = planner(sql)
        assert any(index in step for step in plan), plan
        assert not any(step.startswith("SCAN messages") and index not in step for step in plan), plan
        # In the order of the index, so that a step of a long list never sorts the whole of it.
        is_step = name in STEPS
        assert not is_step or not any("TEMP B-TREE" in step for step in plan), plan


def test_no_statement_has_numbered_placeholders():
    """With a sequence of values they are deprecated in Python 3.12 and refused by 3.14."""
    assert [name for name, text in texts().items() if re.search(r"\?\d", text)] == []


def test_a_plain_record_reads_no_arguments():
    assert not {"body", "headers", "redeliveries"} & set(re.findall(r"\w+", query("record")))
    assert "body" in whole("record")


def test_the_ready_backlog_is_claimed_in_order_of_priority_then_arrival(storage):
    storage.put([message("low", priority=9), message("first"), message("high", priority=0), message("second")])
    claims = storage.settle((), Want("me", ("celery",), 9, 0.0)).claims
    assert [claim.message.id for claim in claims] == ["high", "first", "second", "low"]


# -- What is not a store ---------------------------------------------------------------------------


@pytest.fixture
def foreign(directory):
    """A directory that looks like a store and holds another program's database."""
    directory.mkdir(mode=0o700)
    (directory / "gate.lock").touch(mode=0o600)
    connection = sqlite3.connect(directory / "queue.db")
    connection.execute("create table thesis (words text)")
    connection.execute("insert into thesis values ('years of work')")
    connection.commit()
    connection.close()
    (directory / "queue.db").chmod(0o600)
    return directory


def test_another_programs_database_is_refused_and_untouched(foreign):
    before = (foreign / "queue.db").read_bytes()

    def use():
        with pytest.raises(StoreUntrusted, match="another program"):
            SqliteStorage(foreign).put([message("a")])

    assert ended(forked(use)) == 0
    assert (foreign / "queue.db").read_bytes() == before
    assert not (foreign / "queue.db-wal").exists()


def test_a_file_that_is_no_database_is_refused_and_untouched(directory):
    directory.mkdir(mode=0o700)
    (directory / "gate.lock").touch(mode=0o600)
    (directory / "queue.db").write_bytes(b"dear diary " * 500)
    (directory / "queue.db").chmod(0o600)

    def use():
        with pytest.raises(StoreCorrupt, match="left as it is"):
            SqliteStorage(directory).put([message("a")])

    assert ended(forked(use)) == 0
    assert (directory / "queue.db").read_bytes() == b"dear diary " * 500


def test_a_store_of_the_first_schema_is_brought_up_to_date_with_all_it_has(directory):
    """What was put, claimed and ended then, goes on now; and what is claimed can be revoked."""
    make = SqliteStorage(directory)
    make.put([message("a")])
    make.close()
    (directory / "queue.db").unlink()
    old = sqlite3.connect(directory / "queue.db")
    numbers = "checksum, retries, sent_at, ignore_result, waits_for, leads"
    old.executescript(
        f"pragma page_size = 1024; pragma journal_mode = wal; {migrations()[0]}"
        f"insert into messages (id, name, body, queue, priority, content_type, {numbers}, place, hold) values"
        " ('ready', 'n', x'', 'celery', 5, 'j', 0, 0, 0, 0, 0, 0, 'ready', null),"
        " ('claimed', 'n', x'', 'celery', 5, 'j', 0, 0, 0, 0, 0, 0, 'held', 'owner:me');"
        "insert into entries values ('worker:w', '{}', null);"
        f"pragma application_id = {0x6C636C71}; pragma user_version = 1;"
    )
    old.close()
    os.chmod(directory / "queue.db", 0o600)
    storage = SqliteStorage(directory)
    (claimed,) = storage.estate("me").claims
    assert [each.message.id for each in storage.settle((), Want("you", ("celery",), 9, 0.0)).claims] == ["ready"]
    end = Outcome(0, 0, "claimed", "REVOKED", result=b"1", ended_at=1.0)
    assert not storage.update(0, 0, end)
    storage.settle([Outcome(claimed.seq, claimed.token, "claimed", ended=False)])
    assert storage.records(["claimed"])["claimed"].state == "REVOKED"
    assert [entry.key for entry in storage.entries("worker:")] == ["worker:w"]
    storage.close()
    there = sqlite3.connect(directory / "queue.db")
    assert there.execute("pragma user_version").fetchone() == (VERSION,)
    there.close()


def test_a_store_of_a_newer_localq_is_refused_and_untouched(directory):
    assert ended(forked(lambda: SqliteStorage(directory).put([message("a")]))) == 0
    connection = sqlite3.connect(directory / "queue.db")
    connection.execute("pragma user_version = 99")
    connection.close()
    before = (directory / "queue.db").read_bytes()

    def use():
        with pytest.raises(StoreVersionError, match=f"schema 99, this one knows {VERSION}"):
            SqliteStorage(directory).put([message("b")])

    assert ended(forked(use)) == 0
    assert (directory / "queue.db").read_bytes() == before
    assert ids_in(directory) == {"a"}


def test_a_store_whose_making_was_cut_short_is_finished(directory):
    directory.mkdir(mode=0o700)
    (directory / "gate.lock").touch(mode=0o600)
    (directory / "queue.db").touch(mode=0o600)
    storage = SqliteStorage(directory)
    storage.put([message("a")])
    assert set(storage.records(["a"])) == {"a"}
    storage.close()


# -- Files that vanish or are touched --------------------------------------------------------------


def open_and_close_everything(directory):
    """What a backup, a virus scanner or `grep -r` in our own process does: SQLite's locks are gone."""
    for path in directory.rglob("*"):
        try:
            if path.is_file():
                path.read_bytes()
        except FileNotFoundError:
            pass


def put_and_close(directory, id):
    store = SqliteStorage(directory)
    store.put([message(id)])
    store.close()


OTHER = """
import sys
from pathlib import Path
from localq.message import Message
from localq.storage.sqlite import SqliteStorage
storage = SqliteStorage(Path(sys.argv[1]))
for line in sys.stdin:
    verb, *ids = line.split()
    if verb == "put":
        storage.put([Message(id, "proj.add", b"[]", checksum=1) for id in ids])
    print(*sorted(storage.records(ids)), flush=True)
"""


@contextmanager
def other_process(directory):
    """A process that shares nothing with this one; yields a function: a line in, a line out."""
    command = [sys.executable, "-c", OTHER, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:

        def ask(line):
            process.stdin.write(line + "\n")
            return process.stdout.readline().split()

        yield ask
        process.stdin.close()


def test_opening_and_closing_every_file_loses_nothing(storage, directory):
    storage.put([message("before")])
    open_and_close_everything(directory)
    # To this process the store looks unused, so its last close checkpoints and deletes the WAL.
    assert ended(forked(lambda: put_and_close(directory, "elsewhere"))) == 0
    storage.put([message("after")])
    assert set(storage.records(["before", "elsewhere", "after"])) == {"before", "elsewhere", "after"}
    assert ids_in(directory) == {"before", "elsewhere", "after"}


def test_a_thread_that_reads_every_file_all_the_time_loses_nothing(storage, directory):
    """Every id whose put returned is in the store, while other processes come and go."""
    storage.put([message("first")])
    stop = threading.Event()

    def read():
        while not stop.is_set():
            open_and_close_everything(directory)

    reader = threading.Thread(target=read)
    reader.start()
    returned = {"first"}
    try:
        for turn in range(8):
            # Not a fork: another thread may be inside SQLite just then, and would be there for ever in the child.
            with other_process(directory) as ask:
                for number in range(10):
                    storage.put([message(f"mine-{turn}-{number}")])
                    returned.add(f"mine-{turn}-{number}")
                returned.update(ask(f"put other-{turn}"))
    finally:
        stop.set()
        reader.join()
    storage.close()
    assert ids_in(directory) == returned


def test_a_transaction_on_a_wal_that_is_gone_is_done_again_in_the_new_one(storage, directory):
    storage.put([message("a"), message("b")])
    claims = storage.settle((), Want("me", ("celery",), 2, 0.0)).claims
    open_and_close_everything(directory)
    assert ended(forked(lambda: put_and_close(directory, "c"))) == 0
    turn = storage.settle(
        [Outcome(c.seq, c.token, c.message.id, "SUCCESS") for c in claims], Want("me", ("celery",), 9, 0.0)
    )
    assert turn.stale == []
    assert [claim.message.id for claim in turn.claims] == ["c"]


def share(storage, ask):
    """This process and another take turns; both must see what either wrote."""
    storage.put([message("mine-1")])
    assert ask("put theirs-1") == ["theirs-1"]
    storage.put([message("mine-2")])
    assert ask("put theirs-2") == ["theirs-2"]
    everything = ["mine-1", "mine-2", "theirs-1", "theirs-2"]
    assert ask(f"see {' '.join(everything)}") == everything
    assert sorted(storage.records(everything)) == everything


def test_after_the_wal_was_replaced_both_sides_still_see_each_other(storage, directory):
    """SQLite keeps one wal-index a process and file: a connection that is leaked keeps the deleted one in use."""
    storage.put([message("before")])
    open_and_close_everything(directory)
    with other_process(directory) as ask:
        ask("put elsewhere")
    storage.put([message("after")])
    with other_process(directory) as ask:
        share(storage, ask)
    storage.close()
    assert len(ids_in(directory)) == 7


def test_a_forked_child_that_outlives_its_parents_store_still_shares_it(directory):
    """A daemon: the parent sends, forks, and ends in the ordinary way; the child goes on."""
    closed, done = Line(), Line()

    def parent():
        storage = SqliteStorage(directory)
        storage.put([message("parent")])

        def child():
            storage.put([message("child")])
            closed.hear()
            storage.put([message("child-again")])
            with other_process(directory) as ask:
                share(storage, ask)
            storage.close()

        def report():
            try:
                child()
                done.say("well")
            except BaseException as exc:
                done.say(repr(exc))
                raise

        forked(report)
        wait_until(lambda: storage.records(["child"]))
        storage.close()

    assert ended(forked(parent)) == 0
    closed.say()
    assert done.hear() == "well"
    assert len(ids_in(directory)) == 7


def test_a_removed_store_is_an_error_and_is_not_made_again(storage, directory):
    storage.put([message("a")])
    shutil.rmtree(directory)
    with pytest.raises(StoreReplaced, match="nothing was written"):
        storage.put([message("b")])
    assert not directory.exists()


@pytest.mark.parametrize("act", [
    lambda storage: storage.settle((), Want("me", ("celery",), 1, 0.0)),
    lambda storage: storage.write("key", "value", None),
    lambda storage: storage.maintain(),
    lambda storage: storage.put([message("x"), message("y")]),
    lambda storage: storage.forget(["a"]),
], ids=["settle", "write", "maintain", "put many", "forget"])  # fmt: skip
def test_every_write_notices_that_the_store_is_gone(storage, directory, act):
    storage.put([message("a")])
    directory.rename(directory.with_name("moved"))
    before = contents(directory.with_name("moved"))
    with pytest.raises(StoreReplaced):
        act(storage)
    assert not directory.exists()
    assert contents(directory.with_name("moved")) == before


def test_a_replaced_store_is_written_to_as_what_it_is_now(storage, directory):
    storage.put([message("old")])
    directory.rename(directory.with_name("moved"))
    assert ended(forked(lambda: put_and_close(directory, "new"))) == 0
    with pytest.raises(StoreReplaced):
        storage.maintain()
    storage.put([message("mine")])
    assert set(storage.records(["old", "new", "mine"])) == {"new", "mine"}


# -- Forks and threads -----------------------------------------------------------------------------


@pytest.mark.row("R19")
def test_a_forked_child_has_handles_of_its_own(storage, directory):
    storage.put([message("parent")])
    parents = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)}
    assert any(name.endswith("queue.db") for name in parents)

    def child():
        assert set(storage.records(["parent"])) == {"parent"}
        storage.put([message("child")])
        storage.close()

    assert ended(forked(child)) == 0
    storage.put([message("parent again")])
    assert ids_in(directory) >= {"parent", "child"}
    assert set(storage.records(["parent again"])) == {"parent again"}


def _is_open(fd):
    try:
        os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return False
    return True


@pytest.mark.row("R19")
def test_a_fork_in_the_middle_of_anothers_transaction_harms_neither(storage, directory):
    storage.put([message("before")])
    inside, go_on = threading.Event(), threading.Event()

    def slow_transaction():
        session = storage._session()

        def work():
            inside.set()
            go_on.wait(30)
            session.execute("update messages set name = 'changed' where id = 'before'")

        session.transact(work)

    thread = threading.Thread(target=slow_transaction)
    thread.start()
    assert inside.wait(30)
    line = Line()

    def child():
        line.say()
        storage.put([message("child")])  # waits at the gate for the parent's transaction
        assert storage.records(["before"])["before"].name == "changed"
        storage.close()

    # By itself: a fork may well wait for the transaction to end.
    threading.Timer(0.3, go_on.set).start()
    pid = forked(child)
    line.hear()
    thread.join()
    assert ended(pid) == 0
    storage.put([message("after")])
    assert set(storage.records(["before", "child", "after"])) == {"before", "child", "after"}


def test_a_child_that_ends_in_the_ordinary_way_leaves_its_parents_store_alone(directory):
    code = (
        "import os, sys\n"
        "from localq import LocalQ\n"
        "app = LocalQ('x', store=sys.argv[1])\n"
        "app.send_task('one')\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    app.send_task('child')\n"
        "    sys.exit()\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "for _ in range(50): app.send_task('more')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(directory)], check=True, timeout=60)
    assert len(ids_in(directory)) == 52


REENTRANT = """
import signal, sys
from localq import LocalQ
app = LocalQ("x", store=sys.argv[1])
sent = [app.send_task("first").id]
signal.signal(signal.SIGALRM, lambda *_: sent.append(app.send_task("from.handler").id))
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
while len(sent) < 300:
    app.storage.records(sent[-1:])
signal.setitimer(signal.ITIMER_REAL, 0)
assert set(app.storage.records(sent)) == set(sent)
"""


def test_a_signal_handler_may_send_in_the_middle_of_a_read(directory):
    """A lock that its own thread cannot take again would stay locked for ever, with the gate of everybody."""
    done = subprocess.Popen([sys.executable, "-c", REENTRANT, str(directory)])
    try:
        assert done.wait(20) == 0
    finally:
        done.kill()
        done.wait()


def test_a_thread_that_waits_at_the_gate_while_another_closes_its_session_writes_with_a_new_one(storage, directory):
    """As when the WAL was replaced: whoever notices first closes all. A number that is closed is another's soon."""
    turn = threading.Event()

    def put_twice():
        storage.put([message("first")])
        turn.wait(30)
        storage.put([message("waited")])

    thread = threading.Thread(target=put_twice)
    thread.start()
    wait_until(lambda: storage.records(["first"]))
    (session,) = [session for session in storage._sessions if session is not storage._session()]
    inside, go_on = Line(), Line()
    pid = forked(lambda: Gate(directory / "gate.lock").hold(lambda: (inside.say(), go_on.hear())))
    inside.hear()
    try:
        turn.set()
        wait_until(lambda: session.gate._holds, what="the thread waits at the gate")
        session.close()
    finally:
        go_on.say()
        assert ended(pid) == 0
        thread.join()
    assert set(storage.records(["first", "waited"])) == {"first", "waited"}
    assert session.gate._open == []


def test_what_the_syncing_thread_has_open_does_not_cross_a_fork(storage):
    storage.put([message("a")])
    copy = sync._copied(storage._session().wal_fd)

    def child():
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(copy)

    assert ended(forked(child)) == 0
    sync._let_go(copy)


BUSY_TO_THE_END = """
import atexit, sys, threading, time
from localq import LocalQ

app = LocalQ("x", store=sys.argv[1])
closed, one_has_sent, other_opens = threading.Event(), threading.Event(), threading.Event()
# Before localq's own, so called after it.
atexit.register(lambda: (closed.set(), other_opens.wait()))
app.send_task("first")

from localq.storage.sqlite import store
session = store.Session

def slow(directory):
    if threading.current_thread() is other:
        other_opens.set()
        time.sleep(60)
    return session(directory)

store.Session = slow

def send():
    closed.wait()
    app.send_task("more")
    one_has_sent.set()
    time.sleep(60)

def send_too():
    one_has_sent.wait()
    app.send_task("never")

one, other = (threading.Thread(target=act, daemon=True) for act in (send, send_too))
one.start()
other.start()
"""


def test_a_process_ends_though_a_daemon_thread_is_opening_the_store(tmp_path):
    """Of clients with 8 daemon threads that send all the time, most hang so at their end."""
    subprocess.run([sys.executable, "-c", BUSY_TO_THE_END, str(tmp_path / "store")], check=True, timeout=4)


def test_threads_that_end_take_their_connections_with_them(storage):
    storage.put([message("a")])

    def open_files():
        return sum("store" in _target(fd) for fd in os.listdir("/proc/self/fd"))

    before = open_files()
    for turn in range(5):
        thread = threading.Thread(target=lambda turn=turn: storage.put([message(f"t{turn}")]))
        thread.start()
        thread.join()
    storage._sync.finish()
    wait_until(lambda: open_files() <= before, what="descriptors of ended threads are closed")
    assert len(storage._sessions) == 1


def test_a_thread_that_ends_is_not_listed_for_ever(storage):
    """Its session is closed when Python has forgotten it already; whoever asks for it then is given a new one."""
    thread = threading.Thread(target=storage.put, args=([message("a")],))
    thread.start()
    thread.join()
    wait_until(lambda: not storage._sessions, what="the thread's session is closed")
    assert [each for each in threading.enumerate() if each.name.startswith("Dummy")] == []


def _target(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""


@pytest.mark.row("P1", "R21")
def test_a_writer_that_is_killed_leaves_whole_messages_and_an_open_gate(storage, directory):
    """Killed at twenty moments of a flood of bulk puts: each bulk is there in full or not at all."""

    def flood():
        store = SqliteStorage(directory)
        for turn in range(10**6):
            store.put([message(f"{os.getpid()}-{turn}-{n}") for n in range(20)])

    for _ in range(20):
        pid = forked(flood)
        wait_until(lambda pid=pid: any(c.number for c in storage.counts()))
        killed(pid)
        storage.put([message(f"after-{pid}")])
    bulks: dict[str, int] = {}
    for id in ids_in(directory):
        if not id.startswith("after"):
            bulk = id.rpartition("-")[0]
            bulks[bulk] = bulks.get(bulk, 0) + 1
    assert set(bulks.values()) == {20}


def killed_while_it_fails_and_runs_again(storage, directory, id):
    """Kill a process at some moment of a task that fails and runs again without end; return how the task stands."""

    def fail_for_ever():
        store = SqliteStorage(directory)
        while True:
            (claim,) = store.settle((), Want("me", (id,), 1, 0.0)).claims
            store.settle([Outcome(claim.seq, claim.token, id, "FAILURE", result=b"1", traceback="at t", ended_at=1.0)])
            assert store.update(0, 0, Outcome(0, 0, id, "PENDING", ended=False, again=claim.message))

    storage.put([message(id, queue=id)])
    pid = forked(fail_for_ever)
    wait_until(lambda: storage.records([id])[id].place == "ended")
    killed(pid)
    return storage.records([id])[id]


def test_a_retry_by_hand_that_is_killed_has_happened_or_has_not(storage, directory):
    found = [killed_while_it_fails_and_runs_again(storage, directory, f"task-{turn}") for turn in range(20)]
    assert {(each.place, each.state, each.result, each.traceback, each.ended_at) for each in found} <= {
        ("ended", "FAILURE", b"1", "at t", 1.0), ("ready", "PENDING", None, None, None),
        ("held", "PENDING", None, None, None),
    }  # fmt: skip


def test_a_refused_bulk_put_writes_none_of_it(storage):
    storage.put([message("taken", b"[1]")])
    with pytest.raises(DuplicateTaskId):
        storage.put([message(f"m{n}") for n in range(100)] + [message("taken", b"[2]")])
    assert sum(count.number for count in storage.counts()) == 1


# -- A full disk -----------------------------------------------------------------------------------


@contextmanager
def small_disk(path, size="3m"):
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(path)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def disk(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    with small_disk(tmp_path / "disk") as path:
        yield path


def fill(path):
    """Leave not a byte."""
    with open(path / "ballast", "wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                pass


def test_a_full_disk_refuses_a_put_and_nothing_of_it_appears(disk):
    def use():
        storage = SqliteStorage(disk / "store")
        storage.put([message("before")])
        fill(disk)
        with pytest.raises(StoreFull, match="nothing was written"):
            for number in range(10_000):
                storage.put([message(f"big-{number}", b"x" * 5000)])
        with pytest.raises(StoreFull):
            storage.put([message(f"bulk-{number}", b"x" * 5000) for number in range(300)])
        assert set(storage.records(["before"])) == {"before"}
        known = {id for id in (f"big-{number}" for number in range(10_000)) if storage.records([id])}
        assert storage.records([f"bulk-{number}" for number in range(300)]) == {}
        (disk / "ballast").unlink()
        storage.put([message("after")])
        assert {id for id in (f"big-{n}" for n in range(200)) if storage.records([id])} == {
            id for id in known if int(id.split("-")[1]) < 200
        }
        storage.close()

    assert ended(forked(use)) == 0
    assert "after" in ids_in(disk / "store")


def test_what_runs_can_still_be_settled_or_says_that_the_disk_is_full(disk):
    def use():
        storage = SqliteStorage(disk / "store")
        storage.put([message("a")])
        (claim,) = storage.settle((), Want("me", ("celery",), 1, 0.0)).claims
        fill(disk)
        big = Outcome(claim.seq, claim.token, "a", "SUCCESS", result=b"x" * 4_000_000)
        with pytest.raises(StoreFull):
            storage.settle([big])
        assert storage.records(["a"])["a"].place == "held"
        (disk / "ballast").unlink()
        assert storage.settle([big._replace(result=b"small")]).stale == []
        assert storage.records(["a"])["a"].state == "SUCCESS"
        storage.close()

    assert ended(forked(use)) == 0


@pytest.mark.parametrize("act", [
    lambda storage: storage.enlist({"kind": "test"}),
    lambda storage: [storage.bell(("celery",)).raise_() for _ in range(200)],
], ids=["enlist", "bell"])  # fmt: skip
def test_a_full_disk_is_an_error_and_never_a_crash_of_the_process(disk, act):
    def use():
        storage = SqliteStorage(disk / "store")
        storage.put([message("a")])
        fill(disk)
        try:
            kept = act(storage)
        except StoreFull:
            kept = None
        del kept

    assert ended(forked(use)) == 0


def test_a_store_cannot_be_made_on_a_full_disk_and_can_once_there_is_room(disk):
    def use():
        fill(disk)
        with pytest.raises(StoreFull):
            SqliteStorage(disk / "store").put([message("a")])
        (disk / "ballast").unlink()
        storage = SqliteStorage(disk / "store")
        storage.put([message("b")])
        assert set(storage.records(["a", "b"])) == {"b"}
        storage.close()

    assert ended(forked(use)) == 0


# -- Durability ------------------------------------------------------------------------------------

PUTS = """
import os, sys
from localq import LocalQ
app = LocalQ("x", store=sys.argv[1], durability=sys.argv[2])
app.send_task("warm.up")
for number in range(5):
    os.write(2, b"BEGIN")
    app.send_task("x.y")
    os.write(2, b"END")
os._exit(0)
"""


def syncs_per_put(tmp_path, durability):
    """How many times a put synced before it returned, for five puts, as the kernel saw them."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    command = [strace, "-f", "-e", "trace=fdatasync,fsync,write", "-o", str(trace), sys.executable, "-c", PUTS]
    done = subprocess.run([*command, str(tmp_path / "store"), durability], capture_output=True, timeout=60)
    if done.returncode:
        pytest.skip(f"strace does not work here: {done.stderr[-200:]!r}")
    main = re.search(r'(?m)^(\d+) +write\(2, "BEGIN"', trace.read_text())[1]
    mine = [line for line in trace.read_text().splitlines() if line.startswith(f"{main} ")]
    counts, inside = [], False
    for line in mine:
        if '"BEGIN"' in line:
            inside = True
            counts.append(0)
        elif '"END"' in line:
            inside = False
        elif inside and "sync(" in line:
            counts[-1] += 1
    return counts


def test_in_full_durability_a_put_is_on_the_disk_before_it_returns(tmp_path):
    assert syncs_per_put(tmp_path, "full") == [1] * 5


def test_in_standard_durability_a_put_waits_for_no_disk(tmp_path):
    assert syncs_per_put(tmp_path, "standard") == [0] * 5


def test_in_standard_durability_a_lonely_writer_syncs_soon_after(storage):
    storage.put([message("a")])
    before = storage._bells.synced_at()
    storage.put([message("b")])
    wait_until(lambda: storage._bells.synced_at() > before, what="the write is synced without a worker")


def test_who_can_have_no_thread_syncs_itself_and_the_next_write_asks_anew(storage, monkeypatch):
    """At the end of a process there are no more threads (from Python 3.12 on), nor at a limit of the system's."""
    storage._session()
    open_before = set(os.listdir("/proc/self/fd"))

    def refused(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        for id in ("a", "b"):
            before = time.monotonic()
            storage.put([message(id)])
            assert storage._bells.synced_at() >= before
    assert set(os.listdir("/proc/self/fd")) == open_before
    before = time.monotonic()
    storage.put([message("c")])
    wait_until(lambda: storage._bells.synced_at() >= before, what="a thread has synced")


SENT_AT_EXIT = """
import atexit, sys
from localq import LocalQ
app = LocalQ("x", store=sys.argv[1])
atexit.register(lambda: print(app.send_task("late").id))
"""


def test_what_an_exit_handler_sends_is_sent(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SENT_AT_EXIT, str(tmp_path / "store")],
        check=True,
        timeout=30,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    storage = SqliteStorage(tmp_path / "store")
    assert list(storage.records([done.stdout.strip()])) == [done.stdout.strip()]
    storage.close()


def test_at_the_end_of_a_process_nothing_is_left_unsynced(tmp_path):
    code = PUTS.replace("os._exit(0)", "os.write(2, b'EXIT')")
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    command = [strace, "-f", "-e", "trace=fdatasync,fsync,write", "-o", str(trace), sys.executable, "-c", code]
    done = subprocess.run([*command, str(tmp_path / "store"), "standard"], capture_output=True, timeout=60)
    if done.returncode:
        pytest.skip(f"strace does not work here: {done.stderr[-200:]!r}")
    after = trace.read_text().partition('"EXIT"')[2]
    assert "sync(" in after


# -- The WAL ---------------------------------------------------------------------------------------


def wal_size(directory):
    return (Path(directory) / "queue.db-wal").stat().st_size


def test_a_writer_checkpoints_when_nobody_else_does(storage, directory):
    for number in range(40):
        storage.put([message(f"m{number}", b"x" * 1_000_000)])
    assert wal_size(directory) < 20 * 1024 * 1024
    assert storage.counts()[0].number == 40


def test_a_steward_keeps_the_wal_small(storage, directory):
    for number in range(8):
        storage.put([message(f"m{number}", b"x" * 1_000_000)])
    assert wal_size(directory) > 4 * 1024 * 1024
    storage.maintain()
    assert wal_size(directory) < 4 * 1024 * 1024
    assert storage.counts()[0].number == 8


READER = """
import sys
from pathlib import Path
from localq.storage.sqlite import SqliteStorage
connection = SqliteStorage(Path(sys.argv[1]))._session().connection
connection.execute("begin")
connection.execute("select count(*) from messages").fetchone()
print("reads", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("who", ["writer", "steward"])
def test_a_reader_that_takes_its_time_keeps_no_writer_waiting(directory, monkeypatch, who):
    """A checkpoint that cannot have the whole WAL takes what it can, and does not wait in the gate for the rest."""
    monkeypatch.setattr(session_module, "FOREIGN_WAIT_MS", 600_000)  # whoever waits for the reader waits for ever
    monkeypatch.setattr(session_module, "WAL_LIMIT", 50_000 if who == "writer" else 10**9)
    storage = SqliteStorage(directory)
    storage.put([message("first")])
    command = [sys.executable, "-c", READER, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        try:
            assert reader.stdout.readline() == "reads\n"
            for number in range(6):
                storage.put([message(f"m{number}", b"x" * 1_000_000)])
            if who == "steward":
                storage.maintain()
        finally:
            reader.communicate()
    # Nobody reads any more: the next checkpoint gets all of it.
    storage.put([message("last")])
    storage.maintain()
    assert wal_size(directory) < 4 * 1024 * 1024
    assert storage.counts()[0].number == 8
    storage.close()


def test_after_the_last_close_the_database_alone_has_everything(storage, directory, tmp_path):
    storage.put([message("a")])
    storage.close()
    (tmp_path / "copy").mkdir()
    shutil.copy(directory / "queue.db", tmp_path / "copy")
    assert ids_in(tmp_path / "copy") == {"a"}


def test_a_killed_process_leaves_its_work_to_the_next(directory):
    line = Line()

    def live():
        store = SqliteStorage(directory)
        store.put([message("a")])
        line.say()
        signal.pause()

    pid = forked(live)
    line.hear()
    killed(pid)
    storage = SqliteStorage(directory)
    assert set(storage.records(["a"])) == {"a"}
    storage.close()
