"""The few things of Lightning that have no public name, in one place; tests/callbacks watches them."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger
from torch.optim import Optimizer


def batches_stepped(trainer: Trainer) -> int:
    """How many batches have led to a step, by the count under which Lightning's own rows go to the loggers.

    In `on_train_batch_end` the present batch is not counted yet. `trainer.global_step` would count double with two
    optimizers.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def is_last_of_epoch(trainer: Trainer) -> bool:
    """In `on_train_batch_end`: whether no batch will follow in this epoch.

    False where only a callback can end the epoch early.
    """
    return trainer.fit_loop.epoch_loop._is_training_done


def epochs_finished(trainer: Trainer) -> int:
    """How many epochs are over; in `on_train_epoch_end`, with the present one, as `Trainer(min_epochs=...)` counts."""
    return getattr(trainer.fit_loop.epoch_progress.current, "processed")  # noqa: B009 - of an undeclared type


def is_trial_run(trainer: Trainer) -> bool:
    """`Trainer(fast_dev_run=...)`: only to see whether everything runs."""
    return bool(getattr(trainer, "fast_dev_run"))  # noqa: B009 - set without being declared


def log_period(trainer: Trainer) -> int:
    """`Trainer(log_every_n_steps=...)`: after how many steps a row goes to the loggers; 0 for never."""
    return getattr(trainer, "log_every_n_steps")  # noqa: B009 - set without being declared


def run_folder(trainer: Trainer) -> Path:
    """Where this run's files go, as `ModelCheckpoint` resolves it: <save_dir>/<name>/<version>, or the root folder."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    logger = trainer.loggers[0]
    save_dir = logger.save_dir if logger.save_dir is not None else trainer.default_root_dir
    # W&B and MLflow know their run's id only once the run has begun.
    if isinstance(logger, WandbLogger | MLFlowLogger):
        _ = logger.experiment
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(save_dir) / str(logger.name) / version


def key_prefix(logger: Logger) -> str:
    """What a logger made with `prefix=...` puts before every key of `log_metrics`."""
    prefix = getattr(logger, "_prefix", "")
    return f"{prefix}{logger.LOGGER_JOIN_CHAR}" if prefix else ""  # pyright: ignore[reportAttributeAccessIssue]


def torch_optimizer(optimizer: Any) -> Optimizer:
    """torch's own optimizer inside a wrapper, as DeepSpeed has one."""
    while not isinstance(optimizer, Optimizer):
        optimizer = optimizer.optimizer
    return optimizer
