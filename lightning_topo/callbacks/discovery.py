"""Finding the neurons of the module that trains, and saying what could not be found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_topo.callbacks.capturing import sharded_root
from lightning_topo.callbacks.ranks import Ranks
from lightning_topo.callbacks.training_loss import run_training_step, training_loss
from lightning_topo.measurement import GLOBAL
from lightning_topo.memory import is_out_of_memory
from lightning_topo.neurons import NeuronGroup, find_neuron_groups, verify_groups
from lightning_topo.neurons.capture import n_elements, sharding, whole_copy
from lightning_topo.probes import ProbeUnavailable
from lightning_topo.probes.batch_loss import half_of

_TOO_LARGE = "the sharded parameters are too many for one process. Verify them on a small model of the same kind."
_REMEDY = "Name the groups by hand: TopologyMonitor(groups=declare_neurons(module, ...))."


@dataclass(frozen=True, slots=True)
class Problem:
    """What could not be found or proved, of which group, and what would help."""

    message: str
    group: str = GLOBAL
    remedy: str = _REMEDY


MOST_WHOLE = 2**28
"""A sharded module of more parameters than this is traced without values: its groups are found, but not verified."""

Found = tuple[Sequence[NeuronGroup], Sequence[Problem]]


def discover_together(
    groups: Sequence[NeuronGroup] | None, trainer: Trainer, module: LightningModule, batch: Any, seed: int, ranks: Ranks
) -> Found:
    """What `discover` finds on rank 0, for every process. A collective.

    Where parameters are sharded, rank 0 looks at a copy of the module as it was before: around whole parameters, as
    long as it looks, or, from `MOST_WHOLE` parameters on, around none at all. Declared groups need no more than a
    look at the parameters' shapes.
    """
    root = sharded_root(trainer, module)
    if sharding(root) == "whole":
        return ranks.first("groups", lambda: discover(groups, trainer, module, batch, seed))
    values = max(ranks.all("size", n_elements(root))) * (ranks.size if sharding(root) == "fsdp1" else 1) <= MOST_WHOLE
    copy = cast("LightningModule | None", whole_copy(root, mine=ranks.rank == 0, values=values))

    def look() -> Found:
        assert copy is not None
        if values:
            return discover(groups, trainer, copy, batch, seed)
        there = tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, batch)
        return discover(groups, trainer, copy, there, seed, verify=False)

    return ranks.first("groups", look)


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
