import copy
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import train_tiny
from pydantic import ValidationError
from scipy.stats import entropy

from srs import models
from srs.__main__ import DEFAULT
from srs.checkpoints import FOLDER
from srs.data.datasets import DataConfig
from srs.deq.definition import classify
from srs.deq.implicit import differentiable, implicit_solve, jacobian_penalty
from srs.deq.solvers import Solver
from srs.models import write_checkpoint
from srs.training.pgd import ascend, smoothed_loss
from srs.training.train import Adversary, Consistency, Training, _inconsistency, _optimizer, _Run, _schedule, evaluate, train

# 20 steps; both phases, Jacobian regularization and dropout at work
CONFIG = dict(
    sigma=0.25,
    epochs=4,
    batch_size=12,
    unrolled_steps=7,
    unrolled_layers=3,
    jacobian_frequency=0.5,
    jacobian_epochs=3,
    evaluate_every=2,
)
OVERRIDES = {"dropout": 0.1}
AUGMENTATION = DataConfig(crop_padding=1, flip=True)


def _train(data, checkpoint, checkpoint_seconds=20.0, **changes):
    config = Training(**{**CONFIG, **changes})
    return train("mdeq-tiny", OVERRIDES, data, AUGMENTATION, config, checkpoint, checkpoint_seconds=checkpoint_seconds)


@pytest.fixture(scope="module")
def undisturbed(few_digits, tmp_path_factory):
    return _train(few_digits, tmp_path_factory.mktemp("undisturbed") / "run.pt")


def _same_bytes(a, b, folder):
    for name, result in (("a", a), ("b", b)):
        write_checkpoint({"model": result["model"]}, folder / name)
    return (folder / "a").read_bytes() == (folder / "b").read_bytes() and a["history"] == b["history"]


def test_one_seed_one_result(undisturbed, few_digits, tmp_path):
    assert _same_bytes(undisturbed, _train(few_digits, tmp_path / "again.pt"), tmp_path)
    assert not _same_bytes(undisturbed, _train(few_digits, tmp_path / "other.pt", seed=1), tmp_path)


def test_training_leaves_the_callers_random_state_alone(few_digits, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    _train(few_digits, tmp_path / "run.pt", epochs=1)
    assert torch.equal(torch.rand(1), expected)


_KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from conftest import *
import test_training as t

save = t._Run.save


def save_and_die(run):
    save(run)
    if run.step == 7:
        os.kill(os.getpid(), signal.SIGKILL)


t._Run.save = save_and_die
t._train(few(prepare(DataConfig())), {checkpoint!r}, checkpoint_seconds=1e-6)
"""


def test_killed_training_resumes_to_the_same_weights(undisturbed, few_digits, tmp_path):
    checkpoint = tmp_path / "run.pt"
    script = _KILLED.format(tests=os.path.dirname(__file__), checkpoint=str(checkpoint))
    killed = subprocess.run([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL and torch.load(checkpoint, weights_only=True)["step"] == 7  # of 20
    assert _same_bytes(undisturbed, _train(few_digits, checkpoint), tmp_path)


def test_history_says_what_was_measured(undisturbed):
    history = undisturbed["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert [row["unrolled"] for row in history] == [True, False, False, False]
    for row in history:
        assert row["loss"] > 0 and 0 <= row["accuracy"] <= 1 and row["residual"] >= 0 and row["lost"] == 0
    assert ["validation_accuracy" in row for row in history] == [False, True, False, True]


def test_training_learns(tmp_path):
    """Chance is 0.1."""
    assert train_tiny(tmp_path / "run.pt")["history"][-1]["validation_accuracy"] > 0.3


def test_the_kept_network_is_trained(trained, digits):
    measured = evaluate(trained, digits.test, Training(sigma=0.25, seed=1))
    assert measured["validation_accuracy"] > 0.4
    assert measured["validation_residual"] < 0.01


def test_a_lost_row_is_not_right(trained, digits):
    """argmax of NaN is class 0."""
    chosen = digits.test.labels == 0
    zeros = replace(digits.test, pixels=digits.test.pixels[chosen], labels=digits.test.labels[chosen])
    lost = copy.deepcopy(trained)
    with torch.no_grad():
        lost.classifier.linear.bias.fill_(torch.nan)
    assert evaluate(trained, zeros, Training(sigma=0.25))["validation_accuracy"] > 0.5
    whole = evaluate(trained, zeros, Training(sigma=0.25))["validation_residual"]
    inject, calls = trained.inject, []

    def inject_one_lost(x):
        calls.append(len(x))
        return inject(x).index_fill(0, torch.tensor([0]), torch.nan)

    with patch.object(trained, "inject", inject_one_lost):
        one_lost = evaluate(trained, zeros, Training(sigma=0.25))["validation_residual"]
    assert calls and 0 < one_lost < 2 * whole
    assert evaluate(lost, zeros, Training(sigma=0.25))["validation_accuracy"] == 0


RESNET = ("resnet-110", {"depth": 8, "widths": (4, 8, 16)})
MDEQ = ("mdeq-tiny", OVERRIDES)
# both of a DEQ's phases, and epochs before and after the attacks begin
QUICK = Solver(method="broyden", steps=3)
ATTACKED = {**CONFIG, "epochs": 3, "unrolled_steps": 8, "forward": QUICK, "backward": QUICK}
ATTACKED |= {"adversary": Adversary(samples=2, first_epoch=1)}


def _fit(which, data, checkpoint, augmentation=AUGMENTATION, checkpoint_seconds=20.0, **config):
    return train(*which, data, augmentation, Training(**config), checkpoint, checkpoint_seconds=checkpoint_seconds)


@pytest.mark.parametrize("which", [MDEQ, RESNET], ids=["mdeq", "resnet"])
def test_adversarial_training_resumes_to_the_same_weights(which, few_digits, tmp_path, monkeypatch):
    whole = _fit(which, few_digits, tmp_path / "whole.pt", **ATTACKED)
    save = _Run.save

    def save_and_stop(run):
        save(run)
        if run.step == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(_Run, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        _fit(which, few_digits, tmp_path / "run.pt", **ATTACKED, checkpoint_seconds=1e-6)
    monkeypatch.setattr(_Run, "save", save)
    resumed = _fit(which, few_digits, tmp_path / "run.pt", **ATTACKED)
    assert repr(resumed["history"]) == repr(whole["history"])  # repr: NaN is itself
    for name, value in whole["model"]["state_dict"].items():
        assert torch.equal(value, resumed["model"]["state_dict"][name]), name
        if name.endswith("num_batches_tracked"):
            assert value == 15, name  # one batch a step: attacks leave running statistics alone
    plain = _fit(which, few_digits, tmp_path / "plain.pt", **{**ATTACKED, "adversary": None})
    assert repr(plain["history"][0]) == repr(whole["history"][0])  # before first_epoch nothing differs
    assert plain["history"][1]["loss"] != whole["history"][1]["loss"]


@pytest.mark.parametrize("unrolled_steps", [0, 100], ids=["implicit", "unrolled"])
def test_adversarial_batches_are_noisy_copies_of_images_that_raise_the_loss(
    trained_state, digits, tmp_path, monkeypatch, unrolled_steps
):
    adversary = Adversary(samples=3)
    config = Training(sigma=0.25, batch_size=12, epochs=1, unrolled_steps=unrolled_steps, adversary=adversary)
    run = _Run(models.restore(trained_state), digits, DataConfig(), config, tmp_path / "run.pt", torch.device("cpu"))
    x, labels = digits.train.images(np.arange(12)), torch.from_numpy(digits.train.labels[:12])
    torch.manual_seed(3)
    noisy, repeated = run._noisy(x, labels, epoch=0)
    torch.manual_seed(3)
    noise = 0.25 * torch.randn(12, 3, 1, 8, 8)
    moved = noisy.view(12, 3, 1, 8, 8) - noise
    assert repeated.tolist() == [label for label in labels.tolist() for _ in range(3)]
    assert torch.allclose(moved, moved[:, :1].expand_as(moved), atol=1e-6)
    distance = (moved[:, 0] - x).flatten(1).norm(dim=1)
    assert (distance <= 0.5 + 1e-5).all() and (distance > 0.3).all()
    logits = differentiable(run.model.eval(), config.evaluation, config.backward)
    with torch.no_grad():
        change = smoothed_loss(logits, moved[:, 0], labels, noise) - smoothed_loss(logits, x, labels, noise)
    assert (change > 0).all() and change.mean() > 0.1


def test_adversarial_training_makes_the_smoothed_loss_under_attack_smaller(digits, tmp_path):
    x, labels = digits.test.images(np.arange(60)), torch.from_numpy(digits.test.labels[:60])
    noise, epsilon = 0.1 * torch.randn(60, 4, 1, 8, 8), torch.full((60,), 0.5)
    losses = []
    for adversary in (Adversary(epsilon=0.5, samples=1), None):
        config = dict(sigma=0.1, epochs=3, batch_size=32, learning_rate=0.01, adversary=adversary, seed=1)
        checkpoint = tmp_path / f"{len(losses)}.pt"
        model = models.restore(_fit(RESNET, digits, checkpoint, DataConfig(), **config)["model"]).eval()
        attacked = ascend(model, x, labels, noise, epsilon, 5, 0.2)
        with torch.no_grad():
            losses.append(smoothed_loss(model, attacked, labels, noise).mean().item())
    assert losses[0] < 0.85 * losses[1]


def test_the_consistency_term_is_that_of_the_paper(few_digits, tmp_path):
    config, logits = Consistency(samples=3, weight=20.0), 3 * torch.randn(5 * 3, 4, dtype=torch.float64)
    finite = torch.arange(15) != 7  # a copy of the third image
    copies = logits.softmax(dim=1).view(5, 3, 4)[[0, 1, 3, 4]].numpy()
    means = [some.mean(axis=0) for some in copies]
    terms = [20 * np.mean([entropy(mean, one) for one in some]) + 0.5 * entropy(mean) for some, mean in zip(copies, means)]
    assert _inconsistency(logits, finite, config).item() == pytest.approx(np.mean(terms), rel=1e-12)
    assert _inconsistency(logits, finite & False, config) == 0
    assert torch.autograd.gradcheck(lambda z: _inconsistency(z, finite, config), logits.requires_grad_())

    config = Training(sigma=0.25, batch_size=12, consistency=config)
    model = models.build(RESNET[0], **few_digits.model_fields(), **RESNET[1])
    run = _Run(model, few_digits, DataConfig(), config, tmp_path / "run.pt", torch.device("cpu"))
    x, labels = few_digits.train.images(np.arange(12)), torch.from_numpy(few_digits.train.labels[:12])
    noisy, repeated = run._noisy(x, labels, epoch=0)
    noise = noisy.view(12, 3, 1, 8, 8) - x[:, None]
    assert repeated.view(12, 3).eq(labels[:, None]).all()
    assert noise.flatten().std().item() == pytest.approx(0.25, abs=0.02) and not torch.equal(noise[:, 0], noise[:, 1])
    total, measured = run._loss(noisy, repeated, epoch=0)
    term = _inconsistency(model(noisy), torch.ones(36, dtype=torch.bool), config.consistency)
    assert total.item() - measured[0].item() == pytest.approx(term.item(), rel=1e-4)


def test_consistency_makes_noisy_copies_alike(digits, tmp_path):
    x = digits.test.images(np.arange(60))
    noisy = (x[:, None] + 0.5 * torch.randn(60, 2, 1, 8, 8)).flatten(0, 1)
    found = []
    for consistency in (Consistency(), None):
        config = dict(sigma=0.5, epochs=3, batch_size=32, learning_rate=0.01, consistency=consistency)
        trained = _fit(RESNET, digits, tmp_path / f"{len(found)}.pt", DataConfig(), **config)
        model = models.restore(trained["model"]).eval()
        with torch.no_grad():
            divergence = _inconsistency(model(noisy), torch.ones(120, dtype=torch.bool), Consistency(weight=1, entropy=0))
        found.append((divergence.item(), trained["history"][-1]["validation_accuracy"]))
    assert found[0][0] < 0.5 * found[1][0] and found[0][1] > 0.5, found


@pytest.mark.parametrize("unrolled_steps", [0, 9], ids=["implicit", "unrolled"])
def test_bfloat16_is_of_training_steps_alone(trained_state, few_digits, tmp_path, monkeypatch, unrolled_steps):
    gradients, seen, states, head = {}, set(), set(), models.MDEQ.head
    monkeypatch.setattr(models.MDEQ, "head", lambda model, z: states.add(z.dtype) or head(model, z))
    for precision in ("float32", "bfloat16"):
        config = dict(sigma=0.25, batch_size=30, unrolled_steps=unrolled_steps, jacobian_frequency=1.0, precision=precision)
        model = models.restore(trained_state)
        run = _Run(model, few_digits, DataConfig(), Training(**config), tmp_path / "run.pt", torch.device("cpu"))
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(lambda module, given, out: seen.add(out.dtype))
        run._one_step()
        assert seen == {getattr(torch, precision)}
        gradients[precision] = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert all(value.dtype == torch.float32 for value in model.state_dict().values() if value.is_floating_point())
        seen.clear()
        evaluate(model, few_digits.validation, run.config)
        assert seen == states == {torch.float32}
        seen.clear()
    for name, exact in gradients["float32"].items():
        if exact.norm() > 1e-5:  # which a bias before a BatchNorm has not
            assert torch.cosine_similarity(gradients["bfloat16"][name].flatten(), exact.flatten(), dim=0) > 0.8, name


@pytest.mark.parametrize("unrolled_steps", [0, 9], ids=["implicit", "unrolled"])
def test_a_row_without_a_finite_state_costs_no_weight(trained_state, few_digits, tmp_path, monkeypatch, unrolled_steps):
    model, f = models.restore(trained_state), models.MDEQ.f

    def lost(model, z, injection):
        row = torch.arange(len(z))[:, None] == 0
        return torch.where(row, f(model, z, injection) * torch.inf, f(model, z, injection))

    config = Training(sigma=0.25, batch_size=12, unrolled_steps=unrolled_steps)
    run = _Run(model, few_digits, DataConfig(), config, tmp_path / "run.pt", torch.device("cpu"))
    with monkeypatch.context() as patch:
        patch.setattr(models.MDEQ, "f", lost)
        run._one_step()
    assert run.lost == 1
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    run._one_step()
    assert run.lost == 0 and run.step == 2


def test_a_checkpoint_of_another_training_is_refused(few_digits, tmp_path):
    config = dict(sigma=0.1, batch_size=12, epochs=1)
    first = _fit(RESNET, few_digits, tmp_path / "run.pt", DataConfig(), **config)
    again = _fit(RESNET, few_digits, tmp_path / "run.pt", DataConfig(), **config)
    assert repr(again["history"]) == repr(first["history"])
    for which, other, told in [
        (RESNET, {"sigma": 0.2}, r"sigma = 0\.1 there, 0\.2 now"),
        (RESNET, {"seed": 3}, "seed = 0 there, 3 now"),
        (MDEQ, {}, "preset = 'resnet-110' there, 'mdeq-tiny' now"),
    ]:
        with pytest.raises(ValueError, match=f"^checkpoint = '.*run.pt' is of another training: .*{told}.*Name another file"):
            _fit(which, few_digits, tmp_path / "run.pt", DataConfig(), **config | other)


def test_a_folded_model_cannot_be_trained_on(few_digits, tmp_path):
    folded = models.build(RESNET[0], **few_digits.model_fields(), **RESNET[1]).eval().fold()
    with pytest.raises(ValueError, match="a folded model, as srs.load gives it, has no state to keep"):
        train(*RESNET, few_digits, AUGMENTATION, Training(sigma=0.1, epochs=1), tmp_path / "run.pt", base=folded)
    assert not (tmp_path / "run.pt").exists()


def test_a_plain_classifier_trains_without_residuals(digits, tmp_path):
    config = dict(sigma=0.1, batch_size=32, optimizer="sgd", learning_rate=0.1, weight_decay=1e-4, schedule="step", epochs=3)
    run = _fit(RESNET, digits, tmp_path / "run.pt", DataConfig(), **config, evaluate_every=2)
    history = run["history"]
    assert history[-1]["validation_accuracy"] > 0.8
    assert all(np.isnan(row["residual"]) and not row["unrolled"] and row["lost"] == 0 for row in history)
    assert ["validation_residual" in row for row in history] == [False, True, True]
    assert np.isnan(history[-1]["validation_residual"])
    assert not models.restore(run["model"]).eval().fold().training


@pytest.mark.parametrize("epochs, drops", [(9, [3, 6]), (4, [2, 3]), (2, [1]), (1, [])])
def test_step_schedule_drops_after_each_third(few_digits, tmp_path, epochs, drops):
    config = Training(schedule="step", learning_rate=0.5, epochs=epochs, batch_size=30)
    run = _Run(torch.nn.Linear(1, 1), few_digits, AUGMENTATION, config, tmp_path / "run.pt", torch.device("cpu"))
    rates = []
    for _ in range(run.total):
        rates.append(run.optimizer.param_groups[0]["lr"])
        run.optimizer.step()
        run.schedule.step()
    expected = [0.5 * 0.1 ** sum(epoch >= drop for drop in drops) for epoch in range(epochs) for _ in range(2)]
    assert rates == pytest.approx(expected)


def test_weight_decay_shrinks_weights_by_itself():
    layer = torch.nn.Linear(3, 3)
    optimizer = _optimizer(layer, Training(optimizer="sgd", learning_rate=0.5, momentum=0.0, weight_decay=0.1))
    before, layer.weight.grad = layer.weight.detach().clone(), torch.zeros(3, 3)
    optimizer.step()
    assert torch.allclose(layer.weight, 0.95 * before)


def test_the_cosine_ends_at_the_final_rate():
    layer = torch.nn.Linear(1, 1)
    config = Training(learning_rate=0.5, final_learning_rate=0.1, epochs=3)
    optimizer = _optimizer(layer, config)
    schedule, rates = _schedule(optimizer, config, 2), []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.1 + 0.2 * (1 + math.cos(math.pi * k / 6)) for k in range(6)])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_where_a_solve_under_dropout_ends_its_gradient_is_taken(few_digits, tmp_path, monkeypatch):
    saved = torch.load(FOLDER / DEFAULT / "model.pt", weights_only=True)["model"]
    model = models.restore({**saved, "config": {**saved["config"], "dropout": 0.2}})
    solver = Solver(method="broyden", steps=14, stop="relative")
    config = Training(forward=solver, backward=solver, unrolled_steps=0)
    run = _Run(model, few_digits, DataConfig(), config, tmp_path / "run.pt", torch.device("cpu"))
    found = []
    monkeypatch.setattr("srs.training.train.implicit_solve", lambda *given: found.append(implicit_solve(*given)) or found[-1])
    smooth = torch.nn.functional.interpolate(torch.rand(24, 3, 8, 8), size=32, mode="bilinear")
    run._equilibrium(smooth + 0.5 * torch.randn(24, 3, 32, 32), 0)
    ((_, fz, z_in, solution),) = found
    assert solution.converged.sum() >= 22 and solution.evaluations.unique().numel() > 1  # not all of them at once
    with torch.no_grad():
        assert ((fz - z_in).norm(dim=1) / fz.norm(dim=1)).mean() < 5e-3


def test_training_asks_for_as_many_vectors_as_it_is_told(few_digits, tmp_path, monkeypatch):
    asked = []

    def watched(fz, z_in, vectors):
        asked.append(vectors)
        return jacobian_penalty(fz, z_in, vectors)

    monkeypatch.setattr("srs.training.train.jacobian_penalty", watched)
    _train(few_digits, tmp_path / "run.pt", epochs=2, jacobian_vectors=3)
    assert set(asked) == {3} and Training().jacobian_vectors == 2  # as released


def test_adversaries_attack_the_classifier_that_starts_as_it_is_trained(started, few_digits, tmp_path):
    one, two = Solver(method="naive", steps=1), Solver(method="naive", steps=2)
    x = few_digits.test.images(np.arange(4))
    for unrolled_steps in (0, 10):
        config = Training(forward=one, backward=one, unrolled_steps=unrolled_steps, unrolled_layers=2, start="learned")
        run = _Run(started, few_digits, DataConfig(), config, tmp_path / "run.pt", torch.device("cpu"))
        assert torch.allclose(run._logits()(x), classify(started, x, two, "learned")[0], atol=1e-5)


def test_divergence_is_an_error_that_names_the_knobs(few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(models.MDEQ, "f", lambda self, z, injection: z * torch.nan)
    with pytest.raises(FloatingPointError, match="learning_rate.*jacobian_weight"):
        _train(few_digits, tmp_path / "run.pt")


def test_parameter_errors():
    for bad in (
        {"sigma": -1},
        {"epochs": 0},
        {"batch_size": 1},
        {"optimizer": "lion"},
        {"jacobian_frequency": 2},
        {"epoch": 3},
        {"schedule": "stairs"},
        {"adversary": {"epsilon": 0}},
        {"adversary": {"sample": 4}},
        {"consistency": {"samples": 1}},
        {"precision": "float16"},
        {"processes": 5},
        {"processes": 96},
        {"adversary": {}, "consistency": {}},
    ):
        with pytest.raises(ValidationError, match=next(iter(bad))):
            Training(**bad)


def test_the_jacobian_weight_follows_its_schedule(few_digits, tmp_path):
    config = Training(epochs=1, unrolled_steps=10, jacobian_weight=2.5, unrolled_jacobian_weight=0.03, jacobian_increase=0.1)
    model = models.build("mdeq-tiny", **few_digits.model_fields())
    run = _Run(model, few_digits, DataConfig(), config, tmp_path / "run.pt", torch.device("cpu"))
    found = []
    for run.step in (0, 9, 10, 50_009, 50_010, 150_009):  # counted from the end of pre-training
        found.append(run._jacobian_weight())
    assert found == pytest.approx([0.03, 0.03, 2.5, 2.5, 2.6, 2.7])
    plain = Training(unrolled_steps=10, jacobian_weight=0.5)
    run.config, run.step = plain, 0
    assert run._jacobian_weight() == 0.5
