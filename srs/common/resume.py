"""Records that survive a kill, and the names under which work is resumed."""

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import filelock


def lock(path: Path) -> filelock.AcquireReturnProxy:
    """A lock beside ``path``, released at the end of a ``with``; waits, and says so, while another process holds it.

    A DVC that was killed leaves its child running: a second run must not write the same working file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file_lock = filelock.FileLock(_lock_of(path))
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
        """Add a record; raises TypeError for what is no JSON."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records.append(record)

    def close(self, remove: bool = False) -> None:
        """Release the file; ``remove`` it once its records have found their final place."""
        self._file.close()
        if remove:
            self.path.unlink()
            _lock_of(self.path).unlink(missing_ok=True)
        self._lock.lock.release()


def differing(there: dict, now: dict) -> str:
    """Which settings of work that was begun differ from those of now; empty where none does."""
    names = [name for name in {**there, **now} if there.get(name) != now.get(name)]
    return "; ".join(f"{name} = {there.get(name)!r} there, {now.get(name)!r} now" for name in names)


def remove_older(path: Path) -> None:
    """Remove the other files of the same work, NAME.FINGERPRINT.SUFFIX: those of settings and code that are no more. One that
    another process has locked stays."""
    owner = path.stem.rpartition(".")[0]
    locks = path.parent.glob(f".*{path.suffix}.lock")  # of work that was done, too: they stay behind
    others = {*path.parent.glob(f"*{path.suffix}"), *(path.with_name(lock.name[1 : -len(".lock")]) for lock in locks)}
    for other in others - {path}:
        if other.stem.rpartition(".")[0] == owner:
            with suppress(filelock.Timeout), filelock.FileLock(_lock_of(other)).acquire(timeout=0):
                other.unlink(missing_ok=True)
                _lock_of(other).unlink(missing_ok=True)


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def fingerprint(files: Iterable[str | Path], parameters: object, code: Iterable[Path] | None = None) -> str:
    """The name of work that may be resumed: a short hash of the files' bytes, of JSON-able parameters, of the version of torch,
    and of ``code`` (None: all of this package)."""
    code = sorted(Path(__file__).parent.parent.rglob("*.py")) if code is None else code
    digest = hashlib.sha256(json.dumps([version("torch"), parameters], sort_keys=True, default=str).encode())
    for file in [*files, *code]:
        digest.update(bytes.fromhex(sha256(file)))
    return digest.hexdigest()[:16]


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises OSError for one that cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
