import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from srs.certificates.certify import CertifySettings, standard_certificate
from srs.deq.definition import classify
from srs.votes.noise import NoisyCopies
from study.coverage import (
    Coverage,
    certify_case,
    certify_rounded,
    certify_settled,
    is_false,
    simulate_mismatch,
    simulate_sequential,
    tally,
)
from study.known_answers import FloatCopies, LinearDEQ, LowBits, known_answers, low_bits
from study.reports.statistics import rejected

CONFIG = Coverage(runs=100, n=300, n0=20, chains=20, audit=80, alphas=[0.05], votes_for_a=[0.9], mismatch=[0.0, 0.03])


@pytest.fixture(scope="module")
def table():
    return pd.concat([certify_case(CONFIG, case) for case in known_answers(1, 1)], ignore_index=True)


def _hold(table, design):
    """Whether no case is significantly above alpha under a design."""
    part = table[table["design"] == design]
    assert set(part["case"]) == set(known_answers(100, 10))
    return not rejected(part["p_value"], 0.001).any()


def test_guaranteed_certificates_hold_in_all_cases(table):
    """The guard: it would fail for the released code's estimator, or for an audit of the first batch."""
    assert _hold(table, "finite_population, random")
    assert not _hold(table, "released_code, random")
    assert not _hold(table, "finite_population, first_batch")
    for design in table.loc[table["guarantee"], "design"].unique():
        assert _hold(table, design)


def test_certificates_are_given_and_not_withheld(table):
    part = table[table["design"] == "finite_population, random"].set_index("case")
    assert part.loc[["linear", "rotating", "basins", "stuck", "late"], "abstained"].max() < 0.2
    assert (table[(table["design"] == "standard") & (table["case"] != "even")]["abstained"] < 0.6).all()
    precise = table[table["design"] == "to a precision"].set_index("case")
    assert (precise["radius"] > 0.5 * precise["true_radius"])[precise["true_radius"] > 0.3].all()


def test_a_census_buys_radius_where_doubt_tells_mismatches(table):
    """Margins of the linear DEQ say which of its one-step votes are doubtful."""
    linear = table[table["case"] == "rotating"].set_index("design")["radius"]
    assert linear["finite_population, random, census 0.1"] > linear["finite_population, random"]


def test_neither_standard_smoothing_nor_the_exact_audit_passes_the_true_radius_of_a_linear_deq():
    found = certify_case(CONFIG.model_copy(update={"runs": 500}), "linear").set_index("design")
    assert found.loc["released_code, random", "rate"] > 0.5  # the case can tell
    for design in ("standard", "finite_population, random"):
        row = found.loc[design]
        assert stats.binomtest(int(row["false"]), 500, 0.05, alternative="greater").pvalue > 1e-3
        assert row["radius"] > 0.15 * row["true_radius"]


@pytest.mark.parametrize("name", list(known_answers(100, 10)))
def test_the_known_answer_is_the_standard_solvers(name):
    """The share of the reference's votes for class 0 is Phi(true radius / sigma), whatever the chain makes of it."""
    case = known_answers(4_000, 40)[name]
    copies = NoisyCopies(case.image, 0, CONFIG.sigma, 7)
    votes = case.reference.sample(case.model, copies, np.arange(4_000), 4_000).classes
    p_a = stats.norm.cdf(case.true_radius / CONFIG.sigma)
    assert stats.binomtest(int((votes == 0).sum()), 4_000, p_a).pvalue > 1e-4
    chain = case.serialized.sample(case.model, copies, np.arange(4_000), 4_000).classes
    assert (chain != votes).mean() > 0.01  # the chain does err


def test_the_linear_deq_reaches_its_fixed_point():
    case = known_answers(100, 10)["rotating"]
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    z = case.model.initial_state(case.model.inject(x))
    for _ in range(case.reference.solver.steps):
        z = case.model.f(z, case.model.inject(x))
    assert torch.allclose(z, case.model.fixed_point(x), atol=1e-5)


def test_simulated_mismatches_are_subtracted_by_bounds_and_not_by_the_released_code():
    found = simulate_mismatch(CONFIG.model_copy(update={"large_n": 2_000, "large_audit": 200})).set_index(
        ["design", "mismatch"]
    )
    assert found.loc[("released_code", 0.03), "rate"] > 0.9
    for design in ("finite_population", "theorem_3_1"):
        assert found.loc[(design, 0.03), "p_value"] > 1e-3


def test_the_radius_of_an_amortized_classifier_is_that_of_its_own_half_space():
    case = known_answers(100, 10)["amortized"]
    x = torch.randn(5, 6)
    logits, solution = classify(case.model, x, case.reference.solver, case.reference.start)
    assert torch.allclose(logits[:, 0], x @ case.model.gradient() + case.model.offset, atol=1e-3)
    assert not torch.allclose(solution.z, case.model.fixed_point(x), rtol=0.1)


@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_certificates_from_amortized_starts_are_about_the_deployed_classifier(alpha):
    """They hold at full alpha for k steps from the start, and not for the fixed point, whose radius is shorter here."""
    case, runs = known_answers(100, 10)["amortized"], 1_000
    config = CertifySettings(n0=20, n=300, alpha=alpha, sigma=CONFIG.sigma)
    copies = [NoisyCopies(case.image, index, config.sigma, 5) for index in range(runs)]
    cast = case.reference.sample_many(case.model, copies, [config.draws()] * runs, 50_000)
    found = [standard_certificate(votes, config) for votes in cast]
    fixed = LinearDEQ(contraction=0.8, offset=10.0, isotropic=True)
    assert torch.equal(fixed.fixed_point(case.image[None]), case.model.fixed_point(case.image[None]))
    false = sum(is_false(certificate, case.true_radius) for certificate in found)
    assert stats.binomtest(false, runs, alpha, alternative="greater").pvalue > 1e-3
    assert sum(is_false(certificate, fixed.true_radius(case.image)) for certificate in found) > 0.9 * runs


def test_sequential_tests_hold_with_a_look_after_every_vote_and_clopper_pearson_does_not():
    """The guard: it would fail for the naive test, and where each of two classes at one half had the whole alpha."""
    found = simulate_sequential(CONFIG.model_copy(update={"runs": 600, "gain": 0.001})).set_index("design")
    for design in ("sequential", "precision"):
        assert (found.loc[design, "p_value"] > 1e-3).all() and found.loc[design, "guarantee"].all()
        assert found.loc[design, "false"].sum() > 0
    assert (found.loc["peeking", "p_value"] < 1e-6).all() and not found.loc["peeking", "guarantee"].any()
    each = found.loc["alpha for each class"].set_index("votes_for_a")
    assert each.loc[0.5, "p_value"] < 0.05 < each.loc[0.9, "p_value"] and not each["guarantee"].any()


def test_what_floating_point_addition_betrays_is_certified_falsely_and_on_the_grid_at_most_alpha_of_the_time():
    found = certify_rounded(CONFIG.model_copy(update={"runs": 400})).set_index("design")
    grid, added = found.loc["noise on the grid"], found.loc["noise added in single precision"]
    assert added["rate"] == 1 and not added["guarantee"] and added["radius"] > 3 * added["true_radius"]
    assert grid["p_value"] > 1e-3 and grid["guarantee"] and grid["false"] > 0 and grid["abstained"] < 0.2


def test_settled_votes_certify_the_fixed_point_unaudited_unless_the_bound_is_too_small():
    found = certify_settled(CONFIG.model_copy(update={"runs": 100})).set_index("design")
    settled, wrong = found.loc["settled"], found.loc["settled by a tenth of the bound"]
    assert settled["p_value"] > 1e-3 and settled["guarantee"] and settled["abstained"] < 0.2 and settled["radius"] > 0.1
    assert wrong["rate"] > 0.9 and not wrong["guarantee"]


@pytest.mark.parametrize("sigma", [0.12, 0.5, 2.0])
def test_the_chance_of_low_bits_is_that_of_votes_on_the_grid(sigma):
    image, chance = low_bits(sigma)
    votes = [LowBits()(kind(image, 0, sigma, 0)(np.arange(4_000))).argmax(dim=1) for kind in (NoisyCopies, FloatCopies)]
    assert stats.binomtest(int((votes[0] == 0).sum()), 4_000, chance).pvalue > 1e-4
    assert (votes[1] == 1).all() and 0.6 <= chance < 0.7


def test_copies_in_single_precision_are_gaussian_and_repeat():
    copies = FloatCopies(torch.full((4,), 0.25), 3, 0.5, 7)
    drawn = (copies(np.arange(5_000)) - copies.image) / 0.5
    assert stats.kstest(drawn.flatten(), "norm").pvalue > 1e-4
    assert torch.equal(copies(np.arange(9)), copies(np.arange(9)))
    assert not torch.equal(copies(np.arange(9)), copies(np.arange(9, 18)))


def test_holms_method_finds_a_planted_bad_case_and_nothing_else():
    """A case that is false in 9 % of runs at alpha = 5 %, among sixty whose rates are spread as chance spreads 5 %."""
    counts = [*stats.binom.ppf((np.arange(60) + 0.5) / 60, 1_000, 0.05), 90]
    p_values = [stats.binomtest(int(count), 1_000, 0.05, "greater").pvalue for count in counts]
    assert sum(p < 0.05 for p in p_values) > 1
    assert rejected(p_values).tolist() == [False] * 60 + [True]
    # against 0.05 / 3, 0.05 / 2, 0.05, and none after the first that is too large
    assert rejected([0.04, 0.01, 0.02]).all()
    assert rejected([0.04, 0.01, 0.03]).tolist() == [False, True, False]


def test_what_counts_as_false():
    class Found:
        prediction, radius = 0, 0.5

    wrong, none = type("Wrong", (Found,), {"prediction": 1}), type("None", (Found,), {"prediction": -1})
    assert is_false(Found, 0.4) and not is_false(Found, 0.5)
    assert is_false(wrong, 9.0) and not is_false(none, 0.0)


def test_tally_is_exact():
    row = {"case": "a", "design": "d", "alpha": 0.05, "guarantee": True, "abstained": False, "radius": 0.1, "true_radius": 0.2}
    line = tally(pd.DataFrame([row | {"false": flag} for flag in [True] * 3 + [False] * 17])).iloc[0]
    assert (line["runs"], line["false"], line["rate"]) == (20, 3, 0.15)
    assert line["p_value"] == pytest.approx(stats.binom.sf(2, 20, 0.05))
