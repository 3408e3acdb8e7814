"""The rule of instability on healthy and on diverging trainings: false alarms, misses, delay.

    python benchmarks/instability.py [--jobs 2]

Fixed before any run was looked at. **Healthy**: 36 runs of 300 steps, the loss of every step and the sharpness ratio
after steps 1 and 2 and then every 25: a digits MLP, a small CNN and an autoencoder, each with Adam 1e-2 and 3e-3,
AdamW 3e-3 and SGD 0.05, three seeds each, batches of 32. **Diverging**: 20 runs of the same three models and kinds of
optimizer with 100 healthy steps, then a learning rate 30 to 3000 times as large (five factors for each of four
optimizers). Truth is the loss alone: a run diverges if its last 20 losses all exceed three times the first, or one is
not finite; onset is the first step from which on no median of 5 is below three times the first. A run with a raised
rate that does not diverge is counted apart. Seeds: 0, 1, 2 healthy; 100 and up diverging.

**Further runs.** Of those 20 only a few diverged by that truth: cross-entropy comes back down to that of a useless
network. So twenty more, whose loss can grow without bound (the autoencoder), at factors of 1000 to 30000. They were
fixed after the first and before any of them was looked at. Seeds from 200.
"""

import argparse
import itertools
import math
import multiprocessing
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lightning_topo.demo import digits
from lightning_topo.measurement import Measurement
from lightning_topo.phases import replay
from lightning_topo.stability import curvature_sharpness, hessian, parameter_thresholds, scaled_sharpness

OPTIMIZERS = {
    "Adam 1e-2": lambda p: torch.optim.Adam(p, lr=1e-2),
    "Adam 3e-3": lambda p: torch.optim.Adam(p, lr=3e-3),
    "AdamW 3e-3": lambda p: torch.optim.AdamW(p, lr=3e-3),
    "SGD 0.05": lambda p: torch.optim.SGD(p, lr=0.05),
}
MODELS = ("MLP", "CNN", "autoencoder")
FACTORS = (30.0, 100.0, 300.0, 1000.0, 3000.0)
STEPS, RAISED_AT, BATCH, EVERY = 300, 100, 32, 25


@dataclass(frozen=True, slots=True)
class Setting:
    """One training; `factor` raises its learning rate at step 100."""

    model: str
    optimizer: str
    factor: float
    seed: int


@dataclass(frozen=True, slots=True)
class Run:
    """What was seen of it."""

    setting: Setting
    losses: tuple[float, ...]
    ratios: tuple[tuple[int, float], ...]

    @property
    def onset(self) -> int | None:
        """The step from which on the loss stays above three times the first; None where it does not diverge."""
        level = 3.0 * self.losses[0]
        high = [not statistics.median(self.losses[max(k - 4, 0) : k + 1]) <= level for k in range(len(self.losses))]
        broken = next((k for k, loss in enumerate(self.losses) if not math.isfinite(loss)), None)
        if broken is None and not all(high[-20:]):
            return None
        last_low = max((k for k, above in enumerate(high[:broken]) if not above), default=-1)
        return last_low + 1 + 1

    def alarms(self) -> list[int]:
        """The steps at which the rule reports an instability."""
        lines = [Measurement(k, 0, "training", "", {"loss": v}) for k, v in enumerate(self.losses, start=1)]
        lines += [Measurement(k, 0, "sharpness", "", {"sharpness_ratio": v}) for k, v in self.ratios]
        lines.sort(key=lambda line: line.step)
        return [event.step for event in replay(lines).detected if event.name == "instability"]


def network(model: str) -> nn.Module:
    """The model on flat digits."""
    if model == "MLP":
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    if model == "autoencoder":
        first, second, third, fourth = (nn.Linear(a, b) for a, b in ((64, 32), (32, 3), (3, 32), (32, 64)))
        return nn.Sequential(first, nn.ReLU(), second, third, nn.ReLU(), fourth)
    features = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(features, nn.Flatten(), nn.Linear(72, 10))


def train(setting: Setting) -> Run:
    """One training, with its losses and ratios."""
    torch.set_num_threads(1)
    torch.manual_seed(setting.seed)
    model = network(setting.model)
    params = list(model.parameters())
    optimizer = OPTIMIZERS[setting.optimizer](params)
    inputs, onehot = digits().tensors
    draw = torch.Generator().manual_seed(setting.seed)
    losses: list[float] = []
    ratios: list[tuple[int, float]] = []

    def loss_on(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = model(x)
        return nn.functional.mse_loss(out, x) if setting.model == "autoencoder" else nn.functional.cross_entropy(out, y)

    for step in range(1, STEPS + 1):
        if step == RAISED_AT:
            optimizer.param_groups[0]["lr"] *= setting.factor
        rows = torch.randint(len(inputs), (BATCH,), generator=draw)
        optimizer.zero_grad()
        loss = loss_on(inputs[rows], onehot[rows].argmax(1))
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        loss.backward()
        optimizer.step()
        if step in (1, 2) or step % EVERY == 0:
            found = ratio(lambda: loss_on(inputs[:256], onehot[:256].argmax(1)), params, optimizer)
            ratios += [] if found is None else [(step, found)]
    return Run(setting, tuple(losses), tuple(ratios))


def ratio(
    loss_fn: Callable[[], torch.Tensor], params: list[nn.Parameter], optimizer: torch.optim.Optimizer
) -> float | None:
    """The sharpness ratio as the probe measures it; None where the loss or its curvature is not finite."""
    try:
        curvature = hessian(loss_fn, params)
        thresholds = parameter_thresholds([optimizer], params, curvature.gradient).parameters
        assert thresholds is not None
        return scaled_sharpness(curvature, thresholds, curvature_sharpness(curvature)).ratio
    except FloatingPointError:
        return None


def healthy() -> list[Setting]:
    """36 trainings that nobody would stop."""
    return [Setting(m, o, 1.0, seed) for m, o, seed in itertools.product(MODELS, OPTIMIZERS, range(3))]


def diverging() -> list[Setting]:
    """20 trainings whose learning rate is raised beyond reason."""
    cases = itertools.product(OPTIMIZERS, FACTORS)
    return [Setting(MODELS[k % 3], o, f, 100 + k) for k, (o, f) in enumerate(cases)]


def further() -> list[Setting]:
    """20 more, of a loss without an upper bound."""
    cases = itertools.product(OPTIMIZERS, (1e3, 2e3, 5e3, 1e4, 3e4))
    return [Setting("autoencoder", o, f, 200 + k) for k, (o, f) in enumerate(cases)]


def main() -> None:
    """Print each run that matters, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        runs = pool.map(train, healthy() + diverging() + further())
    false, missed, harmless = 0, 0, 0
    delays: list[int] = []
    for run in runs:
        alarms, onset = run.alarms(), run.onset
        first, last = run.losses[0], run.losses[-1]
        print(f"{run.setting}: onset {onset}, alarms {alarms}, first loss {first:.3g}, last {last:.3g}")
        if run.setting.factor == 1.0:
            false += bool(alarms)
        elif onset is None:
            harmless += 1
        else:
            after = [step - onset for step in alarms if step >= RAISED_AT]
            missed += not after
            delays += after[:1]
    print(f"healthy: {false} of {len(healthy())} with an alarm; raised: {harmless} did not diverge; ", end="")
    print(f"{missed} missed of the {len(delays) + missed} that did")
    print(f"delay after the onset, in steps: median {statistics.median(delays)}, from {min(delays)} to {max(delays)}")


if __name__ == "__main__":
    main()
