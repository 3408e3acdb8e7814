"""A real training, small and deterministic, and a witness of what it has published: run in processes that may die."""

import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_topo import Distortion, Persistence, Sharpness, TopologyMonitor

PUBLISHED = "published"
CHECKPOINTS = "checkpoints"


class Small(L.LightningModule):
    """Two hidden layers; `poisoned_at` gives one step a loss that is NaN."""

    def __init__(self, poisoned_at: int | None = None) -> None:
        super().__init__()
        self.poisoned_at = poisoned_at
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        return loss * float("nan") if self.global_step == self.poisoned_at else loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Witness(L.Callback):
    """Writes down what the monitor tells the other callbacks, as soon as it is told, into small files of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_topology_findings(self, trainer, pl_module, findings) -> None:
        if not trainer.is_global_zero:
            return
        dirpath = trainer.callbacks[0].dirpath
        folder = None if dirpath is None else dirpath.name
        found = [
            {"step": m.step, "probe": m.probe, "group": m.group, "values": dict(m.values), "folder": folder}
            for m in findings.measurements
        ]
        text = "".join(json.dumps(line) + "\n" for line in found)
        self.folder.mkdir(exist_ok=True)
        # Small, so that there is room for them where there is none for the record; whole or not at all.
        path = self.folder / f"{len(list(self.folder.iterdir())):06d}"
        path.with_suffix(".part").write_text(text)
        path.with_suffix(".part").replace(path)


class At(L.Callback):
    """Does something at the end of some batches, after the monitor has measured."""

    def __init__(self, actions: Mapping[int, Callable[[L.Trainer], None]]) -> None:
        self.actions = actions

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if action := self.actions.get(trainer.global_step):
            action(trainer)


def probes():
    """Every probe, often."""
    return [Distortion(every_n_steps=1), Persistence(every_n_steps=4), Sharpness(every_n_steps=5)]


def data() -> DataLoader:
    """Eight batches an epoch, in a fixed order, so that a resumed training repeats what was lost."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 4, generator=generator), torch.randint(0, 3, (64,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8)


def last_checkpoint(root: Path) -> Path | None:
    """The newest whole checkpoint, None where there is none yet."""
    found = sorted((root / CHECKPOINTS).glob("step=*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    return found[-1] if found else None


def train(
    root: Path,
    max_steps: int,
    *,
    resume: bool = False,
    checkpoint: Path | None = None,
    callbacks: Sequence[L.Callback] = (),
    monitor: TopologyMonitor | None = None,
    module: Small | None = None,
    report: bool = False,
    **options,
) -> L.Trainer:
    """Train, from `checkpoint` or, if `resume`, the last; one is made every 6 steps, and the last two are kept."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep = ModelCheckpoint(
        root / CHECKPOINTS, "{step}", every_n_train_steps=6, save_top_k=2, monitor="step", mode="max"
    )
    defaults = {
        "max_epochs": -1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(root),
    }
    trainer = L.Trainer(
        **(defaults | options),
        max_steps=max_steps,
        callbacks=[
            monitor or TopologyMonitor(probes(), verbose=False, max_overhead=None, report=report),
            Witness(root / PUBLISHED),
            *callbacks,
            keep,
        ],
    )
    trainer.fit(module or Small(), data(), ckpt_path=last_checkpoint(root) if resume else checkpoint)
    return trainer
