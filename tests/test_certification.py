import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats

import srs
from srs.certificates import bounds
from srs.certificates.certify import CertifySettings, Confidence, serialized_certificate, standard_certificate
from srs.votes.noise import NoisyCopies, audit_order
from srs.votes.samplers import UNDECIDED, ReleasedSampler, SerializedSampler, StandardSampler, Votes
from study.known_answers import LinearDEQ

SIGMA = 0.5
SOLVED = StandardSampler(solver=srs.Solver(method="naive", steps=25))  # a linear DEQ, to the last digits


def _false_certificates(certify, deq, r, runs):
    """How many of ``runs`` certificates, each with its own noise, reach past the true radius or name the wrong class."""
    x = deq.at_true_radius(r)
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
    alpha, runs, config = 0.05, 300, dict(sigma=SIGMA, n=200, n0=20, alpha=0.05, sampler=SOLVED)
    false, found = _false_certificates(lambda x, seed: srs.certify(linear_deq, x, seed=seed, **config), linear_deq, 0.5, runs)
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
    deq, alpha, runs = LeaningDEQ().eval(), 0.05, 120
    sampler = SerializedSampler(solver=srs.Solver(method="naive", steps=1), chains=20)
    once = StandardSampler(solver=sampler.solver)  # which is right at once
    config = dict(sigma=SIGMA, n=200, n0=20, alpha=alpha, audit=150, sampler=sampler, reference=once)
    false, found = _false_certificates(lambda x, seed: srs.certify(deq, x, seed=seed, **config), deq, 0.5, runs)
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

    x = linear_deq.at_true_radius(0.05)  # the standard vote is close to a coin toss
    settings = dict(sigma=SIGMA, n=1_000, n0=100, alpha=0.001, audit=400)
    sampler = SerializedSampler(solver=srs.Solver(method="naive", steps=1), chains=1)
    config = CertifySettings(**settings)
    copies = NoisyCopies(x, 0, SIGMA, 0)
    votes = sampler.sample(Stuck().eval(), copies, config.draws(), 400)
    assert (votes.classes == votes.classes[0]).all()
    assert standard_certificate(votes, config).prediction != srs.ABSTAIN  # what no audit would believe
    certificate, _ = serialized_certificate(votes, lambda d: StandardSampler().sample(linear_deq, copies, d, 400), config, 0)
    assert certificate.prediction == srs.ABSTAIN


def _votes(classes):
    votes = Votes.blank(len(classes))
    votes.classes[:], votes.evaluations[:] = classes, 1
    return votes


def _audit(votes, truth, **settings):
    """The certificate of serialized votes whose true votes are known."""
    config = CertifySettings(**{"sigma": SIGMA, "n0": 4, "n": len(votes) - 4, "alpha": 0.05} | settings)
    return serialized_certificate(_votes(votes), _votes(truth).take, config, 0)[0]


def test_counts_selection_and_undecided_votes():
    config = CertifySettings(sigma=SIGMA, n0=4, n=20, alpha=0.05, audit=5)
    votes = _votes([2, 2, 1, UNDECIDED] + [2] * 17 + [1, UNDECIDED, UNDECIDED])
    certificate = standard_certificate(votes, config)
    assert (certificate.prediction, certificate.n_a, certificate.undecided, certificate.evaluations) == (2, 17, 2, 24)
    assert certificate.p_a_lower == bounds.clopper_pearson_lower(17, 20, 0.05)
    assert certificate.radius == bounds.radius(certificate.p_a_lower, SIGMA)
    tossed = standard_certificate(_votes([2, 2, 2, 2] + [2] * 12 + [1] * 8), config)
    assert (tossed.prediction, tossed.radius) == (srs.ABSTAIN, 0.0)
    hopeless = standard_certificate(_votes([UNDECIDED] * 24), config)
    assert (hopeless.prediction, hopeless.n_a, hopeless.undecided) == (srs.ABSTAIN, 0, 20)


def test_audit_solves_only_votes_for_the_certified_class():
    votes = [0] * 4 + [0] * 18 + [1, UNDECIDED]
    truth = [0] * 4 + [1, UNDECIDED] + [0] * 18
    found = _audit(votes, truth, audit=20)  # all of them: the mismatched ones are known
    assert (found.n_a, found.k, found.n2, found.n1) == (18, 20, 18, 16)
    assert found.evaluations == 24 + 18  # two draws are not for class 0
    assert found.p_a_lower == bounds.clopper_pearson_lower(16, 20, 0.025) and found.p_m_upper == 2 / 18
    part = _audit(votes, truth, audit=6)
    assert part.n2 <= 6 and part.p_a_lower == bounds.finite_population(18, 20, part.n1, part.n2, 0.05).p_a_lower
    none = _audit([UNDECIDED] * 24, [0] * 24, audit=6)
    assert (none.prediction, none.n1, none.n2, none.evaluations) == (srs.ABSTAIN, 0, 0, 24)


def test_nothing_audited_certifies_nothing_and_no_audited_vote_for_the_class_neither():
    votes = [0] * 24
    assert _audit(votes, votes, audit=0).prediction == srs.ABSTAIN
    late = _audit([0] * 4 + [1] * 5 + [0] * 995, [0] * 1004, audit=5, audit_draw="first_batch")
    assert (late.n2, late.prediction, late.p_m_upper) == (0, srs.ABSTAIN, 1.0)


def test_ties_of_the_selection_go_to_the_lowest_class():
    assert _audit([1, 0, 1, 0] + [0] * 60, [0] * 64, audit=60).prediction == 0
    assert standard_certificate(_votes([2, 1, 2, 1] + [1] * 60), CertifySettings(n0=4, n=60, alpha=0.05)).prediction == 1


@pytest.mark.parametrize("doubt", ["margin", "residual"])
def test_a_census_counts_lost_and_recovered_votes(doubt):
    """The most doubtful draws are solved again whatever the vote was; the audit covers the rest."""
    votes, truth = _votes([0] * 104), _votes([0] * 104)
    votes.margins[:], votes.residuals[:] = 1.0, 0.1
    votes.classes[10:15], votes.margins[10:15], votes.residuals[10:15] = 1, 0.1, 0.9  # lost by the chain: recovered
    truth.classes[20:23], votes.margins[20:23], votes.residuals[20:23] = 1, 0.2, 0.8  # won by the chain: lost
    config = CertifySettings(sigma=SIGMA, n0=4, n=100, alpha=0.05, audit=100, census=0.08, doubt=doubt)
    found, solved = serialized_certificate(votes, truth.take, config, 0)
    assert (found.n_a, found.census, found.known, found.k, found.n2, found.n1) == (95, 8, 5, 92, 92, 92)
    assert found.p_a_lower == bounds.clopper_pearson_lower(97, 100, 0.025)
    assert len(solved.classes) == 100
    plain = CertifySettings(sigma=SIGMA, n0=4, n=100, alpha=0.05, audit=100)
    assert serialized_certificate(votes, truth.take, plain, 0)[0].p_a_lower < found.p_a_lower


def test_a_census_takes_what_is_most_doubtful_in_the_way_that_is_asked_for():
    """Margins and residuals disagree; what is NaN is most doubtful of all, and of equals the first come first."""
    votes = _votes([0] * 24)
    votes.margins[:], votes.residuals[:] = 1.0, 0.1
    votes.margins[[20, 7]], votes.residuals[[21, 8]] = 0.5, 0.9
    votes.margins[12] = votes.residuals[13] = np.nan
    votes.margins[:4], votes.residuals[:4] = 0.0, 9.0  # of the selection, which no census takes
    settings = {"n0": 4, "n": 20, "alpha": 0.05, "census": 0.25}
    assert CertifySettings(**settings).census_draws(votes).tolist() == [12, 7, 20, 4, 5]
    assert CertifySettings(doubt="residual", **settings).census_draws(votes).tolist() == [13, 8, 21, 4, 5]


def test_an_audit_is_as_large_as_asked_outside_the_census():
    votes = _votes([0] * 104)
    votes.margins[:] = np.linspace(1.0, 0.1, 104)  # the last are the most doubtful
    config = CertifySettings(sigma=SIGMA, n0=4, n=100, alpha=0.05, audit=60, census=0.3)
    census = config.census_draws(votes)
    audited = config.audited_draws(0, 0, census)
    assert len(census) == 30 and len(np.unique(audited)) == 60 and not np.isin(audited, census).any()
    found, _ = serialized_certificate(votes, _votes([0] * 104).take, config, 0)
    assert (found.census, found.k, found.n2, found.n1) == (30, 60, 60, 60)


def test_undecided_votes_are_against_whom_predict_would_name():
    """35 % of the votes for class 0, 25 % for class 1: among decided votes alone class 0 would have won."""

    def model(x):
        return torch.cat([x > 0.385, x < -0.674], dim=1).float()  # a tie in between

    votes = srs.DirectSampler().sample(model, NoisyCopies(torch.zeros(1), 0, 1.0, 0), np.arange(2_100), 400).classes
    shares = [(votes == c).mean() for c in (0, 1, UNDECIDED)]
    assert np.allclose(shares, [0.35, 0.25, 0.4], atol=0.03)
    assert srs.predict(model, torch.zeros(1), sigma=1.0, n=2_000, alpha=0.05) == srs.ABSTAIN


def test_a_census_has_no_theorem_but_ours():
    for choice in ({"estimator": "theorem_3_1"}, {"audit_draw": "first_batch"}):
        with pytest.raises(ValidationError, match="census = 0.1 needs estimator = 'finite_population'"):
            CertifySettings(census=0.1, **choice)


def test_only_the_proved_pair_is_a_guarantee():
    for estimator in ("finite_population", "theorem_3_1", "released_code"):
        for draw in ("random", "first_batch"):
            found = _audit([0] * 104, [0] * 104, audit=50, estimator=estimator, audit_draw=draw)
            assert found.guarantee == (estimator == "finite_population" and draw == "random")
            assert (found.estimator, found.audit_draw, found.split) == (estimator, draw, 0.5)
    assert _audit([0] * 104, [0] * 104, audit=50, split=0.7).split == 0.7
    assert CertifySettings().guarantee and Confidence().guarantee


@pytest.mark.parametrize("solver", [srs.Solver(steps=5, stop="batch"), srs.Solver(steps=5)])
def test_votes_that_were_solved_together_are_no_guarantee(linear_deq, solver):
    found = srs.certify(linear_deq, torch.zeros(6), sigma=SIGMA, n=100, sampler=srs.ReleasedSampler(solver=solver))
    assert not found.guarantee and str(found).endswith("not a guarantee") and "400 draws together" in found.classifier
    assert srs.certify(linear_deq, torch.zeros(6), sigma=SIGMA, n=100).guarantee


def test_audited_draws_are_a_uniform_sample_of_the_counted_ones():
    config = CertifySettings(sigma=SIGMA, n0=10, n=50, alpha=0.05, audit=20)
    counts = np.zeros(60)
    for index in range(2_000):
        drawn = config.audited_draws(index)
        assert len(np.unique(drawn)) == 20 and np.array_equal(drawn, config.audited_draws(index))
        counts[drawn] += 1
    assert counts[:10].sum() == 0
    assert stats.chisquare(counts[10:]).pvalue > 1e-4


def test_the_audits_stream_is_no_others():
    """Neither the noise's nor that of training's shuffles, which are default_rng([seed, epoch])."""
    found = audit_order("random", 0, 10, 0, 1_000)
    for other in ([0, 10], 0, [10], [10, 0]):
        assert not np.array_equal(found, np.random.default_rng(other).permutation(1_000))
    assert not np.array_equal(found, audit_order("random", 0, 11, 0, 1_000)) and not np.array_equal(
        found, audit_order("random", 1, 10, 0, 1_000)
    )


def test_a_certificate_in_words():
    told = str(srs.Certificate(1, 0.41299, 0.8, 90, 0, 10, 100, 0.001, 0.5, evaluations=3_300))
    assert told == "class 1, certified l2 radius 0.412 (3,300 evaluations of f)"
    assert str(_audit([UNDECIDED] * 24, [0] * 24, audit=6)).startswith("abstains (24")
    assert str(_audit([0] * 24, [0] * 24, audit=20, estimator="theorem_3_1")).endswith("not a guarantee")


def test_a_certificate_says_whether_its_votes_were_audited(linear_deq):
    """Also where the audit had nothing to look at."""
    x, settings = linear_deq.at_true_radius(0.8), {"sigma": SIGMA, "n": 100, "alpha": 0.05}
    assert not srs.certify(linear_deq, x, **settings).audited
    assert not srs.certify(linear_deq, x, sampler=srs.ReleasedSampler(batch=20), **settings).audited
    assert srs.certify(linear_deq, x, sampler=SerializedSampler(chains=20), audit=50, **settings).audited
    nothing = _audit([UNDECIDED] * 24, [0] * 24, audit=6)
    assert nothing.k == 0 and nothing.audited


def test_the_first_batch_is_the_first_after_the_warm_up():
    config = CertifySettings(sigma=SIGMA, n0=10, n=50, alpha=0.05, audit=20, audit_draw="first_batch")
    assert config.audited_draws(0).tolist() == list(range(10, 30))
    assert config.audited_draws(0, first=25).tolist() == list(range(25, 45))


def test_what_is_certified_is_the_image_and_not_the_point_of_the_grid_where_votes_are_cast(linear_deq, monkeypatch):
    x, settings = linear_deq.at_true_radius(0.8), dict(sigma=SIGMA, n=1_000, alpha=0.01, sampler=SOLVED)
    monkeypatch.setattr(NoisyCopies, "moved", 0.0)
    plain = srs.certify(linear_deq, x, **settings)
    (until,) = srs.certify_until(linear_deq, [x], gain=0.05, **settings)
    (farther,) = srs.certify_at(linear_deq, [x], 0.7, **settings)
    (here,) = srs.certify_at(linear_deq, [x], 0.2, **settings)
    assert plain.prediction == 0 and (here.outcome, farther.outcome) == ("certified", "exhausted")
    monkeypatch.setattr(NoisyCopies, "moved", 0.5)
    near = srs.certify(linear_deq, x, **settings)
    assert (near.prediction, near.radius, near.moved) == (0, plain.radius - 0.5, 0.5)
    (found,) = srs.certify_until(linear_deq, [x], gain=0.05, **settings)
    assert (found.prediction, found.radius) == (0, until.radius - 0.5)
    (found,) = srs.certify_at(linear_deq, [x], 0.2, **settings)
    assert (found.r, found.outcome, found.drawn) == (0.2, farther.outcome, farther.drawn)
    for moved in (plain.radius, 5.0):
        monkeypatch.setattr(NoisyCopies, "moved", moved)
        far = srs.certify(linear_deq, x, **settings)
        assert (far.prediction, far.radius, far.moved) == (srs.ABSTAIN, 0.0, moved)


def test_an_image_too_large_for_the_noises_grid_is_refused(linear_deq):
    with pytest.raises(ValueError, match="image has pixels as large as 1e\\+12: expected about"):
        srs.certify(linear_deq, torch.full((1, 1, 1), 1e12), sigma=SIGMA, sampler=SOLVED)


def test_predict(linear_deq):
    x = linear_deq.at_true_radius(0.8)
    assert srs.predict(linear_deq, x, sigma=SIGMA, n=300, alpha=0.001) == 0
    assert srs.predict(linear_deq, linear_deq.at_true_radius(-0.8), sigma=SIGMA, n=300, alpha=0.001) == 1
    assert srs.predict(linear_deq, linear_deq.at_true_radius(0.0), sigma=SIGMA, n=300, alpha=0.001) == srs.ABSTAIN
    serialized = dict(sigma=SIGMA, n=300, alpha=0.001, sampler=SerializedSampler(chains=20))
    assert srs.predict(linear_deq, x, audit=200, **serialized) == 0
    assert srs.predict(linear_deq, linear_deq.at_true_radius(0.0), audit=200, **serialized) == srs.ABSTAIN
    with pytest.raises(ValueError, match="predict needs a guarantee: estimator = 'released_code'"):
        srs.predict(linear_deq, x, audit=200, estimator="released_code", **serialized)
    with pytest.raises(ValueError, match="predict needs independent votes, which a sampler of kind 'released' has not"):
        srs.predict(linear_deq, x, sigma=SIGMA, n=300, alpha=0.001, sampler=ReleasedSampler())


def test_predict_is_seldom_wrong(linear_deq):
    x, alpha, runs, config = linear_deq.at_true_radius(0.02), 0.05, 300, dict(sigma=SIGMA, n=100, n0=1, sampler=SOLVED)
    found = [srs.predict(linear_deq, x, alpha=alpha, seed=seed, **config) for seed in range(runs)]
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
    with pytest.raises(
        ValueError, match=r"reference = 'junk' is no sampler: give srs.DirectSampler\(\) or srs.StandardSampler\(...\)$"
    ):
        srs.certify(linear_deq, x, sigma=SIGMA, reference="junk")
    for bad in ({"sigma": 0}, {"alpha": 1.0}, {"n0": 0}, {"auditt": 5}, {"batch_size": 0}):
        with pytest.raises(ValidationError, match=next(iter(bad))):
            srs.certify(linear_deq, x, **{"sigma": SIGMA, **bad})
    with pytest.raises(ValidationError, match="n = 9 is too small for alpha = 0.001.*at least 10"):
        srs.certify(linear_deq, x, sigma=SIGMA, n=9)
    with pytest.raises(ValueError, match="audit = 500 is out of range"):
        srs.certify(linear_deq, x, sigma=SIGMA, n=100, audit=500, sampler=SerializedSampler())
    with pytest.raises(ValueError, match="audit = 5 of n = 100 draws certify nothing at alpha = 0.001.*at least 17"):
        srs.certify(linear_deq, x, sigma=SIGMA, n=100, audit=5, sampler=SerializedSampler())
    with pytest.raises(ValueError, match="for serialized votes n must be at least 11"):
        srs.certify(linear_deq, x, sigma=SIGMA, n=10, audit=10, sampler=SerializedSampler())


def test_an_audit_that_could_certify_nothing_is_refused_and_no_other():
    """Whether it can depends on its share of alpha, and on the census beside it."""
    settings = {"n": 100, "alpha": 0.001}
    for more in ({"audit": 17}, {"audit": 5, "census": 0.8}, {"audit": 0, "census": 1.0}, {"audit": 19, "split": 0.2}):
        CertifySettings(**settings, **more).require_audit()
    for more in ({"audit": 16}, {"audit": 5, "census": 0.1}, {"audit": 18, "split": 0.2}):
        with pytest.raises(ValueError, match=f"audit = {more['audit']} of n = 100 draws certify nothing"):
            CertifySettings(**settings, **more).require_audit()
    with pytest.raises(ValueError, match="split = 0.2: at least 19 are needed"):
        CertifySettings(audit=17, split=0.2, **settings).require_audit()
    with pytest.raises(ValueError, match="split = 0.99: for serialized votes n must be at least 17"):
        CertifySettings(n=16, alpha=0.001, audit=16, split=0.99).require_audit()
    settings, theirs = {"n": 1_000, "alpha": 0.001, "split": 0.05}, {"estimator": "theorem_3_1"}
    CertifySettings(**settings, audit=13, **theirs).require_audit()
    with pytest.raises(ValueError, match="estimator = 'finite_population', .*: at least"):
        CertifySettings(**settings, audit=13).require_audit()
    with pytest.raises(ValueError, match="estimator = 'theorem_3_1', .*: for serialized votes n must be at least"):
        CertifySettings(n=20, alpha=0.001, audit=20, **theirs).require_audit()
    with pytest.raises(ValueError, match="at least 6 are needed"):
        CertifySettings(n=1_000, alpha=0.001, audit=5, census=0.4).require_audit()


def test_the_vote_without_noise_is_counted_as_a_cost(linear_deq):
    """As much as one draw that selects the class."""
    settings = {"sigma": 0.5, "n": 200, "batch_size": 50}
    by_draw, by_clean = (
        srs.certify(linear_deq, torch.zeros(6), **settings, **how) for how in ({"n0": 1}, {"selection": "clean"})
    )
    assert by_clean.evaluations == by_draw.evaluations > 30 * 201
