import numpy as np
import pytest
import torch
from conftest import LinearDEQ
from pydantic import ValidationError
from scipy import stats

import srs
from srs import bounds
from srs.certification import Certification, serialized_certificate, standard_certificate
from srs.noise import NoisyCopies
from srs.votes import UNDECIDED, SerializedSampler, StandardSampler, Votes

SIGMA = 0.5


def _at_true_radius(deq, r):
    """A point whose distance to the decision boundary is r, on class 0's side."""
    x = torch.zeros(6)
    gradient = deq.gradient()
    return x + (r - deq.true_radius(x)) * gradient / gradient.norm()


def _false_certificates(certify, deq, r, runs):
    """How many of ``runs`` certificates, each with its own noise, reach past the true radius or name the wrong class."""
    x = _at_true_radius(deq, r)
    found = [certify(x, seed) for seed in range(runs)]
    return sum(c.prediction != srs.ABSTAIN and (c.prediction != 0 or c.radius > r) for c in found), found


@pytest.mark.parametrize("r", [0.1, 0.5, 0.9])
def test_a_linear_classifier_is_not_certified_past_its_true_radius(linear_deq, r):
    alpha, runs = 0.05, 600

    def certify(x, seed):
        model = torch.nn.Sequential(torch.nn.Linear(6, 2)).eval()
        with torch.no_grad():
            model[0].weight.copy_(torch.stack([linear_deq.gradient(), torch.zeros(6)]))
            model[0].bias.zero_()
        return srs.certify(model, x, sigma=SIGMA, n=200, n0=20, alpha=alpha, seed=seed)

    false, found = _false_certificates(certify, linear_deq, r, runs)
    assert stats.binomtest(false, runs, alpha, alternative="greater").pvalue > 1e-3
    assert np.mean([c.prediction == 0 for c in found]) > (0.3 if r == 0.1 else 0.99)  # certificates are given, not withheld
    naive = sum(SIGMA * stats.norm.ppf(min(c.n_a, c.n - 0.5) / c.n) > r for c in found)  # the point estimate is no bound
    assert stats.binomtest(naive, runs, alpha, alternative="greater").pvalue < 1e-3


def test_a_linear_deq_is_not_certified_past_its_true_radius(linear_deq):
    alpha, runs = 0.05, 300
    false, found = _false_certificates(
        lambda x, seed: srs.certify(linear_deq, x, sigma=SIGMA, n=200, n0=20, alpha=alpha, seed=seed), linear_deq, 0.5, runs
    )
    assert stats.binomtest(false, runs, alpha, alternative="greater").pvalue > 1e-3
    assert np.mean([c.prediction == 0 for c in found]) > 0.99


class LeaningDEQ(LinearDEQ):
    """Its standard start is right; from any other start f leans to class 0, and never moves far."""

    def f(self, z, injection):
        true = self.fixed_point_of(injection)
        fresh = (z == 0).all(dim=1, keepdim=True) | ((z - true).norm(dim=1, keepdim=True) < 1e-3)
        return torch.where(fresh, true, true + 0.25 * self.w / self.w.norm() * self.gradient().norm())

    def fixed_point_of(self, injection):
        return torch.linalg.solve(torch.eye(6) - self.a, injection.T).T


def test_serialized_certificates_hold_where_unaudited_ones_would_not():
    deq, alpha, runs = LeaningDEQ().eval(), 0.05, 200
    sampler = SerializedSampler(solver=srs.Solver(method="naive", steps=1), chains=20)
    config = dict(sigma=SIGMA, n=200, n0=20, alpha=alpha, audit=150)
    false, found = _false_certificates(
        lambda x, seed: srs.certify(deq, x, sampler=sampler, seed=seed, **config), deq, 0.5, runs
    )
    assert stats.binomtest(false, runs, alpha, alternative="greater").pvalue > 1e-3
    assert np.mean([c.prediction == 0 for c in found]) > 0.9
    assert any(c.n1 < c.n2 for c in found)  # some votes really are mismatched
    unaudited = [bounds.radius(bounds.clopper_pearson_lower(c.n_a, c.n, alpha), SIGMA) > 0.5 for c in found]
    assert stats.binomtest(sum(unaudited), runs, alpha, alternative="greater").pvalue < 1e-3


def test_the_audit_sees_a_sampler_that_repeats_its_first_answer(linear_deq):
    """An identity 'solver' after the warm-up: every vote is its chain's first. Unaudited it would certify anything."""

    class Stuck(LinearDEQ):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def f(self, z, injection):  # with one step after a long warm-up, the state no longer moves
            self.calls += 1
            return super().f(z, injection) if self.calls <= 10 else z

    x = _at_true_radius(linear_deq, 0.05)  # the standard vote is close to a coin toss
    settings = dict(sigma=SIGMA, n=1_000, n0=100, alpha=0.001, audit=400)
    sampler = SerializedSampler(solver=srs.Solver(method="naive", steps=1), chains=1)
    config = Certification(**settings)
    copies = NoisyCopies(x, 0, SIGMA, 0)
    votes = sampler.sample(Stuck().eval(), copies, config.draws(), 400)
    assert (votes.classes == votes.classes[0]).all()
    assert standard_certificate(votes, config).prediction != srs.ABSTAIN  # what no audit would believe
    audited = config.audited_draws(0)
    truth = StandardSampler().sample(linear_deq, copies, audited, 400)
    assert serialized_certificate(votes, audited, truth, config).prediction == srs.ABSTAIN


def _votes(classes):
    return Votes(np.asarray(classes, np.int16), np.ones(len(classes), np.int32), np.zeros(len(classes), np.float32))


def test_counts_selection_and_undecided_votes():
    config = Certification(sigma=SIGMA, n0=4, n=20, alpha=0.05, audit=5)
    votes = _votes([2, 2, 1, UNDECIDED] + [2] * 17 + [1, UNDECIDED, UNDECIDED])
    certificate = standard_certificate(votes, config)
    assert (certificate.prediction, certificate.n_a, certificate.undecided, certificate.evaluations) == (2, 17, 2, 24)
    assert certificate.p_a_lower == bounds.clopper_pearson_lower(17, 20, 0.05)
    assert certificate.radius == bounds.radius(certificate.p_a_lower, SIGMA)
    tossed = standard_certificate(_votes([2, 2, 2, 2] + [2] * 12 + [1] * 8), config)
    assert (tossed.prediction, tossed.radius) == (srs.ABSTAIN, 0.0)
    hopeless = standard_certificate(_votes([UNDECIDED] * 24), config)
    assert (hopeless.prediction, hopeless.n_a, hopeless.undecided) == (srs.ABSTAIN, 0, 20)


def test_audit_counts_only_votes_for_the_certified_class():
    config = Certification(sigma=SIGMA, n0=4, n=20, alpha=0.05, audit=6)
    votes = _votes([0] * 4 + [0] * 18 + [1, UNDECIDED])
    audited = np.array([4, 5, 6, 7, 22, 23])
    certificate = serialized_certificate(votes, audited, _votes([0, 0, UNDECIDED, 1, 0, 0]), config)
    assert (certificate.n_a, certificate.k, certificate.n2, certificate.n1) == (18, 6, 4, 2)
    expected = bounds.theorem_3_1(18, 20, 2, 4, 0.05)
    assert (certificate.p_a_lower, certificate.p_m_upper) == (expected.p_a_lower, expected.p_m_upper)
    assert certificate.evaluations == 24 + 6
    none = serialized_certificate(_votes([UNDECIDED] * 24), audited, _votes([0] * 6), config)
    assert (none.prediction, none.n1, none.n2) == (srs.ABSTAIN, 0, 0)


def test_audited_draws_are_a_uniform_sample_of_the_counted_ones():
    config = Certification(sigma=SIGMA, n0=10, n=50, alpha=0.05, audit=20)
    counts = np.zeros(60)
    for index in range(2_000):
        drawn = config.audited_draws(index)
        assert len(np.unique(drawn)) == 20 and np.array_equal(drawn, config.audited_draws(index))
        counts[drawn] += 1
    assert counts[:10].sum() == 0
    assert stats.chisquare(counts[10:]).pvalue > 1e-4


def test_predict(linear_deq):
    x = _at_true_radius(linear_deq, 0.8)
    assert srs.predict(linear_deq, x, sigma=SIGMA, n=300, alpha=0.001) == 0
    assert srs.predict(linear_deq, _at_true_radius(linear_deq, -0.8), sigma=SIGMA, n=300, alpha=0.001) == 1
    assert srs.predict(linear_deq, _at_true_radius(linear_deq, 0.0), sigma=SIGMA, n=300, alpha=0.001) == srs.ABSTAIN
    with pytest.raises(ValueError, match="no guarantee for dependent votes"):
        srs.predict(linear_deq, x, sigma=SIGMA, sampler=SerializedSampler())


def test_predict_is_seldom_wrong(linear_deq):
    x, alpha, runs = _at_true_radius(linear_deq, 0.02), 0.05, 600
    found = [srs.predict(linear_deq, x, sigma=SIGMA, n=100, n0=1, alpha=alpha, seed=seed) for seed in range(runs)]
    assert stats.binomtest(found.count(1), runs, alpha, alternative="greater").pvalue > 1e-3
    assert found.count(0) > 0


def test_certify_draws_the_line_at_training_mode_and_unusable_images(linear_deq):
    x = torch.zeros(6)
    with pytest.raises(ValueError, match="training mode.*eval"):
        srs.certify(LinearDEQ().train(), x, sigma=SIGMA)
    with pytest.raises(ValueError, match="training mode.*eval"):
        partly = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.BatchNorm1d(6)).eval()
        partly[1].train()
        srs.certify(partly, x, sigma=SIGMA)
    with pytest.raises(ValueError, match="floats"):
        srs.certify(linear_deq, torch.zeros(6, dtype=torch.int64), sigma=SIGMA)
    with pytest.raises(ValueError, match="not finite"):
        srs.certify(linear_deq, torch.full((6,), torch.nan), sigma=SIGMA)
    for bad in ({"sigma": 0}, {"alpha": 1.0}, {"n0": 0}, {"auditt": 5}, {"batch_size": 0}):
        with pytest.raises(ValidationError, match=next(iter(bad))):
            srs.certify(linear_deq, x, **{"sigma": SIGMA, **bad})
    with pytest.raises(ValidationError, match="n = 9 is too small for alpha = 0.001.*at least 10"):
        srs.certify(linear_deq, x, sigma=SIGMA, n=9)
    with pytest.raises(ValueError, match="audit = 500 is out of range"):
        srs.certify(linear_deq, x, sigma=SIGMA, n=100, audit=500, sampler=SerializedSampler())
