import threading

import numpy as np
import pytest
import torch
from scipy import stats

from srs.votes import noise
from srs.votes.noise import BLOCK, NoisyCopies, gather, standard_normal


def test_a_draw_is_a_function_of_seed_index_and_number_alone():
    together = standard_normal(3, 17, np.arange(0, 350), 5)
    for j in (0, 1, BLOCK - 1, BLOCK, 349):
        assert np.array_equal(standard_normal(3, 17, np.array([j]), 5)[0], together[j])
    order = np.random.default_rng(0).permutation(350)
    assert np.array_equal(standard_normal(3, 17, order, 5), together[order])


def test_other_seeds_images_and_draws_are_other_noise():
    base = standard_normal(0, 0, np.arange(2), 4)
    others = [
        standard_normal(1, 0, np.arange(2), 4),
        standard_normal(0, 1, np.arange(2), 4),
        standard_normal(0, 0, np.arange(2) + BLOCK, 4),
    ]
    values = np.concatenate([base.ravel(), *(o.ravel() for o in others)])
    assert len(np.unique(values)) == len(values)


def test_large_seeds_are_told_apart():
    seeds = [2**63, 2**63 + 1, 2**64 - 1, 5]
    assert len({standard_normal(seed, 1, np.array([0]), 4).tobytes() for seed in seeds}) == len(seeds)


def test_noise_is_standard_normal_and_uncorrelated():
    noise = standard_normal(5, 2, np.arange(20_000), 4)
    for column in noise.T:
        assert stats.kstest(column, "norm").pvalue > 1e-4
    assert np.abs(np.corrcoef(noise.T) - np.eye(4)).max() < 0.05
    assert abs(np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]) < 0.05


def test_golden_values_do_not_drift_with_library_versions():
    assert standard_normal(1, 2, np.array([3]), 2)[0] == pytest.approx((-0.6516898274421692, -2.715332269668579), abs=1e-6)


def test_noisy_copies_are_in_pixel_units_and_not_clipped():
    image = torch.full((1, 2, 2), 0.9)
    copies = NoisyCopies(image, 4, 0.5, 7)(np.arange(100))
    assert copies.shape == (100, 1, 2, 2)
    expected = 0.9 + 0.5 * standard_normal(7, 4, np.arange(100), 4)
    assert torch.allclose(copies.flatten(1), torch.from_numpy(expected))
    assert copies.max() > 1 and copies.min() < 0


def test_gathered_copies_are_those_of_each_image_part_by_part():
    copies = [NoisyCopies(torch.rand(1, 2, 2), index, 0.5, 7) for index in (4, 9)]
    parts = [(np.array([0, 0, 1]), np.array([5, 2, 2])), (np.array([1]), np.array([0]))]
    first, second = gather(copies, parts)
    assert torch.equal(first, torch.cat([copies[0](np.array([5, 2])), copies[1](np.array([2]))]))
    assert torch.equal(second, copies[1](np.array([0])))
    assert list(gather(copies, [])) == []


def test_much_noise_is_drawn_by_several_threads_and_stays_the_same(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    drawn, together, shares = noise.standard_normal, threading.Barrier(3, timeout=60), []

    def draw(*arguments):
        together.wait()  # fails unless three draw at once
        shares.append(arguments[2].tolist())
        return drawn(*arguments)

    monkeypatch.setattr(noise, "standard_normal", draw)
    copies, draws = NoisyCopies(torch.rand(3, 32, 32), 4, 0.5, 7), np.arange(300)
    (found,) = gather([copies], [(np.zeros(300, dtype=int), draws)])
    assert torch.equal(found, copies.add(drawn(7, 4, draws, 3 * 32 * 32)))
    assert sorted(shares) == draws.reshape(3, BLOCK).tolist()  # whole blocks: none is drawn twice


def test_noise_is_drawn_while_the_caller_works(monkeypatch):
    drawn, ready = [], threading.Event()

    def draw(seed, index, draws, size):
        drawn.append((int(draws[0]), threading.current_thread() is threading.main_thread()))
        if len(drawn) == 2:
            ready.set()
        return np.zeros((len(draws), size), dtype=np.float32)

    monkeypatch.setattr(noise, "standard_normal", draw)
    parts = gather([NoisyCopies(torch.zeros(1, 1, 1), 0, 0.5, 0)], [(np.array([0]), np.array([j])) for j in range(3)])
    next(parts)
    assert ready.wait(timeout=60), "the second part was not drawn before it was asked for"
    assert drawn == [(0, False), (1, False)]  # no more than one part ahead: memory
    assert len(list(parts)) == 2 and len(drawn) == 3
