import numpy as np
import pytest
import torch

from srs import models
from srs.deq.definition import classify, is_deq
from srs.deq.implicit import differentiable, implicit_solve, jacobian_penalty
from srs.deq.solvers import Solver
from srs.models.mdeq import VariationalDropout

TIGHT = Solver(method="broyden", steps=60, stop="relative", tolerance=1e-12)


class Tanh(torch.nn.Module):
    """z = tanh(W z + x): a contraction for ||W|| < 1."""

    def __init__(self):
        super().__init__()
        w = torch.randn(4, 4, dtype=torch.float64)
        self.w = torch.nn.Parameter(0.6 * w / torch.linalg.matrix_norm(w, 2))

    def forward(self, z, x):
        return torch.tanh(z @ self.w.T + x)


def _gradients(layer, x, solve):
    x = x.clone().requires_grad_()
    loss = (solve(layer, x) ** 3).sum()
    return loss, *torch.autograd.grad(loss, [x, layer.w])


def _implicit(layer, x):
    return implicit_solve(layer, torch.zeros_like(x), x, TIGHT, TIGHT)[0]  # z


def _unrolled(layer, x):
    z = torch.zeros_like(x)
    for _ in range(200):
        z = layer(z, x)
    return z


def test_implicit_gradient_equals_the_unrolled_one():
    layer, x = Tanh(), torch.randn(3, 4, dtype=torch.float64)
    for ours, theirs in zip(_gradients(layer, x, _implicit), _gradients(layer, x, _unrolled)):
        assert torch.allclose(ours, theirs, atol=1e-9)


def test_implicit_gradient_equals_finite_differences():
    layer, x = Tanh(), torch.randn(3, 4, dtype=torch.float64)
    _, dx, dw = _gradients(layer, x, _implicit)
    step = 1e-6
    with torch.no_grad():
        for tensor, gradient in ((x, dx), (layer.w, dw)):
            for position in [(0, 0), (2, 1), (1, 3)]:
                values = []
                for sign in (1, -1):
                    tensor[position] += sign * step
                    values.append((_unrolled(layer, x) ** 3).sum())
                    tensor[position] -= sign * step
                difference = float(values[0] - values[1]) / (2 * step)
                assert gradient[position].item() == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_one_application_without_the_backward_solve_would_be_wrong():
    layer, x = Tanh(), torch.randn(3, 4, dtype=torch.float64)
    one = Solver(method="naive", steps=1)
    truncated = _gradients(layer, x, lambda f, x: implicit_solve(f, torch.zeros_like(x), x, TIGHT, one)[0])
    assert not torch.allclose(truncated[1], _gradients(layer, x, _unrolled)[1], atol=1e-3)


def test_jacobian_penalty_estimates_the_frobenius_norm():
    matrix = torch.randn(5, 5)
    z = torch.randn(20_000, 5, requires_grad=True)
    penalty = jacobian_penalty(z @ matrix.T, z)
    assert penalty.item() == pytest.approx((matrix**2).sum().item() / 5, rel=0.05)


def test_jacobian_penalty_is_a_mean_over_vectors():
    matrix, z = torch.randn(5, 5), torch.randn(50, 5, requires_grad=True)
    spread = [torch.stack([jacobian_penalty(z @ matrix.T, z, k) for _ in range(300)]).std().item() for k in (1, 4)]
    assert spread[0] / spread[1] == pytest.approx(2, rel=0.2)
    torch.manual_seed(7)
    alone = [jacobian_penalty(z @ matrix.T, z) for _ in range(2)]
    torch.manual_seed(7)
    assert torch.equal(jacobian_penalty(z @ matrix.T, z, 2), sum(alone) / 2)


def test_jacobian_penalty_at_a_fixed_point_is_that_of_one_application():
    """Of J, not of the J (I - J)^-1 that the implicit gradient of z would give."""
    matrix = torch.randn(5, 5)
    matrix = 0.7 * matrix / torch.linalg.matrix_norm(matrix, 2)
    x = torch.randn(20_000, 5)
    solver = Solver(method="naive", steps=30)
    weight = matrix.clone().requires_grad_()
    z, fz, z_in, _ = implicit_solve(lambda z, x: z @ weight.T + x, torch.zeros_like(x), x, solver, solver)
    penalty = jacobian_penalty(fz, z_in)
    assert penalty.item() == pytest.approx((matrix**2).sum().item() / 5, rel=0.05)
    assert torch.allclose(torch.autograd.grad(penalty, weight)[0], 2 * matrix / 5, atol=0.03)
    hooked = jacobian_penalty(z, z_in).item()
    assert hooked != pytest.approx((matrix**2).sum().item() / 5, rel=0.05)


def test_logits_that_are_differentiated_start_where_they_are_told(started, digits):
    x, one, two = digits.test.images(np.arange(4)), Solver(method="naive", steps=1), Solver(method="naive", steps=2)
    for start in ("initial", "learned"):  # one step without a gradient, one with
        logits = differentiable(started, one, one, start)(x)
        assert torch.allclose(logits, classify(started, x, two, start)[0], atol=1e-5)
    assert not torch.allclose(logits, differentiable(started, one, one)(x), atol=1e-2)
    with pytest.raises(ValueError, match="start = 'middle' is unknown"):
        differentiable(started, one, one, "middle")(x)


def test_under_a_dropout_mask_rows_stay_in_the_batch():
    dropout, solver = VariationalDropout(0.5), Solver(method="naive", steps=60, stop="relative")
    x = torch.zeros(12, 4, 1, 1)
    x[6:] = 1.0  # the others are solved where they start
    f = lambda z, x: dropout(0.3 * z + x)  # noqa: E731
    z, *_, solution = implicit_solve(f, torch.zeros_like(x), x, solver, solver, compact=False)
    assert solution.converged.all() and solution.evaluations[:6].max() == 1 < solution.evaluations[6:].min()
    assert torch.allclose(z, dropout.mask * x / (1 - 0.3 * dropout.mask), atol=0.02)
    with pytest.raises(ValueError, match="the dropout mask is of 12 rows, the batch has 6: draw_dropout"):
        implicit_solve(f, torch.zeros_like(x), x, solver, solver)


def test_gradients_reach_every_parameter_of_an_mdeq():
    model = models.build("mdeq-tiny", image_size=8, mean=(0.3,), std=(0.4,))
    injection = model.inject(torch.rand(4, 1, 8, 8))
    z, fz, z_in, _ = implicit_solve(
        model.f, model.initial_state(injection), injection, Solver(method="broyden", steps=8), Solver(method="broyden", steps=7)
    )
    (model.head(z).square().sum() + jacobian_penalty(fz, z_in)).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_mdeq_is_a_deq_and_classifies(trained, digits):
    assert is_deq(trained)
    assert not is_deq(torch.nn.Linear(2, 2))
    logits, solution = classify(trained, digits.test.images(torch.arange(3).numpy()), Solver())
    assert logits.shape == (3, 10) and solution.finite.all()
