"""What each report shows, in the two or three sentences that it opens with, computed from its results."""

import numpy as np
import pandas as pd

from srs.certificates import bounds
from study.reports import tables
from study.reports.numbers import change, fixed, listed, percent, plural, points, signed, signed_interval
from study.reports.results import THEOREM, Results, Source, differences, mismatch
from study.reports.statistics import average_certified_radius, certified, counted_radii, mean_interval, paired_interval
from study.votes.rows import plain

FEW = 0.1  # certified at r = 0: where it is less, nothing can be told from radii


def fast_row(reference: str) -> str:
    """The serialized row that stands for its method: three steps of the reference's solver."""
    return f"SRS-MDEQ-3{plain(reference)[-1]}"


def compared(results: Results, source: Source, row: str, where: str = "") -> str:
    """A row against the reference of its list, in two sentences: accuracy and ACR; and how many times its evaluations every
    baseline takes."""
    rows, reference = results.rows(*source), results.reference(*source)
    table = tables.summary(rows, [0.0], reference)
    shares, acr = table["r = 0", "accuracy"], table["ACR", "ours"]
    difference = tables.against(tables.paired_difference(rows, row, reference), reference)
    first, *others = (f"{other} takes {times}" for other, times in tables.saved_beside_all(rows, row, reference).items())
    fast = [f"{first} as many evaluations of f", *others]
    return (
        f"{where}{row} certifies {percent(shares[row])} of the images at r = 0 ({difference}), with an ACR of {acr[row]:.3f} "
        f"for {acr[reference]:.3f} ({told_acr(rows, row, reference)}). {'; '.join(fast)}.{told_truncated(rows, row, reference)}"
    )


def truncated(reference: str) -> str:
    """The row that saves evaluations by stopping early, from scratch, without an audit."""
    return f"MDEQ-5{plain(reference)[-1]}"


def told_truncated(rows: pd.DataFrame, row: str, reference: str) -> str:
    """A serialized row beside :func:`truncated`, where both are there; with a blank before it."""
    short, audited = truncated(reference), (rows.loc[rows["method"] == row, "k"] > 0).any()
    if not audited or short not in set(rows["method"]):
        return ""
    return (
        f" {short}, five steps from scratch, certifies its own votes without an audit: its ACR differs from {row}'s by "
        f"{told_acr(rows, short, row)}, and it takes {tables.saved(rows, row, short)} as many evaluations of f."
    )


def told_acr(rows: pd.DataFrame, row: str, other: str) -> str:
    """A :func:`study.reports.tables.acr_difference` in words."""
    value, low, high = tables.acr_difference(rows, row, other)
    return f"{signed(value, 3)}, {signed_interval(low, high, 3)}"


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
    lower, smaller, few, beyond, best = [], [], [], [], {}
    for source in sources:
        rows, reference = results.rows(*source), results.reference(*source)
        standard, reach = rows[rows["method"] == reference], tables.reachable(rows)
        name, share = f"{source[0]} (sigma = {results.sigma(source[0]):g})", float(certified(standard, 0.0).mean())
        if share < FEW:
            few.append(f"{source[0]} ({percent(share)})")
        if tables.paired_difference(rows, fast_row(reference), reference)[2] < 0:
            lower.append(name)
        if tables.acr_difference(rows, fast_row(reference), reference)[2] < 0:
            smaller.append(name)
        for r in [r for r in results.radii(source[0]) if reach[fast_row(reference)] < r <= reach[reference]][:1]:
            if certified(standard, r).any():
                beyond.append(f"{source[0]} at r = {r:g} ({percent(certified(standard, r).mean())})")
        acr, data = average_certified_radius(standard), results.plans.data(source[0])
        if acr > best.get(data, (-1.0,))[0]:
            best[data] = acr, f"on {data} for {name}, {tables.mean(counted_radii(standard))}"
    images = min(results.rows(*source)["index"].nunique() for source in sources)
    levels = plural(len({results.sigma(key) for key, _ in sources}), "noise level")
    certify = "certifies" if len(lower) == 1 else "certify"
    told = [
        f"{len(lower)} of {plural(len(sources), 'network')} at {levels} {certify} fewer images at r = 0 "
        "by three serialized steps than by their reference, beyond the paired interval"
        f"{': ' + listed(lower) if lower else ''}; on {images} images {told_least(images)}. The ACR is smaller, each "
        f"beyond its own interval, at {len(smaller)}.",
    ]
    told += [f"What three serialized steps cannot reach, and the reference certifies: {listed(beyond)}."] if beyond else []
    told.append(f"The reference's ACR is largest {listed([text for _, text in best.values()])}.")
    if few:
        told.append(f"The reference itself certifies next to nothing at r = 0 for {listed(few)}: no loss could show there.")
    return [*told, results.weaker(sources)]


def least_lost(images: int, alpha: float = 0.05) -> int | None:
    """How many of ``images`` a row must lose, and gain none, for the loss to be beyond the paired 1 - alpha interval; None
    where not even all are enough."""
    return next((lost for lost in range(1, images + 1) if paired_interval(0, lost, images, alpha)[1] < 0), None)


def told_least(images: int, alpha: float = 0.05) -> str:
    """A :func:`least_lost` in words."""
    lost = least_lost(images, alpha)
    if lost is None:
        return "no loss could show"
    return f"a loss shows from {plural(lost, 'image')} lost on, where none is gained"


def steps_and_solvers(results: Results) -> list[str]:
    """Of Tables 18 to 21."""
    told, sources = [], []
    for size, kind in (("small", "steps"), ("large", "steps"), ("imagenet", "imagenet_steps")):
        key = results.report.sizes()[size].main
        rows, three = results.rows(key, kind), fast_row(results.reference(key, kind))
        five = three.replace("-3", "-5")
        sources.append((key, kind))
        told.append(
            f"{results.slot(size)}: five serialized steps in place of three change the share certified at r = 0 by "
            f"{points(*tables.paired_difference(rows, five, three))}, the ACR by {told_acr(rows, five, three)}."
        )
    for size in ("small", "large"):
        key = results.report.sizes()[size].main
        sources.append((key, "solvers"))
        naive = tables.paired_difference(results.rows(key, "solvers"), "MDEQ-30N", "MDEQ-30A")
        told.append(
            f"{results.slot(size)}: 30 naive steps in place of 30 of Anderson's change that share by {points(*naive)}, the "
            f"ACR by {told_acr(results.rows(key, 'solvers'), 'MDEQ-30N', 'MDEQ-30A')}."
        )
    return [*told, results.weaker(sources)]


def consistency(results: Results) -> list[str]:
    """Of Table 22 and its figures."""
    told, sources = [], []
    for size in ("small", "large"):
        key = results.report.sizes()[size].main
        rows, reference = results.rows(key, "consistency"), results.reference(key, "consistency")
        sources.append((key, "consistency"))
        ours, theirs = (differences(rows, row, reference) for row in ("SRS-MDEQ-3A", "MDEQ-3A"))
        if not len(ours):
            told.append(f"{results.slot(size)}: no image has a radius by {reference}, from which others' could differ.")
            continue
        told.append(
            f"{results.slot(size)}: over the {plural(len(ours), 'image')} with a radius by {reference} the mean RRD of three "
            f"serialized steps is {ours.mean():.3f}, that of three standard ones {theirs.mean():.3f}: a difference of "
            f"{change((ours - theirs).mean(), *mean_interval(ours - theirs))}; the median difference "
            f"is {signed(np.median(ours - theirs), 3)}."
        )
    return [*told, results.weaker(sources)]


def told_closer(gaps: np.ndarray) -> str:
    """RRDs of serialized votes less those of standard ones, (images,), in words."""
    if not len(gaps):
        return "not to be had: no image has a radius by the reference"
    return (
        f"{change(gaps.mean(), *mean_interval(gaps))}, {signed(np.median(gaps), 3)} in the median; serialized is closer on "
        f"{(gaps < 0).sum()} of {plural(len(gaps), 'image')}, further on {(gaps > 0).sum()}"
    )


def correlation(results: Results) -> list[str]:
    """Of Figures 3, 6 and 7."""
    told, sources = [], []
    for size in ("small", "large"):
        key = results.report.sizes()[size].main
        sources.append((key, "consistency"))
        bound, gap = mismatch(results.rows(key, "consistency", THEOREM), "SRS-MDEQ-3A")
        told.append(
            f"{results.slot(size)}: with three steps p_m averages {percent(bound.mean(), 1)}, the true mismatch rate "
            f"{percent((bound - gap).mean(), 1)}; the bound fails on "
            f"{tables.share(int((gap < 0).sum()), len(gap))} percent of {plural(len(gap), 'image')}."
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
            f"{points(*tables.paired_difference(rows, most, least))}, the ACR by {told_acr(rows, most, least)}, and the "
            f"largest radius that can be certified from {bounds.shown(reach[least])} to {bounds.shown(reach[most])}; K stays "
            f"{rows['k'].max():,}."
        )
    return [*told, results.weaker(sources, "the paper has 500 images, and N = 1,000, 10,000 and 100,000 in these figures")]


def warmup(results: Results) -> list[str]:
    """Of Figures 10 to 12 and Table 24: the variants furthest from the reference and from one another."""
    small, large = (results.report.sizes()[size].main for size in ("small", "large"))
    sources = [(small, kind) for kind in ("warmup_steps", "warmup_solvers", "restart")]
    told, restarts = [], results.rows(small, "restart")
    for (key, kind), what in zip(sources, ("warm-up steps", "warm-up solvers", "restarts")):
        rows, reference = results.rows(key, kind), results.reference(key, kind)
        shares = certified(rows, 0.0).groupby(rows["method"]).mean().drop(reference)
        acr = counted_radii(rows).groupby(rows["method"]).mean().drop(reference)
        told.append(
            f"{what} {percent(shares.min())} to {percent(shares.max())} (ACR {fixed(acr.min(), 3)} to {fixed(acr.max(), 3)})"
        )
    return [
        f"Certified at r = 0 by {results.slot('small')}, over all variants: {listed(told)}.",
        f"A warm-up for every batch in place of one changes the ACR by {told_acr(restarts, 'every batch', 'never')}, "
        f"for {tables.saved(restarts, 'never', 'every batch', 'evaluations')} the evaluations of f.",
        _starts(results.rows(large, "start"), "A start at the previous draw's state in place of one at the clean image's"),
        _other_starts(results.rows(small, "serialized_starts")),
        results.weaker([*sources, (large, "start"), (small, "serialized_starts")]),
    ]


def _starts(rows: pd.DataFrame, what: str) -> str:
    """What the previous draw's state is worth for a start, with one step and with three."""
    told = []
    for steps, row in (("one step", "SRS-MDEQ-1A"), ("three steps", "SRS-MDEQ-3A")):
        both = f"{row} previous start", f"{row} clean start"
        told.append(f"with {steps} {points(*tables.paired_difference(rows, *both))} (ACR {told_acr(rows, *both)})")
    return f"{what} changes the share certified at r = 0: {listed(told)}."


def _other_starts(rows: pd.DataFrame) -> str:
    """Which of the other starts beat the previous draw's state in ACR, beyond the interval."""
    others = [row for row in rows.loc[rows["k"] > 0, "method"].unique() if row != "previous draw"]
    if not others:
        return ""
    found = {row: tables.acr_difference(rows, row, "previous draw", 0.05 / len(others)) for row in others}
    better = [f"{row} ({signed(gain, 3)})" for row, (gain, low, _) in found.items() if low > 0]
    return (
        f"Of {len(others)} other ways to start, {len(better) or 'none'} {'has' if len(better) == 1 else 'have'} a larger ACR "
        f"than one Anderson step from the previous draw's state, beyond intervals that hold together"
        f"{': ' + '; '.join(better) if better else ''}. Broyden's take two steps a draw."
    )


def which_to_pick(rows: pd.DataFrame, deq: str, network: str) -> str:
    """Which of a ``deq``'s row and a plain ``network`` a user should pick, by ACR and by seconds (beyond a quarter: paces are
    no closer); ``rows`` has both."""
    gain, low, high = tables.acr_difference(rows, network, deq)
    better = network if low > 0 else deq if high < 0 else ""
    time, *_ = tables.speed_up(rows, network, deq, "seconds")
    faster = network if time > 1.25 else deq if time < 0.8 else ""
    picked = f"pick {better or faster}" if better or faster else "either will do"
    if better and faster and better != faster:
        picked = f"{better} certifies more, {faster} is faster: what counts for the user decides"
    return (
        f"{network} against {deq}: ACR {signed(gain, 3)}, {signed_interval(low, high, 3)}; "
        f"speed-up in seconds {tables.saved(rows, network, deq, 'seconds')}. So, for certificates alone: {picked}."
    )


def says_little(network: int, deq: int, images: int) -> bool:
    """Whether a plain network is too little trained here to speak for its kind: on how many of as many held-out noisy
    ``images`` it is right, and a DEQ."""
    return bounds.clopper_pearson_interval(network, images, 0.05)[1] < deq / images


def baselines(rows: pd.DataFrame, right: dict[str, int], images: int) -> list[str]:
    """Of Table 4: against plain networks, and whether they are trained well enough to say something; ``right``: on how many of
    as many held-out noisy ``images`` each is."""
    told = []
    for network in (name for name in right if name.startswith("ResNet")):
        difference = tables.against(tables.paired_difference(rows, "SRS-MDEQ-3A", network), network)
        told.append(f"SRS-MDEQ-3A at r = 0: {difference}. {which_to_pick(rows, 'SRS-MDEQ-3A', network)}")
        share, deq = right[network], right["MDEQ-30A"]
        if says_little(share, deq, images):
            told.append(
                f"That says little of {network}: as it is trained here it is right on {tables.share(share, images)} percent of "
                f"{images} held-out noisy images, the DEQ on {tables.share(deq, images)}."
            )
    return told
