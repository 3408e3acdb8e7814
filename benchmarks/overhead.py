"""What the monitor or the guard costs: a training with it and the same without, which take turns.

    python -m benchmarks.overhead [--networks tiny mlp gpt resnet deep] [--steps 500] [--callback guard]

Both trainings run in one process and take turns, so that a busy machine slows both alike; of ten steps each, since at
every step each would find its own tensors gone from the caches, as they are in no real training. Ratios are of
processor time, with that of processes that the callback starts in the last column; the wall time of both stands beside
them. "start" is the callback's time up to the end of its first step, in steps.
"""

import argparse
import logging
import os
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.coverage import GPT
from lightning_topo import TopologyMonitor, TopologyStepGuard

FIRST = 200
TURN = 10
"""So many steps are done in one go."""


class Residual(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()),
            *(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)),
        )
        plain = stride == 1 and width == out
        self.skip = nn.Identity() if plain else nn.Conv2d(width, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def tiny() -> tuple[nn.Module, Tensor, Tensor]:
    net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
    return net, torch.randn(32 * 64, 64), torch.randint(10, (32 * 64,))


def mlp() -> tuple[nn.Module, Tensor, Tensor]:
    net = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return net, torch.randn(64 * 32, 784), torch.randint(10, (64 * 32,))


def gpt() -> tuple[nn.Module, Tensor, Tensor]:
    tokens = torch.randint(64, (16 * 16, 65))
    return GPT(64, width=128, heads=4, layers=4, length=64), tokens[:, :-1].clone(), tokens[:, 1:].clone()


def resnet() -> tuple[nn.Module, Tensor, Tensor]:
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    widths = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    net = nn.Sequential(
        *stem, *(Residual(*width) for width in widths), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    )
    return net, torch.randn(32 * 8, 3, 32, 32), torch.randint(10, (32 * 8,))


class SmallStep(nn.Module):
    """Adds little to what it is given."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


def deep() -> tuple[nn.Module, Tensor, Tensor]:
    """600 parameters, none of them large: what is done for each of them counts."""
    net = nn.Sequential(nn.Linear(8, 32), *(SmallStep(32, 48) for _ in range(100)), nn.Linear(32, 3))
    return net, torch.randn(32 * 64, 8), torch.randint(3, (32 * 64,))


NETWORKS: dict[str, tuple[Callable[[], tuple[nn.Module, Tensor, Tensor]], int]] = {
    "tiny": (tiny, 32),
    "mlp": (mlp, 64),
    "gpt": (gpt, 16),
    "resnet": (resnet, 32),
    "deep": (deep, 32),
}


CALLBACKS: dict[str, Callable[[], L.Callback]] = {
    "monitor": lambda: TopologyMonitor(verbose=False),
    "guard": lambda: TopologyStepGuard(0.9),
}


class Network(L.LightningModule):
    """A classifier of inputs, or of the tokens in them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]).flatten(0, -2), batch[1].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@dataclass
class Baton:
    """Lets two threads take turns."""

    held: threading.Condition = field(default_factory=threading.Condition)
    turn: int = 0
    left: set[int] = field(default_factory=lambda: {0, 1})

    def take(self, who: int) -> None:
        with self.held:
            self.held.wait_for(lambda: self.turn == who)

    def give(self, who: int) -> None:
        with self.held:
            self.turn = 1 - who if 1 - who in self.left else who
            self.held.notify_all()

    def leave(self, who: int) -> None:
        with self.held:
            self.left.discard(who)
            self.turn = 1 - who
            self.held.notify_all()


class Turns(L.Callback):
    """Keeps the seconds of processor and wall of each step, and gives the turn away after some steps."""

    def __init__(self, baton: Baton, who: int) -> None:
        self.baton, self.who = baton, who
        self.taken: list[tuple[float, float]] = []
        self.end = (0.0, 0.0)

    def on_train_start(self, *_: object) -> None:
        self.began = now()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step:
            self.taken.append(since(self.began))
            if trainer.global_step == 1 or trainer.global_step % TURN == 0:
                self.baton.give(self.who)
                self.baton.take(self.who)
            self.began = now()


class End(L.Callback):
    """Comes after all others."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            self.turns.taken.append(since(self.turns.began))
            self.turns.began = now()

    def on_train_end(self, *_: object) -> None:
        self.turns.end = since(self.turns.began)


def now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def since(then: tuple[float, float]) -> tuple[float, float]:
    cpu, wall = now()
    return cpu - then[0], wall - then[1]


def train(name: str, steps: int, turns: Turns, monitor: L.Callback | None) -> None:
    turns.baton.take(turns.who)
    try:
        make, batch_size = NETWORKS[name]
        torch.manual_seed(0)
        net, x, y = make()
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
                callbacks=[turns, *([] if monitor is None else [monitor]), End(turns)],
            )
            trainer.fit(Network(net), DataLoader(TensorDataset(x, y), batch_size=batch_size))
    finally:
        turns.baton.leave(turns.who)


def pair(name: str, steps: int, monitor: L.Callback) -> tuple[Turns, Turns, float]:
    """The trainings without and with the monitor, and the seconds of processor that its processes took."""
    baton = Baton()
    both = [Turns(baton, 0), Turns(baton, 1)]
    children = sum(os.times()[2:4])
    threads = [
        threading.Thread(target=train, args=(name, steps, turns, callback))
        for turns, callback in zip(both, (None, monitor), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return both[0], both[1], sum(os.times()[2:4]) - children


def row(name: str, steps: int, callback: L.Callback) -> str:
    """One line of the table."""
    plain, watched, children = pair(name, steps, callback)

    def ratio(first: int, last: int, clock: int = 0) -> float:
        return sum(t[clock] for t in watched.taken[first:last]) / sum(t[clock] for t in plain.taken[first:last])

    step = statistics.median(t[0] for t in plain.taken)
    start = (watched.taken[0][0] - plain.taken[0][0]) / step
    whole = sum(t[0] for t in plain.taken)
    everything = (sum(t[0] for t in watched.taken) + watched.end[0] + children) / whole
    cells = [
        name,
        f"{1e3 * step:.1f}",
        f"{start:.1f}",
        f"{ratio(0, 40):.2f}",
        f"{ratio(0, FIRST):.2f}",
        f"{ratio(FIRST, steps):.3f}" if steps > FIRST else "",
        f"{ratio(0, steps):.3f}",
        f"{ratio(0, steps, 1):.3f}",
        f"{watched.end[0]:.2f}",
        f"{children:.2f}",
        f"{everything:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--callback", default="monitor", choices=list(CALLBACKS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.ERROR)
    pair("tiny", 20, L.Callback())  # imports and caches of the training itself
    heads = ["network", "step ms", "start, steps", "first 40", "first 200", "after", "all", "all, wall", "end s"]
    print(f"| {' | '.join([*heads, 'processes s', 'everything'])} |")
    print("|---" * (len(heads) + 2) + "|")
    for name in arguments.networks:
        print(row(name, arguments.steps, CALLBACKS[arguments.callback]()), flush=True)


if __name__ == "__main__":
    main()
