"""The critical ratio of a step over the pairs of neurons that differ by more than rounding."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.geometry._distances import Rows, binary_scale, squared_distances, upper_tiles, wide_norms
from lightning_topo.geometry._distortion import check_step, step_distortion
from lightning_topo.geometry._pair_search import step_tile_rows
from lightning_topo.geometry._precision import full_precision, wide_dtype


def resolved_critical_ratio(
    before: Float[Tensor, "n d"], after: Float[Tensor, "n d"], resolution: float = 0.0
) -> float:
    """Compute the critical ratio r of a step over the pairs of neurons that differ by more than rounding:

        r = max |Δ_i - Δ_j| / d_ij    over the pairs with    d_ij > resolution max(|x_i|, |x_j|),

    with x_i neuron i before the step, Δ_i its displacement and d_ij = |x_i - x_j|. Equal neurons never count. Returns
    0 if no pair counts.

    Args:
        before: The neurons before the step, one row each.
        after: The same neurons after the step.
        resolution: 0 lets all distinct pairs count. The machine epsilon of the dtype that stores the neurons leaves
            out pairs whose ratio is mostly rounding: rounding moves a pair by up to eps max(|x_i|, |x_j|).

    Raises:
        TypeError: A cloud is not of a real floating-point dtype.
        ValueError: The clouds differ in shape or are not finite, or `resolution` is negative.

    >>> before, after = torch.tensor([[0.0], [0.0], [1.0]]), torch.tensor([[0.1], [0.0], [1.0]])
    >>> step_distortion(before, after).critical_ratio, round(resolved_critical_ratio(before, after), 3)
    (inf, 0.1)
    """
    check_step(before, after)
    if not resolution >= 0.0:
        raise ValueError(f"expected resolution >= 0, got {resolution}")
    step = step_distortion(before, after)
    if step.critical_pair is None:
        return 0.0
    with full_precision(before.device):
        before, after = before.detach(), after.detach()
        i, j = step.critical_pair
        pair = before[[i, j]].to(wide_dtype(before.device)) * binary_scale(before[[i, j]])
        if (pair[0] - pair[1]).norm() > resolution * pair.norm(dim=1).amax():
            return step.critical_ratio
        return _search(before, after, resolution)


def _search(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"], resolution: float) -> float:
    """The largest ratio by products in the widest dtype, tile by tile."""
    wide, scale = wide_dtype(before.device), binary_scale(before, after)
    lengths = wide_norms(before) * scale
    worst = 0.0
    for rows, columns in upper_tiles(len(before), step_tile_rows(before)):
        distances = _distances(before[rows], before[columns], scale)
        moved = _distances(
            after[rows].to(wide) - before[rows].to(wide), after[columns].to(wide) - before[columns].to(wide), scale
        )
        counts = distances > resolution * torch.maximum(lengths[rows, None], lengths[columns])
        worst = max(worst, float((moved / distances).masked_fill(~counts, 0.0).amax()))
    return worst


def _distances(a: Float[Tensor, "m d"], b: Float[Tensor, "k d"], scale: float) -> Float[Tensor, "m k"]:
    origin = a[0].to(wide_dtype(a.device))
    return squared_distances(Rows.around(a, origin, scale), Rows.around(b, origin, scale)).sqrt()
