"""An optimizer whose updates can be measured and taken back."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_topo.geometry import resolved_critical_ratio
from lightning_topo.geometry._precision import wide_dtype
from lightning_topo.neurons import NeuronGroup
from lightning_topo.neurons._one_run import named_state
from lightning_topo.probes._probe import blocks


class WatchedOptimizer:
    """Remembers the parameters before each update of an optimizer, and calls `on_update(self)` right after it.

    `groups` are those to look at; only those count that the optimizer has a part of.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        optimizer: Optimizer,
        groups: Sequence[NeuronGroup],
        max_ratio: float,
        on_update: Callable[["WatchedOptimizer"], None],
    ) -> None:
        self.trainer: Trainer = trainer
        self.optimizer: Optimizer = optimizer
        self._max_ratio, self._on_update = max_ratio, on_update
        self._tensors = dict(named_state(module)[0])
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        touched = {name for name, p in self._tensors.items() if id(p) in own}
        self._groups = [group for group in groups if touched & set(group.parameter_names)]
        self._before: list[tuple[Tensor, Tensor]] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._remember),
            optimizer.register_step_post_hook(self._settle),
        ]

    def release(self) -> None:
        """Leave the optimizer alone again."""
        for handle in self._handles:
            handle.remove()
        self._before.clear()

    def ratios(self) -> dict[str, float]:
        """The critical ratio by group of the update as it stands now; the same on every process."""
        earlier = {id(now): before for now, before in self._before}
        tensors = {name: earlier.get(id(p), p) for name, p in self._tensors.items()}
        found = [self._ratio(group, group.gather(tensors), group.gather(self._tensors)) for group in self._groups]
        if self.trainer.world_size > 1 and found:
            device = self.trainer.strategy.root_device
            shared = torch.tensor(found, device=device, dtype=wide_dtype(device))
            found = torch.as_tensor(self.trainer.strategy.reduce(shared, reduce_op="max")).tolist()
        return {group.name: ratio for group, ratio in zip(self._groups, found, strict=True)}

    def update(self) -> list[Tensor]:
        """The parameters as the optimizer has left them."""
        return [now.detach().clone() for now, _ in self._before]

    @torch.no_grad()
    def take(self, update: Sequence[Tensor], factor: float) -> None:
        """Take a fraction of the update: x = before + factor (update - before), rounded once."""
        for (now, before), proposed in zip(self._before, update, strict=True):
            wide = wide_dtype(now.device) if now.is_floating_point() else now.dtype
            now.copy_(torch.lerp(before.to(wide), proposed.to(wide), factor))

    @torch.no_grad()
    def drop(self) -> None:
        """Take nothing of the update."""
        for now, before in self._before:
            now.copy_(before)

    def _ratio(self, group: NeuronGroup, before: Tensor, after: Tensor) -> float:
        """The worst block's; infinite where the update is not finite, 0 where there was nothing to protect."""
        if not torch.isfinite(before).all():
            return 0.0
        if not torch.isfinite(after).all():
            return math.inf
        eps = max(torch.finfo(self._tensors[name].dtype).eps for name in group.parameter_names if name in self._tensors)
        pairs = zip(blocks(before, group), blocks(after, group), strict=True)
        return max(resolved_critical_ratio(x, y, eps / self._max_ratio) for x, y in pairs)

    def _remember(self, *_: Any) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._before = [(p, p.detach().clone()) for p in parameters]

    def _settle(self, *_: Any) -> None:
        try:
            self._on_update(self)
        finally:
            self._before = []
