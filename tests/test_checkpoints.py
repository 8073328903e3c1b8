import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

import srs
from srs import checkpoints, models
from srs.__main__ import DEFAULT, Answer, ask, main, read_picture
from srs.certificates import bounds
from srs.certificates.at_radius import RadiusCertificate
from srs.deq.interface import LOOKED_AT
from srs.models import starts
from study import shipping
from study.common.engine import _write_record
from study.common.layout import Layout

ROOT = Path(__file__).parent.parent


@pytest.fixture
def shipped(started, trained_state, digits, tmp_path, monkeypatch):
    """A model that the smoke profile could have trained, shipped to a folder of this test's."""
    shutil.copy(ROOT / "profiles" / "smoke.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    for module in (checkpoints, shipping):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "checkpoints")
    runs = {name: tmp_path / "runs" / "smoke" / name / "small-050" for name in ("models", "starts")}
    for folder in (*runs.values(), tmp_path / "data" / "smoke"):
        folder.mkdir(parents=True)
    digits.save(tmp_path / "data" / "smoke" / "digits.npz")
    torch.save({"model": trained_state}, runs["models"] / "model.pt")
    record = {"train": 75.4, "machine": {"hardware": "2 cores of X"}, "origin": ""}
    _write_record(Layout("smoke").record("models", "small-050"), record)
    pd.DataFrame({"validation_residual": [0.1, 1.234e-5]}).to_csv(runs["models"] / "history.csv", index=False)
    torch.save(starts.state(started.starts), runs["starts"] / "starts.pt")
    rows = [("AS-MDEQ-1N mean", 0.5, 1, -0.1), ("AS-MDEQ-1N", 0.59, 1, -0.01), ("AS-MDEQ-2A", 0.6, 2, 0.0)]
    held_out = pd.DataFrame(rows, columns=["row", "accuracy", "evaluations", "difference"])
    held_out.to_csv(runs["starts"] / "held_out.csv", index=False)
    return shipping.ship("small-050", "tiny", "0123456789abcdef")


@pytest.fixture
def picture(digits, tmp_path):
    pixels = (digits.test.images(np.array([0]))[0, 0] * 255).byte().numpy()
    Image.fromarray(np.kron(pixels, np.ones((5, 5), np.uint8))).save(tmp_path / "seven.png")
    return tmp_path / "seven.png"


def test_what_is_shipped_is_what_was_trained_and_chosen(shipped, started, trained_state, digits):
    assert sorted(path.name for path in shipped.iterdir()) == ["card.md", "model.pt", "starts.pt"]
    assert checkpoints.names() == ["tiny"]
    model = srs.load("tiny")
    card = model.card
    assert (card.sigma, card.image_size, card.channels, card.commit) == (0.5, 8, 1, "0123456789abcdef")
    assert card.sampler.start == "learned" and card.sampler.solver.steps == 1
    assert (card.noisy_accuracy, card.reference_accuracy, card.residual) == (0.59, 0.6, 1.2e-5)
    assert (card.hardware, card.seconds, card.noisy_copies) == ("2 cores of X", 75, 4 * len(digits.validation))
    assert card.parameters == sum(p.numel() for p in models.restore(trained_state).parameters())
    assert str(len(digits.test)) in card.images
    image = digits.test.images(np.array([3]))[0]
    ask = {"sigma": card.sigma, "sampler": card.sampler, "n": 200}
    assert srs.certify(model, image, **ask) == srs.certify(started, image, **ask)


def test_a_card_says_what_a_network_was_trained_on_from(shipped):
    knobs = yaml.safe_load(Path("params.yaml").read_text())
    knobs["runs"]["small-030"] = knobs["runs"]["small-050"] | {"sigma": 0.25, "pretrained": "small-050", "repeats": 0}
    knobs["votes"]["groups"]["small-030"] = knobs["votes"]["groups"]["small-050"]
    Path("params.yaml").write_text(yaml.safe_dump(knobs, sort_keys=False))
    for name in ("models", "starts"):
        shutil.copytree(f"runs/smoke/{name}/small-050", f"runs/smoke/{name}/small-030")
    layout = Layout("smoke")
    shutil.copy(layout.record("models", "small-050"), layout.record("models", "small-030"))
    page = shipping.ship("small-030", "other", "c0ffee") / "card.md"
    assert checkpoints.read_card("other").pretrained == "tiny" and "goes on from `tiny` (fine-tuning); " in page.read_text()
    assert checkpoints.read_card("tiny").pretrained == "" and "fine-tuning" not in (shipped / "card.md").read_text()
    torch.save({"model": {}}, "runs/smoke/models/small-050/model.pt")  # another network than the one that was shipped
    shipping.ship("small-030", "other", "c0ffee")
    assert checkpoints.read_card("other").pretrained == "small-050"


def test_other_weights_than_the_cards_are_refused(shipped):
    with open(shipped / "starts.pt", "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"checkpoints/tiny/starts\.pt has the hash .*, its card says"):
        srs.load("tiny")
    with pytest.raises(ValueError, match="model = 'teeny' is unknown: choose one of tiny"):
        srs.load("teeny")


def test_a_card_says_what_is_wrong_with_it(shipped, monkeypatch, tmp_path):
    card = shipped / "card.md"
    page = card.read_text()
    for found, message in {
        page.replace("starts.pt: ", "ends.pt: "): "card.md: sha256",
        page.replace("sigma: 0.5\n", "", 1): "card.md: sigma: Field required$",
        "# A page without a block": "card.md does not open with a card's block",
    }.items():
        card.write_text(found)
        with pytest.raises(ValueError, match=message):
            srs.load("tiny")
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="model = 'tiny' is unknown: there is none in .*nowhere"):
        srs.load("tiny")


def test_what_cannot_be_shipped_leaves_nothing_behind(shipped, monkeypatch):
    with pytest.raises(ValueError, match="run = 'small-05' is unknown or has no starts: choose one of small-050, "):
        shipping.ship("small-05", "other", "0")
    monkeypatch.setattr(shipping, "LARGEST", 1_000)
    with pytest.raises(ValueError, match="bytes: at most 1,000 may be published"):
        shipping.ship("small-050", "other", "0")
    assert not (checkpoints.FOLDER / "other").exists()


def test_a_commit_that_git_does_not_know_ships_nothing(shipped, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["shipping", "small-050", "other", "--commit", "nonsense"])
    with pytest.raises(SystemExit, match="nothing shipped: --commit = 'nonsense': git knows no such commit here"):
        shipping.main()
    assert not (checkpoints.FOLDER / "other").exists()


def test_a_picture_is_certified(shipped, picture, tmp_path, capsys):
    main(["certify", str(picture), "--model", "tiny", "--n", "200", "--figure", str(tmp_path / "answer.png")])
    told = capsys.readouterr().out
    model = srs.load("tiny")
    found = srs.certify(model, read_picture(picture, model.card), sigma=0.5, sampler=model.card.sampler, n=200)
    answer = f"{model.card.classes[found.prediction]}, certified within {bounds.shown(found.radius)}"
    assert told.splitlines()[0] == ("abstains" if found.prediction == srs.ABSTAIN else answer)
    assert "\n200 votes: " in told and f" {found.n_a}" in told and "seconds on" in told
    assert re.search(r"\b3[0-2]\d evaluations of f", told)  # 300, and narrow margins once more
    assert (tmp_path / "answer.png").stat().st_size > 10_000


def test_a_radius_takes_fewer_votes(shipped, picture, capsys):
    main(["certify", str(picture), "--model", "tiny", "--radius", "0.1"])
    told = capsys.readouterr().out
    votes, evaluations = (int(found.replace(",", "")) for found in re.findall(r"([\d,]+) (?:votes:|evaluations)", told))
    assert ", certified within 0.1\n" in told and 0 < votes < evaluations < 3_000  # of 10,000


def test_promises_say_what_is_promised(shipped, picture):
    model = srs.load("tiny")
    image = read_picture(picture, model.card)
    answer = ask(model, image, n=200, alpha=1.4e-6)
    ball = Answer(model.card, answer.copies, replace(answer.found, prediction=3, radius=0.12349), "3", {})
    assert "at least 1 - 1.4e-06 over" in ball.promise and "8x8 pixels and for every such image" in ball.promise
    assert "closer to it than 0.123 " in ball.promise
    point = Answer(model.card, answer.copies, replace(answer.found, prediction=3, radius=0.0004), "3", {})
    assert "central square at 8x8 pixels. Whether" in point.promise
    with pytest.raises(ValueError, match="selection = 'clean': an answer names the class by n0 votes"):
        ask(model, image, n=200, selection="clean")
    settled = RadiusCertificate(srs.ABSTAIN, 3, "refuted", 0.1255, 2, 9, 200, 0.001, 0.5, 5, 3, 0.9, 10)
    for outcome, told in (("refuted", "no class has enough of the noisy copies"), ("exhausted", "200 votes cannot show it")):
        answer = Answer(model.card, answer.copies, replace(settled, outcome=outcome), "3", {})
        assert answer.promise.startswith("Nothing is promised within 0.1255") and told in answer.promise


def test_pictures_are_read_as_they_are_seen(shipped, tmp_path):
    card = checkpoints.read_card("tiny")
    drawing = np.zeros((20, 60, 4), np.uint8)  # black, but transparent in its left third and its right one
    drawing[:, 20:40, 3] = 255
    wide = tmp_path / "wide.png"
    Image.fromarray(drawing).save(wide)
    assert read_picture(wide, card).max() == 0
    Image.fromarray(drawing[:, 40:]).save(wide)
    assert read_picture(wide, card).min() == 1  # on white
    rotated = Image.fromarray(np.repeat(np.uint8([[0], [255]]), 2, axis=1).repeat(8, axis=0).repeat(8, axis=1))
    exif = rotated.getexif()
    exif[0x0112] = 3  # upside down
    rotated.save(tmp_path / "rotated.png", exif=exif)
    seen = read_picture(tmp_path / "rotated.png", card)
    assert seen[0, 0].min() == 1 and seen[0, -1].max() == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.png"], "PICTURE = 'nowhere.png': No such file"),
        (["checkpoints"], "PICTURE = 'checkpoints': Is a directory: name a file for the rows of its pictures, --out"),
        (["params.yaml"], "PICTURE = 'params.yaml' is not an image that can be read"),
        (["half.png"], "PICTURE = 'half.png' is not an image that can be read"),
        (["deep.png"], "PICTURE = 'deep.png' has more than 8 bits a channel"),
        (["seven.png", "nowhere.png"], "PICTURE = 'nowhere.png': No such file"),
        (["seven.png", "half.png"], "PICTURE = 'half.png' is not an image that can be read"),
        (["seven.png", "--model", "huge"], "model = 'huge' is unknown: choose one of tiny"),
        (["seven.png", "--n", "5"], "^--n: n = 5 is too small for alpha = 0.001: [^{]*$"),
        (["seven.png", "--alpha", "2"], "--alpha: .*< 1"),
        (["seven.png", "--radius", "9"], "--radius = 9.0 is out of range"),
        (["seven.png", "--figure", "out.doc"], "--figure = 'out.doc' must end in"),
        (["seven.png", "--figure", "nowhere/out.png"], "--figure = 'nowhere/out.png' cannot be written"),
        (["seven.png", "--figure", "seven.png"], "--figure = 'seven.png' is the picture itself"),
        (["seven.png", "deep.png", "--figure", "out.png"], "--figure = 'out.png' is for one picture: 2 were given"),
        (["seven.png", "--format", "csv"], "--format = 'csv' is for the rows of --out"),
        (["seven.png", "--out", "rows.csv", "--figure", "out.png"], "--figure = 'out.png' is for one picture, without --out"),
        (["seven.png", "--out", "nowhere/rows.csv"], "--out = 'nowhere/rows.csv' cannot be written"),
        (["seven.png", "--out", "checkpoints"], "--out = 'checkpoints' cannot be written"),
        (["seven.png", "--out", "seven.png"], "--out = 'seven.png' is one of the pictures: name another file"),
        ([".", "--out", "seven.png"], "--out = 'seven.png' is one of the pictures: name another file"),
        (["seven.png", "--out", "params.yaml"], "out = 'params.yaml' exists: name another file"),
        (["nowhere", "--out", "rows.csv"], "PICTURE = 'nowhere': No such file"),
        (["checkpoints", "--out", "rows.csv"], "PICTURE = 'checkpoints' is a folder without pictures"),
        (["seven.png", "--out", "rows.csv", "--n", "5"], "^--n: n = 5 is too small for alpha"),
        (["seven.png", "--out", "rows.csv", "--radius", "9"], "--radius = 9.0 is out of range"),
        (["seven.png", "--out", "rows.csv", "--format", "cohen"], "format = 'cohen' needs labels, image 0 has none"),
        (["seven.png", "--out", "rows.csv", "--model", "huge"], "model = 'huge' is unknown: choose one of tiny"),
    ],
)
def test_what_cannot_be_used_is_refused(shipped, picture, arguments, message):
    Path("half.png").write_bytes(picture.read_bytes()[:60])
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save("deep.png")
    with pytest.raises(SystemExit, match=message):
        main(["certify", *arguments, *([] if "--model" in arguments else ["--model", "tiny"])])
    assert not Path("rows.csv").exists()


def test_several_pictures_are_answered_in_turn(shipped, picture, capsys):
    copy = Path("copy.png")
    copy.write_bytes(picture.read_bytes())
    ask = ["--model", "tiny", "--n", "200"]
    main(["certify", str(picture), *ask])
    once = capsys.readouterr().out.splitlines()[:-1]  # without the seconds
    main(["certify", str(picture), str(copy), *ask])
    told = capsys.readouterr().out.splitlines()
    half = len(once) + 2
    assert told[0] == str(picture) and told[half] == str(copy) and told[1 : half - 1] == told[half + 1 : -1] == once


def _picture_folder(digits, count):
    """Pictures in folders by class, and what a folder holds besides."""
    for i in range(count):
        folder = Path("pictures") / digits.classes[digits.test.labels[i]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.test.images(np.array([i]))[0, 0] * 255).byte().numpy()).save(folder / f"{i:03}.PNG")
    (Path("pictures") / "README.txt").write_text("no picture")
    (Path("pictures") / "0" / "rows.csv").touch()


def test_a_folder_becomes_rows(shipped, picture, digits, capsys):
    _picture_folder(digits, 30)
    main(["certify", "pictures", str(picture), "--model", "tiny", "--n", "200", "--out", "rows.csv"])
    rows = pd.read_csv("rows.csv")
    assert rows["file"].tolist() == [*map(str, sorted(Path("pictures").rglob("*.PNG"))), str(picture)]
    folders = [Path(file).parent.name for file in rows["file"][:-1]]
    assert rows["label"][:-1].tolist() == list(map(float, folders)) and np.isnan(rows["label"].iloc[-1])
    model = srs.load("tiny")
    ask = {"sigma": 0.5, "sampler": model.card.sampler, "n": 200}
    for i in (0, 17, 30):
        found = srs.certify(model, read_picture(Path(rows["file"][i]), model.card), index=i, **ask)
        assert (rows["prediction"][i], rows["n_a"][i]) == (found.prediction, found.n_a)
    told = capsys.readouterr().out
    assert told.startswith("31 images, ") and "certified accuracy of 30 labelled images" in told and "rows: rows.csv" in told
    main(["certify", "pictures", "--model", "tiny", "--radius", "0.1", "--out", "cohen.tsv", "--format", "cohen"])
    rows = pd.read_csv("cohen.tsv", delimiter="\t")
    assert rows["label"].tolist() == list(map(int, folders)) and "within 0.1: " in capsys.readouterr().out


def test_a_broken_picture_stops_the_run_with_its_name_and_rows_stay(shipped, digits):
    _picture_folder(digits, 30)
    broken = sorted(Path("pictures").rglob("*.PNG"))[20]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    command = ["certify", "pictures", "--model", "tiny", "--n", "200", "--out", "rows.csv"]
    with pytest.raises(SystemExit, match=f"PICTURE = '{broken}' is not an image that can be read"):
        main(command)
    assert len(Path("rows.csv").read_text().splitlines()) == 21
    broken.write_bytes(whole)
    main(command)
    assert len(Path("rows.csv").read_text().splitlines()) == 31


_KILLED = """
import os, signal, sys
from pathlib import Path
from srs import checkpoints, many
from srs.__main__ import main

checkpoints.FOLDER, least, append = Path(sys.argv.pop(1)), int(sys.argv.pop(1)), many._Sheet.append


def append_and_die(sheet, entries):
    append(sheet, entries)
    if sheet.out.read_bytes().count(b"\\n") >= least:
        os.kill(os.getpid(), signal.SIGKILL)


many._Sheet.append = append_and_die
main()
"""


def test_a_command_that_is_killed_twice_ends_with_the_same_bytes(shipped, digits):
    _picture_folder(digits, 80)
    command = ["certify", "pictures", "--model", "tiny", "--radius", "0.12", "--n", "100", "--out"]
    main([*command, "whole.csv"])
    out = Path("rows.csv")
    for least in (17, 33):
        started = [sys.executable, "-c", _KILLED, str(checkpoints.FOLDER), str(least), *command, str(out)]
        assert subprocess.run(started, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
        assert Path("rows.csv.journal").exists() and least <= out.read_bytes().count(b"\n") < 81
    main([*command, str(out)])
    assert out.read_bytes() == Path("whole.csv").read_bytes() and not Path("rows.csv.journal").exists()


@pytest.mark.parametrize("name", checkpoints.names() or [DEFAULT])
def test_each_shipped_model_certifies_an_embedded_image(name, digits):
    model = srs.load(name)  # which checks the hashes
    card = model.card
    image = torch.nn.functional.interpolate(digits.test.images(np.array([0])), (card.image_size, card.image_size))[0]
    found = srs.certify(model, image.expand(card.channels, -1, -1), sigma=card.sigma, sampler=card.sampler, n=500)
    assert found.n == 500 and found.evaluations >= (600 + 2 * LOOKED_AT + 1) * card.sampler.solver.steps
    whole = models.read(checkpoints.FOLDER / name / "model.pt")
    assert sum(p.numel() for p in whole.parameters()) == card.parameters
    assert whole.config.num_classes == len(card.classes)
