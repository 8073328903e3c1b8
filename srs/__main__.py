"""Certify pictures from the command line, as ``srs`` or ``python -m srs``.

    srs certify PICTURE [PICTURE ...] [--model NAME] [--radius R] [--n N] [--alpha ALPHA] [--seed SEED]
    srs certify PICTURE --figure OUT.png ...
    srs certify PICTURE | FOLDER [...] --out ROWS.csv [--format csv|cohen] ...

Prints the class of the smoothed classifier, its votes, the certified radius, what that promises, and what it cost; or writes a
row for each picture, also of whole folders, and prints a summary. With --out a run that was killed goes on where it was.
"""

import argparse
import importlib.util
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from tqdm import tqdm

from srs import checkpoints
from srs.certificates import bounds
from srs.certificates.at_radius import RadiusCertificate, certify_at
from srs.certificates.certify import (
    ABSTAIN,
    Certificate,
    CertifySettings,
    at_image,
    noisy_copies,
    selected_class,
    standard_certificate,
)
from srs.checkpoints import DEFAULT
from srs.common import machine
from srs.common.settings import faults
from srs.data import pictures
from srs.many import Format, certify_many, require_place
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import UNDECIDED, Votes, batches

_COPIES = 4  # noisy copies in the figure


@dataclass(frozen=True)
class Answer:
    """What is found about one picture: ``copies`` of it as the model sees it, the class ``named`` by the n0 selection draws, or
    at one radius the one that most votes are for, and a ``tally`` of the votes that were counted."""

    card: checkpoints.Card
    copies: NoisyCopies
    found: Certificate | RadiusCertificate
    named: str
    tally: dict[str, int]

    @property
    def headline(self) -> str:
        """The answer in a line: the class and the radius, rounded down, or that it abstains."""
        if self.found.prediction == ABSTAIN:
            return "abstains"
        return (
            f"{self.named}, certified within {self._radius}" if float(self._radius) else f"{self.named}, at the picture alone"
        )

    @property
    def promise(self) -> str:
        """What is certified, in a sentence, with its probability."""
        found, size = self.found, self.card.image_size
        likely = f"With probability at least 1 - {found.alpha} over the noise"  # 1 - alpha in digits may round up
        if found.prediction != ABSTAIN:
            reach = f" and for every such image closer to it than {self._radius} (l2, pixels in [0, 1])"
            return (
                f"{likely}, the smoothed classifier answers {self.named!r} for the picture's central square at {size}x{size} "
                f"pixels{reach if float(self._radius) else ''}. Whether that answer is right is another question."
            )
        if isinstance(found, Certificate):
            return "Nothing is promised: the votes do not show that one class stays the most probable one."
        if found.outcome == "refuted":
            return f"Nothing is promised within {found.r}. {likely}, no class has enough of the noisy copies for that."
        return f"Nothing is promised within {found.r}: {found.n:,} votes cannot show it any more."

    @property
    def _radius(self) -> str:
        return bounds.shown(self.found.radius) if isinstance(self.found, Certificate) else str(self.found.r)

    def __str__(self) -> str:
        counted = ", ".join(f"{name} {count:,}" for name, count in self.tally.items() if count)
        votes = f"{sum(self.tally.values()):,} votes: {counted}"
        if isinstance(self.found, Certificate):
            votes += f"; {self.found.n0:,} before them named {self.named!r}"
        return "\n".join([self.headline, votes, self.promise, f"{self.found.evaluations:,} evaluations of f"])


def ask(model: nn.Module, image: Tensor, radius: float | None = None, **settings) -> Answer:
    """Certify ``image`` (C, H, W) with a shipped model, votes behind a progress bar; at one ``radius`` alone, if given.

    ``settings`` are fields of :class:`srs.certificates.certify.CertifySettings`; raises as :func:`srs.certify` does, and
    ValueError for ``selection`` "clean": an answer tells what n0 votes named.
    """
    card: checkpoints.Card = model.card
    config = CertifySettings(sigma=card.sigma, **settings)
    if config.selection != "votes":
        raise ValueError(f"selection = {config.selection!r}: an answer names the class by n0 votes, selection = 'votes'")
    copies = noisy_copies(model, image, 0, config)
    classes = [*card.classes, "no class"]  # ABSTAIN is -1
    if radius is not None:
        (found,) = certify_at(model, [image], radius, sigma=card.sigma, sampler=card.sampler, progress=True, **settings)
        named = classes[found.top]
        return Answer(card, copies, found, named, {named: found.n_a, "anything else": found.drawn - found.n_a})
    votes = Votes.blank(config.n0 + config.n)
    with tqdm(total=len(votes.classes), desc="votes", unit="vote") as bar:
        for draws in batches(config.draws(), config.batch_size):
            votes.put(draws, card.sampler.sample(model, copies, draws, config.batch_size))
            bar.update(len(draws))
    named, counted = classes[selected_class(votes.classes[: config.n0])], votes.classes[config.n0 :]
    tally = {card.classes[i]: int((counted == i).sum()) for i in range(len(card.classes))}
    tally = dict(sorted(tally.items(), key=lambda entry: -entry[1])) | {"undecided": int((counted == UNDECIDED).sum())}
    return Answer(card, copies, at_image(standard_certificate(votes, config), copies), named, tally)


def read_picture(path: Path, card: checkpoints.Card) -> Tensor:
    """The central square of a picture at the model's size, as :func:`srs.data.pictures.decode` has it: (C, H, W) in [0, 1].

    Raises ValueError that names the file for what cannot be read, and for pixels of more than 8 bits a channel.
    """
    told = f"PICTURE = {str(path)!r}"
    size = card.image_size
    with pictures.quiet():
        pixels = pictures.decode(pictures.content(path, told), told, card.channels, size, size)
    return torch.from_numpy(pixels).float() / 255


def draw(answer: Answer, path: Path) -> None:
    """Write a figure: the picture as the model sees it, noisy copies (clipped to be shown), and the votes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.3])
    noisy = [answer.copies.image[None], answer.copies(np.arange(_COPIES))]
    for number, (panel, pixels) in enumerate(zip(above.subplots(1, 1 + _COPIES), torch.cat(noisy).cpu())):
        panel.imshow(pixels.clamp(0, 1).permute(1, 2, 0).squeeze().numpy(), cmap="gray", vmin=0, vmax=1)
        panel.set_title("picture" if not number else f"noisy copy {number}", fontsize=9)
        panel.set_axis_off()
    axes = below.subplots()
    colors = ["C0" if name == answer.named else "0.7" for name in answer.tally]
    bars = axes.barh(list(answer.tally), list(answer.tally.values()), color=colors)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("votes")
    axes.margins(x=0.1)
    axes.grid(axis="x", color="0.8")
    axes.set_axisbelow(True)
    below.suptitle(answer.headline, fontsize=11)
    figure.savefig(path, dpi=150, bbox_inches="tight")


class _Pictures:
    """Picture files as images with labels: the class that a picture's folder is named after, None where it is none."""

    def __init__(self, paths: list[Path], card: checkpoints.Card):
        self.paths, self.card = paths, card

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int | None]:
        path, classes = self.paths[i], self.card.classes
        name = path.absolute().parent.name
        return read_picture(path, self.card), classes.index(name) if name in classes else None


def find_pictures(given: list[Path]) -> list[Path]:
    """The files of ``given``, and for a folder all pictures below it, by their suffixes, sorted.

    Raises ValueError for what is not there, and for a folder without pictures.
    """
    found, suffixes = [], pictures.suffixes()
    for path in given:
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
        if not files:
            raise ValueError(f"PICTURE = {str(path)!r} is a folder without pictures")
        found += files
    _require_files(found)
    return found


def answer_each(given: argparse.Namespace) -> None:
    """Print what is found about each picture, one after the other; draw it, where that is asked."""
    began = time.perf_counter()
    for path in given.pictures:
        if path.is_dir():
            raise ValueError(f"PICTURE = {str(path)!r}: Is a directory: name a file for the rows of its pictures, --out")
    _require_files(given.pictures)
    if given.format is not None:
        raise ValueError(f"--format = {given.format!r} is for the rows of --out: name a file for them")
    if given.figure is not None:
        _require_figure(given.figure, given.pictures)
    device = machine.prepare_device()
    images = [read_picture(path, checkpoints.read_card(given.model)).to(device) for path in given.pictures]
    model = checkpoints.load(given.model, device)
    for path, image in zip(given.pictures, images):
        if len(images) > 1:
            print(path)
        answer = ask(model, image, given.radius, n=given.n, alpha=given.alpha, seed=given.seed)
        print(f"{answer}\n{time.perf_counter() - began:.0f} seconds on {machine.describe(device)['hardware']}")
        began = time.perf_counter()
        if given.figure is not None:
            draw(answer, given.figure)


def write_rows(given: argparse.Namespace) -> None:
    """Write a row for each picture, print a summary."""
    began = time.perf_counter()
    if given.figure is not None:
        raise ValueError(f"--figure = {str(given.figure)!r} is for one picture, without --out")
    require_place(given.out, "--out")
    card = checkpoints.read_card(given.model)
    paths = find_pictures(given.pictures)
    if given.out.resolve() in {path.resolve() for path in paths}:
        raise ValueError(f"--out = {str(given.out)!r} is one of the pictures: name another file")
    device = machine.prepare_device()
    found = certify_many(
        checkpoints.load(given.model, device),
        _Pictures(paths, card),
        sigma=card.sigma,
        sampler=card.sampler,
        r=given.radius,
        out=given.out,
        format=given.format or "csv",
        classes=card.classes,
        names=list(map(str, paths)),
        **{"n": given.n, "alpha": given.alpha, "seed": given.seed},
    )
    print(f"{found}\n{time.perf_counter() - began:.0f} seconds on {machine.describe(device)['hardware']}; rows: {given.out}")


def _require_files(paths: list[Path]) -> None:
    """Raises ValueError for a picture that is not there, before any work is spent."""
    for path in paths:
        if not path.exists():
            raise ValueError(f"PICTURE = {str(path)!r}: No such file or directory")


def _require_figure(figure: Path, given: list[Path]) -> None:
    """Raises ValueError where no figure can be drawn, before any work is spent."""
    told = f"--figure = {str(figure)!r}"
    if len(given) > 1:
        raise ValueError(f"{told} is for one picture: {len(given)} were given")
    if figure.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"{told} must end in .png, .pdf or .svg")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(f"{told} needs matplotlib, which is not installed: pip install matplotlib")
    require_place(figure, "--figure")
    if figure.resolve() == given[0].resolve():
        raise ValueError(f"{told} is the picture itself: name another file")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="srs", description="Randomized smoothing for deep equilibrium models.")
    certify = parser.add_subparsers(dest="command", required=True).add_parser("certify", help="certify pictures")
    certify.add_argument(
        "pictures",
        type=Path,
        nargs="+",
        metavar="PICTURE",
        help="an image file, whose central square counts, on white where it is transparent; with --out also a folder of such",
    )
    certify.add_argument("--model", default=DEFAULT, help="the name of a shipped model (default: %(default)s)")
    certify.add_argument("--radius", type=float, help="ask for this l2 radius alone: takes fewer votes")
    certify.add_argument("--n", type=int, default=10_000, help="most votes that are counted (default: %(default)s)")
    certify.add_argument("--alpha", type=float, default=0.001, help="probability of a false promise (default: %(default)s)")
    certify.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    certify.add_argument("--figure", type=Path, metavar="OUT.png", help="draw picture, noisy copies and votes")
    certify.add_argument("--out", type=Path, metavar="ROWS.csv", help="write a row for each picture; resumed after a kill")
    certify.add_argument("--format", choices=get_args(Format), help="of the rows: csv, or Cohen et al.'s (default: csv)")
    given = parser.parse_args(arguments)
    try:
        answer_each(given) if given.out is None else write_rows(given)
    except ValidationError as error:
        sys.exit("; ".join(f"--{fault}" for fault in faults(error, whole="n")))
    except (OSError, ValueError) as error:
        argument, sign, rest = str(error).partition(" = ")  # as Python calls it
        option = {"r": "radius"}.get(argument, argument)
        sys.exit(f"--{option}{sign}{rest}" if hasattr(given, option) else str(error))


if __name__ == "__main__":
    main()
