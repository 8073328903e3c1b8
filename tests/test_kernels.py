"""Another processor, as far as there is one here: other kernels and another number of threads. Votes of a shipped model are the
same but for near ties."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

OTHER = {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "2"}
DRAWS = 60
ROOT = Path(__file__).parent.parent


def cast(out: str) -> None:
    """Votes of a few rows on an embedded image, with one solve's logits and the kernels they come from."""
    import srs
    from srs.data.datasets import DataConfig, prepare
    from srs.deq.definition import classify
    from srs.deq.solvers import Solver
    from srs.votes.noise import NoisyCopies
    from srs.votes.samplers import SerializedSampler, StandardSampler

    model = srs.load("mdeq-small-cifar10-0.50")
    image = prepare(DataConfig()).test.images(np.array([0]))
    image = (torch.nn.functional.interpolate(image, (32, 32))[0].expand(3, -1, -1) * 255).round() / 255
    copies = NoisyCopies(image, 0, model.card.sigma, 0)
    rows = {"amortized": model.card.sampler, "standard": StandardSampler(solver=Solver(steps=5))}
    rows["serialized"] = SerializedSampler(solver=Solver(steps=2), warmup=Solver(steps=5), chains=20)
    classes = {name: row.sample(model, copies, np.arange(DRAWS), 100).classes for name, row in rows.items()}
    with torch.no_grad():
        logits, _ = classify(model, copies(np.arange(8)), Solver(steps=5))
    np.savez(out, kernels=torch.backends.cpu.get_cpu_capability(), logits=logits.numpy(), **classes)


def test_votes_are_the_same_under_other_kernels_but_for_near_ties(tmp_path):
    """Two processes, which import torch and vote: ten seconds, as only a new process takes other kernels."""
    found = []
    for name, environment in (("one.npz", {}), ("other.npz", OTHER)):
        here = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
        subprocess.run([sys.executable, __file__, str(tmp_path / name)], env=here, check=True)
        found.append(np.load(tmp_path / name))
    one, other = found
    if one["kernels"] == other["kernels"]:
        pytest.skip(f"this processor has {one['kernels']} kernels alone")
    assert (one["logits"] != other["logits"]).any(), "the same bits: nothing was tried"
    for row in ("amortized", "standard", "serialized"):
        decided = (one[row] >= 0) & (other[row] >= 0)
        assert decided.sum() > 0.98 * DRAWS and (one[row] == other[row])[decided].all(), row


if __name__ == "__main__":
    cast(sys.argv[1])
