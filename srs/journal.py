"""Records that survive a kill, and the names under which work is resumed."""

import base64
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import filelock
import numpy as np


def lock(path: Path) -> filelock.AcquireReturnProxy:
    """A lock beside ``path``, released at the end of a ``with``; waits, and says so, while another process holds it.

    A DVC that was killed leaves its child running: a second run must not write the same working file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file_lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        return file_lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"waiting: another process is writing {path}", file=sys.stderr, flush=True)
        return file_lock.acquire()


class Journal:
    """Append-only records, one JSON line each, on disk before :meth:`append` returns.

    Opening it again gives the whole lines back and drops a torn last one; see :func:`lock` for two processes.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = lock(self.path)
        self._file = open(self.path, "a+b")
        self._file.seek(0)
        whole, newline, _ = self._file.read().rpartition(b"\n")
        self._file.truncate(len(whole) + len(newline))
        self.records: list[dict] = [json.loads(line) for line in whole.splitlines()]

    def append(self, record: dict) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records.append(record)

    def close(self, remove: bool = False) -> None:
        """Release the file; ``remove`` it once its records have found their final place."""
        self._file.close()
        if remove:
            self.path.unlink()
        self._lock.lock.release()


def fingerprint(files: Iterable[str | Path], parameters: object) -> str:
    """The name of work that may be resumed: a short hash of the files' bytes, of JSON-able parameters, of all code of
    this package, and of the version of torch."""
    digest = hashlib.sha256(json.dumps([version("torch"), parameters], sort_keys=True, default=str).encode())
    for file in [*files, *sorted(Path(__file__).parent.rglob("*.py"))]:
        digest.update(hashlib.sha256(Path(file).read_bytes()).digest())
    return digest.hexdigest()[:16]


def pack(values: np.ndarray) -> str:
    """A short text for an array of numbers in one dimension."""
    return f"{values.dtype.str} {base64.b64encode(zlib.compress(values.tobytes())).decode()}"


def unpack(text: str) -> np.ndarray:
    """The array of :func:`pack`."""
    kind, _, content = text.partition(" ")
    return np.frombuffer(zlib.decompress(base64.b64decode(content)), kind).copy()
