import copy
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import srs
from srs import models
from srs.data.datasets import DataConfig, Part
from srs.deq.definition import classify
from srs.deq.solvers import Solver, solve
from srs.models import starts
from srs.models.starts import ConvolutionalStart, MeanStart, RidgeStart
from srs.starts import StartSettings, _fixed_points, fit_starts
from srs.training.train import Training, evaluate, train
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import StandardSampler, Votes
from study.known_answers import LinearDEQ
from study.starts import choose, held_out


def test_fixed_points_that_are_all_lost_fit_no_start(linear_deq):
    linear_deq.f = lambda z, u: z * torch.nan
    with pytest.raises(FloatingPointError, match="none of 20 fixed points is finite"):
        fit_starts(linear_deq, torch.rand(9, 6), 0.5, StartSettings(points=20, map="ridge"))


ONE = Solver(method="naive", steps=1)
FEW = StartSettings(points=400, epochs=30, width=8)


@pytest.fixture(scope="module")
def fitted(trained, digits):
    return {
        kind: fit_starts(trained, digits.train, 0.5, FEW.model_copy(update={"map": kind}))
        for kind in ("ridge", "convolutional")
    }


def _with(model, found):
    model = copy.deepcopy(model)
    model.starts = found
    return model


def test_starts_are_functions_of_the_injection_alone(trained, digits, fitted):
    injection = trained.inject(digits.test.images(np.arange(6)))
    for found in fitted.values():
        for start in found.values():
            assert not start.training
            together = start(injection)
            assert together.shape == (6, *trained.initial_state(injection).shape[1:])
            for row in range(6):
                assert torch.allclose(start(injection[row : row + 1])[0], together[row], atol=1e-5)
    mean = fitted["ridge"]["mean"](injection)
    assert torch.equal(mean[0], mean[5]) and isinstance(fitted["ridge"]["mean"], MeanStart)
    assert isinstance(fitted["ridge"]["learned"], RidgeStart)
    assert isinstance(fitted["convolutional"]["learned"], ConvolutionalStart)


def test_fitted_starts_are_nearer_to_fixed_points_and_agree_more(trained, digits, fitted):
    x = digits.test.images(np.arange(200))
    x = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    logits, solution = classify(trained, x, Solver(steps=30))
    truth, scale = logits.argmax(dim=1), solution.z.norm(dim=1)
    for found in fitted.values():
        model, gap, agreement = _with(trained, found), {}, {}
        for start in ("initial", "mean", "learned"):
            injection = model.inject(x)
            z0 = model.initial_state(injection) if start == "initial" else found[start](injection)
            gap[start] = ((z0 - solution.z).norm(dim=1) / scale).mean()
            agreement[start] = (classify(model, x, ONE, start)[0].argmax(dim=1) == truth).float().mean()
        assert gap["learned"] < gap["mean"] < gap["initial"]
        assert agreement["learned"] > max(agreement["initial"], 0.6)


def test_starts_are_of_the_models_type():
    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.head = torch.nn.Linear(6, 6), torch.nn.Linear(6, 3)

        def inject(self, x):
            return x

        def initial_state(self, u):
            return torch.zeros_like(u)

        def f(self, z, u):
            return self.linear(z).tanh() + u

    model, images = Half().eval().bfloat16(), torch.rand(50, 6, dtype=torch.bfloat16)
    found = fit_starts(model, images, 0.5, FEW.model_copy(update={"map": "ridge"}))
    assert {value.dtype for value in found.state_dict().values()} == {torch.bfloat16}


def test_saved_starts_come_back(trained, digits, fitted, tmp_path):
    injection = trained.inject(digits.test.images(np.arange(3)))
    for found in fitted.values():
        torch.save(starts.state(found), tmp_path / "starts.pt")
        again = starts.restore(torch.load(tmp_path / "starts.pt", weights_only=True), trained)
        for name in found:
            assert torch.equal(again[name](injection), found[name](injection))


def test_fitting_is_repeatable_and_leaves_the_random_state_alone(trained, digits):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    few = FEW.model_copy(update={"points": 100, "epochs": 2, "map": "convolutional"})
    a, b = (fit_starts(trained, digits.train, 0.5, few)["learned"].state_dict() for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_noise_is_added_where_the_model_lies(monkeypatch):
    """On a device without arithmetic of its own: what is told apart is where tensors lie."""

    class Identity(torch.nn.Linear):
        inject = initial_state = staticmethod(lambda x: x)
        f = None

    monkeypatch.setattr("srs.starts.solve", lambda f, z, x, solver, margin: SimpleNamespace(z=z, finite=slice(None)))
    for images in (torch.zeros(10, 6, device="meta"), torch.zeros(10, 6)):
        injections, states = _fixed_points(Identity(6, 6, device="meta"), images, 0.5, StartSettings(points=20))
        assert injections.device.type == states.device.type == "meta" and injections.shape == (20, 6)


class _Watching(torch.nn.Module):
    """A classifier that keeps what it is asked about."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(10)), []

    def forward(self, x):
        self.seen.append(x)
        return self.weight.expand(len(x), 10)

    def sample_many(self, model, copies, draws, batch_size):
        self.seen.append(torch.cat([noisy(numbers) for noisy, numbers in zip(copies, draws)]))
        return [Votes.blank(len(numbers)) for numbers in draws]


def test_choices_on_held_out_images_see_no_noise_of_certification_nor_of_one_another(digits):
    """Whatever the seed: image i has one noise for each of training's evaluation, the choice of a start, and certification."""
    part = Part(digits.test.pixels[:3], digits.test.labels[:3], digits.test.scale)
    clean, noises = part.images(np.arange(3)), []
    for seed in (0, 1):
        evaluated = _Watching()
        evaluate(evaluated, part, Training(sigma=0.5, seed=seed))
        certified = [NoisyCopies(image, i, 0.5, seed)(np.arange(40)) for i, image in enumerate(clean)]
        noises += [evaluated.seen[0] - clean, *(torch.stack(certified) - clean[:, None]).unbind(1)]
    chosen = _Watching()
    held_out(chosen, part, 0.5, {}, chosen, copies=1)
    noises.append(chosen.seen[0] - clean)
    noises = torch.stack([noise.flatten() for noise in noises])
    assert (torch.corrcoef(noises) - torch.eye(len(noises))).abs().max() < 0.6


class _Known:
    """A sampler that errs on every copy of every ``wrong``-th image."""

    def __init__(self, labels, wrong):
        self.classes = np.where(np.arange(len(labels)) % wrong, labels, labels + 1)

    def sample_many(self, model, copies, draws, batch_size):
        cast = [Votes.blank(len(numbers)) for numbers in draws]
        for noisy, votes in zip(copies, cast):
            votes.classes[:] = self.classes[noisy.index]
        return cast


def test_copies_of_one_image_are_no_independent_evidence(trained, digits):
    labels = digits.validation.labels
    rows, right = {"row": _Known(labels, 4)}, _Known(labels, len(labels) + 1)
    once, often = (held_out(trained, digits.validation, 0.5, rows, right, copies).iloc[0] for copies in (1, 40))
    assert once["difference"] == pytest.approx(often["difference"]) and once["difference"] < -0.2
    assert once["upper"] - once["lower"] == pytest.approx(often["upper"] - often["lower"]) != 0


def test_the_cheapest_row_that_loses_little_is_chosen():
    found = pd.DataFrame(
        {
            "row": ["a", "b", "c", "d"],
            "accuracy": [0.70, 0.79, 0.80, 0.81],
            "evaluations": [1, 2, 2, 4],
            "difference": [-0.10, -0.01, 0.0, 0.01],
        }
    )
    assert choose(found, 0.02) == "c" and choose(found, 0.1) == "a"
    assert choose(found.assign(difference=-0.5), 0.02) == "d"  # all lose more: the most accurate


def test_a_checkpoint_and_its_starts_load_together(trained_state, fitted, digits, tmp_path):
    torch.save({"model": trained_state}, tmp_path / "model.pt")
    torch.save(starts.state(fitted["ridge"]), tmp_path / "starts.pt")
    torch.save({}, tmp_path / "none.pt")  # of a classifier that is no DEQ
    model = models.load(tmp_path / "model.pt", fitted=tmp_path / "starts.pt")
    with torch.no_grad():
        assert classify(model, digits.test.images(np.arange(2)), ONE, "learned")[0].isfinite().all()
    assert not hasattr(models.load(tmp_path / "model.pt", fitted=tmp_path / "none.pt"), "starts")


def test_tuning_goes_on_from_a_model_and_its_start_and_forgets_neither(trained_state, digits, tmp_path):
    base = models.restore(trained_state)
    base.starts = fit_starts(base.eval(), digits.train, 0.25, FEW)
    before = copy.deepcopy(base.starts["learned"].state_dict())
    config = Training(
        sigma=0.25, epochs=2, unrolled_steps=100, unrolled_layers=1, start="learned", evaluation=ONE, evaluate_every=1
    )
    untuned = evaluate(copy.deepcopy(base), digits.validation, config)
    result = train("mdeq-tiny", {}, digits, DataConfig(crop_padding=1), config, tmp_path / "run.pt", base=base)
    assert result["history"][-1]["validation_accuracy"] > untuned["validation_accuracy"] - 0.05
    assert not any(name.startswith("starts.") for name in result["model"]["state_dict"])
    moved = starts.restore(result["starts"], models.restore(result["model"]))["learned"].state_dict()
    assert any(not torch.equal(moved[name], before[name]) for name in before)  # the start is trained, too


class Plane(torch.nn.Module):
    """A DEQ whose state is one tensor (C, H, W), as its injection is."""

    def __init__(self):
        super().__init__()
        self.stem, self.own = (torch.nn.Conv2d(c, 2, 3, padding=1) for c in (1, 2))

    def inject(self, x):
        return self.stem(x)

    def initial_state(self, injection):
        return torch.zeros_like(injection)

    def f(self, z, injection):
        return torch.tanh(self.own(z) / 4 + injection)

    def head(self, z):
        return z.mean(dim=(2, 3))


def test_a_state_of_the_form_of_its_injection_needs_no_shapes(digits, tmp_path):
    torch.manual_seed(0)
    model = Plane().eval()
    few = FEW.model_copy(update={"points": 200, "epochs": 20, "ridge_inputs": 10})
    model.starts = fit_starts(model, digits.train, 0.25, few)
    assert isinstance(model.starts["learned"], ConvolutionalStart)
    injection = model.inject(digits.test.images(np.arange(50)))
    state = solve(model.f, model.initial_state(injection), injection, Solver(steps=30)).z
    begun = model.starts["learned"](injection)
    assert begun.shape == state.shape and (begun - state).norm() < 0.5 * state.norm()
    torch.save(starts.state(model.starts), tmp_path / "starts.pt")
    again = starts.restore(torch.load(tmp_path / "starts.pt", weights_only=True), model)
    assert torch.equal(again["learned"](injection), begun)
    sampler = StandardSampler(solver=Solver(method="naive", steps=1), start="learned")
    assert srs.certify(model, digits.test.images(np.array([0]))[0], sigma=0.25, n=100, sampler=sampler).n == 100


@pytest.mark.parametrize(
    "given, told",
    [
        ({"images": torch.zeros(5, 1, 8, 8, dtype=torch.uint8)}, "images must be a tensor of floats"),
        ({"images": torch.full((5, 1, 8, 8), torch.nan)}, "images has values that are not finite"),
        ({"images": torch.zeros(0, 1, 8, 8)}, r"images has the shape \(0, 1, 8, 8\)"),
        ({"images": [1, 2]}, "images = a list: expected a tensor"),
        ({"sigma": math.inf}, "sigma = inf is out of range"),
        ({"sigma": "a"}, "sigma = 'a' is out of range"),
        ({"sigma": True}, "sigma = True is out of range"),
    ],
)
def test_what_starts_cannot_be_fitted_to_is_named(trained, given, told):
    with pytest.raises(ValueError, match=told):
        fit_starts(trained, **{"images": torch.zeros(5, 1, 8, 8), "sigma": 0.25} | given)


def test_clear_errors(trained, digits):
    with pytest.raises(ValueError, match="start = 'learned' is unknown to the model: choose one of initial"):
        classify(trained, digits.test.images(np.arange(2)), ONE, "learned")
    with pytest.raises(ValueError, match="map = 'auto' would be convolutional for an injection of 6 .*'ridge'"):

        class Points:
            def __len__(self):
                return 10

            def images(self, rows):
                return torch.zeros(len(rows), 6)

        fit_starts(LinearDEQ().eval(), Points(), 0.5, FEW.model_copy(update={"ridge_inputs": 2}))
    with pytest.raises(ValueError, match="sigma = -1 is out of range"):
        fit_starts(trained, digits.train, -1)
    with pytest.raises(ValueError, match="training mode"):
        fit_starts(LinearDEQ().train(), torch.zeros(10, 6), 0.5)
