"""Published results, and everything that follows from them, without the images and the hours that they took.

    python -m study.reports.recompute NAME FOLDER

FOLDER becomes the root of a study whose results are those in data/snapshots/NAME/ and, where they were published, the votes in
reports/NAME/votes/. From votes every certificate is computed again; without them they are taken as they are. Reports are made
again, with their tables, intervals and claims, but for those that look at votes which are not there; it is said how many cells
are as published. Reports in FOLDER run by hand, too.
"""

import argparse
import contextlib
import io
import json
import shutil
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pandas as pd

from study import run
from study.common.engine import replacing
from study.common.snapshot import SNAPSHOTS
from study.reports import cells, comparison, index, items, printed
from study.reports.profile import Profile
from study.reports.raw import CLEAN, RawVotes
from study.reports.results import Results
from study.votes.store import open_store
from study.votes.table import all_certificates, write_certificates

RESULTS = "results.zip"  # of a snapshot
LARGEST = 25_000_000  # bytes of one file
_RESULTS = (  # which no votes give again
    *("attacks", "coverage", "arithmetic", "speed", "timings/models", "timings/starts", "timings/certificates/machines.json"),
    "shown.json",
)
_MADE = "models", "tuned", "starts"  # folders of what was trained and fitted
_LINKED = (
    "srs",
    "study",
    "notebooks",
    "dvc.yaml",
    "data/items.yaml",
    "data/published.yaml",
    "data/claims.yaml",
    "data/snapshots",
)
_CASTS = "00_method"  # a report that casts votes of its own
_AUDITS = "22_record"  # a report that compares audits, some of them with a census
_LOOKS = (_AUDITS, "23_past_the_paper", "24_cifar10")  # reports that look at single votes
_JUDGED = ["prediction", "radius", "votes", "evaluations", "seconds"]


def pack_results(profile: Profile, target: Path) -> Path:
    """As the file ``target`` what a profile's reports read besides certificates, votes and networks: an index of the images
    (labels, no pixels of a folder's), the course of trainings and what they took, attacks, coverage, arithmetic, speed; and
    votes on images without noise, if votes are published. Raises ValueError for a file over 25 MB."""
    layout = profile.layout
    found = list(layout.data.glob("*.npz"))
    for name in _RESULTS:
        place = layout.runs / name
        found += [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    for stage in _MADE:  # of networks that are too large for a snapshot, too
        found += (layout.runs / stage).rglob("*.csv")
    files = {path: path.read_bytes() for path in found}
    if profile.report.votes:
        files |= {layout.runs / CLEAN: json.dumps(_clean(layout.name)).encode()}
    require_small([_archive(target, files)], LARGEST)
    return target


def pack_votes(profile: Profile, target: Path) -> list[Path]:
    """The votes of a profile in the folder ``target``, a file a run.

    Margins are left out unless a census reads them, or the page that compares audits; residuals unless a census does, or a
    list `consistency` shows them. Raises ValueError for a file over 25 MB.
    """
    layout, written = profile.layout, []
    target.mkdir(parents=True)
    doubted = {profile.confidence.doubt} if profile.confidence.census > 0 else set()
    doubted |= {"margin"} if _AUDITS in profile.report.pages.names() else set()
    for key, plan in profile.plans.plans.items():
        shown = [name for name, group in plan.groups.items() if group.kind == "consistency"]
        residuals = {plan.sampler(name, row) for name in shown for row in plan.groups[name].samplers}
        store, files = open_store(profile.plans, layout, key), {}
        for sampler, draws in store.draws.items():
            for number, block in enumerate(store.blocks):
                if any(len(draws[position]) for position in block):
                    read = {"residuals": sampler in residuals or "residual" in doubted, "margins": "margin" in doubted}
                    vote, second = (folder / f"{store.name(sampler, number)}.npz" for folder in (store.folder, store.timings))
                    files |= {vote: _without(vote, [name for name, wanted in read.items() if not wanted])}
                    files |= {second: second.read_bytes()}
        written.append(_archive(target / f"{key}.zip", files))
    require_small(written, LARGEST)
    return written


def _clean(name: str) -> dict:
    """By run, list of rows and row, the votes on images without noise that pages look at."""
    raw = RawVotes(results := Results(name))
    found = {}
    for key in results.report.past:
        rows = results.samplers(key, "sequential")
        found[key] = {"sequential": {row: [astuple(vote) for vote in raw.clean(key, "sequential", row)] for row in rows}}
    return found


def require_small(paths: Iterable[Path], largest: int) -> None:
    """Raises ValueError for a file of more than ``largest`` bytes."""
    for path in paths:
        if path.stat().st_size > largest:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes: at most {largest:,} may be published")


def _without(path: Path, kinds: list[str]) -> bytes:
    """A file of votes whose arrays ``kinds`` are NaN."""
    with np.load(path) as cast:
        arrays = {name: np.full_like(cast[name], np.nan) if name in kinds else cast[name] for name in cast}
    np.savez_compressed(held := io.BytesIO(), **arrays)
    return held.getvalue()


def _archive(path: Path, files: dict[Path, bytes]) -> Path:
    """Files as one, the same bytes for the same files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name.as_posix()), files[name], zipfile.ZIP_DEFLATED)
    return path


def unpack(name: str, folder: Path) -> None:
    """Make ``folder``, which must not exist, the root of a study that has the published results of the profile ``name``, and
    its votes where they were published.

    Raises ValueError where the folder exists, nothing was published, or the images lay in an absolute place.
    """
    results = SNAPSHOTS / name / RESULTS
    if not results.is_file():
        raise ValueError(f"NAME = {name!r}: there is no {results}")
    if folder.exists():
        raise ValueError(f"FOLDER = {str(folder)!r} exists: name one that does not")
    with replacing(folder) as place:
        (place / "data").mkdir(parents=True)
        for path in [results, *published_votes(name)]:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(place)
        for stage in _MADE:
            if (SNAPSHOTS / name / stage).is_dir():
                shutil.copytree(SNAPSHOTS / name / stage, place / "runs" / name / stage, dirs_exist_ok=True)
        for linked in _LINKED:
            (place / linked).symlink_to(Path(linked).resolve())
        with contextlib.chdir(place):
            Path("params.yaml").write_text(f"name: {name}\n", encoding="utf-8")
            for data in Profile(name).data.values():
                if data["name"] == "folder":
                    if Path(data["root"]).is_absolute():
                        raise ValueError(f"data.root = {data['root']!r} must lie below the study's root: the votes name it")
                    Path(data["root"]).mkdir(parents=True, exist_ok=True)  # empty: the index of its images is enough


def published_votes(name: str) -> list[Path]:
    """The files of votes of a profile; none where none were published."""
    return sorted(Path("reports", name, "votes").glob("*.zip"))


def certify(profile: Profile) -> None:
    """Every certificate of a profile, from its votes."""
    table = all_certificates(profile.plans, profile.confidence.model_dump(), profile.layout)
    write_certificates(table, profile.plans, profile.layout)


def report(profile: Profile, votes: bool = True) -> list[str]:
    """Make every report of a profile but that which casts votes of its own and, without ``votes``, those that look at them;
    returns their names."""
    layout, without = profile.layout, {_CASTS} if votes else {_CASTS, *_LOOKS}
    names = [name for name in index.reports(items.read()[0], profile) if name not in without]
    for name in names:
        run.run(Path("notebooks", f"{name}.ipynb"), layout.runs / "reports" / f"{name}.ipynb", {"name": layout.name})
    return names


def differing(published: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """The published certificates that are not ours."""
    key = [*cells.LINE, "index"]
    both = published.merge(ours, on=key, how="left", suffixes=("", " here"))
    pairs = [(both[column], both[f"{column} here"]) for column in _JUDGED]
    wrong = [(one != other) & (one.notna() | other.notna()) for one, other in pairs]  # NaN: seconds that nobody told
    return both[np.logical_or.reduce(wrong)][[*key, *_JUDGED]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m study.reports.recompute", description=__doc__.splitlines()[0])
    parser.add_argument("name", metavar="NAME", help="a published profile")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where to: a folder that does not exist")
    given = parser.parse_args()
    try:
        _, published, tables = comparison.read_snapshot(given.name)
        cast = bool(published_votes(given.name))
        unpack(given.name, given.folder)
    except (*comparison.UNREADABLE, zipfile.BadZipFile) as error:
        sys.exit(str(error) or repr(error))
    with contextlib.chdir(given.folder):
        profile = Profile(given.name)
        if cast:
            certify(profile)
            wrong = differing(published, cells.read(profile.layout.runs))
            how = f"{len(wrong):,} of them not as computed here"
        else:
            cells.take(SNAPSHOTS / given.name, profile.layout.runs)
            wrong, how = published.iloc[:0], "taken as they are: their votes are not published"
        print(f"{len(published):,} published certificates, {how}.")
        tables = tables[tables["report"].isin(report(profile, cast))]
        found = printed.compare(tables, printed.read(comparison.pages(profile)))
    other = len(tables) - int(found["same"].sum())
    print(f"{len(tables):,} published cells of tables, {other:,} of them not as computed here.")
    for table in (wrong, found[~found["same"]]):
        if len(table):
            print(table.head(20).to_string(index=False))
    sys.exit(1 if len(wrong) or other else 0)


if __name__ == "__main__":
    main()
