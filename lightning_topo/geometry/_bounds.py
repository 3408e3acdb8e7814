"""Upper bounds of the critical ratio of a step, from the lengths of the neurons' displacements: no pairs, O(n d).

With d_ij >= m_ij = max(m_i, m_j) - u_i - u_j, m the distances to nearest neighbours at a snapshot and u the
displacements since, a step of displacements v has

    r <= max over i of (v_i + max v_j) / (m_i - u_i - max u_j),    both maxima over the j before i in order of m.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_topo.geometry._precision import full_precision, wide_dtype, worst_case_slack, worst_case_work
from lightning_topo.geometry._snapshots import Snapshot, as_clouds

_WASTE = 8


@dataclass(frozen=True, slots=True)
class StepBound:
    """Upper bounds of the critical ratio r of one step, and of the span from a snapshot to the end of that step.

    r is the largest |Δ_i - Δ_j| / |x_i - x_j| over all pairs of neurons of a cloud. x_i is neuron i before the step,
    Δ_i its displacement. For the span, the snapshot takes the place of the state before the step.

    The bounds are scalars from `step_bound`, and have one entry per group from `step_bounds`. They lie on the neurons'
    device; reading a value waits for the device. An infinite or NaN bound certifies nothing: test `bound < limit`,
    which is False for both.

    Attributes:
        step: Bound of r of the step. Below 1, no two distinct neurons merged in the step.
        span: Bound of r of the span. Below 1, neurons that were distinct at the snapshot are distinct after the step;
            they may have met and parted in between.
    """

    step: Float[Tensor, "..."]
    span: Float[Tensor, "..."]


@dataclass(frozen=True, slots=True, eq=False)
class _Bucket:
    """Blocks of similar numbers of neurons, side by side: rows in order of `nearest`, padded at the end.

    `rows` holds them one block after the other. `nearest` leaves out the first row of each block: no row precedes it.
    """

    rows: Int[Tensor, " entries"]
    nearest: Float[Tensor, "b m"]
    owner: Int[Tensor, " b"]


@dataclass(frozen=True, slots=True, eq=False)
class BoundTable:
    """The snapshots of several groups in one layout, to bound the critical ratios of all groups at once.

    Build it with `BoundTable.of`. At each step pass the lengths of the neurons' displacements to `bounds`, for example
    from `neurons.DisplacementMeter.lengths`. A row is a neuron: the table lists the neurons of one snapshot after the
    other, and within a snapshot one block after the other.

    Attributes:
        buckets: The blocks, sorted into buckets of similar size.
        n_groups: Number of snapshots.
        n_rows: Number of neurons in all snapshots.

    >>> from lightning_topo.geometry import snapshot
    >>> table = BoundTable.of([snapshot(torch.tensor([[0.0], [1.0], [3.0]])), snapshot(torch.zeros(1, 1))])
    >>> table.bounds(torch.tensor([0.25, 0.25, 0.0, 9.0])).round(decimals=3)
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """

    buckets: tuple[_Bucket, ...]
    n_groups: int
    n_rows: int

    @staticmethod
    def of(snapshots: Sequence[Snapshot]) -> "BoundTable":
        """Build the table of snapshots that lie on one device; group g of the table is `snapshots[g]`."""
        starts = [0]
        for one in snapshots:
            starts.append(starts[-1] + one.n_rows)
        buckets: list[_Bucket] = []
        by_size = sorted(range(len(snapshots)), key=lambda g: snapshots[g].nearest.shape[1])
        while by_size:
            width = snapshots[by_size[-1]].nearest.shape[1]
            members = [g for g in by_size if snapshots[g].nearest.shape[1] * _WASTE >= width]
            by_size = by_size[: len(by_size) - len(members)]
            buckets.append(_bucket(snapshots, members, starts, max(width, 2)))
        return BoundTable(tuple(buckets), len(snapshots), starts[-1])

    def bounds(
        self, displacements: Float[Tensor, " rows"], since: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, " groups"]:
        """Bound the critical ratio r of a step for each group, from the lengths of its neurons' displacements.

        r is the largest |Δ_i - Δ_j| / |x_i - x_j| over pairs of neurons. x_i is neuron i before the step, Δ_i its
        displacement. Pairs listed in `Snapshot.pairs` are left out; `pair_bounds` bounds them. Returns one bound per
        group; an infinite or NaN bound certifies nothing.

        To bound the span from the snapshot to now, pass the displacements since the snapshot, and no `since`.

        Args:
            displacements: Upper bound of |Δ_i| for each row. A displacement common to the neurons of a block may be
                subtracted first.
            since: Upper bound of how far each row moved from the snapshot to the start of the step; None counts as 0.
                Lengths along the path serve too: `since + displacements` is a valid `since` for the next step.

        Raises:
            ValueError: `displacements` or `since` does not have one entry per row.
        """
        for lengths in (displacements, since):
            if lengths is not None and lengths.shape != (self.n_rows,):
                raise ValueError(f"expected {self.n_rows} lengths, one per row, got shape {tuple(lengths.shape)}")
        wide = wide_dtype(displacements.device)
        result = torch.zeros(self.n_groups, dtype=wide, device=displacements.device)
        # What follows rounds to `wide`: a share of each term covers it.
        up = 1 + 16 * torch.finfo(wide).eps
        lengths = torch.stack([displacements] if since is None else [displacements, since]).to(wide)
        padded = torch.nn.functional.pad(lengths.mul_(up), (0, 1))
        for bucket in self.buckets:
            n_blocks, width = bucket.nearest.shape
            ordered = padded.index_select(1, bucket.rows).view(len(padded), n_blocks, width + 1)
            # Each and the largest before it.
            pairs = ordered.narrow(2, 1, width) + ordered.narrow(2, 0, width).cummax(dim=2).values
            room = bucket.nearest if since is None else (bucket.nearest - pairs[1]).clamp_(min=0.0)
            result.scatter_reduce_(0, bucket.owner, (pairs[0] / room).amax(dim=1).mul_(up), "amax")
        return result


def _bucket(snapshots: Sequence[Snapshot], members: Sequence[int], starts: Sequence[int], width: int) -> _Bucket:
    rows, nearest, owner = [], [], []
    for g in sorted(members):
        b, n = snapshots[g].nearest.shape
        blocks = torch.arange(b, device=snapshots[g].order.device)[:, None] * n + starts[g]
        rows.append(torch.nn.functional.pad(snapshots[g].order + blocks, (0, width - n), value=starts[-1]))
        down = 1 - 16 * torch.finfo(snapshots[g].nearest.dtype).eps
        nearest.append(torch.nn.functional.pad(snapshots[g].nearest * down, (0, width - n), value=torch.inf))
        owner.append(torch.full_like(blocks[:, 0], g))
    return _Bucket(torch.cat(rows).flatten(), torch.cat(nearest)[:, 1:].contiguous(), torch.cat(owner))


def upper_norms(squares: Float[Tensor, "..."], d: int, work: torch.dtype) -> Float[Tensor, "..."]:
    """Bound the length |Δ_i| of each displacement from above, given its sum of squares as computed with rounding.

    Returns float64 values (float32 on Apple's GPUs).

    Args:
        squares: For each neuron, the sum of the squares of the d entries of Δ_i.
        d: Number of entries of Δ_i.
        work: The dtype in which the differences, squares and sums were computed. Any order of summation is covered.

    >>> upper_norms(torch.tensor([25.0]), d=2, work=torch.float32).round(decimals=3)
    tensor([5.], dtype=torch.float64)
    """
    wide = wide_dtype(squares.device)
    slack, vanished = worst_case_slack(work, d), d * torch.finfo(work).tiny
    return squares.to(wide).mul(1 + slack).add_(vanished).sqrt_()


def displacement_lengths(
    before: Float[Tensor, "*b n d"], after: Float[Tensor, "*b n d"], centre: bool = False
) -> Float[Tensor, "*b n"]:
    """Bound the length |Δ_i| = |after_i - before_i| of each neuron's displacement from above, rounding included.

    Returns float64 values (float32 on Apple's GPUs).

    Args:
        before: The neurons before the step, one row each; one cloud or several.
        after: The same neurons after the step.
        centre: Bound |Δ_i - mean Δ| instead, at about twice the cost. mean Δ is the mean displacement of the neurons of
            the same cloud; subtracting it changes no distance between neurons.

    >>> displacement_lengths(torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 0.0]])).round(decimals=3)
    tensor([5., 0.], dtype=torch.float64)
    """
    d = before.shape[-1]
    work = worst_case_work(torch.promote_types(before.dtype, after.dtype), before.device, d)
    moved = after.to(work) - before.to(work)
    if not centre:
        return upper_norms(moved.square_().sum(dim=-1), d, work)
    mean = moved.mean(dim=-2, keepdim=True)
    lengths = upper_norms((moved - mean).square_().sum(dim=-1), d, work)
    # The difference was rounded in proportion to its own length, shift included.
    shift = upper_norms(mean.square().sum(dim=-1), d, work)
    return lengths + torch.finfo(work).eps * (lengths + shift)


def pair_bounds(pairs: Snapshot, before: Float[Tensor, "p 2 d"], after: Float[Tensor, "p 2 d"]) -> Float[Tensor, ""]:
    """Bound the largest |Δ_i - Δ_j| / |x_i - x_j| over the pairs that a snapshot lists, rounding included.

    `BoundTable.bounds` covers the other pairs of a group: the group's critical ratio is at most the larger of the two
    results. Returns a scalar: 0 if the snapshot lists no pair, inf if neurons that were equal at the snapshot differ
    before or after the step.

    Args:
        pairs: The snapshot.
        before: Both neurons of each pair before the step: `points.flatten(0, 1)[pairs.pairs]` for clouds (b, n, d).
            For the span since the snapshot, take them from the snapshot's own clouds.
        after: Both neurons of each pair after the step.
    """
    wide = wide_dtype(before.device)
    result = torch.zeros((), dtype=wide, device=before.device)
    if len(before) == 0:
        return result
    here, there = (points.to(wide)[:, 0] - points.to(wide)[:, 1] for points in (before, after))
    largest = here.abs().amax(dim=1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0)
    # Both differences were rounded in proportion to their own length, which may far exceed that of the move.
    moved = (there - here).abs() + torch.finfo(wide).eps * (here.abs() + there.abs())
    lengths = [torch.linalg.vector_norm(x / scale, dim=1) for x in (here, moved)]
    up = 1 + 4 * worst_case_slack(wide, before.shape[2])
    vanished = torch.finfo(wide).tiny ** 0.5
    apart = ((here != 0) | (there != 0)).any(dim=1)
    still = (before == after).flatten(1).all(dim=1) | ~apart
    ratio = torch.where(still, 0.0, (lengths[1] + vanished) / lengths[0] * up)
    ratio = torch.where(pairs.equal & apart, torch.inf, ratio)
    return torch.maximum(ratio.amax(), result)


def step_bounds(
    moves: Sequence[tuple[Snapshot, Tensor, Tensor]], table: BoundTable | None = None, centre: bool = False
) -> StepBound:
    """Bound the critical ratio r of one step of several groups, and of each group's span since its snapshot.

    r is the largest |Δ_i - Δ_j| / |x_i - x_j| over all pairs of neurons of a cloud. x_i is neuron i before the step,
    Δ_i its displacement. The span is the net change from the snapshot to the end of the step. The bounds include
    the rounding of their own computation. The call does not wait for the device.

    Args:
        moves: One (snapshot, before, after) per group, at least one. The clouds before and after the step have the
            shape of the snapshot's: (n, d), or (b, n, d) for b blocks.
        table: `BoundTable.of` the same snapshots in the same order; None builds it.
        centre: Whether to subtract the mean displacement first, which makes the bounds tighter and costs more.

    Raises:
        ValueError: A cloud has another shape than its snapshot's, or a snapshot has no `origin`.
    """
    table = BoundTable.of([one for one, _, _ in moves]) if table is None else table
    lengths: list[list[Tensor]] = [[], [], []]
    pairs: list[tuple[Tensor, Tensor]] = []
    with full_precision(moves[0][1].device):
        for one, before, after in moves:
            origin = one.origin
            before, after = as_clouds(before), as_clouds(after)
            if origin is None or not origin.shape == before.shape == after.shape:
                raise ValueError(
                    f"expected clouds of the snapshot's shape {None if origin is None else tuple(origin.shape)}, "
                    f"got {tuple(before.shape)} and {tuple(after.shape)}"
                )
            for k, (start, end) in enumerate(((before, after), (origin, before), (origin, after))):
                lengths[k].append(displacement_lengths(start, end, centre).flatten())
            rows = [points.flatten(0, 1)[one.pairs] for points in (origin, before, after)]
            pairs.append((pair_bounds(one, rows[1], rows[2]), pair_bounds(one, rows[0], rows[2])))
        step, since, span = (torch.cat(some) for some in lengths)
        exact = [torch.stack(some) for some in zip(*pairs, strict=True)]
        return StepBound(
            torch.maximum(table.bounds(step, since), exact[0]), torch.maximum(table.bounds(span), exact[1])
        )


def step_bound(
    since: Snapshot, before: Float[Tensor, "*b n d"], after: Float[Tensor, "*b n d"], centre: bool = False
) -> StepBound:
    """Bound the critical ratio r of one step of one group, and of its span since a snapshot.

    r is the largest |Δ_i - Δ_j| / |x_i - x_j| over all pairs of neurons of a cloud. x_i is neuron i before the step,
    Δ_i its displacement. For several groups use `step_bounds`.

    Args:
        since: A snapshot of the group, from `snapshot`.
        before: The neurons before the step, in the shape of the snapshot's cloud.
        after: The neurons after the step.
        centre: Whether to subtract the mean displacement first, which makes the bounds tighter and costs more.

    Raises:
        ValueError: A cloud has another shape than the snapshot's, or the snapshot has no `origin`.

    >>> from lightning_topo.geometry import snapshot
    >>> start = torch.tensor([[0.0], [1.0], [3.0]])
    >>> bound = step_bound(snapshot(start), start, 1.25 * start)
    >>> bound.step.round(decimals=3)  # r is 0.25
    tensor(0.5000, dtype=torch.float64)
    """
    bounds = step_bounds([(since, before, after)], centre=centre)
    return StepBound(bounds.step[0], bounds.span[0])
