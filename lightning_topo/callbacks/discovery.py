"""Find the neurons of the module in training, and report what could not be found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_topo.callbacks.training_loss import run_training_step, training_loss
from lightning_topo.measurement import GLOBAL
from lightning_topo.memory import is_out_of_memory
from lightning_topo.neurons import NeuronGroup, find_neuron_groups, verify_groups
from lightning_topo.probes import ProbeUnavailable
from lightning_topo.probes.batch_loss import half_of

_TOO_LARGE = "the sharded parameters are too many for one process. Verify them on a small model of the same kind."
_REMEDY = "Name the groups by hand: TopologyMonitor(groups=declare_neurons(module, ...))."


@dataclass(frozen=True, slots=True)
class Problem:
    """A group that could not be found or proved, with the reason and a remedy."""

    message: str
    group: str = GLOBAL
    remedy: str = _REMEDY


Found = tuple[Sequence[NeuronGroup], Sequence[Problem]]


def discover(
    groups: Sequence[NeuronGroup] | None,
    trainer: Trainer,
    module: LightningModule,
    batch: Any,
    seed: int,
    *,
    verify: bool = True,
) -> Found:
    """The groups found by tracing `training_step` on the probe batch, or those declared, verified; with all problems.

    Where `training_step` cannot be run on its own (manual optimization), the module's `forward` is traced. Where memory
    runs out (groups are proved in float64), half the samples are tried, and so on: they show the same groups.
    """
    while True:
        try:
            found = _found(groups, trainer, module, batch, seed, verify=verify)
            break
        except Exception as error:
            batch = half_of(batch) if is_out_of_memory(error) else None
            if batch is None:
                return (), [Problem(f"No neurons found: {error or type(error).__name__}")]
        # Out here the failed attempt's frames, and the tensors in them, are gone.
        torch.cuda.empty_cache()
    if not any(group.n > 1 for group in found):
        return (), [Problem("No neurons found: the module has no group of two or more exchangeable neurons.")]
    unproved = () if verify else (Problem(f"The {len(found)} groups found are not verified: {_TOO_LARGE}"),)
    incomplete = (group for group in found if group.status == "incoming_only")
    return found, [
        *unproved,
        *(
            Problem(f"The neurons of {group.name} are taken without what reads them: {group.reason}", group.name)
            for group in incomplete
        ),
    ]


def _found(
    groups: Sequence[NeuronGroup] | None,
    trainer: Trainer,
    module: LightningModule,
    batch: Any,
    seed: int,
    *,
    verify: bool,
) -> Sequence[NeuronGroup]:
    def step(model: nn.Module) -> Any:
        return run_training_step(cast(LightningModule, model), batch)

    try:
        with training_loss(trainer, module, batch, seed=seed):
            if groups is None:
                return find_neuron_groups(module, run=step, seed=seed, verify=verify)
            if not verify:
                return groups
            unproved = [group for group in groups if group.status == "declared"]
            proved = {group.name: group for group in verify_groups(module, unproved, step, seed=seed)}
            return [proved.get(group.name, group) for group in groups]
    except ProbeUnavailable:
        return find_neuron_groups(module, seed=seed, verify=verify) if groups is None else groups
