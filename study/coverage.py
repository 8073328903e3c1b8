"""The coverage study: how often certificates are false where the truth is known."""

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field, ValidationError, model_validator
from scipy import stats
from torch import nn

from srs.certificates import bounds
from srs.certificates.at_radius import NAMING_DRAWS, RadiusEstimate, RadiusTest, SequentialSettings, decide_at, decide_until
from srs.certificates.certify import (
    ABSTAIN,
    Certificate,
    CertifySettings,
    at_image,
    serialized_certificate,
    standard_certificate,
)
from srs.common.resume import fingerprint
from srs.common.settings import Section, faults
from srs.deq.solvers import Solver
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import MOST_ROWS, CleanVote, DirectSampler, Sampler, SerializedSampler, Votes
from study.common import code
from study.common.engine import Task
from study.common.layout import Layout
from study.known_answers import BoundedDEQ, Case, FloatCopies, LowBits, known_answers, low_bits

#: Ways to certify serialized votes, by name: the three estimators with both draws, and two more exact audits.
DESIGNS = {
    f"{estimator}, {draw}": {"estimator": estimator, "audit_draw": draw}
    for estimator in bounds.ESTIMATORS
    for draw in bounds.AUDIT_DRAWS
} | {
    "finite_population, random, split 0.8": {"split": 0.8},
    "finite_population, random, census 0.1": {"census": 0.1},
}
_KEPT_RUNS = 500  # images whose votes are held in memory at once


class Coverage(Section):
    """Settings of the study: for each case ``runs`` certificates at each of ``alphas``, from ``n0`` + ``n`` draws in ``chains``
    chains, ``audit`` of them audited, or from as many draws as a radius takes to a precision of ``gain``; and for each of the
    ``mismatch`` rates and shares of ``votes_for_a`` as many simulated chains of ``large_n`` draws, ``large_audit`` of them
    audited, and sequential tests of ``n`` votes.
    """

    runs: int = Field(2_000, ge=1)
    sigma: float = Field(0.5, gt=0)
    n0: int = Field(50, ge=NAMING_DRAWS)
    n: int = Field(1_000, ge=1)
    chains: int = Field(50, ge=1, le=MOST_ROWS)
    audit: int = Field(200, ge=1)
    gain: float = Field(0.05, gt=0)
    alphas: list[Annotated[float, Field(gt=0, lt=1)]] = Field([0.001, 0.05], min_length=1)
    seed: int = Field(0, ge=0, lt=1 << 63)
    mismatch: list[Annotated[float, Field(ge=0, lt=1)]] = Field([0.0, 0.005, 0.01, 0.02, 0.05], min_length=1)
    votes_for_a: list[Annotated[float, Field(gt=0.5, lt=1)]] = Field([0.6, 0.9, 0.99], min_length=1)
    large_n: int = Field(10_000, ge=1)
    large_audit: int = Field(400, ge=1)

    @model_validator(mode="after")
    def _draws_can_be_audited(self) -> "Coverage":
        for name, audit, n in (("audit", self.audit, self.n), ("large_audit", self.large_audit, self.large_n)):
            if audit > n:
                raise ValueError(f"{name} = {audit} is out of range: at most {name.replace('audit', 'n')} = {n}")
        for alpha in self.alphas:
            try:
                CertifySettings(sigma=self.sigma, n0=self.n0, n=self.n, alpha=alpha)
            except ValidationError as error:
                raise ValueError(f"at alpha = {alpha:g} {'; '.join(faults(error, 'as a whole'))}") from None
        for name, audit, n in (("audit", self.audit, self.n), ("large_audit", self.large_audit, self.large_n)):
            try:
                CertifySettings(n=n, audit=audit, alpha=max(self.alphas)).require_audit()
            except ValueError as error:
                raise ValueError(f"{name}, at alpha = {max(self.alphas):g}: {error}") from None
        return self


def is_false(certificate: Certificate, true_radius: float) -> bool:
    """Whether it names the wrong class (class 0 is right in all cases), or reaches past the true radius."""
    return certificate.prediction != ABSTAIN and (certificate.prediction != 0 or certificate.radius > true_radius)


def coverage_jobs(coverage: dict, layout: Layout) -> list[list[Task]]:
    """A job for each case with a known answer, for what floating-point addition betrays, for settled votes, and for each
    simulation."""
    config, rests_on, jobs = Coverage(**coverage), list(code.of_modules("study.coverage")), []
    work = {f"case-{number}": (certify_case, [case]) for number, case in enumerate(known_answers(1, 1))}
    work |= {"rounding": (certify_rounded, []), "settled": (certify_settled, [])}
    work |= {"mismatch": (simulate_mismatch, []), "sequential": (simulate_sequential, [])}
    for name, (compute, given) in work.items():
        origin = fingerprint([], [name, config.model_dump(), given], rests_on)
        out, record = layout.runs / "coverage" / f"{name}.csv", layout.record("coverage", name)
        jobs.append([Task(out, record, origin, write_part, {"compute": compute, "config": config, "given": given})])
    return jobs


def write_part(out: Path, *, compute: Callable[..., pd.DataFrame], config: Coverage, given: list) -> dict:
    """What ``compute`` finds, as CSV."""
    compute(config, *given).to_csv(out, index=False)
    return {}


def certify_case(config: Coverage, case: str) -> pd.DataFrame:
    """False certificates of every design, of standard smoothing, and of sequential tests in one case: see :func:`tally`."""
    cases, found = known_answers(config.n0 + config.n, config.chains), []
    own = _with_noise_of_its_own(config, list(cases).index(case))
    for first in range(0, config.runs, _KEPT_RUNS):
        runs = range(first, min(first + _KEPT_RUNS, config.runs))
        found += [{"case": case} | row for row in _certify(cases[case], runs, own)]
    return tally(pd.DataFrame(found)).assign(n=config.n, audit=config.audit, chains=config.chains)


def _with_noise_of_its_own(config: Coverage, number: int) -> Coverage:
    """The settings of a case by its number: cases must not share their noise."""
    return config.model_copy(update={"seed": config.seed + number})


def gathered(folder: Path) -> pd.DataFrame:
    """What was found in all cases."""
    return pd.concat([pd.read_csv(path) for path in sorted(folder.glob("case-*.csv"))], ignore_index=True)


def tally(found: pd.DataFrame) -> pd.DataFrame:
    """One line a case, design and alpha: how many of the ``runs`` are ``false``, the rate's 95 % interval (``lower``,
    ``upper``), ``p_value`` of "the rate is at most alpha" (exact binomial), share that ``abstained``, mean ``radius``."""
    lines = []
    for (case, design, alpha), part in found.groupby(["case", "design", "alpha"], sort=False):
        count, runs = int(part["false"].sum()), len(part)
        lower, upper = bounds.clopper_pearson_interval(count, runs, 0.05)
        lines.append(
            {"case": case, "design": design, "alpha": alpha, "guarantee": bool(part["guarantee"].iloc[0])}
            | {"runs": runs, "false": count, "rate": count / runs, "lower": lower, "upper": upper}
            | {"p_value": float(stats.binomtest(count, runs, alpha, "greater").pvalue)}
            | {"abstained": float(part["abstained"].mean()), "radius": float(part["radius"].mean())}
            | {"true_radius": float(part["true_radius"].iloc[0])}
        )
    return pd.DataFrame(lines)


def _certify(case: Case, runs: range, config: Coverage) -> list[dict]:
    settings = config.model_dump(include={"sigma", "n0", "n", "audit", "seed"})
    draws = np.arange(config.n0 + config.n)
    copies = [NoisyCopies(case.image, index, config.sigma, config.seed) for index in runs]
    every = [draws] * len(copies)
    serialized = case.serialized.sample_many(case.model, copies, every, 50_000)
    standard = case.reference.sample_many(case.model, copies, every, 50_000)
    clean, rows = case.reference.clean(case.model, case.image), []

    def cast(which: list[int], draws: list[np.ndarray]) -> list[Votes]:
        return [standard[i].take(numbers) for i, numbers in zip(which, draws)]

    for alpha in config.alphas:
        designs = {name: CertifySettings(**settings, alpha=alpha, **choices) for name, choices in DESIGNS.items()}
        plain = CertifySettings(**settings, alpha=alpha, batch_size=50_000)
        named = plain.model_copy(update={"selection": "clean"})
        for one, chain, truth in zip(copies, serialized, standard):
            rows.append(_row("standard", at_image(standard_certificate(truth, plain), one), case.true_radius))
            for name, design in designs.items():
                certificate, _ = serialized_certificate(chain, truth.take, design, one.index, case.serialized.warm_draws)
                rows.append(_row(name, at_image(certificate, one), case.true_radius))
            by_clean = standard_certificate(truth.take(slice(named.n)), named, clean=clean)
            rows.append(_row("standard, class of the clean image", at_image(by_clean, one), case.true_radius))
        every, few = [clean] * len(copies), plain.model_copy(update={"n0": NAMING_DRAWS})
        until = decide_until(cast, every, config.gain, few)
        rows += [_row("to a precision", at_image(found, one), case.true_radius) for one, found in zip(copies, until)]
        moved = [one.moved for one in copies]
        for found in decide_at(cast, every, case.true_radius, few, moved=moved):  # p_A is too small: every yes is false
            false = found.outcome == "certified"
            row = {"design": "at a fixed radius", "alpha": alpha, "guarantee": True, "false": false, "abstained": not false}
            rows.append(row | {"radius": found.r * false, "true_radius": case.true_radius})
    return rows


def _row(design: str, certificate: Certificate, true_radius: float) -> dict:
    return {
        "design": design,
        "alpha": certificate.alpha,
        "guarantee": certificate.guarantee,
        "false": is_false(certificate, true_radius),
        "abstained": certificate.prediction == ABSTAIN,
        "radius": certificate.radius,
        "true_radius": true_radius,
    }


def certify_rounded(config: Coverage) -> pd.DataFrame:
    """False certificates of a classifier that reads low bits (:func:`study.known_answers.low_bits`): of noise on the grid; and,
    no guarantee, of noise that is added in single precision. Columns as in :func:`tally`."""
    config = _with_noise_of_its_own(config, 1_000)
    image, p_a = low_bits(config.sigma)
    true_radius, found = config.sigma * float(stats.norm.ppf(p_a)), []
    for design, kind in {"noise on the grid": NoisyCopies, "noise added in single precision": FloatCopies}.items():
        copies = [kind(image, index, config.sigma, config.seed) for index in range(config.runs)]
        rows = _unaudited(design, LowBits().eval(), DirectSampler(), copies, true_radius, config)
        found += [row | {"case": "low bits", "guarantee": kind is NoisyCopies} for row in rows]
    return tally(pd.DataFrame(found))


def certify_settled(config: Coverage) -> pd.DataFrame:
    """False certificates of the exact fixed point from chains of settled votes, which nobody audits; and, no guarantee, from
    chains of votes that a tenth of the distance's bound has settled. Columns as in :func:`tally`."""
    config = _with_noise_of_its_own(config, 1_001)
    solver, found = Solver(method="naive", steps=50, stop="settled"), []
    sampler = SerializedSampler(chains=config.chains, solver=solver, warmup=solver)
    for design, share in {"settled": 1.0, "settled by a tenth of the bound": 0.1}.items():
        deq, true_radius = BoundedDEQ(share).eval(), 0.5 * config.sigma
        image = deq.at_true_radius(true_radius)
        copies = [NoisyCopies(image, index, config.sigma, config.seed) for index in range(config.runs)]
        rows = _unaudited(design, deq, sampler, copies, true_radius, config)
        found += [row | {"case": "bounded", "guarantee": share == 1} for row in rows]
    return tally(pd.DataFrame(found))


def _unaudited(
    design: str, model: nn.Module, sampler: Sampler, copies: list[NoisyCopies], true_radius: float, config: Coverage
) -> list[dict]:
    """A certificate, as of independent votes, for each of ``copies`` at each alpha."""
    draws, found = [np.arange(config.n0 + config.n)] * len(copies), []
    cast = sampler.sample_many(model, copies, draws, 50_000)
    for alpha in config.alphas:
        settings = CertifySettings(**config.model_dump(include={"sigma", "n0", "n"}), alpha=alpha)
        certified = [at_image(standard_certificate(votes, settings), one) for votes, one in zip(cast, copies)]
        found += [_row(design, one, true_radius) for one in certified]
    return found


def simulate_mismatch(config: Coverage) -> pd.DataFrame:
    """False certificates against the rate of one-sided mismatches, by simulated counts alone (no solver).

    The serialized chain votes for A with probability ``votes_for_a``, the standard DEQ with (1 - mismatch) times that; every
    vote for A of the standard DEQ is one of the chain, too. A random audit. The true radius is sigma Phi^-1 of the
    standard DEQ's probability. Columns as in :func:`tally`, with ``mismatch``, ``votes_for_a``, ``n`` and ``audit``.
    """
    generator = np.random.default_rng(config.seed)
    runs, n, audit = config.runs, config.large_n, config.large_audit
    bound = lru_cache(None)(bounds.serialized_bound)
    found = []
    for share in config.votes_for_a:
        for mismatch in config.mismatch:
            p_a = share * (1 - mismatch)
            true_radius = bounds.radius(p_a, config.sigma)
            confirmed, wrong, other = generator.multinomial(n, [p_a, share - p_a, 1 - share], runs).T
            seen = np.array([generator.multivariate_hypergeometric(c, audit) for c in zip(confirmed, wrong, other)])
            for estimator in bounds.ESTIMATORS:
                for alpha in config.alphas:
                    for n_a, n1, n2 in zip(confirmed + wrong, seen[:, 0], seen[:, :2].sum(axis=1)):
                        lower = bound(estimator, int(n_a), n, int(n1), int(n2), alpha).p_a_lower
                        r = bounds.radius(lower, config.sigma)
                        found.append(
                            {"case": (share, mismatch), "design": estimator, "alpha": alpha, "true_radius": true_radius}
                            | {"guarantee": bounds.guaranteed(estimator, "random"), "false": r > true_radius}
                            | {"abstained": r == 0, "radius": r}
                        )
    table = tally(pd.DataFrame(found))
    table[["votes_for_a", "mismatch"]] = table.pop("case").to_list()
    return table.assign(n=n, audit=audit)


def simulate_sequential(config: Coverage) -> pd.DataFrame:
    """False certificates of the sequential ones where they are hardest, by simulated votes on two classes alone (no solver).

    p_A is 1/2 or one of ``votes_for_a``; r is sigma Phi^-1(p_A), the true radius: what is certified at r, or past it, is false.
    "sequential": :class:`srs.certificates.at_radius.RadiusTest`, of at most ``n`` votes; "precision":
    :class:`srs.certificates.at_radius.RadiusEstimate`; a few draws more name the class that has most of alpha. Not guarantees:
    "alpha for each class", the test without shares; "peeking", Clopper and Pearson's bound at level alpha, made for a number of
    votes fixed in advance, but looked at after every vote. Columns as in :func:`tally`, with ``votes_for_a`` for the case, and
    ``n``.
    """
    generator, drawn = np.random.default_rng(config.seed), np.arange(1, config.n + 1)
    naming, clean, found = np.random.default_rng(config.seed + 1), CleanVote(0, 2, 1), []
    for share, alpha in product([0.5, *config.votes_for_a], config.alphas):
        r = config.sigma * stats.norm.ppf(share)
        settings = SequentialSettings(alpha=alpha, **config.model_dump(include={"sigma", "n"}))
        votes = (generator.random((config.runs, config.n)) >= share).astype(np.int32)
        every = np.hstack([naming.random((config.runs, settings.n0)) >= share, votes])
        for_a = (votes == 0).cumsum(axis=1)
        evidence = bounds.log_evidence(np.maximum(for_a, drawn - for_a), drawn, share)
        tests = [_drawn(RadiusTest(r, settings, clean), run) for run in every]
        estimates = [_drawn(RadiusEstimate(config.gain, settings, clean), run) for run in every]
        certified = {
            "sequential": [test.outcome == "certified" for test in tests],
            "precision": [test.p_a_lower > (share if test.top == 0 else 0.5) for test in estimates],
            "alpha for each class": (evidence >= -np.log(alpha)).any(axis=1),
            "peeking": (for_a > stats.binom.isf(alpha, drawn, share)).any(axis=1),
        }
        for design, runs in certified.items():
            held = design in ("sequential", "precision")
            known = {"case": share, "design": design, "alpha": alpha, "guarantee": held, "true_radius": r}
            found += [known | {"false": bool(run), "abstained": not run, "radius": r * run} for run in runs]
    return tally(pd.DataFrame(found)).rename(columns={"case": "votes_for_a"}).assign(n=config.n)


def _drawn(test: RadiusTest, votes: np.ndarray) -> RadiusTest:
    """A test that takes its votes a hundred at a time as long as it is not settled."""
    for first in range(0, len(votes), 100):
        if test.outcome is None:
            test.add(votes[first : first + 100])
    return test
