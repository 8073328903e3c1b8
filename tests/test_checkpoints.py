import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import srs
from srs import bounds, checkpoints, models
from srs.__main__ import main, read_picture
from srs.models import starts

ROOT = Path(__file__).parent.parent


@pytest.fixture
def shipped(started, trained_state, digits, tmp_path, monkeypatch):
    """A model that the smoke profile could have trained, shipped to a folder of this test's."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text().replace("active: *embedded", "active: *smoke"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path / "checkpoints")
    runs = {name: tmp_path / "runs" / "smoke" / name / "small-050" for name in ("models", "starts")}
    for folder in (*runs.values(), tmp_path / "data" / "smoke"):
        folder.mkdir(parents=True)
    digits.save(tmp_path / "data" / "smoke" / "digits.npz")
    torch.save({"model": trained_state}, runs["models"] / "model.pt")
    pd.DataFrame({"validation_residual": [0.1, 1.234e-5]}).to_csv(runs["models"] / "history.csv", index=False)
    torch.save(starts.state(started.starts), runs["starts"] / "starts.pt")
    (runs["starts"] / "seconds.json").write_text(json.dumps({"hardware": "2 cores of X"}))
    rows = [("AS-MDEQ-1N mean", 0.5, 1, -0.1), ("AS-MDEQ-1N", 0.59, 1, -0.01), ("AS-MDEQ-2A", 0.6, 2, 0.0)]
    held_out = pd.DataFrame(rows, columns=["row", "accuracy", "evaluations", "difference"])
    held_out.to_csv(runs["starts"] / "held_out.csv", index=False)
    return checkpoints.ship("small-050", "tiny", "0123456789abcdef")


@pytest.fixture
def picture(digits, tmp_path):
    pixels = (digits.test.images(np.array([0]))[0, 0] * 255).byte().numpy()
    Image.fromarray(np.kron(pixels, np.ones((5, 5), np.uint8))).save(tmp_path / "seven.png")
    return tmp_path / "seven.png"


def test_what_is_shipped_is_what_was_trained_and_chosen(shipped, started, digits):
    assert sorted(path.name for path in shipped.iterdir()) == ["card.md", "model.pt", "starts.pt"]
    assert checkpoints.names() == ["tiny"]
    model = srs.load("tiny")
    card = model.card
    assert (card.sigma, card.image_size, card.channels, card.commit) == (0.5, 8, 1, "0123456789abcdef")
    assert card.sampler.start == "learned" and card.sampler.solver.steps == 1
    assert (card.noisy_accuracy, card.reference_accuracy, card.residual) == (0.59, 0.6, 1.2e-5)
    image = digits.test.images(np.array([3]))[0]
    ask = {"sigma": card.sigma, "sampler": card.sampler, "n": 200}
    assert srs.certify(model, image, **ask) == srs.certify(started, image, **ask)


def test_other_weights_than_the_cards_are_refused(shipped):
    with open(shipped / "starts.pt", "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"checkpoints/tiny/starts\.pt has the hash .*, its card says"):
        srs.load("tiny")
    with pytest.raises(ValueError, match="model = 'teeny' is unknown: choose one of tiny"):
        srs.load("teeny")


def test_a_large_file_is_not_shipped(shipped, monkeypatch):
    monkeypatch.setattr(checkpoints, "LARGEST", 1_000)
    with pytest.raises(ValueError, match="bytes: at most 1,000 are shipped"):
        checkpoints.ship("small-050", "large", "0")


def test_a_picture_is_certified(shipped, picture, tmp_path, capsys):
    main(["certify", str(picture), "--model", "tiny", "--n", "200", "--figure", str(tmp_path / "answer.png")])
    told = capsys.readouterr().out
    model = srs.load("tiny")
    found = srs.certify(model, read_picture(picture, model.card), sigma=0.5, sampler=model.card.sampler, n=200)
    answer = f"{model.card.classes[found.prediction]}, certified within {bounds.shown(found.radius)}"
    assert told.splitlines()[0] == ("abstains" if found.prediction == srs.ABSTAIN else answer)
    assert "300 votes: " in told and "300 evaluations of f" in told and "seconds on" in told
    assert (tmp_path / "answer.png").stat().st_size > 10_000


def test_a_radius_takes_fewer_draws(shipped, picture, capsys):
    main(["certify", str(picture), "--model", "tiny", "--radius", "0.05"])
    told = capsys.readouterr().out
    assert "for the class" in told and ("certified within 0.050" in told or "Nothing is promised" in told)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.png"], "PICTURE = 'nowhere.png': no such file"),
        (["params.yaml"], "PICTURE = 'params.yaml' is not an image that can be read"),
        (["seven.png", "--model", "huge"], "model = 'huge' is unknown: choose one of tiny"),
        (["seven.png", "--n", "5"], "--n: .*got"),
        (["seven.png", "--alpha", "2"], "--alpha: .*less than 1"),
        (["seven.png", "--radius", "9"], "r = 9.0 is out of range"),
        (["seven.png", "--figure", "out.doc"], "--figure = 'out.doc' must end in"),
    ],
)
def test_what_cannot_be_used_is_refused(shipped, picture, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["certify", "--model", "tiny", *arguments])


@pytest.mark.parametrize("name", checkpoints.names())
def test_each_shipped_model_certifies_an_embedded_image(name, digits):
    model = srs.load(name)  # which checks the hashes
    card = model.card
    image = torch.nn.functional.interpolate(digits.test.images(np.array([0])), (card.image_size, card.image_size))[0]
    found = srs.certify(model, image.expand(card.channels, -1, -1), sigma=card.sigma, sampler=card.sampler, n=500)
    assert found.n == 500 and found.evaluations == 600 * card.sampler.solver.steps
    assert sum(p.numel() for p in models.load(checkpoints.FOLDER / name / "model.pt").parameters()) > 0
