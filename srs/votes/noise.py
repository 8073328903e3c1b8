"""The noise: draw j of image i is a function of (seed, i, j) alone, on every machine and device and in any order.

Floating-point addition is not the theorem's: the last bits of x + e tell what x was, and a classifier that looks there is
certified falsely (Jin et al. 2022; Voracek and Hein 2023). So pixels are whole numbers of a small unit, and so is the noise:
N(0, sigma^2), rounded to the unit, drawn as whole numbers from a table. Rounding commutes with adding whole numbers, so the
votes are those of "the model after rounding", a classifier on all of R^d, under exact Gaussian noise: docs/certificates.md.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FINEST = 255 * 64  # points of the grid in a pixel's range: those of 8 bits and of sixteenths are among them
FARTHEST = 8  # sigma: rounded noise is cut there
TOTAL_VARIATION = 2e-14  # of a number's noise, at most, from the rounded Gaussian: docs/certificates.md
LARGEST = 2.0**40  # of a pixel, in units

_CHUNK = 1 << 14  # numbers whose working memory stays in a cache
_WORTH_A_THREAD = 1 << 17  # numbers: a millisecond's work
_AUDIT = 0x6175646974  # keeps the audit's random stream apart from every other
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157  # of Philox4x64 (Salmon et al. 2011)
_WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B


def fineness(sigma: float) -> float:
    """Points of the grid in a pixel's unit: FINEST up to sigma = 1, then half of it for each doubling, so that the table of
    :func:`rounded_gaussian` stays small."""
    mantissa, exponent = math.frexp(sigma)  # sigma = mantissa 2^exponent, 1/2 <= mantissa < 1
    return math.ldexp(FINEST, -max(0, exponent - (mantissa == 0.5)))


class Table(NamedTuple):
    """Walker's alias method: a word's first ``bits`` bits pick a cell; it stands for itself where the word's other bits are
    below the first part of the cell's entry, and for the cell in its last ``bits`` bits otherwise. Cell ``zero`` is 0."""

    entries: np.ndarray
    bits: int
    zero: int


@lru_cache(16)
def rounded_gaussian(deviation: float) -> Table:
    """The table of floor(deviation * e + 1/2), e ~ N(0, 1) cut at FARTHEST.

    Made of additions, multiplications, divisions and square roots alone, which all machines round alike, and of whole numbers.
    """
    upper = np.rint(_masses(deviation) * 2.0**64)  # of 0, 1, 2, ...
    masses = [int(mass) for mass in np.concatenate([upper[:0:-1], upper])]
    zero, bits = len(upper) - 1, max(1, (len(masses) - 1).bit_length())
    masses[zero] += (1 << 64) - sum(masses)
    return Table(_alias(masses + [0] * ((1 << bits) - len(masses)), bits), bits, zero)


def _masses(deviation: float) -> np.ndarray:
    """P(floor(deviation * e + 1/2) = n) for n = 0, 1, ...: the density, integrated by Gauss and Legendre's rule of three
    points on parts of at most 1/256 deviation."""
    cells = np.arange(math.floor(FARTHEST * deviation + 0.5) + 1.0)
    if len(cells) == 1:
        return np.ones(1)
    parts = math.ceil(256 / deviation)
    found, half, off = np.zeros(len(cells)), 0.5 / parts, math.sqrt(0.6)
    for part in range(parts):
        middle = cells - 0.5 + (2 * part + 1) * half
        for node, weight in ((-off, 5 / 9), (0.0, 8 / 9), (off, 5 / 9)):
            z = (middle + node * half) / deviation
            found += weight * half * _exp_minus(z * z / 2)
    return found / (deviation * math.sqrt(2 * math.pi))


def _exp_minus(y: np.ndarray) -> np.ndarray:
    """exp(-y), y >= 0, by its series, without a library's own exp, which differs in its last bits from machine to machine."""
    halvings = np.floor(y / 0.6931471805599453 + 0.5)
    rest = halvings * 0.6931471803691238 - y + halvings * 1.9082149292705877e-10  # log 2 in two parts
    series = np.ones_like(y)
    for k in range(16, 0, -1):
        series = 1 + series * rest / k
    return np.ldexp(series, -halvings.astype(np.int64))


def _alias(masses: list[int], bits: int) -> np.ndarray:
    """The entries of a table: ``masses`` of its 2^bits cells, 2^64 in all (Vose 1991)."""
    whole = 1 << (64 - bits)  # a cell's share of all words
    below, alias = [whole - 1] * len(masses), list(range(len(masses)))
    small = [cell for cell, mass in enumerate(masses) if mass < whole]
    large = [cell for cell, mass in enumerate(masses) if mass >= whole]
    while small and large:
        cell, donor = small.pop(), large[-1]
        below[cell], alias[cell] = masses[cell], donor
        masses[donor] -= whole - masses[cell]
        if masses[donor] < whole:
            small.append(large.pop())
    return (np.array(below, np.uint64) << np.uint64(bits)) | np.array(alias, np.uint64)


def rounded_noise(seed: int, index: int, draws: np.ndarray, size: int, sigma: float) -> np.ndarray:
    """Noise in units of the grid, whole numbers (len(draws), size), float32: row r is draw ``draws[r]`` of image ``index``.

    Philox keyed by (seed, index); draw j takes the words from counter j ceil(size / 4) on. Made by the host.
    """
    draws, blocks = np.asarray(draws, dtype=np.int64), -(-size // 4)
    key = np.array([seed, index], dtype=np.uint64)  # a plain list would pass through float64 for seeds from 2^63 on
    table, out = rounded_gaussian(sigma * fineness(sigma)), np.empty((len(draws), size), dtype=np.float32)
    for run in np.split(np.arange(len(draws)), np.flatnonzero(np.diff(draws) != 1) + 1):
        if len(run):
            generator = np.random.Philox(key=key, counter=int(draws[run[0]]) * blocks)
            words = generator.random_raw(len(run) * 4 * blocks)
            for first in range(0, len(words), _CHUNK):
                words[first : first + _CHUNK] = _looked_up(words[first : first + _CHUNK], *table).view(np.uint64)
            out[run] = words.view(np.int64).reshape(len(run), -1)[:, :size]
    return out


def _looked_up(words: np.ndarray, entries: np.ndarray, bits: int, zero: int) -> np.ndarray:
    rest = np.uint64(64 - bits)
    cells = words >> rest
    found = entries[cells]
    own = (words & np.uint64((1 << (64 - bits)) - 1)) < (found >> np.uint64(bits))
    return np.where(own, cells, found & np.uint64((1 << bits) - 1)).view(np.int64) - zero


def rounded_noise_on(device: torch.device, seed: int, index: int, draws: np.ndarray, size: int, sigma: float) -> Tensor:
    """:func:`rounded_noise`, the same numbers, made by a device."""
    blocks, table = -(-size // 4), rounded_gaussian(sigma * fineness(sigma))
    first = torch.from_numpy(np.asarray(draws, dtype=np.int64) * blocks + 1).to(device)  # numpy's generator counts first
    counters = (first[:, None] + torch.arange(blocks, device=device)).flatten()
    words = torch.stack(_philox(counters, (seed, index)), dim=1).view(len(draws), -1)[:, :size]
    bits, lowest = table.bits, (1 << table.bits) - 1
    cells = (words >> (64 - bits)) & lowest  # a signed shift brings ones
    found = _entries_on(device, sigma * fineness(sigma))[cells]
    mask = (1 << (64 - bits)) - 1
    own = (words & mask) < ((found >> bits) & mask)
    return (torch.where(own, cells, found & lowest) - table.zero).float()


@lru_cache(4)
def _entries_on(device: torch.device, deviation: float) -> Tensor:
    return torch.from_numpy(rounded_gaussian(deviation).entries.view(np.int64)).to(device)


def _philox(counters: Tensor, key: tuple[int, int]) -> list[Tensor]:
    """Philox4x64, ten rounds: four words (n,) of each of the ``counters`` (n,) under 2^63, unsigned ones as int64."""
    c0, c1, c2, c3 = counters, *(torch.zeros_like(counters) for _ in range(3))
    for turn in range(10):
        k0, k1 = (_signed(k + turn * step) for k, step in zip(key, _WEYL))
        high, low = _product(c0, _MULTIPLIERS[0])
        high2, low2 = _product(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high ^ c3 ^ k1, low
    return [c0, c1, c2, c3]


def _product(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The upper and lower 64 bits of a unsigned product."""
    mask, (m1, m0) = 0xFFFFFFFF, divmod(m, 1 << 32)
    a1, a0 = (a >> 32) & mask, a & mask
    middle = a1 * m0 + ((a0 * m0 >> 32) & mask)
    other = a0 * m1 + (middle & mask)
    return a1 * m1 + ((middle >> 32) & mask) + ((other >> 32) & mask), a * _signed(m)


def _signed(word: int) -> int:
    """The int64 with the same 64 bits."""
    return (int(word) + (1 << 63)) % (1 << 64) - (1 << 63)


def audit_order(draw: str, seed: int, index: int, n0: int, n: int, warm_draws: int = 0) -> np.ndarray:
    """The draws n0 ... n0 + n - 1 in the order in which an audit takes them: "random", from a stream apart from the noise's, or
    "first_batch", one after the other from the end of a warm-up of ``warm_draws`` on. Raises ValueError for another name."""
    if draw == "first_batch":
        return np.arange(max(n0, warm_draws), n0 + n)
    if draw != "random":
        raise ValueError(f"audit_draw = {draw!r} is unknown: choose random or first_batch")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_AUDIT, index))).permutation(n) + n0


@dataclass(frozen=True)
class NoisyCopies:
    """The noisy copies x + e_j of one image (C, H, W), e_j ~ N(0, sigma^2) in pixel units, on the grid of
    :func:`fineness` (sigma) points a unit; copies are not clipped.

    An image between the points of the grid is moved to the nearest one, by ``moved`` (l2, rounded up)."""

    image: Tensor
    index: int
    sigma: float
    seed: int

    @cached_property
    def points(self) -> Tensor:
        """The image in units of the grid, whole numbers, in double precision."""
        return (self.image.double() * fineness(self.sigma) + 0.5).floor()

    @cached_property
    def moved(self) -> float:
        """How far the image lies from the grid's nearest point: l2, in pixel units, rounded up."""
        exact, nearest = self.image.double(), self.points / fineness(self.sigma)
        if self.image.element_size() >= 4 and ((exact == nearest) | (exact == nearest.float().double())).all():
            return 0.0  # single precision's name of a point is the point
        return float((exact - nearest).norm()) * (1 + 1e-9)

    def __call__(self, draws: np.ndarray) -> Tensor:
        """Copies number ``draws``: (len(draws), C, H, W) on the image's device."""
        return self.add(self.noise(draws))

    def noise(self, draws: np.ndarray) -> np.ndarray | Tensor:
        """The noise of ``draws`` in units of the grid, (len(draws), C H W): by the host for an image that is there."""
        given = self.seed, self.index, draws, self.image.numel(), self.sigma
        return rounded_noise(*given) if self.image.is_cpu else rounded_noise_on(self.image.device, *given)

    def add(self, noise: np.ndarray | Tensor) -> Tensor:
        """The copies whose :meth:`noise` was drawn: (rows, C, H, W) on the image's device, in its type: one fixed map from the
        grid to floats, whose rounding is a part of the classifier."""
        noise = torch.as_tensor(noise).view(-1, *self.image.shape)
        total = (self._narrow + noise) if self._narrow is not None else self.points + noise
        kind = torch.promote_types(self.image.dtype, torch.float32)
        return (total.to(kind) * (1 / fineness(self.sigma))).to(self.image.dtype)

    @cached_property
    def _narrow(self) -> Tensor | None:
        """The points in single precision, where sums with noise are whole numbers that it has."""
        reach = float(self.points.abs().max()) + FARTHEST * self.sigma * fineness(self.sigma) + 1
        return self.points.float() if reach < 1 << 24 and self.image.dtype != torch.float64 else None


def gather(copies: Sequence[NoisyCopies], parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Iterator[Tensor]:
    """For each part (which, draws): copies number ``draws`` of the images number ``which`` (ascending), (len(draws), C, H, W).
    The host's threads, as many as torch's where that pays, draw the next part's noise while the caller works on the last one's;
    a device draws its own when it is asked."""
    threads = torch.get_num_threads()

    def submit(which: np.ndarray, draws: np.ndarray) -> list[tuple[NoisyCopies, Future]]:
        """Have threads draw a part's noise: its pieces in order, each for one image."""
        pieces = []
        for one, mine in [(copies[i], draws[which == i]) for i in np.unique(which)]:
            count = min(threads, -(-len(mine) * one.image.numel() // _WORTH_A_THREAD)) if one.image.is_cpu else 1
            pieces += [(one, pool.submit(one.noise, some)) for some in np.array_split(mine, count)]
        return pieces

    with ThreadPoolExecutor(threads) as pool:
        pieces = submit(*parts[0]) if parts else []
        for number in range(len(parts)):
            drawn = [(one, noise.result()) for one, noise in pieces]
            if number + 1 < len(parts):  # one part ahead, and no more: memory
                pieces = submit(*parts[number + 1])
            yield torch.cat([one.add(noise) for one, noise in drawn])
