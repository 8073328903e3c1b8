"""The noise: draw j of image i is a function of (seed, i, j) alone, on every machine and in any order."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 100  # draws that share one counter of the generator
_WORTH_A_THREAD = 1 << 17  # numbers: a millisecond's work
_AUDIT = 0x6175646974  # keeps the audit's random stream apart from every other


def standard_normal(seed: int, index: int, draws: np.ndarray, size: int) -> np.ndarray:
    """Standard normal vectors (len(draws), size), float32: row r is draw ``draws[r]`` of image ``index``.

    Philox (Salmon et al. 2011) keyed by (seed, index); each block of 100 draws has a counter range of its own.
    """
    draws = np.asarray(draws, dtype=np.int64)
    key = np.array([seed, index], dtype=np.uint64)  # a plain list would pass through float64 for seeds from 2^63 on
    out = np.empty((len(draws), size), dtype=np.float32)
    blocks = draws // BLOCK
    for block in np.unique(blocks):
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, block]))
        rows = np.flatnonzero(blocks == block)
        offsets = draws[rows] % BLOCK
        out[rows] = generator.standard_normal((offsets.max() + 1, size), dtype=np.float32)[offsets]
    return out


def audit_order(draw: str, seed: int, index: int, n0: int, n: int, warm_draws: int = 0) -> np.ndarray:
    """The draws n0 ... n0 + n - 1 in the order in which an audit takes them: "random", from a stream apart from the noise's, or
    "first_batch", one after the other from the end of a warm-up of ``warm_draws`` on."""
    if draw == "first_batch":
        return np.arange(max(n0, warm_draws), n0 + n)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_AUDIT, index))).permutation(n) + n0


@dataclass(frozen=True)
class NoisyCopies:
    """The noisy copies x + sigma e_j of one image (C, H, W), pixels in [0, 1]; copies are not clipped."""

    image: Tensor
    index: int
    sigma: float
    seed: int

    def __call__(self, draws: np.ndarray) -> Tensor:
        """Copies number ``draws``: (len(draws), C, H, W) on the image's device."""
        return self.add(self.noise(draws))

    def noise(self, draws: np.ndarray) -> np.ndarray:
        """The :func:`standard_normal` vectors e_j of ``draws``: (len(draws), C H W), made by the host."""
        return standard_normal(self.seed, self.index, draws, self.image.numel())

    def add(self, noise: np.ndarray) -> Tensor:
        """The copies whose :meth:`noise` was drawn: (rows, C, H, W) on the image's device, in its type. Types of half precision
        are rounded to after the sum: rounding is then a part of the classifier, not of the noise."""
        image = self.image if self.image.element_size() >= 4 else self.image.float()
        noise = torch.from_numpy(noise).view(-1, *image.shape)
        return (image + self.sigma * noise.to(image.device, image.dtype)).to(self.image.dtype)


def gather(copies: Sequence[NoisyCopies], parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Iterator[Tensor]:
    """For each part (which, draws): copies number ``draws`` of the images number ``which`` (ascending), (len(draws), C, H, W).
    Threads, as many as torch's where that pays, draw the next part's noise while the caller works on the last one's."""
    threads = torch.get_num_threads()

    def submit(which: np.ndarray, draws: np.ndarray) -> list[tuple[NoisyCopies, Future]]:
        """Have threads draw a part's noise: its pieces in order, each for one image."""
        pieces = []
        for one, mine in [(copies[i], draws[which == i]) for i in np.unique(which)]:
            count = min(threads, -(-len(mine) * one.image.numel() // _WORTH_A_THREAD))
            blocks = np.flatnonzero(np.diff(mine // BLOCK, prepend=-1))  # a block cut in two would be drawn twice
            cuts = [part[0] for part in np.array_split(blocks, count)[1:] if len(part)]
            pieces += [(one, pool.submit(one.noise, some)) for some in np.split(mine, cuts)]
        return pieces

    with ThreadPoolExecutor(threads) as pool:
        pieces = submit(*parts[0]) if parts else []
        for number in range(len(parts)):
            drawn = [(one, noise.result()) for one, noise in pieces]
            if number + 1 < len(parts):  # one part ahead, and no more: memory
                pieces = submit(*parts[number + 1])
            yield torch.cat([one.add(noise) for one, noise in drawn])
