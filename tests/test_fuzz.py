"""Whatever is asked, the answer is a certificate that a slow, plain reference gives as well (reference.py), or a ValueError
that names what was given; never another exception, never a warning. How many examples: docs/testing.md.

Models look at the first number of an image alone, so that their votes are known.
"""

import copy
import datetime
import functools
import io
import math
import re
import warnings
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

import srs
from srs.data import pictures
from srs.deq.solvers import Solver
from srs.votes.noise import fineness, rounded_noise
from srs.votes.samplers import DirectSampler, SerializedSampler, StandardSampler
from study import params
from study.common import params_file

UNDECIDED = -1
AUDIT = 0x6175646974  # of the audit's random stream
DRAWN = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large])


def _outcome(function, *given, **settings):
    """What is returned, and None; or None, and the text of a ValueError. A warning fails."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found, refused = function(*given, **settings), None
        except ValueError as error:
            found, refused = None, str(error)
    assert not told, [str(warning.message) for warning in told]
    return found, refused


# models whose votes are known


VOIDS = {
    "tie": [1.0, 1.0, 0.0],
    "narrow": [5e-5, 0.0, -1.0, -1.0],
    "infinite": [math.inf, 0.0, 0.0, 0.0],
    "two infinities": [math.inf, math.inf, 0.0],
    "NaN": [0.0, math.nan, 1.0],
    "nothing": [-math.inf],
}  # logits of no class, again and again


class Buckets:
    """Between two ``cuts`` of an image's first number: the vote of a code. Code c is class c - 1 by a margin of c; the last one
    is ``none``, which has one of the VOIDS for logits."""

    def __init__(self, cuts, codes, classes, void):
        self.cuts, self.codes, self.classes, self.none, self.void = cuts, codes, classes, classes + 1, void
        nothing = torch.tensor([(VOIDS[void] * classes)[:classes]])
        self.logits = torch.cat([torch.zeros(1, classes), torch.diag(torch.arange(1.0, self.none)), nothing])

    def code(self, value: float) -> int:
        return self.codes[sum(value > cut for cut in self.cuts)]

    def margin(self, code: int) -> float:
        """Between the two largest logits; NaN is the greatest doubt."""
        return code if code < self.none else {"tie": 0.0, "narrow": 5e-5, "infinite": math.inf}.get(self.void, -math.inf)

    def fresh(self, x: torch.Tensor) -> torch.Tensor:
        places = (x.reshape(len(x), -1)[:, :1].double() > torch.tensor(self.cuts, dtype=torch.float64)).sum(dim=1)
        return torch.tensor(self.codes)[places]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits[self.fresh(x)]


class Remembering(Buckets):
    """A DEQ of state (code, turn): from the start (0, 0) a step answers as the buckets do; from there on turn by turn as the
    ``habits`` say: it keeps its answer, looks again, says class 0, or goes on to the next code."""

    def __init__(self, *buckets, habits):
        super().__init__(*buckets)
        self.habits = habits

    def inject(self, x):
        return self.fresh(x)[:, None].float()

    def initial_state(self, injection):
        return torch.zeros(len(injection), 2)

    def f(self, z, injection):
        code, turn, fresh = z[:, 0], z[:, 1], injection[:, 0]
        habit = torch.tensor([HABITS.index(habit) for habit in self.habits])[turn.long() % len(self.habits)]
        answers = torch.stack([code, fresh, torch.ones_like(code), code % self.none + 1])
        answer = torch.where(code == 0, fresh, answers.gather(0, habit[None])[0])
        return torch.stack([answer, turn + 1], dim=1)

    def head(self, z):
        return self.logits[z[:, 0].long()]

    def after(self, state: tuple[int, int], fresh: int, steps: int) -> tuple[int, int]:
        """The state some steps on, in plain words."""
        code, turn = state
        for _ in range(steps):
            habit = self.habits[turn % len(self.habits)]
            if code == 0 or habit == "look again":
                code = fresh
            elif habit == "class 0":
                code = 1
            elif habit == "next":
                code = code + 1 if code < self.none else 1
            turn += 1
        return code, turn


HABITS = ["keep", "look again", "class 0", "next"]


@dataclass
class Call:
    """A call of certify, and its votes by other ways."""

    model: Buckets
    image: torch.Tensor
    settings: dict
    index: int = 0
    samplers: dict = field(default_factory=dict)

    def copies(self, count: int) -> list[float]:
        """The first numbers of the noisy copies 0 ... count - 1: the nearest point of the grid, noise in units of it (of which
        tests/test_noise.py has a reference), and one map to floats."""
        sigma, first = float(self.settings["sigma"]), self.image.detach().flatten()[0]
        given = int(self.settings["seed"]), int(self.index), np.arange(count), self.image.numel(), sigma
        whole = _nearest(first.item(), sigma) + rounded_noise(*given)[:, 0].astype(np.int64)
        kind = torch.float64 if first.dtype == torch.float64 else torch.float32
        return (torch.from_numpy(whole).to(kind) * (1 / fineness(sigma))).to(first.dtype).tolist()

    @property
    def moved(self) -> float:
        """How far the image lies from the grid; numbers that all name points in single precision are those."""
        sigma = float(self.settings["sigma"])
        pixels = self.image.detach().double().flatten().tolist()
        nearest = [_nearest(pixel, sigma) / Fraction(fineness(sigma)) for pixel in pixels]
        off = [abs(Fraction(pixel) - point) for pixel, point in zip(pixels, nearest)]
        if self.image.element_size() >= 4 and all(a <= Fraction(1, 2**23) * abs(point) for a, point in zip(off, nearest)):
            return 0.0
        return math.sqrt(sum(away**2 for away in off))

    def standard_codes(self, steps: int = 1) -> list[int]:
        fresh = [self.model.code(value) for value in self.copies(int(self.settings["n0"]) + int(self.settings["n"]))]
        return fresh if steps == 1 else [self.model.after((0, 0), code, steps)[0] for code in fresh]

    def clean(self, steps: int = 1) -> int:
        """The vote without noise."""
        code = self.model.code(self.image.flatten()[0].item())
        return self.votes([code if steps == 1 else self.model.after((0, 0), code, steps)[0]])[0]

    def chain_codes(self, sampler: SerializedSampler) -> list[int]:
        """Chain by chain, draw by draw."""
        fresh, found = self.standard_codes(), {}
        warm, steps, chains = sampler.warmup.steps, sampler.solver.steps, sampler.chains
        clean = self.model.after((0, 0), self.model.code(self.image.flatten()[0].item()), warm)
        for chain in range(min(chains, len(fresh))):
            state = (0, 0)
            for turn, draw in enumerate(range(chain, len(fresh), chains)):
                if sampler.start == "clean":
                    state = self.model.after(clean, fresh[draw], steps)
                else:
                    warming = turn % sampler.restart == 0 if sampler.restart else turn == 0
                    state = self.model.after(state, fresh[draw], warm if warming else steps)
                found[draw] = state[0]
        return [found[draw] for draw in range(len(fresh))]

    def votes(self, codes: list[int]) -> list[int]:
        return [code - 1 if code < self.model.none else UNDECIDED for code in codes]

    def expected(self) -> dict:
        """What the reference says of this call."""
        given = {name: self.settings[name] for name in ("alpha", "sigma")}
        sampler, judge = self.samplers.get("sampler"), self.samplers.get("reference")
        n0, n, seed = (int(self.settings[name]) for name in ("n0", "n", "seed"))
        if self.settings["selection"] == "clean":
            n0, given["clean"] = 0, self.clean(_steps(judge or sampler))
        if sampler is None or not sampler.audited:
            return reference.standard(self.votes(self.standard_codes(_steps(sampler)))[: n0 + n], n0, **given)
        codes = self.chain_codes(sampler)[: n0 + n]
        order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(AUDIT, self.index))).permutation(n) + n0
        if self.settings["audit_draw"] == "first_batch":
            order = np.arange(max(n0, 0 if sampler.start == "clean" else sampler.chains), n0 + n)
        doubtful = sorted(range(n0, n0 + n), key=lambda draw: self.model.margin(codes[draw]))  # stable
        census = doubtful[: math.ceil(self.settings["census"] * n)]
        truth = self.votes(self.standard_codes(_steps(judge)))
        more = {name: self.settings[name] for name in ("audit", "split")}
        return reference.serialized(self.votes(codes), truth, n0, order=order.tolist(), census=census, **more, **given)


def _steps(sampler) -> int:
    return sampler.solver.steps if isinstance(sampler, StandardSampler) else 1


def _nearest(pixel: float, sigma: float) -> int:
    return math.floor(Fraction(pixel) * Fraction(fineness(sigma)) + Fraction(1, 2))


def _agree(found, expected: dict, call: Call, slack: float = 2e-11) -> None:
    """Numbers are equal; the bound is no larger than the exact one, and hardly smaller, and so is the radius."""
    sigma, moved = float(call.settings["sigma"]), call.moved
    assert found.moved == pytest.approx(moved, rel=1e-6, abs=1e-150)  # the squares of less underflow
    p, radius = expected.pop("p_a_lower"), max(0.0, expected.pop("radius") - moved)
    if moved and radius <= 1e-9 * moved:
        assert found.prediction in (reference.ABSTAIN, expected.pop("prediction"))
    assert Fraction(-1, reference.STEPS) <= p - Fraction(found.p_a_lower) <= slack * p + 1e-15
    assert radius - found.radius >= -1e-300
    if found.radius:
        at_most = sigma * reference.normal_quantile(Fraction(found.p_a_lower)) - moved
        assert at_most - found.radius <= 1e-10 * (radius + sigma) + 1e-6 * moved
    if "prediction" in expected and abs(p - Fraction(1, 2)) < 5 * slack:  # where a bound rounded down may be 1/2
        assert found.prediction in (reference.ABSTAIN, expected.pop("prediction"))
    assert {name: getattr(found, name) for name in expected} == expected


# sensible calls

ALPHAS = st.sampled_from([0.001, 0.01, 0.05, 0.3, 1 - 1e-13]) | st.floats(1e-9, 0.9)
SHAPES = st.sampled_from([(), (1,), (3,), (1, 2, 2), (3, 1, 2), (2, 1, 1, 1, 2)])
TYPES = st.sampled_from([torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16])
MOST = 150  # draws


@st.composite
def _images(draw) -> torch.Tensor:
    image = torch.rand(draw(SHAPES), generator=torch.Generator().manual_seed(draw(st.integers(0, 9)))).to(draw(TYPES))
    image.view(-1)[0] = draw(st.floats(0, 1))
    return image


@st.composite
def _buckets(draw, first: float, sigma: float) -> tuple:
    classes = draw(st.integers(2, 4))
    cuts = sorted(first + sigma * q for q in draw(st.lists(st.floats(-2.5, 2.5), max_size=4)))
    codes = draw(st.lists(st.integers(1, classes + 1), min_size=len(cuts) + 1, max_size=len(cuts) + 1))
    return cuts, codes, classes, draw(st.sampled_from(sorted(VOIDS)))


@st.composite
def _calls(draw, kind: str = "classifier") -> Call:
    """``kind``: "classifier", "standard" or "serialized"."""
    image, sigma, alpha = draw(_images()), draw(st.floats(0.01, 10)), draw(ALPHAS)
    buckets = draw(_buckets(image.flatten()[0].item(), sigma))
    least = math.ceil(-math.log2(alpha)) + (kind == "serialized")
    given = {"sigma": sigma, "alpha": alpha, "n0": draw(st.integers(1, 30)), "n": draw(st.integers(least, MOST))}
    given |= {"seed": draw(st.integers(0, 2**63 - 1)), "batch_size": draw(st.sampled_from([400, 64, 33, 7]))}
    given |= {"selection": draw(st.sampled_from(["votes", "votes", "clean"]))}
    index = draw(st.integers(0, 9) | st.integers(0, 2**63 - 1))
    if kind == "classifier":
        return Call(Buckets(*buckets), image, given, index, {"sampler": draw(st.sampled_from([None, DirectSampler()]))})
    model = Remembering(*buckets, habits=draw(st.lists(st.sampled_from(HABITS), min_size=1, max_size=5)))
    independent = st.sampled_from([StandardSampler(solver=_naive(draw(st.integers(1, 3)))), DirectSampler()])
    if kind == "standard":
        return Call(model, image, given, index, {"sampler": draw(independent)})
    start = draw(st.sampled_from(["previous", "clean"]))
    chained = SerializedSampler(
        solver=_naive(draw(st.integers(1, 2))),
        warmup=_naive(draw(st.integers(1, 3))),
        restart=None if start == "clean" else draw(st.none() | st.integers(1, 5)),
        start=start,
        chains=draw(st.sampled_from([3, 20, 50, 400])),
    )
    random = draw(st.sampled_from([True, True, False]))
    given |= {"audit": draw(st.integers(given["n"] // 2, given["n"]) | st.integers(0, given["n"]))}
    given |= {"split": draw(st.just(0.5) | st.floats(0.01, 0.99)), "audit_draw": "random" if random else "first_batch"}
    given |= {"census": draw(st.sampled_from([0.0, 0.0, 0.1, 1.0]) | st.floats(0, 1)) if random else 0.0}
    return Call(model, image, given, index, {"sampler": chained, "reference": draw(independent)})


def _naive(steps: int) -> Solver:
    return Solver(method="naive", steps=steps)


def _rightly_refused(call: Call, message: str) -> bool:
    """Whether not even a unanimous vote, or a perfect audit, could have certified anything."""
    n, alpha = (call.settings[name] for name in ("n", "alpha"))
    if "n = " in message and "is too small for alpha" in message:
        return reference.clopper_pearson(n, n, alpha) <= Fraction(1, 2)
    if "has nothing to audit" in message:
        first = call.settings["n0"] if call.settings["selection"] == "votes" else 0
        return call.settings["audit_draw"] == "first_batch" and call.samplers["sampler"].warm_draws >= first + n
    audit, split, census = (call.settings[name] for name in ("audit", "split", "census"))
    rest = n - math.ceil(census * n)
    sure = n - reference.most_marked(0, min(audit, rest), rest, split * alpha)
    likely = reference.clopper_pearson(sure, n, (1 - split) * alpha) > Fraction(1, 2) + Fraction(1, 10**10)
    return message.startswith(f"audit = {audit} of n = {n} draws certify nothing") and not likely


@DRAWN
@given(st.sampled_from(["classifier", "standard"]).flatmap(_calls))
def test_certificates_and_predictions_are_the_references(call):
    found, refused = _outcome(srs.certify, call.model, call.image, index=call.index, **call.samplers, **call.settings)
    named, silent = _outcome(srs.predict, call.model, call.image, index=call.index, **call.samplers, **call.settings)
    assert refused == silent
    if refused:
        assert _rightly_refused(call, refused), refused
        return
    _agree(found, call.expected(), call)
    assert found.guarantee and str(found)
    votes = call.votes(call.standard_codes(_steps(call.samplers["sampler"])))[: found.n0 + found.n]
    assert found.n0 == (call.settings["n0"] if call.settings["selection"] == "votes" else 0)
    assert named == reference.predicted(votes, call.settings["alpha"])
    assert found.evaluations >= len(votes)


@DRAWN
@given(_calls("serialized"))
def test_serialized_certificates_are_the_references(call):
    found, refused = _outcome(srs.certify, call.model, call.image, index=call.index, **call.samplers, **call.settings)
    named, silent = _outcome(srs.predict, call.model, call.image, index=call.index, **call.samplers, **call.settings)
    if refused:
        assert _rightly_refused(call, refused), refused
        return
    _agree(found, call.expected(), call)
    assert found.guarantee == (call.settings["audit_draw"] == "random")
    assert named == found.prediction if found.guarantee else silent.startswith("predict needs a guarantee")
    assert found.evaluations >= found.n0 + found.n + found.n2 + found.census


@DRAWN
@given(st.sampled_from(["classifier", "standard"]).flatmap(_calls), st.lists(st.floats(0, 1), max_size=2), st.data())
def test_sequential_tests_are_the_references(call, more, data):
    calls = [call] + [replace(call, image=torch.full_like(call.image, first), index=i) for i, first in enumerate(more, 1)]
    indices = data.draw(st.none() | st.just([call.index for call in calls]))
    if indices is None:
        calls[0] = replace(call, index=0)
    given, p_0 = call.settings, data.draw(st.floats(0.5, 0.97))
    r = given["sigma"] * reference.normal_quantile(Fraction(p_0))
    images = [call.image for call in calls]
    found, refused = _outcome(srs.certify_at, call.model, images, r, indices=indices, **call.samplers, **given)
    if refused:
        few = f"n = {given['n']} is too small for alpha"
        most = 0.9 * reference.evidence(given["n"], given["n"], 0.5 if few in refused else p_0)
        assert "sequential test" in refused and most < (1 + 1e-8) / given["alpha"], refused
        assert few in refused or refused.startswith(f"r = {r} is out of range"), refused
        return
    gain = given["sigma"] * data.draw(st.sampled_from([0.02, 0.1, 0.5]))
    estimated = srs.certify_until(call.model, images, gain=gain, indices=indices, **call.samplers, **given)
    for call, settled, estimate in zip(calls, found, estimated, strict=True):
        steps = _steps(call.samplers["sampler"])
        votes, few = call.votes(call.standard_codes(steps)), {name: given[name] for name in ("n0", "n", "alpha", "sigma")}
        few |= {"clean": call.clean(steps) if given["selection"] == "clean" else None, "classes": call.model.classes}
        expected = reference.sequential(votes, r=r + call.moved, **few)
        assert {name: getattr(settled, name) for name in expected} == expected
        assert settled.r == r and settled.evaluations > settled.drawn
        _agree(estimate, reference.until(votes, gain=gain, **few), call, slack=1e-7)


# senseless calls

META = torch.zeros((), device="meta")
STRANGE = [
    *(None, True, False, math.nan, math.inf, -math.inf, -1, 0, 0.0, -0.0, 1, 2.5, 1e29, 1e-40, 5e-324, 1e-100, 1e-151),
    *(10**30, -(10**30), 10**400, 1 << 62, 1 << 63, 1 << 64, "0.5", "1e-3", "abc", "", b"x", bytearray(b"x")),
    *("random", "first_batch", "theorem_3_1", "released_code", "residual", "logits", "standard", SerializedSampler),
    *([], [0.5], [1, 2], (), {}, {"a": 1}, set(), range(3), object(), 1 + 2j, Decimal("0.5"), Fraction(1, 2), _naive(1)),
    *(np.float64("nan"), np.float64(0.25), np.float32(0.25), np.float16(0.25), np.int64(7), np.int8(-3), np.uint64(1 << 63)),
    *(np.bool_(True), np.array(0.3), np.array([1, 2]), np.array([]), np.str_("a"), np.datetime64("NaT"), np.ma.masked),
    *(META, torch.tensor(0.3), torch.tensor(7), torch.tensor([1.0, 2.0]), torch.tensor(math.nan), torch.tensor(True), srs, int),
]
NUMBERS = st.floats() | st.integers() | st.floats().map(np.float64) | st.integers(-(1 << 63), (1 << 63) - 1).map(np.int64)
ANYTHING = st.sampled_from(STRANGE) | NUMBERS | st.text(max_size=5) | st.binary(max_size=3) | st.fractions() | st.decimals()


def _nested() -> torch.Tensor:
    """Made when it is asked for: torch imports its compiler for that, which takes seconds."""
    return torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged)


IMAGES = {
    "without data": META,
    "sparse": torch.eye(3).to_sparse(),
    "of images": _nested,
    "a text": "picture.png",
    "an array": np.zeros((1, 2, 2), np.float32),
    "a list": [[0.5]],
    "integers": torch.zeros(3, dtype=torch.int64),
    "bytes": torch.zeros((3, 2, 2), dtype=torch.uint8),
    "truth values": torch.zeros(3, dtype=torch.bool),
    "complex": torch.zeros(3, dtype=torch.complex64),
    "empty": torch.zeros(0),
    "no column": torch.zeros(3, 8, 0),
    "NaN": torch.tensor([0.5, math.nan]),
    "infinite": torch.tensor([0.5, -math.inf]),
    "with a gradient": torch.full((3,), 0.5, requires_grad=True),
    "of a graph": torch.full((3,), 0.5, requires_grad=True) * 1,
    "a parameter": torch.nn.Parameter(torch.full((1, 2, 2), 0.5)),
    "expanded": torch.full((1,), 0.5).expand(3),
    "turned": torch.full((2, 3), 0.5).T,
    "as large as can be": torch.full((2,), 3e38),
    "of many axes": torch.full((1,) * 9, 0.5),
    "a number": torch.tensor(0.5),
}
CALLS = {
    "certify": (srs.certify, "classifier", {}),
    "predict": (srs.predict, "classifier", {}),
    "certify_at": (srs.certify_at, "classifier", {"r": 0.1}),
    "certify, serialized": (srs.certify, "serialized", {"audit": 30}),
    "predict, serialized": (srs.predict, "serialized", {"audit": 30}),
}
NAMES = ["sigma", "n", "n0", "alpha", "seed", "batch_size", "selection", "audit", "audit_draw", "estimator", "split", "census"]
NAMES += ["doubt"]
TOGETHER = {"n", "alpha", "audit", "split", "census", "r", "sigma"}  # of which one may be wrong because of another
SAID_AS = {"images": "image", "indices": "index", "output_key": "model"}


class Wrapped:
    """A classifier whose logits are in something else."""

    def __init__(self, model, wrap):
        self.model, self.wrap = model, wrap

    def __call__(self, x):
        return self.wrap(self.model(x))


WRAPS = {"plain": lambda x: x, "tuple": lambda x: (x[:, 0], x), "dict": lambda x: {"logits": x, 1: x[:1]}}


def _sensible(kind: str) -> Call:
    """A call that is answered."""
    image, given = torch.full((1, 2, 2), 0.5), {"sigma": 0.5, "n": 60, "n0": 5, "alpha": 0.05, "seed": 1, "batch_size": 50}
    given["selection"] = "votes"
    buckets = [0.0, 0.1], [2, 3, 1], 2, "tie"
    if kind == "classifier":
        return Call(Buckets(*buckets), image, given)
    sampler = SerializedSampler(solver=_naive(1), warmup=_naive(2), chains=10)
    given |= {"audit": 30, "audit_draw": "random", "split": 0.5, "census": 0.0}
    return Call(Remembering(*buckets, habits=HABITS), image, given, 0, {"sampler": sampler, "reference": DirectSampler()})


def _is_a(kind: type, value: object) -> bool:
    """Whether a setting may be that, numpy's and torch's kinds included."""
    value = value.tolist() if hasattr(value, "tolist") and value is not META else value
    whole = isinstance(value, float) and value.is_integer()
    return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and kind is float) or whole)


def _too_dear(name: str, value: object) -> bool:
    """What would be answered, after minutes."""
    if name not in ("n", "n0") or not _is_a(float, value) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim):
        return False
    return 2 * MOST < value < 10**9


@pytest.mark.parametrize("which", CALLS)
@DRAWN
@given(st.data())
def test_senseless_calls_are_refused_by_name(which, data):
    function, kind, more = CALLS[which]
    call = _sensible(kind)
    given = {"model": call.model, "image": call.image, "index": 0, "output_key": None, **call.samplers, **call.settings, **more}
    if function is srs.certify_at:
        given |= {"images": [given.pop("image")], "indices": [given.pop("index")]}
        given.pop("reference", None)
    names = [*NAMES, "model", "sampler", "unknown", *([] if function is srs.certify_at else ["reference", "index"])]
    strange = data.draw(st.dictionaries(st.sampled_from([*names, *more]), ANYTHING, max_size=2), "strange")
    image = data.draw(st.none() | st.sampled_from(sorted(IMAGES)), "image")
    if image is not None:
        odd = IMAGES[image]
        odd = odd() if callable(odd) else odd
        strange |= {"image": odd} if "image" in given else {"images": [odd]}
    if function is srs.certify_at and data.draw(st.booleans(), "indices"):
        strange["indices"] = data.draw(st.lists(ANYTHING, max_size=2) | st.sampled_from([(), "a", range(1), {0: 0}]), "of")
    wrap = data.draw(st.sampled_from(sorted(WRAPS)), "wrap") if kind == "classifier" else "plain"
    if wrap != "plain":
        given["model"], strange["output_key"] = Wrapped(call.model, WRAPS[wrap]), data.draw(ANYTHING, "output_key")
    assume(not any(_too_dear(name, value) for name, value in strange.items()))
    assume(not callable(strange.get("model")))  # whose errors would be its own
    given |= strange
    blamed = set(strange) | (TOGETHER if TOGETHER & set(strange) else set())
    blamed |= {SAID_AS[name] for name in blamed if name in SAID_AS}
    shown = given.pop("images" if function is srs.certify_at else "image")
    found, refused = _outcome(function, given.pop("model"), shown, **given)
    if refused is not None:
        assert any(re.search(rf"(?<!\w){name}(?!\w)", refused) for name in blamed), (refused, strange)
    else:
        _agree_where_known(found, call, strange)


def _agree_where_known(found, call: Call, strange: dict) -> None:
    """An answer to a call where some things were ``strange``, if the reference knows it: that was no nonsense."""
    kinds = dict.fromkeys(("sigma", "alpha", "split", "census", "r"), float)
    kinds |= dict.fromkeys(("n", "n0", "seed", "batch_size", "audit"), int)
    assert "unknown" not in strange and "model" not in strange
    assert all(_is_a(kind, strange[name]) for name, kind in kinds.items() if name in strange)
    given = {name: kinds[name](strange.get(name, value)) if name in kinds else value for name, value in call.settings.items()}
    given |= {name: str(strange[name]) for name in ("audit_draw",) if name in strange}
    image = strange.get("image", *strange.get("images", [call.image]))
    index = strange.get("index", *strange.get("indices", [0]))
    call = replace(call, image=image, index=index, settings=given)
    chained = "reference" in call.samplers
    if chained and ({"sampler", "reference"} & set(strange) or (strange.get("doubt") == "residual" and given["census"])):
        return  # 30 Anderson steps, and their residuals
    few = {name: given[name] for name in ("n0", "alpha", "sigma")}
    if isinstance(found, list):
        few |= {"n": given["n"], "r": strange.get("r", 0.1), "classes": call.model.classes}
        few |= {"clean": call.clean() if given["selection"] == "clean" else None}
        expected = reference.sequential(call.votes(call.standard_codes()), **few)
        assert [{name: getattr(one, name) for name in expected} for one in found] == [expected]
        return
    expected = call.expected()
    if isinstance(found, int):
        assert found == (
            expected["prediction"] if chained else reference.predicted(call.votes(call.standard_codes()), few["alpha"])
        )
    elif chained and strange.get("estimator", "finite_population") != "finite_population":
        assert not found.guarantee and (found.n_a, found.n1, found.n2) == tuple(expected[name] for name in ("n_a", "n1", "n2"))
    else:
        _agree(found, expected, call)


# faults that were found

FAULTS = {
    "a setting without data": lambda f, call: f(call.model, call.image, **call.settings | {"n": META}),
    "an image without data": lambda f, call: f(call.model, torch.zeros(3, device="meta"), **call.settings),
    "a sparse image": lambda f, call: f(call.model, torch.eye(3).to_sparse(), **call.settings),
    "an image of images": lambda f, call: f(call.model, _nested(), **call.settings),
    "a key past all": lambda f, call: f(call.model, call.image, output_key=1 << 63, **call.settings),
    "a radius past all": lambda f, call: str(f(_certain, call.image, **call.settings | {"sigma": 1e308})),
}
FAULTS_AT = {
    "no images": lambda f, call: f(call.model, None, 0.1, **call.settings),
    "indices that are one": lambda f, call: f(call.model, [call.image], 0.1, indices=3, **call.settings),
    "images of two shapes": lambda f, call: f(call.model, [call.image, call.image[0]], 0.1, **call.settings),
    "images of two types": lambda f, call: f(call.model, [call.image, call.image.half()], 0.1, **call.settings),
}


def _certain(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[1.0, 0.0]]).repeat(len(x), 1)


@pytest.mark.parametrize("name", [*FAULTS, *FAULTS_AT])
def test_faults_that_were_found_are_refused_by_name(name):
    call, names = _sensible("classifier"), r"(?<!\w)(n|image|images|indices|index|model|output_key|alpha|sigma)(?!\w)"
    with pytest.raises(ValueError, match=names):
        FAULTS[name](srs.certify, call) if name in FAULTS else FAULTS_AT[name](srs.certify_at, call)


# pictures

MODES = [("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")] + [("JPEG", mode) for mode in ("L", "RGB", "CMYK")]
SIZE = 8


def _file(kind: str, mode: str, width: int, height: int, turn: int) -> bytes:
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = turn
    Image.fromarray(noise).convert(mode).save(file, kind, **({"exif": exif} if turn else {}))
    return file.getvalue()


@st.composite
def _spoilt(draw, content: bytes) -> bytes:
    """A file as it is, cut, longer, with some bits turned, or another one altogether."""
    how = draw(st.sampled_from(["whole", "cut", "longer", "turned", "turned", "other"]))
    if how == "cut":
        return content[: draw(st.integers(0, len(content)))]
    if how == "longer":
        return content + draw(st.binary(max_size=20))
    if how == "other":
        return draw(st.sampled_from([b"", content[:4], content[:20], b"GIF89a", b"BM", b"II*\0", b"P6 "])) + draw(st.binary())
    turned = bytearray(content)
    for place in draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=6)) if how == "turned" else ():
        turned[place // 8] ^= 1 << place % 8
    return bytes(turned)


@DRAWN
@given(st.sampled_from(MODES), st.integers(1, 40) | st.just(SIZE), st.integers(1, 40), st.integers(0, 9), st.data())
def test_a_file_is_a_picture_or_refused_by_name(mode, width, height, turn, data):
    whole, channels = _file(*mode, width, height if width != SIZE else SIZE, turn), data.draw(st.sampled_from([1, 3]))
    content = data.draw(_spoilt(whole))
    found, refused = _outcome(pictures.decode, content, "PICTURE = 'it'", channels, SIZE, SIZE)
    if refused is not None:
        assert content != whole and refused.startswith("PICTURE = 'it' ") and len(refused) < 1_000
        return
    assert found.shape == (channels, SIZE, SIZE) and found.dtype == np.uint8
    if content == whole and width == SIZE and turn < 2 and mode[1] in ("1", "L", "RGB", "P", "CMYK"):
        with Image.open(io.BytesIO(whole)) as file:
            pixels = np.asarray(file.convert("RGB" if channels == 3 else "L"))
        assert np.array_equal(found, np.atleast_3d(pixels).transpose(2, 0, 1))


# params.yaml

PROFILE = yaml.safe_load((Path(__file__).parent.parent / "profiles" / "smoke.yaml").read_text())
SCALARS = [
    *(
        None,
        True,
        0,
        1,
        -1,
        2**63,
        10**400,
        0.5,
        -0.0,
        1e-320,
        1e308,
        math.nan,
        math.inf,
        "",
        " ",
        "abc",
        "1e-3",
        "no",
        "../up",
    ),
    *("${name}", "a.b", "ä", "\x85", b"x", datetime.date(2020, 1, 1), "MDEQ-30A", "small-050", "digits", "mdeq-small", [], {}),
]
VALUES = st.recursive(
    st.sampled_from(SCALARS) | st.floats() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=4,
)


def _paths(node: object, path: tuple = ()) -> list[tuple]:
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path] * bool(path) + [found for name, part in parts for found in _paths(part, (*path, name))]


PATHS = _paths(PROFILE)


@DRAWN
@given(st.data())
def test_an_edited_profile_is_checked_or_refused_by_name(tmp_path_factory, data):
    """A value somewhere is replaced, taken away, given another name, or doubled under a new one."""
    values, path = copy.deepcopy(PROFILE), data.draw(st.sampled_from(PATHS), "where")
    *above, name = path
    parent = functools.reduce(lambda node, part: node[part], above, values)
    how = data.draw(st.sampled_from(["replaced", "taken away", "renamed", "doubled"]), "how")
    new = data.draw(VALUES, "value")
    if how == "replaced":
        parent[name] = new
    elif how == "taken away" or isinstance(parent, list):
        del parent[name]
    else:
        given = data.draw(st.text(min_size=1, max_size=4) | st.integers() | st.sampled_from(list(parent)), "name")
        parent[given] = parent[name]
        if how == "renamed" and given != name:
            del parent[name]
        path = (*path, given)
    file = tmp_path_factory.getbasetemp() / "params.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            assert isinstance(params.load(file), params.Study)
        except params_file.ParameterError as error:
            named = [*map(str, path), *(f"{section}." for section in PROFILE)]
            assert any(name in str(error).removeprefix(str(file)) for name in named), error
    assert not told, [str(warning.message) for warning in told]
