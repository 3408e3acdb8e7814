"""Finding the neurons of the module that trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer

from lightning_topo.callbacks.training_loss import run_training_step, training_loss
from lightning_topo.neurons import NeuronGroup, find_neuron_groups
from lightning_topo.probes import ProbeUnavailable

_REMEDY = "Name the groups by hand: TopologyMonitor(groups=[NeuronGroup(...)])."


@dataclass(frozen=True, slots=True)
class Problem:
    """Why no neurons were found, and what would help."""

    message: str
    remedy: str = _REMEDY


def discover(
    groups: Sequence[NeuronGroup] | None, trainer: Trainer, module: LightningModule, batch: Any, seed: int
) -> tuple[Sequence[NeuronGroup], Problem | None]:
    """The given groups, or those found by tracing `training_step` on the probe batch; with the problem, if any."""
    if groups is not None:
        return groups, None
    try:
        with training_loss(trainer, module, batch, seed=seed):
            found = find_neuron_groups(module, run=lambda m: run_training_step(cast(LightningModule, m), batch))
    except ProbeUnavailable as error:
        return (), Problem(f"No neurons found: {error}")
    if not any(group.n > 1 for group in found):
        return (), Problem("No neurons found: the module has no group of two or more exchangeable neurons.")
    return found, None
