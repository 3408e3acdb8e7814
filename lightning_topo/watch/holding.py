"""Holding an update back: its critical ratio by group, and taking only a part of it."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_topo.geometry import resolved_critical_ratio
from lightning_topo.geometry.precision import wide_dtype
from lightning_topo.neurons import NeuronGroup
from lightning_topo.probes.probe import blocks
from lightning_topo.watch.snapshots import member_names
from lightning_topo.watch.steps import Update


def update_ratios(
    update: Update, groups: Sequence[NeuronGroup], trained: Mapping[str, Tensor], max_ratio: float
) -> dict[str, float]:
    """The critical ratio of an update for each group that it touches, the worst block's.

    A pair counts whose distance exceeds eps max(|x_i|, |x_j|) / max_ratio: rounding alone can move nearer ones. The
    ratio is infinite where the update is not finite, and 0 where nothing finite was there to protect.
    """
    found: dict[str, float] = {}
    before = {**trained, **update.before}
    for group in groups:
        names = set(member_names(group))
        if names & update.after.keys():
            eps = max(torch.finfo(trained[name].dtype).eps for name in names if name in trained)
            found[group.name] = _ratio(group, group.gather(before), group.gather(trained), eps / max_ratio)
    return found


@torch.no_grad()
def take_part(update: Update, proposed: Mapping[str, Tensor], factor: float) -> None:
    """Take a fraction of an update: x = before + factor (proposed - before), rounded once."""
    for name, now in _each(update):
        wide = wide_dtype(now.device) if now.is_floating_point() else now.dtype
        now.copy_(torch.lerp(update.before[name].to(wide), proposed[name].to(wide), factor))


@torch.no_grad()
def drop(update: Update) -> None:
    """Take nothing of an update."""
    for name, now in _each(update):
        now.copy_(update.before[name])


def proposed_values(update: Update) -> dict[str, Tensor]:
    """Copies of the parameters as the optimizer has left them."""
    return {name: now.detach().clone() for name, now in _each(update)}


def _each(update: Update) -> list[tuple[str, Tensor]]:
    """Every parameter once, under its first name."""
    return list({id(now): (name, now) for name, now in reversed(update.after.items())}.values())


def _ratio(group: NeuronGroup, before: Tensor, after: Tensor, resolution: float) -> float:
    if not torch.isfinite(before).all():
        return 0.0
    if not torch.isfinite(after).all():
        return math.inf
    pairs = zip(blocks(before, group), blocks(after, group), strict=True)
    return max(resolved_critical_ratio(x, y, resolution) for x, y in pairs)
