"""Copy the active profile's reports and their index to reports/<profile>/, to be committed, with a note of what they come
from.

python -m srs.publish
"""

import base64
import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path

from srs import index, params, sections

LARGEST = 2_000_000  # bytes of one file


def publish(reports: list[Path], target: Path) -> list[Path]:
    """Replace ``target`` by executed notebooks, their pages, and their figures as PNG files.

    Raises FileNotFoundError where a report is missing and ValueError for a file over 2 MB.
    """
    for report in reports:
        if not report.is_file():
            raise FileNotFoundError(f"no report {report}: run `make repro` first")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    written = []
    for report in reports:
        written += [shutil.copy(path, target) for path in (report, report.with_suffix(".html"))]
        for number, png in enumerate(_figures(report), start=1):
            written.append(target / f"{report.stem}-{number}.png")
            written[-1].write_bytes(png)
    written = [Path(path) for path in written]
    for path in written:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes: at most {LARGEST:,} may be published")
    return written


def _figures(report: Path) -> list[bytes]:
    return [base64.b64decode(data["image/png"]) for data in index.outputs(report) if "image/png" in data]


def _provenance(runs: Path) -> str:
    commit = _git("rev-parse", "HEAD").strip()
    changed = _git("status", "--porcelain", "srs", "notebooks", "data", "dvc.yaml")
    changed += _git("diff", "-I", "^active: ", "HEAD", "--", "params.yaml")  # which profile it is needs no commit
    state = " with uncommitted changes" if changed else ""
    machines = {path.read_text(encoding="utf-8") for path in sorted(runs.glob("votes/*/machine.json"))}
    lines = [", ".join(f"{name}: {value}" for name, value in json.loads(text).items()) for text in sorted(machines)]
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"Published on {today} from commit `{commit}`{state}.\n\nMeasured on: {'; '.join(lines)}.\n"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", check=True).stdout


def main() -> None:
    try:
        profile, (names, items) = params.load().active, index.read()
    except sections.ParameterError as error:
        sys.exit(str(error))
    runs, target = Path("runs") / profile.name, Path("reports") / profile.name
    names = index.reports(names, profile)
    if subprocess.run([sys.executable, "-m", "dvc", "status", "--quiet"]).returncode:
        sys.exit("the reports are not those of the present parameters and code: run `make repro` first")
    try:
        written = publish([runs / "reports" / f"{name}.ipynb" for name in names], target)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    provenance = _provenance(runs)
    pages = "".join(f"- [{path.stem}]({path.name})\n" for path in written if path.suffix == ".html")
    (target / "README.md").write_text(f"# Reports of the profile `{profile.name}`\n\n{provenance}\n{pages}", encoding="utf-8")
    found = [target / f"{name}.ipynb" for name in names]
    page = index.page(profile, index.promised(items, profile), found, "", note=provenance.replace("`", ""))
    (target / "index.html").write_text(page, encoding="utf-8")
    print(f"{len(written)} files in {target}")


if __name__ == "__main__":
    main()
