"""Small modules and trainings that the tests of the callbacks share."""

import warnings

import lightning as L
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer
from torch.utils.data import DataLoader, TensorDataset


class Classifier(L.LightningModule):
    """Two hidden layers, one with units to permute; options make it awkward."""

    def __init__(self, width=8, dropout=0.0, norm=False, optimizer=torch.optim.SGD, **options):
        super().__init__()
        middle = [nn.BatchNorm1d(width)] if norm else []
        self.net = nn.Sequential(
            nn.Linear(4, width),
            *middle,
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(width, 6),
            nn.ReLU(),
            nn.Linear(6, 3),
        )
        self.make_optimizer = lambda: optimizer(self.parameters(), **({"lr": 0.1} | options))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return self.make_optimizer()


def dataset(n=64):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(n, 4, generator=generator)
    return TensorDataset(x, torch.randint(0, 3, (n,), generator=generator))


def loader(n=64, batch_size=8, **options):
    return DataLoader(dataset(n), batch_size=batch_size, **options)


def fit(module, callbacks, *, root, data=None, ckpt_path=None, **options):
    """Train quietly on the CPU; returns the trainer."""
    defaults = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(root),
    }
    trainer = L.Trainer(**(defaults | options), callbacks=callbacks)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*num_workers.*")
        warnings.filterwarnings("ignore", message=".*logging interval.*")
        trainer.fit(module, loader() if data is None else data, ckpt_path=ckpt_path)
    return trainer


class Weights(L.Callback):
    """Remembers the parameters before the first step and after each one."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, pl_module):
        self._keep(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._keep(pl_module)

    def _keep(self, module):
        self.seen.append({name: p.detach().clone() for name, p in module.named_parameters()})


def happened(events):
    """All events but the one that names parameters in no group: nearly every network has such."""
    return [event for event in events if event.name != "unwatched_parameters"]


def hooks_of_all_optimizers():
    """How many hooks torch calls around the updates of every optimizer there is."""
    return len(torch_optimizer._global_optimizer_pre_hooks) + len(torch_optimizer._global_optimizer_post_hooks)
