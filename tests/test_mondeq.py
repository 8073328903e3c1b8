"""Monotone DEQs: bounds that hold in exact arithmetic, votes of the exact fixed point, and what they certify."""

import copy
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

import srs
from srs import models
from srs.certificates import bounds
from srs.certificates.lipschitz import certify_lipschitz
from srs.data.datasets import DataConfig
from srs.deq.definition import classify
from srs.deq.solvers import Solver, solve
from srs.models import spectrum
from srs.models.mondeq import MonDEQ, MonDEQConfig
from srs.training.train import Training, train
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import UNDECIDED, SerializedSampler, StandardSampler

SIGMA = 0.5
SETTLED = Solver(method="naive", steps=60, stop="settled")
CHAIN = SerializedSampler(solver=SETTLED, warmup=SETTLED, chains=50)
EPS = torch.finfo(torch.float64).eps
LAPACK = torch.linalg.eigvalsh


@pytest.fixture(scope="module")
def state(digits, tmp_path_factory):
    """A small monDEQ, trained for some three seconds, that is right about more than half of the noisy digits."""
    naive = Solver(method="naive", steps=8)
    config = Training(
        sigma=SIGMA,
        epochs=9,
        evaluate_every=9,
        learning_rate=0.01,
        unrolled_steps=0,
        jacobian_weight=0,
        forward=naive,
        backward=naive,
        evaluation=naive,
    )
    result = train("mondeq", {"size": 32}, digits, DataConfig(), config, tmp_path_factory.mktemp("mondeq") / "run.pt")
    assert result["history"][-1]["validation_accuracy"] > 0.5
    return result["model"]


@pytest.fixture
def trained(state):
    return models.restore(state).eval().fold()


def _random(size=8, m=0.2, classes=3, pixels=2, scale=1.0, **more):
    """A monDEQ of random weights in double precision."""
    model = MonDEQ(MonDEQConfig(size=size, monotonicity=m, num_classes=classes, image_size=pixels, **more))
    with torch.no_grad():
        for weight in (model.a, model.b):
            weight.mul_(scale)
    return model.double().eval().fold()


def _scalar(m, weight=((1.0,), (0.0,)), bias=(0.0, 0.0)):
    """One unit, one pixel, W = 1 - m: z* = x / m where x > 0."""
    model = MonDEQ(MonDEQConfig(size=1, monotonicity=m, num_classes=2, image_size=1, mean=(0.0,), std=(1.0,)))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), ([[0.0]], [[0.0]], [[1.0]], [0.0], weight, bias)):
            parameter.copy_(torch.tensor(value))
    return model.double().eval().fold()


@torch.no_grad()
def _exact(model, x):
    """The exact fixed point's logits to about 1e-12, by the definition z = relu(W z + U x + b) alone, in double precision."""
    model = copy.deepcopy(model).double()
    u = model.inject(x.double())[:, :-1]
    identity = torch.eye(len(model.weight), dtype=u.dtype)
    step = 1 / float(torch.linalg.matrix_norm(identity - model.weight, 2))
    inverse = torch.linalg.inv(identity + step * (identity - model.weight))
    y = torch.zeros_like(u)
    for _ in range(20_000):  # Douglas-Rachford splitting: neither the model's iteration nor its R
        z = y.relu()
        if (z - (z @ model.weight.T + u).relu()).norm(dim=1).max() < 1e-12:
            return z @ model.output.weight.T + model.output.bias
        y = y + (2 * z - y + step * u) @ inverse.T - z
    raise AssertionError("no fixed point was found")


def _margins(logits, classes):
    """By how much the logits of ``classes`` are above all others."""
    top = logits.gather(1, classes[:, None])
    return (top - logits.scatter(1, classes[:, None], -torch.inf).amax(dim=1, keepdim=True))[:, 0]


def test_eigenvalues_are_bounded_in_exact_arithmetic(monkeypatch):
    """M - t I has positive pivots alone in rational numbers for the bound t, not a little above it; were LAPACK wrong, too."""

    def definite(matrix, t):
        rows = [
            [Fraction(float(x)) - (Fraction(t) if i == j else 0) for j, x in enumerate(row)] for i, row in enumerate(matrix)
        ]
        for k in range(len(rows)):
            if rows[k][k] <= 0:
                return False
            for i in range(k + 1, len(rows)):
                factor = rows[i][k] / rows[k][k]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k])]
        return True

    for seed in range(12):
        g = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        matrix = g + g.T if seed % 2 else g[:, :2] @ g[:, :2].T  # of full rank, and of rank 2
        matrix = (matrix + matrix.T) / 2
        t = spectrum.least_eigenvalue(matrix)
        assert definite(matrix, t) and not definite(matrix, t + 1e-11)
        with monkeypatch.context() as patch:
            patch.setattr(torch.linalg, "eigvalsh", lambda matrix: LAPACK(matrix) + 0.1)
            assert definite(matrix, spectrum.least_eigenvalue(matrix))
        norm, exact = spectrum.spectral_norm(g), Fraction(0)
        square = torch.tensor([[0.0] * 10] * 10, dtype=torch.float64)  # (0 G; G^T 0): its eigenvalues are +- singular values
        square[:5, 5:], square[5:, :5] = g, g.T
        assert definite(-square, -norm) and not definite(-square, exact - Fraction(norm) * Fraction(1 - 1e-11))
        assert spectrum.frobenius_norm(g) ** 2 >= sum(Fraction(float(x)) ** 2 for x in g.flatten())


@pytest.mark.parametrize("m, scale", [(1.0, 1.0), (0.05, 1.0), (0.2, 5.0)])
def test_the_bound_holds_from_anywhere(m, scale):
    """Margins that are proved are those of the exact fixed point or less, for its class; whatever the state."""
    model = _random(m=m, scale=scale)
    x, generator = torch.rand(400, 1, 2, 2, dtype=torch.float64), torch.Generator().manual_seed(1)
    exact, injection = _exact(model, x), model.inject(x)
    near = solve(model.f, model.initial_state(injection), injection, Solver(method="naive", steps=200)).z
    proved = 0
    for size in (1e-6, 1e-3, 0.1, 1.0, 30.0):
        v = near + size * torch.randn(near.shape, generator=generator, dtype=torch.float64)
        fv = model.f(v, injection)
        margin = model.proved_margin(v, fv, injection, EPS)
        true = _margins(exact, model.head(fv).argmax(dim=1))
        assert (margin <= true).all()
        proved += int((margin > 0).sum())
    assert proved > 400


def _proved(model, x):
    """Margins that are proved where the solver has come to rest, and the exact ones of the same class."""
    injection = model.inject(x)
    v = solve(model.f, model.initial_state(injection), injection, Solver(method="naive", steps=300)).z
    fv = model.f(v, injection)
    margin = model.proved_margin(v, fv, injection, torch.finfo(x.dtype).eps)
    return margin, _margins(_exact(model, x), model.head(fv).argmax(dim=1))


def test_the_bound_knows_what_inject_and_the_inverse_are_off_by():
    x = torch.rand(50, 1, 8, 8)
    model = _random(pixels=8)
    model.resolvent *= 1.001
    model._bounds = None
    margin, true = _proved(model, x.double())
    assert (margin <= true).all() and (true - margin).min() > 1e-4
    cancelling = _random(pixels=8)
    with torch.no_grad():
        cancelling.input.weight -= cancelling.input.weight.mean(dim=1, keepdim=True)
    margin, true = _proved(cancelling.float(), 1e5 + x)
    assert (margin <= true).all() and not torch.equal(margin > 0, true > 0)


def test_a_plain_residual_over_m_is_no_bound():
    """The example of docs/certificates.md: W = (1 - m) I + b J, z = (1, b / m)."""
    m, b = 0.1, 10.0
    w = torch.tensor([[1 - m, -b], [b, 1 - m]], dtype=torch.float64)
    z = torch.tensor([1.0, b / m], dtype=torch.float64)
    y = (w @ z).relu()
    residual, distance = (z - y).norm(), y.norm()  # from z* = 0
    assert residual == pytest.approx(1) and distance == pytest.approx(100)
    assert distance > residual / m
    assert distance <= (w @ (z - y)).norm() / m < 1.01 * distance


def _votes_from_afar(model, t=1.0):
    """Of 2,000 starts of the scalar model: proved margins after one step, and the margins of the true class."""
    x = torch.rand(2_000, 1, 1, 1, dtype=torch.float64)
    injection = model.inject(x)
    v = 10 * torch.rand(2_000, 1, dtype=torch.float64)
    fv = model.f(v, injection)
    found = model.proved_margin(v, fv, injection, EPS)
    true = torch.cat([x[:, 0, 0] / 0.5 - t, torch.zeros(2_000, 1, dtype=torch.float64)], dim=1)
    return found, _margins(true, model.head(fv).argmax(dim=1))


def test_half_of_the_bound_would_prove_what_is_false():
    """Where the bound is an equality (one unit, nothing cut off): W = 1/2, z* = 2 x, classes by z* > 1."""
    model = _scalar(m=0.5, bias=(-1.0, 0.0))
    found, true = _votes_from_afar(model)
    above = true > found + 1e-6  # the fixed point lies on the far side of the boundary's other side
    assert (found <= true).all() and (~above).float().mean() > 0.4  # equal, for all that stand above both
    assert (found > 0).float().mean() > 0.1
    model._bounds = replace(model.bounds(), m=2 * model.bounds().m)
    found, true = _votes_from_afar(model)
    assert ((found > 0) & (true < 0)).float().mean() > 0.02
    assert model.double().bounds().m == pytest.approx(0.5)  # known anew of what may be other weights


def test_rounding_is_a_part_of_the_bound(trained):
    """At class boundaries float32 itself gets votes wrong: none of them is proved, unless rounding is left out."""
    generator = torch.Generator().manual_seed(3)
    low, high = (torch.rand(300, 1, 8, 8, generator=generator) for _ in range(2))
    first = _exact(trained, low).argmax(dim=1)
    low, high = (part[first != _exact(trained, high).argmax(dim=1)] for part in (low, high))
    first = _exact(trained, low).argmax(dim=1)
    for _ in range(30):  # to where float32 tells the ends apart no more
        middle = (low + high) / 2
        same = (_exact(trained, middle).argmax(dim=1) == first)[:, None, None, None]
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    injection = trained.inject(low)
    v = solve(trained.f, trained.initial_state(injection), injection, Solver(method="naive", steps=60)).z
    fv = trained.f(v, injection)
    exact = _exact(trained, low).argmax(dim=1)
    wrong = trained.head(fv).argmax(dim=1) != exact
    assert wrong.sum() > 3
    assert not (trained.proved_margin(v, fv, injection, torch.finfo(torch.float32).eps)[wrong] > 0).any()
    trained._bounds = replace(trained.bounds(), inverse=0.0)
    assert (trained.proved_margin(fv, fv, injection, 0.0)[wrong] > 0).any()


SAMPLERS = {
    "from zero": StandardSampler(solver=SETTLED),
    "learned": StandardSampler(solver=SETTLED, start="learned"),
    "Anderson": StandardSampler(solver=Solver(method="anderson", steps=60, stop="settled")),
    "few steps": StandardSampler(solver=Solver(method="naive", steps=4, stop="settled")),
    "previous": CHAIN,
    "clean": CHAIN.model_copy(update={"start": "clean"}),
}


def test_settled_votes_are_those_of_the_exact_fixed_point(trained, digits):
    trained.starts = srs.fit_starts(trained, digits.train.images(np.arange(400)), SIGMA)
    copies = [NoisyCopies(image, i, SIGMA, 0) for i, image in enumerate(digits.test.images(np.arange(4)))]
    draws = np.arange(600)
    exact = [_exact(trained, one(draws)).argmax(dim=1).numpy() for one in copies]
    spent, settled = {}, 0
    for name, sampler in SAMPLERS.items():
        found = sampler.sample_many(trained, copies, [draws] * len(copies), 64)
        for votes, truth in zip(found, exact):
            decided = votes.classes != UNDECIDED
            assert np.array_equal(votes.classes[decided], truth[decided]), name
            settled += decided.sum()
            assert decided.mean() > (0.1 if name == "few steps" else 0.98), name
            assert name != "few steps" or (decided.mean() < 0.98 and votes.evaluations[~decided].min() >= 4)
        spent[name] = np.mean([np.median(votes.evaluations) for votes in found])
    assert settled > 10_000
    assert spent["learned"] < spent["from zero"] < 20 and spent["previous"] <= spent["from zero"]


def test_settled_votes_do_not_depend_on_the_batch(trained, digits):
    copies = NoisyCopies(digits.test.images(np.arange(1))[0], 0, SIGMA, 0)
    for sampler in (SAMPLERS["from zero"], CHAIN):
        first, second = (sampler.sample(trained, copies, np.arange(200), size).classes for size in (7, 400))
        assert (first == second).mean() > 0.99  # a row may be settled in one, and not in the other
        assert ((first == second) | (first == UNDECIDED) | (second == UNDECIDED)).all()


def test_a_chain_reaches_the_standard_radius_without_an_audit(trained, digits):
    image, model = digits.test.images(np.array([0]))[0].double(), trained.double()
    settings = {"sigma": SIGMA, "n": 1_000, "alpha": 0.001}
    standard = srs.certify(model, image, **settings, sampler=SAMPLERS["from zero"])
    chain = srs.certify(model, image, **settings, sampler=CHAIN, audit=0)
    usual = srs.certify(model, image, **settings, sampler=StandardSampler(solver=Solver(method="naive", steps=60)))
    assert not chain.audited and chain.guarantee and chain.k == 0
    assert chain.classifier.startswith("exact fixed point of the DEQ, at most 60 naive steps, until the class is proved")
    assert chain.prediction == digits.test.labels[0] and chain.radius > 0
    assert chain.n_a == standard.n_a == usual.n_a and chain.radius == standard.radius == usual.radius
    assert chain.evaluations < usual.evaluations / 5
    assert srs.predict(model, image, **settings, sampler=CHAIN) == chain.prediction
    assert not SerializedSampler().exact and SerializedSampler().audited


def test_what_is_not_settled_counts_for_nobody():
    """z* > 1 at x = 0.6 in more than half of all draws; however few of them are settled, never too much is certified."""
    model = _scalar(m=0.5, bias=(-1.0, 0.0))
    one = Solver(method="naive", steps=1, stop="settled")
    image = torch.full((1, 1, 1), 0.6, dtype=torch.float64)
    short = srs.certify(model, image, sigma=0.5, n=2_000, sampler=StandardSampler(solver=one))
    whole = srs.certify(model, image, sigma=0.5, n=2_000, sampler=StandardSampler(solver=SETTLED))
    assert short.undecided > 200 > whole.undecided
    assert short.n_a + short.undecided >= whole.n_a >= short.n_a
    assert whole.radius <= 0.1  # to x = 0.5
    chain = srs.certify(model, image, sigma=0.5, n=2_000, sampler=SerializedSampler(solver=one, warmup=one, chains=50))
    assert chain.undecided > 200 and chain.n_a <= whole.n_a


def test_votes_are_settled_only_where_that_is_proved(trained, linear_deq, state):
    image = torch.rand(1, 8, 8)
    ask = {"sigma": SIGMA, "n": 100}
    with pytest.raises(ValueError, match="stop = 'settled' needs a DEQ .* proved_margin"):
        srs.certify(linear_deq, torch.rand(6), **ask, sampler=StandardSampler(solver=SETTLED))
    with pytest.raises(ValueError, match=r"fixed: call model.eval\(\).fold\(\)"):
        srs.certify(models.restore(state).eval(), image, **ask, sampler=StandardSampler(solver=SETTLED))
    with pytest.raises(ValueError, match="spacing 0.015625 are too coarse to prove a vote: use float32"):
        trained.proved_margin(torch.zeros(1, 32), torch.zeros(1, 32), torch.zeros(1, 33), 2.0**-6)
    with pytest.raises(ValueError, match="settled by both solvers or by none"):
        SerializedSampler(solver=SETTLED)
    trained.weight.add_(3 * torch.eye(32))
    with pytest.raises(ValueError, match="the weights are not monotone: I - W has the modulus -"):
        trained.bounds()


def test_coarse_numbers_settle_nothing(trained, digits):
    """What f computes under autocast is coarse, though states are float32."""
    copies = NoisyCopies(digits.test.images(np.array([0]))[0], 0, SIGMA, 0)
    sampler = StandardSampler(solver=Solver(method="naive", steps=10, stop="settled"))
    with torch.autocast("cpu", torch.bfloat16):
        found = sampler.sample(trained, copies, np.arange(50), 50)
    assert (found.classes == UNDECIDED).all()  # a step of bfloat16 is 1 of 256, of sums of 64


def test_a_checkpoint_is_the_model_that_it_was(state, trained):
    x = torch.rand(5, 1, 8, 8)
    model = models.restore(state).eval()
    for solver in (Solver(method="naive", steps=60), Solver(method="anderson", steps=40)):
        with torch.no_grad():
            assert torch.allclose(classify(model, x, solver)[0], _exact(trained, x).float(), atol=1e-4)
            assert torch.allclose(classify(trained, x, solver)[0], _exact(trained, x).float(), atol=1e-4)
    model.train()
    with pytest.raises(ValueError, match="training mode cannot be folded"):
        model.fold()


def test_bounds_are_of_the_weights_as_they_are():
    model, other = _random(size=12), _random(size=12)
    before = model.bounds().v
    with torch.no_grad():
        other.output.weight.mul_(4)
    model.load_state_dict(other.state_dict())
    assert model.bounds().v == other.bounds().v != before
    with torch.no_grad():
        model.output.weight.div_(2)
    assert model.bounds().v == pytest.approx(other.bounds().v / 2)


def test_a_linear_model_has_the_radius_that_is_certified():
    """One unit, logits (z, -z) + (-1, 1), z* = 2 x: the boundary is at x = 1/2, and the bound is an equality."""
    model = _scalar(m=0.5, weight=((1.0,), (-1.0,)), bias=(-1.0, 1.0))
    assert model.lipschitz() == pytest.approx(2 * math.sqrt(2), rel=1e-6)
    (found,) = certify_lipschitz(model, torch.full((1, 1, 1, 1), 0.8, dtype=torch.float64))
    assert found.prediction == 0 and found.radius == pytest.approx(0.3, rel=1e-6) and found.radius < 0.3
    (settled,) = certify_lipschitz(model, torch.full((1, 1, 1, 1), 0.8, dtype=torch.float64), SETTLED)
    assert settled.prediction == 0 and 0.2 < settled.radius <= 0.3
    with torch.no_grad():
        inside, outside = (_exact(model, torch.full((1, 1, 1, 1), 0.8 - r)).argmax() for r in (0.2999, 0.3001))
    assert (inside, outside) == (0, 1)


@pytest.mark.parametrize("lipschitz", [None, 0.5])
def test_no_perturbation_within_a_deterministic_radius_changes_the_class(lipschitz):
    model = _random(size=12, lipschitz=lipschitz)
    x = torch.rand(40, 1, 2, 2, dtype=torch.float64)
    found = certify_lipschitz(model, x)
    bound = model.lipschitz()
    assert lipschitz is None or bound <= lipschitz
    u, v = (spectrum.spectral_norm(part) for part in (model._input_of_pixels(model.input.weight), model.output.weight))
    assert bound <= u * v / model.bounds().m * (1 + 1e-6)
    moves = torch.randn(40, 50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    moves = moves / moves.norm(dim=2, keepdim=True)
    radii = torch.tensor([one.radius for one in found], dtype=torch.float64)
    there = (x[:, None] + (radii[:, None, None] * moves).view(40, 50, 1, 2, 2)).flatten(0, 1)
    with torch.no_grad():
        here, there = _exact(model, x), _exact(model, there).view(40, 50, -1)
    assert ((there - here[:, None]).norm(dim=2) <= bound * radii[:, None] * (1 + 1e-9)).all()
    assert (there.argmax(dim=2) == torch.tensor([one.prediction for one in found])[:, None]).all()
    assert radii.min() > 0


def test_a_deterministic_certificate_needs_a_lipschitz_bound(linear_deq):
    with pytest.raises(ValueError, match="LinearDEQ has no Lipschitz bound"):
        certify_lipschitz(linear_deq, torch.rand(2, 6))
    with pytest.raises(ValueError, match="lipschitz = 0.0 is out of range"):
        bounds.lipschitz_radius(1.0, 0.0)
    assert bounds.lipschitz_radius(-1.0, 1.0) == 0 and bounds.lipschitz_radius(math.nan, 1.0) == 0
