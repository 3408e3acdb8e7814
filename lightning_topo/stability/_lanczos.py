"""The extreme eigenvalues of a symmetric operator that is known by its products only."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh
from torch import Tensor

from lightning_topo.stability._layout import WHOLE, Layout

_ROWS = 8
"""Room for the basis to begin with: more than a warm start needs. It doubles when it is full."""
_MOST_BYTES, _FEWEST_ROWS = 2**27, 5
"""The basis takes at most this many bytes, but always has at least this many rows."""
_CHUNK = 2**18


@dataclass(frozen=True, slots=True)
class LanczosSettings:
    """When Lanczos' method stops, and the seed of its random start.

    It stops once the residuals of the `n_largest` largest Ritz values are at most `tolerance` times the largest Ritz
    value. A Ritz value is the method's estimate of an eigenvalue; some eigenvalue lies within its residual.

    Attributes:
        tolerance: Largest residual relative to the largest Ritz value, between 0 and 1.
        min_products: Fewest products with the operator. A start near an eigenvector converges to it at once, even if
            its eigenvalue is not the largest; more products find the larger one.
        max_products: Stop after this many products of one start, converged or not.
        n_largest: How many of the largest eigenvalues to find.
        seed: Seeds the random direction that is mixed into a start. `extreme_eigenvalues` does not use it, as it is
            given its start.

    Raises:
        ValueError: `tolerance` is not between 0 and 1, or a count is below 1.
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
    """Estimates of the extreme eigenvalues of a symmetric operator: the result of `extreme_eigenvalues`.

    A Ritz value is the method's estimate of an eigenvalue.

    Attributes:
        largest: Lower bound of the largest eigenvalue: the largest Ritz value.
        smallest: Upper bound of the smallest eigenvalue; how close it is, is not estimated.
        residual: Some eigenvalue lies within this distance of `largest`; not necessarily the largest one.
        vector: The unit Ritz vector of `largest`, an estimate of its eigenvector.
        n_products: Number of products with the operator.
        converged: Whether the residuals met the tolerance, or the Krylov space was exhausted.
        top: The `n_largest` largest Ritz values, or fewer if there are no more, in descending order.
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
    *,
    layout: Layout = WHOLE,
) -> Extremes:
    """Estimate the extreme eigenvalues of a symmetric operator by Lanczos' method, and an eigenvector of the largest.

    The method stops by the residuals of the largest eigenvalues. It orthogonalises each vector against its whole basis.
    The basis takes at most 128 MiB, or a few vectors if single vectors are longer. A full basis is replaced by its
    largest Ritz vectors (a thick restart), which costs some more products. Long vectors of a GPU are kept in the host's
    memory, with no more than one at a time on the GPU.

    Args:
        operator: Returns the product of the operator with a vector.
        start: The first vector, not 0 and of any length.
        settings: When to stop.
        layout: How the vectors lie on the processes, as of `Curvature.layout`; by default whole on each.

    Raises:
        FloatingPointError: A product is not finite.

    Source: Golub and Van Loan, *Matrix Computations*, section 10.1; Wu and Simon, *Thick-restart Lanczos method for
    large symmetric eigenvalue problems*, 2000.

    >>> matrix = torch.diag(torch.tensor([5.0, 2.0, -1.0]))
    >>> found = extreme_eigenvalues(lambda v: matrix @ v, torch.ones(3))
    >>> round(found.largest, 4), round(found.smallest, 4), found.converged
    (5.0, -1.0, True)
    """
    if start.is_cuda and _FEWEST_ROWS * start.numel() * start.element_size() > _MOST_BYTES:
        device, given = start.device, operator
        start, operator = start.cpu(), lambda vector: given(vector.to(device)).cpu()
        found = extreme_eigenvalues(operator, start, settings, layout=layout)
        return replace(found, vector=found.vector.to(device))
    n_entries = layout.n_entries(start)
    longest = layout.longest(start)  # a restart has to come at once on all processes
    max_products = min(settings.max_products, n_entries)
    wanted = min(settings.n_largest, n_entries)
    most_rows = max(_MOST_BYTES // (longest * start.element_size()), _FEWEST_ROWS, wanted + 4)
    basis = start.new_empty(min(_ROWS, most_rows), start.numel())
    torch.div(start, layout.norm(start), out=basis[0])
    del start  # the caller may have kept none: one vector less
    projected = np.zeros((1, 1))
    n_products, smallest = 0, float("inf")
    while True:
        n_products += 1
        n = len(projected)
        krylov = basis[:n]
        image = operator(krylov[-1])
        projected[-1, -1] = layout.dot(image, krylov[-1])
        image = _orthogonal(image, krylov, layout)
        norm = layout.norm(image)
        if not np.isfinite([norm, projected[-1, -1]]).all():
            raise FloatingPointError("expected finite Hessian products, got NaN or infinity")
        values, vectors = eigh(projected)
        smallest = min(smallest, float(values[0]))
        largest, residuals = float(values[-1]), norm * abs(vectors[-1, -wanted:])
        # The Krylov space is invariant: what is left of the product is rounding.
        exhausted = norm <= torch.finfo(image.dtype).eps * max(abs(float(values[-1])), abs(float(values[0])))
        converged = (
            exhausted or n == n_entries or (n >= wanted and float(residuals.max()) <= settings.tolerance * abs(largest))
        )
        if (
            (converged and n_products >= min(settings.min_products, max_products))
            or exhausted
            or n_products >= max_products
        ):
            with torch.autocast(image.device.type, enabled=False):
                ritz = krylov.T @ torch.as_tensor(vectors[:, -1], dtype=image.dtype, device=image.device)
            top = tuple(float(value) for value in values[::-1][:wanted])
            return Extremes(
                largest, smallest, float(residuals[-1]), ritz.div_(layout.norm(ritz)), n_products, bool(converged), top
            )
        if n == most_rows:
            projected = _restarted(basis, values, vectors, norm, n_kept=wanted + 1)
        else:
            projected = np.pad(projected, (0, 1))
            projected[-1, -2] = projected[-2, -1] = norm
        n = len(projected)
        if n > len(basis):
            more = basis.new_empty(min(len(basis), most_rows - len(basis)), basis.shape[1])
            basis = torch.cat([basis, more])
        torch.div(image, norm, out=basis[n - 1])
        del image


def _orthogonal(image: Float[Tensor, " p"], krylov: Float[Tensor, "n p"], layout: Layout) -> Float[Tensor, " p"]:
    """The image without its part in the basis: twice is enough (Parlett), once leaves rounding errors that grow."""
    with torch.autocast(image.device.type, enabled=False):
        image = torch.addmv(image, krylov.T, layout.total(krylov @ image), alpha=-1)
        return image.addmv_(krylov.T, layout.total(krylov @ image), alpha=-1)


def _restarted(
    basis: Float[Tensor, "n p"], values: np.ndarray, vectors: np.ndarray, norm: float, *, n_kept: int
) -> np.ndarray:
    """Put the largest Ritz vectors in the first rows; returns the operator on them and on the next vector."""
    rotation = torch.as_tensor(vectors[:, -n_kept:].T.copy(), dtype=basis.dtype, device=basis.device)
    with torch.autocast(basis.device.type, enabled=False):
        for columns in basis.split(_CHUNK, dim=1):
            columns[:n_kept] = rotation @ columns
    projected = np.diag(np.append(values[-n_kept:], 0.0))
    projected[-1, :-1] = projected[:-1, -1] = norm * vectors[-1, -n_kept:]
    return projected
