"""Amortized starts: where a solver starts is a function of the noisy input alone, fitted to fixed points of noisy *training*
images. Votes from such starts are independent, so that Cohen's certificate holds as it stands (docs/certificates.md).

``mean`` is one constant state; ``learned`` maps the injection to a state: ridge regression where its size allows, else a small
convolutional network in the resolutions of the model.
"""

import math
from numbers import Real
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from srs.common.settings import Section
from srs.data.datasets import Images
from srs.deq.definition import DEQ, margin_of
from srs.deq.interface import CheckedDEQ, checked, device_of, require_image
from srs.deq.solvers import Solver, solve
from srs.models.starts import WIDTH, ConvolutionalStart, MeanStart, RidgeStart
from srs.votes.samplers import batches, rows_at_once

_AT_ONCE = 800  # rows of a compute batch


class StartSettings(Section):
    """How starts are fitted: to the states of ``solver`` for ``points`` noisy copies, evenly over the training images.

    ``map`` "auto": ridge regression of reduced ``rank`` (Izenman 1975; ``ridge`` relative to the inputs' mean variance) for
    injections of at most ``ridge_inputs`` numbers, else convolutions of ``width`` channels, fitted by Adam for ``epochs`` at
    ``learning_rate``.
    """

    points: int = Field(8_000, ge=2)
    solver: Solver = Solver(method="anderson", steps=30)
    map: Literal["auto", "ridge", "convolutional"] = "auto"
    ridge: float = Field(1e-3, gt=0)
    rank: int = Field(64, ge=1)
    ridge_inputs: int = Field(2_048, ge=1)
    width: int = Field(WIDTH, ge=1)
    epochs: int = Field(30, ge=1)
    batch_size: int = Field(100, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    seed: int = Field(0, ge=0, lt=1 << 63)


def fit_starts(model: DEQ, images: Images | Tensor, sigma: float, config: StartSettings | None = None) -> nn.ModuleDict:
    """The starts ``mean`` and ``learned`` of a trained model, on its device and of its type, in evaluation mode;
    ``model.starts`` is where samplers look for them. ``images``: training images, never those that will be certified; a tensor
    is (n, C, H, W), or (n, ...) of whatever else the model takes in batches, pixels in [0, 1].

    A convolutional map is of injections (C, H, W) to a state of that form, or to the branches of a tree or flat state, whose
    (C_i, H / 2^i, W / 2^i) the model tells in its ``state_shapes``.

    Raises ValueError for images that :func:`srs.certify` would not take, a sigma that is negative or not finite, a model in
    training mode, and where the map must be convolutional and cannot be; FloatingPointError where no fixed point is finite.
    """
    config = config or StartSettings()
    if not isinstance(sigma, Real) or isinstance(sigma, bool) or not 0 <= sigma < math.inf:
        raise ValueError(f"sigma = {sigma!r} is out of range: a finite number, 0 or more")
    if isinstance(images, Tensor):
        require_image(images, "images")
    elif not hasattr(images, "images"):
        raise ValueError(
            f"images = a {type(images).__name__}: expected a tensor (n, ...) or a part of a srs.data.datasets.Dataset"
        )
    shapes, model = getattr(model, "state_shapes", None), checked(model, deq=True)
    shapes = _branches(model, images, config, shapes)
    injections, states = _fixed_points(model, images, sigma, config)
    mean = MeanStart(states.shape[1:])
    mean.mean.copy_(states.mean(dim=0))
    if shapes is None:
        learned = _fit_ridge(injections, states, config)
    else:
        learned = _fit_convolutions(injections, states, shapes, config)
    return nn.ModuleDict({"mean": mean, "learned": learned}).to(injections).eval()


def _branches(model: CheckedDEQ, images: Images | Tensor, config: StartSettings, shapes) -> list[tuple[int, int, int]] | None:
    """The shapes of a convolutional map's branches, ``shapes`` if the model tells them; None where the map is ridge regression,
    by the size of an injection. Raises ValueError where it cannot be convolutional."""
    first = _some(images, np.array([0]))
    injection = model.inject(first.to(device_of(model, first)))
    inputs, state = injection[0].numel(), tuple(model.initial_state(injection).shape[1:])
    if config.map == "ridge" or (config.map == "auto" and inputs <= config.ridge_inputs):
        return None
    if shapes is None and injection.dim() == 4 and state[1:] == tuple(injection.shape[2:]):
        shapes = [state]
    if shapes is None or injection.dim() != 4:
        raise ValueError(
            f"map = {config.map!r} would be convolutional for an injection of {inputs:,} numbers, which needs one of the shape "
            f"(C, H, W), not {tuple(injection.shape[1:])}, and a state like it or state_shapes of the model: ask for 'ridge'"
        )
    return shapes


def _some(images: Images | Tensor, rows: np.ndarray) -> Tensor:
    return images[torch.from_numpy(rows)] if isinstance(images, Tensor) else images.images(rows)


@torch.no_grad()
def _fixed_points(model: CheckedDEQ, images: Images | Tensor, sigma: float, config: StartSettings) -> tuple[Tensor, Tensor]:
    """Injections and states of noisy training images, row by row; rows that are not finite are left out."""
    device = device_of(model, _some(images, np.array([0])))
    generator = torch.Generator().manual_seed(config.seed)
    order = np.resize(np.random.default_rng(config.seed).permutation(len(images)), config.points)
    injections, states = [], []
    for chosen in tqdm(batches(order, rows_at_once(model, _AT_ONCE)), desc="fixed points", unit="batch", mininterval=2):
        x = _some(images, chosen).to(device)
        x = x + (sigma * torch.randn(x.shape, generator=generator)).to(x)
        injection = model.inject(x)
        solution = solve(model.f, model.initial_state(injection), injection, config.solver, margin=margin_of(model))
        injections.append(injection[solution.finite])
        states.append(solution.z[solution.finite])
    if not sum(map(len, states)):
        raise FloatingPointError(f"none of {config.points} fixed points is finite: train the model with more regularization")
    return torch.cat(injections), torch.cat(states)


def _fit_ridge(injections: Tensor, states: Tensor, config: StartSettings) -> RidgeStart:
    x, y = injections.flatten(1).double(), states.flatten(1).double()
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x / len(x)
    gram += config.ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(gram, x.T @ y / len(x)).T
    rank = min(config.rank, *weight.shape)
    directions = torch.linalg.eigh(weight @ gram @ weight.T).eigenvectors[:, -rank:]  # of the state, by explained variance
    start = RidgeStart(x.shape[1], rank, states.shape[1:]).to(states.device)
    with torch.no_grad():
        start.down.weight.copy_(directions.T @ weight)
        start.up.weight.copy_(directions)
        start.up.bias.copy_(y_mean - directions @ (directions.T @ (weight @ x_mean)))
    return start


def _fit_convolutions(injections: Tensor, states: Tensor, shapes, config: StartSettings) -> ConvolutionalStart:
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        start = ConvolutionalStart(injections.shape[1], shapes, config.width, states.shape[1:]).to(states.device)
    optimizer = torch.optim.Adam(start.parameters(), config.learning_rate)
    steps = config.epochs * -(-len(states) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with tqdm(total=steps, desc="start", unit="step", mininterval=2) as bar:
        for epoch in range(config.epochs):
            for rows in batches(np.random.default_rng([config.seed, epoch]).permutation(len(states)), config.batch_size):
                optimizer.zero_grad(set_to_none=True)
                loss = (start(injections[rows]) - states[rows]).pow(2).mean()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return start
