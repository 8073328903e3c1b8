"""The paper profile, without its data: its code paths run on small folders in the paper's layouts."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srs import models
from srs.certificates.certify import CertifySettings
from srs.data.datasets import DataConfig, Dataset, prepare
from srs.deq.solvers import Solver
from srs.models.starts import state
from srs.starts import fit_starts
from srs.training.train import Training, train
from study import params
from study.common.engine import Machine, compute
from study.common.layout import Layout
from study.robustness import attack_images
from study.votes.cast import vote_jobs
from study.votes.plan import VotePlans
from study.votes.table import all_certificates

ROOT = Path(__file__).parent.parent
PAPER = params.load(ROOT / "profiles" / "paper.yaml")
PLANS = PAPER.plans


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
def test_the_paper_profiles_code_paths_run_at_tiny_scale(key, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layout, run, machine = Layout("paper"), PLANS.runs[key], Machine(workers=1, batch_size=4)
    spec = PLANS.models[run.model]
    data = PAPER.data[spec.data]
    small = {"name": "folder", "root": str(folders / spec.data), "validation": 2}
    small |= {"image_size": 32} if data.name == "cifar10" else {"image_size": 64, "resize": 72}
    data = DataConfig.model_validate(data.model_dump() | small)
    layout.data.mkdir(parents=True)
    prepare(data).save(layout.dataset(spec.data))
    dataset = Dataset.load(layout.dataset(spec.data))

    schedule = Training(**run.schedule(PAPER.training))
    few = {
        "epochs": 2,
        "batch_size": 4,
        "unrolled_steps": 3,
        "unrolled_layers": 2,
        "jacobian_frequency": 1.0,
        "evaluate_every": 2,
    }
    few["evaluation"] = schedule.evaluation.model_copy(update={"steps": 2})
    trained = train(spec.preset, spec.overrides, dataset, data, schedule.model_copy(update=few), tmp_path / "run.pt")
    assert len(trained["history"]) == 2 and np.isfinite(trained["history"][-1]["loss"])
    model = models.restore(trained["model"]).eval().fold()
    for name in ("models", "starts"):
        (layout.runs / name / key).mkdir(parents=True)
    models.write_checkpoint({"model": trained["model"]}, layout.runs / "models" / key / "model.pt")
    if key != "resnet-050":
        few = {"points": 6, "batch_size": 3, "epochs": 1, "solver": Solver(steps=2)}
        model.starts = fit_starts(model, dataset.train, run.sigma, PAPER.starts.model_copy(update=few))
        models.write_checkpoint(state(model.starts), layout.runs / "starts" / key / "starts.pt")

    rows = PAPER.rows[PLANS.draws[PAPER.votes.groups[key][0]].rows or PAPER.votes.groups[key][0]][-3:]
    draws = {"few": {"images": 1, "n": 6} | ({} if key == "resnet-050" else {"audit": 3})}
    votes = PAPER.votes.model_dump() | {"n0": 2, "chains": 4, "images": {spec.data: 2}, "groups": {key: ["few"]}}
    given = {name: value for name, value in PAPER.model_dump().items() if name in ("runs", "models", "samplers")}
    plans = VotePlans(**given, votes=votes, rows={"few": rows}, draws=draws)
    compute(vote_jobs(plans, layout, machine), settings=machine)
    found = all_certificates(plans, {"alpha": 0.05}, layout)
    found = found[found["design"] == ""]
    assert list(found["method"]) == list(rows) and (found["evaluations"] > 0).all()

    attacks = {name: a.model_copy(update={"steps": 1}) for name, a in PAPER.robustness.attacks.items() if a.samples < 2}
    settings = CertifySettings(sigma=run.sigma, n0=1, n=5, alpha=0.05, batch_size=4)
    sampler = plans[key].reference if key != "resnet-050" else plans[key].sampler("few", "ResNet-110")
    records = attack_images(model, dataset.test, np.array([0]), attacks, [0.5], sampler, settings)
    assert records[0]["attack"] == "none" and all(record["distance"] <= 0.5 + 1e-5 for record in records)
