"""Attacks on smoothed classifiers: l2-PGD on the base classifier, and Smooth-PGD (Salman et al. 2019, Section 2.2).

Both are the walk of :mod:`srs.ascent`; a DEQ is differentiated implicitly. What an attack has done is judged by PREDICT.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats
from torch import Tensor, nn
from tqdm import tqdm

from srs.ascent import Logits, ascend
from srs.certification import ABSTAIN, Certification
from srs.data import Part
from srs.deq import DEQ, differentiable
from srs.journal import Journal
from srs.noise import NoisyCopies, standard_normal
from srs.solvers import Solver
from srs.votes import UNDECIDED, Sampler

CLEAN = "none"  # the attack's name in the records of clean images

# Noise of the attacker, and of those who judge him: seeds from 2^63 on are not certification's, and no image has so large
# a number that it could meet training's held-out noise, which has these seeds too.
_SEEDS, _ASCENT, _JUDGEMENT = 1 << 63, 1 << 62, 1 << 61


class Attack(BaseModel):
    """PGD of ``steps`` steps of l2 length ``step_size`` over ``samples`` noisy copies (0: the clean image, plain PGD).

    ``forward`` and ``backward`` solve for a DEQ's state and its gradient; they mean nothing to other classifiers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    samples: int = Field(0, ge=0)
    steps: int = Field(20, ge=1)
    step_size: float = Field(0.1, gt=0)
    forward: Solver = Solver(method="anderson", steps=10)
    backward: Solver = Solver(method="broyden", steps=10)


def attack(
    logits: Logits,
    x: Tensor,
    labels: Tensor,
    epsilon: Tensor,
    settings: Attack,
    sigma: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """Attacked images (B, ...): each row of ``x`` moved by at most its ``epsilon`` (B,), away from its label (B,).

    ``noise`` is standard normal, (B, m, ...) or (1, m, ...) for all rows; the copies are x + sigma noise. Rows do not
    depend on one another, provided that ``logits`` treats rows independently.

    Raises ValueError when the number m of copies is not ``settings.samples`` (no noise: 0).
    """
    copies = 0 if noise is None else noise.shape[1]
    if copies != settings.samples:
        raise ValueError(f"noise has {copies} copies an image, and samples = {settings.samples}: they must be equally many")
    scaled = None if noise is None else sigma * noise
    return ascend(logits, x, labels, scaled, epsilon, settings.steps, settings.step_size)


def curtailed_predict(votes: Iterable[np.ndarray], n: int, alpha: float) -> tuple[int, int]:
    """PREDICT from ``n`` votes that come in batches, stopped as soon as no further vote can change the answer.

    Returns (class or ABSTAIN, draws used). The answer is always that of all n votes, as :func:`srs.predict` gives it: the
    exact binomial test of the two classes with most votes, undecided votes counted for the runner-up.

    Raises ValueError when there are not n votes and fewer do not settle it.
    """
    counts, undecided, drawn = np.zeros(2, np.int64), 0, 0
    for batch in votes:
        drawn += len(batch)
        undecided += int((batch == UNDECIDED).sum())
        more = np.bincount(batch[batch != UNDECIDED], minlength=len(counts))
        counts = more + np.pad(counts, (0, len(more) - len(counts)))
        left = n - drawn
        if left < 0:
            break
        order = np.argsort(counts, kind="stable")
        first, against = int(counts[order[-1]]), int(counts[order[-2]]) + undecided
        # the test gains with every vote for the leader and loses with every one against him: two extremes decide
        if _significant(first, against + left, alpha):
            return int(order[-1]), drawn
        if not _significant(first + left, against, alpha):
            return ABSTAIN, drawn
    raise ValueError(f"votes must be n = {n}: got {drawn}")


def attack_images(
    model: nn.Module | DEQ,
    images: Part,
    indices: np.ndarray,
    attacks: dict[str, Attack],
    radii: Iterable[float],
    sampler: Sampler,
    config: Certification,
    journal: Journal,
    device: torch.device | str = "cpu",
) -> list[dict]:
    """Attack ``images[indices]`` at every positive radius, and ask PREDICT for the smoothed class of what comes out.

    Records, one journal line each: index, label, attack, radius, distance (l2, in fact moved), prediction (class or
    ABSTAIN), fooled (another class than the label), draws (votes spent). Attack "none" at radius 0 is the clean image; where
    its prediction is not the label there is nothing to attack and no other record. Records in the journal are not made again.

    ``sampler`` casts the votes, n0 + n of them at ``config``'s sigma and alpha; the attacks differentiate ``model``. Both use
    noise that certification under the same seed never draws, and each its own.

    Raises ValueError for a name, a radius, a sampler or a model that cannot be used.
    """
    budgets = _usable_budgets(model, attacks, radii, sampler)
    records: list[dict] = []
    attacker = _Attacker(model, attacks, budgets, sampler, config, journal)
    for index in tqdm(map(int, indices), total=len(indices), desc="attack", unit="image", mininterval=2):
        image = images.images(np.array([index]))[0].to(device)
        records += attacker.records(image, index, int(images.labels[index]))
    return records


class _Attacker:
    """What is common to all images of one :func:`attack_images`."""

    def __init__(self, model, attacks, budgets: list[float], sampler, config: Certification, journal: Journal):
        self.model, self.attacks, self.budgets = model, attacks, budgets
        self.sampler, self.config, self.journal = sampler, config, journal
        self.done = {(r["index"], r["attack"], r["radius"]): r for r in journal.records}

    def records(self, image: Tensor, index: int, label: int) -> Iterator[dict]:
        """The image's records, clean first; what the journal lacks is made."""
        if (index, CLEAN, 0.0) not in self.done:
            self._judge(image, image, index, label, CLEAN, 0.0)
        clean = self.done[index, CLEAN, 0.0]
        yield clean
        for name in self.attacks if clean["prediction"] == label else ():
            if any((index, name, radius) not in self.done for radius in self.budgets):
                for radius, attacked in zip(self.budgets, self._attack(image, index, label, self.attacks[name])):
                    if (index, name, radius) not in self.done:
                        self._judge(image, attacked, index, label, name, radius)
            yield from (self.done[index, name, radius] for radius in self.budgets)

    def _attack(self, image: Tensor, index: int, label: int, settings: Attack) -> Tensor:
        """One attacked image for each radius: always all of them, so that a resumed run computes the same batch."""
        rows, noise = len(self.budgets), None
        if settings.samples:
            draws = np.arange(settings.samples)
            noise = torch.from_numpy(standard_normal(_SEEDS + self.config.seed, _ASCENT + index, draws, image.numel()))
            noise = noise.view(1, -1, *image.shape).to(image)
        logits = self.model
        if isinstance(self.model, DEQ):
            logits = differentiable(self.model, settings.forward, settings.backward)
        labels = torch.full((rows,), label, device=image.device)
        epsilon = image.new_tensor(self.budgets)
        return attack(logits, image.expand(rows, *image.shape), labels, epsilon, settings, self.config.sigma, noise)

    def _judge(self, image: Tensor, attacked: Tensor, index: int, label: int, name: str, radius: float) -> None:
        config = self.config
        copies = NoisyCopies(attacked, _JUDGEMENT + index, config.sigma, _SEEDS + config.seed)
        n, size = config.n0 + config.n, config.batch_size
        batches = (np.arange(first, min(first + size, n)) for first in range(0, n, size))
        votes = (self.sampler.sample(self.model, copies, batch, size).classes for batch in batches)
        prediction, draws = curtailed_predict(votes, n, config.alpha)
        record = {
            "index": index,
            "label": label,
            "attack": name,
            "radius": radius,
            "distance": float((attacked - image).double().norm()),
            "prediction": prediction,
            "fooled": prediction not in (label, ABSTAIN),
            "draws": draws,
        }
        self.journal.append(record)
        self.done[index, name, radius] = record


def _usable_budgets(model, attacks: dict[str, Attack], radii: Iterable[float], sampler: Sampler) -> list[float]:
    """The positive radii, ascending; everything else about the arguments is checked too."""
    budgets = sorted({float(radius) for radius in radii})
    if not all(math.isfinite(radius) and radius >= 0 for radius in budgets):
        raise ValueError(f"radii = {budgets} must be finite and not negative")
    if CLEAN in attacks:
        raise ValueError(f"attacks has the name {CLEAN!r}, which is kept for clean images: choose another")
    if not sampler.independent:
        raise ValueError(f"PREDICT has no guarantee for dependent votes: sampler kind {sampler.kind!r}; use 'standard'")
    if isinstance(model, nn.Module) and any(part.training for part in model.modules()):
        raise ValueError("the model, or a part of it, is in training mode: call model.eval()")
    return [radius for radius in budgets if radius > 0]


def _significant(first: int, against: int, alpha: float) -> bool:
    """Whether ``first`` votes are more than ``against`` by the exact binomial test at level alpha."""
    return first > against and stats.binomtest(first, first + against, 0.5).pvalue <= alpha
