"""What runs on a GPU runs on a pretend one, to the same bytes as on the CPU, whose arithmetic that has (:mod:`pretend_device`);
and the host waits for it no more often than it must."""

import copy

import numpy as np
import pytest
import torch
from conftest import few
from PIL import Image
from pretend_device import NAME, watched

import srs
from srs import __main__ as command
from srs import models
from srs.certificates.certify import CertifySettings
from srs.common import machine
from srs.data.datasets import DataConfig
from srs.deq.solvers import Solver
from srs.starts import StartSettings, fit_starts
from srs.training.train import Adversary, Training, _Run, train
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import DirectSampler, ReleasedSampler, SerializedSampler, StandardSampler
from study.arithmetic import Arithmetic, compare
from study.robustness import Attack, attack_images

STOPPED = Solver(steps=20, stop="relative")
BROYDEN = Solver(method="broyden", steps=3)
SAMPLERS = {
    "anderson": StandardSampler(solver=Solver(steps=6)),
    "stopped": StandardSampler(solver=STOPPED),
    "broyden": StandardSampler(solver=Solver(method="broyden", steps=12, stop="absolute", tolerance=0.5)),
    "mean": StandardSampler(solver=Solver(method="naive", steps=1), start="mean"),
    "learned": StandardSampler(solver=Solver(steps=2), start="learned"),
    "serialized": SerializedSampler(chains=6, restart=3),
    "serialized, stopped": SerializedSampler(chains=6, solver=STOPPED),
    "clean": SerializedSampler(chains=6, solver=BROYDEN, warmup=BROYDEN, start="clean", carry="clean"),
    "chain": SerializedSampler(chains=6, solver=BROYDEN, warmup=BROYDEN, carry="chain"),
    "mean of states": SerializedSampler(chains=6, start="running_mean"),
    "released": ReleasedSampler(batch=8),
}


@pytest.fixture(scope="module")
def twins(started):
    """One model on the CPU and on the device."""
    return started, copy.deepcopy(started).to(NAME)


def _copies(digits, places=(0, 7), where="cpu"):
    return [NoisyCopies(digits.test.images(np.array([i]))[0].to(where), i, 0.5, 0) for i in places]


def _same(found, expected):
    for one, other in zip(found, expected):
        for name in ("classes", "evaluations", "margins", "residuals"):
            assert np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True), name


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_casts_the_same_votes(twins, digits, name):
    found = [
        SAMPLERS[name].sample_many(model, _copies(digits, where=where), [np.arange(20)] * 2, 16)
        for model, where in zip(twins, ("cpu", NAME))
    ]
    _same(found[1], found[0])
    assert len(set(found[0][0].classes)) > 1


@pytest.mark.parametrize("steps", [3, 9])
@pytest.mark.parametrize("method", ["anderson", "broyden", "naive"])
def test_a_fixed_solve_is_not_waited_for(twins, digits, method, steps):
    model, x = twins[1], digits.test.images(np.arange(4)).to(NAME)
    with torch.no_grad():
        injection = model.inject(x)
        with watched() as events:
            srs.solve(model.f, model.initial_state(injection), injection, Solver(method=method, steps=steps))
    assert events == {"wait": 1}  # whether f writes


@pytest.mark.parametrize("method", ["anderson", "broyden"])
def test_a_solve_that_stops_is_waited_for_once_a_step(twins, digits, method):
    model, x = twins[1], digits.test.images(np.arange(8)).to(NAME)
    with torch.no_grad():
        injection = model.inject(x)
        with watched() as events:
            found = srs.solve(
                model.f,
                model.initial_state(injection),
                injection,
                Solver(method=method, steps=15, stop="relative", tolerance=0.02),
            )
    assert found.evaluations.unique().numel() > 2  # rows leave the batch step by step
    assert events == {"wait": int(found.evaluations.max()) + 1}


@pytest.mark.parametrize("name", ["anderson", "mean", "serialized", "mean of states"])
def test_a_batch_of_votes_is_fetched_at_once(twins, digits, name):
    seen = {}
    for draws in (24, 48):
        with watched() as seen[draws]:
            SAMPLERS[name].sample_many(twins[1], _copies(digits, where=NAME), [np.arange(draws)] * 2, 12)
    seen[48].subtract(seen[24])
    assert (seen[48]["to host"], seen[48]["wait"]) == (2 * 24 // 12, 0)


def test_any_classifier_casts_the_same_votes(digits):
    model = models.build("resnet-110", **digits.model_fields(), depth=8).eval()
    expected = DirectSampler().sample_many(model, _copies(digits), [np.arange(20)] * 2, 16)
    _same(DirectSampler().sample_many(model.to(NAME), _copies(digits, where=NAME), [np.arange(20)] * 2, 16), expected)


def test_certificates_are_the_same(twins, digits):
    image = digits.test.images(np.array([3]))[0]  # on the CPU: it goes where the model is
    settings = {"sigma": 0.5, "n0": 10, "n": 60, "alpha": 0.05, "batch_size": 40}
    asked = (
        lambda model: srs.certify(model, image, sampler=SAMPLERS["anderson"], **settings),
        lambda model: srs.certify(
            model, image, sampler=SAMPLERS["serialized"], reference=SAMPLERS["anderson"], audit=60, **settings
        ),
        lambda model: srs.predict(model, image, sampler=SAMPLERS["mean"], **settings),
        lambda model: srs.certify_at(model, [image, image + 0.1], 0.05, sampler=SAMPLERS["mean"], **settings),
    )
    for ask in asked:
        assert ask(twins[1]) == ask(twins[0])


@pytest.mark.parametrize("adversary", [None, Adversary(steps=1, samples=2)])
def test_training_goes_on_where_it_was_killed_and_its_steps_wait_seldom(digits, tmp_path, monkeypatch, adversary):
    short = {"epochs": 2, "batch_size": 30, "unrolled_steps": 1, "unrolled_layers": 2, "evaluate_every": 2}
    solvers = {"forward": BROYDEN, "backward": BROYDEN, "evaluation": BROYDEN, "jacobian_frequency": 0.5}
    config = Training(sigma=0.25, adversary=adversary, **short, **solvers)
    given = "mdeq-tiny", {}, few(digits), DataConfig(crop_padding=1, flip=True), config
    on_cpu = train(*given, tmp_path / "cpu.pt")
    undisturbed = train(*given, tmp_path / "whole.pt", NAME)

    steps, one_step = [], _Run._one_step

    def watched_step(run):
        with watched() as events:
            one_step(run)
        steps.append(events)
        if len(steps) == 3:
            run.save()
            raise KeyboardInterrupt

    monkeypatch.setattr(_Run, "_one_step", watched_step)
    with pytest.raises(KeyboardInterrupt):
        train(*given, tmp_path / "run.pt", NAME)
    resumed = train(*given, tmp_path / "run.pt", NAME)
    for name, value in undisturbed["model"]["state_dict"].items():
        assert torch.equal(resumed["model"]["state_dict"][name], value), name
    assert resumed["history"] == undisturbed["history"]
    assert [row["loss"] for row in resumed["history"]] == pytest.approx([row["loss"] for row in on_cpu["history"]], rel=1e-3)
    assert steps[0] == {"to device": 2, "to host": 1, "wait": 1}  # images and labels; what is told; whether a row is lost
    waits = 3 if adversary is None else 5  # besides: whether f writes, once a solve
    assert steps[1] == steps[2] == steps[0] | {"wait": waits}


@pytest.mark.parametrize("kind", ["ridge", "convolutional"])
def test_starts_are_the_same_from_images_of_either_device(twins, digits, kind):
    config = StartSettings(points=40, solver=Solver(steps=4), map=kind, epochs=2, batch_size=20)
    images = digits.train.images(np.arange(30))
    expected = fit_starts(twins[0], images, 0.5, config).state_dict()
    for given in (images, images.to(NAME)):
        found = fit_starts(twins[1], given, 0.5, config)
        assert next(found.buffers()).device.type == NAME
        for name, value in found.state_dict().items():
            assert torch.equal(value.cpu(), expected[name]), name


def test_attacks_are_the_same(twins, digits):
    solver = {"forward": Solver(steps=4), "backward": Solver(method="broyden", steps=3)}
    attacks = {"PGD": Attack(steps=2, **solver), "Smooth-PGD": Attack(samples=2, steps=2, **solver)}
    config = CertifySettings(sigma=0.25, n0=1, n=49, alpha=0.05, batch_size=50)
    found = [
        attack_images(model, digits.test, np.arange(3), attacks, [0.5, 1.0], SAMPLERS["anderson"], config, where)
        for model, where in zip(twins, ("cpu", NAME))
    ]
    assert {record["attack"] for record in found[0]} == {"none", *attacks}
    for one, other in zip(*found):
        assert one.pop("distance") == pytest.approx(other.pop("distance"), rel=1e-3) and one == other


def test_the_arithmetic_is_the_same(twins, digits):
    config = Arithmetic(run="any", images=1, n=10, n_alone=2, chains=5)
    assert compare(twins[1], digits.test, 1, 0.5, config).equals(compare(twins[0], digits.test, 1, 0.5, config))


def test_the_command_says_the_same(tmp_path, monkeypatch, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    said = {}
    for where in ("cpu", NAME):
        monkeypatch.setattr(machine, "prepare_device", lambda where=where: where)
        command.main(["certify", str(tmp_path / "picture.png"), "--n", "80", "--alpha", "0.1"])
        out = tmp_path / f"{where}.csv"
        command.main(
            ["certify", str(tmp_path / "picture.png"), "--n", "80", "--alpha", "0.1", "--out", str(out), "--radius", "0.1"]
        )
        said[where] = capsys.readouterr().out.splitlines()[:3], out.read_bytes()
    assert said["cpu"] == said[NAME]
