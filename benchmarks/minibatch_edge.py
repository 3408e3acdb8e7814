"""Minibatch training at the edge and far from it, by the curvature of its own batches.

    python benchmarks/minibatch_edge.py [--jobs 2]

Fixed before any run was looked at: the demo's digits MLP (tanh, squared loss), 500 digits, and of each setting the
seeds 0, 1 and 2. *Edge*: SGD lr 0.08 momentum 0.9 batch 8, 3000 steps (whose sharpness over 2(1+mu)/lr is about 0.05);
SGD lr 0.6 batch 8, 3000 steps. *Calm*: the same at a twentieth of the rate. Every 20 steps b, its ratio and the
gradient's share of noise on the step's own batch (before the step), the noise from its two halves as a running mean
over the last 10; the detector is given the median of the last 5 ratios. A run is called edge if it enters and has not
left at the end.
"""

import argparse
import multiprocessing
import statistics
from dataclasses import dataclass

import torch

from lightning_topo.demo import DigitsMLP, digits
from lightning_topo.measurement import Measurement
from lightning_topo.phases import replay
from lightning_topo.stability import batch_sharpness, flatten, noise_share, parameter_thresholds

STEPS, EVERY = 3000, 20


@dataclass(frozen=True, slots=True)
class Setting:
    """One training and what it should be called."""

    lr: float
    momentum: float
    batch: int
    seed: int
    edge: bool


def settings() -> list[Setting]:
    """All trainings."""
    return [
        Setting(lr if edge else lr / 20, momentum, 8, seed, edge)
        for lr, momentum in ((0.08, 0.9), (0.6, 0.0))
        for edge in (True, False)
        for seed in range(3)
    ]


def train(setting: Setting) -> tuple[Setting, list[tuple[int, float, float, float]]]:
    """Step, ratio, large-batch ratio and noise, every 20 steps."""
    torch.set_num_threads(1)
    torch.manual_seed(setting.seed)
    net = DigitsMLP().net
    params = list(net.parameters())
    optimizer = torch.optim.SGD(params, lr=setting.lr, momentum=setting.momentum)
    x, y = digits().tensors
    draw = torch.Generator().manual_seed(setting.seed)
    rows, noises = [], []

    def loss_on(chosen: torch.Tensor) -> torch.Tensor:
        return 0.5 * ((net(x[chosen]) - y[chosen]) ** 2).sum(1).mean()

    for step in range(STEPS):
        chosen = torch.randperm(len(x), generator=draw)[: setting.batch]
        if step % EVERY == 0 and step:
            halves = chosen.chunk(2)
            noises.append(noise_share(*(flatten(torch.autograd.grad(loss_on(half), params)) for half in halves)))
            noise = statistics.fmean(noises[-10:])
            thresholds = parameter_thresholds([optimizer], params).parameters
            found = batch_sharpness(lambda chosen=chosen: loss_on(chosen), params, thresholds, noise=noise)
            assert found.ratio is not None
            assert found.large is not None
            rows.append((step, found.ratio, found.large, noise))
        optimizer.zero_grad()
        loss_on(chosen).backward()
        optimizer.step()
    return setting, rows


def main() -> None:
    """Print one line a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    print("| lr | momentum | batch | seed | should be | ratio, last 50 | large | noise | called | entered | exits |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    right = 0
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        for setting, rows in pool.imap(train, settings()):
            values = [row[1] for row in rows]
            medians = [statistics.median(values[max(k - 4, 0) : k + 1]) for k in range(len(values))]
            lines = zip(rows, medians, strict=True)
            seen = replay([Measurement(row[0], 0, "batch", "", {"batch_sharpness_ratio": v}) for row, v in lines])
            called = seen.state.edge.inside
            entries, exits = (
                [e.step for e in seen.detected if e.name == f"edge_of_stability_{kind}"] for kind in ("enter", "exit")
            )
            late = [statistics.median(r[k] for r in rows[-50:]) for k in (1, 2, 3)]
            right += called == setting.edge
            print(
                f"| {setting.lr:g} | {setting.momentum:g} | {setting.batch} | {setting.seed} "
                f"| {'edge' if setting.edge else 'calm'} | {late[0]:.2f} | {late[1]:.3f} | {late[2]:.2f} "
                f"| {'edge' if called else 'calm'} | {entries[:1]} | {len(exits)} |",
                flush=True,
            )
    print(f"{right} of {len(settings())} called right")


if __name__ == "__main__":
    main()
