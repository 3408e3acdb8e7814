"""Whether the monitor at its defaults stays within max_overhead, and what a step costs on which nothing is due.

    python -m benchmarks.budget [--steps 500] [--device cuda]

The monitor's own time is taken by a callback before it and one after it, in processor time, which a busy machine
distorts less: its share over the whole training, and from step 200 on (before, periods set to "auto" may take 5 %
more). A quiet step is one on which no probe is due.
"""

import argparse
import logging
import statistics
import time
import warnings

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.stopwatch import Laps, train
from lightning_topo import Distortion, TopologyMonitor

SETTLED = 200


class Wide(L.LightningModule):
    """Two hidden layers of 1024 units: few groups, each large. Batches of 512."""

    batch, epoch = 512, 100

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 1024), nn.Tanh(), nn.Linear(1024, 1024), nn.Tanh(), nn.Linear(1024, 10))

    def data(self) -> TensorDataset:
        """An epoch of noise."""
        n = self.batch * self.epoch
        return TensorDataset(torch.randn(n, 64), torch.randint(0, 10, (n,)))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Transformer(L.LightningModule):
    """Twelve encoder blocks of width 64: 48 groups. Batches of 8 sequences of 32 tokens."""

    batch, epoch = 8, 100

    def __init__(self) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, dropout=0.0)
        self.net = nn.Sequential(
            nn.Embedding(50, 64), nn.TransformerEncoder(block, 12, enable_nested_tensor=False), nn.Linear(64, 50)
        )

    def data(self) -> TensorDataset:
        """An epoch of noise."""
        return TensorDataset(torch.randint(0, 50, (self.batch * self.epoch, 32)))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]).flatten(0, 1), batch[0].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def watched(module: "Wide | Transformer", monitor: TopologyMonitor, steps: int, device: torch.device) -> Laps:
    """Train, and hand back the monitor's share of it."""
    laps = Laps(time.process_time)
    train(module, DataLoader(module.data(), batch_size=module.batch), steps, device, laps.around(monitor))
    return laps


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", choices=("Wide", "Transformer"), action="append", help="one only (default: both)")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    print(f"| network | ms a step | quiet step / step | share, from step {SETTLED} on | share, all {arguments.steps} |")
    print("|---|---|---|---|---|")
    for make in (Wide, Transformer):
        if arguments.network and make.__name__ not in arguments.network:
            continue
        torch.manual_seed(0)
        quiet = watched(make(), TopologyMonitor([Distortion(100)], report=False, verbose=False), 100, device)
        step = statistics.median(b - a for a, b in zip(quiet.marks[20:], quiet.marks[21:], strict=False))
        still = statistics.median(quiet.spent[20:95])
        run = watched(make(), TopologyMonitor(report=False, verbose=False), arguments.steps, device)
        settled = f"{run.share(SETTLED):.2%}" if arguments.steps > SETTLED else "-"
        shares = f"{settled} | {run.share():.1%}"
        print(f"| {make.__name__} | {step * 1e3:.0f} | {still / step:.2%} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
