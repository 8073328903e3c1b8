"""What each report shows, in the two or three sentences that it opens with, computed from its results."""

import pandas as pd

from srs.certificates import bounds
from study.reports import tables
from study.reports.numbers import listed, percent, plural, points, signed, signed_interval
from study.reports.results import THEOREM, Results, Source, differences, mismatch
from study.reports.statistics import average_certified_radius, certified, mean_interval
from study.votes.rows import plain

FEW = 0.1  # certified at r = 0: where it is less, nothing can be told from radii


def fast_row(reference: str) -> str:
    """The serialized row that stands for its method: three steps of the reference's solver."""
    return f"SRS-MDEQ-3{plain(reference)[-1]}"


def compared(results: Results, source: Source, row: str, where: str = "") -> str:
    """A row against the reference of its list, in one sentence: accuracy, ACR and time."""
    rows, reference = results.rows(*source), results.reference(*source)
    table = tables.summary(rows, [0.0], reference)
    shares, acr, fast = (table[name] for name in (("r = 0", "accuracy"), ("ACR", "ours"), ("speed-up", "seconds")))
    difference = tables.against(tables.paired_difference(rows, row, reference), reference)
    return (
        f"{where}{row} certifies {percent(shares[row])} of the images at r = 0 ({difference}), with an ACR of {acr[row]:.3f} "
        f"for {acr[reference]:.3f}, {fast[row]:.1f} times as fast."
    )


def table_2(results: Results) -> list[str]:
    """Of Table 2 and what stands with it."""
    key = results.report.small.main
    rows = [fast_row(results.reference(key)), "AS-MDEQ-1N"]
    told = [compared(results, (key, None), row) for row in rows if row in results.samplers(key)]
    return [*told, results.weaker([(key, None)])]


def main_results(results: Results) -> list[str]:
    """Of Tables 1 to 3."""
    sizes = {size: entry.main for size, entry in results.report.sizes().items()}
    told = [
        compared(results, (key, None), fast_row(results.reference(key)), f"{results.slot(size)}: ")
        for size, key in sizes.items()
    ]
    return [*told, results.weaker([(key, None) for key in sizes.values()])]


def noise_levels(results: Results, sources: list[Source]) -> list[str]:
    """Of all noise levels."""
    lower, few, sigmas = [], [], {}
    for source in sources:
        rows, reference = results.rows(*source), results.reference(*source)
        name = f"{source[0]} (sigma = {results.sigma(source[0]):g})"
        share = float(certified(rows[rows["method"] == reference], 0.0).mean())
        if share < FEW:
            few.append(f"{name}: {percent(share)}")
        if tables.paired_difference(rows, fast_row(reference), reference)[2] < 0:
            lower.append(name)
        sigmas[name] = average_certified_radius(rows[rows["method"] == reference])
    best = max(sigmas, key=sigmas.get)
    told = [
        f"At {len(lower)} of {plural(len(sources), 'noise level')} three serialized steps certify fewer images at r = 0 than "
        f"their reference, beyond the paired interval{': ' + listed(lower) if lower else ''}.",
        f"The reference's ACR is largest, {sigmas[best]:.3f}, for {best}.",
    ]
    if few:
        told.append(f"Hardly anything is certified at r = 0, and nothing is to be read from radii, for {listed(few)}.")
    return [*told, results.weaker(sources)]


def steps_and_solvers(results: Results) -> list[str]:
    """Of Tables 18 to 21."""
    told, sources = [], []
    for size in ("small", "large"):
        key, name = results.report.sizes()[size].main, results.slot(size)
        sources += [(key, "steps"), (key, "solvers")]
        more = tables.paired_difference(results.rows(key, "steps"), "SRS-MDEQ-5A", "SRS-MDEQ-3A")
        naive = tables.paired_difference(results.rows(key, "solvers"), "MDEQ-30N", "MDEQ-30A")
        told.append(
            f"{name}: five serialized steps certify {points(*more)} against three at r = 0, and 30 naive steps "
            f"{points(*naive)} against 30 of Anderson's."
        )
    return [*told, results.weaker(sources)]


def consistency(results: Results) -> list[str]:
    """Of Table 22 and its figures."""
    told, sources = [], []
    for size in ("small", "large"):
        key = results.report.sizes()[size].main
        rows, reference = results.rows(key, "consistency"), results.reference(key, "consistency")
        sources.append((key, "consistency"))
        closer = differences(rows, "SRS-MDEQ-3A", reference) - differences(rows, "MDEQ-3A", reference)
        reach = tables.reachable(rows)
        told.append(
            f"{results.slot(size)}: the mean RRD of three serialized steps less that of three standard ones is "
            f"{signed(closer.mean(), 3)} ({signed_interval(*mean_interval(closer), 3)}); part of it is the audit's, which lets "
            f"no serialized radius pass {bounds.shown(reach['SRS-MDEQ-3A'])} of {bounds.shown(reach[reference])}."
        )
    return [*told, results.weaker(sources)]


def correlation(results: Results) -> list[str]:
    """Of Figures 3, 6 and 7."""
    told, sources = [], []
    for size in ("small", "large"):
        key = results.report.sizes()[size].main
        sources.append((key, "consistency"))
        bound, gap = mismatch(results.rows(key, "consistency", THEOREM), "SRS-MDEQ-3A")
        told.append(
            f"{results.slot(size)}: with three steps p_m averages {percent(bound.mean(), 1)}, the true mismatch rate "
            f"{percent((bound - gap).mean(), 1)}; the bound fails for {plural(int((gap < 0).sum()), 'image')} of {len(gap)}."
        )
    return [*told, results.weaker(sources)]


def samples(results: Results) -> list[str]:
    """Of Figures 8 and 9."""
    told, sources = [], []
    for size in ("small", "large"):
        key = results.report.sizes()[size].main
        groups = results.sample_groups(key)
        sources += [(key, group) for group in groups]
        names = {f"N = {results.plans[key].groups[group].n:,}": (key, group, "SRS-MDEQ-3A") for group in groups}
        rows, (least, *_, most) = results.combined(names), list(names)
        reach = tables.reachable(rows)
        told.append(
            f"{results.slot(size)}, SRS-MDEQ-3A: from {least} to {most} certified accuracy at r = 0 changes by "
            f"{points(*tables.paired_difference(rows, most, least))}, and the largest radius that can be certified from "
            f"{bounds.shown(reach[least])} to {bounds.shown(reach[most])}."
        )
    return [*told, results.weaker(sources)]


def warmup(results: Results) -> list[str]:
    """Of Figures 10 to 12 and Table 24: the variants furthest from the reference and from one another."""
    small, large = (results.report.sizes()[size].main for size in ("small", "large"))
    sources = [(small, kind) for kind in ("warmup_steps", "warmup_solvers", "restart")]
    told = []
    for (key, kind), what in zip(sources, ("warm-up steps", "warm-up solvers", "restarts")):
        rows, reference = results.rows(key, kind), results.reference(key, kind)
        shares = certified(rows, 0.0).groupby(rows["method"]).mean().drop(reference)
        told.append(f"{what} {percent(shares.min())} to {percent(shares.max())}")
    start = tables.paired_difference(results.rows(large, "start"), "SRS-MDEQ-3A previous start", "SRS-MDEQ-3A clean start")
    return [
        f"Certified at r = 0 by {results.slot('small')}, over all variants: {listed(told)}.",
        f"A start at the previous draw's state certifies {points(*start)} against one at the clean image's, with three steps.",
        results.weaker([*sources, (large, "start")]),
    ]


def baselines(rows: pd.DataFrame, accuracies: dict[str, float]) -> list[str]:
    """Of Table 4: against plain networks, and whether they are trained well enough to say something; ``accuracies``: on
    held-out noisy images."""
    told = []
    for network in (name for name in accuracies if name.startswith("ResNet")):
        difference = tables.against(tables.paired_difference(rows, "SRS-MDEQ-3A", network), network)
        told.append(f"SRS-MDEQ-3A at r = 0: {difference}.")
        if accuracies[network] < accuracies["MDEQ-30A"] - 0.05:
            told.append(
                f"Nothing follows from that for {network}: as it is trained here it is right on {percent(accuracies[network])} "
                f"of held-out noisy images, the DEQ on {percent(accuracies['MDEQ-30A'])}."
            )
    return told
