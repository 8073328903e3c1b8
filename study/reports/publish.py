"""Copy the active profile's reports to reports/<profile>/, to be committed, with a page of what they show and come from; and to
data/snapshots/<profile>/ what others compare their run with, and its networks.

python -m study.reports.publish
"""

import base64
import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path

from srs.common.resume import sha256
from study import params
from study.common import params_file
from study.common.engine import read_record, replacing
from study.common.snapshot import SNAPSHOTS
from study.reports import cells, comparison, index, items, printed, recompute
from study.reports.profile import Profile

LARGEST = 2_000_000  # bytes of one file


def publish(reports: list[Path], target: Path) -> list[Path]:
    """Replace ``target`` by executed notebooks and their figures as PNG and SVG files.

    Raises FileNotFoundError where a report is missing and ValueError for a file over 2 MB.
    """
    for report in reports:
        if not report.is_file():
            raise FileNotFoundError(f"no report {report}: run `make repro` first")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    written = []
    for report in reports:
        written.append(Path(shutil.copy(report, target)))
        for number, (kind, content) in enumerate(_figures(report), start=1):
            written.append(target / f"{report.stem}-{number}.{kind}")
            written[-1].write_bytes(content)
    recompute.require_small(written, LARGEST)
    return written


def readme(name: str, provenance: str, reports: list[str], paper: dict) -> str:
    """The page of published notebooks that a code host shows: each with the paper's items that stand in it."""
    found = {report: [items.label(item) for item, entry in paper.items() if entry["report"] == report] for report in reports}
    lines = [f"- [{report}]({report}.ipynb)" + (f": {', '.join(held)}" if held else "") for report, held in found.items()]
    stages = (
        "The notebooks of the stages (prepare, train, vote, ...) are pages of the site that every run builds, and not here."
    )
    return f"# Reports of the profile `{name}`\n\n{provenance}\n\n" + "\n".join(lines) + f"\n\n{stages}\n"


def publish_data(profile: Profile, made_by: dict[str, dict], origin: dict, target: Path) -> list[Path]:
    """Replace the snapshot ``target``: ``run.json`` (``origin``, and :func:`study.reports.comparison.facts`), certificates,
    tables, what else reports read, and the results of training and fitting, ``made_by`` those settings, but for those with a
    file over 2 MB."""
    layout, networks = profile.layout, {}
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for result, settings in made_by.items():
        files = sorted(path for path in (layout.runs / result).iterdir() if path.is_file())
        if max(path.stat().st_size for path in files) > LARGEST:
            continue
        (target / result).mkdir(parents=True)
        hashes = {path.name: sha256(shutil.copy(path, target / result)) for path in files}
        record = read_record(layout.runs / "timings" / f"{result}.npz")
        del record["origin"]
        networks[result] = {"made_by": settings, "sha256": hashes, "record": record}
    (target / "networks.json").write_text(json.dumps(networks, indent=1), encoding="utf-8")
    (target / "run.json").write_text(json.dumps(origin | comparison.facts(profile), indent=1), encoding="utf-8")
    cells.publish(layout.runs, target)
    printed.read(comparison.pages(profile)).to_csv(target / "tables.csv.xz", index=False)
    recompute.pack_results(profile, target / recompute.RESULTS)
    return [path for path in target.rglob("*") if path.is_file()]


def _figures(report: Path) -> list[tuple[str, bytes]]:
    """The figures of a report in order: suffix and content."""
    found = []
    for data in index.outputs(report):
        if "image/png" in data:
            found.append(("png", base64.b64decode(data["image/png"])))
        elif "image/svg+xml" in data:
            found.append(("svg", data["image/svg+xml"].encode()))
    return found


def _origin(profile: Profile) -> dict:
    """When a profile is published, from which commit, and whether it has changes that were not committed."""
    name = profile.layout.name
    commit = _git("rev-parse", "HEAD").strip()
    changed = _git("status", "--porcelain", "srs", "study", "notebooks", "data", "dvc.yaml")
    known, whose = Path("profiles") / f"{name}.yaml", {"published": "all"}
    # which profile it is needs no commit, nor who trained its networks: none is taken that was made otherwise
    edited = not known.is_file() or params_file.read(known) | whose != params_file.read() | whose
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"published": today, "commit": commit, "changed": bool(changed or edited)}


def _provenance(profile: Profile, origin: dict) -> str:
    state = " with uncommitted changes" if origin["changed"] else ""
    machines = "; ".join(dict.fromkeys(machine for some in profile.machines.values() for machine in some))
    return f"Published on {origin['published']} from commit `{origin['commit']}`{state}.\n\nMeasured on: {machines}.\n"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", check=True).stdout


def main() -> None:
    try:
        study = params.load()
        profile = Profile(study.name)
        names, paper = items.read()
    except params_file.ParameterError as error:
        sys.exit(str(error))
    runs, target = profile.layout.runs, Path("reports") / profile.layout.name
    names = index.reports(names, profile)
    if subprocess.run([sys.executable, "-m", "dvc", "status", "--quiet"]).returncode:
        sys.exit("the reports are not those of the present parameters and code: run `make repro` first")
    origin = _origin(profile)
    told = f"{_provenance(profile, origin)}\n{index.whose_task(profile)}"
    try:
        with replacing(target) as reports, replacing(SNAPSHOTS / study.name) as snapshot:
            written = publish([runs / "reports" / f"{name}.ipynb" for name in names], reports)
            if profile.report.votes:
                written += recompute.pack_votes(profile, reports / "votes")
            page = readme(profile.layout.name, told, names, index.promised(paper, profile))
            (reports / "README.md").write_text(page, encoding="utf-8")
            data = publish_data(profile, study.made_by(), origin, snapshot)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    print(f"{len(written)} files in {target}, {len(data)} in {SNAPSHOTS / study.name}")


if __name__ == "__main__":
    main()
