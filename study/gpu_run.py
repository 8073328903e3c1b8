"""The prepared run for a GPU: the paper's two networks for CIFAR-10, trained, and what their certificates cost (docs/gpu.md).

    python -m study.gpu_run TRAIN.npz TEST.npz [--into FOLDER] [--minutes M] ...

Stops after M minutes, wherever it is; the same command goes on there. In the end, and as far as it has come, it prints seconds
an image beside the paper's, and writes them to FOLDER/table.md. It needs what the library needs, and no more.

A data file is an .npz: ``labels`` (n,), ``classes``, and either ``images`` (n, 32, 32, 3) uint8 or all picture files' bytes end
to end, ``jpeg``, cut at ``offsets`` (n + 1,).
"""

import argparse
import json
import os
import signal
import sys
import time
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from zipfile import BadZipFile

import numpy as np
import yaml
from pydantic import ValidationError
from torch import nn

from srs import models
from srs.certificates.certify import Certificate, CertifySettings, noisy_copies, serialized_certificate, standard_certificate
from srs.common import machine
from srs.common.resume import sha256
from srs.common.settings import faults
from srs.data import pictures
from srs.data.datasets import DataConfig, Dataset, Images, Part, evenly_spaced
from srs.models import starts
from srs.starts import StartSettings, fit_starts
from srs.training.train import Training, train
from srs.votes.samplers import Sampler
from study.votes.plan import REFERENCE, Spelled, Voting
from study.votes.rows import sampler_of

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = {"small": "table2", "large": "table1"}  # of the profile `paper`, and where the paper's seconds are
ROWS = ("MDEQ-30A", "MDEQ-30A stopped", "SRS-MDEQ-1A", "SRS-MDEQ-3A", "AS-MDEQ-1N")
SIGMA, SIDE = 0.5, 32
HELD_OUT = 1_000  # training images, the last ones
SCHEDULED = 49_000  # training images of the schedules, which count some things in steps


class TimeIsUp(KeyboardInterrupt):
    """No error of the work that it interrupts."""


@cache
def profile() -> dict:
    return yaml.safe_load((ROOT / "profiles" / "paper.yaml").read_text(encoding="utf-8"))


def read_images(path: Path) -> tuple[Part, list[str]]:
    """The images of a data file and the names of their classes. Raises ValueError for a file that is none."""
    with path.open("rb") as stream, np.load(stream) as file:
        if not {"labels", "classes"} < set(file) or not ({"images"} <= set(file) or {"jpeg", "offsets"} <= set(file)):
            raise ValueError(f"{path} has {', '.join(file)}: expected labels, classes, and images or jpeg and offsets")
        if "images" in file:
            pixels = file["images"].transpose(0, 3, 1, 2)
        else:
            content, cuts = file["jpeg"].tobytes(), file["offsets"].tolist()
            told = f"{path}, image {{}}"
            with pictures.quiet():
                pixels = [
                    pictures.decode(content[first:end], told.format(i), 3, SIDE, SIDE)
                    for i, (first, end) in enumerate(pairwise(cuts))
                ]
        return Part(np.ascontiguousarray(pixels), file["labels"].astype(np.int64), 255), [str(c) for c in file["classes"]]


def read_data(train: Path, test: Path) -> Dataset:
    """Both files as a data set, some training images held out."""
    (known, classes), (new, _) = read_images(train), read_images(test)
    held = min(HELD_OUT, len(known) // 2)
    rows = slice(None, -held), slice(-held, None)
    parts = [Part(known.pixels[some], known.labels[some], known.scale) for some in rows]
    return Dataset("cifar10", classes, *parts, new)


def train_network(name: str, data: Dataset, folder: Path, epochs: int, device: str) -> None:
    """Train a network of the profile for so many epochs, everything in its schedule shortened alike."""
    spec, schedule = profile()["models"][name], profile()["training"][name]
    share = epochs / schedule["epochs"]
    short = {"epochs": epochs, "evaluate_every": epochs, "jacobian_epochs": round(share * schedule["jacobian_epochs"])}
    short["unrolled_steps"] = round(share * schedule["unrolled_steps"] * len(data.train) / SCHEDULED)
    config = Training(**schedule | short, sigma=SIGMA)
    augmentation = DataConfig(**profile()["data"][spec["data"]])
    result = train(spec["preset"], spec["overrides"], data, augmentation, config, folder / "run.pt", device)
    write_json(folder / "training.json", {"seconds": result["seconds"], "history": result["history"]})
    models.write_checkpoint({"model": result["model"]}, folder / "model.pt")


def certify_together(
    model: nn.Module, images: Images, indices: np.ndarray, sampler: Sampler, reference: Sampler, config: CertifySettings
) -> list[Certificate]:
    """:func:`srs.certify` of several images whose copies share batches."""
    copies = [noisy_copies(model, images.images(np.array([i]))[0], int(i), config) for i in indices]
    cast = sampler.sample_many(model, copies, [config.draws()] * len(copies), config.batch_size)
    if not sampler.audited:
        return [standard_certificate(votes, config, sampler) for votes in cast]
    found = []
    for one, votes in zip(copies, cast):
        again = partial(reference.sample, model, one, batch_size=config.batch_size)
        found.append(serialized_certificate(votes, again, config, one.index, sampler.warm_draws, reference)[0])
    return found


def cast_by(row: str) -> Sampler:
    """What casts a row's votes."""
    return sampler_of(row, Spelled(samplers=profile()["samplers"]).samplers, Voting.model_fields["chains"].default)


def time_row(model: nn.Module, images: Images, indices: np.ndarray, row: str, config: CertifySettings) -> dict:
    """What certificates of a row cost, in seconds: of each image ``alone``, and a share of that of all ``together``; noise and
    audit included, once the device has warmed up."""
    sampler, reference = cast_by(row), cast_by(REFERENCE)

    def timed(some: np.ndarray, config: CertifySettings = config) -> tuple[float, list[Certificate]]:
        began = time.perf_counter()
        found = certify_together(model, images, some, sampler, reference, config)
        return (time.perf_counter() - began) / len(some), found

    few = config.model_copy(update={"n": min(config.n, 400)})
    timed(indices, few)
    together, found = timed(indices)
    timed(indices[:1], few)
    return {
        "together": together,
        "alone": [timed(indices[i : i + 1])[0] for i in range(len(indices))],
        "evaluations": [one.evaluations for one in found],
        "radii": [one.radius for one in found],
        "right": [one.prediction == label for one, label in zip(found, images.labels[indices].tolist())],
        "hardware": machine.describe(next(model.parameters()).device),
    }


def go_on(given: argparse.Namespace) -> None:
    """Do what is left, a piece after the other; each is a file."""
    device, decoded = machine.prepare_device(), given.into / "data.npz"
    if not decoded.is_file():
        read_data(given.train, given.test).save(partial_file := given.into / "partial.npz")
        os.replace(partial_file, decoded)
    data = Dataset.load(decoded)
    config, indices = settings_of(given), evenly_spaced(len(data.test), given.images)
    for name in NETWORKS:
        folder = given.into / name
        folder.mkdir(exist_ok=True)
        network, fitted = folder / "model.pt", folder / "starts.pt"
        if not network.is_file():
            train_network(name, data, folder, given.epochs, device)
        if not fitted.is_file():
            found = fit_starts(models.load(network, device), data.train, SIGMA, StartSettings(points=given.points))
            models.write_checkpoint(starts.state(found), fitted)
        model = models.load(network, device, fitted)
        for row in ROWS:
            if not (folder / f"{row}.json").is_file():
                write_json(folder / f"{row}.json", time_row(model, data.test, indices, row, config))


def table(into: Path) -> str:
    """What is known, as Markdown."""
    published = yaml.safe_load((ROOT / "data" / "published.yaml").read_text(encoding="utf-8"))
    head = ["network", "row", "images", "right", "median radius", "evaluations of f", "seconds alone", "seconds together"]
    lines, hardware = [[*head, "the paper's, one A100"], ["---"] * (len(head) + 1)], set()
    for name, source in NETWORKS.items():
        for row in ROWS:
            if not (path := into / name / f"{row}.json").is_file():
                continue
            found = json.loads(path.read_text(encoding="utf-8"))
            count, theirs = len(found["alone"]), published[source].get(row, {}).get("seconds")
            hardware.add("{hardware}, Python {python}, torch {torch}".format(**found["hardware"]))
            numbers = [count, sum(found["right"]), f"{median(found['radii']):.3f}", f"{np.mean(found['evaluations']):,.0f}"]
            seconds = [f"{median(found['alone']):.2f}", f"{found['together']:.2f}", theirs or "not known"]
            lines.append([name.upper(), row, *numbers, *seconds])
    return "\n".join([*(f"| {' | '.join(map(str, line))} |" for line in lines), "", *sorted(hardware)])


def write_json(path: Path, content: object) -> None:
    """The whole file, or none."""
    partial_file = path.with_name(f"{path.name}.partial")
    partial_file.write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial_file, path)


def require_possible(given: argparse.Namespace) -> None:
    """Raises ValueError that names an option out of range, before anything is written."""
    for name, least in (("epochs", 1), ("points", 2), ("images", 1), ("n", 1), ("batch_size", 1)):
        if (value := getattr(given, name)) < least:
            raise ValueError(f"--{name.replace('_', '-')} {value} is out of range: {least} or more")
    if not 0 < given.minutes < 1e6:
        raise ValueError(f"--minutes {given.minutes:g} is out of range: more than 0, less than 1e6")
    settings_of(given)
    require_labels(given.train)
    if given.images > (count := require_labels(given.test)):
        raise ValueError(f"--images {given.images} is out of range: {given.test} has {count}")


def require_labels(path: Path) -> int:
    """How many labels a data file has. Raises ValueError for a file that is none, and OSError."""
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            return len(file["labels"])
    except (ValueError, TypeError, KeyError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} is no .npz with labels, classes, and images or jpeg and offsets: {error}") from None


def settings_of(given: argparse.Namespace) -> CertifySettings:
    """How images are certified. Raises ValueError that names what cannot be."""
    try:
        return CertifySettings(sigma=SIGMA, n0=min(100, given.n), n=given.n, batch_size=given.batch_size)
    except ValidationError as error:
        raise ValueError("; ".join(f"--{fault}" for fault in faults(error, "n")).replace("batch_size", "batch-size")) from None


def require_same(given: argparse.Namespace) -> None:
    """Raises ValueError where the folder was begun with other settings or data."""
    settings = {name: getattr(given, name) for name in ("epochs", "points", "images", "n", "batch_size")}
    settings |= {name: sha256(getattr(given, name)) for name in ("train", "test")}
    path = given.into / "settings.json"
    if not path.is_file():
        given.into.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    elif (known := json.loads(path.read_text(encoding="utf-8"))) != settings:
        differing = [f"{name} = {settings[name]!r}, not {known[name]!r}" for name in known if settings[name] != known[name]]
        raise ValueError(f"{given.into} was begun with other settings ({'; '.join(differing)}): name another folder")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m study.gpu_run", description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path, metavar="TRAIN.npz", help="training images")
    parser.add_argument("test", type=Path, metavar="TEST.npz", help="test images, of which evenly spaced ones are certified")
    parser.add_argument("--into", type=Path, default=Path("runs/gpu"), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which it stops (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="of each training (default: %(default)s)")
    parser.add_argument("--points", type=int, default=8_000, help="that starts are fitted to (default: %(default)s)")
    parser.add_argument("--images", type=int, default=5, help="that are certified (default: %(default)s)")
    parser.add_argument("--n", type=int, default=10_000, help="counted draws of each (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=4_000, help="most rows at once (default: %(default)s)")
    given = parser.parse_args(arguments)

    def stop(*_) -> None:
        raise TimeIsUp

    before, left = signal.signal(signal.SIGALRM, stop), ""
    try:
        require_possible(given)
        require_same(given)
        signal.setitimer(signal.ITIMER_REAL, 60 * given.minutes)
        go_on(given)
    except TimeIsUp:
        left = f"Not done after {given.minutes:g} minutes: run the same command again."
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    known = table(given.into)
    (given.into / "table.md").write_text(f"{known}\n", encoding="utf-8")
    print(known)
    if left:
        sys.exit(left)


if __name__ == "__main__":
    main()
