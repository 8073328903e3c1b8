"""The few numbers by which runs are compared: what `dvc metrics show` and `dvc exp show` print."""

from study.reports.results import Results
from study.reports.statistics import average_certified_radius, certified

SHOWN = ("MDEQ-30A", "SRS-MDEQ-3A", "AS-MDEQ-1N")  # standard, serialized, amortized


def headline(results: Results) -> dict:
    """Of the size small's main run, by row: certified accuracy at r = 0 and at the tables' next radius, ACR, and speed-up
    against the reference in evaluations of f (seconds would differ from run to run)."""
    key = results.report.small.main
    rows, reference = results.rows(key), results.reference(key)
    spent = rows.groupby("method")["evaluations"].mean()
    found = {}
    for row in (row for row in SHOWN if row in spent):
        part = rows[rows["method"] == row]
        found[row] = {f"certified at {r:g}": float(certified(part, r).mean()) for r in results.radii(key)[:2]}
        found[row] |= {"ACR": average_certified_radius(part), "speed-up": float(spent[reference] / spent[row])}
    return found
