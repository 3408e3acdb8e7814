"""The neurons that a callback acts on: those given, or those that it finds itself."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_topo.callbacks.discovery import discover
from lightning_topo.callbacks.lightning_internals import misconfigured
from lightning_topo.neurons import NeuronGroup


def choose_groups(
    who: str, chosen: Sequence[NeuronGroup] | None, trainer: Trainer, module: LightningModule, batch: Any, seed: int
) -> tuple[NeuronGroup, ...]:
    """The groups with something to act on, verified; problems are said in the name of `who`.

    Raises `MisconfigurationException` where there are none.
    """
    found, problems = discover(chosen, trainer, module, batch, seed)
    groups = tuple(group for group in found if group.n > 1)
    said = " ".join(problem.message for problem in problems)
    remedy = f"Name the groups by hand: {who}(groups=declare_neurons(module, ...))."
    if not groups:
        raise misconfigured(trainer, f"{who} has no neurons to work on. {said} {remedy}")
    if problems:
        rank_zero_warn(f"{who}: {said} {remedy}")
    return groups
