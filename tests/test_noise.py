import numpy as np
import pytest
import torch
from scipy import stats

from srs.noise import BLOCK, NoisyCopies, standard_normal


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
