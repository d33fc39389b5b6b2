"""The tasks: hash files, and report which of them have the same content."""

import hashlib
import os
from itertools import chain, groupby

from localq import LocalQ

app = LocalQ("duplicates")


@app.task
def hash_files(directory, names):
    """Return [size, digest, name] of each file; the digest is None if the file cannot be read."""
    return [[*content(os.path.join(directory, name)), name] for name in names]


@app.task
def report(batches):
    """Return what a search found, given what all `hash_files` returned."""
    files = sorted(chain.from_iterable(batches), key=lambda file: (file[1] or "", file[2]))
    same = [list(found) for digest, found in groupby(files, key=lambda file: file[1]) if digest]
    groups = [{"size": found[0][0], "names": [name for _, _, name in found]} for found in same if len(found) > 1]
    groups.sort(key=lambda group: (-group["size"] * (len(group["names"]) - 1), group["names"]))
    return {"files": len(files), "unreadable": [name for _, digest, name in files if digest is None], "groups": groups}


def content(path):
    """Return a file's size and the digest of its bytes."""
    try:
        with open(path, "rb") as file:
            return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]
    except OSError:
        return [0, None]
