"""The values of a probe: named numbers with their step and group of neurons."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from lightning_topo.quantities import RESERVED_VALUES

__all__ = ["GLOBAL", "Measurement", "StepState"]

GLOBAL = ""
"""The group of a measurement that belongs to the whole network."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Values of one probe at one step, for one group of neurons or (`group=""`) for the whole network.

    `step` counts the optimizer steps completed by the measured network: 0 is the initial network, k the network
    after its k-th step, as in the names of Lightning's checkpoints. `values` may hold NaN and
    infinities; a quantity that has no meaning is left out.

    Raises `ValueError` for a negative step or epoch, and for a value named like a field of the measurement itself.

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
    """The state of one step of one group, weakest first.

    >>> StepState.EXACT > StepState.OPEN
    True
    """

    OPEN = 0
    """Nothing is claimed."""
    SPANNED = 1
    """No two neurons were merged for good; r is not known."""
    BOUNDED = 2
    """An upper bound of r is below 1."""
    EXACT = 3
    """r was measured over all pairs."""

    @property
    def word(self) -> str:
        """The name in the lines of the record."""
        return self.name.lower()

    @property
    def certified(self) -> bool:
        """Whether r was measured, or is known to be below 1."""
        return self >= StepState.BOUNDED
