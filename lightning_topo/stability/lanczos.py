"""The extreme eigenvalues of a symmetric operator that is known by its products only."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

_ROWS = 8
"""Room for the basis to begin with: more than a warm start needs. It doubles when it is full."""


@dataclass(frozen=True, slots=True)
class LanczosSettings:
    """When Lanczos' method stops: tolerance, and least and most products.

    It stops when the residual of each of the `n_largest` largest Ritz pairs is at most `tolerance` times the largest
    Ritz value, after `min_products` at the least (a start near an eigenvector converges at once, to that one) and
    `max_products` at the most. `seed` draws the random vector to begin with where no better one is known.

    Raises `ValueError` for numbers that make no sense.
    """

    tolerance: float = 0.02
    min_products: int = 3
    max_products: int = 60
    n_largest: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.tolerance < 1.0:
            raise ValueError(f"expected tolerance between 0 and 1, got {self.tolerance}")
        for name in ("min_products", "max_products", "n_largest"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Extremes:
    """The extreme Ritz pairs of a Krylov space.

    `largest` is a lower bound of the largest eigenvalue, and within `residual` of *some* eigenvalue; `smallest` is
    an upper bound of the smallest one, without a residual. `vector` is the unit Ritz vector of `largest`. `top` holds
    the largest Ritz values that were asked for, `largest` first.
    """

    largest: float
    smallest: float
    residual: float
    vector: Float[Tensor, " p"]
    n_products: int
    converged: bool
    top: tuple[float, ...]


def extreme_eigenvalues(
    operator: Callable[[Tensor], Tensor],
    start: Float[Tensor, " p"],
    settings: LanczosSettings = LanczosSettings(),
) -> Extremes:
    """Lanczos' method with full reorthogonalisation, from `start`, for the largest algebraic eigenvalue.

    Raises `FloatingPointError` if a product is not finite.

    Source: Golub and Van Loan, *Matrix Computations*, section 10.1.

    >>> matrix = torch.diag(torch.tensor([5.0, 2.0, -1.0]))
    >>> found = extreme_eigenvalues(lambda v: matrix @ v, torch.ones(3))
    >>> round(found.largest, 4), round(found.smallest, 4), found.converged
    (5.0, -1.0, True)
    """
    max_products = min(settings.max_products, start.numel())
    wanted = min(settings.n_largest, start.numel())
    basis = start.new_empty(_ROWS, start.numel())
    basis[0] = start / start.norm()
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    while True:
        n = len(diagonal) + 1
        krylov = basis[:n]
        image = operator(krylov[-1])
        diagonal.append(float(image @ krylov[-1]))
        # Twice is enough (Parlett): once leaves rounding errors that grow into copies of eigenvalues.
        for _ in range(2):
            image = image - krylov.T @ (krylov @ image)
        norm = float(image.norm())
        if not (torch.isfinite(torch.tensor(norm)) and torch.isfinite(torch.tensor(diagonal[-1]))):
            raise FloatingPointError("expected finite Hessian products, got NaN or infinity")
        values, vectors = eigh_tridiagonal(diagonal, off_diagonal)
        largest, residuals = float(values[-1]), norm * abs(vectors[-1, -wanted:])
        # The Krylov space is invariant: what is left of the product is rounding.
        exhausted = norm <= torch.finfo(image.dtype).eps * max(abs(float(values[-1])), abs(float(values[0])))
        converged = (
            exhausted
            or n == start.numel()
            or (n >= wanted and float(residuals.max()) <= settings.tolerance * abs(largest))
        )
        if (converged and n >= min(settings.min_products, max_products)) or exhausted or n >= max_products:
            ritz = krylov.T @ torch.as_tensor(vectors[:, -1], dtype=start.dtype, device=start.device)
            top = tuple(float(value) for value in values[::-1][:wanted])
            return Extremes(
                largest, float(values[0]), float(residuals[-1]), ritz / ritz.norm(), n, bool(converged), top
            )
        off_diagonal.append(norm)
        if n == len(basis):
            basis = torch.cat([basis, torch.empty_like(basis)])
        basis[n] = image / norm
