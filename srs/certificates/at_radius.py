"""Certificates with as few draws as they take: is the class certain within a radius that is chosen beforehand, or how far is it
certain, to some precision?

Cohen's bound wants N fixed in advance. A test martingale (Ville 1939; betting on votes as in Voracek 2024) may be looked at
after every vote: an image is settled as soon as the evidence is enough, and its place in the batch goes to another. Every class
has a martingale and a share of alpha, most of it the one that a few draws name. Theorems 3 and 4 of docs/certificates.md.
"""

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field, model_validator
from scipy import special
from torch import Tensor, nn
from tqdm import tqdm

from srs.certificates import bounds
from srs.certificates.certify import (
    ABSTAIN,
    MOST_DRAWS,
    Certificate,
    CertifySettings,
    Confidence,
    at_image,
    looked_at,
    noisy_copies,
    require_independent,
    selected_class,
)
from srs.deq.definition import DEQ
from srs.votes.noise import NoisyCopies
from srs.votes.samplers import CleanVote, Sampler, Votes

Outcome = Literal["certified", "refuted", "exhausted"]
Cast = Callable[[list[int], list[np.ndarray]], list[Votes]]  # the votes of images number ``which`` on their ``draws``

NAMING_DRAWS = 5  # as a test takes some 70 draws, few: a class that is named wrongly costs it log(81) / KL more, no truth


_OF_AUDITS = Confidence.model_fields.keys() - {"alpha"}


class SequentialSettings(CertifySettings):
    """Settings of a sequential certificate: ``n`` is the most draws that are counted; the class that ``selection`` names, by
    the votes of ``n0`` draws before them or of the clean image, is tested at nine tenths of alpha, all others at the rest."""

    n0: int = Field(NAMING_DRAWS, ge=1, le=MOST_DRAWS)

    @model_validator(mode="after")
    def _nothing_is_audited(self) -> "SequentialSettings":
        if unused := sorted(self.model_fields_set & _OF_AUDITS):
            told = ", ".join(f"{name} = {getattr(self, name)!r}" for name in unused)
            raise ValueError(f"{told}: a sequential certificate has no audit, and takes none of its settings")
        return self

    @model_validator(mode="after")
    def _enough_draws(self) -> "SequentialSettings":
        def certified(n: int) -> bool:
            return bounds.largest_radius_by_evidence(n, self.alpha, self.sigma) >= 0

        if not certified(self.n):
            least = next(n for n in itertools.count(self.n + 1) if certified(n))
            raise ValueError(
                f"n = {self.n} is too small for alpha = {self.alpha}: even unanimous votes would certify nothing in a "
                f"sequential test; n must be at least {least}"
            )
        return self


@dataclass(frozen=True)
class RadiusCertificate:
    """What is settled about one image at radius ``r``.

    "certified": with probability at least 1 - alpha, the smoothed classifier's class is ``prediction`` at the image and
    everywhere closer than ``r``. "refuted": with probability at least 1 - alpha no class has votes enough for that.
    "exhausted": whatever votes are left of n, they cannot certify any more. ``prediction`` is ABSTAIN (-1) unless certified.

    ``n_a`` of ``drawn`` counted votes were for ``top``, the class that had most (ABSTAIN where none had any), tested at
    ``share`` times alpha; ``preferred`` is the class that ``n0`` draws before them named, or the clean image where n0 is 0
    (ABSTAIN where undecided). ``evaluations`` of f include those of all draws that were made, also after the last that counted,
    and of the image itself, which shows how many classes there are. ``classifier``: what was smoothed, in words.
    """

    prediction: int
    top: int
    outcome: Outcome
    r: float
    n_a: int
    drawn: int
    n: int
    alpha: float
    sigma: float
    n0: int
    preferred: int
    share: float
    evaluations: int
    classifier: str = ""


class RadiusTest:
    """The sequential test of "some class has p > Phi(r / sigma)" for one image, vote by vote.

    Certified once the test martingale against "p <= Phi(r / sigma)" of a class passes 1 / (its share of alpha): by Ville's
    inequality that happens with probability at most its share where it is true, whenever one looks and however long one waits.
    Refuted once the same against the contrary passes 1 / alpha for every class, exhausted once no votes that are left could
    certify: both cost certificates, never truth. Nothing is tested before a class is named, by ``clean`` or n0 votes.
    """

    def __init__(self, r: float, config: CertifySettings, clean: CleanVote):
        self.p_0 = min(float(special.ndtr(r / config.sigma)), 1 - 2.0**-53)  # which no MOST_DRAWS votes exceed
        self.n, self.alpha, self.n0 = config.n, config.alpha, config.selecting
        self.counts, self.drawn = np.zeros(clean.classes, np.int64), 0
        self.outcome: Outcome | None = None
        self.ballots = np.empty(0, np.int64)
        if self.n0 == 0:
            self._prefer(clean.vote)

    def _prefer(self, vote: int) -> None:
        """Fix every class's share of alpha, before any vote is counted."""
        self.preferred, self.shares = vote, bounds.shares_of_alpha(len(self.counts), vote)
        self.levels = self.alpha * self.shares
        most = {level: self._least(lambda k: bounds.log_evidence(k, self.n, self.p_0), level) for level in set(self.levels)}
        self.needed = np.array([most[level] for level in self.levels])  # votes of n, without which nothing is certified

    @property
    def least(self) -> int:
        """How many counted votes it takes at least to certify."""
        enough = self._least(lambda k: bounds.log_evidence(k, k, self.p_0), bounds.PREFERRED_SHARE * self.alpha)
        return max(1, min(self.n, enough))

    def _least(self, evidence: Callable[[int], float], level: float) -> int:
        """The least k of 0 ... n with evidence enough, n + 1 where there is none."""
        return bisect_left(range(self.n + 1), math.log(1 / level), key=evidence)

    @property
    def top(self) -> int:
        """The class with most votes, the lowest of a tie; ABSTAIN where there are none."""
        return int(self.counts.argmax()) if self.counts.any() else ABSTAIN

    def add(self, classes: np.ndarray) -> None:
        """Enter votes, (m,) classes, the first n0 of all to name one; what is none of them, UNDECIDED, is for nobody.

        Nothing depends on how they come; votes after the one that settles do not count.
        """
        ballots, counted = np.split(classes, [self.n0 - len(self.ballots)])
        self.ballots = np.concatenate([self.ballots, ballots])
        if len(ballots) and len(self.ballots) == self.n0:
            self._prefer(selected_class(self.ballots))
        self._count(counted)

    def _count(self, classes: np.ndarray) -> None:
        """Looks after every vote."""
        classes = classes[: self.n - self.drawn]
        if self.outcome is not None or not len(classes):
            return
        counts = self.counts + np.cumsum(classes[:, None] == np.arange(len(self.counts)), axis=0)
        drawn = self.drawn + np.arange(1, len(classes) + 1)
        enough = np.log(1 / self.levels[counts.argmax(axis=1)])
        certified = bounds.log_evidence(counts.max(axis=1), drawn, self.p_0) >= enough  # only a majority is evidence
        refuted, exhausted = self._given_up(counts, drawn)
        settled = certified | refuted | exhausted
        last = int(settled.argmax()) if settled.any() else len(classes) - 1
        self.counts, self.drawn = counts[last], int(drawn[last])
        if settled[last]:
            self.outcome = "certified" if certified[last] else "refuted" if refuted[last] else "exhausted"

    def _given_up(self, counts: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where ``counts`` (m, classes) of ``drawn`` (m,) votes refute every class, and where they leave none in reach."""
        against = drawn - counts.max(axis=1)  # the class with most votes has least evidence against it
        refuted = bounds.log_evidence(against, drawn, 1 - self.p_0) >= math.log(1 / self.alpha)
        return refuted, (counts + (self.n - drawn)[:, None] < self.needed).all(axis=1)


class RadiusEstimate(RadiusTest):
    """The confidence sequence of p_A, and with it of the radius, for one image: drawn until twice the votes, at their present
    shares, would add less than ``gain`` to the radius, until the test at radius 0 says that there is none, or to n.

    Looks whenever the votes have grown by a tenth, from as many on as certify at all: at numbers that depend on no vote.
    """

    def __init__(self, gain: float, config: CertifySettings, clean: CleanVote):
        super().__init__(0.0, config, clean)
        self.gain, self.sigma, self.next = gain, config.sigma, self.least

    @property
    def p_a_lower(self) -> float:
        """The lower bound on the probability of the class with most votes, at this moment and all others at once."""
        return self._lower(1)

    def _lower(self, times: int) -> float:
        """The lower bound on p of the class with most votes, if there were ``times`` as many."""
        level = float(self.levels[self.top])
        return bounds.lower_by_evidence(times * int(self.counts.max()), times * self.drawn, level)

    def _count(self, classes: np.ndarray) -> None:
        while self.outcome is None and len(classes):
            now, classes = np.split(classes, [self.next - self.drawn])
            self.counts = self.counts + (now[:, None] == np.arange(len(self.counts))).sum(axis=0)
            self.drawn += len(now)
            if self.drawn == self.next:
                self._look()
                self.next = min(self.n, self.drawn + -(-self.drawn // 10))

    def _look(self) -> None:
        (refuted,), (exhausted,) = self._given_up(self.counts[None], np.array([self.drawn]))
        if refuted or exhausted:
            self.outcome = "refuted" if refuted else "exhausted"
        elif self.counts.any():
            now, then = (self.sigma * float(special.ndtri(self._lower(times))) for times in (1, 2))
            if self.drawn == self.n or then - now < self.gain:
                self.outcome = "certified" if now > 0 else "exhausted"


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

    Images are interleaved in batches of ``batch_size`` copies, so that one that is settled early saves work. ``indices`` number
    the images (0, 1, ... if not given): with ``seed`` they pick the noise. ``output_key``: as :func:`srs.certify` has it. Other
    ``settings`` are the fields of :class:`SequentialSettings`.

    Raises as :func:`srs.certify` does, and ValueError for an r that not even unanimous votes could certify, or a sampler
    whose votes are not drawn independently (serialized, released).
    """
    config = SequentialSettings(sigma=sigma, **settings)
    farthest = bounds.largest_radius_by_evidence(config.n, config.alpha, config.sigma)
    if not _is_number(r) or not 0 <= r <= farthest:
        most = bounds.shown(farthest)
        raise ValueError(f"r = {r!r} is out of range: n = {config.n} draws can certify 0 to {most} in a sequential test")
    sampler, copies, cast, clean = _voting(model, images, sampler, indices, output_key, config)
    found = decide_at(cast, clean, r, config, progress, [one.moved for one in copies])
    return [replace(one, classifier=sampler.described()) for one in found]


def certify_until(
    model: nn.Module | DEQ | Callable[[Tensor], object],
    images: Sequence[Tensor],
    *,
    gain: float,
    sigma: float,
    sampler: Sampler | None = None,
    indices: Sequence[int] | None = None,
    output_key: str | int | None = None,
    progress: bool = False,
    **settings,
) -> list[Certificate]:
    """CERTIFY each of ``images`` (C, H, W) to a precision: draw until twice as many votes, at their present shares, would add
    less than ``gain`` to the l2 radius (its unit), or show that no class has a majority; at most n. Where the radius is no more
    than a few gains, none may be certified.

    The radius holds at one alpha whenever the drawing stops, and so do all smaller ones: a table at seven radii costs one.
    A certificate's ``n`` is the number of draws that were counted. All else is as in :func:`certify_at`; raises as that does at
    r = 0, and ValueError for a gain that is not above 0.
    """
    config = SequentialSettings(sigma=sigma, **settings)
    if not _is_number(gain) or not 0 < gain < math.inf:
        raise ValueError(f"gain = {gain!r} is out of range: expected a number above 0, in the unit of the radius")
    sampler, copies, cast, clean = _voting(model, images, sampler, indices, output_key, config)
    found = decide_until(cast, clean, gain, config, progress)
    return [at_image(replace(one, classifier=sampler.described()), copied) for one, copied in zip(found, copies)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _voting(model, images, sampler, indices, output_key, config) -> tuple[Sampler, list[NoisyCopies], Cast, list[CleanVote]]:
    """What samples, the images' noisy copies, what casts their votes, and their votes without noise. Raises ValueError."""
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

    return sampler, copies, cast, [sampler.clean(model, one.image) for one in copies]


def _listed(name: str, values: object) -> list:
    try:
        return list(values)
    except TypeError:
        raise ValueError(f"{name} = {values!r}: expected a sequence, one entry an image") from None


def decide_at(
    cast: Cast,
    clean: Sequence[CleanVote],
    r: float,
    config: CertifySettings,
    progress: bool = False,
    moved: Sequence[float] | None = None,
) -> list[RadiusCertificate]:
    """The sequential test at radius ``r`` on images with the ``clean`` votes; ``cast``: as :func:`_settle` has it. ``moved``:
    how far each image lies from the point at which its votes are cast, if it does."""
    r = float(r)
    tests = [RadiusTest(r + away, config, one) for one, away in zip(clean, moved or [0.0] * len(clean))]
    found = []
    for test, one, spent in zip(tests, clean, _settle(cast, tests, config, progress)):
        found.append(
            RadiusCertificate(
                prediction=test.top if test.outcome == "certified" else ABSTAIN,
                top=test.top,
                outcome=test.outcome,
                r=r,
                n_a=int(test.counts.max()),
                drawn=test.drawn,
                **config.model_dump(include={"n", "alpha", "sigma"}),
                n0=test.n0,
                preferred=test.preferred,
                share=float(test.shares[test.top]) if test.top != ABSTAIN else 0.0,
                evaluations=one.evaluations + spent,
            )
        )
    return found


def decide_until(
    cast: Cast, clean: Sequence[CleanVote], gain: float, config: CertifySettings, progress: bool = False
) -> list[Certificate]:
    """Certificates to a precision of images with the ``clean`` votes; ``cast``: as :func:`_settle` has it."""
    tests = [RadiusEstimate(gain, config, one) for one in clean]
    found = []
    for test, one, spent in zip(tests, clean, _settle(cast, tests, config, progress)):
        found.append(
            Certificate(
                prediction=test.top if test.p_a_lower > 0.5 else ABSTAIN,
                radius=bounds.radius(test.p_a_lower, config.sigma),
                p_a_lower=test.p_a_lower,
                n_a=int(test.counts.max()),
                undecided=test.drawn - int(test.counts.sum()),
                n0=test.n0,
                n=test.drawn,
                **config.model_dump(include={"alpha", "sigma"}),
                evaluations=one.evaluations + spent,
            )
        )
    return found


def _settle(cast: Cast, tests: Sequence[RadiusTest], config: CertifySettings, progress: bool) -> list[int]:
    """Cast votes for all ``tests``, interleaved round by round, until each has its outcome; the evaluations that each took.

    ``cast(which, draws)`` has the votes of images number ``which`` on their ``draws``, 0, 1, 2, ... of each in order: as many
    as it takes at least in an image's first round, then ``batch_size`` in all, and for an image no more than it has had.
    """
    evaluations, drawn, most = [0] * len(tests), [0] * len(tests), config.selecting + config.n
    with tqdm(total=len(tests) * most, desc="at most", unit="vote", disable=not progress) as bar:
        while left := [i for i, test in enumerate(tests) if test.outcome is None]:
            chosen, share = left[: config.batch_size], max(1, config.batch_size // len(left))
            until = [min(drawn[i] + (min(share, drawn[i]) or config.selecting + tests[i].least), most) for i in chosen]
            draws = [np.arange(drawn[i], end) for i, end in zip(chosen, until)]
            for i, end, votes in zip(chosen, until, cast(chosen, draws)):
                evaluations[i] += int(votes.evaluations.sum())
                tests[i].add(votes.classes)
                bar.update((end if tests[i].outcome is None else most) - drawn[i])
                drawn[i] = end
    return evaluations
