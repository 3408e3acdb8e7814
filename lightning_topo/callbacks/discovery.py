"""Finding the neurons of the module that trains, and saying what could not be found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_topo.callbacks.training_loss import run_training_step, training_loss
from lightning_topo.measurement import GLOBAL
from lightning_topo.neurons import NeuronGroup, find_neuron_groups, verify_groups
from lightning_topo.probes import ProbeUnavailable

_REMEDY = "Name the groups by hand: TopologyMonitor(groups=declare_neurons(module, ...))."


@dataclass(frozen=True, slots=True)
class Problem:
    """What could not be found or proved, of which group, and what would help."""

    message: str
    group: str = GLOBAL
    remedy: str = _REMEDY


def discover(
    groups: Sequence[NeuronGroup] | None, trainer: Trainer, module: LightningModule, batch: Any, seed: int
) -> tuple[Sequence[NeuronGroup], Sequence[Problem]]:
    """The groups found by tracing `training_step` on the probe batch, or those declared, verified; with all problems.

    Where `training_step` cannot be run on its own (manual optimization), the module's `forward` is traced.
    """

    def step(model: nn.Module) -> Any:
        return run_training_step(cast(LightningModule, model), batch)

    try:
        try:
            with training_loss(trainer, module, batch, seed=seed):
                if groups is None:
                    found = find_neuron_groups(module, run=step, seed=seed)
                else:
                    unproved = [group for group in groups if group.status == "declared"]
                    proved = {group.name: group for group in verify_groups(module, unproved, step, seed=seed)}
                    found = [proved.get(group.name, group) for group in groups]
        except ProbeUnavailable:
            found = find_neuron_groups(module, seed=seed) if groups is None else groups
    except Exception as error:
        return (), [Problem(f"No neurons found: {error or type(error).__name__}")]
    if not any(group.n > 1 for group in found):
        return (), [Problem("No neurons found: the module has no group of two or more exchangeable neurons.")]
    return found, [
        Problem(f"The neurons of {group.name} are taken without what reads them: {group.reason}", group.name)
        for group in found
        if group.status == "incoming_only"
    ]
