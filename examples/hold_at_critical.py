"""A learning rate that is held at a chosen multiple of the critical one, all through training.

    python -m examples.hold_at_critical

r = lr / lr* is measured for every step, so lr / r is that step's critical learning rate lr*. The callback below takes a
running mean of log lr*, which follows the training as it flattens and sharpens, and gives the next step
`multiple` times it. It uses nothing but the findings that `TopologyMonitor` gives every callback: copy it into a
training of your own. docs/schedule.md says what to expect of it.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from lightning_topo import Distortion, Findings, TopologyMonitor
from lightning_topo.demo import DigitsMLP, FullBatch, digits


class HoldAtCritical(L.Callback):
    """Keeps the learning rate at `multiple` times the critical one, as the steps so far have shown it.

    `memory` is that of the running mean, `max_change` the largest factor by which the learning rate changes from step
    to step, and `max_lr` a ceiling: r says nothing of stability, and far from merging it would let the loss diverge.
    Only for rules linear in the learning rate, and beside no other scheduler.
    """

    def __init__(
        self, multiple: float = 0.1, memory: float = 0.9, max_change: float = 1.05, max_lr: float = 1.0
    ) -> None:
        self.multiple, self.memory, self.max_change, self.max_lr = multiple, memory, max_change, max_lr
        self.log_critical: float | None = None

    def on_topology_findings(self, trainer: L.Trainer, pl_module: L.LightningModule, findings: Findings) -> None:
        by_group = findings.values.get("distortion", {})
        r = max((values.get("critical_ratio", 0.0) for values in by_group.values()), default=0.0)
        if not 0.0 < r < math.inf:
            return
        for optimizer in trainer.optimizers:
            lr = optimizer.param_groups[0]["lr"]
            seen = math.log(lr / r)
            old = seen if self.log_critical is None else self.log_critical
            self.log_critical = self.memory * old + (1.0 - self.memory) * seen
            factor = self.multiple * math.exp(self.log_critical) / lr
            factor = min(max(factor, 1.0 / self.max_change), self.max_change, self.max_lr / lr)
            for group in optimizer.param_groups:
                group["lr"] *= factor

    def state_dict(self) -> dict[str, Any]:
        return {"log_critical": self.log_critical}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.log_critical = state_dict["log_critical"]


@dataclass
class Course(L.Callback):
    """What happened: learning rate, loss and r of every step."""

    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_topology_findings(self, trainer: L.Trainer, pl_module: L.LightningModule, findings: Findings) -> None:
        values = findings.values.get("distortion", {}).values()
        self.ratios.append(max(group["critical_ratio"] for group in values))


def train(hold: HoldAtCritical | None, lr: float, steps: int = 400, folder: str | Path = ".") -> Course:
    """One training of the demo's network, full-batch; without `hold` the learning rate stays as it is."""
    torch.manual_seed(0)
    course = Course()
    monitor = TopologyMonitor(
        probes=[Distortion(every_n_steps=1)], dirpath=Path(folder) / "hold", report=False, verbose=False
    )
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[course, monitor, *([] if hold is None else [hold])],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(DigitsMLP(lr), DataLoader(FullBatch(digits(), steps), batch_size=None))
    return course


def main() -> None:
    """Print the courses side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--folder", default=".")
    arguments = parser.parse_args()
    runs = {
        "lr 0.01": (None, 0.01),
        "lr 0.1": (None, 0.1),
        "held at 0.005 lr*": (HoldAtCritical(0.005), 0.01),
        "held at 0.01 lr*": (HoldAtCritical(0.01), 0.01),
    }
    print("| run | r in the last half: geometric mean | largest | lr: step 100 | step 200 | last | last loss |")
    print("|---|---|---|---|---|---|---|")
    for name, (hold, lr) in runs.items():
        course = train(hold, lr, arguments.steps, arguments.folder)
        late = course.ratios[len(course.ratios) // 2 :]
        rates = " | ".join(f"{course.rates[min(k, len(course.rates) - 1)]:.3g}" for k in (100, 200, -1))
        print(
            f"| {name} | {geometric_mean(late):.3g} | {max(late):.3g} | {rates} | {course.losses[-1]:.3g} |", flush=True
        )


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


if __name__ == "__main__":
    main()
