"""How to differentiate through a DEQ's fixed point.

Sources: Bai et al. (2019) for implicit differentiation, Bai et al. (2021) for Jacobian regularization.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from srs.deq.definition import DEQ, starting_state
from srs.deq.solvers import Solution, Solver, per_row, solve


def implicit_solve(
    f: Callable[[Tensor, Tensor], Tensor],
    z0: Tensor,
    x: Tensor,
    forward: Solver,
    backward: Solver,
    compact: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Solution]:
    """A fixed point that can be differentiated in constant memory (Bai et al. 2019, Theorem 1).

    Solves without a gradient, applies f once more, and on the way back replaces the gradient ``grad`` by the solution
    of g = J^T g + grad, J = df/dz at the fixed point. Rows whose solve was not finite restart that last
    application from ``z0``; look at ``solution.finite`` and leave them out of the loss. ``compact``: as in
    :func:`srs.deq.solvers.solve`; False where f knows whole batches alone, as under a dropout mask.

    Returns (z, fz, z_in, solution): ``z_in`` is the detached solution, ``fz = f(z_in, x)`` has the plain gradient of one
    application (for :func:`jacobian_penalty`), and ``z`` is the same state with the implicit gradient.
    """
    with torch.no_grad():
        solution = solve(f, z0, x, forward, compact=compact)
        start = torch.where(per_row(solution.finite, z0), solution.z, z0)
    z_in = start.detach().requires_grad_()
    fz = f(z_in, x)

    def correct(grad: Tensor) -> Tensor:
        def transposed(g: Tensor, grad: Tensor) -> Tensor:
            return torch.autograd.grad(fz, z_in, g, retain_graph=True)[0] + grad

        found = solve(transposed, torch.zeros_like(grad), grad, backward, compact=False)  # it knows the whole batch alone
        return torch.where(per_row(found.finite, grad), found.z, grad)

    z = fz.view_as(fz)
    if z.requires_grad:
        z.register_hook(correct)
    return z, fz, z_in, solution


def differentiable(deq: DEQ, forward: Solver, backward: Solver, start: str = "initial") -> Callable[[Tensor], Tensor]:
    """The map from images (B, ...) to logits (B, classes), with implicit gradients.

    A row whose state or logits are not finite has logits 0 and gradient 0: it says nothing, and spoils no mean. ``start``: as
    :func:`starting_state` has it.
    """

    def logits(x: Tensor) -> Tensor:
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(_without_lost_rows)  # 0 NaN = NaN: a lost row's gradient is lost on its way back
        injection = deq.inject(x)
        z0 = starting_state(deq, injection, start)
        z, _, _, solution = implicit_solve(deq.f, z0, injection, forward, backward)
        out = deq.head(z)
        kept = solution.finite & out.isfinite().all(dim=1)
        return torch.where(kept[:, None], out, 0.0)

    return logits


def jacobian_penalty(fz: Tensor, z_in: Tensor, vectors: int = 1) -> Tensor:
    """Hutchinson's estimate of E ||J^T v||^2 / dim, v standard normal (Bai et al. 2021, equation 5): mean over the batch and
    so many ``vectors`` a row."""
    products = (torch.autograd.grad(fz, z_in, torch.randn_like(fz), create_graph=True)[0] for _ in range(vectors))
    return sum(product.pow(2).mean() for product in products) / vectors


def _without_lost_rows(gradient: Tensor) -> Tensor:
    finite = gradient.flatten(1).isfinite().all(dim=1)
    return torch.where(per_row(finite, gradient), gradient, 0.0)
