"""Accurate distances between the points of a cloud: never trusted to a bare matrix product."""

import torch
from jaxtyping import Float
from torch import Tensor


def check_cloud(points: Tensor, name: str = "points") -> None:
    """Raise unless `points` is a finite floating-point cloud of shape (n, d).

    Raises:
        TypeError: the dtype is not a real floating-point one.
        ValueError: the tensor is not two-dimensional, or holds NaN or infinities.

    >>> check_cloud(torch.zeros(3))
    Traceback (most recent call last):
        ...
    ValueError: expected points of shape (n, d), got (3,)
    """
    if points.ndim != 2:
        raise ValueError(f"expected {name} of shape (n, d), got {tuple(points.shape)}")
    if not points.is_floating_point():
        raise TypeError(
            f"expected {name} of a real floating-point dtype, got {points.dtype}: "
            "convert integers with .float(), complex numbers with torch.view_as_real(...).flatten(1)"
        )
    bad = (~torch.isfinite(points)).any(dim=1)
    if bad.any():
        rows = bad.nonzero().flatten().tolist()
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        raise ValueError(
            f"expected finite {name}, got NaN or infinity in {len(rows)} of {len(points)} rows: {shown}"
        )


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest floating-point dtype of a device: float64, but float32 on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


def widen(points: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """A detached copy of the cloud in the widest dtype its device has."""
    return points.detach().to(wide_dtype(points.device))


def real_dtype(points: Tensor) -> torch.dtype:
    """The dtype of results about a cloud: its own, but at least float32."""
    return torch.promote_types(points.dtype, torch.float32)


@torch.no_grad()
def pairwise_distances(points: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """All Euclidean distances d_ij = |x_i - x_j|, with relative error at the rounding of the result's dtype.

    Returns a symmetric matrix with zero diagonal, of the cloud's dtype but at least float32. Equal rows are
    at distance exactly 0, and a large common offset costs no accuracy.

    Raises:
        TypeError, ValueError: as `check_cloud`.

    >>> pairwise_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    tensor([[0., 5.],
            [5., 0.]])
    """
    check_cloud(points)
    wide = widen(points)
    return torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist").to(real_dtype(points))
