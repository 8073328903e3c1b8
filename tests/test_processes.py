"""Training in several processes, over gloo."""

import multiprocessing
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import command_of, wait_until
from torch.distributed.launcher import api

from srs import models
from srs.data.datasets import DataConfig
from srs.models import write_checkpoint
from srs.models.starts import MeanStart, RidgeStart
from srs.training import processes
from srs.training.train import Adversary, Training, _Run, evaluate, train
from study.common.engine import Machine
from study.common.layout import Layout
from study.common.runs import Run
from study.training import training_jobs

MDEQ = "mdeq-tiny", {"dropout": 0.1}
# 20 steps in shares of 6 images, two copies each; both phases, Jacobian regularization and dropout at work
CONFIG = dict(processes=2, sigma=0.25, epochs=4, batch_size=12, unrolled_steps=7, unrolled_layers=3, jacobian_frequency=0.5)
CONFIG |= dict(evaluate_every=2, consistency=dict(weight=2.0))


def _train(data, checkpoint):
    return train(*MDEQ, data, DataConfig(crop_padding=1), Training(**CONFIG), checkpoint)


_SCRIPT = """
from functools import partial
from torch.distributed.launcher import api
api.LaunchConfig = partial(api.LaunchConfig, start_method="fork")  # of what is imported
from srs.data.datasets import DataConfig, Dataset
from srs.training.train import Training, train
data, config = Dataset.load({data!r}), Training(**{config})
train(*{mdeq}, data, DataConfig(crop_padding=1), config, {checkpoint!r}, checkpoint_seconds=1e-6)
"""


@pytest.fixture(scope="module", autouse=True)
def _quick_processes():
    """The processes of this one are forked from one that has imported what they need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "LaunchConfig", partial(api.LaunchConfig, start_method="forkserver"))
        multiprocessing.get_context("forkserver").set_forkserver_preload(
            ["torch.distributed.elastic.multiprocessing", "srs.training.train"]
        )
        yield


@pytest.fixture(scope="module")
def undisturbed(few_digits, tmp_path_factory):
    return _train(few_digits, tmp_path_factory.mktemp("undisturbed") / "run.pt")


def _workers(parent: int) -> set[int]:
    """The processes that train for ``parent``, forked from it."""
    children = [pid for path in Path(f"/proc/{parent}/task").glob("*/children") for pid in path.read_text().split()]
    return {int(pid) for pid in children if command_of(int(pid)) == command_of(parent)}


def _step(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["step"] if checkpoint.is_file() else 0


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks Linux who is at work")
def test_killed_at_work_it_ends_like_an_undisturbed_run(undisturbed, few_digits, tmp_path):
    """One of its processes is killed, and goes on with the others; then all are, and it goes on when it is asked again."""
    checkpoint = tmp_path / "run.pt"
    few_digits.save(tmp_path / "data.npz")
    script = _SCRIPT.format(data=str(tmp_path / "data.npz"), config=CONFIG, mdeq=MDEQ, checkpoint=str(checkpoint))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)

    def kill(pid: int | None) -> set[int]:
        began = _step(checkpoint)
        wait_until(lambda: _step(checkpoint) >= began + 2)  # of 20
        workers = _workers(process.pid)
        os.kill(pid or max(workers), signal.SIGKILL)
        assert len(workers) == 2 and _step(checkpoint) < 20
        return workers

    first = kill(None)
    second = kill(process.pid)
    process.wait()
    assert not first & second
    wait_until(lambda: not any(map(command_of, second)))  # nobody trains on for one who is gone
    resumed = _train(few_digits, checkpoint)
    for name, result in (("a", undisturbed), ("b", resumed)):
        write_checkpoint({"model": result["model"]}, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert resumed["history"] == undisturbed["history"]


def _base(data):
    """A network that is as it was built, with starts."""
    torch.manual_seed(1)
    model = models.build(MDEQ[0], **data.model_fields(), **MDEQ[1])
    shape = (sum(int(np.prod(shape)) for shape in model.state_shapes),)
    learned = RidgeStart(int(np.prod(model.state_shapes[0])), 4, shape)
    model.starts = torch.nn.ModuleDict({"mean": MeanStart(shape), "learned": learned}).eval()
    return model


def _alone(data, config, rank, folder):
    """One of two processes, without the other."""
    return _Run(_base(data), data, DataConfig(), config, folder / "alone.pt", torch.device("cpu"), rank=rank)


def test_a_step_is_along_the_mean_of_the_shares_gradients(few_digits, tmp_path, monkeypatch):
    schedule = dict(epochs=1, batch_size=60, unrolled_steps=0, optimizer="sgd", learning_rate=0.5, momentum=0.0)
    schedule |= dict(sigma=0.25, jacobian_frequency=0.5, adversary=Adversary(samples=2), start="learned")
    config = Training(**schedule, processes=2)
    together = train(*MDEQ, few_digits, DataConfig(), config, tmp_path / "run.pt", base=_base(few_digits))

    given, drawn = [], []
    monkeypatch.setattr(processes, "of_first", lambda value, device: drawn.append(value) or drawn[0])
    monkeypatch.setattr(processes, "average", lambda tensors: given.append([tensor.clone() for tensor in tensors]))
    for rank in (0, 1):
        run = _alone(few_digits, config, rank, tmp_path)
        before = {name: value.clone() for name, value in run.model.state_dict().items()}
        run._one_step()
    *means, measured = ((one + other) / 2 for one, other in zip(*given))
    learned = [name for name, parameter in run.model.named_parameters() if parameter.grad is not None]
    expected = {name: before[name] - 0.5 * mean for name, mean in zip(learned, means)}
    statistics = [name for name in before if "running" in name]
    expected |= dict(zip(statistics, means[len(learned) :]))
    assert drawn[0] != drawn[1] and len(means) == len(learned) + len(statistics)
    for name, value in expected.items():
        assert torch.allclose(together["model"]["state_dict"][name], value, atol=1e-6), name
        assert not torch.equal(value, before[name]), name
    for name, value in _base(few_digits).starts["learned"].state_dict().items():  # trained while f is unrolled alone
        assert torch.equal(together["starts"]["state_dict"][name], value), name
    found = [together["history"][0][name] for name in ("loss", "accuracy", "residual", "lost")]
    assert found == pytest.approx(measured.tolist(), abs=1e-5)


def test_shares_are_parts_of_the_batch_with_noise_of_their_own(few_digits, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(_Run, "_loss", lambda run, x, labels, epoch: seen.append((x, labels)) or 1 / 0)
    for count, rank in ((1, 0), (2, 0), (2, 1)):
        config = Training(sigma=0.25, epochs=1, batch_size=12, processes=count)
        with pytest.raises(ZeroDivisionError):
            _alone(few_digits, config, rank, tmp_path)._one_step()
    (whole, labels), *shares = seen
    assert torch.equal(labels, torch.cat([share for _, share in shares])) and len(shares[0][0]) == 6
    images = few_digits.train.images(np.random.default_rng([0, 0]).permutation(60)[:12])
    noise = [shares[0][0] - images[:6], shares[1][0] - images[6:]]
    assert torch.equal(shares[0][0], whole[:6])  # the first process draws what a single one does
    assert all(0.2 < part.std() < 0.3 for part in noise) and (noise[0] * noise[1]).mean().abs() < 0.02


def test_two_processes_learn_as_well_as_one(digits, tmp_path):
    found = []
    for count in (1, 2):
        config = Training(sigma=0.1, batch_size=32, optimizer="sgd", learning_rate=0.1, epochs=3, processes=count)
        resnet = "resnet-110", {"depth": 8, "widths": (4, 8, 16)}
        trained = train(*resnet, digits, DataConfig(), config, tmp_path / f"{count}.pt")
        found.append(evaluate(models.restore(trained["model"]), digits.test, config)["validation_accuracy"])
    noise = np.sqrt(2 * found[0] * (1 - found[0]) / len(digits.test))
    assert found[0] > 0.8 and abs(found[1] - found[0]) < 3 * noise, found


def test_the_study_leaves_them_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layout = Layout("p")
    layout.data.mkdir(parents=True)
    layout.dataset("digits").touch()
    runs = {f"in-{count}": Run(model="tiny", sigma=0.5, training={"processes": count}) for count in (1, 2)}
    networks = {"tiny": {"data": "digits", "preset": "mdeq-tiny"}}
    jobs = training_jobs(runs, runs, networks, {}, {"digits": {}}, layout, Machine())
    assert {job[0].out.name: job[0].alone for job in jobs} == {"in-1": False, "in-2": True}


def test_there_are_no_more_processes_than_devices():
    with pytest.raises(ValueError, match="processes = 1000000 is out of range: there are .* devices"):
        processes.launch(1_000_000, torch.device("cuda"), print)


def test_what_a_process_raises_is_told(few_digits, tmp_path, monkeypatch):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    monkeypatch.setattr(processes, "RESTARTS", 0)
    handler, config = signal.getsignal(signal.SIGTERM), Training(sigma=1e38, epochs=1, batch_size=12, processes=2)
    with pytest.raises(ChildFailedError, match="no finite state in the batch of step 0: lower learning_rate"):
        train(*MDEQ, few_digits, DataConfig(), config, tmp_path / "run.pt")
    assert signal.getsignal(signal.SIGTERM) is handler
