"""Lightning's internals that this package uses, in one place; tests/callbacks watches them."""

from importlib import import_module
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer


def is_lightnings(thing: Any, *names: str) -> bool:
    """Whether a thing is of one of these classes, or extends it: by name, because of the two namespaces.

    `lightning` and `pytorch_lightning` each have their own classes, and a training lives in one of them.
    """
    return any(cls.__name__ in names and "lightning" in cls.__module__ for cls in type(thing).__mro__)


def misconfigured(trainer: Trainer, message: str) -> Exception:
    """Lightning's `MisconfigurationException`, of the namespace that the trainer comes from."""
    other = any(cls.__module__.startswith("pytorch_lightning.") for cls in type(trainer).__mro__)
    package = "pytorch_lightning" if other else "lightning.pytorch"
    return import_module(f"{package}.utilities.exceptions").MisconfigurationException(message)


def shards_parameters(trainer: Trainer) -> bool:
    """Whether a process holds only parts of the parameters."""
    return is_lightnings(trainer.strategy, "FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


def logged_hyperparameters(module: Any) -> dict[Any, Any]:
    """A module's hyperparameters; none where it keeps them from the loggers: `save_hyperparameters(logger=False)`."""
    return dict(module.hparams) if getattr(module, "_log_hyperparams", False) else {}


def batches_stepped(trainer: Trainer) -> int:
    """How many batches have led to a step, by the count under which Lightning's own rows go to the loggers.

    In `on_train_batch_end` the present batch is not counted yet. `trainer.global_step` would count double with two
    optimizers. A checkpoint that was saved in that hook, or in validation, holds one too few, which Lightning makes up
    for later: in `on_train_start` it is made up for here.
    """
    loop = trainer.fit_loop.epoch_loop
    if not loop.restarting or _current_hook(trainer) != "on_train_start":
        return loop._batches_that_stepped
    if trainer.lightning_module.automatic_optimization:
        return trainer.global_step
    return loop._batches_that_stepped + _lacks_a_step(loop)


def _current_hook(trainer: Trainer) -> str | None:
    return getattr(trainer.lightning_module, "_current_fx_name", None)


def _lacks_a_step(loop: Any) -> bool:
    """The condition under which `_TrainingEpochLoop.reset` counts the step in which the checkpoint was saved."""
    in_time = loop.restarted_on_train_batch_end or not loop.restarted_on_last
    return not loop._should_accumulate() and in_time


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


def loader_mode(trainer: Trainer) -> Any:
    """How batches of several loaders are put together, as `CombinedLoader` names it."""
    combined = trainer.fit_loop._combined_loader
    return "max_size_cycle" if combined is None else combined._mode


def transferred(trainer: Trainer, batch: Any) -> Any:
    """A batch as the training loop hands it on: through the hooks of module and DataModule, on the device."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def run_folder(trainer: Trainer) -> Path:
    """The folder of this run's files, as `ModelCheckpoint` resolves it: <save_dir>/<name>/<version>, or the root."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    logger = trainer.loggers[0]
    save_dir = logger.save_dir if logger.save_dir is not None else trainer.default_root_dir
    # W&B and MLflow know their run's id only once the run has begun.
    if is_lightnings(logger, "WandbLogger", "MLFlowLogger"):
        _ = getattr(logger, "experiment")  # noqa: B009 - of an undeclared type
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(save_dir) / str(logger.name) / version


def key_prefix(logger: Logger) -> str:
    """The prefix that a logger puts before every key of `log_metrics`."""
    prefix = getattr(logger, "_prefix", "")
    return f"{prefix}{logger.LOGGER_JOIN_CHAR}" if prefix else ""  # pyright: ignore[reportAttributeAccessIssue]


def torch_optimizer(optimizer: Any) -> Optimizer:
    """torch's own optimizer inside a wrapper, as DeepSpeed has one."""
    while not isinstance(optimizer, Optimizer):
        optimizer = optimizer.optimizer
    return optimizer
