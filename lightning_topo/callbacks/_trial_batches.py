"""Batches for trial steps: those that the training would be given first, while its loaders stay where they are."""

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import DataLoader, IterableDataset

from lightning_topo.callbacks._lightning_internals import loader_mode, transferred


def can_only_be_iterated(trainer: Trainer) -> bool:
    """Whether drawing a batch would take it from the training: its data are a stream, or no `DataLoader` gives them."""
    loaders, _ = tree_flatten(trainer.train_dataloader)
    return not loaders or any(
        not isinstance(one, DataLoader) or isinstance(one.dataset, IterableDataset) for one in loaders
    )


def trial_batches(trainer: Trainer) -> Iterator[Any]:
    """The training's batches on its device, in an order that its samplers give, over and over again.

    They come through its samplers, batch samplers, `collate_fn` and transfer hooks, in this process. What samplers and
    data sets remember changes: draw inside of `on_trial`, which puts it back.
    """
    loaders, structure = tree_flatten(trainer.train_dataloader)
    most = trainer.num_training_batches
    while True:
        drawn = CombinedLoader(
            tree_unflatten([_in_this_process(one) for one in loaders], structure), loader_mode(trainer)
        )
        n = 0
        for batch, *_ in islice(iter(drawn), most if isinstance(most, int) else None):
            n += 1
            yield transferred(trainer, batch)
        if not n:
            raise RuntimeError("expected at least one training batch, got none")


def _in_this_process(loader: DataLoader) -> DataLoader:
    """A copy that starts no workers, and that does not know those of the training."""
    alone = copy.copy(loader)
    # Not by attribute: a loader refuses that, once it is made.
    alone.__dict__.update(num_workers=0, prefetch_factor=None, persistent_workers=False, timeout=0, _iterator=None)
    return alone
