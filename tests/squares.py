"""Tasks of tests, in a module that a worker imports quickly."""

import os
import time
from pathlib import Path

import numpy as np

from study.common.engine import Task, write_arrays
from study.common.layout import Layout


def square(out: Path, *, n: int, log: Path, seconds: float = 0.0) -> dict:
    """A task: the square of ``n``, after so many ``seconds``; what is computed is told to ``log``."""
    time.sleep(seconds)
    write_arrays(out, {"square": np.array(n * n)})
    with open(log, "a") as file:
        file.write(f"{n}\n")
    return {"worker": os.getpid(), "seconds": np.zeros(2)}


def square_once_asked(out: Path, *, asked: Path, **given) -> dict:
    """A :func:`square` that waits for the file ``asked``."""
    for _ in range(12_000):
        if asked.exists():
            return square(out, **given)
        time.sleep(0.01)
    raise TimeoutError("nobody asked")


def fail(out: Path) -> dict:
    out.write_text("half a result")
    raise ValueError("a task that fails")


def squares(root: Path, count: int = 6, seconds: float = 0.0) -> list[list[Task]]:
    layout = Layout("p")
    given = {"log": root / "log", "seconds": seconds}
    return [
        [
            Task(
                root / layout.runs / f"squares/{n}.npz",
                root / layout.record("squares", str(n)),
                f"of {n}",
                square,
                given | {"n": n},
            )
        ]
        for n in range(count)
    ]
