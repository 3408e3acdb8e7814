"""How far each step bends the neuron clouds, and how far they are bent since training began."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.geometry import (
    MAX_ROWS,
    Distortions,
    StepDistortion,
    block_distortions,
    distinct_neurons,
    distortions,
)
from lightning_topo.geometry.block_search import MAX_ROWS as MOST_TOGETHER
from lightning_topo.geometry.coincidence import TOLERANCE
from lightning_topo.neurons import NeuronGroup
from lightning_topo.neurons.one_run import named_state
from lightning_topo.probes.period import Period
from lightning_topo.probes.probe import Capture, ProbeResult
from lightning_topo.probes.twins import Twins, equal_neurons, find_twins, n_split


@dataclass(frozen=True, slots=True)
class Distortion:
    """Measures every group's step map x_i -> x'_i, exactly, over all pairs of neurons.

    `every_n_steps="auto"` begins with every step. Values by group: `critical_ratio`, `contraction`, `expansion`,
    `log_distortion` of the step (with the pair `critical_i`, `critical_j` that attains the ratio); `total_contraction`,
    `total_expansion`, `total_log_distortion` since training began; `distinct_neurons`. Where other steps lie between
    the last snapshot and this one, `span_ratio`, `span_contraction`, `span_expansion` of the whole way. Where some
    neurons were equal in parameters and optimizer state at the last capture, or before the optimizers' first step,
    `twins_split` is how many have parted from the others since (not where parameters are sharded).

    A group of more than 20,000 neurons is not measured: that would take n² work. Its steps are bounded all the same.

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
        """How often it measures."""
        return Period.parse(self.every_n_steps, default=1)

    def measure(self, capture: Capture) -> ProbeResult:
        """The step map of each group; before the first step, its identity."""
        values: dict[str, dict[str, float]] = {}
        known: dict[str, Twins] = {} if capture.previous is None else dict(capture.previous.carry.twins)
        twins, nearest = dict(known), {}
        failures: dict[str, str] = {}
        ways = _ways(capture, failures)
        found = _measured(ways, failures)
        spans = _spans(capture, ways, found)
        at_first = _parameters_at_first(capture) if capture.previous is None else None
        for group in capture.groups:
            if group.name in failures:
                continue
            after = capture.neurons[group.name]
            if group.n < 2:
                values[group.name] = {**_ALONE, "distinct_neurons": len(after)}
                continue
            measured = found[group.name]
            values[group.name] = _values(group.n, measured) | spans.get(group.name, {})
            nearest[group.name] = (measured.nearest, measured.resolved)
            distinct = len(after) if _are_apart(measured, after) else distinct_neurons(_stacked(after, group))
            values[group.name]["distinct_neurons"] = distinct
            if at_first is not None and _is_whole(group, capture):
                known[group.name] = equal_neurons(group, group.gather(at_first))
            if known.get(group.name):
                values[group.name]["twins_split"] = float(n_split(known[group.name], after))
            twins.pop(group.name, None)
            # Where parameters are sharded, so are the moments, and no process can compare them by itself.
            if _is_whole(group, capture) and distinct < len(after):
                equal = find_twins(group, capture.module, capture.optimizers)
                twins |= {group.name: equal} if equal else {}
        return ProbeResult(values, failures, carry=Carried(twins, nearest))


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


Way = tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"], Float[Tensor, "b n d"]]
"""A group's clouds before the step, now and when training began."""


def _ways(capture: Capture, failures: dict[str, str]) -> dict[str, Way]:
    """The clouds of all groups with pairs, block by block; why a group cannot be measured goes to `failures`."""
    ways: dict[str, Way] = {}
    for group in capture.groups:
        try:
            after = capture.neurons[group.name]
            if group.n < 2:
                continue
            if group.n > MAX_ROWS:
                raise ValueError(
                    f"expected at most {MAX_ROWS:,} neurons to measure exactly, got {group.n:,}, which takes n² work: "
                    "its steps are bounded"
                )
            before = after if capture.before is None else capture.before[group.name]
            reference = capture.reference[group.name].to(after)
            ways[group.name] = _stacked(before, group), _stacked(after, group), _stacked(reference, group)
        except ValueError as error:
            failures[group.name] = str(error)
    return ways


def _measured(ways: Mapping[str, Way], failures: dict[str, str]) -> dict[str, Distortions]:
    """The distortions of each group; small groups whose clouds have one shape are measured together."""
    found: dict[str, Distortions] = {}
    for names in _alike(ways):
        try:
            together = distortions(*(torch.cat(some) for some in zip(*(ways[name] for name in names), strict=True)))
        except ValueError as error:
            if len(names) == 1:
                failures[names[0]] = str(error)
            else:  # one of them: the others are sound
                for name in names:
                    found |= _measured({name: ways[name]}, failures)
            continue
        for name, blocks in _shares(names, ways):
            found[name] = together.blocks(blocks)
    return found


def _spans(capture: Capture, ways: Mapping[str, Way], found: Mapping[str, Distortions]) -> dict[str, dict[str, float]]:
    """The map from the last snapshot to now of each group, the worst of each extreme over all blocks."""
    values: dict[str, dict[str, float]] = {}
    if capture.last is None:
        return values
    for names in _alike({name: ways[name] for name in found}):
        last = [capture.last[name].to(ways[name][1]).view_as(ways[name][1]) for name in names]
        try:
            together = block_distortions(torch.cat(last), torch.cat([ways[name][1] for name in names]))
        except ValueError:  # the last capture was of weights that were not finite
            continue
        for name, blocks in _shares(names, ways):
            extremes = _extremes(together[blocks])
            values[name] = {
                "span_ratio": max(block.critical_ratio for block in together[blocks]),
                "span_contraction": extremes["contraction"],
                "span_expansion": extremes["expansion"],
            }
    return values


def _alike(ways: Mapping[str, Way]) -> list[list[str]]:
    """Names of groups to measure together: each large one alone."""
    alike: dict[tuple[object, ...], list[str]] = {}
    for name, (before, after, _) in ways.items():
        n, d = after.shape[1:]
        key = (n, d, before.dtype, after.dtype) if n <= MOST_TOGETHER else (name,)
        alike.setdefault(key, []).append(name)
    return list(alike.values())


def _shares(names: Sequence[str], ways: Mapping[str, Way]) -> Iterator[tuple[str, slice]]:
    """Which blocks of those measured together are whose."""
    start = 0
    for name in names:
        stop = start + len(ways[name][1])
        yield name, slice(start, stop)
        start = stop


def _values(n: int, found: Distortions) -> dict[str, float]:
    """The step map over all blocks of a group and the map since training began: the worst of each extreme."""
    worst = max(range(len(found.step)), key=lambda block: found.step[block].critical_ratio)
    values = {"critical_ratio": found.step[worst].critical_ratio, **_extremes(found.step)}
    if (pair := found.step[worst].critical_pair) is not None:
        values |= {"critical_i": worst * n + pair[0], "critical_j": worst * n + pair[1]}
    return values | {f"total_{name}": value for name, value in _extremes(found.total).items()}


def _are_apart(found: Distortions, after: Float[Tensor, "rows d"]) -> bool:
    """Whether the distances to nearest neighbours alone show that all neurons differ by more than rounding."""
    longest = torch.linalg.vector_norm(after, dim=1, dtype=found.nearest.dtype).amax()
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
