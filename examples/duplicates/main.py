"""Finds files with the same content: a worker with two children hashes them, a last task reports.

    python main.py               Python's own standard library
    python main.py DIRECTORY     any other directory

Then it does the same in a plain loop, and says whether the answers are the same.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from tasks import app, hash_files, report

from localq import group

HERE = Path(__file__).resolve().parent
WORKER = [sys.executable, "-m", "localq", "-A", str(HERE / "tasks.py"), "worker", "-c", "2", "-l", "WARNING"]
#: One task per file, until there are so many files that each task takes several.
MOST_TASKS = 10_000
#: Groups of duplicates that are printed.
SHOWN = 10


def main():
    parser = argparse.ArgumentParser(description="Find files with the same content.")
    parser.add_argument("directory", nargs="?", help="where to look; Python's standard library if absent")
    directory = parser.parse_args().directory
    skipped = set() if directory else {"site-packages", "dist-packages"}
    directory = os.path.abspath(directory or sysconfig.get_path("stdlib"))
    if not os.path.isdir(directory):
        parser.error(f"{directory} is not a directory")

    names = files_under(directory, skipped)
    step = 1 + len(names) // MOST_TASKS
    batches = [names[at : at + step] for at in range(0, len(names), step)]
    print(f"{directory}: {len(names)} files, {len(batches)} tasks, 2 child processes")
    if not names:
        return 0

    started = time.perf_counter()
    found = with_worker(directory, batches)
    took = time.perf_counter() - started
    show(found)

    started = time.perf_counter()
    expected = report([hash_files(directory, batch) for batch in batches])  # called as functions: no queue, no worker
    print(f"worker: {took:.2f} s, from its start to its stop; plain loop: {time.perf_counter() - started:.2f} s")
    print("same answer as a plain loop:", "yes" if found == expected else "no")
    return 0 if found == expected else 1


def files_under(directory, skipped):
    """Return the names of the plain files below a directory, without links, empty files and localq's own store."""
    names = []
    for parent, children, files in os.walk(directory):
        # Nobody but SQLite may open the files of a store that this program has open.
        children[:] = [name for name in children if name not in skipped and not is_store(os.path.join(parent, name))]
        paths = [os.path.join(parent, name) for name in files]
        names += [os.path.relpath(path, directory) for path in paths if is_wanted(path)]
    return sorted(names)


def is_store(path):
    return os.path.basename(path) == ".localq" or os.path.realpath(path) == os.path.realpath(app.backend.location.path)


def is_wanted(path):
    return os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) > 0


def with_worker(directory, batches):
    """Start a worker, send it everything at once, watch, and return the report."""
    worker = subprocess.Popen(WORKER)
    try:
        hashes = group(hash_files.s(directory, batch) for batch in batches)
        # The group, and the task that waits for all of it, are stored in one transaction.
        answer = (hashes | report.s()).apply_async()
        while not answer.ready():
            progress(answer.parent.completed_count(), len(batches))
            if worker.poll() is not None:
                sys.exit(f"the worker ended with exit code {worker.returncode}")
            time.sleep(0.1)
        progress(len(batches), len(batches))
        found = answer.get()
        answer.forget()  # also the results of the group
        return found
    finally:
        worker.terminate()
        worker.wait()


def progress(done, total):
    """Draw a bar, if somebody looks at it."""
    if sys.stderr.isatty():
        bar = "#" * (40 * done // total)
        end = "\n" if done == total else ""
        print(f"\r[{bar:<40}] {done}/{total}", end=end, file=sys.stderr, flush=True)


def show(found):
    copies = sum(len(each["names"]) - 1 for each in found["groups"])
    waste = sum(each["size"] * (len(each["names"]) - 1) for each in found["groups"])
    for each in found["groups"][:SHOWN]:
        print(f"{len(each['names'])} x {each['size']:,} bytes")
        for name in each["names"]:
            print("    " + printable(name))
    if len(found["groups"]) > SHOWN:
        print(f"... and {len(found['groups']) - SHOWN} more groups")
    for name in found["unreadable"]:
        print("cannot read", printable(name))
    groups = len(found["groups"])
    print(f"{found['files']} files, {groups} groups of duplicates, {copies} copies, {waste:,} bytes to gain")


def printable(name):
    """File names may have bytes that are no text."""
    return os.fsencode(name).decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
