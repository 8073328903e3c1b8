"""The paper profile, without its data: its graph resolves, and its code paths run on small folders in the paper's layouts."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srs import models, params
from srs.attacks import attack_images
from srs.casting import Casting, cast_votes
from srs.certification import Assurance, Certification, certificates
from srs.data import DataConfig, Dataset, prepare
from srs.journal import Journal
from srs.solvers import Solver
from srs.starts import fit_starts
from srs.training import train

ROOT = Path(__file__).parent.parent
PAPER = params.load(ROOT / "params.yaml").profiles["paper"]
DVC = Path(sys.executable).with_name("dvc")


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """The project's graph with the paper profile active, in a repository of its own."""
    root = tmp_path_factory.mktemp("paper")
    for name in ("srs", "notebooks"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "data").mkdir()
    for name in ("dvc.yaml", "data/items.yaml", "data/published.yaml"):
        shutil.copy(ROOT / name, root / name)
    text = (ROOT / "params.yaml").read_text()
    assert "active: *embedded" in text
    (root / "params.yaml").write_text(text.replace("active: *embedded", "active: *paper"))
    for command in (["git", "init", "-q"], [str(DVC), "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)
    return root


def test_the_stages_of_the_paper_profile_resolve(graph):
    listed = subprocess.run([str(DVC), "stage", "list", "--name-only"], cwd=graph, capture_output=True, text=True, check=True)
    stages = set(listed.stdout.split())
    assert {f"{kind}@{key}" for kind in ("train", "start", "vote") for key in PAPER.experiments} <= stages
    assert {f"variant@{key}" for key in PAPER.variants} | {f"speed@{key}" for key in PAPER.report.past} | {"past"} <= stages
    assert {"prepare@cifar10", "prepare@imagenet", "attack@small", "attack@large", "table2", "certify", "index"} <= stages
    dry = subprocess.run([str(DVC), "repro", "--dry", "--force"], cwd=graph, capture_output=True, text=True, check=True)
    assert dry.stdout.count("Running stage") == len(stages)
    assert "runs/paper/models/large-100" in dry.stdout and "data/paper/imagenet.npz" in dry.stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory, digits):
    """Digits as colour images in CIFAR-10's size and layout, and as larger JPEG files in ImageNet's."""
    root = tmp_path_factory.mktemp("images")
    for part, count in (("train", 8), ("test", 3)):
        _write(digits, root / "cifar10" / part, count, (32, 32), "{i:04d}.png", str)
    for part, count in (("train", 8), ("val", 3)):
        _write(digits, root / "imagenet" / part, count, (80, 96), "ILSVRC2012_{i:08d}.JPEG", lambda c: f"n{c:08d}")
    return root


def _write(digits, folder, count, size, pattern, name):
    for label in range(2):
        chosen = np.flatnonzero(digits.train.labels == label)[:count]
        (folder / name(label)).mkdir(parents=True)
        for i in chosen:
            pixels = Image.fromarray((digits.train.pixels[i, 0] * 15).astype(np.uint8)).resize(size)
            pixels.convert("RGB").save(folder / name(label) / pattern.format(i=i))


@pytest.mark.parametrize("key", ["small-050-smoothadv", "large-050", "imagenet-100", "resnet-050"])
def test_the_paper_profiles_code_paths_run_at_tiny_scale(key, folders, tmp_path):
    experiment = PAPER.trained[key]
    data = PAPER.datasets[experiment.model.data]
    small = {"name": "folder", "root": str(folders / experiment.model.data), "validation": 2}
    small |= {"image_size": 32} if data.name == "cifar10" else {"image_size": 64, "resize": 72}
    data = DataConfig.model_validate(data.model_dump() | small)
    prepare(data).save(tmp_path / "data.npz")
    dataset = Dataset.load(tmp_path / "data.npz")

    few = {
        "epochs": 2,
        "batch_size": 4,
        "unrolled_steps": 3,
        "unrolled_layers": 2,
        "jacobian_frequency": 1.0,
        "evaluate_every": 2,
    }
    few["evaluation"] = experiment.training.evaluation.model_copy(update={"steps": 2})
    training = experiment.training.model_copy(update=few)
    spec = experiment.model
    trained = train(spec.preset, spec.overrides, dataset, data, training, tmp_path / "run.pt")
    assert len(trained["history"]) == 2 and np.isfinite(trained["history"][-1]["loss"])
    model = models.restore(trained["model"]).eval().fold()
    if key != "resnet-050":
        few = {"points": 6, "batch_size": 3, "epochs": 1, "solver": Solver(steps=2)}
        model.starts = fit_starts(model, dataset.train, training.sigma, PAPER.starts.model_copy(update=few))

    group = experiment.votes.groups["pair" if "pair" in experiment.votes.groups else "main"]
    rows = dict(list(group.samplers.items())[-3:])
    groups = {"main": {"images": 1, "n": 6, "samplers": rows}}
    if key != "resnet-050":
        groups["main"]["audit"] = 3
    few = {"images": 2, "n0": 2, "chains": 4, "batch_size": 4, "groups": groups}
    casting = Casting.model_validate(experiment.votes.model_dump() | few)
    journal = Journal(tmp_path / "votes")
    votes = cast_votes(model, dataset.test, casting, journal)
    journal.close()
    found = certificates(votes, dataset.test.labels, casting, Assurance(alpha=0.05))
    assert list(found["method"]) == list(rows) and (found["evaluations"] > 0).all()

    attacks = {name: a.model_copy(update={"steps": 1}) for name, a in PAPER.attacks["small"].attacks.items() if a.samples < 2}
    settings = Certification(sigma=casting.sigma, n0=1, n=5, alpha=0.05, batch_size=4)
    journal = Journal(tmp_path / "attacks")
    sampler = casting.reference if key != "resnet-050" else group.samplers["ResNet-110"]
    records = attack_images(model, dataset.test, votes.index[:1], attacks, [0.5], sampler, settings, journal)
    journal.close()
    assert records[0]["attack"] == "none" and all(record["distance"] <= 0.5 + 1e-5 for record in records)
