"""The demo: full-batch gradient descent on scikit-learn's digits, which enters the edge of stability."""

from pathlib import Path

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_topo.callbacks import TopologyMonitor
from lightning_topo.probes import Distortion, Fate, Persistence, Sharpness

__all__ = ["DigitsMLP", "FullBatch", "digits", "run"]


class DigitsMLP(L.LightningModule):
    """A tanh network of widths 64-64-64-10 for the digits, trained by SGD on half the squared error."""

    def __init__(self, lr: float = 0.3) -> None:
        super().__init__()
        self.lr = lr
        self.net: nn.Sequential = nn.Sequential(
            nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)
        )

    def forward(self, x: Float[Tensor, "n 64"]) -> Float[Tensor, "n 10"]:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, onehot = batch
        loss = 0.5 * ((self(x) - onehot) ** 2).sum(1).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def digits(n: int = 500) -> TensorDataset:
    """Return the first n of scikit-learn's 1797 digits, as pixels of shape (n, 64) and one-hot labels of shape (n, 10).

    The mean of each pixel over all 1797 digits is subtracted, and all pixels are divided by one standard deviation.
    """
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32) / 16.0
    x = (x - x.mean(0)) / x.std()
    onehot = nn.functional.one_hot(torch.tensor(labels), 10).float()
    return TensorDataset(x[:n], onehot[:n])


class FullBatch(Dataset[tuple[Tensor, ...]]):
    """A data set that yields all samples as one batch, `steps` times: an epoch of full-batch gradient descent."""

    def __init__(self, dataset: TensorDataset, steps: int) -> None:
        self.tensors: tuple[Tensor, ...] = dataset.tensors
        self.steps: int = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.tensors


def run(
    *,
    lr: float = 0.3,
    steps: int = 800,
    seed: int = 0,
    save_dir: str | Path = ".",
    progress: bool = True,
) -> tuple[TopologyMonitor, L.Trainer]:
    """Train the demo under a monitor, and return the monitor and the trainer.

    The run folder is `<save_dir>/topology_demo/version_<k>/topology`. At lr 0.3 the sharpness rises until the training
    sits at the edge of stability, from about step 250 on; at 0.1 it does not get there within 800 steps.
    """
    torch.manual_seed(seed)
    module = DigitsMLP(lr)
    monitor = TopologyMonitor(
        probes=[
            Distortion(every_n_steps=1),
            Persistence(every_n_steps=20),
            Fate(every_n_steps=20),
            Sharpness(every_n_steps=10),
        ],
        seed=seed,
    )
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[monitor],
        logger=CSVLogger(save_dir, name="topology_demo"),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
    )
    trainer.fit(module, DataLoader(FullBatch(digits(), steps), batch_size=None))
    return monitor, trainer
