"""The evidence of a whole run, from which the next one is advised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_topo._figures.rates import RateLimits, edge_ratios, held_ratios, largest_ratios, rate_limits
from lightning_topo.measurement import Measurement
from lightning_topo.outputs.page._loss_course import LossCourse
from lightning_topo.outputs.record import RunRecord
from lightning_topo.phases import EventName


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a run has shown: the largest r of all groups, the edge ratio by step, the loss, and learning rates.

    `equal` are the groups whose neurons were all equal when they were last measured, with their number of neurons.
    `held` is r of updates that a guard has held back, as the optimizer made them, by measured step.
    Without `limits` advice is in factors of the present rate. `outside_step` is the first at which something other than
    an optimizer was seen to move parameters, `training` holds the optimizers' names and options.
    """

    ratios: Mapping[int, float]
    edges: Mapping[int, float]
    loss: LossCourse
    limits: RateLimits
    outside_step: int | None = None
    equal: Mapping[str, int] = field(default_factory=dict)
    held: Mapping[int, float] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, measurements: Sequence[Measurement]) -> "Evidence":
        """From a record's measurements."""
        return cls(
            largest_ratios(measurements),
            edge_ratios(measurements),
            LossCourse.of(measurements),
            rate_limits(measurements),
            equal=_all_equal(measurements),
            held=held_ratios(measurements),
        )

    @classmethod
    def of_record(cls, record: RunRecord) -> "Evidence":
        """From a record. Of several learning rates at once it has one: which holds for what was seen is not known."""
        steps = [event.step for event in record.events if event.name == EventName.OUTSIDE_CHANGE]
        training = record.about.get("training")
        training = training if isinstance(training, Mapping) else {}
        found = replace(cls.of(record.measurements), outside_step=min(steps, default=None), training=training)
        n_rates = training.get("n_learning_rates", 1)
        return replace(found, limits=RateLimits()) if isinstance(n_rates, int) and n_rates > 1 else found


def _all_equal(measurements: Sequence[Measurement]) -> dict[str, int]:
    """Groups whose neurons were all equal at the last measurement, with their number of neurons."""
    last = {m.group: m.values for m in measurements if m.probe == "distortion" and "n_neurons" in m.values}
    equal = {group: values for group, values in last.items() if values.get("distinct_neurons") == 1.0}
    return {group: int(values["n_neurons"]) for group, values in equal.items() if values["n_neurons"] > 1.0}
