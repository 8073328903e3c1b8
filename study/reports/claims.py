"""The claims of data/claims.yaml, and what a profile's results say of them.

*Confirmed*: the whole 95 % interval lies where the claim says. *Contradicted*: the whole interval lies elsewhere. Otherwise
*not decided at this size*, or, where no size could decide it, *cannot be judged*. A claim of "always" or "never" is
contradicted by one counterexample. Thresholds stand in the file, tests here: one function a quantity, which says what it
measures and how its interval is made.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import Field, field_validator

from srs.certificates import bounds
from srs.common.settings import Section
from srs.training.train import Training
from srs.votes.samplers import Sampler
from study.common import params_file
from study.known_answers import known_answers
from study.reports import tables
from study.reports.items import stands_in
from study.reports.numbers import change, decimals, interval, lie, listed, percent, plural, points, signed
from study.reports.reach import N, reach
from study.reports.results import (
    SIZE_NAMES,
    THEOREM,
    Results,
    draws_told,
    mismatch,
    relative_radius_differences,
    right_held_out,
)
from study.reports.statistics import certified, difference_interval, joint_ratio, paired_interval, ratio_interval
from study.reports.takeaways import FEW, says_little, told_acr
from study.speed import Speed
from study.speed import timed as timed_runs
from study.votes.plan import known
from study.votes.rows import plain

FILE = Path("data/claims.yaml")
CONFIRMED, CONTRADICTED, UNDECIDED = "confirmed", "contradicted", "not decided at this size"
UNKNOWN, ABSENT = "cannot be judged", "not in this profile"
VERDICTS = (CONFIRMED, CONTRADICTED, UNDECIDED, UNKNOWN, ABSENT)
LEVEL = 0.05  # of every interval
MOST_IMAGES = 10_000  # that are looked at to find how many could decide a claim

Interval = tuple[float, float]


class Place(Section):
    """A row of the list ``draws`` (None: the main one) of what the section ``report`` names ``of``."""

    of: str
    draws: str | None = None
    row: str = "reference"


class Claim(Section):
    """An entry of data/claims.yaml, which says what its fields mean."""

    claim: str
    source: str
    quantity: str
    whose: Literal["the paper", "ours"] = "the paper"
    models: list[Literal["small", "large", "imagenet"]] = []
    draws: str | None = None
    row: Place | str = "reference"
    against: Place | str = "reference"
    r: float | Literal["reach", "sigma"] = Field(0.0)
    least: float | None = None
    most: float | None = None

    @field_validator("quantity")
    def _there_is_a_test(cls, quantity: str) -> str:
        return known("quantity", quantity, QUANTITIES)

    def limits(self) -> Interval:
        return (-math.inf if self.least is None else self.least, math.inf if self.most is None else self.most)


@dataclass(frozen=True)
class Finding:
    """What was measured, in words, its verdict, on how many ``images`` (or runs), how many at least could confirm it (None: not
    known before the spread is), and on how many trainings of a network it rests (0: on none)."""

    told: str
    verdict: str
    images: int | None = None
    needed: int | None = None
    trainings: int = 1


class Absent(Exception):
    """A profile that has not what a claim is about."""


class NoLoss(Exception):
    """A profile in which a loss could not show."""


def read() -> list[Claim]:
    """All claims. Raises ValueError for an entry that is none."""
    return [Claim(**entry) for entry in yaml.safe_load(params_file.text(FILE))["claims"]]


def judge(claim: Claim, results: Results) -> Iterator[dict]:
    """A claim judged: a line for each of its models."""
    for model in claim.models or [None]:
        try:
            case = _Case(claim, results, model)
            found, data = QUANTITIES[claim.quantity](case), case.data()
        except Absent as absent:
            found, data = Finding(str(absent), ABSENT, trainings=0), ""
        except NoLoss as none:
            found, data = Finding(str(none), UNDECIDED, trainings=case.trainings), case.data()
        yield {
            "claim": claim.claim.format(model=SIZE_NAMES.get(model, "")),
            "whose": claim.whose,
            "source": claim.source,
            "found": found.told,
            "verdict": found.verdict,
            "data": data,
            "images": found.images,
            "needed": found.needed,
            "trainings": found.trainings,
        }


def table(results: Results, claims: Iterable[Claim] | None = None) -> pd.DataFrame:
    """All claims judged: claim, whose, source, found, verdict, data (where it is a stand-in), images, needed, trainings."""
    lines = pd.DataFrame([line for claim in (read() if claims is None else claims) for line in judge(claim, results)])
    lines.index = range(1, len(lines) + 1)
    return lines.astype({"images": "Int64", "needed": "Int64"})


def decided(lines: pd.DataFrame) -> dict[str, int]:
    """The tally of a :func:`table`: the paper's claims by verdict."""
    counts = lines.loc[lines["whose"] == "the paper", "verdict"].value_counts()
    return {name: int(counts.get(name, 0)) for name in VERDICTS}


def read_tally(lines: pd.DataFrame) -> list[str]:
    """:func:`decided` in words; and how many of the verdicts are on stand-in data, which cannot settle the paper's claims."""
    tally = {verdict: count for verdict, count in decided(lines).items() if count}
    told = [f"Of the paper's {sum(tally.values())} claims: {_counts(tally)}."]
    settled = lines[(lines["whose"] == "the paper") & lines["verdict"].isin([CONFIRMED, CONTRADICTED])]
    for_us = settled[settled["data"] != ""]
    if for_us.empty:
        return told
    names = listed(list(dict.fromkeys(name for data in for_us["data"] for name in data.split(", "))))
    theirs = settled[settled["data"] == ""]["verdict"].value_counts()
    told.append(
        f"On {names}, which stand in for the paper's images and cannot settle its claims: "
        f"{_counts(for_us['verdict'].value_counts())}; by arithmetic, where the truth is known, or on the paper's own data: "
        f"{_counts(theirs) or 'none'}."
    )
    return told


def _counts(tally: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in tally.items())


def verdict(intervals: Iterable[Interval], least: float = -math.inf, most: float = math.inf) -> str:
    """Where intervals lie: all within [least, most], one wholly outside, or neither."""
    intervals = list(intervals)
    if np.isnan(intervals).any():
        return UNDECIDED
    if any(high < least or low > most for low, high in intervals):
        return CONTRADICTED
    return CONFIRMED if all(low >= least and high <= most for low, high in intervals) else UNDECIDED


def _agreed(one: str, other: str) -> str:
    """The verdict of two looks at a claim: that of both, none where one contradicts the other."""
    if {one, other} == {CONFIRMED, CONTRADICTED}:
        return UNKNOWN
    return one if one == other else UNDECIDED


def never(events: int, images: int, most: float, said: str = "{}") -> Finding:
    """A claim that something never happens, from the images where it might have: contradicted by one, confirmed where a
    rate above ``most`` is ruled out. ``said``: a sentence, with {} for on how many images it did."""
    if images == 0:
        return Finding("no image to judge by", UNDECIDED, 0, _least_without(most))
    low, high = bounds.clopper_pearson_interval(events, images, LEVEL)
    found = CONTRADICTED if events else CONFIRMED if high <= most else UNDECIDED
    told = f"{events} of {images} images (rate {interval(low, high, 3)})"
    return Finding(said.format(told), found, images, _least_without(most))


def least_images(least: float, most: float, level: float = LEVEL) -> int | None:
    """On how many images a difference within [least, most] could be confirmed: were the two rows alike on all of them or, where
    that is no such difference, apart on all. None where not even MOST_IMAGES could."""

    def interval(images: int) -> Interval:
        return paired_interval(images * (least >= 0), images * (most <= 0), images, level)

    return _fewest(interval, (least, most))


def _fewest(interval: Callable[[int], Interval], limits: Interval) -> int | None:
    """The fewest images on which an interval confirms a claim; None where not even MOST_IMAGES are enough."""
    return next((n for n in range(2, MOST_IMAGES + 1) if verdict([interval(n)], *limits) == CONFIRMED), None)


def _least_without(most: float) -> int:
    """How many images without an event rule out a rate above ``most``."""
    return math.ceil(math.log(LEVEL / 2) / math.log1p(-most))


class _Case:
    """One claim about one model, and where its rows are. Raises Absent where the profile has them not."""

    def __init__(self, claim: Claim, results: Results, model: str | None):
        self.claim, self.results, self.model = claim, results, model
        self.sizes, self.keys, self.trainings = results.report.sizes(), [], 1
        self.key = self.run(model) if model else None

    def rows(self, key: str, draws: str | None, design: str = "") -> pd.DataFrame:
        """Certificates that a claim is judged by, which the page rests on."""
        self.results.note([(key, draws)], design)
        return self.results.rows(key, draws, design)

    def run(self, of: str) -> str:
        """The run that the section report names so."""
        key = self.sizes[of].main if of in self.sizes else getattr(self.results.report, of, None)
        if key not in self.results.plans.plans:
            raise Absent(f"no run for report.{of}")
        self.keys.append(key)
        return key

    @property
    def reference(self) -> str:
        return self.results.reference(self.key, self.list_of(self.key, self.claim.draws))

    def list_of(self, key: str, draws: str | None) -> str | None:
        """The list of rows by that name, if the run has it."""
        plan = self.results.plans[key]
        if draws is not None and not any(draws in (name, group.kind) for name, group in plan.groups.items()):
            raise Absent(f"no draws {draws} of {key}")
        return draws

    def place(self, place: Place | str) -> tuple[str, str | None, str]:
        """Run, list of rows and row."""
        if isinstance(place, str):
            place = Place(of=self.model, draws=self.claim.draws, row=place)
        key = self.run(place.of)
        draws = self.list_of(key, place.draws)
        row = place.row
        if row in ("reference", "standard") or "{solver}" in row:
            reference = self.results.reference(key, draws)
            named = {"reference": reference, "standard": plain(reference)}
            row = named.get(row) or row.format(solver=plain(reference)[-1])
        if row not in self.results.samplers(key, draws):
            draws = None if place.draws else self.results.shared([key], [row])  # another list of that run
            if draws is None:
                raise Absent(f"no row {row} of {key}")
        return key, draws, row

    def pair(self, most_draws: bool = False) -> tuple[str, str, list[pd.DataFrame]]:
        """The two rows' names and their certificates: a table for each training that has both in one list, in the first that
        all trainings have; or one, of the run itself. ``most_draws``: in the run's list of most draws, where one has more."""
        one, other = self.place(self.claim.row), self.place(self.claim.against)
        if isinstance(self.claim.row, str) and isinstance(self.claim.against, str) and one[1] != other[1]:
            shared = self.results.shared([one[0]], (one[2], other[2]))
            if shared is None:
                raise Absent(f"no list of {one[0]} has both {one[2]} and {other[2]}")
            one, other = (one[0], shared, one[2]), (one[0], shared, other[2])
        names = [where[2] if one[2] != other[2] else f"{where[0]}'s {where[2]}" for where in (one, other)]
        places = [dict(zip(names, (one, other)))]
        trainings = self.results.trainings(one[0])
        if one[:2] == other[:2] and len(trainings) > 1:
            shared = self.results.shared(trainings, (one[2], other[2]), one[1])
            if shared is not None:
                places = [{row: (key, shared, row) for row in names} for key in trainings]
        if most_draws:
            key, draws, _ = places[0][names[0]]
            groups = self.results.plans[key].groups
            having = [name for name, group in groups.items() if {*names} <= {*group.samplers}]
            longest = max(having, key=lambda name: groups[name].n, default=None)
            if longest and groups[longest].n > groups[self.results.plans[key].group(draws)].n:
                places = [{row: (key, longest, row) for row in names}]
        self.results.note([where[:2] for place in places for where in place.values()])
        self.trainings = len(places)
        return *names, [self.results.combined(place) for place in places]

    def radius(self, rows: pd.DataFrame, row: str, other: str) -> float:
        """Where accuracies are compared. Raises NoLoss where ``other`` certifies next to nothing at all of them."""
        radii, r = self.results.radii(self.keys[0]), self.claim.r
        if r == "sigma":
            return min(self.results.sigma(self.keys[0]), radii[-1])
        if r != "reach":
            return r
        within = [q for q in radii if 0 < q <= tables.reachable(rows)[row]]
        if not within:
            raise NoLoss(f"no loss could show: no radius of ours is within the reach of {row}")
        shares = {q: certified(rows[rows["method"] == other], q).mean() for q in within}
        told = [q for q, share in shares.items() if share >= FEW]
        if not told:
            few = f"fewer than {percent(FEW)} at r = {within[0]:g} and beyond"
            raise NoLoss(f"no loss could show: {other} certifies {few}, within the reach of {row}")
        return max(told)

    def data(self) -> str:
        """Which stand-ins the runs that were looked at were trained on."""
        names = dict.fromkeys(self.results.dataset(key).name for key in self.keys)
        return ", ".join(name for name in names if stands_in(name))


def _speed_up(case: _Case) -> Finding:
    """The ratio of the summed evaluations of f of ``against`` and ``row``, its interval over the images; over trainings and
    images where there are several (:func:`study.reports.statistics.joint_ratio`). With fewer draws than the paper's it is a
    lower bound, for warm-up and audit do not grow with them, and contradicts nothing: so it is taken where there are most.
    Where the stage `speed` has timed certificates of both, on two images or more, their seconds must say the same."""
    row, other, trainings = case.pair(most_draws=True)
    rows = pd.concat(trainings, keys=range(len(trainings)), names=["training", None])
    spent = rows.pivot_table(index="training", columns=["method", "index"], values="evaluations")
    slow, fast = spent[other], spent[row]
    if len(trainings) == 1:
        ratio, low, high = ratio_interval(slow.iloc[0], fast.iloc[0])
    else:
        ratio, low, high = joint_ratio(slow.to_numpy(), fast.to_numpy())
    table = {"large": "table1", "small": "table2", "imagenet": "table3"}[case.model]
    published = [case.results.published[table].get(name, {}).get("seconds") for name in (other, row)]
    k = rows.loc[rows["method"] == row, "k"].max()
    told = f"{other} takes {tables.times(ratio, low, high)} the evaluations of f of {row}, warm-up and audit included, at "
    told += f"N = {rows['n'].iloc[0]:,} and K = {k:,}"
    if rows["n"].iloc[0] < N and not math.isnan(low):
        told += f" (at the paper's N = {N:,} the same audit and warm-up would weigh less)"
        high = math.inf
    judged, images = verdict([(low, high)], *case.claim.limits()), rows["index"].nunique()
    timed = _timed(case, row, other)
    if timed is not None:
        told, judged = f"{told}; {timed[0]}", _agreed(judged, timed[1])
    if all(published):
        told += f"; published, in seconds at N = {N:,}: {published[0] / published[1]:.1f} times"
    told += ": evaluations say one thing and seconds another" if judged == UNKNOWN else ""
    return Finding(told + _beside_stopping(case, row), judged, images, trainings=len(trainings))


def _beside_stopping(case: _Case, row: str) -> str:
    """What is left of a speed-up beside the baselines that stop, in the run's main list; with a semicolon before."""
    reference = case.results.reference(case.key)
    if row not in case.results.samplers(case.key):
        return ""
    main = case.rows(case.key, None)
    ratios = tables.saved_beside_all(main, row, reference)
    if list(ratios) == [plain(reference)]:
        return ""
    told = listed([f"{other} {ratio}" for other, ratio in ratios.items()])
    return f"; not judged: in the main list, N = {main['n'].iloc[0]:,}, beside {told}"


def _timed(case: _Case, row: str, other: str) -> tuple[str, str] | None:
    """What whole certificates of the claim's run took in turns, and what that says of the claim; None where two images or more
    of both rows were not timed."""
    if not (case.results.layout.runs / "speed" / case.key).is_dir():
        return None
    runs = timed_runs(case.results.layout, case.key)
    if not {row, other} <= set(runs["method"]) or runs["index"].nunique() < 2:
        return None
    ratio, low, high = tables.timed_speed_up(runs, row, other)
    n, images = runs["n"].max(), plural(runs["index"].nunique(), "image")
    stopping = [name for name in tables.baselines(other, runs["method"].unique()) if name != other]
    beside = [f"{tables.times(*tables.timed_speed_up(runs, row, name))} beside {name}" for name in stopping]
    draws = f"N = {n:,} and K = {Speed(**case.results.speed).audit:,}"
    told = f"{tables.times(ratio, low, high)} its seconds for whole certificates at {draws} of {images}, in turns on "
    told += f"{runs['hardware'].iloc[0]}{f' (not judged: {listed(beside)})' if beside else ''}"
    return told, verdict([(low, math.inf if n < N else high)], *case.claim.limits())


def _certified_accuracy(case: _Case) -> Finding:
    """``row`` minus ``against`` at r, paired by image, with an interval that holds trainings, too, where there are several
    (:func:`study.reports.tables.joint_difference`)."""
    row, other, trainings = case.pair()
    r = case.radius(pd.concat(trainings), row, other)
    found = _difference(case, row, other, trainings, r, _said_beside(case, trainings[0], row, other))
    resnet = case.results.report.resnet
    if resnet in case.keys and _too_little_trained(case, resnet):
        return replace(found, told=f"{found.told}: as {resnet} is trained here, that says little of it", verdict=UNKNOWN)
    return found


def _too_little_trained(case: _Case, plain: str) -> bool:
    """Whether a plain network is worse than the claim's other networks on held-out noisy images."""
    right, images = right_held_out(case.results, plain)
    return says_little(right, max(right_held_out(case.results, key)[0] for key in case.keys), images)


def _difference(case: _Case, row: str, other: str, trainings: list[pd.DataFrame], r: float, more: str = "") -> Finding:
    found = tables.joint_difference(trainings, row, other, r)
    limits, images = case.claim.limits(), trainings[0]["index"].nunique()
    told = f"r = {r:g}: {row} against {other}: {points(*found, marks=(0, *limits))}, {draws_told(trainings[0])}{more}"
    where = " of the first training" if len(trainings) > 1 else ""
    told += f"; not judged: the ACR{where}, {told_acr(trainings[0], row, other)}"
    return Finding(told, verdict([found[1:]], *limits), images, least_images(*limits), len(trainings))


def _said_beside(case: _Case, rows: pd.DataFrame, row: str, other: str) -> str:
    if case.claim.r == "reach":
        limit = bounds.shown(tables.reachable(rows)[row])
        at = f"{other} certifies at least {percent(FEW)} of the images"
        return f"; that r is the largest of the tables' radii within its audit's reach, {limit}, at which {at}"
    if case.results.report.resnet in case.keys:  # how well a baseline is trained decides what a difference says
        counts = {key: right_held_out(case.results, key) for key in case.keys}
        last = ", ".join(f"{key} {tables.share(right, images)} percent of {images}" for key, (right, images) in counts.items())
        return f"; right on held-out noisy images: {last}"
    if case.claim.r != "sigma":
        return ""
    told, training = "; judged at r = sigma alone", Training(**case.results.schedule(case.keys[0]))
    if training.adversary is not None:
        told += f"; attacked in training from epoch {training.adversary.first_epoch + 1} of {training.epochs} on"
    return told


def _all_pairs(case: _Case) -> Finding:
    """All pairs of a list's serialized rows at r = 0, those apart that differ in their solver, too, where the list varies
    what warms up: simultaneous intervals (Bonferroni)."""
    key, draws = case.key, case.list_of(case.key, case.claim.draws)
    samplers = {name: s for name, s in case.results.samplers(key, draws).items() if s.audited}
    pairs = [(a, b) for a, b in combinations(samplers, 2) if samplers[a].solver == samplers[b].solver]
    if not pairs:
        raise Absent(f"no two serialized rows of {key} by one solver, in that list")
    rows = case.rows(key, draws)
    found = tables.simultaneous(tables.paired_difference, rows, pairs, LEVEL)
    limits = case.claim.limits()
    against = [pair for pair in pairs if verdict([found[pair][1:]], *limits) == CONTRADICTED]
    (a, b), equal = tables.furthest(found, against)
    alike = "" if len({s.solver for s in samplers.values()}) == 1 else " that share their solver"
    most = f'"{a}" against "{b}"' + (f" ({equal} more as far)" if equal else "")
    which = f"of {plural(len(pairs), 'pair')}{alike}"
    if against:
        what = f"{len(against)} {which} {lie(len(against))} outside, the farthest {most}"
    else:
        what = f"the most {which}, {most}" if found[a, b][0] else f"none {which} differs on balance"
    told = f"r = 0: {what}: {points(*found[a, b], marks=(0, *limits))}, simultaneous intervals (Bonferroni), {draws_told(rows)}"
    told += _told_selection(rows, samplers)
    radii = tables.simultaneous(tables.acr_difference, rows, pairs, LEVEL)
    (c, d), _ = tables.furthest(radii)
    most = f'most by {change(*radii[c, d])}, "{c}" against "{d}"'
    if abs(radii[c, d][0]) < 5e-4:  # 0.000 in print
        most = "apart by less than 0.0005 in all pairs" if radii[c, d][0] else "the same in all pairs"
    told += f"; not judged: the ACR, {most}"
    judged = verdict([f[1:] for f in found.values()], *limits)
    return Finding(told, judged, rows["index"].nunique(), least_images(*limits, LEVEL / len(pairs)))


def _told_selection(rows: pd.DataFrame, samplers: Mapping[str, Sampler]) -> str:
    """Where all draws that choose the class are of every row's warm-up: that a poor one chooses poorly; with a comma before."""
    n0 = int(rows["n0"].iloc[0])
    if all(sampler.warm_draws >= n0 for sampler in samplers.values()):
        return f", all n0 = {n0} draws that choose a class being of the warm-up"
    return ""


def _samples(case: _Case) -> Finding:
    """The row with most draws minus that with fewest at r = 0, paired by image."""
    key = case.key
    case.list_of(key, case.claim.draws)
    names = case.results.by_samples(key, case.claim.row)
    case.results.note([(key, group) for _, group, _ in names.values()])
    rows, (least, *_, most) = case.results.combined(names), list(names)
    limits = tables.reachable(rows)
    more = f"; the largest reachable radius grows from {bounds.shown(limits[least])} to {bounds.shown(limits[most])}"
    return _difference(case, most, least, [rows], 0.0, more)


def _negative_gaps(case: _Case) -> Finding:
    """Images where Theorem 3.1's p_m, as printed, is below the mismatch rate among the votes counted."""
    key, draws, row = case.place(case.claim.row)
    gaps = mismatch(case.rows(key, draws, THEOREM), row)[1]
    said = "negative for {}, audited at random (the released code audits the first batch)"
    return never(int((gaps < 0).sum()), len(gaps), case.claim.most, said)


def _radius_difference(case: _Case) -> Finding:
    """Mean over the images of RRD(row) - RRD(against), both to the reference; Student's t. As few images with small radii can
    make that mean, the share of images that differ which are closer (a sign test, exact) must say the same."""
    key, draws, row = case.place(case.claim.row)
    other, rows = case.place(case.claim.against)[2], case.rows(key, draws)
    closer = relative_radius_differences(rows, row, case.reference) - relative_radius_differences(rows, other, case.reference)
    if not len(closer):
        return Finding("no image has a radius by the reference", UNDECIDED, 0)
    low, high = difference_interval(closer, LEVEL)
    smaller, differing = int((closer < 0).sum()), int((closer != 0).sum())
    signs = bounds.clopper_pearson_interval(smaller, differing, LEVEL) if differing else (0.0, 1.0)
    shares = [100 * share for share in signs]
    told = (
        f"the RRD of {row} minus that of {other}: on average {change(closer.mean(), low, high)}, median "
        f"{signed(float(np.median(closer)), 3)}; smaller for "
        f"{smaller} of {differing} images that differ ({interval(*shares, decimals(*shares, marks=[50]), ' %')})"
    )
    judged = _agreed(verdict([(low, high)], *case.claim.limits()), verdict([signs], least=0.5))
    told += ": the mean says one thing and most images another" if judged == UNKNOWN else ""
    reach = tables.reachable(rows)
    ends = listed([f"{bounds.shown(reach[name])} ({name})" for name in (row, other, case.reference)])
    return Finding(f"{told}; {draws_told(rows)}, with which radii end at {ends}", judged, len(closer))


def _change_of_loss(case: _Case) -> Finding:
    """Certified by ``row`` minus certified by its reference at r = 0, minus the same of ``against``: mean over the images that
    both have; :func:`change_interval`."""
    losses, names = [], []
    for place in (case.claim.row, case.claim.against):
        key, draws, row = case.place(place)
        rows = case.rows(key, draws)
        held = certified(rows, 0.0).groupby([rows["index"], rows["method"]]).first().unstack().astype(int)
        losses.append(held[row] - held[case.results.reference(key, draws)])
        names.append(f"{key}'s {row}")
    change = (losses[0] - losses[1]).dropna()
    interval, limits = change_interval(change), case.claim.limits()
    told = (
        f"r = 0: what {names[0]} certifies minus what its reference does, minus the same of {names[1]}: "
        f"{points(change.mean(), *interval, marks=limits)} (the sum of two paired intervals at 97.5 % each: of changes by at "
        "least one, and by two)"
    )
    needed = _fewest(lambda images: change_interval(np.zeros(images)), limits)
    return Finding(told, verdict([interval], *limits), len(change), needed)


def change_interval(change: Sequence[int]) -> Interval:
    """An interval of the mean of a change by -2, -1, 0, 1 or 2, which is P(change >= 1) - P(change <= -1) and the same for 2:
    the sum of a :func:`paired_interval` of each, at LEVEL / 2 (Bonferroni)."""
    change = np.asarray(change)
    counts = [(int((change >= size).sum()), int((change <= -size).sum())) for size in (1, 2)]
    (low, high), (least, most) = (paired_interval(*pair, len(change), LEVEL / 2) for pair in counts)
    return low + least, high + most


def _attacks(case: _Case) -> Finding:
    """Images with a certified radius of at least the smallest budget, on which an attack within it fooled the classifier."""
    results, key = case.results, case.key
    if key not in results.robustness["runs"]:
        raise Absent(f"no attacks on {key}")
    rows = case.rows(key, None)
    rows = rows[(rows["method"] == results.robustness["runs"][key]) & (rows["prediction"] == rows["label"])]
    found = pd.read_csv(results.layout.runs / "attacks" / f"{key}.csv")
    attacked = found[found["radius"] > 0]  # at 0: the image as it is
    certified = attacked["index"].map(rows.set_index("index")["radius"]).fillna(-1)
    within = attacked[attacked["radius"] <= certified]
    said = (
        "attacks within the certified radius fooled {} that are certified as what they show for at least the smallest budget, "
        f"r = {attacked['radius'].min():g} ({plural(len(within), 'attack')}; {plural(attacked['index'].nunique(), 'image')} "
        "attacked, those that smoothing names right; an abstention does not count)"
    )
    return never(within[within["fooled"]]["index"].nunique(), within["index"].nunique(), case.claim.most, said)


def _false_certificates(case: _Case) -> Finding:
    """The design's case with most false certificates, at the largest alpha, where the number of runs can tell: an exact
    interval for all cases together."""
    coverage = pd.read_csv(case.results.layout.runs / "coverage" / "coverage.csv")
    coverage = coverage[coverage["alpha"] == coverage["alpha"].max()]
    part = coverage[coverage["design"] == case.claim.row]
    worst, level = part.loc[part["rate"].idxmax()], LEVEL / len(part)
    low, high = bounds.clopper_pearson_interval(int(worst["false"]), int(worst["runs"]), level)
    alike = [case for case in part.loc[part["rate"] == worst["rate"], "case"] if case != worst["case"]]
    others = f"; as many in {listed(alike)}" if alike else ""
    named = f"worst case '{worst['case']}' ({known_answers(1, 1)[worst['case']].title}{others})"
    told = (
        f"{named if worst['false'] else 'no case has any'}: {worst['false']:,} of {worst['runs']:,} false at alpha = "
        f"{worst['alpha']:g} ({interval(low, high, 4)}, simultaneous over {len(part)} cases)"
    )
    at_random = case.claim.row.replace("first_batch", "random")
    other = coverage[coverage["design"] == at_random]
    if at_random != case.claim.row and len(other):
        most = other.loc[other["rate"].idxmax()]
        told += f"; not judged: audited at random, at most {most['false']:,} of {most['runs']:,} in a case"
    return Finding(told, verdict([(low, high)], most=worst["alpha"]), int(worst["runs"]), trainings=0)


def _published_radius(case: _Case) -> Finding:
    """The largest radius at which the published row certifies images, against what a perfect run of its N and K reaches."""
    published, k = case.results.published, 1_000
    ends = [reach("theorem_3_1", audit) for audit in (k, N)]
    accuracy = published["table2"][case.claim.row]["accuracy"]
    farthest = max(r for r, share in zip(published["cifar10_radii"], accuracy) if share > 0)
    told = (
        f"with N = {N:,} a perfect run ends at r = {bounds.shown(ends[0])} by an audit of K = {k:,}, at "
        f"{bounds.shown(ends[1])} by one of all draws (both rounded down; the table's K is not known to us); the table goes to "
        f"r = {farthest:g}"
    )
    return Finding(told, CONTRADICTED if farthest > max(ends) else CONFIRMED, trainings=0)


def _not_known(case: _Case) -> Finding:
    """A claim that rests on figures that are not known to us."""
    return Finding("the figures that it rests on are not known to us", UNKNOWN, trainings=0)


#: How each quantity is measured.
QUANTITIES: dict[str, Callable[[_Case], Finding]] = {
    "speed-up": _speed_up,
    "certified accuracy": _certified_accuracy,
    "all pairs of serialized rows": _all_pairs,
    "most against fewest samples": _samples,
    "negative gaps": _negative_gaps,
    "relative radius difference": _radius_difference,
    "change of a loss": _change_of_loss,
    "successful attacks": _attacks,
    "false certificates": _false_certificates,
    "published radius": _published_radius,
    "not known to us": _not_known,
}
