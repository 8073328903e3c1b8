"""Your run and ours: every cell of every table beside the published one, on one page.

    python -m study.reports.comparison NAME

writes runs/NAME/comparison.html, .csv (every cell) and .txt (two lines, which `make repro` prints). Certificates are compared
image by image (:mod:`study.reports.cells`), all other tables as they are printed (:mod:`study.reports.printed`). It fails at
nothing that it finds: where nothing was published, or what was cannot be read, the page says so.
"""

import argparse
import hashlib
import html
import json
import lzma
import platform
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from srs.common.resume import sha256
from srs.starts import StartSettings
from study.common import params_file
from study.common.snapshot import SNAPSHOTS
from study.reports import cells, index, items, printed
from study.reports.numbers import difference
from study.reports.profile import Profile
from study.starts import Starts

_REFITTED = "the same, its starts fitted anew"
_OTHER_SETTINGS = "of other settings: not compared"
_COSTS = ("evaluations an image", "seconds an image")
_STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
th, td { text-align: left; padding: .3em .9em .3em 0; border-bottom: 1px solid #ddd }
th { border-bottom: 1.5px solid #444 }
a { color: #0b5394 }
.scroll { overflow-x: auto }
td:first-child { white-space: nowrap }
"""


def facts(profile: Profile) -> dict:
    """Where a profile's results come from: versions; and of each run that votes its ``settings`` (a hash of how it was
    trained, on which images) and ``seed``, the hashes of its ``files``, and the ``machines`` that cast its votes."""
    runs = {}
    for key in profile.plans.plans:
        settings = hashlib.sha256(json.dumps(_trained(profile, key), sort_keys=True).encode()).hexdigest()[:12]
        files = {"model": profile.layout.model(key), "starts": profile.layout.starts(key)}
        hashes = {name: sha256(path) for name, path in files.items() if path is not None}
        seed = profile.schedule(key)["seed"]
        runs[key] = {"settings": settings, "seed": seed, "files": hashes, "machines": profile.machines[key]}
    versions = {name: version(name) for name in ("torch", "numpy", "scipy")}
    return {"versions": {"Python": platform.python_version(), **versions}, "runs": runs}


def _trained(profile: Profile, key: str) -> list:
    """How a run was trained, on which images, but for its seed; and that which it went on from."""
    run, schedule = profile.runs[key], profile.schedule(key)
    del schedule["seed"]
    spec, base = profile.plans.models[run.model], None
    if run.base is not None:
        base = [
            *_trained(profile, run.base),
            Starts(**profile.starts).model_dump(mode="json", include={*StartSettings.model_fields}),
        ]
    before = [] if run.pretrained is None else [_trained(profile, run.pretrained)]
    return [spec.model_dump(mode="json"), schedule, profile.data[spec.data], base, *before]


def pages(profile: Profile) -> list[Path]:
    """The reports of a profile that were made."""
    names = index.reports(items.read()[0], profile)
    return [path for name in names if (path := profile.layout.runs / "reports" / f"{name}.ipynb").is_file()]


class Comparison:
    """A profile's results beside what was ``published`` (:func:`read_snapshot`)."""

    def __init__(self, profile: Profile, published: tuple[dict, pd.DataFrame, pd.DataFrame]):
        self.theirs, certificates, tables = published
        self.printed = printed.compare(tables, printed.read(pages(profile)))
        self.ours, rows = facts(profile), cells.read(profile.layout.runs)
        self.runs = {key: self._standing(key) for key in self.ours["runs"]}
        compared = [key for key, standing in self.runs.items() if standing in ("the same files", _REFITTED, "trained anew")]
        rows, certificates = (table[table["run"].isin(compared)] for table in (rows, certificates))
        self.same = {key for key in compared if self.runs[key] == "the same files"}
        radii = {key: profile.report.radii[profile.plans.data(key)] for key in compared}
        kinds = {key: self.ours["runs"][key]["settings"] for key in compared}
        trained_once = self.same | {key for key in compared if self.runs[key] == _REFITTED}
        self.cells = cells.compare(certificates, rows, radii, kinds, trained_once)
        self.changed, self.certificates = cells.changed_votes(certificates, rows, self.same)

    def _standing(self, key: str) -> str:
        ours, theirs = self.ours["runs"][key], self.theirs["runs"].get(key)
        if theirs is None:
            return "not published"
        if (ours["settings"], ours["seed"]) != (theirs["settings"], theirs["seed"]):
            return _OTHER_SETTINGS
        if ours["files"] == theirs["files"]:
            return "the same files"
        return _REFITTED if ours["files"]["model"] == theirs["files"]["model"] else "trained anew"

    @property
    def lines(self) -> list[str]:
        """The two lines that `make repro` prints."""
        judged = self.cells.dropna(subset="within")
        within, standing = int(judged["within"].sum()), Counter(self.runs.values())
        told = f"{within:,} of {len(judged):,} cells lie within the joint 95 % interval"
        votes = f", of the others {len(self.changed):,} of {self.certificates:,} certificates differ" if self.same else ""
        claims = self.printed[self.printed["report"] == "21_claims"]
        alike = claims.loc[(claims["column"] == "claim") & claims["same"], "row"]  # by its words, not by its number alone
        verdicts = claims[(claims["column"] == "verdict") & claims["row"].isin(alike)]
        if len(verdicts):
            votes += f"; {int((~verdicts['same']).sum())} of {len(verdicts)} claims have another verdict"
        anew = f"{standing['trained anew']} of {len(self.runs)} networks were trained anew"
        anew += f", {standing[_OTHER_SETTINGS]} by other settings" if standing[_OTHER_SETTINGS] else ""
        return [
            f"Yours and ours: {told}; {anew}{votes}.",
            f"Ours: {self.theirs['published']}, {machines(self.theirs)}. Yours: {machines(self.ours)}.",
        ]

    def page(self, name: str) -> str:
        """All of it as HTML."""
        sides = {"published": self.theirs, "yours": self.ours}
        origin = {
            "machine and kernels": [machines(side) for side in sides.values()],
            "versions": [", ".join(f"{k} {v}" for k, v in side["versions"].items()) for side in sides.values()],
            "from": [f"{self.theirs['published']}, commit {self.theirs['commit']}", "this folder"],
        }
        judged = self.cells.dropna(subset="within").groupby("run", sort=False)["within"]
        within = judged.agg(["sum", "size"])
        networks = {
            key: [standing, *(f"{within.loc[key, c]:,}" if key in within.index else "" for c in ("sum", "size"))]
            for key, standing in self.runs.items()
        }
        outside = self.cells[self.cells["within"].eq(False).fillna(False)]
        body = [
            f"<p>{'<br>'.join(map(html.escape, self.lines))}</p>",
            "<h2>Where each comes from</h2>",
            _table(["", *sides], [[key, *map(html.escape, told)] for key, told in origin.items()]),
            "<h2>Networks</h2>",
            _table(["run", "its network is", "cells within", "of"], [[key, *told] for key, told in networks.items()]),
            "<h2>The same networks: which votes differ</h2>",
            self._votes(),
            "<h2>Cells outside of the joint interval</h2>",
            f"<p>{_READING}</p>",
            _table(
                ["run", "group", "method", "", "published", "yours", "difference", "interval over"],
                [
                    [row.run, row.group, _named(row), row.cell, *_values(row), _difference(row), row.over]
                    for row in outside.itertuples()
                ],
            )
            if len(outside)
            else "<p>None.</p>",
            "<h2>All tables, as they are printed</h2>",
            self._as_printed(),
            "<h2>Every cell of the certificates</h2>",
            "<p>published → yours; below, the difference and its joint interval, or the ratio of costs. Bold: outside.</p>",
            *self._every(),
        ]
        return _page(name, "".join(body))

    def _votes(self) -> str:
        if not self.same:
            return "<p>No network is the published one: votes are not to be compared.</p>"
        kept = self.certificates - len(self.changed)
        told = f"<p>{kept:,} of {self.certificates:,} certificates have the published radius, from the same votes.</p>"
        if self.changed.empty:
            return told
        rows = [
            [
                row[0],
                row[1],
                html.escape(row[2]),
                str(row[3]),
                *(str(v) if i < 2 else f"{v:.4f}" for i, v in enumerate(row[4:])),
            ]
            for row in self.changed.itertuples(index=False)
        ]
        heads = ["run", "group", "method", "image", "class, published", "yours", "radius, published", "yours"]
        return told + _table(heads, rows)

    def _as_printed(self) -> str:
        """Every cell of every report: how many are the same, and the others."""
        rows, lists = [], []
        for report, part in self.printed.groupby("report", sort=False):
            judged, other = part.dropna(subset="within"), part[~part["same"]]
            rows.append([report, *(f"{n:,}" for n in (len(part), len(part) - len(other), len(judged), judged["within"].sum()))])
            told = [
                [
                    *(html.escape(str(cell)) for cell in (row.table, row.row, row.column, row.published, row.yours)),
                    _told(row.within),
                ]
                for row in other.itertuples()
            ]
            table = _table(["table", "row", "column", "published", "yours", "joint interval"], told)
            lists.append(f"<details><summary>{report}: {len(other):,} other cells</summary>{table}</details>")
        heads = ["report", "cells in both", "the same text", "with an interval", "within the joint interval"]
        return f"<p>{_PRINTED}</p>{_table(heads, rows)}{''.join(lists)}"

    def _every(self) -> list[str]:
        """A table for each table of certificates."""
        found = []
        for (run, group, design), part in self.cells.groupby(["run", "group", "design"], sort=False):
            names = list(dict.fromkeys(part["cell"]))
            rows = {}
            for row in part.itertuples():
                text = f"{' → '.join(_values(row))}<br><small>{_difference(row)}</small>"
                cell = f"<b>{text}</b>" if pd.notna(row.within) and not row.within else text
                rows.setdefault(row.method, dict.fromkeys(names, ""))[row.cell] = cell
            table = _table(["method", *names], [[html.escape(method), *line.values()] for method, line in rows.items()])
            title = f"{run}, {group}" + (f", {html.escape(design)}" if design else "")
            found.append(f"<details><summary>{title}</summary>{table}</details>")
        return found


_READING = (
    "Interval: of the difference, yours minus published, at 95 % for each cell by itself. Of certified accuracies, in points, "
    "from the images that only one of both certifies (Fay and Lumbard 2021: 0 lies outside where the exact sign test rejects "
    "it); of the ACR Student's t over the images. Where a network was trained anew, and published runs differ by "
    "their seed alone, it holds the spread over trainings, too; elsewhere it does not, and a difference beyond it may be that "
    "of two trainings. Costs are compared as ratios, and not judged."
)


_PRINTED = (
    "The joint interval: of the difference, from both printed intervals as if of independent samples. It knows nothing of "
    "training, nor that the images are the same, for which it is wider than need be as a rule. Cells without an interval, "
    "speed-ups and seconds are not judged."
)


def _page(name: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>SRS: yours and ours</title><style>{_STYLE}</style></head><body>
<h1>Your run and ours: profile <code>{name}</code></h1>
{body}
</body></html>
"""


def machines(side: dict) -> str:
    """What the votes of a :func:`facts` were cast on."""
    return "; ".join(dict.fromkeys(machine for run in side["runs"].values() for machine in run["machines"]))


def _told(within: bool | None) -> str:
    return "" if pd.isna(within) else "within" if within else "<b>outside</b>"


def _values(row) -> tuple[str, str]:
    form = "{:.0%}" if row.cell.startswith("certified") else "{:.3f}" if row.cell == "ACR" else "{:,.4g}"
    return form.format(row.published), form.format(row.yours)


def _difference(row) -> str:
    if row.cell in _COSTS:
        return f"{row.difference:.2f}×"
    scale, digits = (100, 0) if row.cell.startswith("certified") else (1, 3)
    return difference(row.difference, row.lower, row.upper, scale, digits)


def _named(row) -> str:
    return html.escape(f"{row.method}, {row.design}" if row.design else row.method)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


#: Raised by :func:`read_snapshot` where nothing was published, or it is torn.
UNREADABLE = (OSError, ValueError, KeyError, EOFError, lzma.LZMAError)


def read_snapshot(name: str) -> tuple[dict, pd.DataFrame, pd.DataFrame]:
    """What was published of a profile: ``run.json``, the certificates and the tables. Raises one of UNREADABLE."""
    folder = SNAPSHOTS / name
    told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return told, cells.read_published(folder), pd.read_csv(folder / "tables.csv.xz", dtype=str, keep_default_na=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m study.reports.comparison", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="the profile")
    name = parser.parse_args().name
    try:
        profile = Profile(name)
    except params_file.ParameterError as error:
        sys.exit(str(error))
    out, trouble = profile.layout.runs, ""
    if not (SNAPSHOTS / name / "run.json").is_file():
        trouble = f"no results of the profile {name} were published, so that there is nothing to compare with."
    else:
        try:
            published = read_snapshot(name)
        except UNREADABLE as error:
            trouble = f"what was published of the profile {name} cannot be read: {error!r}"
    if trouble:
        lines, table = [f"Yours and ours: {trouble}", f"Yours: {machines(facts(profile))}."], pd.DataFrame()
        page = _page(name, f"<p>{'<br>'.join(map(html.escape, lines))}</p>")
    else:
        found = Comparison(profile, published)
        lines, page, table = found.lines, found.page(name), found.cells
    (out / "comparison.html").write_text(page, encoding="utf-8")
    table.to_csv(out / "comparison.csv", index=False)
    (out / "comparison.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
