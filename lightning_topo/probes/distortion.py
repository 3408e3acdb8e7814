"""How far each step bends the neuron clouds, and how far they are bent since training began."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from lightning_topo.geometry import (
    MAX_ROWS,
    Distortions,
    StepDistortion,
    block_distortions,
    distinct_neurons,
    distortions,
)
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
    the last capture and this one, `span_ratio`, `span_contraction`, `span_expansion` of the whole way. Where some
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
        failures: dict[str, str] = {}
        known: dict[str, Twins] = {} if capture.previous is None else dict(capture.previous.carry.twins)
        twins, nearest = dict(known), {}
        for group in capture.groups:
            try:
                after = capture.neurons[group.name]
                before = after if capture.before is None else capture.before[group.name]
                reference = capture.reference[group.name].to(after)
                values[group.name], found = _distortion(group, before, after, reference)
                if capture.previous is None:
                    known[group.name] = _equal_at_first(group, capture)
                if found is not None:
                    nearest[group.name] = (found.nearest, found.resolved)
                if capture.last is not None and group.n > 1:
                    values[group.name] |= _span(group, capture.last[group.name].to(after), after)
            except ValueError as error:
                failures[group.name] = str(error)
                continue
            distinct = distinct_neurons(_stacked(after, group))
            values[group.name]["distinct_neurons"] = distinct
            if known.get(group.name):
                values[group.name]["twins_split"] = float(n_split(known[group.name], after))
            twins.pop(group.name, None)
            # Where parameters are sharded, so are the moments, and no process can compare them by itself.
            if _is_whole(group, capture) and distinct < len(after):
                found = find_twins(group, capture.module, capture.optimizers)
                twins |= {group.name: found} if found else {}
        return ProbeResult(values, failures, carry=Carried(twins, nearest))


def _is_whole(group: NeuronGroup, capture: Capture) -> bool:
    """Whether all that makes up a neuron is known, and here: only then equal ones must stay equal."""
    return group.status == "verified" and capture.sharding == "whole"


def _equal_at_first(group: NeuronGroup, capture: Capture) -> Twins:
    """The neurons that were equal before the optimizers' first step: they kept no state that could tell them apart."""
    if not capture.is_first_step or capture.parameters_before is None or not _is_whole(group, capture):
        return ()
    return equal_neurons(group, group.gather({**named_state(capture.module)[0], **capture.parameters_before}))


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """What a measurement leaves: equal neurons, and how far each neuron is from others at least, by group.

    `nearest` holds what `snapshot_of_nearest` takes, of the groups that this measurement has looked at.
    """

    twins: Mapping[str, Twins]
    nearest: Mapping[str, tuple[Tensor, Tensor]]


def _distortion(
    group: NeuronGroup, before: Tensor, after: Tensor, reference: Tensor
) -> tuple[dict[str, float], Distortions | None]:
    """The step map over all blocks of a group and the map since training began: the worst of each extreme."""
    if group.n < 2:
        return dict.fromkeys(_STEP, 0.0) | dict.fromkeys(_IDENTITY, 1.0) | {"total_log_distortion": 0.0}, None
    if group.n > MAX_ROWS:
        raise ValueError(
            f"expected at most {MAX_ROWS:,} neurons to measure exactly, got {group.n:,}, which takes n² work: "
            "its steps are bounded"
        )
    found = distortions(*(_stacked(cloud, group) for cloud in (before, after, reference)))
    worst = max(range(len(found.step)), key=lambda block: found.step[block].critical_ratio)
    step = _extremes(found.step)
    values = {"critical_ratio": found.step[worst].critical_ratio, **step}
    if (pair := found.step[worst].critical_pair) is not None:
        first_row = worst * group.n
        values |= {"critical_i": first_row + pair[0], "critical_j": first_row + pair[1]}
    return values | {f"total_{name}": value for name, value in _extremes(found.total).items()}, found


def _span(group: NeuronGroup, last: Tensor, after: Tensor) -> dict[str, float]:
    """The map from the last capture to now, the worst of each extreme over all blocks."""
    found = block_distortions(_stacked(last, group), _stacked(after, group))
    extremes = _extremes(found)
    return {
        "span_ratio": max(block.critical_ratio for block in found),
        "span_contraction": extremes["contraction"],
        "span_expansion": extremes["expansion"],
    }


_STEP = ("critical_ratio", "log_distortion")
_IDENTITY = ("contraction", "expansion", "total_contraction", "total_expansion")


def _stacked(cloud: Tensor, group: NeuronGroup) -> Tensor:
    """The clouds of a group's blocks, (b, n, d)."""
    return cloud.unflatten(0, (-1, group.n))


def _extremes(found: Sequence[StepDistortion]) -> dict[str, float]:
    contraction = min(block.contraction for block in found)
    expansion = max(block.expansion for block in found)
    log_distortion = math.log(expansion / contraction) if contraction > 0.0 and expansion < math.inf else math.inf
    return {"contraction": contraction, "expansion": expansion, "log_distortion": log_distortion}
