"""Certificates by randomized smoothing: CERTIFY and PREDICT (Cohen et al. 2019), and the serialized variant with the
audit of Theorem 3.1 (Gao et al. 2024).

Smoothed classifier: g(x) = argmax_c P(f(x + e) = c), e ~ N(0, sigma^2 I). Images, sigma and radii share one unit, pixels
in [0, 1]; noisy copies are not clipped. Draws 0 ... n0 - 1 choose the class, draws n0 ... n0 + n - 1 are counted.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from pydantic import Field, model_validator
from scipy import stats
from torch import Tensor, nn

from srs import bounds, noise
from srs.casting import Casting, VoteTable
from srs.deq import DEQ
from srs.noise import NoisyCopies
from srs.sections import Section
from srs.votes import UNDECIDED, DirectSampler, Sampler, StandardSampler, Votes

ABSTAIN = -1


class Certification(Section):
    """Settings of a certificate: noise level ``sigma``, ``n0`` + ``n`` draws, failure probability ``alpha``, ``audit`` = K
    draws audited for serialized votes, ``seed`` of noise and audit. ``batch_size`` is how many copies are computed at
    once and changes no vote.
    """

    sigma: float = Field(0.5, gt=0)
    n0: int = Field(100, ge=1)
    n: int = Field(10_000, ge=1)
    alpha: float = Field(0.001, gt=0, lt=1)
    audit: int = Field(400, ge=1)
    seed: int = Field(0, ge=0, lt=1 << 63)
    batch_size: int = Field(400, ge=1)

    @model_validator(mode="after")
    def _enough_draws(self) -> "Certification":
        if self.n < bounds.smallest_n(self.alpha):
            raise ValueError(
                f"n = {self.n} is too small for alpha = {self.alpha}: even a unanimous vote would abstain; "
                f"n must be at least {bounds.smallest_n(self.alpha)}"
            )
        return self

    def draws(self) -> np.ndarray:
        return np.arange(self.n0 + self.n)

    def audited_draws(self, index: int) -> np.ndarray:
        """The K counted draws of image ``index`` that are audited. Raises ValueError when audit > n."""
        return noise.audited_draws(self.seed, index, self.n0, self.n, self.audit)


@dataclass(frozen=True)
class Certificate:
    """With probability at least 1 - alpha over the draws: if ``prediction`` is not ABSTAIN (-1), then the smoothed
    classifier's class is ``prediction`` at the image and at every point closer than ``radius`` (l2, pixel units).

    ``n_a`` of ``n`` counted votes went to the class that the selection draws named; ``undecided`` went to none. For
    serialized votes ``k`` draws were audited, ``n2`` of them votes for that class, ``n1`` of those confirmed by the
    reference; 0 elsewhere. ``evaluations`` of f include the audit's.
    """

    prediction: int
    radius: float
    p_a_lower: float
    n_a: int
    undecided: int
    n0: int
    n: int
    alpha: float
    sigma: float
    k: int = 0
    n1: int = 0
    n2: int = 0
    p_m_upper: float = 0.0
    evaluations: int = 0


def certify(
    model: nn.Module | DEQ | Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    sigma: float,
    sampler: Sampler | None = None,
    reference: Sampler | None = None,
    index: int = 0,
    **settings,
) -> Certificate:
    """CERTIFY one ``image`` (C, H, W), or any tensor that ``model`` takes in batches.

    ``model`` is any classifier of batches, or a :class:`srs.deq.DEQ`; the default sampler follows from which. With a
    serialized sampler the audit compares its votes with those of ``reference`` (30 Anderson steps, where none is given),
    and the certificate is about the reference's smoothed classifier. ``index`` numbers the image: with ``seed`` it picks
    the noise. Other ``settings`` are the fields of :class:`Certification`.

    Raises pydantic's ValidationError for a bad setting, ValueError for an unusable image or a model in training mode.
    """
    config = Certification(sigma=sigma, **settings)
    copies = _copies(model, image, index, config)
    sampler = sampler or _default_sampler(model)
    audited = np.empty(0) if sampler.independent else config.audited_draws(index)
    votes = sampler.sample(model, copies, config.draws(), config.batch_size)
    if sampler.independent:
        return standard_certificate(votes, config)
    confirmed = (reference or StandardSampler()).sample(model, copies, audited, config.batch_size)
    return serialized_certificate(votes, audited, confirmed, config)


def predict(
    model: nn.Module | DEQ | Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    sigma: float,
    sampler: Sampler | None = None,
    index: int = 0,
    **settings,
) -> int:
    """PREDICT: the smoothed classifier's class at ``image``, or ABSTAIN; wrong with probability at most alpha.

    All n0 + n draws vote; the exact binomial test compares the two classes with most votes, undecided votes counted for
    the runner-up. Raises as :func:`certify` does, and ValueError for a serialized sampler: the test needs
    independent votes, and no guarantee is known without them.
    """
    config = Certification(sigma=sigma, **settings)
    sampler = sampler or _default_sampler(model)
    if not sampler.independent:
        raise ValueError(f"predict has no guarantee for dependent votes: sampler kind {sampler.kind!r}; use 'standard'")
    copies = _copies(model, image, index, config)
    votes = sampler.sample(model, copies, config.draws(), config.batch_size).classes
    counts = np.bincount(votes[votes != UNDECIDED], minlength=2)
    second, first = np.argsort(counts, kind="stable")[-2:]
    against = counts[second] + (votes == UNDECIDED).sum()
    if counts[first] <= against:
        return ABSTAIN
    p_value = stats.binomtest(int(counts[first]), int(counts[first] + against), 0.5).pvalue
    return int(first) if p_value <= config.alpha else ABSTAIN


def standard_certificate(votes: Votes, config: Certification) -> Certificate:
    """Certificate from n0 + n independent votes (Cohen et al. 2019, Section 3.2.2)."""
    top, n_a, counted = _tally(votes, config)
    p_a_lower = bounds.clopper_pearson_lower(n_a, config.n, config.alpha)
    return _certificate(top, n_a, counted, p_a_lower, config, evaluations=int(votes.evaluations.sum()))


def serialized_certificate(votes: Votes, audited: np.ndarray, reference: Votes, config: Certification) -> Certificate:
    """Certificate from n0 + n serialized votes, ``audited`` draws of which the ``reference`` has voted on too."""
    top, n_a, counted = _tally(votes, config)
    for_top = votes.classes[audited] == top
    n2 = int(for_top.sum()) if top != ABSTAIN else 0
    n1 = int((for_top & (reference.classes == top)).sum()) if top != ABSTAIN else 0
    bound = bounds.theorem_3_1(n_a, config.n, n1, n2, config.alpha)
    return _certificate(
        *(top, n_a, counted, bound.p_a_lower, config),
        evaluations=int(votes.evaluations.sum() + reference.evaluations.sum()),
        k=len(audited),
        n1=n1,
        n2=n2,
        p_m_upper=bound.p_m_upper,
    )


class Assurance(Section):
    """What certificates of an experiment share: failure probability ``alpha`` and ``audit`` = K audited draws."""

    alpha: float = Field(0.001, gt=0, lt=1)
    audit: int = Field(400, ge=1)

    def settings(self, casting: Casting, group: str) -> Certification:
        """The settings of one group's certificates. Raises as :class:`Certification` does."""
        shared = casting.model_dump(include={"sigma", "n0", "seed", "batch_size"})
        chosen = casting.groups[group]
        return Certification(**shared, n=chosen.n, alpha=self.alpha, audit=chosen.audit or self.audit)


def certificates(
    table: VoteTable, labels: np.ndarray, casting: Casting, assurance: Assurance, groups: Iterable[str] | None = None
) -> pd.DataFrame:
    """One certificate for each group (all, or those named), method and image of an experiment, from its votes.

    ``labels`` are those of the whole test part. Beside the fields of :class:`Certificate`: group, method, index, label;
    ``mismatched``: of the ``n_a`` counted votes those that the reference does not confirm (NaN where it has not voted
    on all draws); and what the method alone would have cost, audit included: ``evaluations`` and ``seconds``.
    """
    rows = []
    for group in casting.groups if groups is None else groups:
        config = assurance.settings(casting, group)
        for method in casting.groups[group].samplers:
            for position in map(int, casting.members(group)):
                index = int(table.index[position])
                who = {"group": group, "method": method, "index": index, "label": int(labels[index])}
                rows.append(who | _from_table(table, position, casting.sampler(group, method), casting.reference, config))
    return pd.DataFrame(rows)


def _from_table(table: VoteTable, position: int, sampler: Sampler, reference: Sampler, config: Certification) -> dict:
    every = slice(0, config.n0 + config.n)
    votes = table.of(sampler, position, every)
    if sampler.independent:
        return asdict(standard_certificate(votes, config)) | {"mismatched": np.nan, "seconds": float(votes.seconds.sum())}
    audited = config.audited_draws(int(table.index[position]))
    audit = table.of(reference, position, audited)
    certificate = serialized_certificate(votes, audited, audit, config)
    mismatched = np.nan
    if table.complete(reference, position, every):
        top, _, counted = _tally(votes, config)
        known = table.of(reference, position, every).classes[config.n0 :]
        mismatched = int(((counted == top) & (known != top)).sum())
    return asdict(certificate) | {"mismatched": mismatched, "seconds": float(votes.seconds.sum() + audit.seconds.sum())}


def _tally(votes: Votes, config: Certification) -> tuple[int, int, np.ndarray]:
    """The class that the selection draws name (ABSTAIN where all are undecided), its count, and the counted votes."""
    selection, counted = votes.classes[: config.n0], votes.classes[config.n0 :]
    decided = selection[selection != UNDECIDED]
    top = int(np.bincount(decided).argmax()) if len(decided) else ABSTAIN
    return top, int((counted == top).sum()) if top != ABSTAIN else 0, counted


def _certificate(top: int, n_a: int, counted: np.ndarray, p_a_lower: float, config: Certification, **rest) -> Certificate:
    return Certificate(
        prediction=top if p_a_lower > 0.5 else ABSTAIN,
        radius=bounds.radius(p_a_lower, config.sigma),
        p_a_lower=p_a_lower,
        n_a=n_a,
        undecided=int((counted == UNDECIDED).sum()),
        **config.model_dump(include={"n0", "n", "alpha", "sigma"}),
        **rest,
    )


def _default_sampler(model) -> Sampler:
    return StandardSampler() if isinstance(model, DEQ) else DirectSampler()


def require_evaluation_mode(model) -> None:
    """Raises ValueError for a module of which any part is in training mode."""
    if isinstance(model, nn.Module) and any(part.training for part in model.modules()):
        raise ValueError(
            "the model, or a part of it, is in training mode, where votes depend on one another: call model.eval()"
        )


def _copies(model, image: Tensor, index: int, config: Certification) -> NoisyCopies:
    require_evaluation_mode(model)
    if not isinstance(image, Tensor) or not image.is_floating_point():
        raise ValueError(f"image must be a tensor of floats, pixels in [0, 1]; got {getattr(image, 'dtype', type(image))}")
    if not image.isfinite().all():
        raise ValueError("image has values that are not finite")
    return NoisyCopies(image, index, config.sigma, config.seed)
