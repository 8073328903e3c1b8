"""Certificates by randomized smoothing: CERTIFY and PREDICT (Cohen et al. 2019), and their serialized variants (Gao et al.
2024) with audits whose guarantee is proved in docs/certificates.md.

Smoothed classifier: g(x) = argmax_c P(f(x + e) = c), e ~ N(0, sigma^2 I). Images, sigma and radii share one unit, pixels
in [0, 1]; noisy copies are not clipped. Draws 0 ... n0 - 1 choose the class, draws n0 ... n0 + n - 1 are counted; where the
clean image chooses it, draws 0 ... n - 1 are.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field, field_validator, model_validator
from scipy import stats
from torch import Tensor, nn

from srs.certificates import bounds
from srs.common.settings import Section
from srs.deq.definition import DEQ, is_deq
from srs.deq.interface import Checked, device_of, require_image
from srs.votes.noise import LARGEST, NoisyCopies, audit_order, fineness
from srs.votes.samplers import (
    MOST_ROWS,
    UNDECIDED,
    CleanVote,
    DirectSampler,
    Sampler,
    StandardSampler,
    Votes,
    require_sampler,
)

ABSTAIN = -1
MOST_SIGMA = 1e30  # of noise that stays finite in single precision
MOST_DRAWS = 100_000_000  # of one image: two gigabytes of votes


class Confidence(Section):
    """What certificates promise, and how serialized votes are audited.

    They fail with probability at most ``alpha``, of which the audit's test takes the share ``split``. ``audit`` = K counted
    draws are audited: the reference solves those among them whose vote was for the certified class. ``audit_draw``: "random"
    (after the run, from a stream apart from the noise's) or the "first_batch" after the warm-up, as the paper's released code
    has it. ``estimator``: see :mod:`srs.certificates.bounds`. Only "finite_population" with "random" is a guarantee.

    ``census``: this share of the counted draws, those with the least logit ``margin`` or the greatest ``residual``
    (``doubt``), is solved by the reference whatever the vote was; the audit covers the rest.
    """

    alpha: float = 0.001
    audit: int = Field(400, ge=0)
    audit_draw: bounds.AuditDraw = "random"
    estimator: bounds.Estimator = "finite_population"
    split: float = Field(0.5, gt=0, lt=1)
    census: float = Field(0.0, ge=0, le=1)
    doubt: Literal["margin", "residual"] = "margin"

    @field_validator("alpha")
    def _alpha_is_a_level(cls, alpha: float) -> float:
        if not bounds.LEAST_ALPHA <= alpha < 1:
            raise ValueError(f"{alpha} is out of range: expected {bounds.LEAST_ALPHA} <= alpha < 1")
        return alpha

    @model_validator(mode="after")
    def _census_has_a_theorem(self) -> "Confidence":
        if self.census and not self.guarantee:
            raise ValueError(
                f"census = {self.census} needs estimator = 'finite_population' and audit_draw = 'random', "
                f"got {self.estimator!r} and {self.audit_draw!r}"
            )
        return self

    @property
    def guarantee(self) -> bool:
        """Whether serialized certificates hold with probability 1 - alpha, by proof."""
        return bounds.guaranteed(self.estimator, self.audit_draw)


class CertifySettings(Confidence):
    """Settings of a certificate: noise level ``sigma``, ``n0`` + ``n`` draws, ``seed`` of noise and audit, and those of
    :class:`Confidence`. At most ``batch_size`` copies are computed at once (four where rows are checked; a released sampler's
    batches are its own); it changes no vote.

    ``selection``: what names the class that is certified: the "votes" of n0 draws that are not counted, or the base
    classifier's vote on the "clean" image, so that n0 draws are saved.
    """

    sigma: float = Field(0.5, gt=0, le=MOST_SIGMA)
    n0: int = Field(100, ge=1, le=MOST_DRAWS)
    n: int = Field(10_000, ge=1, le=MOST_DRAWS)
    seed: int = Field(0, ge=0, lt=1 << 63)
    batch_size: int = Field(400, ge=1, le=MOST_ROWS)
    selection: Literal["votes", "clean"] = "votes"

    @model_validator(mode="after")
    def _enough_draws(self) -> "CertifySettings":
        if self.n < bounds.smallest_n(self.alpha):
            raise ValueError(
                f"n = {self.n} is too small for alpha = {self.alpha}: even a unanimous vote would abstain; "
                f"n must be at least {bounds.smallest_n(self.alpha)}"
            )
        return self

    def require_audit(self, warm_draws: int = 0) -> None:
        """Raises ValueError where the audit is larger than n, or so small that not even a perfect run could be certified, and
        where the first batch after a warm-up of so many draws is empty."""
        if self.audit_draw == "first_batch" and warm_draws >= self.selecting + self.n:
            raise ValueError(
                f"audit_draw = 'first_batch' has nothing to audit: the warm-up takes {warm_draws} draws (chains, or a batch of "
                f"them) of {self.selecting + self.n}; ask for more draws or fewer chains"
            )
        if self.audit > self.n:
            raise ValueError(f"audit = {self.audit} is out of range: at most n = {self.n} draws can be audited")

        def certified(n: int, audit: int) -> bool:
            how = self.estimator, self.split, math.ceil(self.census * n)
            return bounds.largest_radius(n, self.alpha, 1.0, audit, *how) > 0

        if not certified(self.n, self.audit):
            if certified(self.n, self.n):
                how = self.split, self.estimator, math.ceil(self.census * self.n)
                more = f"at least {bounds.smallest_audit(self.n, self.alpha, *how)} are needed"
            else:
                enough = next(n for n in itertools.count(self.n + 1) if certified(n, n))
                more = f"for serialized votes n must be at least {enough}"
            raise ValueError(
                f"audit = {self.audit} of n = {self.n} draws certify nothing at alpha = {self.alpha}, estimator = "
                f"{self.estimator!r}, split = {self.split}: {more}"
            )

    @property
    def selecting(self) -> int:
        """How many draws choose the class, before those that are counted."""
        return self.n0 if self.selection == "votes" else 0

    def draws(self) -> np.ndarray:
        """The numbers of all draws, those that choose the class first."""
        return np.arange(self.selecting + self.n)

    def census_draws(self, votes: Votes) -> np.ndarray:
        """The counted draws that the reference solves in any case, most doubtful first."""
        if not self.census:
            return np.empty(0, np.int64)
        doubt = -votes.margins if self.doubt == "margin" else votes.residuals
        doubt = np.nan_to_num(doubt[self.selecting :].astype(np.float32), nan=np.inf)
        return np.argsort(-doubt, kind="stable")[: math.ceil(self.census * self.n)] + self.selecting

    def audited_draws(self, index: int, first: int = 0, without: np.ndarray = ()) -> np.ndarray:
        """The counted draws of image ``index`` that are audited: K of those not in ``without``, or as many as there are.

        ``first``: the number of draws of the warm-up, which an audit of the first batch passes over.
        """
        order = audit_order(self.audit_draw, self.seed, index, self.selecting, self.n, first)
        return order[~np.isin(order, without)][: self.audit]


@dataclass(frozen=True)
class Certificate:
    """With probability at least 1 - alpha over the draws: if ``prediction`` is not ABSTAIN (-1), then the smoothed
    classifier's class is ``prediction`` at the image and at every point closer than ``radius`` (l2, pixel units). Where
    ``guarantee`` is False, nothing is promised. ``classifier``: what was smoothed, in words; for serialized votes that is the
    audit's reference.

    ``n_a`` of ``n`` counted votes went to the class that the ``n0`` selection draws named (none where the clean image did), or
    that had most where all were tested (:func:`srs.certify_until`); ``undecided`` went to none. Of serialized votes, which are
    ``audited`` unless settled, ``k`` were (fewer than asked for where there are no more), ``n2`` of them votes for that class,
    ``n1`` of those confirmed by the reference; ``census`` more draws were solved by the reference, which gave ``known`` of them
    to that class. ``estimator``, ``audit_draw`` and ``split`` are those of the audit. All are 0 or empty where there was none.
    ``evaluations`` of f include the audit's. ``moved``: how far the image lies from the point of the noise's grid at which the
    votes were cast (:mod:`srs.votes.noise`); the radius is smaller by that.
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
    census: int = 0
    known: int = 0
    moved: float = 0.0
    p_m_upper: float = 0.0
    estimator: str = ""
    audit_draw: str = ""
    split: float = 0.0
    guarantee: bool = True
    evaluations: int = 0
    classifier: str = ""

    @property
    def audited(self) -> bool:
        """Whether a reference audited the votes: those of a serialized sampler are audited, independent and settled
        ones need it not."""
        return self.estimator != ""

    def __str__(self) -> str:
        promise = f"class {self.prediction}, certified l2 radius {bounds.shown(self.radius)}"
        told = "abstains" if self.prediction == ABSTAIN else promise
        spent = f"{self.classifier}; " * bool(self.classifier) + f"{self.evaluations:,} evaluations of f"
        return f"{told} ({spent})" + ("" if self.guarantee else ", not a guarantee")


def certify(
    model: nn.Module | DEQ | Callable[[Tensor], object],
    image: Tensor,
    *,
    sigma: float,
    sampler: Sampler | None = None,
    reference: Sampler | None = None,
    index: int = 0,
    output_key: str | int | None = None,
    **settings,
) -> Certificate:
    """CERTIFY one ``image`` (C, H, W), or any tensor of floats that ``model`` takes in batches.

    ``model`` is any classifier of batches, or a :class:`srs.deq.definition.DEQ`; the default sampler follows from which, and
    the certificate says what was smoothed. ``output_key``: where its logits are, if it returns a tuple, dict or dataclass.
    With a serialized sampler (but for settled votes) the audit compares its votes with those of ``reference`` (30 Anderson
    steps, where none is given), and the certificate is about the reference's smoothed classifier; other samplers need none.
    ``index`` numbers the image: with ``seed`` it picks the noise. Other ``settings`` are the fields of
    :class:`CertifySettings`.

    The model may overwrite what it is given. But for a released sampler a few rows are computed again, in other company, twice
    and alone, to see whether rows depend on one another: detection, not proof
    (:func:`srs.deq.interface.require_independent_rows`).

    Raises pydantic's ValidationError, a ValueError, for a bad setting; ValueError for an unusable image or model, a model in
    training mode or whose rows depend on one another, or an audit that could certify nothing.
    """
    config = CertifySettings(sigma=sigma, **settings)
    sampler, model = looked_at(model, sampler, output_key, reference)
    copies = noisy_copies(model, image, index, config)
    if sampler.audited:
        config.require_audit(sampler.warm_draws)
        reference, judge = _usable_reference(reference, model)
    clean = None
    if config.selection == "clean":
        base, sees = (reference, judge) if sampler.audited else (sampler, model)
        require_independent("selection = 'clean'", base)
        clean = base.clean(sees, copies.image)
    votes = sampler.sample(model, copies, config.draws(), config.batch_size)
    if not sampler.audited:
        return at_image(standard_certificate(votes, config, sampler, clean), copies)

    def solve_again(draws: np.ndarray) -> Votes:
        return reference.sample(judge, copies, draws, config.batch_size)

    found, _ = serialized_certificate(votes, solve_again, config, index, sampler.warm_draws, reference, clean)
    return at_image(found, copies)


def predict(
    model: nn.Module | DEQ | Callable[[Tensor], object],
    image: Tensor,
    *,
    sigma: float,
    sampler: Sampler | None = None,
    reference: Sampler | None = None,
    index: int = 0,
    output_key: str | int | None = None,
    **settings,
) -> int:
    """PREDICT: the smoothed classifier's class at ``image``, or ABSTAIN; wrong with probability at most alpha.

    All draws vote, n0 + n of them (n, where ``selection`` is "clean"); the exact binomial test compares the two classes with
    most votes, undecided votes counted for the runner-up. An image off the noise's grid is answered for its nearest point.
    Serialized votes, unless settled, allow no such test; there the class is that of :func:`certify`, audit included.
    Raises as that does, and ValueError where the sampler or the audit's settings are no guarantee.
    """
    config = CertifySettings(sigma=sigma, **settings)
    sampler, model = looked_at(model, sampler, output_key, reference)
    if sampler.audited:
        if not config.guarantee:
            raise ValueError(
                f"predict needs a guarantee: estimator = {config.estimator!r} with audit_draw = {config.audit_draw!r} has "
                "none; use 'finite_population' with 'random'"
            )
        return certify(model, image, sigma=sigma, sampler=sampler, reference=reference, index=index, **settings).prediction
    if not sampler.exact:
        require_independent("predict", sampler)
    copies = noisy_copies(model, image, index, config)
    votes = sampler.sample(model, copies, config.draws(), config.batch_size).classes
    counts = np.bincount(votes[votes != UNDECIDED], minlength=2)
    second, first = np.argsort(counts, kind="stable")[-2:]
    against = counts[second] + (votes == UNDECIDED).sum()
    if counts[first] <= against:
        return ABSTAIN
    p_value = stats.binomtest(int(counts[first]), int(counts[first] + against), 0.5).pvalue
    return int(first) if p_value <= config.alpha else ABSTAIN


def standard_certificate(
    votes: Votes, config: CertifySettings, sampler: Sampler | None = None, clean: CleanVote | None = None
) -> Certificate:
    """Certificate from n0 + n independent votes of ``sampler`` (Cohen et al. 2019, Section 3.2.2); no guarantee where its votes
    are neither independent nor settled. ``clean``: the vote that names the class, where ``config`` has it so; then there are n
    votes."""
    top, n_a, counted = tally(votes, config, clean)
    p_a_lower = bounds.clopper_pearson_lower(n_a, config.n, config.alpha)
    about = {} if sampler is None else {"guarantee": sampler.independent or sampler.exact, "classifier": sampler.described()}
    spent = int(votes.evaluations.sum()) + (0 if clean is None else clean.evaluations)
    return _certificate(top, n_a, counted, p_a_lower, config, evaluations=spent, **about)


def serialized_certificate(
    votes: Votes,
    solve_again: Callable[[np.ndarray], Votes],
    config: CertifySettings,
    index: int,
    warm_draws: int = 0,
    reference: Sampler | None = None,
    clean: CleanVote | None = None,
) -> tuple[Certificate, Votes]:
    """Certificate from n0 + n serialized votes, and the reference's votes that it rests on.

    ``solve_again`` gives the reference's votes on some draws. A draw whose serialized vote was not for the certified class
    enters no bound, and is not solved again unless it belongs to the census. ``warm_draws``: how many draws the
    warm-up took; ``reference``: what solves again; ``clean``: as :func:`standard_certificate` has it. Theorems 1 and 2 of
    docs/certificates.md.
    """
    top, n_a, counted = tally(votes, config, clean)
    census, audited = np.empty(0, np.int64), np.empty(0, np.int64)
    if top != ABSTAIN:
        census = config.census_draws(votes)
        audited = config.audited_draws(index, warm_draws, census)
    suspects = audited[votes.classes[audited] == top]
    again = np.sort(np.concatenate([census, suspects]))
    truth = solve_again(again)
    confirmed = np.zeros(config.selecting + config.n, bool)
    confirmed[again] = truth.classes == top
    outside = n_a - int((votes.classes[census] == top).sum())
    n1, known = int(confirmed[suspects].sum()), int(confirmed[census].sum())
    bound = bounds.serialized_bound(config.estimator, outside, config.n, n1, len(suspects), config.alpha, config.split, known)
    certificate = _certificate(
        *(top, n_a, counted, bound.p_a_lower, config),
        k=len(audited),
        n1=n1,
        n2=len(suspects),
        census=len(census),
        known=known,
        p_m_upper=bound.p_m_upper,
        **config.model_dump(include={"estimator", "audit_draw", "split"}),
        guarantee=config.guarantee,
        evaluations=int(votes.evaluations.sum() + truth.evaluations.sum()) + (0 if clean is None else clean.evaluations),
        classifier="" if reference is None else reference.described(),
    )
    return certificate, truth


def at_image(found: Certificate, copies: NoisyCopies) -> Certificate:
    """A certificate from the votes on ``copies``, about their image, which may lie off the noise's grid."""
    left = found.radius - copies.moved
    if left <= 0 and copies.moved:
        return replace(found, prediction=ABSTAIN, radius=0.0, moved=copies.moved)
    return replace(found, radius=left, moved=copies.moved)


def selected_class(selection: np.ndarray) -> int:
    """The class with most of the selection's votes, the lowest of a tie; ABSTAIN where all are undecided."""
    decided = selection[selection != UNDECIDED]
    return int(np.bincount(decided).argmax()) if len(decided) else ABSTAIN


def tally(votes: Votes, config: CertifySettings, clean: CleanVote | None = None) -> tuple[int, int, np.ndarray]:
    """The class that the selection draws name, or the ``clean`` vote where there is one; its count; and the counted votes."""
    selection, counted = votes.classes[: config.selecting], votes.classes[config.selecting :]
    top = selected_class(selection) if clean is None else clean.vote
    return top, int((counted == top).sum()) if top != ABSTAIN else 0, counted


def _certificate(top: int, n_a: int, counted: np.ndarray, p_a_lower: float, config: CertifySettings, **rest) -> Certificate:
    return Certificate(
        prediction=top if p_a_lower > 0.5 else ABSTAIN,
        radius=bounds.radius(p_a_lower, config.sigma),
        p_a_lower=p_a_lower,
        n_a=n_a,
        undecided=int((counted == UNDECIDED).sum()),
        n0=config.selecting,
        **config.model_dump(include={"n", "alpha", "sigma"}),
        **rest,
    )


def default_sampler(model) -> Sampler:
    """What certifies a model where nothing is said: 30 Anderson steps for a DEQ, a forward pass for anything else."""
    return StandardSampler() if is_deq(model) else DirectSampler()


def looked_at(model, sampler: Sampler | None, output_key, reference: Sampler | None = None) -> tuple[Sampler, Checked]:
    """What samples, and the model as it sees it, whose rows are checked along with the first votes. Raises ValueError, also for
    a ``reference`` that is no sampler."""
    sampler = default_sampler(model) if sampler is None else sampler
    require_sampler("sampler", sampler)
    if reference is not None:
        require_sampler("reference", reference)
    return sampler, sampler.look_at(model, output_key, rows_checked=False)


def _usable_reference(reference: Sampler | None, model: Checked) -> tuple[Sampler, Checked]:
    """What audits, and the model as it sees it: rows are checked anew where it asks for more than the chain does."""
    reference = StandardSampler() if reference is None else reference
    require_independent("reference", reference)
    if isinstance(reference, StandardSampler) and reference.start == "initial":
        return reference, model
    return reference, reference.look_at(model.model, model.output_key, rows_checked=False)


def require_independent(what: str, sampler: Sampler) -> None:
    """Raises ValueError for a sampler whose votes depend on one another."""
    if not sampler.independent:
        raise ValueError(f"{what} needs independent votes, which a sampler of kind {sampler.kind!r} has not: use 'standard'")


def noisy_copies(model, image: Tensor, index: int, config: CertifySettings) -> NoisyCopies:
    """The noisy copies of an image, where the model computes. Raises ValueError for an unusable image or number."""
    require_pixels(image, config.sigma)
    if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < 1 << 63:
        raise ValueError(f"index = {index!r} numbers the image: a whole number from 0 to 2^63 - 1")
    return NoisyCopies(image.detach().to(device_of(model, image)), int(index), config.sigma, config.seed)


def require_pixels(image: object, sigma: float, told: str = "image") -> None:
    """Raises ValueError as :func:`require_image`, and for an image too large for noise of this ``sigma``."""
    require_image(image, told)
    largest = float(image.detach().abs().max())
    if largest * fineness(sigma) > LARGEST:
        raise ValueError(f"{told} has pixels as large as {largest:g}: expected about [0, 1], the unit of sigma = {sigma}")
