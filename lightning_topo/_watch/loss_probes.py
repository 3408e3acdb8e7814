"""The probes that evaluate the training's loss."""

from collections.abc import Iterable
from dataclasses import dataclass

from lightning_topo._watch.schedule import Schedule
from lightning_topo.probes import Distortion, Fate, Persistence, Probe

STEPS_PER_TAPE = 32.0
"""What a first evaluation of the curvature costs for each recorded step that it takes, and what recording that does."""


@dataclass(frozen=True, slots=True)
class LossProbes:
    """The names of the probes that evaluate the loss: on many samples, and on single batches.

    A probe that declares its cost (`expected_cost`) looks at single batches: that takes a few, not hundreds of samples.
    A user's own probe is taken to evaluate the loss.
    """

    of_samples: tuple[str, ...]
    of_batches: tuple[str, ...]

    @classmethod
    def among(cls, probes: Iterable[Probe]) -> "LossProbes":
        """Those of some probes."""
        without_loss = Distortion | Fate | Persistence
        of_loss = [probe for probe in probes if not isinstance(probe, without_loss)]
        of_batches = {probe.name for probe in of_loss if getattr(probe, "expected_cost", None) is not None}
        names = [probe.name for probe in of_loss]
        return cls(
            tuple(name for name in names if name not in of_batches),
            tuple(name for name in names if name in of_batches),
        )

    @property
    def are_any(self) -> bool:
        """Whether there are any at all."""
        return bool(self.of_samples or self.of_batches)

    def expect_costs(self, schedule: Schedule, n_wanted: int) -> None:
        """Tell the schedule what the first evaluation on many samples costs if it takes `n_wanted` more tapes."""
        for name in self.of_samples:
            schedule.expect(name, STEPS_PER_TAPE * (1 + n_wanted))
