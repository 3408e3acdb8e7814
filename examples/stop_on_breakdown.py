"""A training that stops by itself, because its topology breaks down.

    python -m examples.stop_on_breakdown [--lr 0.1] [--growth 1.03]

Gradient descent on scikit-learn's digits, with a learning rate that grows by 3 % with every step. `TopologyMonitor`
measures r = lr / lr* of each of them; at the first step with r >= 1 the gate stops the training, and the record says
when, where, and what can be done about it. Takes seconds on a CPU.
"""

import argparse
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader

from lightning_topo import Distortion, Persistence, TopologyEarlyStopping, TopologyMonitor
from lightning_topo.demo import DigitsMLP, FullBatch, digits


class Growing(DigitsMLP):
    """The demo's network, under a learning rate that grows."""

    def __init__(self, lr: float, growth: float) -> None:
        super().__init__(lr)
        self.growth = growth

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.growth)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def train(
    lr: float = 0.1, growth: float = 1.03, steps: int = 300, folder: str | Path = "."
) -> tuple[L.Trainer, TopologyMonitor, TopologyEarlyStopping]:
    """Train until the topology breaks down, at most `steps` steps."""
    torch.manual_seed(0)
    monitor = TopologyMonitor(probes=[Distortion(every_n_steps=1), Persistence(every_n_steps=25)])
    gate = TopologyEarlyStopping(stop_on="topology_breakdown")
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[monitor, gate],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Growing(lr, growth), DataLoader(FullBatch(digits(), steps), batch_size=None))
    return trainer, monitor, gate


def main() -> None:
    """Train, and say why it stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--growth", type=float, default=1.03)
    parser.add_argument("--folder", default=".")
    arguments = parser.parse_args()
    trainer, monitor, gate = train(arguments.lr, arguments.growth, folder=arguments.folder)
    print(f"Stopped after {trainer.global_step} of 300 steps, at a learning rate of {rate(trainer):.3g}.")
    print(gate.stopping_reason)
    for event in monitor.events:
        if event.name == "topology_breakdown":
            print(event.message, event.remedy)


def rate(trainer: L.Trainer) -> float:
    """The learning rate now."""
    return trainer.optimizers[0].param_groups[0]["lr"]


if __name__ == "__main__":
    main()
