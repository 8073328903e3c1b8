import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from srs import models
from srs.data import DataConfig
from srs.training import Training, train, write_checkpoint

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


def _train(data, checkpoint, **changes):
    return train("mdeq-tiny", OVERRIDES, data, AUGMENTATION, Training(**{**CONFIG, **changes}), checkpoint)


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
import sys
sys.path.insert(0, {tests!r})
from conftest import *
import test_training as t
t._train(few(prepare(DataConfig())), {checkpoint!r}, checkpoint_seconds=1e-6)
"""


def test_killed_training_resumes_to_the_same_weights(undisturbed, few_digits, tmp_path):
    checkpoint = tmp_path / "run.pt"
    script = _KILLED.format(tests=os.path.dirname(__file__), checkpoint=str(checkpoint))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    steps = 0
    while steps < 5 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
        if checkpoint.is_file():
            steps = torch.load(checkpoint, weights_only=True)["step"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 5 <= torch.load(checkpoint, weights_only=True)["step"] < 20
    assert _same_bytes(undisturbed, _train(few_digits, checkpoint), tmp_path)


def test_history_says_what_was_measured(undisturbed):
    history = undisturbed["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert [row["unrolled"] for row in history] == [True, False, False, False]
    for row in history:
        assert row["loss"] > 0 and 0 <= row["accuracy"] <= 1 and row["residual"] >= 0 and row["lost"] == 0
    assert ["validation_accuracy" in row for row in history] == [False, True, False, True]


def test_training_learns(trained, digits):
    from srs.training import evaluate

    measured = evaluate(trained, digits.test, Training(sigma=0.25, seed=1))
    assert measured["validation_accuracy"] > 0.4
    assert measured["validation_residual"] < 0.01


def test_sgd_and_weight_decay(few_digits, tmp_path):
    run = _train(few_digits, tmp_path / "run.pt", optimizer="sgd", learning_rate=0.05, weight_decay=1e-3, epochs=2)
    assert np.isfinite(run["history"][-1]["loss"])


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
    ):
        with pytest.raises(ValidationError, match=next(iter(bad))):
            Training(**bad)
