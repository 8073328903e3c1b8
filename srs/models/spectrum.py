"""Eigenvalues and norms of matrices, bounded by proof: whatever LAPACK returns is looked at again, rounding added.

Everything is computed in double precision. A product of matrices, inner dimension n, is off by at most n 2^-52 |X| |Y| in each
entry, in whatever order it is summed (Higham 2002, Section 3.5); barring underflow.
"""

import torch
from torch import Tensor


def rounding(terms: int, size: float) -> float:
    """More than a product of inner dimension ``terms`` in double precision is off by, and a few roundings more; ``size``: the
    product of the factors' Frobenius norms. Raises no error: ``terms`` of a matrix in memory are far below 2^50."""
    return (terms + 8) * 2.0**-52 * size


@torch.no_grad()
def least_eigenvalue(matrix: Tensor) -> float:
    """A lower bound on the least eigenvalue of a symmetric ``matrix`` (n, n), tight to about 1e-12 of its norm.

    For any L and t the least eigenvalue is at least t - ||matrix - t I - L L^T||, since L L^T has none below 0. Here t is
    LAPACK's value, slightly reduced, and L a Cholesky factor: were either wrong, the norm would tell.
    """
    matrix = matrix.double()
    size = float(torch.linalg.matrix_norm(matrix))
    t = float(torch.linalg.eigvalsh(matrix)[0]) - rounding(len(matrix), size)
    shifted = matrix - t * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    factor = torch.linalg.cholesky_ex(shifted).L
    residual = float(torch.linalg.matrix_norm(shifted - factor @ factor.T))
    products = float(torch.linalg.matrix_norm(factor)) ** 2 + size + abs(t) * len(matrix) ** 0.5
    return t - 2 * (residual + rounding(len(matrix), products))


@torch.no_grad()
def spectral_norm(matrix: Tensor) -> float:
    """An upper bound on the largest singular value of a ``matrix``, tight to about 1e-12 of it where it is not degenerate."""
    matrix = matrix.double()
    squared = -least_eigenvalue(-matrix.T @ matrix) + rounding(len(matrix), frobenius_norm(matrix) ** 2)
    return (1 + 1e-15) * max(squared, 0.0) ** 0.5


@torch.no_grad()
def frobenius_norm(matrix: Tensor) -> float:
    """An upper bound on the Frobenius norm of a ``matrix``, or the length of a vector."""
    return (1 + rounding(matrix.numel(), 1.0)) * float(matrix.double().norm())
