"""How far each step bends the neuron clouds, and how far they are bent since training began."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo._keywords import explains_keywords
from lightning_topo.geometry import (
    MAX_ROWS,
    Distortions,
    StepDistortion,
    block_distortions,
    distinct_neurons,
    distortions,
)
from lightning_topo.geometry._block_search import MAX_ROWS as MOST_TOGETHER
from lightning_topo.geometry._coincidence import TOLERANCE
from lightning_topo.geometry._distances import wide_norms
from lightning_topo.neurons import NeuronGroup
from lightning_topo.neurons._one_run import named_state
from lightning_topo.probes._period import Period
from lightning_topo.probes._probe import Capture, ProbeResult
from lightning_topo.probes._twins import Twins, equal_neurons, find_twins, n_split

MOST_WAITING = 1 << 23
"""Clouds of small groups wait for others of their shape, up to this many bytes in all; on a GPU, four times as many."""


@explains_keywords
@dataclass(frozen=True, slots=True)
class Distortion:
    """Measures how each step changes the distances between the neurons of every group, exactly and over all pairs.

    The step moves neuron i from x_i to x_i + Δ_i. Values of each group (those of its worst block; counts are summed
    over the blocks):

    - of this step: `critical_ratio`, r = max |Δ_i - Δ_j| / |x_i - x_j| over pairs of neurons, where r < 1 proves that
      no two distinct neurons merged; `critical_i` and `critical_j`, the rows of the pair that attains r; `contraction`
      and `expansion`, the smallest and largest quotient of a pair's distance after the step and before it;
      `log_distortion`, the log of expansion / contraction;
    - of the net change since training began: `total_contraction`, `total_expansion`, `total_log_distortion`;
    - of the net change since the last snapshot (the copy of the neurons from which bounds of later steps are computed),
      if unmeasured steps lie between: `span_ratio` (r of this change), `span_contraction`, `span_expansion`;
    - `distinct_neurons`: the number of neurons, if neurons that are equal up to rounding count once; `n_neurons`: their
      number, in the record alone;
    - `twins_split`: how many neurons have parted from neurons that they equalled, in parameters and optimizer state, at
      the last measurement or before the optimizers' first step. Absent if no neurons were equal or parameters are
      sharded.

    What is frozen of a neuron counts: it keeps neurons apart. If whole neurons of a group of which a part is frozen
    take more than 128 MiB, they are measured without it; r of the trained part is at least that of the whole.

    A group with more than 20,000 neurons per block is not measured, as that takes O(n²) work; its steps still get an
    upper bound of r. Clouds are in memory one large group at a time, or up to 8 MiB of small groups (32 on a GPU).

    Args:
        every_n_steps: The period; "auto" begins with every step.

    Source: Yang, Poggio, Chuang, Ziyin, arXiv:2510.02670.

    >>> Distortion().period
    Period(every=1, unit='step', adaptive=True)
    """

    every_n_steps: int | Literal["auto"] = "auto"
    name: str = field(default="distortion", init=False, repr=False)
    measures_steps: ClassVar[bool] = True
    needs_parameters_before: ClassVar[bool] = True
    by_group: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _ = self.period

    @property
    def period(self) -> Period:
        """How often the probe measures, from `every_n_steps`; "auto" begins with every step."""
        return Period.parse(self.every_n_steps, default=1)

    def measure(self, capture: Capture) -> ProbeResult:
        """Measure how the last step distorted each group's cloud; without a step, report r = 0 and ratios of 1.

        A group that cannot be measured (too many neurons, NaN or infinite weights) is in the result's `failures`.
        """
        known: dict[str, Twins] = {} if capture.previous is None else dict(capture.previous.carry.twins)
        at_first = _parameters_at_first(capture) if capture.previous is None else None
        pass_ = _Pass(capture, known, at_first)
        for ways in _buckets(capture, pass_.failures):
            pass_.take(ways)
        # In the order of the groups, whichever were measured together.
        names = [group.name for group in capture.groups]
        values = {name: pass_.values[name] for name in names if name in pass_.values}
        failures = {name: pass_.failures[name] for name in names if name in pass_.failures}
        return ProbeResult(values, failures, carry=Carried(pass_.twins, pass_.nearest))


def _is_whole(group: NeuronGroup, capture: Capture) -> bool:
    """Whether all that makes up a neuron is known, and here: only then equal ones must stay equal."""
    return group.status == "verified" and capture.sharding == "whole"


def _parameters_at_first(capture: Capture) -> Mapping[str, Tensor] | None:
    """The parameters before the optimizers' first step: these kept no state that could tell equal neurons apart."""
    if not capture.is_first_step or capture.parameters_before is None or capture.sharding != "whole":
        return None
    return {**named_state(capture.module)[0], **capture.parameters_before}


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """What a measurement leaves: equal neurons, and how far each neuron is from others at least, by group.

    `nearest` holds what `snapshot_of_nearest` takes, of the groups that this measurement has looked at.
    """

    twins: Mapping[str, Twins]
    nearest: Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """A group's clouds before the step, now and, as far as that is known, when training began; block by block."""

    group: NeuronGroup
    before: Float[Tensor, "b n d"]
    after: Float[Tensor, "b n d"]
    reference: Float[Tensor, "b n d"] | None

    @property
    def n_bytes(self) -> int:
        """What these clouds take."""
        return sum(cloud.nbytes for cloud in (self.before, self.after, self.reference) if cloud is not None)

    @property
    def likeness(self) -> tuple[object, ...]:
        """The same for those that can be measured together."""
        n, d = self.after.shape[1:]
        return n, d, self.before.dtype, self.after.dtype, self.reference is None


def _buckets(capture: Capture, failures: dict[str, str]) -> Iterator[list[_Way]]:
    """The clouds of groups to measure together, none larger than need be: a large group alone, small ones of one shape.

    Why a group cannot be measured goes to `failures`. What was yielded is emptied before more is gathered.
    """
    waiting: dict[tuple[object, ...], list[_Way]] = {}
    n_bytes = 0
    for group in capture.groups:
        try:
            way = _way(group, capture)
        except ValueError as error:
            failures[group.name] = str(error)
            continue
        most = MOST_WAITING if way.after.device.type == "cpu" else 4 * MOST_WAITING
        if group.n > MOST_TOGETHER or way.n_bytes > most:
            bucket = [way]
            del way
            yield bucket
            bucket.clear()
            continue
        n_bytes += way.n_bytes
        waiting.setdefault(way.likeness, []).append(way)
        del way
        if n_bytes > most:
            yield from _emptied(waiting)
            n_bytes = 0
    yield from _emptied(waiting)


def _emptied(waiting: dict[tuple[object, ...], list[_Way]]) -> Iterator[list[_Way]]:
    while waiting:
        bucket = waiting.pop(next(iter(waiting)))
        yield bucket
        bucket.clear()


def _way(group: NeuronGroup, capture: Capture) -> _Way:
    if group.n > MAX_ROWS:
        raise ValueError(
            f"expected at most {MAX_ROWS:,} neurons to measure exactly, got {group.n:,}, which takes n² work: "
            "its steps are bounded"
        )
    after = capture.neurons[group.name]
    before = after if capture.before is None or group.n < 2 else capture.before[group.name]
    begins = capture.reference is capture.before  # training does, with this step
    reference = None if group.n < 2 else before if begins else capture.reference.get(group.name)
    reference = None if reference is None else _stacked(reference.to(after), group)
    return _Way(group, _stacked(before, group), _stacked(after, group), reference)


@dataclass(slots=True)
class _Pass:
    """One measurement under way: what has been found of the groups looked at so far."""

    capture: Capture
    known: dict[str, Twins]
    at_first: Mapping[str, Tensor] | None
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    twins: dict[str, Twins] = field(init=False)
    nearest: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.twins = dict(self.known)

    def take(self, ways: Sequence[_Way]) -> None:
        """Measure some groups together."""
        several = [way for way in ways if way.group.n > 1]
        found = _measured(several, self.failures)
        spans = _spans(self.capture, [way for way in several if way.group.name in found])
        for way in ways:
            name = way.group.name
            if name in found:
                self._note(way, found[name], spans.get(name, {}))
            elif name not in self.failures:
                n = way.after.shape[0] * way.after.shape[1]
                self.values[name] = {**_ALONE, "distinct_neurons": n, "n_neurons": n}

    def _note(self, way: _Way, measured: Distortions, span: Mapping[str, float]) -> None:
        group, after, name = way.group, way.after.flatten(0, 1), way.group.name
        values = self.values[name] = {**_values(group.n, measured), **span}
        self.nearest[name] = (measured.nearest, measured.resolved)
        distinct = len(after) if _are_apart(measured, after) else distinct_neurons(way.after)
        values |= {"distinct_neurons": distinct, "n_neurons": len(after)}
        if self.at_first is not None and _is_whole(group, self.capture):
            self.known[name] = equal_neurons(group, group.gather(self.at_first))
        if self.known.get(name):
            values["twins_split"] = float(n_split(self.known[name], after))
        self.twins.pop(name, None)
        # Where parameters are sharded, so are the moments, and no process can compare them by itself.
        if _is_whole(group, self.capture) and distinct < len(after):
            equal = find_twins(group, self.capture.module, self.capture.optimizers)
            self.twins |= {name: equal} if equal else {}


def _measured(ways: Sequence[_Way], failures: dict[str, str]) -> dict[str, Distortions]:
    """The distortions of groups whose clouds have one shape, measured together."""
    if not ways:
        return {}
    try:
        reference = (
            None if ways[0].reference is None else _joined([w.reference for w in ways if w.reference is not None])
        )
        together = distortions(_joined([w.before for w in ways]), _joined([w.after for w in ways]), reference)
    except ValueError as error:
        if len(ways) == 1:
            failures[ways[0].group.name] = str(error)
            return {}
        # One of them: the others are sound.
        return {name: found for way in ways for name, found in _measured([way], failures).items()}
    return {way.group.name: together.blocks(blocks) for way, blocks in _shares(ways)}


def _spans(capture: Capture, ways: Sequence[_Way]) -> dict[str, dict[str, float]]:
    """The map from the last snapshot to now of each group, the worst of each extreme over all blocks."""
    values: dict[str, dict[str, float]] = {}
    if capture.last is None or not ways:
        return values
    last = [capture.last[way.group.name].to(way.after).view_as(way.after) for way in ways]
    try:
        together = block_distortions(_joined(last), _joined([way.after for way in ways]))
    except ValueError:  # the last capture was of weights that were not finite
        return values
    for way, blocks in _shares(ways):
        extremes = _extremes(together[blocks])
        values[way.group.name] = {
            "span_ratio": max(block.critical_ratio for block in together[blocks]),
            "span_contraction": extremes["contraction"],
            "span_expansion": extremes["expansion"],
        }
    return values


def _joined(clouds: Sequence[Float[Tensor, "b n d"]]) -> Float[Tensor, "c n d"]:
    """The blocks of several groups; of a single one without a copy."""
    return clouds[0] if len(clouds) == 1 else torch.cat(list(clouds))


def _shares(ways: Sequence[_Way]) -> Iterator[tuple[_Way, slice]]:
    """Which blocks of those measured together are whose."""
    start = 0
    for way in ways:
        stop = start + len(way.after)
        yield way, slice(start, stop)
        start = stop


def _values(n: int, found: Distortions) -> dict[str, float]:
    """The step map over all blocks of a group and the map since training began: the worst of each extreme."""
    worst = max(range(len(found.step)), key=lambda block: found.step[block].critical_ratio)
    values = {"critical_ratio": found.step[worst].critical_ratio, **_extremes(found.step)}
    if (pair := found.step[worst].critical_pair) is not None:
        values |= {"critical_i": worst * n + pair[0], "critical_j": worst * n + pair[1]}
    total = _extremes(found.total) if found.total else {}
    return values | {f"total_{name}": value for name, value in total.items()}


def _are_apart(found: Distortions, after: Float[Tensor, "rows d"]) -> bool:
    """Whether the distances to nearest neighbours alone show that all neurons differ by more than rounding."""
    longest = wide_norms(after).amax()
    return bool(found.nearest.amin() > 2 * TOLERANCE * torch.finfo(after.dtype).eps * longest)


_STEP = ("critical_ratio", "log_distortion", "total_log_distortion")
_IDENTITY = ("contraction", "expansion", "total_contraction", "total_expansion")
_ALONE = dict.fromkeys(_STEP, 0.0) | dict.fromkeys(_IDENTITY, 1.0)


def _stacked(cloud: Tensor, group: NeuronGroup) -> Tensor:
    """The clouds of a group's blocks, (b, n, d)."""
    return cloud.unflatten(0, (-1, group.n))


def _extremes(found: Sequence[StepDistortion]) -> dict[str, float]:
    contraction = min(block.contraction for block in found)
    expansion = max(block.expansion for block in found)
    log_distortion = math.log(expansion / contraction) if contraction > 0.0 and expansion < math.inf else math.inf
    return {"contraction": contraction, "expansion": expansion, "log_distortion": log_distortion}
