"""Copy the active profile's reports to reports/<profile>/, to be committed, with a page of what they show and come from.

python -m study.reports.publish
"""

import base64
import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path

from study.common import params_file
from study.reports import index, items
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
    for path in written:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes: at most {LARGEST:,} may be published")
    return written


def readme(name: str, provenance: str, reports: list[str], paper: dict) -> str:
    """The page of published notebooks that a code host shows: each with the paper's items that stand in it."""
    found = {report: [items.label(item) for item, entry in paper.items() if entry["report"] == report] for report in reports}
    lines = [f"- [{report}]({report}.ipynb)" + (f": {', '.join(held)}" if held else "") for report, held in found.items()]
    return f"# Reports of the profile `{name}`\n\n{provenance}\n\n" + "\n".join(lines) + "\n"


def _figures(report: Path) -> list[tuple[str, bytes]]:
    """The figures of a report in order: suffix and content."""
    found = []
    for data in index.outputs(report):
        if "image/png" in data:
            found.append(("png", base64.b64decode(data["image/png"])))
        elif "image/svg+xml" in data:
            found.append(("svg", data["image/svg+xml"].encode()))
    return found


def _provenance(profile: Profile) -> str:
    name = profile.layout.name
    commit = _git("rev-parse", "HEAD").strip()
    changed = _git("status", "--porcelain", "srs", "study", "notebooks", "data", "dvc.yaml")
    known = Path("profiles") / f"{name}.yaml"
    edited = not known.is_file() or params_file.read(known) != params_file.read()  # which profile it is needs no commit
    state = " with uncommitted changes" if changed or edited else ""
    folder = profile.layout.runs / "timings" / "certificates"
    found = json.loads((folder / "machines.json").read_text(encoding="utf-8"))
    machines = dict.fromkeys(machine for some in found.values() for machine in some)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"Published on {today} from commit `{commit}`{state}.\n\nMeasured on: {'; '.join(machines)}.\n"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", check=True).stdout


def main() -> None:
    try:
        profile = Profile(params_file.section(params_file.read(), "name"))
        names, paper = items.read()
    except params_file.ParameterError as error:
        sys.exit(str(error))
    runs, target = profile.layout.runs, Path("reports") / profile.layout.name
    names = index.reports(names, profile)
    if subprocess.run([sys.executable, "-m", "dvc", "status", "--quiet"]).returncode:
        sys.exit("the reports are not those of the present parameters and code: run `make repro` first")
    try:
        written = publish([runs / "reports" / f"{name}.ipynb" for name in names], target)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    provenance = _provenance(profile)
    page = readme(profile.layout.name, f"{provenance}\n{index.whose_task(profile)}", names, index.promised(paper, profile))
    (target / "README.md").write_text(page, encoding="utf-8")
    print(f"{len(written)} files in {target}")


if __name__ == "__main__":
    main()
