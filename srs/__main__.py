"""Certify a picture from the command line.

    python -m srs certify PICTURE [--model NAME] [--radius R] [--n N] [--alpha ALPHA] [--figure OUT.png]

Prints the class of the smoothed classifier, its votes, the certified radius, what that promises, and what it cost.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from pydantic import ValidationError
from torch import Tensor, nn
from tqdm import tqdm

from srs import bounds, checkpoints, figures, machine
from srs.certification import ABSTAIN, Certificate, Certification, noisy_copies, standard_certificate
from srs.data import frame
from srs.noise import NoisyCopies
from srs.sections import faults
from srs.sequential import Settlement, certify_at
from srs.votes import UNDECIDED, Votes, batches

DEFAULT = "mdeq-small-cifar10-0.50"
_COPIES = 4  # noisy copies in the figure


@dataclass(frozen=True)
class Answer:
    """What is found about one picture: ``copies`` of it as the model sees it, a ``tally`` of votes."""

    card: checkpoints.Card
    copies: NoisyCopies
    found: Certificate | Settlement
    tally: dict[str, int]

    @property
    def radius(self) -> float:
        return self.found.radius if isinstance(self.found, Certificate) else self.found.r

    @property
    def headline(self) -> str:
        if self.found.prediction == ABSTAIN:
            return "abstains"
        return f"{self.card.classes[self.found.prediction]}, certified within {bounds.shown(self.radius)}"

    @property
    def promise(self) -> str:
        found, size = self.found, self.card.image_size
        if found.prediction == ABSTAIN:
            asked = "" if isinstance(found, Certificate) else f" within {found.r:g} ({found.outcome})"
            return f"Nothing is promised: the votes do not show that one class stays the most probable one{asked}."
        return (
            f"With probability at least {1 - found.alpha:g} over the noise, the smoothed classifier answers "
            f"{self.card.classes[found.prediction]!r} for every picture closer than {bounds.shown(self.radius)} (l2, "
            f"{size}x{size} pixels in [0, 1]) to this one. Whether that answer is right is another question."
        )

    def __str__(self) -> str:
        votes = ", ".join(f"{name} {count:,}" for name, count in self.tally.items() if count)
        counted = f"{sum(self.tally.values()):,} votes: {votes}"
        return "\n".join([self.headline, counted, self.promise, f"{self.found.evaluations:,} evaluations of f"])


def ask(model: nn.Module, image: Tensor, radius: float | None = None, **settings) -> Answer:
    """Certify ``image`` (C, H, W) with a shipped model, votes behind a progress bar; at one ``radius`` alone, if given.

    ``settings`` are fields of :class:`srs.certification.Certification`; raises as :func:`srs.certify` does.
    """
    card: checkpoints.Card = model.card
    config = Certification(sigma=card.sigma, **settings)
    copies = noisy_copies(model, image, 0, config)
    if radius is not None:
        (found,) = certify_at(model, [image], radius, sigma=card.sigma, sampler=card.sampler, progress=True, **settings)
        return Answer(card, copies, found, {"for the class": found.n_a, "against it": found.drawn - found.n_a})
    votes = Votes.blank(config.n0 + config.n)
    with tqdm(total=len(votes.classes), desc="votes", unit="vote") as bar:
        for draws in batches(config.draws(), config.batch_size):
            votes.put(draws, card.sampler.sample(model, copies, draws, config.batch_size))
            bar.update(len(draws))
    counts = np.bincount(votes.classes[votes.classes != UNDECIDED], minlength=len(card.classes))
    tally = {card.classes[i]: int(counts[i]) for i in np.argsort(-counts, kind="stable")}
    return Answer(card, copies, standard_certificate(votes, config), tally)


def read_picture(path: Path, card: checkpoints.Card) -> Tensor:
    """The central square of a picture at the model's size: (C, H, W) in [0, 1].

    Raises ValueError for what is no picture, FileNotFoundError where there is nothing.
    """
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGB" if card.channels == 3 else "L")
    except FileNotFoundError:
        raise FileNotFoundError(f"PICTURE = {str(path)!r}: no such file") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: PIL's for a broken PNG
        raise ValueError(f"PICTURE = {str(path)!r} is not an image that can be read: {error}") from error
    return torch.from_numpy(frame(picture, card.image_size, card.image_size)).float() / 255


def draw(answer: Answer) -> Figure:
    """The picture as the model sees it, noisy copies, and the votes."""
    figures.set_style()
    figure = plt.figure(figsize=(8, 4.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.3])
    noisy = [answer.copies.image[None], answer.copies(np.arange(_COPIES))]
    for number, (panel, pixels) in enumerate(zip(above.subplots(1, 1 + _COPIES), torch.cat(noisy).cpu())):
        panel.imshow(pixels.clamp(0, 1).permute(1, 2, 0).squeeze().numpy(), cmap="gray", vmin=0, vmax=1)
        panel.set_title("picture" if not number else f"noisy copy {number}", fontsize=9)
        panel.set_axis_off()
    axes = below.subplots()
    bars = axes.barh(list(answer.tally), list(answer.tally.values()), color="0.7")
    bars[0].set_color("C0")
    axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("votes")
    axes.margins(x=0.1)
    axes.grid(False, axis="y")
    below.suptitle(answer.headline, fontsize=11)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m srs", description="Randomized smoothing for deep equilibrium models.")
    certify = parser.add_subparsers(dest="command", required=True).add_parser("certify", help="certify a picture")
    certify.add_argument("picture", type=Path, metavar="PICTURE", help="an image file; its central square is what counts")
    certify.add_argument("--model", default=DEFAULT, help="a folder of checkpoints/ (default: %(default)s)")
    certify.add_argument("--radius", type=float, help="ask for this l2 radius alone: takes fewer draws")
    certify.add_argument("--n", type=int, default=10_000, help="most noisy copies that count (default: %(default)s)")
    certify.add_argument("--alpha", type=float, default=0.001, help="probability of a false promise (default: %(default)s)")
    certify.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    certify.add_argument("--figure", type=Path, metavar="OUT.png", help="draw picture, noisy copies and votes")
    given = parser.parse_args(arguments)
    began = time.perf_counter()
    try:
        if given.figure is not None and given.figure.suffix.lower() not in (".png", ".pdf", ".svg"):
            raise ValueError(f"--figure = {str(given.figure)!r} must end in .png, .pdf or .svg")
        device = machine.prepare_device()
        image = read_picture(given.picture, checkpoints.read_card(given.model)).to(device)
        model = checkpoints.load(given.model, device)
        answer = ask(model, image, given.radius, n=given.n, alpha=given.alpha, seed=given.seed)
        if given.figure is not None:
            draw(answer).savefig(given.figure, dpi=150)
    except ValidationError as error:
        sys.exit("; ".join(f"--{fault}" for fault in faults(error, whole="n")))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"{answer}\n{time.perf_counter() - began:.0f} seconds on {machine.describe(device)['hardware']}")


if __name__ == "__main__":
    main()
