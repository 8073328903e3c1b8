import numpy as np
import pytest
import torch
from scipy import special, stats

import srs
from srs.certificates import at_radius, bounds
from srs.certificates.at_radius import (
    RadiusEstimate,
    RadiusTest,
    SequentialSettings,
    certify_at,
    certify_until,
    decide_at,
    decide_until,
)
from srs.certificates.certify import CertifySettings
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import UNDECIDED, CleanVote, SerializedSampler, StandardSampler, Votes

SIGMA = 0.5
CLEAN = CleanVote(0, 2, 1)


def _settings(**more):
    """Those of a test in which the clean image's class is preferred, all votes are counted."""
    return CertifySettings(sigma=SIGMA, selection="clean", **more)


def _stream(p, n, seed, others=1):
    """Votes for class 0 with probability p, else for one of ``others`` in turn."""
    return np.where(np.random.default_rng(seed).random(n) < p, 0, 1 + np.arange(n) % others).astype(np.int32)


def _false_certificates(p_0, alpha, runs=400, clean=CLEAN):
    """How many of ``runs`` tests certify at the edge of the hypothesis, with a look after every vote; and the exact binomial
    p-value of "at most alpha of all"."""
    r, config = SIGMA * stats.norm.ppf(p_0), _settings(n=500, alpha=alpha)
    false = 0
    for run in range(runs):
        test = RadiusTest(r, config, clean)
        test.add(_stream(p_0, config.n, run))
        false += test.outcome == "certified"
    return false, stats.binomtest(false, runs, alpha, alternative="greater").pvalue


@pytest.mark.parametrize("p_0, alpha", [(0.6, 0.05), (0.9, 0.05), (0.99, 0.05), (0.6, 0.001)])
def test_false_certificates_are_as_rare_as_alpha(p_0, alpha):
    false, p_value = _false_certificates(p_0, alpha)
    assert p_value > 1e-3
    assert false > 0 or alpha < 0.05


@pytest.mark.parametrize("p_0, alpha", [(0.6, 0.05), (0.9, 0.05), (0.6, 0.001)])
def test_a_naive_test_would_be_found_out(p_0, alpha, monkeypatch):
    """Clopper and Pearson's p-value for a fixed number of votes in the martingale's place, looked at after every vote."""

    def peeking(successes, trials, p):
        return -np.log(np.maximum(special.bdtrc(successes - 1.0, trials, p), 1e-300))

    monkeypatch.setattr(bounds, "log_evidence", peeking)
    assert _false_certificates(p_0, alpha)[1] < 1e-3


@pytest.mark.parametrize("vote", [0, 1, UNDECIDED])
def test_of_two_classes_at_one_half_none_is_certified(vote):
    """At r = 0 both may be certified, falsely: all together are allowed alpha, whatever the clean image says."""
    false, p_value = _false_certificates(0.5, 0.05, runs=500, clean=CleanVote(vote, 2, 1))
    assert p_value > 1e-3 and false > 0


def test_the_whole_alpha_for_every_class_would_be_found_out(monkeypatch):
    """That at most one class can be right is no reason for it: at one half none is."""
    monkeypatch.setattr(bounds, "shares_of_alpha", lambda classes, clean: np.ones(classes))
    false, p_value = _false_certificates(0.5, 0.05, runs=1_000)
    assert p_value < 1e-3 and 0.06 < false / 1_000 < 0.11


def test_images_that_share_batches_and_stop_early_are_not_certified_more_often():
    """The whole of it, the draws that name a class included, for a linear classifier at its true radius."""
    runs, r, alpha = 400, 0.25, 0.05

    def classifier(x):
        return torch.stack([x[:, 0], torch.zeros(len(x))], dim=1)

    settings = {"sigma": SIGMA, "n": 300, "alpha": alpha, "batch_size": 10_000}
    found = certify_at(classifier, [torch.tensor([r])] * runs, r, **settings)
    false = sum(s.outcome == "certified" for s in found)
    assert stats.binomtest(false, runs, alpha, alternative="greater").pvalue > 1e-3
    assert false > 0 and len({s.drawn for s in found}) > 50


def test_clear_images_are_settled_soon_and_hopeless_ones_too():
    config = _settings(n=10_000)
    drawn = {}
    for p, outcome in ((0.99, "certified"), (0.3, "refuted"), (stats.norm.cdf(0.5) + 0.002, "exhausted")):
        test, votes = RadiusTest(0.25, config, CleanVote(0, 4, 1)), _stream(p, config.n, 1, others=3)
        while test.outcome is None:
            test.add(votes[test.drawn : test.drawn + 20])
        assert test.outcome == outcome
        drawn[outcome] = test.drawn
    assert drawn["certified"] < 200 and drawn["refuted"] < 200 and 9_000 < drawn["exhausted"] <= config.n


def test_what_cannot_be_certified_any_more_is_not_drawn():
    test = RadiusTest(0.25, _settings(n=40, alpha=0.001), CleanVote(0, 10, 1))
    test.add(np.arange(20) % 10)
    assert test.outcome in ("exhausted", "refuted") and test.drawn < 20


def test_nothing_depends_on_how_votes_come():
    votes, config, found = _stream(0.75, 1_000, 4), _settings(n=1_000), set()
    for size in (1, 7, 400, 1_000):
        test = RadiusTest(0.25, config, CLEAN)
        for first in range(0, 1_000, size):
            test.add(votes[first : first + size])
        found.add((test.outcome, test.drawn, *test.counts.tolist()))
    assert len(found) == 1


def test_votes_beyond_the_last_do_not_count():
    test = RadiusTest(0.25, _settings(n=40, alpha=0.05), CLEAN)
    test.add(np.arange(1_000) % 10 < 2)  # 80 % for class 0: not settled before
    assert test.drawn <= 40 and test.outcome == "exhausted"
    drawn = test.drawn
    test.add(np.zeros(5, int))
    assert test.drawn == drawn


def test_a_linear_deq_is_certified_within_its_true_radius_and_not_beyond(linear_deq):
    images = [linear_deq.at_true_radius(r) for r in (0.9, 0.6, 0.2, -0.5)]
    found = certify_at(linear_deq, images, 0.4, sigma=SIGMA, n=4_000, alpha=0.001, batch_size=200)
    assert [s.outcome for s in found[:3]] == ["certified", "certified", "refuted"]
    assert [s.prediction for s in found] == [0, 0, srs.ABSTAIN, 1]  # the last is as far on the other side
    assert found[0].drawn < found[1].drawn
    assert [s.preferred for s in found] == [0, 0, 0, 1] and {s.share for s in found} == {0.9}
    assert all(s.n0 == 5 and s.evaluations >= 30 * (1 + s.n0 + s.drawn) for s in found)


def test_what_names_a_class_is_not_counted(linear_deq):
    """n0 draws, or the clean image: the counted draws are those that follow, and the answer is about the same point."""
    image = linear_deq.at_true_radius(0.7)
    votes = StandardSampler().sample(linear_deq, NoisyCopies(image, 0, SIGMA, 0), np.arange(2_007), 400)
    for given, n0 in ({}, 5), ({"n0": 7}, 7), ({"selection": "clean"}, 0):
        (found,) = certify_at(linear_deq, [image], 0.4, sigma=SIGMA, n=2_000, **given)
        (precise,) = certify_until(linear_deq, [image], gain=0.1, sigma=SIGMA, n=2_000, **given)
        assert (found.outcome, found.prediction, found.preferred, found.n0, precise.n0) == ("certified", 0, 0, n0, n0)
        assert found.n_a == (votes.classes[n0 : n0 + found.drawn] == 0).sum()
        assert precise.n_a == (votes.classes[n0 : n0 + precise.n] == 0).sum()


def test_an_image_off_the_grid_is_tested_as_much_farther_out(linear_deq, monkeypatch):
    """Votes are cast at the nearest point of the grid: what is certified at r is tested at r plus the way there."""
    tested, image = [], linear_deq.at_true_radius(0.7) + 1e-5 * torch.arange(1, 7)
    away = NoisyCopies(image, 0, SIGMA, 0).moved

    class Seen(RadiusTest):
        def __init__(self, r, *given):
            tested.append(r)
            super().__init__(r, *given)

    monkeypatch.setattr(at_radius, "RadiusTest", Seen)
    (found,) = certify_at(linear_deq, [image], 0.4, sigma=SIGMA, n=2_000)
    assert away > 1e-5 and tested == [0.4 + away] and found.r == 0.4 and found.outcome == "certified"


def test_the_votes_that_are_not_counted_name_the_class():
    """Their majority, whatever the clean image says, and however they come; no share is chosen by a vote that counts."""
    config, named = SequentialSettings(sigma=SIGMA, n=1_000), []
    for ballots in ([1, 1, 0, 1, 0], [0, UNDECIDED, 1, 0, 1], [UNDECIDED] * 5):
        votes, found = np.concatenate([ballots, _stream(0.9, 1_000, 1)]), set()
        for size in (1, 3, 400):
            test = RadiusTest(0.1, config, CleanVote(1, 10, 1))
            for first in range(0, len(votes), size):
                test.add(votes[first : first + size])
            found.add((test.preferred, test.outcome, test.top, test.drawn, test.shares[0]))
        named += found
    assert [one[:3] for one in named] == [(1, "certified", 0), (0, "certified", 0), (srs.ABSTAIN, "certified", 0)]
    assert [round(one[4], 3) for one in named] == [0.011, 0.9, 0.1]
    assert named[1][3] < named[2][3] < named[0][3]


def test_neighbours_and_batches_change_no_vote(linear_deq):
    images = [linear_deq.at_true_radius(r) for r in (0.9, 0.6)]
    together = certify_at(linear_deq, images, 0.4, sigma=SIGMA, n=2_000, batch_size=64)
    for index, (image, whole) in enumerate(zip(images, together)):
        for size in (7, 400):
            (alone,) = certify_at(linear_deq, [image], 0.4, sigma=SIGMA, n=2_000, batch_size=size, indices=[index])
            assert (alone.prediction, alone.outcome) == (whole.prediction, whole.outcome)
            assert (alone.n_a, alone.drawn) == (whole.n_a, whole.drawn)


def test_an_early_stop_saves_work(linear_deq):
    images = [linear_deq.at_true_radius(r) for r in (0.9, 1.0, 1.1)]
    found = certify_at(linear_deq, images, 0.4, sigma=SIGMA, n=4_000, batch_size=60)
    assert all(s.outcome == "certified" for s in found)
    for s in found:
        assert s.evaluations <= 30 * (8 + s.drawn + min(60, s.drawn)) < 30 * s.n / 4  # not a round more


def test_no_more_is_drawn_than_there_is(linear_deq):
    edge = linear_deq.at_true_radius(0.41)
    (found,) = certify_at(linear_deq, [edge], 0.4, sigma=SIGMA, n=250, batch_size=200)
    assert found.outcome == "exhausted"
    assert found.evaluations <= 30 * (8 + found.n)  # of which 7 look at the rows


def test_an_image_of_undecided_votes_is_not_settled_by_them():
    lost = {"model": lambda x: torch.full((len(x), 2), torch.nan), "images": [torch.zeros(3)], "sigma": SIGMA, "n": 100}
    (found,) = certify_at(r=0.1, **lost)
    assert (found.outcome, *{found.prediction, found.top, found.preferred}) == ("refuted", srs.ABSTAIN)
    (estimate,) = certify_until(gain=0.01, **lost)
    assert (estimate.prediction, estimate.n_a, estimate.undecided) == (srs.ABSTAIN, 0, estimate.n) and estimate.n < 20


@pytest.mark.parametrize("n, alpha", [(100, 0.001), (10_000, 0.001), (1_000, 0.05)])
def test_the_largest_radius_is_that_of_unanimous_votes(n, alpha):
    farthest = bounds.largest_radius_by_evidence(n, alpha, SIGMA)
    outcomes = []
    for r in (farthest - 1e-6, farthest + 1e-6):
        test = RadiusTest(r, _settings(n=n, alpha=alpha), CLEAN)
        test.add(np.zeros(n, int))
        outcomes.append(test.outcome)
        assert test.least == n
    assert outcomes == ["certified", "exhausted"]
    assert farthest < bounds.largest_radius(n, alpha, SIGMA)


def test_a_class_that_the_clean_image_does_not_name_is_certified_too():
    """At its smaller share: later, by about log 81 / KL."""
    config, drawn = _settings(n=1_000), []
    for vote in (0, UNDECIDED, 1):
        test = RadiusTest(0.1, config, CleanVote(vote, 10, 1))
        test.add(_stream(0.9, 1_000, 1))
        assert (test.outcome, test.top) == ("certified", 0)
        drawn.append(test.drawn)
    assert drawn[0] < drawn[1] < drawn[2] < 2 * drawn[0]


def _passed(p, alpha, runs=250):
    """In how many of ``runs`` a radius that is estimated ever passes the true one, whenever one stops; and the exact binomial
    p-value of "at most alpha of all"."""
    config, false = _settings(n=300, alpha=alpha), 0
    for run in range(runs):
        test, votes, passed = RadiusEstimate(1e-9, config, CLEAN), _stream(p, 300, run), False
        while test.outcome is None and not passed:
            test.add(votes[test.drawn : test.next])
            passed = test.p_a_lower > max(p, 0.5)
        false += passed
    return false, stats.binomtest(false, runs, alpha, alternative="greater").pvalue


@pytest.mark.parametrize("p, alpha", [(0.5, 0.05), (0.95, 0.05), (0.95, 0.001)])
def test_radii_are_false_as_rarely_as_alpha_wherever_one_stops(p, alpha):
    false, p_value = _passed(p, alpha)
    assert p_value > 1e-3 and (false > 0 or alpha < 0.05)


def test_a_bound_for_one_number_of_votes_would_be_found_out(monkeypatch):
    """Clopper and Pearson's, at the time that suits it."""
    monkeypatch.setattr(bounds, "lower_by_evidence", bounds.clopper_pearson_lower)
    assert _passed(0.95, 0.05, runs=800)[1] < 1e-4


def test_a_smaller_gain_takes_more_draws_and_leaves_less_of_the_radius(linear_deq):
    images, gains = [linear_deq.at_true_radius(r) for r in (0.9, 0.4, -0.4)], (0.05, 0.02)
    coarse, fine = (certify_until(linear_deq, images, gain=g, sigma=SIGMA, n=4_000, batch_size=300) for g in gains)
    assert [found.prediction for found in coarse + fine] == [0, 0, 1] * 2
    for one, other, true in zip(coarse, fine, (0.9, 0.4, 0.4)):
        assert one.n < other.n <= 4_000 and one.radius < other.radius < true
        level = 0.9 * one.alpha
        for found, gain in zip((one, other), gains):
            assert found.p_a_lower == bounds.lower_by_evidence(found.n_a, found.n, level)
            twice = bounds.radius(bounds.lower_by_evidence(2 * found.n_a, 2 * found.n, level), SIGMA)
            assert twice - found.radius < gain or found.n == 4_000


def test_what_has_no_majority_is_soon_given_up():
    """Not drawn to a precision that nobody asked for: it has no radius."""
    test = RadiusEstimate(0.001, _settings(n=1_000), CleanVote(0, 4, 1))
    test.add(_stream(0.3, 1_000, 1, others=3))
    assert test.outcome == "refuted" and test.drawn < 300


def test_an_estimate_depends_on_nothing_but_its_votes():
    votes, config, found = _stream(0.9, 1_000, 4), _settings(n=1_000), set()
    for size in (1, 7, 400, 1_000):
        test = RadiusEstimate(0.05, config, CLEAN)
        for first in range(0, 1_000, size):
            test.add(votes[first : first + size])
        found.add((test.outcome, test.drawn, *test.counts.tolist()))
    assert len(found) == 1 and 100 < test.drawn < 1_000


def test_an_image_far_from_the_grid_of_little_noise_is_not_certified(linear_deq):
    """Away from it by more than Phi can tell from 1."""
    (found,) = certify_at(linear_deq, [torch.full((6,), 0.30003)], 0.0, sigma=1e-6, n=100)
    assert found.prediction == srs.ABSTAIN and found.outcome == "exhausted"


def test_clear_errors(linear_deq):
    with pytest.raises(ValueError, match=r"r = 1.58 is out of range: n = 10000 draws can certify 0 to 1.55\d in a seq"):
        certify_at(linear_deq, [torch.zeros(6)], 1.58, sigma=SIGMA)
    with pytest.raises(ValueError, match="n = 11 is too small .* in a sequential test; n must be at least 13"):
        certify_at(linear_deq, [torch.zeros(6)], 0, sigma=SIGMA, n=11)
    with pytest.raises(ValueError, match="n = 11 is too small"):
        certify_until(linear_deq, [torch.zeros(6)], gain=0.1, sigma=SIGMA, n=11)
    assert certify_at(linear_deq, [torch.zeros(6)], 0, sigma=SIGMA, n=13)[0].n == 13
    with pytest.raises(ValueError, match="indices number 2 images, but there are 1"):
        certify_at(linear_deq, [torch.zeros(6)], 0.1, sigma=SIGMA, indices=[1, 2])
    with pytest.raises(ValueError, match="r = -1"):
        certify_at(linear_deq, [torch.zeros(6)], -1, sigma=SIGMA)
    for r in (True, "0.1", None, float("nan"), [0.1]):
        with pytest.raises(ValueError, match=r"r = .* is out of range: n = 10000 draws can certify 0 to 6\.2"):
            certify_at(linear_deq, [torch.zeros(6)], r, sigma=2.0)
    with pytest.raises(ValueError, match="a sequential test needs independent votes, which a sampler of kind 'serialized'"):
        certify_at(linear_deq, [torch.zeros(6)], 0.5, sigma=SIGMA, sampler=SerializedSampler())
    for gain in (0, -0.1, True, "0.1", None, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="gain = .* is out of range: expected a number above 0"):
            certify_until(linear_deq, [torch.zeros(6)], gain=gain, sigma=SIGMA)
    for more, told in (
        ({"estimator": "released_code"}, "estimator = 'released_code': a sequential certificate has no audit"),
        ({"audit": 400, "census": 0.1}, "audit = 400, census = 0.1: a sequential certificate has no audit"),
    ):
        with pytest.raises(ValueError, match=told):
            certify_at(linear_deq, [torch.zeros(6)], 0.5, sigma=SIGMA, **more)
        with pytest.raises(ValueError, match=told):
            certify_until(linear_deq, [torch.zeros(6)], gain=0.1, sigma=SIGMA, **more)
    with pytest.raises(ValueError, match="training mode"):
        certify_at(linear_deq.train(), [torch.zeros(6)], 0.5, sigma=SIGMA)


def test_undecided_votes_are_not_for_the_class():
    """6 of 10 votes are for class 0, 4 undecided: that is far from p_A > 0.8, though nobody else was voted for."""
    config = _settings(n=2_000, alpha=0.05, batch_size=100)
    spent = []

    def cast(which, draws):
        found = []
        for numbers in draws:
            votes = Votes.blank(len(numbers))
            votes.classes[:], votes.evaluations[:] = np.where(numbers % 10 < 6, 0, UNDECIDED), 1 + numbers % 3
            found.append(votes)
            spent.append(int(votes.evaluations.sum()))
        return found

    (found,) = decide_at(cast, [CleanVote(0, 10, 5)], SIGMA * stats.norm.ppf(0.8), config)
    assert (found.outcome, found.top) == ("refuted", 0)
    assert found.n_a <= 0.65 * found.drawn
    assert found.evaluations == 5 + sum(spent)
    spent.clear()
    (estimate,) = decide_until(cast, [CleanVote(0, 10, 5)], 0.1, config)
    assert estimate.undecided == estimate.n - estimate.n_a == pytest.approx(0.4 * estimate.n, abs=3)
    assert estimate.evaluations == 5 + sum(spent)
