"""A snapshot of a cloud: lower bounds of each neuron's distances, from which later steps are bounded."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_topo.geometry._distances import ACCURACY, Rows, binary_scale, mean_point, squared_distances
from lightning_topo.geometry._lower_bounds import first_equal, near_by_directions, nearest_by_products
from lightning_topo.geometry._precision import full_precision, wide_dtype

MAX_ROWS = 20_000
"""Most neurons of which `snapshot` compares all pairs; the distances of more are bounded in a few directions."""

_TILE_ELEMENTS = 1 << 22
_USUAL = 0.75
_FEW_PAIRS = 8
_NEAR_AMONG_MANY = 4
"""Neighbours of which the distances are computed in all directions where a cloud is too large to compare all pairs."""
_MANY_PAIRS = 128
"""Of such a cloud, about n / 128 near pairs are listed at most."""
_MOST_EQUAL = 8
"""Equal neurons of such a cloud are compared at later steps if they are at most this part of it, n / 8."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Lower bounds of the distances in b clouds of n neurons each, from which `step_bound` bounds later steps.

    Take one with `snapshot`. Rounding has been subtracted from the bounds.

    Attributes:
        nearest: In each cloud, ascending: a lower bound of the distance from the neuron in `order` to every neuron
            that is not paired with it in `pairs`. Of several equal neurons all but the first have inf.
        order: In each cloud, the row numbers of the neurons in the order of `nearest`.
        pairs: Pairs of neurons whose ratios are computed exactly at later steps, as flat row numbers cloud * n + row:
            neurons that are much nearer to each other than most, and each of several equal neurons with the first.
        equal: For each of `pairs`, whether its neurons are equal.
        origin: The clouds themselves, not a copy: do not change them in place. None if the caller keeps the values.
        reason: Why the bounds are looser than they could be, or certify nothing; empty otherwise.
    """

    nearest: Float[Tensor, "b n"]
    order: Int[Tensor, "b n"]
    pairs: Int[Tensor, "p 2"]
    equal: Bool[Tensor, " p"]
    origin: Float[Tensor, "b n d"] | None = None
    reason: str = ""

    @property
    def n_rows(self) -> int:
        """Number of neurons in all clouds, b * n."""
        return self.nearest.numel()


def snapshot(points: Tensor, k: int = 8, near: float = 0.25) -> Snapshot:
    """Take a snapshot of a cloud: a lower bound of the distance from each neuron to its nearest neighbour.

    From it `step_bound` bounds later steps without comparing all pairs. Very near pairs are listed in
    `Snapshot.pairs`, to be computed exactly at later steps.

    In a cloud of more than 20,000 neurons distances are bounded by their projection on six directions, and computed
    only where these are smallest: later bounds are looser. If more than an eighth of its neurons equal another one,
    later bounds certify nothing; nor do they for a cloud with NaN or infinities. `Snapshot.reason` says so.

    Args:
        points: A cloud (n, d), or b clouds (b, n, d). The snapshot keeps a reference to it, not a copy.
        k: The most neighbours to list for each neuron.
        near: List pairs nearer than `near` times the upper quartile of the distances to nearest neighbours, and about
            n / 8 pairs at most. inf lists the k nearest neighbours of every neuron: later bounds are tighter and cost
            more.

    Raises:
        TypeError: The dtype is not a real floating-point one.
        ValueError: `points` has neither two nor three dimensions, or `k` is below 1.

    >>> snapshot(torch.tensor([[0.0], [1.0], [3.0]])).nearest.round(decimals=2)
    tensor([[1., 1., 2.]], dtype=torch.float64)
    """
    if k < 1:
        raise ValueError(f"expected k >= 1, got {k}")
    clouds = as_clouds(points)
    b, n, _ = clouds.shape
    with full_precision(clouds.device):
        if n < 2:
            return _sorted(clouds.new_full((b, n), torch.inf, dtype=wide_dtype(clouds.device)), clouds, [], [], "")
        if n > MAX_ROWS:
            return _snapshot_of_many(clouds, k, near)
        return snapshot_of_nearest(clouds, *nearest_by_products(clouds), k=k, near=near)


def snapshot_of_nearest(
    clouds: Float[Tensor, "b n d"],
    nearest: Float[Tensor, "b n"],
    resolved: Float[Tensor, "b 1"],
    *,
    k: int = 8,
    near: float = 0.25,
) -> Snapshot:
    """Take a snapshot of clouds for which the distances to nearest neighbours are already bounded from below.

    It saves the matrix product that `snapshot` needs. Take `nearest` and `resolved` from a `Distortions`.

    Args:
        clouds: The neurons of each cloud, one row each.
        nearest: For each neuron, a lower bound of the distance to its nearest neighbour.
        resolved: For each cloud, a distance; entries of `nearest` above it are within one percent of the true distance.
        k: The most neighbours to list for each neuron.
        near: How near listed pairs must be, see `snapshot`.
    """
    nearest = nearest.clone()
    usual = nearest.quantile(_USUAL, dim=1, keepdim=True)
    unclear = (nearest <= resolved) | (nearest < near * usual)
    pairs: list[Tensor] = []
    equal: list[Tensor] = []
    for block in unclear.any(dim=1).nonzero().flatten().tolist():
        rows = unclear[block].nonzero().flatten()
        distances, columns, first = _neighbours(clouds[block], rows, k)
        member = first != rows
        distances[member] = torch.inf
        nearest[block, rows] = distances[:, 0]
        threshold = _nearness(distances, nearest[block], near, clouds.shape[1] // 8)
        listed = distances < threshold
        listed[:, -1] = False  # the last one bounds whatever is beyond the list
        nearest[block, rows] = distances.masked_fill(listed, torch.inf).amin(dim=1)
        i, position = listed.nonzero(as_tuple=True)
        close = torch.stack([rows[i], columns[i, position]], dim=1).sort(dim=1).values.unique(dim=0)
        same = torch.stack([first[member], rows[member]], dim=1)
        pairs.append(torch.cat([close, same]) + block * clouds.shape[1])
        equal.append(torch.arange(len(close) + len(same), device=rows.device) >= len(close))
    return _sorted(nearest, clouds, pairs, equal, _or_not_finite(nearest, ""))


def carried(taken: Snapshot, moved: Float[Tensor, " rows"]) -> Snapshot:
    """The snapshot of the same clouds after these displacements, from the one before them: no distance is computed.

    d_ij >= max(m_i, m_j) - u_i - u_j, m the lower bounds at the snapshot and u the displacements since. The pairs that
    it lists stay listed.

    Args:
        taken: The snapshot before.
        moved: For each neuron, an upper bound of how far it has moved since.
    """
    b, n = taken.nearest.shape
    if n < 2:
        return replace(taken, origin=None)
    up = 1 + 16 * torch.finfo(taken.nearest.dtype).eps
    lengths = (moved.view(b, n).to(taken.nearest.dtype) * up).gather(1, taken.order)
    longest = lengths.cummax(dim=1).values.roll(1, dims=1)
    longest[:, 0] = 0.0
    # To those before it in order, and to those after.
    before = taken.nearest - longest
    before[:, 0] = torch.inf
    after = (taken.nearest - lengths).flip(1).cummin(dim=1).values.flip(1).roll(-1, dims=1)
    after[:, -1] = torch.inf
    nearest = ((torch.minimum(before, after) - lengths) / up).clamp(min=0.0)
    nearest, order = nearest.sort(dim=1)
    return replace(taken, nearest=nearest, order=taken.order.gather(1, order), origin=None)


def _snapshot_of_many(clouds: Float[Tensor, "b n d"], k: int, near: float) -> Snapshot:
    """Take a snapshot without n² work, of clouds with more than `MAX_ROWS` neurons."""
    b, n, _ = clouds.shape
    nearest = clouds.new_full((b, n), torch.nan, dtype=wide_dtype(clouds.device))
    reason = f"more than {MAX_ROWS} neurons: their distances are bounded by those in a few directions"
    pairs: list[Tensor] = []
    equal: list[Tensor] = []
    numbers = torch.arange(n, device=clouds.device)
    for block, cloud in enumerate(clouds):
        if not bool(cloud.isfinite().all()):
            continue
        first = first_equal(cloud)
        members = (first != numbers).nonzero().flatten()
        if len(members) * _MOST_EQUAL > n:
            nearest[block] = 0.0
            reason = f"more than {MAX_ROWS} neurons, of which {len(members):,} equal another one: nothing is certified"
            continue
        alone = (first == numbers).nonzero().flatten()
        distances, columns = near_by_directions(cloud, alone, min(k, _NEAR_AMONG_MANY))
        nearest[block] = torch.inf
        nearest[block, alone] = distances.amin(dim=1)
        listed = distances < _nearness(distances[:, :-1], nearest[block], near, n // _MANY_PAIRS)
        listed[:, -1] = False  # it bounds whatever is beyond the list
        nearest[block, alone] = distances.masked_fill(listed, torch.inf).amin(dim=1)
        i, position = listed.nonzero(as_tuple=True)
        close = torch.stack([alone[i], columns[i, position]], dim=1).sort(dim=1).values.unique(dim=0)
        same = torch.stack([first[members], members], dim=1)
        pairs.append(torch.cat([close, same]) + block * n)
        equal.append(torch.arange(len(close) + len(same), device=clouds.device) >= len(close))
    return _sorted(nearest, clouds, pairs, equal, _or_not_finite(nearest, reason))


def as_clouds(points: Tensor) -> Float[Tensor, "b n d"]:
    """The points as b clouds, detached; raise unless the shape is (n, d) or (b, n, d)."""
    if points.ndim not in (2, 3):
        raise ValueError(f"expected points of shape (n, d) or (b, n, d), got {tuple(points.shape)}")
    if not points.is_floating_point():
        raise TypeError(f"expected points of a real floating-point dtype, got {points.dtype}")
    points = points.detach()
    if points.shape[-1] == 0:  # neurons without coordinates are all equal, as those with a zero
        points = points.new_zeros(*points.shape[:-1], 1)
    return points[None] if points.ndim == 2 else points


def _neighbours(
    cloud: Float[Tensor, "n d"], rows: Int[Tensor, " m"], k: int
) -> tuple[Float[Tensor, "m l"], Int[Tensor, "m l"], Int[Tensor, " m"]]:
    """Lower bounds, to the last digits, of the distances to the k + 1 nearest that are not equal; the first equal one.

    Of several equal neurons only the first is anybody's neighbour.
    """
    distances, columns, first = _listed(cloud, rows, k, rows[:0])
    members = rows[first != rows]
    if len(members):
        distances, columns, _ = _listed(cloud, rows, k, members)
    return distances, columns, first


def _nearness(distances: Float[Tensor, "m l"], nearest: Float[Tensor, " n"], near: float, n_pairs: int) -> float:
    """The distance below which listed pairs are computed exactly: about `n_pairs` at most."""
    if near == torch.inf:
        return torch.inf
    apart = nearest[nearest.isfinite()]
    threshold = near * float(apart.quantile(_USUAL)) if len(apart) else 0.0
    # A pair stands in two lists.
    most = 2 * max(_FEW_PAIRS, n_pairs)
    if int((distances < threshold).sum()) > most:
        threshold = float(distances.flatten().kthvalue(most + 1).values)
    return threshold


def _listed(
    cloud: Float[Tensor, "n d"], rows: Int[Tensor, " m"], k: int, hidden: Int[Tensor, " h"]
) -> tuple[Float[Tensor, "m l"], Int[Tensor, "m l"], Int[Tensor, " m"]]:
    scale, origin = binary_scale(cloud), mean_point(cloud)
    everyone = Rows.around(cloud, origin, scale)
    squares, columns, first = [], [], []
    for some in rows.split(max(1, _TILE_ELEMENTS // len(cloud))):
        tile = squared_distances(Rows.around(cloud[some], origin, scale), everyone)
        tile[torch.arange(len(some), device=some.device), some] = 0.0
        first.append((tile == 0).int().argmax(dim=1))
        tile.masked_fill_(tile == 0, torch.inf)
        tile[:, hidden] = torch.inf
        found = tile.topk(min(k + 1, len(cloud)), dim=1, largest=False)
        squares.append(found.values)
        columns.append(found.indices)
    accuracy = max(ACCURACY, torch.finfo(origin.dtype).eps) * (8 + cloud.shape[1] ** 0.5)
    return torch.cat(squares).sqrt() / scale * (1 - accuracy), torch.cat(columns), torch.cat(first)


def _sorted(
    nearest: Float[Tensor, "b n"], clouds: Float[Tensor, "b n d"], pairs: list[Tensor], equal: list[Tensor], reason: str
) -> Snapshot:
    nearest, order = nearest.sort(dim=1)
    no_pair = torch.empty((0, 2), dtype=torch.long, device=clouds.device)
    return Snapshot(
        nearest, order, torch.cat([no_pair, *pairs]), torch.cat([no_pair[:, 0] > 0, *equal]), clouds, reason
    )


def _or_not_finite(nearest: Float[Tensor, "b n"], reason: str) -> str:
    return "NaN or infinite values: nothing is certified" if bool(nearest.isnan().any()) else reason
