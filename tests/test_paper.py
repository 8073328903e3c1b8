"""The paper profile, without its data: its code paths run on small folders in the paper's layouts."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pretend_device import NAME

from srs import models
from srs.certificates.certify import CertifySettings
from srs.common import machine
from srs.data.datasets import DataConfig, Dataset, prepare
from srs.deq.solvers import Solver
from srs.models.starts import state
from srs.starts import fit_starts
from srs.training.train import Training, train
from srs.votes.samplers import StandardSampler
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
NARROW = {"channels": [8] * 4, "head_channels": [2] * 4, "final_channels": 8}
CHEAP = {"SRS-MDEQ-1A", "SRS-MDEQ-1B", "AS-MDEQ-1N", "ResNet"}  # rows
TWO = Solver(steps=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, digits):
    """Digits as colour images in CIFAR-10's size and layout, and as larger JPEG files in ImageNet's."""
    root = tmp_path_factory.mktemp("images")
    for part, count in (("train", 3), ("test", 3)):
        _write(digits, root / "cifar10" / part, count, (32, 32), "{i:04d}.png", str)
    for part, count in (("train", 3), ("val", 3)):
        _write(digits, root / "imagenet" / part, count, (230, 250), "ILSVRC2012_{i:08d}.JPEG", lambda c: f"n{c:08d}")
    return root


def _write(digits, folder, count, size, pattern, name):
    for label in range(2):
        chosen = np.flatnonzero(digits.train.labels == label)[:count]
        (folder / name(label)).mkdir(parents=True)
        for i in chosen:
            pixels = Image.fromarray((digits.train.pixels[i, 0] * 15).astype(np.uint8)).resize(size)
            pixels.convert("RGB").save(folder / name(label) / pattern.format(i=i))


@pytest.mark.parametrize(
    "key, overrides, images, n, where",
    [
        *((key, {}, 1, 6, "cpu") for key in ("small-050-smoothadv", "large-050", "imagenet-100", "resnet-050")),
        *((key, NARROW, 2, 100, NAME) for key in ("large-050", "imagenet-100")),
    ],
)
def test_the_paper_profiles_code_paths_run_in_miniature(key, overrides, images, n, where, folders, tmp_path, monkeypatch):
    """With networks as wide as the paper's a few votes are cast; with narrow ones many, on the pretend device."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "prepare_device", lambda threads: where)
    layout, run, settings = Layout("paper"), PLANS.runs[key], Machine(workers=1, batch_size=4 if n < 100 else 50)
    spec, is_deq = PLANS.models[run.model], key != "resnet-050"
    data = PAPER.data[spec.data].model_dump() | {"name": "folder", "root": str(folders / spec.data), "validation": 2}
    size = 64 if spec.data == "imagenet" else 32  # for the paper's 224, which takes twelve times as long
    data = DataConfig.model_validate(data | {"image_size": size})
    layout.data.mkdir(parents=True)
    prepare(data).save(layout.dataset(spec.data))
    dataset = Dataset.load(layout.dataset(spec.data))

    schedule = Training(**run.schedule(PAPER.training))
    few = {"epochs": 2, "batch_size": 4, "unrolled_steps": 1, "unrolled_layers": 2, "evaluate_every": 2, "evaluation": TWO}
    few |= {"jacobian_frequency": 1.0, "jacobian_vectors": 1}  # a step unrolled, and one that is not
    few |= {name: getattr(schedule, name).model_copy(update={"steps": 2}) for name in ("forward", "backward")}
    given = spec.preset, spec.overrides | overrides, dataset, data, schedule.model_copy(update=few), tmp_path / "run.pt", where
    trained = train(*given)
    assert [row["unrolled"] for row in trained["history"]] == [is_deq, False]
    assert all(np.isfinite(row["loss"]) for row in trained["history"])
    model = models.restore(trained["model"]).eval().fold().to(where)
    for name in ("models", "starts"):
        (layout.runs / name / key).mkdir(parents=True)
    models.write_checkpoint({"model": trained["model"]}, layout.runs / "models" / key / "model.pt")
    if is_deq:
        few = {"points": 4, "batch_size": 2, "epochs": 1, "solver": TWO}
        model.starts = fit_starts(model, dataset.train, run.sigma, PAPER.starts.model_copy(update=few))
        models.write_checkpoint(state(model.starts), layout.runs / "starts" / key / "starts.pt")

    main = PAPER.votes.groups[key][0]
    rows = [row for row in PAPER.rows[PLANS.draws[main].rows or main] if row in CHEAP]
    draws = {"few": {"images": images, "n": n} | ({"audit": 3} if is_deq else {})}
    votes = PAPER.votes.model_dump() | {
        "n0": 2,
        "chains": 2 if n < 100 else 10,
        "images": {spec.data: 2},
        "groups": {key: ["few"]},
        "repeated": [],
    }
    given = {name: value for name, value in PAPER.model_dump().items() if name in ("runs", "models", "samplers")}
    plans = VotePlans(**given, votes=votes, rows={"few": rows}, draws=draws)
    compute(vote_jobs(plans, layout, settings), settings=settings)
    found = all_certificates(plans, {"alpha": 0.05}, layout)
    found = found[found["design"] == ""]
    assert list(found["method"]) == [row for row in rows for _ in range(images)] and (found["evaluations"] > 0).all()

    short = {"steps": 1, "forward": TWO, "backward": TWO}
    attacks = {name: a.model_copy(update=short) for name, a in PAPER.robustness.attacks.items() if a.samples < 2}
    judged = CertifySettings(sigma=run.sigma, n0=1, n=5, alpha=0.05, batch_size=4)
    sampler = StandardSampler(solver=TWO) if is_deq else plans[key].sampler("few", "ResNet")
    records = attack_images(model, dataset.test, np.array([0]), attacks, [0.5], sampler, judged, where)
    assert records[0]["attack"] == "none" and all(record["distance"] <= 0.5 + 1e-5 for record in records)
