"""Upper bounds of the critical ratio of every step, for all groups of one process together."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_topo._clock import Clock
from lightning_topo._memory import resting_device
from lightning_topo._watch.frozen_stamps import FrozenStamps
from lightning_topo._watch.launched import Launched
from lightning_topo._watch.many_neurons import ManyNeurons, is_measurable
from lightning_topo._watch.resting_copies import Resting, RestingCopies
from lightning_topo.geometry import BoundTable, Snapshot, pair_bounds, snapshot, snapshot_of_nearest
from lightning_topo.geometry._snapshots import as_clouds, carried
from lightning_topo.neurons import NeuronGroup
from lightning_topo.neurons._displacements import DisplacementMeter, gather_rows
from lightning_topo.neurons._partly_trained import Beside, stacked_with
from lightning_topo.probes import Clouds

Nearest = Mapping[str, tuple[Tensor, Tensor]]
"""By group, what `snapshot_of_nearest` takes."""

LIMIT = 0.9
"""A bound from here on asks for an exact measurement."""

_OTHER_ORDER = 2.0**12
"""Two sums of the same numbers may differ by this many times the rounding of one."""


@dataclass(frozen=True, slots=True)
class GroupBound:
    """Upper bounds of r of one step of a group, and of the net map since its snapshot; inf or NaN certify nothing.

    The span is known where the step's bound reaches the limit, and infinite elsewhere.
    """

    step: float
    span: float


class Bounds:
    """Bounds each step from the lengths of displacements, since a snapshot of all groups at one moment.

    Holds one copy of the parameters, those of the snapshot, where `resting` says for their device and size, and works
    along their own axes: no cloud is gathered. `n_steps` counts the steps since, `was_moved_outside` where something
    other than an update has moved parameters since. `generation` is that of the parameters (`Steps.generation`): of
    later ones these bounds know nothing.

    `many` are the groups of too many neurons to be measured, of which nothing is bounded once they are given up.
    `beside` holds what is frozen of groups: it keeps neurons apart, as long as it stands as at the snapshot. Where it
    never does, neurons are as near as the trained parts of them, which is no more than they are.
    """

    def __init__(
        self,
        groups: Sequence[NeuronGroup],
        parameters: Mapping[str, Tensor],
        resting: Resting = resting_device,
        nearest: Nearest | None = None,
        generation: int = 0,
        beside: Beside | None = None,
    ) -> None:
        self.groups: tuple[NeuronGroup, ...] = tuple(groups)
        self.beside: Beside = beside or {}
        self._stacked = _stacked(self.groups, parameters, self.beside)
        self._frozen = FrozenStamps(self.beside)
        self.generation: int = generation
        self.names: frozenset[str] = frozenset(parameters)
        parameters = {**parameters, **self._stacked}
        self._meter = DisplacementMeter.of(self.groups, parameters)
        self._origin = RestingCopies(parameters, self._meter.names, resting)
        self._members = {group.name: set(group.parameter_names) & self._origin.keys() for group in self.groups}
        self._snapshots: list[Snapshot] = []
        self._table: BoundTable | None = None
        self._since: Tensor | None = None
        self._is_path = False
        self._doubt: Tensor | None = None
        self.n_steps = 0
        self.was_moved_outside = False
        self.many: ManyNeurons = ManyNeurons([group for group in self.groups if not is_measurable(group)])
        self._take(parameters, nearest or {})

    @property
    def last(self) -> Clouds:
        """The clouds of the snapshot."""
        return Clouds(self.groups, self._origin, beside=self.beside)

    def renew(
        self, parameters: Mapping[str, Tensor], nearest: Nearest | None = None, *, carries: Collection[str] = ()
    ) -> None:
        """Take a new snapshot of all groups; `nearest` holds the distances that an exact measurement already has.

        Of those that it `carries` no distance is computed: their bounds are as loose as before.
        """
        parameters = {**parameters, **self._stacked}
        moved = self._meter.lengths(self._origin, parameters) if carries else None
        self._origin.take(parameters)
        self._take(parameters, nearest or {}, carries, moved)

    def leaves_out_frozen(self, group: str) -> bool:
        """Whether the bounds of a group hold whatever moves what is frozen of it."""
        return group in self._frozen.restless or group not in self.beside

    def forget_path(self) -> None:
        """Something other than an update has moved parameters: measure again how far they are from the snapshot."""
        self._since, self._is_path = None, False
        self.was_moved_outside = True

    def of_step(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, GroupBound]:
        """The bounds of the step between two states of the parameters, by group, none of which is given up."""
        return self.read(self.launch(before, after), gives_up=False)

    def launch(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Launched:
        """Begin to bound the step between two states of the parameters; nothing waits for the device.

        How far neurons are from the snapshot is bounded by the length of their path, one pass over the parameters a
        step: the snapshot's parameters are not looked at.
        """
        assert self._table is not None
        before, after = {**before, **self._stacked}, {**after, **self._stacked}
        self.n_steps += 1
        if self._has_nothing_left:
            moved, doubt = self._meter.nowhere(), self._doubt
            self._since, self._is_path, self._doubt = None, False, None
            found = moved.new_full((len(self.groups),), math.inf)
            found = found if doubt is None else torch.cat([found, doubt.to(found.dtype)[None]])
            return Launched.of(before, after, moved, found, is_path=False, has_doubt=doubt is not None)
        moved = self._meter.lengths(before, after)
        since, is_path = self._since, self._is_path
        if since is None:
            since = self._meter.lengths(self._origin, before)
        near = [
            pair_bounds(one, self._rows(group, one, before), self._rows(group, one, after))
            for group, one in self._with_pairs()
        ]
        self._since, self._is_path = since + moved, True
        doubt, self._doubt = self._doubt, None
        found = self._table.bounds(moved, since)
        rest = [*near, *([] if doubt is None else [doubt.to(found.dtype)])]
        values = torch.cat([found, *(value[None] for value in rest)])
        return Launched.of(before, after, moved, values, is_path=is_path, has_doubt=doubt is not None)

    def still(self, launched: Launched) -> Tensor:
        """Whether the parameters of a launched step are where it left them: a flag on the device.

        By how far they are from where the step began, since not every write counts: `.data` is written to unseen.
        """
        if self._has_nothing_left:
            return torch.ones((), dtype=torch.bool, device=launched.moved.device)
        moved = self._meter.lengths(launched.before, launched.after)
        # A GPU adds up in another order each time.
        near = _OTHER_ORDER * torch.finfo(moved.dtype).eps
        return torch.isclose(moved, launched.moved, rtol=near, atol=0.0).all()

    def doubt(self, stood: Tensor) -> None:
        """Bound the next step from the snapshot itself if this flag turns out false, since the path then has a gap."""
        self._doubt = stood

    def read(self, launched: Launched, *, stands: bool = True, gives_up: bool = True) -> dict[str, GroupBound]:
        """The bounds of a launched step, by group.

        Where they do not certify it, it is measured how far neurons are from the snapshot, and the span with it, if the
        parameters still `stands` as they were launched; before another step is launched. Groups that are given up are
        left out of this, and their bounds are infinite.
        """
        assert self._table is not None
        values = launched.values()
        has_gap = launched.has_doubt and not values.pop()
        steps, near = values[: len(self.groups)], values[len(self.groups) :]
        if has_gap:
            steps = [math.inf] * len(steps)
            self.was_moved_outside = True
        spans = [math.inf] * len(steps)
        given_up = self.many.given_up
        asked = [step for group, step in zip(self.groups, steps, strict=True) if group.name not in given_up]
        measures = stands and not all(bound < LIMIT for bound in [*asked, *near])
        if measures:
            self._since, self._is_path = self._meter.lengths(self._origin, launched.after), False
            spans = self._table.bounds(self._since).tolist()
            if launched.is_path or has_gap:
                # A neuron was no farther from the snapshot before the step than after it, and by the step's length.
                steps = self._table.bounds(launched.moved, self._since + launched.moved).tolist()
                if not all(bound < LIMIT for bound in steps):
                    since = self._meter.lengths(self._origin, launched.before)
                    steps = self._table.bounds(launched.moved, since).tolist()
        found = {
            group.name: GroupBound(*pair)
            for group, pair in zip(self.groups, zip(steps, spans, strict=True), strict=True)
        }
        for (group, one), exact in zip(self._with_pairs(), near, strict=True):
            bound = found[group.name]
            span = bound.span
            if span != math.inf:
                rows = [self._rows(group, one, tensors) for tensors in (self._origin, launched.after)]
                span = _larger(span, float(pair_bounds(one, *rows)))
            found[group.name] = GroupBound(_larger(bound.step, exact), span)
        if measures and gives_up:
            self.many.give_up(name for name, one in found.items() if not (one.step < LIMIT or one.span < 1.0))
        found |= dict.fromkeys(self._frozen.moved(), GroupBound(math.inf, math.inf))
        open_ = {
            name: GroupBound(math.nan if math.isnan(found[name].step) else math.inf, math.inf) for name in given_up
        }
        return found | open_

    @property
    def _has_nothing_left(self) -> bool:
        """Whether all groups are given up: no step is bounded until the next snapshot."""
        return len(self.many.given_up) == len(self.groups)

    def _with_pairs(self) -> list[tuple[NeuronGroup, Snapshot]]:
        """The groups with pairs that are so near that they are computed exactly."""
        both = zip(self.groups, self._snapshots, strict=True)
        return [(group, one) for group, one in both if len(one.pairs) and group.name not in self.many.given_up]

    def _rows(self, group: NeuronGroup, one: Snapshot, tensors: Mapping[str, Tensor]) -> Tensor:
        own = {name: tensors[name] for name in self._members[group.name]}
        return gather_rows(group, {**own, **self._resting(group)}, one.pairs)

    def _resting(self, group: NeuronGroup) -> Mapping[str, Tensor]:
        """What is frozen of a group and keeps its neurons apart."""
        return {} if group.name in self._frozen.restless else self.beside.get(group.name, {})

    def _take(
        self,
        parameters: Mapping[str, Tensor],
        nearest: Nearest,
        carries: Collection[str] = (),
        moved: Tensor | None = None,
    ) -> None:
        named = {name: parameters[name] for name in self._origin}
        before = iter(self._snapshots)
        lengths = iter(() if moved is None else moved.split([one.n_rows for one in self._snapshots]))
        taken = []
        for group in self.groups:
            last, length = next(before, None), next(lengths, None)
            if group.name in carries and last is not None and length is not None:
                taken.append(carried(last, length))
                continue
            clock = Clock()
            self._frozen.take(group.name, gives_up=self._stacked.keys().isdisjoint(group.parameter_names))
            cloud = group.gather({**named, **self._resting(group)}).unflatten(0, (group.n_blocks, group.n))
            known = None if group.name in self._frozen.restless else nearest.get(group.name)
            one = snapshot(cloud) if known is None else snapshot_of_nearest(as_clouds(cloud), *known)
            taken.append(replace(one, origin=None))
            self.many.renewed(group, clock.seconds())
        self._snapshots, self.was_moved_outside = taken, False
        self._table, self.n_steps = BoundTable.of(self._snapshots), 0
        # Where the neurons stand now, as long as nothing else moves them: no need to measure that.
        self._since, self._is_path = self._meter.nowhere(), False


def _stacked(groups: Sequence[NeuronGroup], parameters: Mapping[str, Tensor], beside: Beside) -> dict[str, Tensor]:
    """The frozen members of stacks of which other members are trained: a stack is measured as a whole."""
    found = (stacked_with(group, parameters, beside[group.name]) for group in groups if group.name in beside)
    return {name: tensor.detach() for stacked in found for name, tensor in stacked.items()}


def _larger(a: float, b: float) -> float:
    """The larger of two; NaN where either is."""
    return a if a != a or a >= b else b
