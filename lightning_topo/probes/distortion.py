"""How far each step bends the neuron clouds, and how far they are bent since training began."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from lightning_topo.geometry import StepDistortion, distinct_neurons, step_distortion
from lightning_topo.neurons import NeuronGroup
from lightning_topo.probes.period import Period
from lightning_topo.probes.probe import Capture, ProbeResult, blocks
from lightning_topo.probes.twins import Twins, find_twins, n_split


@dataclass(frozen=True, slots=True)
class Distortion:
    """Measures every group's step map x_i -> x'_i, exactly, over all pairs of neurons.

    `every_n_steps="auto"` begins with every step. Values by group: `critical_ratio`, `contraction`, `expansion`,
    `log_distortion` of the step (with the pair `critical_i`, `critical_j` that attains the ratio); `total_contraction`,
    `total_expansion`, `total_log_distortion` since training began; `distinct_neurons`. Where some neurons were equal in
    parameters and optimizer state at the last capture, `twins_split` is how many have parted from the others since
    (not where parameters are sharded).

    >>> Distortion().period
    Period(every=1, unit='step', adaptive=True)
    """

    every_n_steps: int | Literal["auto"] = "auto"
    name: str = field(default="distortion", init=False, repr=False)
    measures_steps: ClassVar[bool] = True
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
        known: Mapping[str, Twins] = {} if capture.previous is None else capture.previous.carry
        twins: dict[str, Twins] = {}
        for group in capture.groups:
            try:
                after = capture.neurons[group.name]
                before = after if capture.before is None else capture.before[group.name]
                step = _worst(before, after, group)
                total = _worst(capture.reference[group.name].to(after), after, group)
            except ValueError as error:
                failures[group.name] = str(error)
                continue
            distinct = sum(distinct_neurons(block) for block in blocks(after, group))
            values[group.name] = {
                "critical_ratio": step.critical_ratio,
                "contraction": step.contraction,
                "expansion": step.expansion,
                "log_distortion": step.log_distortion,
                **step.critical_pair,
                "total_contraction": total.contraction,
                "total_expansion": total.expansion,
                "total_log_distortion": total.log_distortion,
                "distinct_neurons": distinct,
            }
            if group.name in known:
                values[group.name] |= {"twins_split": float(n_split(known[group.name], after))}
            # Where parameters are sharded, so are the moments, and no process can compare them by itself.
            if capture.sharding == "whole" and distinct < len(after):
                found = find_twins(group, capture.module, capture.optimizers)
                twins |= {group.name: found} if found else {}
        return ProbeResult(values, failures, carry=twins)


@dataclass(frozen=True, slots=True)
class _Worst:
    """The step map over all blocks of a group: the largest ratio and expansion, the smallest contraction."""

    critical_ratio: float
    contraction: float
    expansion: float
    log_distortion: float
    critical_pair: Mapping[str, float]


def _worst(before: Tensor, after: Tensor, group: NeuronGroup) -> _Worst:
    found: Sequence[StepDistortion] = [
        step_distortion(x, y) for x, y in zip(blocks(before, group), blocks(after, group), strict=True)
    ]
    worst = max(range(len(found)), key=lambda block: found[block].critical_ratio)
    pair = found[worst].critical_pair
    first_row = worst * group.n
    contraction = min(block.contraction for block in found)
    expansion = max(block.expansion for block in found)
    return _Worst(
        found[worst].critical_ratio,
        contraction,
        expansion,
        math.log(expansion / contraction) if contraction > 0.0 else math.inf,
        {} if pair is None else {"critical_i": first_row + pair[0], "critical_j": first_row + pair[1]},
    )
