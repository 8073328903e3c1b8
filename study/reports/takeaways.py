"""What each report shows, in the two or three sentences that it opens with, computed from its results."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd

from srs.certificates import bounds
from srs.certificates.certify import ABSTAIN
from study.reports import tables
from study.reports.numbers import change, fixed, listed, percent, plural, points, portion, signed
from study.reports.results import THEOREM, Results, Source, amount, mismatch, relative_radius_differences
from study.reports.statistics import average_certified_radius, certified, counted_radii, mean_interval, paired_interval
from study.votes.rows import fast_row, plain

FEW = 0.1  # certified: where it is less, hardly anything can be told from radii


def compared(results: Results, source: Source, row: str, where: str = "") -> str:
    """A row against the reference of its list, in two sentences: accuracy and ACR; and how many times its evaluations every
    baseline takes."""
    results.note([source])
    rows, reference = results.rows(*source), results.reference(*source)
    table = tables.summary(rows, [0.0], reference)
    shares, acr = table["r = 0", "accuracy"], table["ACR", "ours"]
    difference = tables.against(tables.paired_difference(rows, row, reference), reference)
    first, *others = (f"{other} takes {times}" for other, times in tables.saved_beside_all(rows, row, reference).items())
    others += [tables.NEVER_STOPS] if tables.never_stops(reference, acr.index) else []
    fast = [f"{first} the evaluations of f of {row}", *others]
    reach = tables.reachable(rows)
    shorter = f"; its radii end at {bounds.shown(reach[row])}, those of {reference} at {bounds.shown(reach[reference])}"
    return (
        f"{where}{row} certifies {portion(shares[row])} of the images at r = 0 ({difference}), with an ACR of {acr[row]:.3f} "
        f"against {acr[reference]:.3f}, a difference of {told_acr(rows, row, reference)}"
        f"{shorter if reach[row] < reach[reference] else ''}. "
        f"{'; '.join(fast)}."
        f"{told_truncated(rows, row, reference)} {_over_trainings(results, source[0], row, reference)}"
    )


def _over_trainings(results: Results, key: str, row: str, reference: str) -> str:
    """The difference at r = 0 over all trainings of a run, where there are several."""
    keys = results.trainings(key)
    shared = results.shared(keys, (row, reference)) if len(keys) > 1 else None
    if shared is None:
        return "All this is of one training."
    results.note([(one, shared) for one in keys])
    trained = [results.rows(one, shared) for one in keys]
    return (
        f"All this is of one training; over {len(keys)}, on {amount(trained[0], audited=False)}, the difference at r = 0 is "
        f"{points(*tables.joint_difference(trained, row, reference))}, an interval over trainings and images that is never "
        "shorter than over the images alone."
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
        f"{told_acr(rows, short, row)}, and it takes {tables.saved(rows, row, short)} as many evaluations of f, a ratio that "
        "grows with N at the same K."
    )


def told_acr(rows: pd.DataFrame, row: str, other: str) -> str:
    """A :func:`study.reports.tables.acr_difference` in words."""
    return change(*tables.acr_difference(rows, row, other))


def table_2(results: Results) -> list[str]:
    """Of Table 2 and what stands with it."""
    key = results.report.small.main
    rows = [fast_row(results.reference(key)), "AS-MDEQ-1N"]
    told = [compared(results, (key, None), row) for row in rows if row in results.samplers(key)]
    return [*told, results.weaker()]


def main_results(results: Results) -> list[str]:
    """Of Tables 1 to 3."""
    sizes = {size: entry.main for size, entry in results.report.sizes().items()}
    told = [
        compared(results, (key, None), fast_row(results.reference(key)), f"{results.slot(size)}: ")
        for size, key in sizes.items()
    ]
    return [*told, results.weaker()]


def noise_levels(results: Results, sources: list[Source]) -> list[str]:
    """Of all noise levels."""
    shares, radii, few, lossless, beyond, standards = {}, {}, [], [], [], {}
    sources = list(dict.fromkeys(sources))
    for source in sources:
        rows, reference = results.rows(*source), results.reference(*source)
        standard, reach = rows[rows["method"] == reference], tables.reachable(rows)
        name = f"{source[0]} (sigma = {results.sigma(source[0]):g})"
        few += [f"{source[0]} ({told_share(standard, 0.0)})"] if certified(standard, 0.0).mean() < FEW else []
        lossless += [source[0]] if shows_no_loss(standard) else []
        shares[name] = tables.paired_difference(rows, fast_row(reference), reference)
        radii[name] = tables.acr_difference(rows, fast_row(reference), reference)
        for r in [r for r in results.radii(source[0]) if reach[fast_row(reference)] < r <= reach[reference]][:1]:
            if certified(standard, r).any():
                beyond.append(f"{source[0]} at r = {r:g} ({told_share(standard, r)})")
        slot = next(results.slot(size) for size, entry in results.report.sizes().items() if source[0] in entry.runs())
        standards.setdefault(slot, {})[name] = standard
    images = min(results.images(sources))
    (fewer, more), (smaller, larger) = _apart(shares), _apart(radii)
    levels = plural(len({results.sigma(key) for key, _ in sources}), "noise level")
    told = [
        "At r = 0 the interval of what three serialized steps certify minus what the reference certifies lies below 0 for "
        f"{_counted(fewer, len(sources))} at {levels}, and above 0 for {_counted(more)}; on {images} images "
        f"{told_least(images)}. That of their ACRs' difference lies below 0 for {len(smaller) or 'none'}, and above 0 for "
        f"{len(larger) or 'none'}; part of it is the audit, which shortens radii even where it confirms every vote.",
    ]
    if beyond:
        told.append(
            "At this N, K and alpha the reference still certifies images at the first of the tables' radii that three "
            f"serialized steps cannot reach, for {listed(beyond)}."
        )
    told.append(
        "The noise level with the largest ACR of the reference, looked for afterwards, of one training each: "
        f"{'; '.join(f'{slot} {_largest(found)}' for slot, found in standards.items())}."
    )
    if few:
        told.append(
            f"The reference certifies less than {percent(FEW)} of the images at r = 0 for {listed(few)}: hardly anything can "
            "be told from radii there."
        )
    if lossless:
        told.append(f"For {listed(lossless)} no loss at r = 0 could show, were all images lost that the reference certifies.")
    return [*told, results.weaker(sources)]


def _apart(found: dict[str, tuple[float, float, float]]) -> tuple[list[str], list[str]]:
    """Of which differences the whole interval lies below 0, and of which above."""
    below = [name for name, (_, _, high) in found.items() if high < 0]
    return below, [name for name, (_, low, _) in found.items() if low > 0]


def _counted(names: list[str], among: int = 0) -> str:
    """How many of how many networks (where told), and which."""
    told = f"{len(names) or 'none'}" + (f" of {plural(among, 'network')}" if among else "")
    return f"{told} ({listed(names)})" if names else told


def _largest(standards: dict[str, pd.DataFrame]) -> str:
    """The network with the largest ACR of its reference, and how much larger that is than the next one's, on the images of
    both."""
    first, *others = sorted(standards, key=lambda name: -average_certified_radius(standards[name]))
    told = f"{first}, {tables.mean(counted_radii(standards[first]))}"
    if not others:
        return f"{told}, the only one"
    both = pd.concat([standards[name].assign(method=name) for name in (first, others[0])])
    both = both[both.groupby("index")["method"].transform("nunique") == 2]
    return f"{told}, {change(*tables.acr_difference(both, first, others[0]))} against the next, {others[0]}"


def told_share(rows: pd.DataFrame, r: float) -> str:
    """The certified accuracy of one row at ``r``."""
    return f"{tables.share(int(certified(rows, r).sum()), len(rows))} percent"


def shows_no_loss(rows: pd.DataFrame) -> bool:
    """Whether a row certifies so few images at r = 0 that no loss beside it could show, were all of them lost."""
    least = least_lost(len(rows))
    return least is None or int(certified(rows, 0.0).sum()) < least


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
            f"{points(*tables.paired_difference(rows, five, three))}, the ACR by {told_acr(rows, five, three)}, for "
            f"{tables.saved(rows, three, five)} the evaluations of f."
        )
    for size in ("small", "large"):
        key = results.report.sizes()[size].main
        sources.append((key, "solvers"))
        naive = tables.paired_difference(results.rows(key, "solvers"), "MDEQ-30N", "MDEQ-30A")
        told.append(
            f"{results.slot(size)}: 30 naive steps in place of 30 of Anderson's change the share certified at r = 0 by "
            f"{points(*naive)}, the ACR by {told_acr(results.rows(key, 'solvers'), 'MDEQ-30N', 'MDEQ-30A')}."
        )
    return [*told, results.weaker(sources)]


def consistency(results: Results) -> list[str]:
    """Of Table 22 and its figures."""
    told, sources = [], []
    for size in ("small", "large"):
        key = results.report.sizes()[size].main
        rows, reference = results.rows(key, "consistency"), results.reference(key, "consistency")
        sources.append((key, "consistency"))
        ours, theirs = (relative_radius_differences(rows, row, reference) for row in ("SRS-MDEQ-3A", "MDEQ-3A"))
        if not len(ours):
            told.append(f"{results.slot(size)}: no image has a radius by {reference}, from which others' could differ.")
            continue
        told.append(
            f"{results.slot(size)}: over the {plural(len(ours), 'image')} with a radius by {reference} the mean RRD of three "
            f"serialized steps is {ours.mean():.3f}, that of three standard ones {theirs.mean():.3f}: a difference of "
            f"{change((ours - theirs).mean(), *mean_interval(ours - theirs))}; the median difference "
            f"is {signed(np.median(ours - theirs), 3)}.{ends(rows, reference)}"
        )
    return [*told, results.weaker(sources)]


def ends(rows: pd.DataFrame, reference: str) -> str:
    """Where serialized radii end, which alone makes them differ from the reference's; with a blank before."""
    reach = tables.reachable(rows)
    if reach["SRS-MDEQ-3A"] >= reach[reference]:
        return ""
    return (
        f" The audit ends serialized radii at {bounds.shown(reach['SRS-MDEQ-3A'])}, those of {reference} end at "
        f"{bounds.shown(reach[reference])}: of an image whose votes are all for one class, all audited ones confirmed, that "
        f"alone is an RRD of {1 - reach['SRS-MDEQ-3A'] / reach[reference]:.3f}."
    )


def told_closer(gaps: np.ndarray) -> str:
    """RRDs of serialized votes minus those of standard ones, (images,), in words."""
    if not len(gaps):
        return "not to be had: no image has a radius by the reference"
    return (
        f"mean {change(gaps.mean(), *mean_interval(gaps))}, median {signed(np.median(gaps), 3)}; serialized is closer on "
        f"{(gaps < 0).sum()} of {plural(len(gaps), 'image')}, further on {(gaps > 0).sum()}"
    )


def correlation(results: Results) -> list[str]:
    """Of Figures 3, 6 and 7."""
    told, sources = [], []
    for size in ("small", "large"):
        key = results.report.sizes()[size].main
        sources.append((key, "consistency"))
        rows = results.rows(key, "consistency", THEOREM)
        bound, gap = mismatch(rows, "SRS-MDEQ-3A")
        audited, alpha = rows.loc[(rows["method"] == "SRS-MDEQ-3A") & (rows["n_a"] > 0), "n2"], rows["alpha"].iloc[0]
        least = np.array([bounds.theorem_3_1(n2, n2, n2, n2, alpha).p_m_upper for n2 in audited])
        told.append(
            f"{results.slot(size)}: with three steps p_m averages {told_rate(bound)} (were all audited votes "
            f"confirmed: {fixed(100 * least.mean(), 1) if len(least) else tables.BEYOND}), the true "
            f"mismatch rate {told_rate(bound - gap)} (means of the images' "
            f"rates); the bound fails on {tables.share(int((gap < 0).sum()), len(gap))} percent of {plural(len(gap), 'image')}."
        )
    return [*told, results.weaker(sources)]


def told_rate(rates: np.ndarray) -> str:
    """The mean of rates over the images in percent, with its interval."""
    return f"{tables.with_interval(rates.mean(), *mean_interval(rates, least=0.0), 1)} percent" if len(rates) else tables.BEYOND


def samples(results: Results) -> list[str]:
    """Of Figures 8 and 9."""
    told, sources = [], []
    for size in ("small", "large"):
        key = results.report.sizes()[size].main
        names = results.by_samples(key, "SRS-MDEQ-3A")
        sources += [(key, group) for _, group, _ in names.values()]
        told.append(f"{results.slot(size)}, {more_samples('SRS-MDEQ-3A', results.combined(names))}")
    return [*told, results.weaker(sources, "the paper has 500 images, and N = 1,000, 10,000 and 100,000 in these figures")]


def more_samples(row: str, rows: pd.DataFrame) -> str:
    """What more draws change for a row; ``rows`` has it by its numbers of draws, the fewest first."""
    least, *_, most = rows["method"].unique()
    reach = tables.reachable(rows)
    return (
        f"{row}: from {least} to {most} certified accuracy at r = 0 changes by "
        f"{points(*tables.paired_difference(rows, most, least))}, the ACR by {told_acr(rows, most, least)}, and the largest "
        f"radius that can be certified from {bounds.shown(reach[least])} to {bounds.shown(reach[most])}; K stays "
        f"{rows['k'].max():,}."
    )


def abstained(rows: pd.DataFrame) -> str:
    """On how many images each row abstains (Markdown)."""
    counts = (rows["prediction"] == ABSTAIN).groupby(rows["method"], sort=False).sum()
    told = "; ".join(f'"{row}" on {count}' for row, count in counts.items())
    return f"- Of {plural(rows['index'].nunique(), 'image')} these rows abstain: {told}."


def warmup(results: Results) -> list[str]:
    """Of Figures 10 to 12 and Table 24: the variants furthest from the reference and from one another."""
    small, large = (results.report.sizes()[size].main for size in ("small", "large"))
    slots = [results.slot("small"), results.slot("large")]
    lists = [
        (slots[0], (small, "warmup_steps"), "warm-up steps"),
        (slots[1], (large, "warmup_steps"), "warm-up steps"),
        (slots[0], (small, "warmup_solvers"), "warm-up solvers"),
        (slots[0], (small, "restart"), "restarts"),
    ]
    told = [f"{slot}, {what}: certified at r = 0 {_variants(results, source)}." for slot, source, what in lists]
    restarts = results.rows(small, "restart")
    return [
        *told,
        f"{slots[0]}: a warm-up for every batch, one turn of the chains, and so on every draw, in place of one in all changes "
        f"the ACR by {told_acr(restarts, 'every batch', 'never')}, for {tables.saved(restarts, 'never', 'every batch')} the "
        "evaluations of f.",
        f"{slots[1]}: a start at the previous draw's state in place of one at the clean image's changes the share "
        f"certified at r = 0 {_starts(results.rows(large, 'start'))}.",
        f"{slots[0]}: {_other_starts(results.rows(small, 'serialized_starts'))}",
        results.weaker([*(source for _, source, _ in lists), (large, "start"), (small, "serialized_starts")]),
    ]


def _variants(results: Results, source: Source) -> str:
    """The least and the most that a list's serialized rows certify at r = 0, their ACRs, the one furthest from the reference
    and the two furthest apart, with intervals that are simultaneous over all such pairs of the list."""
    every, reference = results.rows(*source), results.reference(*source)
    rows = every[every["method"] != reference]
    shares, acr = (values.groupby(rows["method"]).mean() for values in (certified(rows, 0.0), counted_radii(rows)))
    names = rows["method"].unique()
    ranges = f"{portion(shares.min())} to {portion(shares.max())} (ACR {fixed(acr.min(), 3)} to {fixed(acr.max(), 3)})"
    furthest = [_furthest(every, [(name, reference) for name in names]), _furthest(rows, list(combinations(names, 2)))]
    return "; ".join([ranges, *furthest])


def _furthest(rows: pd.DataFrame, pairs: list[tuple[str, str]]) -> str:
    """Which of ``pairs`` of rows are furthest apart at r = 0, with an interval that is simultaneous over all of them."""
    found = tables.simultaneous(tables.paired_difference, rows, pairs)
    (first, second), others = tables.furthest(found)
    most = found[first, second]
    named = f'"{first}" minus "{second}"' if most[0] else "no two apart on balance,"
    more = f" ({plural(others, 'pair')} more as far)" if most[0] and others else ""
    return f"{named} {points(*most)}{more}, simultaneous over {plural(len(pairs), 'pair')}"


def _starts(rows: pd.DataFrame) -> str:
    """What the previous draw's state is worth for a start, with one step and with three."""
    told = []
    for steps, row in (("one step", "SRS-MDEQ-1A"), ("three steps", "SRS-MDEQ-3A")):
        both = f"{row} previous start", f"{row} clean start"
        told.append(f"by {points(*tables.paired_difference(rows, *both))} with {steps}, the ACR by {told_acr(rows, *both)}")
    return "; ".join(told)


def _other_starts(rows: pd.DataFrame) -> str:
    """By how much the other starts change the ACR."""
    others = [row for row in rows.loc[rows["k"] > 0, "method"].unique() if row != "previous draw"]
    if not others:
        return "no other start than the previous draw's state was tried."
    found = tables.simultaneous(tables.acr_difference, rows, [(row, "previous draw") for row in others])
    told = [f"{row} {change(*difference)}" for (row, _), difference in found.items()]
    return (
        f"ACR minus that of one Anderson step from the previous draw's state, simultaneous intervals: {'; '.join(told)}. "
        "Broyden's rows take two steps a draw."
    )


def training_variants(
    attack: tuple[int, int],
    attacked: Mapping[float, tables.Difference],
    variants: pd.DataFrame,
    regular: Mapping[str, Mapping[float, tables.Difference]],
    jacobian: pd.DataFrame,
) -> list[str]:
    """Of Tables 5 and 7: SmoothAdv ("adv" in names of rows; ``attack``: its first epoch of so many) and ``consistency``,
    against Gaussian augmentation alone ("standard"), ``attacked`` by radius; and training without Jacobian regularization,
    ``regular`` by row and radius."""
    images = variants["index"].nunique()
    gained = [f"{r:g}" for r, (_, low, _) in attacked.items() if low > 0]
    lost = [f"{r:g}" for r, (_, _, high) in attacked.items() if high < 0]
    acr = [f"{how} {told_acr(variants, f'MDEQ-30A {how}', 'MDEQ-30A standard')}" for how in ("adv", "consistency")]
    without = [
        f"{points(*found[0.0])} for {row}, its ACR by {told_acr(jacobian, f'{row} without Jacobian', f'{row} with Jacobian')}"
        for row, found in regular.items()
    ]
    return [
        f"MDEQ-30A trained by SmoothAdv (attacks from epoch {attack[0]} of {attack[1]} on) "
        "certifies more than the network trained with Gaussian augmentation at "
        f"{'r = ' + ', '.join(gained) if gained else 'no radius'}, and less at {'r = ' + ', '.join(lost) if lost else 'none'}, "
        f"of {len(attacked)} within reach, beyond simultaneous intervals: on {plural(images, 'image')} "
        f"{told_least(images, 0.05 / max(1, len(attacked)))}.",
        f"One training of each; the ACR minus that of MDEQ-30A with Gaussian augmentation alone: {'; '.join(acr)}.",
        "Without Jacobian regularization the share certified at r = 0 changes by "
        f"{'; '.join(without)} (the shares' intervals are simultaneous over the radii that both rows reach).",
    ]


def which_to_pick(rows: pd.DataFrame, deq: str, network: str, right: tuple[int, int], images: int) -> str:
    """Which of a ``deq``'s row and a plain ``network`` a user should pick, by ACR and, on equally many draws, by seconds of one
    machine (twice as many: paces are no closer); ``rows`` has both. Or that the network is too little trained to say:
    ``right``: on how many of as many held-out noisy ``images`` the DEQ is and the network."""
    if says_little(right[1], right[0], images):
        return (
            f"Little can be said of {network}: as trained here it is right on {tables.share(right[1], images)} percent of "
            f"{images} held-out noisy images, the DEQ on {tables.share(right[0], images)}."
        )
    rows = rows[rows["method"].isin([deq, network])]
    _, low, high = tables.acr_difference(rows, network, deq)
    better = network if low > 0 else deq if high < 0 else ""
    unlike = ""
    if rows["n"].nunique() > 1:
        unlike = "their N differ"
    elif rows["seconds"].isna().any():
        unlike = "for other machines measured them"
    time, told = 1.0, f"not told, {unlike}"
    if not unlike:
        time, spent = tables.speed_up(rows, network, deq, "seconds")[0], rows.groupby("method")["seconds"].mean()
        told = f"{tables.saved(rows, network, deq, 'seconds')} ({spent[network]:.2f} s against {spent[deq]:.2f} s an image)"
    faster = network if time >= 2 else deq if time <= 0.5 else ""
    picked = f"pick {better}" if better else "either will do"
    if faster and not better:
        picked = f"pick {faster}, which is faster; neither is shown to certify more"
    if not better and all(shows_no_loss(part) for _, part in rows.groupby("method")):
        picked = "nothing can be told, for neither certifies enough for a difference to show"
    if better and faster and better != faster:
        picked = f"{better} certifies more, {faster} is faster: what counts for the user decides"
    return (
        f"{network} against {deq}, one training of each: ACR {told_acr(rows, network, deq)}; "
        f"speed-up in seconds {told}. So, of these two as trained here, for certificates alone: {picked}."
    )


def says_little(network: int, deq: int, images: int) -> bool:
    """Whether a plain network is too little trained here to speak for its kind: on how many of as many held-out noisy
    ``images`` it is right, and a DEQ."""
    return bounds.clopper_pearson_interval(network, images, 0.05)[1] < deq / images


def baselines(rows: pd.DataFrame, right: dict[str, int], images: int) -> list[str]:
    """Of Table 4: against plain networks; ``right``: on how many of as many held-out noisy ``images`` each is."""
    told = []
    for network in (name for name in right if name.startswith("ResNet")):
        difference = tables.against(tables.paired_difference(rows, "SRS-MDEQ-3A", network), network)
        picked = which_to_pick(rows, "SRS-MDEQ-3A", network, (right["MDEQ-30A"], right[network]), images)
        told.append(f"SRS-MDEQ-3A at r = 0: {difference}. {picked}")
    return told
