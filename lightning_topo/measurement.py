"""The values of a probe: named numbers with their step and group of neurons."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from lightning_topo.quantities import RESERVED_VALUES

__all__ = ["GLOBAL", "Measurement", "OpenCause", "StepState"]

GLOBAL = ""
"""The `group` of a measurement of the whole network."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Holds the values of one probe at one step, for one group of neurons or for the whole network.

    Attributes:
        step: The number of optimizer steps that the measured network has completed: 0 is the initial network, k the
            network after its k-th step, as in the names of Lightning's checkpoints.
        epoch: The index of the epoch, from 0.
        probe: The name of the probe.
        group: The name of the group of neurons; "" for the whole network.
        values: Numbers by name, NaN and infinities included. A quantity that has no meaning here is left out.

    Raises:
        ValueError: A negative step or epoch, or a value named like a field of a line in the record, such as "step".

    >>> Measurement(step=3, epoch=0, probe="distortion", group="net.0", values={"critical_ratio": 0.02})
    Measurement(step=3, epoch=0, probe='distortion', group='net.0', values={'critical_ratio': 0.02})
    """

    step: int
    epoch: int
    probe: str
    group: str = GLOBAL
    values: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.step < 0 or self.epoch < 0:
            raise ValueError(f"expected step >= 0 and epoch >= 0, got {self.step} and {self.epoch}")
        if not RESERVED_VALUES.isdisjoint(self.values):
            clash = sorted(RESERVED_VALUES & self.values.keys())
            raise ValueError(
                f"{self.probe}: {', '.join(clash)} cannot be the name of a value, because each line of the record has "
                "a field of that name; choose another"
            )


class StepState(IntEnum):
    """Grades the knowledge about one step of one group of neurons; a larger value means that more is known.

    The critical ratio r of a step is the largest |Δ_i - Δ_j| / |x_i - x_j| over pairs of neurons. x_i is neuron i
    before the step, Δ_i its displacement. r < 1 certifies that no two distinct neurons merged in the step.

    >>> StepState.EXACT > StepState.OPEN
    True
    """

    OPEN = 0
    """Nothing is known about the step."""
    SPANNED = 1
    """Neurons that were distinct at the last snapshot are distinct now; r of the step is not known."""
    BOUNDED = 2
    """An upper bound of r is below 1."""
    EXACT = 3
    """r was measured over all pairs; it may be 1 or more."""

    @property
    def word(self) -> str:
        """The name of the state in the lines of the record: "open", "spanned", "bounded" or "exact"."""
        return self.name.lower()

    @property
    def certified(self) -> bool:
        """Whether the state is EXACT or BOUNDED: r was measured, or an upper bound of r is below 1.

        A measured r may be 1 or more.
        """
        return self >= StepState.BOUNDED


class OpenCause(IntEnum):
    """Says why r of a step of one group of neurons is not known.

    >>> OpenCause.NOT_MEASURED.word
    'not_measured'
    """

    UNKNOWN_NEURONS = 1
    """The neurons were found after the step."""
    UNSEEN = 2
    """No hook has seen the update."""
    MOVED = 3
    """Something else has moved or replaced parameters before the step could be measured."""
    NOT_MEASURED = 4
    """The bound of r is not below 1, and a measurement would have taken too long."""
    NOT_FINITE = 5
    """Weights are NaN or infinite."""
    SHARDED = 6
    """Parameters lie in shards, of which only some steps are measured."""
    FAILED = 7
    """A measurement has failed."""
    TOO_MANY = 8
    """The bound of r is not below 1, and there are too many neurons to measure r at all."""
    NOT_ALIKE = 9
    """The processes train different models, and each measures some groups only."""

    @property
    def word(self) -> str:
        """The name of the cause in the lines of the record."""
        return self.name.lower()
