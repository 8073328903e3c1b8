"""What tests share: a DEQ with known answers, data, and one small trained MDEQ."""

import copy
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: all processes of a test compute alike
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what tests say of the processor is of it
os.environ.pop("DASK_SCHEDULER_ADDRESS", None)  # a user's cluster does not know the tests' tasks

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings

from srs import models
from srs.data.datasets import DataConfig, Dataset, Part, prepare
from srs.models.starts import MeanStart, RidgeStart
from srs.training.train import Training, train
from study.known_answers import LinearDEQ

TINY = Path(__file__).with_name("tiny.pt")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes `-n auto` means: one more than there are cores, for a quarter of the time a test waits for others."""
    return min(4, (os.cpu_count() or 1) + 1)


@pytest.fixture
def linear_deq():
    return LinearDEQ().eval()


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return prepare(DataConfig())


@pytest.fixture(scope="session")
def few_digits(digits) -> Dataset:
    return few(digits)


def few(digits: Dataset) -> Dataset:
    """A data set small enough to train on in seconds."""

    def part(source: Part, count: int) -> Part:
        return Part(source.pixels[:count], source.labels[:count], source.scale)

    return Dataset("digits", digits.classes, part(digits.train, 60), part(digits.validation, 20), part(digits.test, 20))


@pytest.fixture(scope="session")
def trained_state() -> dict:
    """A tiny MDEQ, briefly trained (:func:`train_tiny`): its logits are far apart and its solver converges. It is kept in
    tests/tiny.pt, so that what rests on it is the same on every machine; `python tests/conftest.py` makes it anew."""
    return torch.load(TINY, weights_only=True)["model"]


@pytest.fixture(scope="session")
def trained(trained_state):
    return models.restore(trained_state).eval().fold()


@pytest.fixture(scope="session")
def started(trained, digits):
    """The trained model with starts that fit nothing: what they cost is what counts here."""
    torch.manual_seed(0)  # this is made before a test is seeded
    model = copy.deepcopy(trained)
    injection = model.inject(digits.test.images(np.arange(1)))
    shape = model.initial_state(injection).shape[1:]
    learned = RidgeStart(injection[0].numel(), 4, shape)
    model.starts = torch.nn.ModuleDict({"mean": MeanStart(shape), "learned": learned}).eval()
    return model


@pytest.fixture(scope="session")
def quick_workers():
    """Dask's local workers are forked from a process that has imported what takes seconds."""
    import dask
    from distributed.utils import get_mp_context

    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context().set_forkserver_preload(["torch", "distributed", "pydantic", "tqdm"])
        yield


def wait_until(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def command_of(pid: int) -> bytes:
    """The command line of a process; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def kill_when(condition, command: list[str], **given) -> None:
    """Run ``command`` and kill it with SIGKILL once ``condition`` holds."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **given)
    wait_until(lambda: condition() or process.poll() is not None)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _disk(monkeypatch):
    """No test waits for the disk: processes are killed here, never the machine."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


settings.register_profile("ci", max_examples=80, derandomize=True, deadline=None)
settings.register_profile("long", max_examples=10_000, deadline=None)
settings.register_profile("mutants", max_examples=25, derandomize=True, deadline=None, phases=[Phase.generate])
settings.load_profile(os.getenv("HYPOTHESIS_PROFILE", "ci"))


def train_tiny(checkpoint: Path) -> dict:
    """Both phases, unrolled and implicit."""
    schedule = Training(sigma=0.25, epochs=6, unrolled_steps=48, evaluate_every=6, learning_rate=0.01)
    return train("mdeq-tiny", {}, prepare(DataConfig()), DataConfig(crop_padding=1), schedule, checkpoint)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        made = train_tiny(Path(folder) / "run.pt")
    assert made["history"][-1]["validation_accuracy"] > 0.4
    models.write_checkpoint({"model": made["model"]}, TINY)
