"""Certificates at a radius that is chosen beforehand, with as few draws as they take: "is the class certain within r?"

Cohen's bound wants N fixed in advance. A test martingale (Ville 1939; betting on votes as in Voracek 2024) may be looked at
after every batch: an image is settled as soon as the evidence is enough, and its place in the batch goes to another.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import special
from torch import Tensor, nn
from tqdm import tqdm

from srs.certificates import bounds
from srs.certificates.certify import ABSTAIN, CertifySettings, looked_at, noisy_copies, require_independent, selected_class
from srs.deq.definition import DEQ
from srs.votes.samplers import Sampler, Votes

Outcome = Literal["certified", "refuted", "exhausted"]


@dataclass(frozen=True)
class RadiusCertificate:
    """What is settled about one image at radius ``r``.

    "certified": with probability at least 1 - alpha, the smoothed classifier's class is ``prediction`` at the image and
    everywhere closer than ``r``. "refuted": with probability at least 1 - alpha p_A is too small for that. "exhausted":
    whatever votes are left of n, they cannot certify any more, or no class was named. ``prediction`` is ABSTAIN (-1) unless
    certified.

    ``n_a`` of ``drawn`` counted votes were for ``top``, the class that n0 more had named (ABSTAIN where all of those were
    undecided); ``evaluations`` of f include those of draws that were made beside the last that counted. ``classifier``: what
    was smoothed, in words.
    """

    prediction: int
    top: int
    outcome: Outcome
    r: float
    n_a: int
    drawn: int
    n0: int
    n: int
    alpha: float
    sigma: float
    evaluations: int
    classifier: str = ""


class RadiusTest:
    """The sequential test of p_A > Phi(r / sigma) for one image, vote by vote.

    Certified once a test martingale against "p_A <= Phi(r / sigma)" passes 1 / alpha: by Ville's inequality that happens with
    probability at most alpha where it is true, whenever one looks and however long one waits. Refuted once the same against
    the contrary does, exhausted once no votes that are left could certify: both cost certificates, never truth.
    """

    def __init__(self, r: float, config: CertifySettings):
        self.p_0 = float(special.ndtr(r / config.sigma))
        self.n, self.threshold = config.n, math.log(1 / config.alpha)
        self.n_a, self.drawn = 0, 0
        self.outcome: Outcome | None = None

    def add(self, for_a: np.ndarray) -> None:
        """Enter counted votes, (m,) booleans: was it for the class?

        Looks after every vote, so that nothing depends on how they come; votes after the one that settles do not count.
        """
        for_a = for_a[: self.n - self.drawn]
        if self.outcome is not None or not len(for_a):
            return
        n_a, drawn = self.n_a + np.cumsum(for_a), self.drawn + np.arange(1, len(for_a) + 1)
        against = drawn - n_a
        certified = bounds.log_evidence(n_a, drawn, self.p_0) >= self.threshold
        refuted = bounds.log_evidence(against, drawn, 1 - self.p_0) >= self.threshold
        exhausted = bounds.log_evidence(self.n - against, self.n, self.p_0) < self.threshold  # even with all votes left
        settled = certified | refuted | exhausted
        last = int(settled.argmax()) if settled.any() else len(for_a) - 1
        self.n_a, self.drawn = int(n_a[last]), int(drawn[last])
        if settled[last]:
            self.outcome = "certified" if certified[last] else "refuted" if refuted[last] else "exhausted"


def certify_at(
    model: nn.Module | DEQ | Callable[[Tensor], object],
    images: Sequence[Tensor],
    r: float,
    *,
    sigma: float,
    sampler: Sampler | None = None,
    indices: Sequence[int] | None = None,
    output_key: str | int | None = None,
    progress: bool = False,
    **settings,
) -> list[RadiusCertificate]:
    """For each of ``images`` (C, H, W): is the smoothed classifier's class certain within l2 radius ``r``?

    Images are interleaved in batches of ``batch_size`` copies, so that one that is settled early saves work. ``n`` is the most
    draws that are counted for an image. ``indices`` number the images (0, 1, ... if not given): with ``seed`` they pick the
    noise. ``output_key``: as :func:`srs.certify` has it. Other ``settings`` are the fields of
    :class:`srs.certificates.certify.CertifySettings`.

    Raises as :func:`srs.certify` does, and ValueError for an r that not even unanimous votes could certify, or a serialized
    sampler, whose votes allow no such test.
    """
    config = CertifySettings(sigma=sigma, **settings)
    farthest = bounds.largest_radius_by_evidence(config.n, config.alpha, sigma)
    if isinstance(r, bool) or not isinstance(r, int | float | np.number) or not 0 <= r <= farthest:
        most = f"0 to {bounds.shown(farthest)}" if farthest >= 0 else "nothing"
        raise ValueError(f"r = {r!r} is out of range: n = {config.n} draws can certify {most} in a sequential test")
    sampler, model = looked_at(model, sampler, output_key)
    require_independent("a sequential test", sampler)
    images = _listed("images", images)
    indices = range(len(images)) if indices is None else _listed("indices", indices)
    if len(indices) != len(images):
        raise ValueError(f"indices number {len(indices)} images, but there are {len(images)}")
    copies = [noisy_copies(model, image, index, config) for image, index in zip(images, indices)]
    if len(kinds := {f"{tuple(image.shape)}, {image.dtype}" for image in images}) > 1:
        raise ValueError(f"images are of several kinds, {'; '.join(sorted(kinds))}: they share batches, make them alike")

    def cast(which: list[int], draws: list[np.ndarray]) -> list[Votes]:
        return sampler.sample_many(model, [copies[i] for i in which], draws, config.batch_size)

    return [replace(found, classifier=sampler.described()) for found in decide_at(cast, len(copies), r, config, progress)]


def _listed(name: str, values: object) -> list:
    try:
        return list(values)
    except TypeError:
        raise ValueError(f"{name} = {values!r}: expected a sequence, one entry an image") from None


def decide_at(
    cast: Callable[[list[int], list[np.ndarray]], list[Votes]],
    count: int,
    r: float,
    config: CertifySettings,
    progress: bool = False,
) -> list[RadiusCertificate]:
    """The sequential test at radius ``r`` on each of ``count`` images, interleaved round by round: ``cast(which, draws)`` has
    the votes of images number ``which`` on their ``draws``: n0 of each in its first round, then ``batch_size`` in all."""
    tests = [RadiusTest(r, config) for _ in range(count)]
    tops, evaluations, drawn = [ABSTAIN] * count, [0] * count, [0] * count
    most = config.n0 + config.n
    with tqdm(total=count * most, desc=f"r = {r:g}, at most", unit="vote", disable=not progress) as bar:
        while left := [i for i, test in enumerate(tests) if test.outcome is None]:
            share = max(1, config.batch_size // len(left))
            chosen = left[: config.batch_size]
            until = [min(drawn[i] + share, most) if drawn[i] else config.n0 for i in chosen]
            draws = [np.arange(drawn[i], end) for i, end in zip(chosen, until)]
            for i, end, votes in zip(chosen, until, cast(chosen, draws)):
                evaluations[i] += int(votes.evaluations.sum())
                if drawn[i]:
                    tests[i].add(votes.classes == tops[i])
                else:
                    tops[i] = selected_class(votes.classes)
                    tests[i].outcome = "exhausted" if tops[i] == ABSTAIN else None
                bar.update((end if tests[i].outcome is None else most) - drawn[i])
                drawn[i] = end
    return [_radius_certificate(r, config, *found) for found in zip(tests, tops, evaluations)]


def _radius_certificate(r: float, config: CertifySettings, test: RadiusTest, top: int, evaluations: int) -> RadiusCertificate:
    return RadiusCertificate(
        prediction=top if test.outcome == "certified" else ABSTAIN,
        top=top,
        outcome=test.outcome,
        r=r,
        n_a=test.n_a,
        drawn=test.drawn,
        **config.model_dump(include={"n0", "n", "alpha", "sigma"}),
        evaluations=evaluations,
    )
