"""The few things of Lightning that have no public name, in one place; tests/callbacks watches them."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger


def logging_step(trainer: Trainer) -> int:
    """The step under which Lightning's own rows of this batch go to the loggers: the batches that stepped before it.

    `trainer.global_step` counts double with two optimizers and is one ahead in `on_train_batch_end`.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


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
