"""The study in five figures, each with a sentence that is computed: what the page that leads to all others shows."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from srs.certificates import bounds
from study.common import snapshot
from study.common.plots import looks
from study.reports import cells, claims, tables
from study.reports.items import stands_in
from study.reports.numbers import listed, percent, plural, points, portion
from study.reports.reach import ALPHA, SIGMA, N, reach
from study.reports.results import Results, Source, amount
from study.reports.statistics import certified_accuracy, rejected
from study.votes.rows import plain, stopped

CIFAR10 = snapshot.SNAPSHOTS / "cifar10"  # CIFAR-10 itself, as published with the project


def saved(rows: pd.DataFrame, reference: str, row: str) -> str:
    """What serialization saves, in evaluations of f, beside every baseline."""
    spent, ratios = rows.groupby("method")["evaluations"].mean(), tables.saved_beside_all(rows, row, reference)
    told = [f"{other} {spent[other]:,.0f} ({ratio})" for other, ratio in ratios.items()]
    return (
        f"**At N = {rows['n'].iloc[0]:,} {row} needs {spent[row]:,.0f} evaluations of f an image, warm-up and audit included: "
        f"{listed(told)}.**"
    )


def curves(results: Results) -> tuple[pd.DataFrame, str]:
    """The main run's certified accuracies beside those of the published Table 2 (:func:`study.reports.tables.beside`). On
    CIFAR-10 where the run, or the run of its name that is published with the project, has it; and a text that says on what."""
    key = results.report.small.main
    alone = stands_in(results.dataset(key).name)
    if alone and (CIFAR10 / cells.CERTIFICATES).is_file():
        table = cells.read_published(CIFAR10)
        rows = table[(table[["run", "group", "design"]] == [key, "main", ""]).all(axis=1)]
        found = tables.beside(rows, results.published["table2"], results.published["cifar10_radii"])
        made_by = snapshot.networks(CIFAR10.name)[f"models/{key}"]["made_by"]
        theirs = results.published["table8"]["SMALL (CIFAR-10)"]["epochs"]
        trained = f"trained for {plural(made_by['training']['epochs'], 'epoch')} (the paper's: {theirs})"
        return found, f"CIFAR-10 as in reports/cifar10, which says what its images are; {trained}; {amount(rows)}"
    found, rests_on = results.beside(key)
    return found, f"{results.plans.data(key)}, which stands in for CIFAR-10" if alone else f"CIFAR-10, this run: {rests_on}"


def plot_beside(found: pd.DataFrame) -> Figure:
    """Ours (filled, with 95 % intervals) and published (hollow) certified accuracy at the paper's radii."""
    figure, axes = plt.subplots(figsize=(7.5, 4.3), layout="constrained")
    styles = looks(found["row"].unique())
    for number, (row, look) in enumerate(styles.items()):
        whole = found[found["row"] == row]
        part = whole.dropna(subset="ours")
        error = [part["ours"] - part["lower"], part["upper"] - part["ours"]]
        at = part["r"] + 0.012 * (2 * number - len(styles) + 1)  # error bars side by side
        style = {"color": look.color, "marker": look.marker}
        axes.errorbar(at, part["ours"], error, linestyle=look.line, capsize=2, label=f"{row}, ours", **style)
        axes.plot(whole["r"], whole["published"], linestyle="", mfc="none", ms=10, label=f"{plain(row)}, published", **style)
    axes.set(xlabel="l2 radius r (pixel units)", ylabel="certified accuracy (%)", ylim=(0, 100))
    axes.legend(fontsize=9)
    return figure


def read_reach(k: int, claimed: list[float]) -> str:
    found = {name: reach(name, k) for name in bounds.ESTIMATORS}
    limit, half = bounds.largest_radius(N, ALPHA, SIGMA), bounds.largest_radius(N, ALPHA, SIGMA, k, "finite_population", 0.5)
    beyond = [r for r in claimed if r > found["theorem_3_1"]]
    return (
        f"**With K = {k:,} audited draws what Theorem 3.1 can certify ends at r = {bounds.shown(found['theorem_3_1'])}**, what "
        f"the exact bound can at {bounds.shown(found['finite_population'])} ({bounds.shown(half)} where alpha is split in "
        f"half, as the theorem's), what independent votes can at {bounds.shown(limit)}; the paper shows serialized "
        f"certificates at {len(beyond)} radii larger than the theorem's, up to {max(claimed):g}. Their K is not known to us: "
        "with all draws audited the theorem ends at "
        f"{bounds.shown(reach('theorem_3_1', N))} (all rounded down)."
    )


def read_coverage(table: pd.DataFrame) -> str:
    """The worst case of what is a guarantee, and of what is none."""
    held, other = (table[table["guarantee"] == kind] for kind in (True, False))
    above = int(rejected(held["p_value"]).sum())
    alpha = other["alpha"].max()
    most = []
    for name in ("theorem_3_1", "released_code"):
        by_design = other[other["alpha"] == alpha].groupby("design")["rate"].max()
        at_random = by_design.get(f"{name}, random")
        told = "" if at_random is None else f" ({portion(at_random)} audited at random)"
        most.append(f"{portion(by_design[f'{name}, first_batch'])} by {tables.by(name)}{told}")
    return (
        f"**With a guarantee, {above} of the {len(held)} shares of false certificates (each of a case, a way to certify and an "
        "alpha) are significantly above alpha** (at 5 % for all together); audited by the first batch, as released, up to "
        f"{listed(most)} are false at alpha = {alpha:g}, on DEQs that are made to break what these take for granted."
    )


def cost_sources(results: Results) -> tuple[dict[Source, str], list[str]]:
    """Whose accuracy and cost are held side by side: the main run's rows, the networks trained for one evaluation, and the
    plain networks, with the names of the latter (empty: rows keep theirs). And the runs that are left out, for their seconds
    are of another machine than the main run's."""
    key = results.report.small.main
    past = results.report.past.get(key)
    sources = {(run, None): "" for run in [key, *(past.models() if past else [])]}
    networks = {"ResNet-110": results.report.resnet, "ResNet-20": results.report.plain}
    sources |= {(run, None): name for name, run in networks.items() if run}
    alike = {source: name for source, name in sources.items() if results.timed_alike([key, source[0]])}
    return alike, [run for run, _ in sources if (run, None) not in alike]


def costs(results: Results, sources: Mapping[Source, str], r: float) -> pd.DataFrame:
    """Certified accuracy at ``r`` (share, with its 95 % interval), what it is more than the main run's reference's (``gain``
    and, ``least`` to ``most``, its paired 95 % interval), evaluations and seconds an image of all rows of ``sources``
    (:func:`cost_sources`) that can reach r, on the images that all have and with as many draws as the reference; rows
    without a guarantee are named so."""
    parts = [results.rows(*source, "exact") for source in sources]
    shared = set.intersection(*(set(rows["index"]) for rows in parts))
    reference = results.reference(*next(iter(sources)))
    common, lines = parts[0][parts[0]["index"].isin(shared)], {}
    standard = common[common["method"] == reference].assign(method="")
    for rows, name in zip(parts, sources.values()):
        limits = tables.reachable(rows)
        for row, part in rows[rows["index"].isin(shared)].groupby("method", sort=False):
            if limits[row] >= r and part["n"].iloc[0] == standard["n"].iloc[0]:
                gained = tables.paired_difference(pd.concat([part, standard]), row, "", r)
                gain = dict(zip(("gain", "least", "most"), gained))
                found = certified_accuracy(part, [r]).iloc[0].to_dict() | gain
                title = tables.marked(name or row, part["guarantee"].all())
                lines.setdefault(title, found | part[["evaluations", "seconds"]].mean().to_dict())
    return pd.DataFrame.from_dict(lines, orient="index")


def read_costs(table: pd.DataFrame, reference: str, r: float) -> str:
    """The rows that certify most at no more than a fifth of the reference's seconds (on these images: picked by hindsight, and
    said to be), or the cheapest of all where there is none, beside the reference and its solver that stops."""
    whole, honest = table.loc[reference], stopped(reference)
    cheap = table[table["seconds"] <= whole["seconds"] / 5].sort_values("seconds")
    best = cheap[cheap["accuracy"] == cheap["accuracy"].max()] if len(cheap) else table.loc[[table["seconds"].idxmin()]]
    picked = "the cheapest, for none takes a fifth of its time"
    if len(cheap):
        fast = f"{plural(len(cheap), 'row')} here that take at most a fifth of its time"
        picked = f"the most that any of {fast} certifies, picked on these images"
    seconds = " to ".join(dict.fromkeys(f"{best['seconds'].iloc[end]:.2f}" for end in (0, -1)))
    row, verb = best.iloc[0], "certifies" if len(best) == 1 else "each certify"
    beside = {name: table.loc[name] for name in (reference, honest) if name in table.index}
    others = [f"{name} {percent(other['accuracy'])} in {other['seconds']:.2f} s" for name, other in beside.items()]
    return (
        f"**On the same {plural(int(whole['images']), 'image')} {listed([*best.index])} {verb} {percent(row['accuracy'])} at "
        f"r = {r:g} in {seconds} s an image, {', '.join(others)}**: a paired difference of {best.index[0]} and {reference} of "
        f"{points(*row[['gain', 'least', 'most']])}; {picked}."
    )


def read_claims(lines: pd.DataFrame) -> str:
    """What :func:`study.reports.claims.table` decides of the paper's claims, and what not (Markdown)."""
    paper = lines[lines["whose"] == "the paper"]
    found = [" ".join([*claims.read_tally(lines), "Words of the claims and thresholds are ours (data/claims.yaml)."])]
    for verdict in (claims.CONFIRMED, claims.CONTRADICTED):
        for line in paper[paper["verdict"] == verdict].itertuples():
            over = f", over {line.trainings} trainings (the interval, too)" if line.trainings > 1 else ""
            found.append(f"- *{verdict}*{f' (on {line.data})' if line.data else ''}: {line.claim}. Found{over}: {line.found}.")
    open_ = paper[paper["verdict"] == claims.UNDECIDED]["claim"]
    found += [f"- *{claims.UNDECIDED}*: {'; '.join(open_)}."] if len(open_) else []
    return "\n".join([f"{found[0]}\n", *found[1:]])
