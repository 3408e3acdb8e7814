"""What the monitor costs: the same training with and without it, probe by probe, side by side in one run.

    python benchmarks/overhead.py [--steps 400] [--repeats 3]

Each row is the time of a training with that probe over the time of the same training without a monitor, dense (at
every step, every 25 steps, every 50 steps) and held to 2 % of the wall time.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_topo import Distortion, Persistence, Sharpness, TopologyMonitor


class Classifier(L.LightningModule):
    """A 64-width-width-10 tanh network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10)
        )

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def seconds(width: int, steps: int, batch_size: int, monitor: TopologyMonitor | None) -> float:
    """The time that the training itself takes, from its first step on."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(batch_size * 8, 64), torch.randint(0, 10, (batch_size * 8,)))

    class Clock(L.Callback):
        def on_train_start(self, *_: object) -> None:
            self.began = time.perf_counter()

        def on_train_end(self, *_: object) -> None:
            self.taken = time.perf_counter() - self.began

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_steps=steps,
            max_epochs=-1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[clock] if monitor is None else [monitor, clock],
        )
        trainer.fit(Classifier(width), DataLoader(data, batch_size=batch_size))
    return clock.taken


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    probes = {
        "no probe": [],
        "Distortion, every step": [Distortion(every_n_steps=1)],
        "Sharpness, every 25 steps": [Sharpness(every_n_steps=25)],
        "Persistence, every 50 steps": [Persistence(every_n_steps=50)],
        "all three": [Distortion(every_n_steps=1), Sharpness(every_n_steps=25), Persistence(every_n_steps=50)],
    }
    print("| network, batch | monitor | time with / without |\n|---|---|---|")
    for width, batch_size in ((64, 500), (256, 500), (1024, 500)):
        rows = {name: (lambda p=p: TopologyMonitor(p, max_overhead=None, report=False)) for name, p in probes.items()}
        rows["all three, auto, max_overhead=0.02"] = lambda: TopologyMonitor(report=False)
        seconds(width, 20, batch_size, None)  # warm up
        for name, make in rows.items():
            # Side by side, and the median of the ratios: the machine may be slower now than a minute ago.
            steps = arguments.steps * (5 if "auto" in name else 1)
            ratios = [
                seconds(width, steps, batch_size, make()) / seconds(width, steps, batch_size, None)
                for _ in range(arguments.repeats)
            ]
            print(f"| 64-{width}-{width}-10, {batch_size} | {name} | {statistics.median(ratios):.2f} |", flush=True)


if __name__ == "__main__":
    main()
