"""Records that survive a kill, and the numbers that tables are made of."""

import base64
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import torch

from srs.bounds import clopper_pearson_interval


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
    digest = hashlib.sha256(json.dumps([torch.__version__, parameters], sort_keys=True, default=str).encode())
    for file in [*files, *sorted(Path(__file__).parent.rglob("*.py"))]:
        digest.update(hashlib.sha256(Path(file).read_bytes()).digest())
    return digest.hexdigest()[:16]


def pack(values: np.ndarray) -> str:
    """A short text for an int32-sized array."""
    return base64.b64encode(zlib.compress(values.astype("<i4").tobytes())).decode()


def unpack(text: str) -> np.ndarray:
    """The int32 array of :func:`pack`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i4").copy()


def certified(rows: pd.DataFrame, r: float) -> pd.Series:
    """Which rows count at radius ``r``: correct, not abstained, and with a certified radius of at least r."""
    return (rows["prediction"] == rows["label"]) & (rows["radius"] >= r)


def certified_accuracy(rows: pd.DataFrame, radii: Sequence[float]) -> pd.DataFrame:
    """Certified accuracy at each radius with its exact 95 % interval: columns accuracy, lower, upper, images."""
    table = []
    for r in radii:
        count, images = int(certified(rows, r).sum()), len(rows)
        table.append((count / images, *clopper_pearson_interval(count, images, 0.05), images))
    return pd.DataFrame(table, columns=["accuracy", "lower", "upper", "images"], index=pd.Index(radii, name="r"))


def average_certified_radius(rows: pd.DataFrame, released: bool = False) -> float:
    """ACR: mean over all images of the radius, 0 where the prediction is wrong or abstained.

    ``released``: the paper's released code averages every radius, those of wrong predictions included.
    """
    correct = rows["prediction"] == rows["label"]
    return float(rows["radius"].mean() if released else rows["radius"].where(correct, 0.0).mean())
