"""What TopologyStepGuard does to trainings above the critical point: the same run without and with it.

    python benchmarks/guard.py [--steps 100]

Full-batch gradient descent on 500 digits, cross-entropy, a 64-64-64-10 network. r is the largest critical ratio of a
step, over pairs that differ by more than rounding; the neurons are those still distinct at the end of each hidden
layer. In the last two runs neurons merge without the guard: by weight decay with lr * weight_decay = 1, and in
bfloat16. Times are side by side in one run.
"""

import argparse
import logging
import math
import tempfile
import time
import warnings
from dataclasses import dataclass, field

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_topo import TopologyStepGuard
from lightning_topo.demo import FullBatch, digits
from lightning_topo.geometry import distinct_neurons, resolved_critical_ratio
from lightning_topo.neurons import NeuronGroup, declare_neurons


class Digits(L.LightningModule):
    """A 64-64-64-10 network under plain gradient descent."""

    def __init__(self, activation: type[nn.Module], lr: float, weight_decay: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 10))
        self.options = {"lr": lr, "weight_decay": weight_decay}

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]).float(), batch[1].argmax(1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), **self.options)


@dataclass
class Watch(L.Callback):
    """Keeps the losses and clouds of every step; only the time between the batches' hooks is counted."""

    groups: list[NeuronGroup]
    losses: list[float] = field(default_factory=list)
    clouds: list[list[torch.Tensor]] = field(default_factory=list)
    seconds: float = 0.0

    def on_train_start(self, trainer, pl_module) -> None:
        self._keep(pl_module)

    def on_train_batch_start(self, *_) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        # The first batch also finds the groups.
        self.seconds += time.perf_counter() - self.began if batch_idx else 0.0
        self.losses.append(float(outputs["loss"]))
        self._keep(pl_module)

    def _keep(self, module: nn.Module) -> None:
        tensors = dict(module.named_parameters())
        self.clouds.append([group.gather(tensors) for group in self.groups])


def train(
    activation: type[nn.Module], lr: float, weight_decay: float, precision: str, steps: int, guarded: bool
) -> tuple[Watch, TopologyStepGuard]:
    """One training; the guard is new, and counts nothing where it takes no part."""
    torch.manual_seed(0)
    module = Digits(activation, lr, weight_decay)
    groups = [
        group
        for at in (0, 2)
        for group in declare_neurons(
            module, f"net.{at}", {f"net.{at}.weight": 0, f"net.{at}.bias": 0, f"net.{at + 2}.weight": 1}
        )
    ]
    watch, guard = Watch(groups), TopologyStepGuard()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            precision=precision,
            callbacks=[guard, watch] if guarded else [watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, DataLoader(FullBatch(digits(), steps), batch_size=None))
    return watch, guard


def worst_ratio(watch: Watch) -> float:
    """The largest r of a step; infinite where the weights are no longer finite."""
    worst = 0.0
    for before, after in zip(watch.clouds, watch.clouds[1:], strict=False):
        for x, y in zip(before, after, strict=True):
            if not torch.isfinite(y).all():
                return math.inf
            worst = max(worst, resolved_critical_ratio(x, y, torch.finfo(x.dtype).eps / 0.9))
    return worst


def distinct(watch: Watch) -> str:
    """How many neurons of each layer are distinct at the end."""
    if not all(torch.isfinite(cloud).all() for cloud in watch.clouds[-1]):
        return "-"
    return ", ".join(str(distinct_neurons(cloud)) for cloud in watch.clouds[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    runs = {
        "tanh, lr 10": (nn.Tanh, 10.0, 0.0, "32-true"),
        "tanh, lr 100": (nn.Tanh, 100.0, 0.0, "32-true"),
        "ReLU, lr 10": (nn.ReLU, 10.0, 0.0, "32-true"),
        "ReLU, lr 1, weight decay 1": (nn.ReLU, 1.0, 1.0, "32-true"),
        "ReLU, lr 10, bfloat16": (nn.ReLU, 10.0, 0.0, "bf16-true"),
    }
    train(*runs["tanh, lr 10"], 5, guarded=True)  # warm up
    print("| run | guard | last loss | least loss | largest r | held (dropped) | distinct neurons | time |")
    print("|---|---|---|---|---|---|---|---|")
    for name, options in runs.items():
        free, _ = train(*options, arguments.steps, guarded=False)
        held, guard = train(*options, arguments.steps, guarded=True)
        for watch, what, counts in (
            (free, "no", "-"),
            (held, "yes", f"{guard.n_held} of {guard.n_updates} ({guard.n_dropped})"),
        ):
            least = min((loss for loss in watch.losses if math.isfinite(loss)), default=math.nan)
            print(
                f"| {name} | {what} | {watch.losses[-1]:.3g} | {least:.3g} | {worst_ratio(watch):.3g} | {counts} "
                f"| {distinct(watch)} | {watch.seconds / free.seconds:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
