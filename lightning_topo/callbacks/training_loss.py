"""The loss of the module's own training step, on a fixed probe batch, leaving the training as it was."""

import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import DataLoader, IterableDataset

from lightning_topo.probes import BatchLoss, ProbeUnavailable
from lightning_topo.probes.probe import LossFn
from lightning_topo.protection import same_random_state, unchanged

MIN_SAMPLES = 256
"""32 samples bias the sharpness upwards by 25-43 %, 256 by 0-4 %."""


def sample_batch(trainer: Trainer, seed: int, at_least: int = MIN_SAMPLES) -> Any | None:
    """A batch of `at_least` so many samples (or all) of the training data set, on the module's device.

    Taken from the data set itself, so that neither the loader's order nor any random state moves. None where the
    data can only be iterated: then the first training batch has to serve.
    """
    loaders, structure = tree_flatten(trainer.train_dataloader)
    if not all(isinstance(loader, DataLoader) for loader in loaders) or not loaders:
        return None
    if any(isinstance(loader.dataset, IterableDataset) for loader in loaders):
        return None
    with same_random_state(seed):
        batch = tree_unflatten([_sample(loader, seed, at_least) for loader in loaders], structure)
        batch = trainer.precision_plugin.convert_input(batch)
        batch = trainer.lightning_module.on_before_batch_transfer(batch, 0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _sample(loader: DataLoader, seed: int, at_least: int) -> Any:
    dataset = loader.dataset
    if loader.batch_sampler is None:  # the data set's items are the batches
        return loader.collate_fn(dataset[0])
    n = len(dataset)  # pyright: ignore[reportArgumentType]  # a map-style data set has a length
    batch_size = getattr(loader.batch_sampler, "batch_size", None) or MIN_SAMPLES
    wanted = min(n, max(at_least, batch_size))
    indices = sorted(random.Random(seed).sample(range(n), wanted))  # no permutation of a data set of any length
    fetch = getattr(dataset, "__getitems__", None)
    return loader.collate_fn(fetch(indices) if fetch else [dataset[i] for i in indices])


@contextmanager
def training_loss(
    trainer: Trainer, module: LightningModule, batch: Any, loss_fn: LossFn | None = None, seed: int = 0
) -> Iterator[BatchLoss]:
    """Yield the loss on `batch` as a zero-argument callable that can be differentiated twice.

    By default the module's `training_step`, muted. The module, the loggers and every random state are put back at
    the end. Compiled modules run eagerly and attention by its plain formula, since neither has a second derivative
    otherwise.

    Raises `ProbeUnavailable` where calling `training_step` would train.
    """
    if loss_fn is None:
        _refuse_unless_pure(module)
    loggers = trainer.loggers
    with (
        same_random_state(seed),
        unchanged(module),
        torch.compiler.set_stance("force_eager"),
        sdpa_kernel(SDPBackend.MATH),
        trainer.precision_plugin.train_step_context(),
        torch.enable_grad(),
    ):
        module.__dict__["log"] = module.__dict__["log_dict"] = mute
        trainer.loggers = [DummyLogger()] if loggers else []
        try:
            yield BatchLoss(partial(run_training_step if loss_fn is None else loss_fn, module), batch)
        finally:
            trainer.loggers = loggers


def run_training_step(module: LightningModule, batch: Any) -> Tensor:
    """The loss that `training_step` returns, as a tensor or under "loss".

    Raises `ValueError` if it returns none.
    """
    takes_index = len(inspect.signature(module.training_step).parameters) > 1
    output = module.training_step(batch, 0) if takes_index else module.training_step(batch)
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise ValueError(f"expected a loss from training_step, got {type(output).__name__}")
    return loss


def _refuse_unless_pure(module: LightningModule) -> None:
    remedy = "Give the probe a loss of its own: Sharpness(loss_fn=lambda module, batch: ...)."
    if not module.automatic_optimization:
        raise ProbeUnavailable("training_step steps the optimizers itself (manual optimization).", remedy)
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise ProbeUnavailable("training_step draws its batches itself (dataloader_iter).", remedy)


def mute(*args: Any, **kwargs: Any) -> None:
    """In place of `LightningModule.log`."""
