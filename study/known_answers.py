"""Known answers: DEQs whose smoothed classifier is known exactly, and chains as bad as the theory allows; and a classifier
that reads what floating-point addition betrays.

Every case has two classes; class 0 is the smoothed classifier's at ``image``, its probability Phi(true_radius / sigma). Where
that is one half no class is, and whatever is certified is false.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from srs.deq.solvers import Solver
from srs.votes.noise import FARTHEST, NoisyCopies, fineness
from srs.votes.samplers import SerializedSampler, StandardSampler


class LinearDEQ(torch.nn.Module):
    """z = A z + B x, ||A|| < 1 (``isotropic``: A = contraction I), logits (w . z + c, 0): z* = (I - A)^-1 B x.

    The smoothed classifier is the half-space of the base classifier itself: its class at x holds up to distance
    |margin(x)| / ||gradient|| exactly, and P(vote for class 0) = Phi(margin / (sigma ||gradient||)).
    """

    def __init__(self, size: int = 6, contraction: float = 0.5, offset: float = 0.0, seed: int = 0, isotropic: bool = False):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        a = torch.randn(size, size, generator=generator)
        self.a = contraction * (torch.eye(size) if isotropic else a / torch.linalg.matrix_norm(a, 2))
        self.b = torch.randn(size, size, generator=generator)
        self.w = torch.randn(size, generator=generator)
        self.offset = offset

    def inject(self, x: Tensor) -> Tensor:
        return x @ self.b.T

    def initial_state(self, injection: Tensor) -> Tensor:
        return torch.zeros_like(injection)

    def f(self, z: Tensor, injection: Tensor) -> Tensor:
        return z @ self.a.T + injection

    def head(self, z: Tensor) -> Tensor:
        return torch.stack([z @ self.w + self.offset, torch.zeros(len(z))], dim=1)

    def fixed_point(self, x: Tensor) -> Tensor:
        return torch.linalg.solve(torch.eye(len(self.a)) - self.a, (x @ self.b.T).T).T

    def gradient(self) -> Tensor:
        return torch.linalg.solve((torch.eye(len(self.a)) - self.a).T, self.w) @ self.b

    def true_radius(self, x: Tensor) -> float:
        """Signed distance of x to the decision boundary: positive on class 0's side."""
        return float((x @ self.gradient() + self.offset) / self.gradient().norm())

    def at_true_radius(self, r: float) -> Tensor:
        """A point whose distance to the decision boundary is r, on class 0's side."""
        x, gradient = torch.zeros(len(self.a)), self.gradient()
        return x + (r - self.true_radius(x)) * gradient / gradient.norm()


class BoundedDEQ(LinearDEQ):
    """A linear DEQ that bounds its distance from the fixed point, by ||f(z) - z*|| <= c / (1 - c) ||f(z) - z|| with the
    contraction c: settled votes are the fixed point's (docs/certificates.md). Of that bound it takes a ``share``: less than 1
    proves what is false."""

    def __init__(self, share: float = 1.0):
        super().__init__(contraction=0.8, offset=10.0, isotropic=True)
        self.bound = 1.001 * share * 0.8 / (1 - 0.8)  # a thousandth for the rounding of f, here far less

    def proved_margin(self, v: Tensor, fv: Tensor, injection: Tensor, eps: float) -> Tensor:
        logits = self.head(fv)[:, 0]
        return logits.abs() - self.w.norm() * self.bound * (fv - v).norm(dim=1) - 1e3 * eps


class AmortizedDEQ(LinearDEQ):
    """A linear DEQ, solved by ``steps`` naive steps from a start W u that is linear in the injection u: a half-space, too.

    W is the ridge regression of z* on u = B x for x ~ N(0, I); z_k = z* + A^k (W u - z*) after k steps. The gradient and the
    radii are those of this deployed classifier. The fixed point's are a LinearDEQ's: an underfitted start makes them differ.
    """

    def __init__(self, steps: int, ridge: float = 100.0):
        super().__init__(contraction=0.8, offset=10.0, isotropic=True)
        eye, spread = torch.eye(len(self.a)), self.b @ self.b.T
        fixed = torch.linalg.inv(eye - self.a)
        start = fixed @ spread @ torch.linalg.inv(spread + ridge * eye)
        self.starts = {"learned": lambda injection: injection @ start.T}
        self.reached = fixed + torch.linalg.matrix_power(self.a, steps) @ (start - fixed)

    def gradient(self) -> Tensor:
        return self.w @ self.reached @ self.b


class BasinsDEQ(torch.nn.Module):
    """z = (z + sign(width z + x)) / 2 for one pixel x: a contraction towards +1 or -1, whichever basin z lies in.

    From z = 0 the answer is sign(x) after any number of steps. A start in the wrong basin keeps its answer as long as
    |x| < width: hysteresis.
    """

    def __init__(self, width: float):
        super().__init__()
        self.width = width

    def inject(self, x: Tensor) -> Tensor:
        return x

    def initial_state(self, injection: Tensor) -> Tensor:
        return torch.zeros_like(injection)

    def f(self, z: Tensor, injection: Tensor) -> Tensor:
        return (z + torch.sign(self.width * z + injection)) / 2

    def head(self, z: Tensor) -> Tensor:
        return torch.cat([z, -z], dim=1)


class RememberingDEQ(torch.nn.Module):
    """A layer with a memory: state (answer, turn), for one pixel x.

    From the standard start (0, 0) one step answers sign(x). From any other state ``rule(answer, turn, x)`` answers:
    a solver that makes of its start whatever it likes.
    """

    def __init__(self, rule: Callable[[Tensor, Tensor, Tensor], Tensor]):
        super().__init__()
        self.rule = rule

    def inject(self, x: Tensor) -> Tensor:
        return x

    def initial_state(self, injection: Tensor) -> Tensor:
        return torch.zeros(len(injection), 2)

    def f(self, z: Tensor, injection: Tensor) -> Tensor:
        answer, turn, x = z[:, 0], z[:, 1], injection[:, 0]
        answer = torch.where(answer == 0, torch.sign(x), self.rule(answer, turn, x))
        return torch.stack([answer, turn + 1], dim=1)

    def head(self, z: Tensor) -> Tensor:
        return torch.stack([z[:, 0], -z[:, 0]], dim=1)


class LowBits(torch.nn.Module):
    """Class 1 where all pixels are multiples of 2^-25, whatever their values. Sums of 0.5 and noise in single precision always
    are; numbers below 0.25 that do not come from such a sum are so by chance alone."""

    def forward(self, x: Tensor) -> Tensor:
        whole = ((x.double() * 2**25).frac() == 0).flatten(1).all(dim=1, keepdim=True)
        return torch.cat([~whole, whole], dim=1).float()


def low_bits(sigma: float) -> tuple[Tensor, float]:
    """An image whose pixels are 0.5, as many of them as it takes for :class:`LowBits` to answer 0 on it with probability 0.6
    under noise on the grid; and that probability, summed over the points of the grid."""
    one, deviation = NoisyCopies(torch.tensor([0.5]), 0, sigma, 0), sigma * fineness(sigma)
    noise = np.arange(-int(FARTHEST * deviation), int(FARTHEST * deviation) + 1)
    whole = LowBits()(one.add(noise.astype(np.float32))).argmax(dim=1).numpy()
    mass = stats.norm.cdf((noise + 0.5) / deviation) - stats.norm.cdf((noise - 0.5) / deviation)
    chance = float(mass @ whole)  # of a pixel
    pixels = math.ceil(math.log(0.4) / math.log(chance))
    return one.image.expand(pixels), 1 - chance**pixels


class FloatCopies(NoisyCopies):
    """Noisy copies as they are usually made: x + e in single precision. A draw's noise depends on which are drawn with it."""

    def noise(self, draws: np.ndarray) -> Tensor:
        words = np.random.SeedSequence([self.seed, self.index, int(draws[0])]).generate_state(1, np.uint64)
        generator = torch.Generator(self.image.device).manual_seed(int(words[0]))
        return self.sigma * torch.randn(len(draws), self.image.numel(), generator=generator, device=self.image.device)

    def add(self, noise: Tensor) -> Tensor:
        return self.image + noise.view(-1, *self.image.shape)


@dataclass(frozen=True)
class Case:
    """A DEQ, a point, how it is solved in chains and by the standard solver, and the true certified radius there."""

    title: str
    model: torch.nn.Module
    image: Tensor
    serialized: SerializedSampler
    reference: StandardSampler
    true_radius: float


def known_answers(n: int, chains: int) -> dict[str, Case]:
    """The cases, by name, for ``n`` draws in ``chains`` chains."""
    turns = n // chains
    one_step = {"solver": Solver(method="naive", steps=1), "warmup": Solver(method="naive", steps=1), "chains": chains}
    once = StandardSampler(solver=Solver(method="naive", steps=1))

    def linear(title: str, isotropic: bool, r: float = 0.3) -> Case:
        deq = LinearDEQ(isotropic=isotropic).eval()
        reference = StandardSampler(solver=Solver(method="naive", steps=25))
        return Case(title, deq, deq.at_true_radius(r), SerializedSampler(**one_step), reference, r)

    def remembering(title: str, r: float, rule: Callable) -> Case:
        return Case(title, RememberingDEQ(rule).eval(), torch.tensor([r]), SerializedSampler(**one_step), once, r)

    def amortized(title: str, steps: int) -> Case:
        deq, r = AmortizedDEQ(steps).eval(), 0.4
        deployed = StandardSampler(solver=Solver(method="naive", steps=steps), start="learned")
        return Case(title, deq, deq.at_true_radius(r), SerializedSampler(**one_step), deployed, r)

    return {
        "linear": linear("linear, one step a vote: its memory favours the likelier class", isotropic=True),
        "rotating": linear("linear, one step a vote: its memory turns", isotropic=False),
        "basins": Case(
            "two basins",
            BasinsDEQ(0.4).eval(),
            torch.tensor([0.4]),
            SerializedSampler(**one_step | {"solver": Solver(method="naive", steps=3)}),
            StandardSampler(solver=Solver(method="naive", steps=3)),
            0.4,
        ),
        "stuck": remembering("repeats its first answer", 0.6, lambda answer, turn, x: answer),
        "drifting": remembering("drifts to one class", 0.2, lambda answer, turn, x: torch.sign(x + turn / turns)),
        "late": remembering(
            "wrong late in the chain", 0.4, lambda answer, turn, x: torch.where(turn < 0.6 * turns, torch.sign(x), 1.0)
        ),
        "amortized": amortized("linear, deployed with a learned start and two steps", steps=2),
        "even": linear("linear, both classes equally likely", isotropic=False, r=0.0),
    }
