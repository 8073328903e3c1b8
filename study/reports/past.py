"""What the report past the paper says of the amortized row that was chosen on held-out images."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import special

from srs import models
from srs.certificates import bounds
from srs.certificates.at_radius import RadiusCertificate, RadiusTest
from srs.certificates.certify import CertifySettings, selected_class
from srs.deq.solvers import Solver
from srs.votes.samplers import UNDECIDED, CleanVote, Votes
from study.reports import tables
from study.reports.numbers import change, difference, listed, outward, percent, plural, points, signed
from study.reports.results import Results
from study.reports.statistics import average_certified_radius, certified
from study.reports.takeaways import least_lost, shows_no_loss, told_acr, told_least, told_share, truncated
from study.speed import methods_table, timed
from study.starts import Starts, held_out
from study.votes.rows import fast_row, stopped

_OVER = "speed over "


def choice(results: Results, key: str) -> str:
    """The amortized row that was chosen on held-out images."""
    tried = results.held_out(key)
    return tried.loc[tried["chosen"], "row"].iloc[0]


def speeds(results: Results, key: str) -> pd.DataFrame:
    """Seconds of whole certificates, a line a method, with the draws "n" of how many "certificates" of how many "images", the
    "hardware" and "torch" that were timed, and, in words, how many times as fast as each baseline: of sums, with its 95 %
    interval over the images."""
    runs = timed(results.layout, key)
    table = methods_table(runs, results.reference(key, "past"))
    for name in timed_baselines(table):
        table[over(name)] = [tables.times(*tables.timed_speed_up(runs, row, name)) for row in table["method"]]
    known = {name: "; ".join(map(str, runs[name].unique())) for name in ("hardware", "torch")}
    known |= {"n": runs["n"].max(), "certificates": len(runs) // len(table), "images": runs["index"].nunique()}
    return table.assign(**known)


def over(name: str) -> str:
    """The column of :func:`speeds` in which seconds are compared with a baseline's."""
    return _OVER + name


def timed_baselines(speed: pd.DataFrame) -> list[str]:
    """What seconds of :func:`speeds` are compared with."""
    return [name.removeprefix(_OVER) for name in speed.columns if name.startswith(_OVER)]


def baselines(reference: str) -> list[str]:
    """What votes' costs are held against: the reference, and the same solver stopped at its tolerance, if another."""
    return tables.baselines(reference, [stopped(reference)])


def read_speed(speed: pd.DataFrame, row: str) -> str:
    """How much faster a row is than what it is compared with."""
    fast = speed.set_index("method").loc[row]
    told = [f"{fast[over(name)]} as fast as {name}" for name in timed_baselines(speed)]
    return f"**{row}** is {listed(told)}, by {plural(int(fast['certificates']), 'certificate')} of each."


def read_methods(methods: Sequence[str]) -> str:
    """What is to be said of tests at one radius and of plain networks among ``methods``."""
    tests = "Rows within a radius: the test at it alone, which stops (the next section), of at most so many draws. "
    plain = "ResNets have random weights, which cost what trained ones do. "
    marks = {" within r = ": tests, "ResNet-": plain}
    return "".join(told for mark, told in marks.items() if any(mark in row for row in methods))


def read_worst(rows: pd.DataFrame, row: str, reference: str) -> str:
    """Where a row certifies least beside the reference, over all radii at which the certified accuracy of one of the two
    changes: simultaneous 95 % intervals."""
    both = rows[rows["method"].isin([row, reference])]
    radii = np.unique(both.loc[both["prediction"] == both["label"], "radius"])
    radii = radii if len(radii) else np.zeros(1)
    found = [tables.paired_difference(both, row, reference, r, alpha=0.05 / len(radii)) for r in radii]
    part = pd.DataFrame(found, columns=["difference", "lower", "upper"]).assign(r=radii)
    below, worst, images = part.loc[part["upper"] < 0, "r"], part.loc[part["difference"].idxmin()], both["index"].nunique()
    standard, least = both[both["method"] == reference], least_lost(images, 0.05 / len(radii))
    could = 0 if least is None else sum(int(certified(standard, r).sum()) >= least for r in radii)
    verdict = (
        f"none of {_radii(len(part))} shows it to certify less than {reference}; at "
        f"{'all' if could == len(radii) else could} of them {reference} certifies images enough for a loss to show: by "
        f"simultaneous intervals on {plural(images, 'image')} {told_least(images, 0.05 / len(radii))}"
        if below.empty
        else f"it certifies less than {reference}, at {len(below)} of {_radii(len(part))}, between "
        f"{bounds.shown(below.min())} and {bounds.shown(below.max())}"
    )
    return (
        f"**{row}**, chosen on held-out images: {verdict}; the least difference, first at r = {bounds.shown(worst['r'])}, is "
        f"{points(*worst[['difference', 'lower', 'upper']])} (simultaneous over all radii at which the certified accuracy of "
        "one of the two drops)."
    )


def _radii(count: int) -> str:
    return f"{count:,} {'radius' if count == 1 else 'radii'}"


def read_chosen(rows: dict[str, pd.DataFrame], chosen: dict[str, str], reference: str) -> list[str]:
    """The chosen row at each noise level: at r = 0 against the reference, its ACR against that of few steps from scratch and
    of serialized ones, and what it saves; and where the reference certifies next to nothing."""
    told, few, short, serialized = [], [], truncated(reference), fast_row(reference)
    for title, row in chosen.items():
        part = rows[title]
        difference = tables.against(tables.paired_difference(part, row, reference), reference)
        saved = [f"{name} {tables.saved(part, row, name)}" for name in baselines(reference)]
        told.append(f"{title}: {row} at r = 0: {difference}; evaluations of f, divided by its: {listed(saved)}.")
        if short in set(part["method"]):
            told[-1] += f" Its ACR minus that of {short}, which needs no audit either: {told_acr(part, row, short)}."
        if serialized in set(part["method"]):
            told[-1] += (
                f" Its ACR minus that of {serialized}, the paper's: {told_acr(part, row, serialized)}, for "
                f"{tables.saved(part, serialized, row)} its evaluations."
            )
        standard = part[part["method"] == reference]
        few += [f"{title} ({told_share(standard, 0.0)})"] if shows_no_loss(standard) else []
    return told + ([f"{reference} certifies too few images for a loss at r = 0 to show at {listed(few)}."] if few else [])


def read_control(rows: dict[str, pd.DataFrame], chosen: dict[str, str], trained_once: dict[str, str]) -> str:
    """How the ACR of the same layer, trained for one evaluation and no DEQ, differs from the chosen rows'."""
    found = _gains(rows, chosen, trained_once)
    if not found:
        return ""
    told = [f"{change(*gain)} at {title}" for title, gain in found.items()]
    return (
        "The ACR of the control (no DEQ: the same layer, trained to be evaluated once) minus the chosen row's is "
        f"{listed(told)}."
    )


def _gains(
    rows: dict[str, pd.DataFrame], chosen: dict[str, str], trained_once: dict[str, str]
) -> dict[str, tuple[float, float, float]]:
    """The control's ACR minus that of the chosen row, with its interval, where both are."""
    return {
        title: tables.acr_difference(rows[title], once, chosen[title])
        for title, once in trained_once.items()
        if title in chosen
    }


def _acr(rows: pd.DataFrame, row: str) -> str:
    return f"{average_certified_radius(rows[rows['method'] == row]):.3f}"


def against(rows: pd.DataFrame, row: str, other: str, radii: Sequence[float]) -> dict[str, str]:
    """A row beside another, on the same images: its ACR with the difference, and differences of certified accuracy."""
    limits, (gain, low, high) = tables.reachable(rows), tables.acr_difference(rows, row, other)
    line = {"against": other, f"ACR of {row}": _acr(rows, row)}
    line["ACR, difference"] = difference(gain, low, high, digits=3) if np.isfinite(low) else signed(gain, 3)
    for r in radii:
        within = r <= min(limits[row], limits[other])
        line[f"r = {r:g}"] = difference(*tables.paired_difference(rows, row, other, r), 100) if within else tables.BEYOND
    return line


def by_depth(results: Results, key: str, row: str, steps: Sequence[int]) -> pd.Series:
    """The accuracy of a row's network on noisy copies of held-out images where its layer is evaluated each of ``steps`` times
    (naive iteration), from the row's start."""
    sampler, starts = results.samplers(key, "past" if key in results.report.past else None)[row], results.layout.starts(key)
    deeper = {k: sampler.model_copy(update={"solver": Solver(method="naive", steps=k)}) for k in steps}
    model, images = models.load(results.layout.model(key), fitted=starts), results.dataset(key).validation
    table = held_out(model, images, results.sigma(key), deeper, sampler, Starts(**results.starts).copies)
    return table.set_index("row")["accuracy"]


def read_depth(
    rows: dict[str, pd.DataFrame],
    chosen: dict[str, str],
    tuned: dict[str, str],
    trained_once: dict[str, str],
    depths: pd.DataFrame,
) -> str:
    """Where the control beats the chosen rows, and those of DEQs that were ``tuned`` for one evaluation; and what another depth
    than in training does to it and to the chosen ones. ``depths``: a line for each pair of title and row, a column for each
    number of evaluations, one of which is 1."""
    told = [f"- Against the amortized DEQ the control's average certified radius is {_told_gains(rows, chosen, trained_once)}."]
    if tuned:
        told[0] += f" Against the DEQ trained on for one evaluation it is {_told_gains(rows, tuned, trained_once)}."
    moved = 100 * depths.sub(depths[1], axis=0).abs().max(axis=1)
    control = [place in trained_once.items() for place in depths.index]
    told.append(
        "- A DEQ with its start, at another depth than it is deployed at: with "
        f"{listed([str(k) for k in depths.columns if k != 1])} evaluations in place of one its accuracy moves by at most "
        f"{_up(moved[np.invert(control)].max())} points, that of the control by up to {_up(moved[control].max())}."
    )
    return "\n".join(told)


def _told_gains(rows: dict[str, pd.DataFrame], others: dict[str, str], trained_once: dict[str, str]) -> str:
    """Where the control's ACR is larger than the ``others``', by title, smaller, or neither."""
    verdicts: dict[str, list[str]] = {"larger": [], "smaller": [], "neither larger nor smaller beyond the interval": []}
    for title, (_, low, high) in _gains(rows, others, trained_once).items():
        verdict = list(verdicts)[0 if low > 0 else 1 if high < 0 else 2]
        both = f"{_acr(rows[title], trained_once[title])} against {_acr(rows[title], others[title])}"
        verdicts[verdict].append(f"{title} ({both})")
    return "; ".join(f"{verdict} at {', '.join(at)}" for verdict, at in verdicts.items() if at)


def _up(points: float) -> str:
    """An "at most": rounded up."""
    return f"{outward(points, points, 1)[1]:.1f}"


def draws_of_tests(cast: Sequence[Votes], settled: Sequence[RadiusCertificate], config: CertifySettings) -> pd.DataFrame:
    """What the test at a fixed radius draws for each image, a line an image, with its votes, at least n0 + n of them. "drawn"
    and "outcome": by the test that has ``settled`` it, with the draws that named a class; "with selection" and "its outcome":
    where the n0 draws of ``config`` select the class, and that class alone is tested, at all of alpha; "least": log(1 / alpha)
    / KL, which no test that always decides undercuts in the mean (Wald 1945), with the share of all votes for the class in
    place of p."""
    lines = []
    for votes, one in zip(cast, settled):
        selected = RadiusTest(one.r, config.model_copy(update={"selection": "clean"}), CleanVote(UNDECIDED, 1, 0))
        first, rest = np.split(votes.classes, [config.n0])
        selected.add(np.where((rest == selected_class(first)) & (rest != UNDECIDED), 0, UNDECIDED))
        share = (votes.classes == one.top).mean()
        apart = special.rel_entr(share, selected.p_0) + special.rel_entr(1 - share, 1 - selected.p_0)
        known = {"r": one.r, "drawn": one.n0 + one.drawn, "outcome": one.outcome}
        least = math.log(1 / config.alpha) / apart if apart else math.inf
        lines.append(known | {"with selection": config.n0 + selected.drawn, "its outcome": selected.outcome, "least": least})
    return pd.DataFrame(lines)


def read_draws(drawn: pd.DataFrame, n0: int) -> str:
    """:func:`draws_of_tests` of many images and radii in a sentence."""
    ours, theirs = drawn["drawn"].median(), drawn["with selection"].median()
    mean = drawn["drawn"].mean() / drawn["with selection"].mean()
    decided = drawn[drawn["outcome"].isin(["certified", "refuted"])]
    yes = [int((drawn[column] == "certified").sum()) for column in ("outcome", "its outcome")]
    decided = decided[np.isfinite(decided["least"])]
    ratio = decided["drawn"].mean() / decided["least"].mean()
    told = (
        f"For the {len(decided):,} that ours certifies or refutes it takes {ratio:.2f} times log(1 / alpha) / KL in the mean, "
        "all draws included: Wald's bound on the mean of a test that always decides (KL: the divergence of the class's share "
        "of all votes from the share that the radius asks for). Pairs that it leaves open, the longest, are not among these."
    )
    return (
        f"Over {plural(len(drawn), 'pair')} of image and radius the test takes {ours:,.0f} draws in the median; where {n0:,} "
        f"draws select the class, {theirs:,.0f}: ours needs {percent(ours / theirs)} of that, and in the mean "
        f"{percent(mean)}. It certifies {yes[0]:,} of the pairs, the other {yes[1]:,}. "
        f"{told if len(decided) else 'It decides none of them.'}"
    )
