"""A Lightning `Trainer` as the engine sees a training."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from lightning_topo._watch.ranks import Ranks
from lightning_topo._watch.rates import optimizer_facts
from lightning_topo.callbacks._lightning_internals import (
    batches_stepped,
    is_last_of_epoch,
    log_period,
    logged_hyperparameters,
    torch_optimizer,
)


class TrainerTraining:
    """One `Trainer.fit`, asked for what `lightning_topo._watch.training.Training` names; a collective to make."""

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.module: nn.Module = module
        self.ranks: Ranks = Ranks(trainer.strategy.root_device, alone=trainer.world_size == 1)
        self.log_every_n_steps: int = log_period(trainer)
        self._trainer = trainer
        # Where processes have different numbers of batches, or unknown ones, they end their epochs apart.
        lengths = self.ranks.all("lengths", float(trainer.num_training_batches))
        self.epochs_agree: bool = self.ranks.size == 1 or (len(set(lengths)) == 1 and math.isfinite(lengths[0]))

    @property
    def root(self) -> nn.Module:
        """FSDP1's outermost wrapper, or the user's own module."""
        model = self._trainer.strategy.model
        return model if isinstance(model, FullyShardedDataParallel) else self.module

    @property
    def optimizers(self) -> Sequence[Any]:
        """The trainer's, without the wrappers of Lightning and DeepSpeed."""
        return [torch_optimizer(optimizer) for optimizer in self._trainer.optimizers]

    @property
    def step(self) -> int:
        """How many batches have led to an update, before the present one."""
        return batches_stepped(self._trainer)

    @property
    def epoch(self) -> int:
        """The present epoch, from 0."""
        return self._trainer.current_epoch

    @property
    def planned_steps(self) -> int | None:
        """How many batches will lead to an update; None where nobody knows."""
        limits = [float(self._trainer.max_steps)] if self._trainer.max_steps >= 0 else []
        batches, epochs = float(self._trainer.num_training_batches), self._trainer.max_epochs
        if epochs is not None and epochs >= 0 and math.isfinite(batches):
            limits.append(epochs * math.ceil(batches / self._trainer.accumulate_grad_batches))
        return int(min(limits)) if limits else None

    def ends_epoch(self) -> bool:
        """In `on_train_batch_end`: whether it was the epoch's last batch.

        Where processes end their epochs apart it is rank 0's epoch that counts. A collective then.
        """
        is_last = is_last_of_epoch(self._trainer)
        return is_last if self.epochs_agree else self.ranks.all("epoch", is_last)[0]

    @property
    def loss_scale(self) -> float:
        """The factor by which a loss in `on_before_backward` exceeds that of the module's own `training_step`."""
        scaler = getattr(self._trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        automatic = self._trainer.lightning_module.automatic_optimization
        return scale / (self._trainer.accumulate_grad_batches if automatic else 1)

    def precision(self) -> AbstractContextManager[Any]:
        """The context in which the trainer computes losses."""
        return self._trainer.precision_plugin.train_step_context()

    def publish(self, values: Mapping[str, Tensor]) -> None:
        """Publish to `trainer.callback_metrics`, which other callbacks monitor."""
        self._trainer.callback_metrics.update(values)

    def batch_loss(self, outputs: Any) -> Tensor | None:
        """The loss of this process's batch, from what `on_train_batch_end` is given, undivided."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not (isinstance(loss, Tensor) and loss.numel() == 1):
            return None
        automatic = self._trainer.lightning_module.automatic_optimization
        divisor = self._trainer.accumulate_grad_batches if automatic else 1
        return loss.detach() * divisor if divisor != 1 else loss.detach()

    def facts(self) -> Mapping[str, Any]:
        """Optimizers, learning rates, hyperparameters, sizes and versions."""
        trainer, hparams = self._trainer, logged_hyperparameters(self.module)
        plain = {str(k): v for k, v in hparams.items() if v is None or isinstance(v, bool | int | float | str)}
        size = getattr(trainer.train_dataloader, "batch_size", None)
        return {
            **optimizer_facts(self.optimizers),
            "scheduler": ", ".join(type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs),
            "batch_size": size if isinstance(size, int) else None,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "gradient_clip_val": trainer.gradient_clip_val,
            "precision": str(trainer.precision),
            "parameters": sum(p.numel() for p in self.module.parameters() if not nn.parameter.is_lazy(p)),
            "planned_steps": self.planned_steps,
            "processes": self.ranks.size,
            "torch": torch.__version__,
            "hparams": plain,
        }
