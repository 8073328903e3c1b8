"""Attacks on smoothed classifiers: l2-PGD on the base classifier, and Smooth-PGD (Salman et al. 2019, Section 2.2).

Both are the walk of :mod:`srs.training.pgd`; a DEQ is differentiated implicitly. What an attack has done is judged by PREDICT.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from srs import models
from srs.certificates import bounds
from srs.certificates.certify import ABSTAIN, CertifySettings, require_independent
from srs.common import machine
from srs.common.resume import fingerprint
from srs.common.settings import Section
from srs.data.datasets import Dataset, Images, evenly_spaced
from srs.deq.definition import DEQ, is_deq, require_evaluation_mode
from srs.deq.implicit import differentiable
from srs.deq.solvers import Solver
from srs.training.pgd import Logits, ascend
from srs.votes.noise import FINEST, NoisyCopies, fineness, rounded_noise
from srs.votes.samplers import UNDECIDED, Sampler
from study.common import code, engine
from study.common.engine import Machine, Task
from study.common.layout import Layout
from study.votes.plan import VotePlans

_BLOCK = 8  # images attacked side by side
_ROWS = 800  # of a batch of ascents: no machine's choice, for with it distances move by 1e-5
_LOOK = 25  # draws between two looks at the evidence
CLEAN = "none"  # the attack's name in the records of clean images

# Noise of the attacker, and of those who judge him: seeds from 2^63 on are not certification's, and no image has so large
# a number that it could meet training's held-out noise, which has these seeds too.
_SEEDS, _ASCENT, _JUDGEMENT = 1 << 63, 1 << 62, 1 << 61


class Attack(Section):
    """PGD of ``steps`` steps of l2 length ``step_size`` over ``samples`` noisy copies (0: the clean image, plain PGD).

    ``forward`` and ``backward`` solve for a DEQ's state and its gradient; they mean nothing to other classifiers.
    """

    samples: int = Field(0, ge=0)
    steps: int = Field(20, ge=1)
    step_size: float = Field(0.1, gt=0)
    forward: Solver = Solver(method="anderson", steps=10)
    backward: Solver = Solver(method="broyden", steps=10)


class Robustness(Section):
    """Empirical robustness of certified smoothed classifiers: of ``runs``, which maps each to the row of its main group whose
    certificates stand beside; on ``images`` evenly spaced ones among that group's, at each of ``radii``. PGD on the base
    classifier (``samples`` 0), and Smooth-PGD over so many noisy copies, as ``pgd`` has it. Each attacked image is classified
    by PREDICT with up to ``n`` draws."""

    runs: dict[str, str] = Field(min_length=1)
    images: int = Field(ge=1)
    n: int = Field(ge=20)
    seed: int = Field(0, ge=0, lt=1 << 63)
    radii: list[Annotated[float, Field(ge=0)]]
    samples: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    pgd: Attack = Attack()

    @field_validator("radii")
    def _ascend_to_a_budget(cls, radii: list[float]) -> list[float]:
        if not any(radii):
            raise ValueError("expected a radius above 0 at least: at 0 there is no attack")
        if sorted(set(radii)) != radii:
            raise ValueError(f"{radii} must ascend")
        return radii

    @property
    def attacks(self) -> dict[str, Attack]:
        """The attacks, by name."""
        return {f"Smooth-PGD, m = {m}" if m else "PGD": self.pgd.model_copy(update={"samples": m}) for m in self.samples}


def judgement(config: Robustness, sigma: float, alpha: float) -> CertifySettings:
    """How attacked images are judged. Raises ValidationError where so few draws can name no class."""
    return CertifySettings(sigma=sigma, n0=1, n=config.n - 1, alpha=alpha, seed=config.seed)


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


class Poll:
    """A sequential PREDICT over ``classes`` classes: votes come bit by bit, until one class is shown to be the most probable.

    ``answer`` is that class, None before, and ABSTAIN once it is no more to be expected of ``n`` votes: not even if the leader
    were two standard errors stronger than it has been (stochastic curtailment, Lan et al. 1982). It names another class than
    the smoothed classifier's with probability at most ``alpha``, whenever one looks: of the votes for a wrong class and for
    the most probable one, at most half are expected to go to the wrong, and a test martingale
    (:func:`srs.certificates.bounds.log_evidence`) says so at level alpha / classes. Undecided votes count for the runner-up.
    """

    def __init__(self, n: int, alpha: float, classes: int):
        self.n, self.threshold = n, math.log(classes / alpha)
        self.counts, self.undecided, self.drawn = np.zeros(classes, np.int64), 0, 0
        self.answer: int | None = None

    def add(self, votes: np.ndarray) -> None:
        self.drawn += len(votes)
        self.undecided += int((votes == UNDECIDED).sum())
        self.counts += np.bincount(votes[votes != UNDECIDED], minlength=len(self.counts))
        order = np.argsort(self.counts, kind="stable")
        first, against = int(self.counts[order[-1]]), int(self.counts[order[-2]]) + self.undecided
        left, both = self.n - self.drawn, first + against
        more = math.ceil(left * min(1, (first + math.sqrt(both)) / both))  # two standard errors of a half
        if bounds.log_evidence(first, both, 0.5) >= self.threshold:
            self.answer = int(order[-1])
        elif bounds.log_evidence(first + more, both + left, 0.5) < self.threshold:
            self.answer = ABSTAIN


def attack_jobs(plans: VotePlans, robustness: dict, alpha: float, layout: Layout, settings: Machine) -> dict[str, list[Task]]:
    """For each attacked run its tasks: a block of images each."""
    config, rests_on = Robustness(**robustness), list(code.of_modules("study.robustness", "srs.models.__init__"))
    return {key: _tasks(key, plans, config, alpha, layout, settings, rests_on) for key in config.runs}


def _tasks(key, plans, config: "Robustness", alpha: float, layout: Layout, settings: Machine, rests_on) -> list[Task]:
    plan, data = plans[key], layout.dataset(plans.data(key))
    labels = Dataset.load(data).test.labels
    main = evenly_spaced(len(labels), plan.images)[plan.members(plan.main)]
    chosen = main[evenly_spaced(len(main), config.images)]
    judged = judgement(config, plan.sigma, alpha).model_copy(update={"batch_size": settings.batch_size})
    known = [config.model_dump(exclude={"runs", "images"}), judged.model_dump(exclude={"batch_size"}), repr(plan.reference)]
    tasks = []
    for first in range(0, len(chosen), _BLOCK):
        indices = chosen[first : first + _BLOCK]
        name = f"{key}/{indices[0]:05d}"
        arguments = {"model": layout.model(key), "data": data, "indices": indices, "reference": plan.reference}
        arguments |= {"robustness": config, "judged": judged, "settings": settings}
        origin = fingerprint([layout.model(key), data], [*known, indices.tolist()], rests_on)
        out, record = layout.runs / "attacks" / f"{name}.csv", layout.record("attacks", name)
        tasks.append(Task(out, record, origin, attack_block, arguments, weight=len(indices)))
    return tasks


def attack_block(
    out: Path,
    *,
    model: Path,
    data: Path,
    indices: np.ndarray,
    reference: Sampler,
    robustness: "Robustness",
    judged: CertifySettings,
    settings: Machine,
) -> dict:
    """Attack test images number ``indices``, and write the records as CSV."""
    device = engine.device(settings)
    classifier, images = models.load(model, device), Dataset.load(data).test
    began = time.perf_counter()
    records = attack_images(classifier, images, indices, robustness.attacks, robustness.radii, reference, judged, device)
    pd.DataFrame(records).to_csv(out, index=False)
    return {"seconds": time.perf_counter() - began, "machine": machine.describe(device)}


def attack_images(
    model: nn.Module | DEQ,
    images: Images,
    indices: np.ndarray,
    attacks: dict[str, Attack],
    radii: Iterable[float],
    sampler: Sampler,
    config: CertifySettings,
    device: torch.device | str = "cpu",
) -> list[dict]:
    """Attack ``images[indices]`` at every positive radius, and ask a sequential PREDICT for what smoothed class comes out.

    Records: index, label, attack, radius, distance (l2, in fact moved), prediction (class or ABSTAIN), fooled (another class
    than the label), draws (votes spent). Attack "none" at radius 0 is the clean image; where its prediction is not the label
    there is nothing to attack and no other record. Once an attack has won, it has won at every larger radius with the same
    image, which is not judged again (draws 0).

    ``sampler`` casts the votes, at most n0 + n of them, at ``config``'s sigma and alpha; the attacks differentiate ``model``.
    Both use noise that certification under the same seed never draws, and each its own.

    Raises ValueError for a name, a radius, a sampler or a model that cannot be used.
    """
    budgets = _usable_budgets(model, attacks, radii, sampler)
    attacker = _Attacker(model, sampler, config)
    targets = [_Target(images.images(np.array([i]))[0].to(device), int(i), int(images.labels[i])) for i in indices]
    attacker.judge([(target, target.image, CLEAN, 0.0) for target in targets])
    standing = [t for t in targets if attacker.done[t.index, CLEAN, 0.0]["prediction"] == t.label]
    for name, settings in attacks.items():
        attacker.attack(standing, name, settings, budgets)
    names = [(CLEAN, 0.0), *((name, radius) for name in attacks for radius in budgets)]
    keys = [(int(i), *name) for i in indices for name in names]
    return [attacker.done[key] for key in keys if key in attacker.done]


@dataclass(frozen=True)
class _Target:
    image: Tensor
    index: int
    label: int


class _Attacker:
    """What is common to all images of one :func:`attack_images`."""

    def __init__(self, model, sampler, config: CertifySettings):
        self.model, self.sampler, self.config = model, sampler, config
        self.done: dict[tuple[int, str, float], dict] = {}
        self.classes: int | None = None  # known from the first image

    def attack(self, targets: list[_Target], name: str, settings: Attack, budgets: list[float]) -> None:
        """Attack and judge at every radius, smallest first."""
        attacked = self._moved(targets, settings, budgets)
        for number, radius in enumerate(budgets):
            todo = []
            for target, moved in zip(targets, attacked):
                before = self.done.get((target.index, name, budgets[number - 1])) if number else None
                if before is not None and before["fooled"]:
                    self._enter(before | {"radius": radius, "draws": 0})
                else:
                    todo.append((target, moved[number], name, radius))
            self.judge(todo)

    def judge(self, cases: list[tuple[_Target, Tensor, str, float]]) -> None:
        """:class:`Poll` attacked images side by side; a record each."""
        config = self.config
        n = config.n0 + config.n
        if not cases:
            return
        self.classes = self.classes or self.sampler.clean(self.model, cases[0][1]).classes
        polls = [Poll(n, config.alpha, self.classes) for _ in cases]
        copies = [NoisyCopies(c[1], _JUDGEMENT + c[0].index, config.sigma, _SEEDS + config.seed) for c in cases]
        while open_ones := [i for i, poll in enumerate(polls) if poll.answer is None]:
            draws = [np.arange(polls[i].drawn, min(polls[i].drawn + _LOOK, n)) for i in open_ones]
            cast = self.sampler.sample_many(self.model, [copies[i] for i in open_ones], draws, config.batch_size)
            for i, votes in zip(open_ones, cast):
                polls[i].add(votes.classes)
        for (target, attacked, name, radius), poll in zip(cases, polls):
            self._enter(
                {
                    "index": target.index,
                    "label": target.label,
                    "attack": name,
                    "radius": radius,
                    "distance": float((attacked - target.image).double().norm()),
                    "prediction": poll.answer,
                    "fooled": poll.answer not in (target.label, ABSTAIN),
                    "draws": poll.drawn,
                }
            )

    def _moved(self, targets: list[_Target], settings: Attack, budgets: list[float]) -> list[Tensor]:
        """For each image one attacked image a radius; as many images at once as fill a batch."""
        size = max(1, _ROWS // (len(budgets) * max(1, settings.samples)))
        chunks = [targets[first : first + size] for first in range(0, len(targets), size)]
        return [moved for chunk in chunks for moved in self._moved_together(chunk, settings, budgets)]

    def _moved_together(self, targets: list[_Target], settings: Attack, budgets: list[float]) -> list[Tensor]:
        logits, count = self.model, len(budgets)
        if is_deq(self.model):
            logits = differentiable(self.model, settings.forward, settings.backward)
        x = torch.stack([target.image for target in targets]).repeat_interleave(count, dim=0)
        labels = torch.tensor([target.label for target in targets], device=x.device).repeat_interleave(count)
        noise = self._noise(targets, settings.samples).repeat_interleave(count, dim=0) if settings.samples else None
        moved = attack(logits, x, labels, x.new_tensor(budgets * len(targets)), settings, self.config.sigma, noise)
        points = fineness(self.config.sigma)
        moved = x + ((moved - x) * points).trunc() / points  # which certificates are about, and no farther
        return list(moved.split(count))

    def _noise(self, targets: list[_Target], samples: int) -> Tensor:
        """Standard normal (targets, samples, C, H, W), each image's own."""
        image, draws = targets[0].image, np.arange(samples)
        drawn = [rounded_noise(_SEEDS + self.config.seed, _ASCENT + t.index, draws, image.numel(), 1.0) for t in targets]
        return torch.from_numpy(np.stack(drawn) / FINEST).view(len(targets), samples, *image.shape).to(image)

    def _enter(self, record: dict) -> None:
        self.done[record["index"], record["attack"], record["radius"]] = record


def _usable_budgets(model, attacks: dict[str, Attack], radii: Iterable[float], sampler: Sampler) -> list[float]:
    """The positive radii, ascending; everything else about the arguments is checked too."""
    budgets = sorted({float(radius) for radius in radii})
    if not all(math.isfinite(radius) and radius >= 0 for radius in budgets):
        raise ValueError(f"radii = {budgets} must be finite and not negative")
    if CLEAN in attacks:
        raise ValueError(f"attacks has the name {CLEAN!r}, which is kept for clean images: choose another")
    require_independent("PREDICT", sampler)
    require_evaluation_mode(model)
    return [radius for radius in budgets if radius > 0]
