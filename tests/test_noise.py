import threading

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

import srs
from srs.data.datasets import Part
from srs.votes import noise
from srs.votes.noise import (
    FINEST,
    NoisyCopies,
    audit_order,
    fineness,
    gather,
    rounded_gaussian,
    rounded_noise,
    rounded_noise_on,
)
from study.known_answers import LowBits

SIGMAS = [0.12, 0.5, 1.0, 3.0, 1e-3, 1e-9, 1e30]


def test_a_draw_is_a_function_of_seed_index_and_number_alone():
    together = rounded_noise(3, 17, np.arange(350), 5, 0.5)
    for j in (0, 1, 99, 349):
        assert np.array_equal(rounded_noise(3, 17, np.array([j]), 5, 0.5)[0], together[j])
    order = np.random.default_rng(0).permutation(350)
    assert np.array_equal(rounded_noise(3, 17, order, 5, 0.5), together[order])


def test_other_seeds_images_and_draws_are_other_noise():
    seeds = [0, 1, 2**63, 2**63 + 1, 2**64 - 1]
    drawn = [rounded_noise(seed, 1, np.array([0]), 4, 1.0) for seed in seeds]
    drawn += [rounded_noise(0, 2, np.array([0]), 4, 1.0), rounded_noise(0, 1, np.array([1, 10**8]), 4, 1.0)]
    assert len({row.tobytes() for one in drawn for row in one}) == 8


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_device_draws_the_hosts_numbers(sigma):
    draws = np.array([0, 1, 2, 7, 5, 10**8])
    for seed, index, size in ((2**64 - 1, 2**63 - 1, 10), (0, 3, 4)):
        given = seed, index, draws, size, sigma
        assert np.array_equal(rounded_noise_on(torch.device("cpu"), *given).numpy(), rounded_noise(*given))


def _mass(n: int, deviation: float) -> mpmath.mpf:
    upper, lower = ((n + mpmath.mpf(side) / 2) / deviation for side in (1, -1))
    return mpmath.ncdf(upper) - mpmath.ncdf(lower)


@pytest.mark.parametrize("deviation", [0.3, 5.0, 163.2, 8160.0, 16320.0])
def test_the_table_is_the_rounded_gaussian_to_a_total_variation_of_2e_14(deviation):
    """Every word leads to a cell; how many lead to which is counted from the entries, in whole numbers."""
    entries, bits, zero = rounded_gaussian(deviation)
    whole, counts = 1 << (64 - bits), [0] * len(entries)
    for cell, entry in enumerate(entries.tolist()):
        below, alias = divmod(entry, 1 << bits)
        counts[cell] += below
        counts[alias] += whole - below
    assert sum(counts) == 1 << 64
    step = max(1, zero // 100)
    with mpmath.workdps(40):
        both = [(n, counts[zero + sign * n]) for n in range(1, zero + 1, step) for sign in (1, -1)]
        apart = step * sum(abs(mpmath.mpf(count) / (1 << 64) - _mass(n, deviation)) for n, count in both)
        apart += abs(mpmath.mpf(counts[zero]) / (1 << 64) - _mass(0, deviation))
        beyond = 2 * mpmath.ncdf(-(zero + mpmath.mpf(0.5)) / deviation)
        assert (apart + beyond) / 2 < noise.TOTAL_VARIATION


def test_noise_is_normal_and_uncorrelated():
    drawn = rounded_noise(5, 2, np.arange(20_000), 4, 0.25) / (0.25 * FINEST)
    for column in drawn.T:
        assert stats.kstest(column, "norm").pvalue > 1e-4
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.05
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.05


def test_golden_values_do_not_drift_with_library_versions_or_machines():
    assert rounded_noise(1, 2, np.array([3]), 4, 0.5)[0].tolist() == [298.0, -6674.0, 2099.0, 17765.0]


def test_noisy_copies_are_in_pixel_units_and_not_clipped():
    copies = NoisyCopies(torch.full((1, 2, 2), 0.9), 4, 0.5, 7)
    found = copies(np.arange(100))
    assert found.shape == (100, 1, 2, 2)
    expected = 0.9 + rounded_noise(7, 4, np.arange(100), 4, 0.5) / FINEST
    assert np.abs(found.flatten(1).numpy() - expected).max() < 1 / FINEST
    assert found.max() > 1 and found.min() < 0


@pytest.mark.parametrize("scale", [255, 16])
@pytest.mark.parametrize("sigma", [0.12, 1.0, 4.0])
def test_pictures_lie_on_the_grid(scale, sigma):
    pixels = np.arange(scale + 1, dtype=np.uint8).reshape(1, 1, 1, -1)
    image = Part(pixels, np.zeros(1, np.int64), scale).images(np.array([0]))[0]
    copies = NoisyCopies(image, 0, sigma, 0)
    assert copies.moved == 0
    assert torch.equal(copies.points.long(), torch.arange(scale + 1).view_as(image) * int(fineness(sigma)) // scale)
    assert (copies.add(np.zeros((1, scale + 1), np.float32))[0] - image).abs().max() <= 2**-23


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_an_image_off_the_grid_is_moved_to_it_by_at_most_half_a_step(kind):
    image = torch.rand(3, 32, 32).to(kind)
    copies = NoisyCopies(image, 0, 0.5, 0)
    away = float((image.double() - copies.points / FINEST).norm())
    assert away <= copies.moved <= away * (1 + 1e-6) <= 0.5 / FINEST * 3072**0.5
    again = NoisyCopies((copies.points / FINEST).to(kind), 0, 0.5, 0)
    assert (again.moved == 0) == (kind.itemsize >= 4)
    if kind.itemsize > 4:  # what is not single precision's very name of a point is another, however near
        for nearness in (2.0**-23, 2.0**-25, -(2.0**-40)):
            beside = copies.points / FINEST * (1 + nearness)
            assert NoisyCopies(beside, 0, 0.5, 0).moved >= float((beside - copies.points / FINEST).norm()) > 0


def test_sums_are_whole_numbers_whatever_the_pixels_are():
    """Where single precision holds no sum of point and noise, double does: what is rounded is the sum."""
    image = torch.tensor([[[0.25, 3e6]]])
    copies = NoisyCopies(image, 0, 0.5, 0)
    found, whole = copies(np.arange(50)), copies.points + torch.from_numpy(copies.noise(np.arange(50))).view(-1, 1, 1, 2)
    assert torch.equal(found, whole.float() * (1 / FINEST))
    assert torch.equal(found[..., :1], NoisyCopies(image[..., :1], 0, 0.5, 0).add(copies.noise(np.arange(50))[:, :1]))


def test_what_floating_point_addition_betrays_is_certified_falsely_without_the_grid_alone(monkeypatch):
    """At 0.5 sums of floats are multiples of 2^-25, at 0 hardly one is: a radius of more than 0.5 for class 1 is false."""
    model, sigma = LowBits().eval(), 1 / 6  # N = 10,000 reaches 3.19 sigma

    def certificates():
        return [srs.certify(model, torch.tensor([0.5]), sigma=sigma, seed=seed) for seed in range(20)]

    assert not any(found.prediction == 1 and found.radius > 0.5 for found in certificates())
    normal = np.random.default_rng(0)

    def add(self, drawn):
        return self.image + self.sigma * torch.from_numpy(normal.standard_normal((len(drawn), 1), np.float32))

    monkeypatch.setattr(NoisyCopies, "add", add)
    assert all(found.prediction == 1 and found.radius > 0.5 for found in certificates())
    shifted = srs.certify(model, torch.tensor([0.0]), sigma=sigma)
    assert shifted.prediction == 0  # and so the other certificates were false


def test_gathered_copies_are_those_of_each_image_part_by_part():
    copies = [NoisyCopies(torch.rand(1, 2, 2), index, 0.5, 7) for index in (4, 9)]
    parts = [(np.array([0, 0, 1]), np.array([5, 2, 2])), (np.array([1]), np.array([0]))]
    first, second = gather(copies, parts)
    assert torch.equal(first, torch.cat([copies[0](np.array([5, 2])), copies[1](np.array([2]))]))
    assert torch.equal(second, copies[1](np.array([0])))
    assert list(gather(copies, [])) == []


def test_much_noise_is_drawn_by_several_threads_and_stays_the_same(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    drawn, together, shares = noise.rounded_noise, threading.Barrier(3, timeout=60), []

    def draw(*arguments):
        together.wait()  # fails unless three draw at once
        shares.append(arguments[2].tolist())
        return drawn(*arguments)

    monkeypatch.setattr(noise, "rounded_noise", draw)
    copies, draws = NoisyCopies(torch.rand(3, 32, 32), 4, 0.5, 7), np.arange(300)
    (found,) = gather([copies], [(np.zeros(300, dtype=int), draws)])
    assert torch.equal(found, copies.add(drawn(7, 4, draws, 3 * 32 * 32, 0.5)))
    assert sorted(shares) == draws.reshape(3, 100).tolist()


def test_an_audit_is_drawn_by_a_name_that_is_known():
    with pytest.raises(ValueError, match="audit_draw = 'first batch' is unknown: choose random or first_batch"):
        audit_order("first batch", 0, 0, 10, 20)


def test_noise_is_drawn_while_the_caller_works(monkeypatch):
    drawn, ready = [], threading.Event()

    def draw(seed, index, draws, size, sigma):
        drawn.append((int(draws[0]), threading.current_thread() is threading.main_thread()))
        if len(drawn) == 2:
            ready.set()
        return np.zeros((len(draws), size), dtype=np.float32)

    monkeypatch.setattr(noise, "rounded_noise", draw)
    parts = gather([NoisyCopies(torch.zeros(1, 1, 1), 0, 0.5, 0)], [(np.array([0]), np.array([j])) for j in range(3)])
    next(parts)
    assert ready.wait(timeout=60), "the second part was not drawn before it was asked for"
    assert drawn == [(0, False), (1, False)]  # no more than one part ahead: memory
    assert len(list(parts)) == 2 and len(drawn) == 3
