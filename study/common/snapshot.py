"""What `make publish` leaves of a run beside its pages, in ``data/snapshots/<profile>/``; and results that are taken from it.

``networks.json``: for each result of training or of fitting (``models/small-050``) the sha256 of its files, what it was made
by, and what its task kept apart, seconds and machine. The stage `check` writes those that params.yaml asks for (``published``)
to ``runs/<profile>/published.json``: stages depend on that file, so that no snapshot that is not asked for concerns them.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from srs.common.resume import fingerprint, sha256
from study.common.engine import Task
from study.common.layout import Layout

SNAPSHOTS = Path("data/snapshots")


def networks(profile: str) -> dict[str, dict]:
    """``networks.json`` of a profile's snapshot; nothing where there is none."""
    path = SNAPSHOTS / profile / "networks.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def require_whole(profile: str, result: str, hashes: Mapping[str, str]) -> None:
    """Raises ValueError where a published file is missing or another than its hash says."""
    for name, expected in hashes.items():
        path = SNAPSHOTS / profile / result / name
        if not path.is_file():
            raise ValueError(f"{path} is missing: get it again (git checkout), or train that run (published)")
        if (found := sha256(path)) != expected:
            raise ValueError(f"{path} has the hash {found}, networks.json says {expected}: get it again, or train that run")


def asked_for(layout: Layout) -> dict[str, dict]:
    """The entries of :func:`networks` that the profile takes, as `check` has written them down."""
    path = layout.runs / "published.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def or_published(task: Task, profile: str, asked: Mapping[str, dict]) -> Task:
    """A task; or that which takes its result from the snapshot of a profile, where that is :func:`asked_for`."""
    result = f"{task.out.parent.name}/{task.out.name}"
    if (entry := asked.get(result)) is None:
        return task
    arguments = {"profile": profile, "result": result, "hashes": entry["sha256"], "record": entry["record"]}
    return replace(task, origin=fingerprint([], entry, []), compute=take, arguments=arguments, alone=False)


def take(out: Path, *, profile: str, result: str, hashes: dict[str, str], record: dict) -> dict:
    """Copy a published result to the folder ``out``. Raises ValueError as :func:`require_whole` does."""
    require_whole(profile, result, hashes)
    out.mkdir(parents=True)
    for name in hashes:
        shutil.copyfile(SNAPSHOTS / profile / result / name, out / name)
    return record
