"""Upper bounds of the critical ratio of every step, for all groups of one process together."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_topo.geometry import BoundTable, Snapshot, pair_bounds, snapshot, snapshot_of_nearest
from lightning_topo.geometry.snapshots import as_clouds
from lightning_topo.memory import resting_device
from lightning_topo.neurons import NeuronGroup
from lightning_topo.neurons.displacements import DisplacementMeter, gather_rows
from lightning_topo.probes import Clouds

Nearest = Mapping[str, tuple[Tensor, Tensor]]
"""By group, what `snapshot_of_nearest` takes."""

LIMIT = 0.9
"""A bound from here on asks for an exact measurement."""


@dataclass(frozen=True, slots=True)
class GroupBound:
    """Upper bounds of r of one step of a group, and of the net map since its snapshot; inf or NaN certify nothing.

    The span is known where the step's bound reaches the limit, and infinite elsewhere.
    """

    step: float
    span: float


class _Resting(Mapping[str, Tensor]):
    """Copies of parameters that are rarely looked at, kept on another device, each brought back when asked for."""

    def __init__(
        self, parameters: Mapping[str, Tensor], names: Sequence[str], resting: Callable[[torch.device], torch.device]
    ) -> None:
        self._devices = {name: parameters[name].device for name in names}
        self._copies = {
            name: torch.empty_like(parameters[name], device=resting(device), requires_grad=False)
            for name, device in self._devices.items()
        }
        self.take(parameters)

    @torch.no_grad()
    def take(self, parameters: Mapping[str, Tensor]) -> None:
        """Copy the values that these parameters have now."""
        present = [parameters[name].detach() for name in self._copies]
        torch._foreach_copy_(list(self._copies.values()), present)  # pyright: ignore[reportPrivateImportUsage]

    def __getitem__(self, name: str) -> Tensor:
        return self._copies[name].to(self._devices[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._copies)

    def __len__(self) -> int:
        return len(self._copies)

    def __contains__(self, name: object) -> bool:
        return name in self._copies


class Bounds:
    """Bounds each step from the lengths of displacements, since a snapshot of all groups at one moment.

    Holds one copy of the parameters, those of the snapshot, where `resting` says for their device, and works along
    their own axes: no cloud is gathered. `n_steps` counts the steps since.
    """

    def __init__(
        self,
        groups: Sequence[NeuronGroup],
        parameters: Mapping[str, Tensor],
        resting: Callable[[torch.device], torch.device] = resting_device,
    ) -> None:
        self.groups: tuple[NeuronGroup, ...] = tuple(groups)
        self.names: frozenset[str] = frozenset(parameters)
        self._meter = DisplacementMeter.of(self.groups, parameters)
        self._origin = _Resting(parameters, self._meter.names, resting)
        self._members = {
            group.name: {name for piece in group.slices for name in piece.names(group.n)} & self._origin.keys()
            for group in self.groups
        }
        self._snapshots: list[Snapshot] = []
        self._table: BoundTable | None = None
        self._since: Tensor | None = None
        self._is_path = False
        self.n_steps = 0
        self._take(parameters, {})

    @property
    def last(self) -> Clouds:
        """The clouds of the snapshot."""
        return Clouds(self.groups, self._origin)

    def renew(self, parameters: Mapping[str, Tensor], nearest: Nearest | None = None) -> None:
        """Take a new snapshot of all groups; of those in `nearest` an exact measurement has the distances at hand."""
        self._origin.take(parameters)
        self._take(parameters, nearest or {})

    def forget_path(self) -> None:
        """Something else than an update has moved parameters: measure anew how far they are from the snapshot."""
        self._since, self._is_path = None, False

    def of_step(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, GroupBound]:
        """The bounds of the step between two states of the parameters, by group.

        How far neurons are from the snapshot is bounded by the length of their path, one pass over the parameters a
        step, as long as that certifies the step; else it is measured, and the span with it. The snapshot's parameters
        are not looked at before.
        """
        assert self._table is not None
        self.n_steps += 1
        moved = self._meter.lengths(before, after)
        since, is_path = self._since, self._is_path
        if since is None:
            since = self._meter.lengths(self._origin, before)
        steps = self._table.bounds(moved, since).tolist()
        spans = [math.inf] * len(steps)
        self._since, self._is_path = since + moved, True
        if not all(bound < LIMIT for bound in steps):
            self._since, self._is_path = self._meter.lengths(self._origin, after), False
            spans = self._table.bounds(self._since).tolist()
            if is_path:
                steps = self._table.bounds(moved, self._meter.lengths(self._origin, before)).tolist()
        found = {
            group.name: GroupBound(*pair)
            for group, pair in zip(self.groups, zip(steps, spans, strict=True), strict=True)
        }
        for group, one in zip(self.groups, self._snapshots, strict=True):
            if len(one.pairs):
                found[group.name] = self._with_pairs(group, one, found[group.name], before, after)
        return found

    def _with_pairs(
        self,
        group: NeuronGroup,
        one: Snapshot,
        bound: GroupBound,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
    ) -> GroupBound:
        """The bounds with the pairs that are so near that they are computed exactly."""

        def rows(tensors: Mapping[str, Tensor]) -> Tensor:
            return gather_rows(group, {name: tensors[name] for name in self._members[group.name]}, one.pairs)

        end = rows(after)
        step = _larger(bound.step, float(pair_bounds(one, rows(before), end)))
        if bound.span == math.inf:
            return GroupBound(step, bound.span)
        return GroupBound(step, _larger(bound.span, float(pair_bounds(one, rows(self._origin), end))))

    def _take(self, parameters: Mapping[str, Tensor], nearest: Nearest) -> None:
        named = {name: parameters[name] for name in self._origin}
        self._snapshots = []
        for group in self.groups:
            cloud = group.gather(named).unflatten(0, (group.n_blocks, group.n))
            known = nearest.get(group.name)
            taken = snapshot(cloud) if known is None else snapshot_of_nearest(as_clouds(cloud), *known)
            self._snapshots.append(replace(taken, origin=None))
        self._table, self.n_steps = BoundTable.of(self._snapshots), 0
        # Where the neurons stand now, as long as nothing else moves them: no need to measure that.
        self._since, self._is_path = self._meter.nowhere(), False


def _larger(a: float, b: float) -> float:
    """The larger of two; NaN where either is."""
    return a if a != a or a >= b else b
