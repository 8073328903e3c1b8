import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats

import srs
from srs import models
from srs.certificates.bounds import log_evidence
from srs.certificates.certify import ABSTAIN, CertifySettings
from srs.data.datasets import Part
from srs.deq.implicit import differentiable
from srs.deq.solvers import Solver
from srs.training.pgd import ascend, project, smoothed_loss
from srs.votes import noise as noises
from srs.votes.noise import rounded_noise
from srs.votes.samplers import UNDECIDED, DirectSampler, SerializedSampler, StandardSampler
from study import robustness as attacks
from study.known_answers import LinearDEQ
from study.robustness import Attack, Poll, attack, attack_images

TIGHT = Solver(method="broyden", steps=60, stop="relative", tolerance=1e-12)
SHORT = Solver(method="anderson", steps=8)


class TanhDEQ(torch.nn.Module):
    """z = tanh(A z + B x), ||A|| < 1, three classes, float64; the fixed point by plain iteration."""

    def __init__(self):
        super().__init__()
        a, self.b, self.w = (torch.randn(size, 4, dtype=torch.float64) for size in (4, 4, 3))
        self.a = 0.7 * a / torch.linalg.matrix_norm(a, 2)

    def inject(self, x):
        return x @ self.b.T

    def initial_state(self, injection):
        return torch.zeros_like(injection)

    def f(self, z, injection):
        return torch.tanh(z @ self.a.T + injection)

    def head(self, z):
        return 3 * z @ self.w.T

    def logits(self, x):
        z = torch.zeros_like(x)
        for _ in range(300):
            z = self.f(z, self.inject(x))
        return self.head(z)


def _linear():
    deq = LinearDEQ(size=4)
    for name in ("a", "b", "w"):
        setattr(deq, name, getattr(deq, name).double())
    deq.logits = lambda x: deq.head(deq.fixed_point(x))
    return deq


@pytest.mark.parametrize("copies", [None, 1, 5])
@pytest.mark.parametrize("make", [_linear, TanhDEQ])
def test_gradient_of_the_smoothed_loss_equals_finite_differences(make, copies):
    deq, x, labels = make(), torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 1, 1])
    noise = None if copies is None else 0.5 * torch.randn(3, copies, 4, dtype=torch.float64)
    x.requires_grad_()
    loss = smoothed_loss(differentiable(deq, TIGHT, TIGHT), x, labels, noise)
    gradient = torch.autograd.grad(loss.sum(), x)[0]
    assert gradient.norm(dim=1).min() > 1e-4
    with torch.no_grad():
        assert torch.allclose(loss, smoothed_loss(deq.logits, x, labels, noise), atol=1e-9)
        for column, unit in enumerate(1e-5 * torch.eye(4, dtype=torch.float64)):
            ahead, behind = (smoothed_loss(deq.logits, x + sign * unit, labels, noise) for sign in (1, -1))
            assert torch.allclose(gradient[:, column], (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-8)


def test_smoothed_loss_is_minus_the_logarithm_of_the_mean_probability():
    deq, x, labels, noise = TanhDEQ(), torch.randn(3, 4).double(), torch.tensor([2, 0, 1]), torch.randn(3, 6, 4).double()
    for row in range(3):
        probabilities = deq.logits(x[row] + noise[row]).softmax(dim=1)[:, labels[row]]
        assert smoothed_loss(deq.logits, x, labels, noise)[row] == pytest.approx(-np.log(probabilities.mean().item()))
    confident = smoothed_loss(lambda x: 1e3 * deq.logits(x), x, labels, noise)
    assert confident.isfinite().all()  # where the probabilities themselves underflow


def test_projection():
    shift, epsilon = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [3.0, 4.0]]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert torch.allclose(project(shift, epsilon), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0], [0.0, 0.0]]))


def test_rows_keep_to_their_own_balls_and_to_themselves():
    deq, x, labels, noise = TanhDEQ(), torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 0, 1]), torch.randn(1, 3, 4).double()
    epsilon, chosen = torch.tensor([0.05, 0.2, 0.8, 0.0, 5.0]).double(), Attack(samples=3, forward=TIGHT, backward=TIGHT)
    logits = differentiable(deq, chosen.forward, chosen.backward)
    found = attack(logits, x, labels, epsilon, chosen, 0.3, noise)
    distance = (found - x).norm(dim=1)
    assert (distance <= epsilon + 1e-9).all() and torch.allclose(distance[:3], epsilon[:3])
    assert distance[4] <= chosen.steps * chosen.step_size + 1e-9  # steps are of one length
    for row in range(5):
        here = slice(row, row + 1)
        alone = attack(logits, x[here], labels[here], epsilon[here], chosen, 0.3, noise)
        assert torch.allclose(alone[0], found[row], atol=1e-7)
    moved = smoothed_loss(deq.logits, found, labels, 0.3 * noise) - smoothed_loss(deq.logits, x, labels, 0.3 * noise)
    assert (moved[[0, 1, 2, 4]] > 0.01).all() and moved[3] == 0
    with pytest.raises(ValueError, match="noise has 0 copies.*samples = 3"):
        attack(logits, x, labels, epsilon, chosen)


def test_plain_pgd_walks_straight_to_the_boundary_of_a_half_space(linear_deq):
    x = torch.randn(3, 6)
    labels = torch.tensor([0 if linear_deq.true_radius(row) > 0 else 1 for row in x])
    chosen = Attack(steps=7, step_size=0.1)
    found = attack(differentiable(linear_deq, TIGHT, TIGHT), x, labels, torch.full((3,), 9.0), chosen)
    for row, label, before in zip(found, labels, x):
        walked = linear_deq.true_radius(before) - linear_deq.true_radius(row)
        assert walked == pytest.approx(0.7 if label == 0 else -0.7, abs=1e-4)


def test_a_lost_row_has_no_gradient_and_spoils_no_other():
    class Fragile(TanhDEQ):
        def f(self, z, injection):
            return torch.where(injection[:, :1] > 5, torch.nan, 1.0) * super().f(z, injection)

    deq, x, labels = Fragile(), 0.1 * torch.randn(2, 4).double(), torch.tensor([0, 1])
    noise = torch.zeros(2, 3, 4).double()
    noise[0, 1] = torch.linalg.solve(deq.b, torch.full((4,), 10.0).double())  # one copy of three
    x.requires_grad_()
    logits = differentiable(deq, SHORT, SHORT)
    out = logits((x[:, None] + noise).flatten(0, 1))
    assert out.isfinite().all() and not out[1].any() and out[[0, 2, 3, 4, 5]].all()
    gradient = torch.autograd.grad(smoothed_loss(logits, x, labels, noise).sum(), x)[0]
    assert gradient.isfinite().all() and (gradient.norm(dim=1) > 1e-4).all()
    lost = (x + noise[:, 1]).detach().requires_grad_()
    gradient = torch.autograd.grad(logits(lost).sum(), lost)[0]
    assert not gradient[0].any() and gradient[1].any()
    stuck = ascend(logits, lost.detach()[:1], labels[:1], None, torch.ones(1).double(), 3, 0.1)
    assert torch.equal(stuck, lost[:1])


def test_a_confident_classifier_still_has_a_direction():
    weight = torch.tensor([[30.0, 0.0], [-30.0, 0.0]])  # the gradient is of the size of e^-60, its square underflows
    found = attack(lambda x: x @ weight.T, torch.ones(1, 2), torch.tensor([0]), torch.tensor([2.0]), Attack())
    assert found[0].tolist() == pytest.approx([-1.0, 1.0], abs=1e-5)


def test_the_attack_raises_the_loss_of_a_trained_model(trained, digits):
    indices = np.arange(6)
    x, labels = digits.test.images(indices), torch.from_numpy(digits.test.labels[indices])
    noise = torch.randn(6, 4, *x.shape[1:])
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    logits = differentiable(trained, Solver(steps=10), Attack().backward)
    epsilon = torch.full((6,), 0.5)
    found = attack(logits, x, labels, epsilon, Attack(samples=4, steps=4, step_size=0.25), 0.25, noise)
    with torch.no_grad():
        change = smoothed_loss(logits, found, labels, 0.25 * noise) - smoothed_loss(logits, x, labels, 0.25 * noise)
        random = project(torch.randn_like(x) * 100, epsilon)
        chance = smoothed_loss(logits, x + random, labels, 0.25 * noise) - smoothed_loss(logits, x, labels, 0.25 * noise)
    assert (change > 0.05).all() and (change > chance).all()
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert all(p.grad is None for p in trained.parameters())


# PREDICT, sequential


def _answer(votes, n=1_000, alpha=0.001, classes=4, step=20):
    poll = Poll(n, alpha, classes)
    for first in range(0, n, step):
        poll.add(votes[first : first + step])
        if poll.answer is not None:
            break
    return poll.answer, poll.drawn


def test_a_clear_vote_is_settled_soon_and_a_close_one_is_not():
    assert _answer(np.full(1_000, 2)) == (2, 20)
    rng = np.random.default_rng(0)
    assert _answer(rng.choice(4, 1_000, p=[0.8, 0.2, 0, 0]))[1] < 100
    assert _answer(rng.choice(4, 1_000, p=[0.4, 0.2, 0.2, 0.2]))[0] == 0  # no majority is needed
    answer, drawn = _answer(rng.choice(4, 1_000, p=[0.4, 0.39, 0.2, 0.01]))
    assert answer == ABSTAIN and 100 < drawn < 600  # given up
    assert _answer(np.full(1_000, UNDECIDED))[0] == ABSTAIN


def test_giving_up_costs_few_answers():
    def full(votes):  # the same evidence, all votes awaited
        for_0 = np.cumsum(votes == 0)[19::20]
        return (log_evidence(for_0, np.arange(20, 1_001, 20), 0.5) >= np.log(2 / 0.001)).any()

    rng = np.random.default_rng(2)
    for p in (0.55, 0.58, 0.61):
        polls = [rng.choice(2, 1_000, p=[p, 1 - p]) for _ in range(300)]
        found, possible = (sum(named) for named in zip(*((_answer(v, classes=2)[0] == 0, full(v)) for v in polls)))
        assert 0.8 * possible <= found <= possible and found > 0


def test_a_poll_is_seldom_wrong_whenever_it_stops():
    """Two classes with half each, so that neither may be named: at most alpha of the runs, by an exact binomial test."""
    rng, runs, alpha = np.random.default_rng(1), 2_000, 0.05
    named = [_answer(rng.integers(0, 2, 400), n=400, alpha=alpha, classes=2, step=5)[0] != ABSTAIN for _ in range(runs)]
    assert stats.binomtest(sum(named), runs, alpha, alternative="greater").pvalue > 1e-3
    assert sum(named) > 0
    hasty = [_answer(rng.integers(0, 2, 400), n=400, alpha=20 * alpha, classes=2, step=5)[0] != ABSTAIN for _ in range(200)]
    assert stats.binomtest(sum(hasty), 200, alpha, alternative="greater").pvalue < 1e-3  # the test above can fail


# Attacks on images whose truth is known

ATTACKS = {"pgd": Attack(forward=SHORT, backward=SHORT), "smooth-4": Attack(samples=4, forward=SHORT, backward=SHORT)}
CONFIG = CertifySettings(sigma=0.25, n0=20, n=1_000, alpha=0.001, batch_size=200)
VECTORS = Part(np.random.default_rng(1).integers(0, 256, (8, 6)).astype(np.uint8), np.zeros(8, np.int64), 255)


def _planted(distance):
    """A half-space from whose boundary the first vector lies ``distance`` away; labels of all vectors are right."""
    deq = LinearDEQ().eval()
    first = VECTORS.images(np.array([0]))[0]
    deq.offset = distance * float(deq.gradient().norm()) - float(first @ deq.gradient())
    assert deq.true_radius(first) == pytest.approx(distance, abs=1e-5)
    truth = np.array([0 if deq.true_radius(x) > 0 else 1 for x in VECTORS.images(np.arange(8))])
    return deq, Part(VECTORS.pixels, truth, 255)


def _run(model, part, indices, radii, sampler=None, chosen=ATTACKS, config=CONFIG):
    return attack_images(model, part, np.asarray(indices), chosen, radii, sampler or StandardSampler(), config)


def _half_space(deq):
    model = torch.nn.Linear(6, 2)
    with torch.no_grad():
        model.weight.copy_(torch.stack([deq.gradient(), torch.zeros(6)]))
        model.bias.copy_(torch.tensor([deq.offset, 0.0]))
    return model.eval()


@pytest.mark.parametrize("direct", [False, True], ids=["deq", "linear"])
def test_attacks_win_beyond_the_boundary_and_only_there(direct, tmp_path):
    deq, part = _planted(0.6)
    model, sampler = (_half_space(deq), DirectSampler()) if direct else (deq, StandardSampler(solver=SHORT))
    radii = [0, 0.3, 0.5, 0.7, 0.9]
    records = _run(model, part, [0], radii, sampler)
    assert [(r["attack"], r["radius"]) for r in records] == [("none", 0.0)] + [(a, r) for a in ATTACKS for r in radii[1:]]
    for record in records:
        assert record["fooled"] == (record["radius"] > 0.6)
        assert record["prediction"] == int(record["radius"] > 0.6)
        # at 0.7 the attack wins; with more budget it has won already, by the same image
        assert record["distance"] == pytest.approx(min(record["radius"], 0.7), abs=2e-4)  # cut to the noise's grid
        assert record["draws"] <= 1_020 and (record["draws"] == 0) == (record["radius"] > 0.7)
    assert records[0]["draws"] < 700  # and it stopped early
    assert all(json.loads(json.dumps(record)) == record for record in records)


def test_no_attack_wins_within_a_certified_radius(tmp_path):
    deq, part = _planted(0.4)
    sampler, certified = StandardSampler(solver=SHORT), 0
    for index in range(8):
        x = part.images(np.array([index]))[0]
        certificate = srs.certify(deq, x, index=index, sampler=sampler, **CONFIG.model_dump())
        if certificate.prediction == part.labels[index]:
            certified += 1
            beyond = abs(deq.true_radius(x)) + 0.15
            records = _run(deq, part, [index], [certificate.radius, beyond], sampler)
            assert [r["fooled"] for r in records] == [False] + [False, beyond < 2] * 2  # 20 steps of 0.1 reach no further
    assert certified >= 5


def test_a_wrong_or_abstaining_prediction_needs_no_attack(tmp_path):
    deq, part = _planted(0.6)
    wrong = Part(part.pixels, 1 - part.labels, part.scale)
    (record,) = _run(deq, wrong, [0], [0.5, 1.0])
    assert (record["attack"], record["radius"], record["prediction"], record["fooled"]) == ("none", 0.0, 0, True)
    deq, part = _planted(0.0)
    (record,) = _run(deq, part, [0], [0.5, 1.0])
    assert (record["prediction"], record["fooled"]) == (ABSTAIN, False)


def test_images_do_not_depend_on_their_company(trained, digits):
    few = dict(steps=3, step_size=2.0, forward=Solver(steps=3), backward=Solver(steps=3))
    chosen = {"pgd": Attack(**few), "smooth-2": Attack(samples=2, **few)}
    config = CONFIG.model_copy(update={"n": 60, "n0": 10, "batch_size": 35})
    run = dict(radii=[0.25, 0, 5.0], chosen=chosen, sampler=StandardSampler(solver=Solver(steps=5)), config=config)
    whole = _run(trained, digits.test, [3, 40, 80], **run)
    assert len(whole) >= 7 and any(record["fooled"] for record in whole)
    alone = [record for index in (3, 40, 80) for record in _run(trained, digits.test, [index], **run)]
    for one, other in zip(whole, alone):
        assert one.pop("distance") == pytest.approx(other.pop("distance"), abs=1e-4)
        assert one == other


def test_noise_is_neither_certifications_nor_one_for_both(monkeypatch, tmp_path):
    keys = []

    def spy(seed, index, draws, size, sigma):
        keys.append((seed, index))
        return rounded_noise(seed, index, draws, size, sigma)

    for module in (attacks, noises):
        monkeypatch.setattr(module, "rounded_noise", spy)
    deq, part = _planted(0.6)
    _run(deq, part, [0], [0.3], config=CONFIG.model_copy(update={"seed": 5}))
    assert len(set(keys)) == 2 and all(seed == 2**63 + 5 and index >= 2**61 for seed, index in keys)
    noise = [rounded_noise(*key, np.arange(3), 4, 0.5).tobytes() for key in set(keys)]
    assert len({*noise, rounded_noise(5, 0, np.arange(3), 4, 0.5).tobytes()}) == 3


def test_a_resnet_is_attacked_as_any_classifier(digits, tmp_path):
    model = models.build("resnet-110", depth=8, image_size=8, mean=(0.3,), std=(0.4,)).eval().fold()
    with torch.no_grad():
        label = model(digits.test.images(np.array([0]))).argmax().item()
    part = Part(digits.test.pixels, np.full(len(digits.test), label), digits.test.scale)
    config = CONFIG.model_copy(update={"n": 100, "sigma": 0.05})
    records = _run(model, part, [0], [2.0], DirectSampler(), config=config)
    assert [r["fooled"] for r in records] == [False, True, True]


def test_clear_errors(trained, digits, tmp_path):
    deq, part = _planted(0.6)
    for run, named in [
        (dict(radii=[-0.5]), "radii"),
        (dict(radii=[np.inf]), "radii"),
        (dict(radii=[1.0], chosen={"none": Attack()}), "'none'"),
        (dict(radii=[1.0], sampler=SerializedSampler()), "PREDICT needs independent votes.*'serialized'"),
    ]:
        with pytest.raises(ValueError, match=named):
            _run(deq, part, [0], **run)
    with pytest.raises(ValueError, match="training mode"):
        _run(LinearDEQ(), part, [0], [1.0])
    for bad in ({"samples": -1}, {"steps": 0}, {"step_size": 0}, {"epsilon": 1}, {"forward": {"steps": 0}}):
        with pytest.raises(ValidationError, match=next(iter(bad))):
            Attack(**bad)
