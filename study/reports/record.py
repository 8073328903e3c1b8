"""The record set straight: what each estimator can certify, what the published rows rest on, and what audits cost."""

import math
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import pandas as pd

from srs.certificates import bounds
from srs.certificates.certify import standard_certificate
from study.reports import tables
from study.reports.numbers import fixed, interval, listed, outward, percent, plural
from study.reports.raw import RawVotes
from study.reports.reach import ALPHA, SIGMA, N, published_radii, reach
from study.reports.results import RELEASED_CODE, THEOREM, Results, by_estimator
from study.reports.sections import LEAST_AUDIT
from study.reports.statistics import average_certified_radius, counted_radii, ratio_interval, rejected
from study.reports.takeaways import told_truncated
from study.votes.rows import plain
from study.votes.table import EXACT, settings

FAST = "SRS-MDEQ-3A"
AUDIT = 1_000  # of Table 23
SHARES = (0.55, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)  # of Table 23
_RELEASED = f"SRS, released code ({tables.NO_GUARANTEE})"
_COLUMNS = {"finite_population": "SRS, exact bound", "theorem_3_1": "SRS, Theorem 3.1", "released_code": _RELEASED}


def read_reach(published: dict) -> str:
    """How far each estimator reaches, and how many published cells lie beyond the theorem."""
    rows, both = published_radii(published), (400, 1_000)
    told = {name: [bounds.shown(reach(name, k)) for k in both] for name in bounds.ESTIMATORS}
    beyond = [sum(r > reach("theorem_3_1", k) for radii in rows.values() for r in radii) for k in both]
    ends = listed([f"{few} and {many} by {tables.by(name)}" for name, (few, many) in told.items()])
    even = [bounds.shown(bounds.largest_radius(N, ALPHA, SIGMA, k)) for k in both]
    return (
        f"With K = 400 and K = 1,000 audited draws a perfect run ends at r = {ends} (rounded down; the exact "
        f"bound at its best split of alpha, in steps of 0.05: split evenly, as in our tables, at {' and '.join(even)}). Of the "
        f"{sum(map(len, rows.values()))} published cells known to us, of {len(rows)} different rows, in which a serialized "
        f"row certifies images at sigma = {SIGMA:g}, {beyond[0]} lie beyond the theorem with K = 400 and {beyond[1]} with "
        "K = 1,000."
    )


def cut_off(published: dict) -> pd.DataFrame:
    """Table 23: the radius by the share of votes for the class, by standard smoothing and each estimator, rounded down."""
    known, shown = published["table23"], {}
    for share in SHARES:
        votes, confirmed = round(share * N), round(share * AUDIT)
        serialized = {
            name: bounds.radius(bounds.serialized_bound(name, votes, N, confirmed, confirmed, ALPHA).p_a_lower, SIGMA)
            for name in bounds.ESTIMATORS
        }
        shown[f"{share:g}"] = {
            "standard": bounds.shown(bounds.radius(bounds.clopper_pearson_lower(votes, N, ALPHA), SIGMA)),
            **{_COLUMNS.get(name, f"SRS, {name}"): bounds.shown(radius) for name, radius in serialized.items()},
            "standard, alpha = 1/e": bounds.shown(bounds.radius(bounds.clopper_pearson_lower(votes, N, np.exp(-1)), SIGMA)),
            "published, standard": f"{known['standard']['ratio_1']:.3f}" if share == 1 else tables.NOT_KNOWN,
            "published, SRS": f"{known['srs']['ratio_1']:.3f}" if share == 1 else tables.NOT_KNOWN,
        }
    return pd.DataFrame.from_dict(shown, orient="index").rename_axis("votes for A, of N")


def read_cut_off(table: pd.DataFrame) -> str:
    """What the :func:`cut_off` radii say of the published ones."""
    top = table.loc["1"]
    off = {name: abs(float(top["published, SRS"]) - float(top[_COLUMNS[name]])) for name in ("released_code", "theorem_3_1")}
    return (
        f"With every vote for the class, alpha = {ALPHA:g} allows a radius of {top['standard']} to standard smoothing; the "
        f"published {top['published, standard']} is what alpha = 1/e gives ({top['standard, alpha = 1/e']}, rounded down). The "
        f"published {top['published, SRS']} for serialized votes differs by {off['released_code']:.3f} from what the released "
        f"code's scaling of both count and total gives ({top[_RELEASED]}), which is {tables.NO_GUARANTEE}, and by "
        f"{off['theorem_3_1']:.3f} from the theorem's ({top['SRS, Theorem 3.1']}; both rounded down here)."
    )


def worst_cases(coverage: pd.DataFrame) -> pd.DataFrame:
    """The case with most false certificates of each design and alpha; ``case`` names all that have as many, or none."""
    lines = []
    for _, part in coverage.groupby(["design", "alpha"], sort=False):
        worst = part[part["rate"] == part["rate"].max()]
        names = listed(list(worst["case"])) if worst["false"].iloc[0] else "none has any"
        lines.append(worst.iloc[0].to_dict() | {"case": names})
    return pd.DataFrame(lines).sort_values(["guarantee", "rate"], ascending=[False, True], kind="stable")


def read_coverage(coverage: pd.DataFrame) -> str:
    """How often guarantees are false, and certificates by the released code's estimator."""
    worst = worst_cases(coverage[coverage["alpha"] == coverage["alpha"].min()])
    held = worst[worst["guarantee"]]
    most, theirs = held.loc[held["rate"].idxmax()], worst[worst["design"] == "released_code, first_batch"].iloc[0]
    return (
        f"Where the truth is known, at alpha = {most['alpha']:g}, guarantees are false in at most {most['false']} of "
        f"{most['runs']:,} runs of a case; certificates by the released code's estimator, audited on the "
        f"first batch, in {theirs['false']:,} of {theirs['runs']:,} of its worst case."
    )


def _false_by_design(table: pd.DataFrame) -> dict[str, str]:
    """For each design how many runs are false at each alpha, in words."""
    return {
        name: listed([f"{row.false:,} of {row.runs:,} runs at alpha = {row.alpha:g}" for row in part.itertuples()])
        for name, part in table.groupby("design")
    }


def read_settled(settled: pd.DataFrame) -> str:
    """What chains of settled votes, which nobody audits, certify of the exact fixed point."""
    told = _false_by_design(settled)
    return (
        f"**Settled votes** in chains, without an audit, certify the fixed point falsely in {told['settled']}; settled by a "
        f"tenth of the bound on their distance from it ({tables.NO_GUARANTEE}) in {told['settled by a tenth of the bound']}."
    )


def read_rounding(rounding: pd.DataFrame) -> str:
    """What a classifier that reads low bits makes of noise in floating point, and of noise on the grid."""
    told = _false_by_design(rounding)
    return (
        f"**A classifier that reads low bits** is certified falsely in {told['noise added in single precision']}, where noise "
        f"is added in single precision, as is usual ({tables.NO_GUARANTEE}), and in {told['noise on the grid']}, where it lies "
        "on the grid, as all of ours does."
    )


def significantly_above(*found: pd.DataFrame) -> str:
    """How many shares of false certificates with a guarantee are above alpha, beyond chance."""
    held = pd.concat([table[table["guarantee"]] for table in found])
    above = held[rejected(held["p_value"])]
    named = "".join(f"; {row.design} at alpha = {row.alpha:g}, {row.false} of {row.runs:,}" for row in above.itertuples())
    return (
        f"Of {len(held)} shares of false certificates above with a guarantee (each of a case, a way to certify and an alpha; "
        f"without those beside the rate of mismatches), {len(above)} {'is' if len(above) == 1 else 'are'} significantly above "
        f"alpha{named} (one-sided exact binomial tests at 5 % for all together, by Holm's method)."
    )


def speed_up(k: int, steps: int = 3, full: int = 30, warmup: int = 10, chains: int = 400, n0: int = 100) -> float:
    """Of a serialized run at the paper's N with ``k`` audits, every vote for the class, in evaluations of f."""
    return full * (N + n0) / (steps * (N + n0) + (warmup - steps) * chains + full * k)


def least_audit(r: float) -> int | None:
    """The least K with which a perfect serialized run has a true certificate at ``r``; None where not even N is enough."""
    if reach("finite_population", N) < r:
        return None
    return 1 + bisect_left(range(1, N + 1), r, key=lambda k: reach("finite_population", k))


def read_price(published: dict, radii: Sequence[float] = (1.25, 1.5)) -> str:
    """What is left of the published speed-up where certificates are to hold."""
    entries = published["table1"]
    told = entries["MDEQ-30A"]["seconds"] / entries[FAST]["seconds"]
    sentences = [
        f"The paper reports {FAST} to be {told:.1f} times as fast as MDEQ-30A (LARGE, CIFAR-10, N = {N:,}).",
        "Counted in evaluations of f, against 30 steps that never stop, three serialized steps (10 warm-up steps in 400 "
        f"chains, every vote for the class) with K = 400 audited draws are {_cheaper(speed_up(400))}; a certificate "
        f"that holds then ends at r = {bounds.shown(reach('finite_population', 400))}, at the best split of alpha.",
        "Beside a baseline that stops earlier, as the released one does (docs/released.md), all these ratios are smaller: in "
        "proportion, where the audit still takes all 30 steps.",
    ]
    for r in radii:
        k = least_audit(r)
        sentences.append(
            f"No K up to N allows a true certificate at r = {r:g}."
            if k is None
            else f"To certify r = {r:g} at all, a perfect run must audit about K = {k:,}: then {_cheaper(speed_up(k))}."
        )
    return " ".join(sentences)


def _cheaper(ratio: float) -> str:
    return f"{ratio:.1f} times cheaper" if ratio >= 1.05 else "no cheaper"


class Frontier:
    """Certificates of one list of serialized rows by other audits, beside its reference with fewer draws.

    ``table``: columns design, audit (NaN for the reference), evaluations, acr; a line for each choice.
    """

    def __init__(self, results: Results, raw: RawVotes, key: str, kind: str):
        self.reference, self.audit = results.reference(key, kind), results.confidence.audit
        self.count = results.plans[key].groups[results.plans[key].group(kind)].n
        self._saved = _saved_by_stopping(results, key, self.reference)
        self._default: pd.DataFrame | None = None  # the serialized certificates by the audit of the settings
        self._fewer: list[pd.DataFrame] = []  # the reference's, with more and more draws
        lines = [*self._audits(results, raw, key, kind), *self._with_fewer(results, raw, key, kind)]
        self.table = pd.DataFrame(lines)

    def _audits(self, results: Results, raw: RawVotes, key: str, kind: str) -> list[dict]:
        even = [EXACT | {"audit": k, "split": 0.5} for k in (LEAST_AUDIT, 200, 400, 800, 1200, 1600) if k < self.count]
        best = {c["audit"]: bounds.best_split(self.count, c["audit"], results.confidence.alpha) for c in even}
        designs = {
            "audit at random, alpha split evenly": even,
            "audit at random, best split": [c | {"split": best[c["audit"]]} for c in even],
        }
        for doubt in ("margin", "residual"):
            designs[f"doubtful 10 % by {doubt} all solved, audit of the rest"] = [
                c | {"census": 0.1, "doubt": doubt} for c in even
            ]
        default, lines = min(even, key=lambda c: abs(c["audit"] - self.audit)), []
        for design, every in designs.items():
            for choices in every:
                rows = raw.rows(key, kind, **choices)
                rows = rows[rows["method"] == FAST]
                if choices == default:
                    self._default = rows
                lines.append({"design": design, **choices} | _mean_of(rows))
        return lines

    def _with_fewer(self, results: Results, raw: RawVotes, key: str, kind: str) -> list[dict]:
        plan, lines = results.plans[key], []
        labels = results.dataset(key).test.labels[raw[key].index[plan.members(plan.group(kind))]]
        config = settings(plan, plan.group(kind), results.confidence)
        for n in [self.count * tenth // 10 for tenth in range(1, 11)]:
            few = config.model_copy(update={"n": n})
            found = [vars(standard_certificate(votes, few)) for votes in raw.cast(key, kind, self.reference, n)]
            self._fewer.append(pd.DataFrame(found).assign(label=labels))
            lines.append({"design": f"{self.reference} with fewer draws"} | _mean_of(self._fewer[-1]))
        return lines

    def speed_at_equal_acr(self, resamples: int = 2_000, seed: int = 0) -> tuple[float, float, float]:
        """How many times the evaluations the reference needs, with as many draws as it takes for the ACR of the serialized row
        (infinite where all its draws do not do); with its 95 % bootstrap interval over the images (percentile)."""
        radii = np.array([counted_radii(found) for found in [self._default, *self._fewer]])
        spent = np.array([found["evaluations"] for found in [self._default, *self._fewer]])
        pick = np.random.default_rng(seed).integers(0, radii.shape[1], (resamples, radii.shape[1]))
        ratios = [_ratio(radii[:, chosen].mean(1), spent[:, chosen].mean(1)) for chosen in pick]
        return _ratio(radii.mean(1), spent.mean(1)), *np.quantile(ratios, (0.025, 0.975), method="nearest")

    def told(self) -> str:
        """What of the speed-up a true certificate leaves."""
        ours, whole = _mean_of(self._default), _mean_of(self._fewer[-1])
        fast = tables.times(*ratio_interval(self._fewer[-1]["evaluations"], self._default["evaluations"]))
        images, k = len(self._default), int(self._default["k"].max())
        asked = (
            f"How much of the speed-up survives a true certificate? On {plural(images, 'image')}, at N = {self.count:,} and "
            f"K = {k:,}, {self.reference} takes {fast} the evaluations of f of {FAST}"
        )
        if not ours["acr"] or not whole["acr"]:
            return f"{asked}; that says little, for one of the two certifies no image rightly.{self._saved}"
        ratio, low, high = self.speed_at_equal_acr()
        if math.isinf(ratio):
            equal = f"No fewer draws give {self.reference} as much."
        else:
            ends = interval(low, high, 2) if math.isfinite(high) else f"from {outward(low, low, 2)[0]:.2f} on"
            equal = (
                f"With fewer draws {self.reference} has as much ACR, too: beside that serialized smoothing is {ratio:.2f} "
                f"times as fast (95 % bootstrap interval over these images {ends})."
            )
        return f"{asked}, which has {percent(ours['acr'] / whole['acr'])} of its ACR. {equal}{self._saved}"


def _saved_by_stopping(results: Results, key: str, reference: str) -> str:
    """What a ``reference`` that never stops would save in a run's main list where it stops at its tolerance, in a sentence
    with a blank before it."""
    spent = results.rows(key).groupby("method")["evaluations"].mean()
    if plain(reference) != reference or reference not in spent.index:
        return ""
    told = [
        f"{other} takes {percent(spent[other] / spent[reference])}" for other in tables.baselines(reference, spent.index)[1:]
    ]
    found = f"in the main list {listed(told)} of its evaluations" if told else "no solver that stops was run here"
    return f" {reference} never stops: {found}."


def read_true_bounds(slot: str, table: pd.DataFrame, rows: pd.DataFrame, row: str, reference: str) -> str:
    """A serialized row's ACR under three estimators (``table``, a :func:`study.reports.tables.summary`), and what it saves in
    evaluations beside every baseline."""
    named = {
        "the exact bound": row,
        THEOREM: by_estimator(row, THEOREM),
        f"the {RELEASED_CODE}": by_estimator(row, RELEASED_CODE),
    }
    acr = table["ACR", "ours"]
    told = listed([f"{acr[name]:.3f} by {by}" for by, name in named.items()])
    saved = [f"{other} {ratio}" for other, ratio in tables.saved_beside_all(rows, row, reference).items()]
    return (
        f"- {slot}, {row}: ACR {told}; {reference} itself has {acr[reference]:.3f}. Evaluations of f, divided by its, "
        f"audit included: {listed(saved)}.{told_truncated(rows, row, reference)}"
    )


def _mean_of(found: pd.DataFrame) -> dict[str, float]:
    return {"evaluations": float(found["evaluations"].mean()), "acr": average_certified_radius(found)}


def _ratio(acr: np.ndarray, spent: np.ndarray) -> float:
    """Of the fewest evaluations with which the others, more and more draws, reach the first's ACR, to those of the first."""
    reached = np.array([0, *np.maximum.accumulate(acr[1:])])
    if reached[-1] < acr[0]:
        return math.inf
    rises = np.append(True, np.diff(reached) > 0)
    return float(np.interp(acr[0], reached[rises], np.array([0, *spent[1:]])[rises]) / spent[0])


def plans(alpha: float) -> pd.DataFrame:
    """The largest radius, in units of sigma, that a budget of evaluations buys when all goes as planned: serialized with the
    best audit, and standard smoothing with as many draws as the budget allows."""
    lines = {}
    for votes, wrong in ((0.9, 0.01), (0.9, 0.002), (0.99, 0.002)):
        for budget in (30_000, 60_000, 100_000, 300_000):
            plan, few = bounds.best_audit(budget, 3, 30, alpha, votes, wrong), budget // 30
            alone = bounds.radius(bounds.clopper_pearson_lower(round(votes * few), few, alpha), 1.0)
            lines[f"{percent(votes)} for A, {percent(wrong, 1)} mismatched; {budget:,}"] = {
                "serialized: radius": plan.radius,
                "N": plan.n,
                "K": plan.audit,
                "share of alpha for the audit": fixed(plan.split, 2),
                "standard: radius": alone,
                "standard: N": few,
            }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("planned votes; evaluations of f")


def read_plans(table: pd.DataFrame) -> str:
    """In how many of the :func:`plans` serialized votes pay."""
    wins, whole = int((table["serialized: radius"] > table["standard: radius"]).sum()), int((table["K"] == table["N"]).sum())
    _, gain = outward(0, (table["serialized: radius"] - table["standard: radius"]).max(), 3)
    return (
        f"For the same evaluations of f, serialized votes with a true audit plan a larger radius than fewer draws of standard "
        f"smoothing, 30 steps each, in {wins} of {len(table)} plans, by at most {gain:.3f} sigma. In {whole} the best audit "
        "is of all draws: there serialized votes buy nothing. A reference that stops before its 30 steps would make every "
        "standard draw cheaper, but of serialized votes only the audit."
    )


def read_arithmetic(found: pd.DataFrame) -> str:
    """What other batches and another precision change."""
    batch, double = found[found["change"] != "float64"], found[found["change"] == "float64"]
    changed = batch[["different", "only_before", "only_after"]].to_numpy().sum()
    return (
        f"Batch size and order changed {changed:,} of {batch['votes'].sum():,} votes; float64 gave "
        f"{double['different'].sum():,} of {double['votes'].sum():,} votes to another class, and left "
        f"{double['only_before'].sum():,} undecided that count here."
    )
