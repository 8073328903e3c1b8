"""Every item of the paper: the report where it stands, the stage that made it, and whether it is there."""

import html
import re
from pathlib import Path

from study.reports.items import label, stands_in
from study.reports.profile import Profile

HOME = "30_overview"  # the report that leads to all others
#: Stages of the reports that every profile has.
_ALWAYS = {"00_method": "method", "10_table2": "table2", "21_claims": "claims", "23_past_the_paper": "past", HOME: "overview"}
_PICTURES = {"image/png": 10_000, "image/svg+xml": 2_000}  # characters (of a PNG in base64): one without content has fewer


def promised(items: dict, profile: Profile) -> dict:
    """The items that a profile can show: those of its reports, but for noise levels that it does not have."""
    sizes = profile.report.sizes()
    levels = {(size, profile.runs[key].sigma) for size, entry in sizes.items() for key in entry.levels if key != entry.main}
    pages = reports([item["report"] for item in items.values()], profile)
    shown = {name: item for name, item in items.items() if item["report"] in pages}
    return {name: item for name, item in shown.items() if "sigma" not in item or (item["size"], item["sigma"]) in levels}


def reports(names: list[str], profile: Profile) -> list[str]:
    """Those of all reports' ``names`` that a profile has, in order."""
    return [name for name in names if name in (*_ALWAYS, *profile.report.pages.names())]


def faults(reports: Path, items: dict) -> list[str]:
    """What is wrong with the items in the executed notebooks: a line for each that is missing, empty or uncaptioned."""
    names = dict.fromkeys(entry["report"] for entry in items.values())
    found_in = {name: outputs(reports / f"{name}.ipynb") for name in names if (reports / f"{name}.ipynb").is_file()}
    found = []
    for item, entry in items.items():
        shown = found_in.get(entry["report"])
        if shown is None:
            found.append(f"{item}: no report {entry['report']}")
        else:
            found += [f"{item}: {fault} in {entry['report']}" for fault in _faults_of(item, shown)]
    return found


def _cells(path: Path) -> list:
    import nbformat  # takes a second to import, which reports that want a label need not wait

    return nbformat.read(path, as_version=4).cells


def outputs(path: Path) -> list[dict]:
    """What an executed notebook shows: for each output its data, by media type."""
    return [o["data"] for cell in _cells(path) if cell.cell_type == "code" for o in cell.outputs if "data" in o]


def _faults_of(item: str, outputs: list[dict]) -> list[str]:
    marked = [i for i, data in enumerate(outputs) if f'id="{item}"' in data.get("text/html", "")]
    if len(marked) != 1:
        return [f"shown {len(marked)} times instead of once"]
    page = outputs[marked[0]]["text/html"]
    caption = re.sub(r"<[^>]*>", "", page.split(f'id="{item}"')[1].split("</p>")[0])
    found = [] if len(caption.split()) > 8 else ["no caption"]
    if item.startswith("figure"):
        before = outputs[marked[0] - 1] if marked[0] else {}
        if all(len(before.get(kind, "")) < least for kind, least in _PICTURES.items()):
            found.append("no picture before its caption")
    elif len([cell for cell in re.findall(r"<td[^>]*>([^<]+)</td>", page) if cell.strip()]) < 6:
        found.append("fewer than 6 filled cells")
    return found


def table(profile: Profile, items: dict, reports: list[str]) -> str:
    """A page (Markdown) that leads to every item in ``reports``."""
    rows = "".join(_row(item, entry, profile) for item, entry in items.items() if entry["report"] in reports)
    return f"""# Every table and figure of the paper

Titles are those of the paper's items; what stands in each report is ours, with published values beside it where they are
known to us.

<div class="scroll"><table class="item-list">
<thead><tr><th>item</th><th>in the paper</th><th>report</th><th>stage</th></tr></thead>
<tbody>{rows}</tbody>
</table></div>
"""


def _row(item: str, entry: dict, profile: Profile) -> str:
    report = entry["report"]
    anchor = f'<a href="{report}.html#{item}">{label(item)}</a>'
    cells = anchor, html.escape(entry["title"]), report, f"<code>{stage(report, profile)}</code>"
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def stage(report: str, profile: Profile) -> str:
    """The DVC stage that makes a report."""
    pages = profile.report.pages
    kinds = {"page": pages.certificates, "vote-page": pages.votes, "whole-page": pages.everything}
    return _ALWAYS.get(report) or next(f"{kind}@{report}" for kind, names in kinds.items() if report in names)


def whose_task(profile: Profile) -> str:
    """Says what is stand-in and what is the paper's own task."""
    told = []
    for name, original in profile.report.stands_for.items():
        source = profile.data[name]["name"]
        if stands_in(source):
            told.append(f"{name} stands in for {original}: those numbers are not about the paper's own task.")
        else:
            told.append(f"{name} is {original}{', as brought in files' if source == 'folder' else ''}.")
        told.append(profile.report.remarks.get(name, ""))
    return " ".join(filter(None, told))
