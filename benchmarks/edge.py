"""The edge-of-stability rule on runs that reach the edge and runs that do not: false entries, misses, flips, delay.

    python benchmarks/edge.py [--runs 20] [--every 10]

Twenty full-batch trainings that reach the edge and twenty that stay outside it, over widths, depths, optimizers and
learning rates, on 500 digits. Which is which is said by the measured ratio itself, looked at afterwards and as a whole
(a run is inside if at least three of its ratios are 1 or more, outside if none is above 0.8), while the rule
sees one measurement at a time. Takes about three minutes on two cores.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from lightning_topo.demo import digits
from lightning_topo.measurement import Measurement
from lightning_topo.phases import replay
from lightning_topo.stability import curvature_sharpness, hessian, parameter_scalings, scaled_sharpness

Make = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]

OPTIMIZERS: dict[str, tuple[Make, float, float]] = {
    # name: (constructor, a learning rate that reaches the edge, one that does not)
    "SGD": (lambda p, lr: torch.optim.SGD(p, lr=lr), 0.4, 0.05),
    "momentum": (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9), 0.25, 0.03),
    "Adam": (lambda p, lr: torch.optim.Adam(p, lr=lr), 6e-3, 2e-4),
    "AdamW": (lambda p, lr: torch.optim.AdamW(p, lr=lr), 6e-3, 2e-4),
    "RMSprop": (lambda p, lr: torch.optim.RMSprop(p, lr=lr), 1e-3, 2e-5),
}
SHAPES = ((32, 2), (64, 2), (64, 3), (128, 1))


@dataclass(frozen=True, slots=True)
class Run:
    """One training: its ratios by step."""

    optimizer: str
    width: int
    depth: int
    lr: float
    ratios: tuple[tuple[int, float], ...]

    @property
    def truth(self) -> str:
        """Whether it was at the edge, as its whole course tells: "inside", "outside" or "between"."""
        values = [ratio for _, ratio in self.ratios]
        return "inside" if sum(v >= 1.0 for v in values) >= 3 else "outside" if max(values) <= 0.8 else "between"


def mlp(width: int, depth: int) -> nn.Sequential:
    """A tanh network with `depth` hidden layers."""
    sizes = [64, *[width] * depth]
    hidden = itertools.chain.from_iterable((nn.Linear(a, b), nn.Tanh()) for a, b in itertools.pairwise(sizes))
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def train(name: str, width: int, depth: int, *, inside: bool, seed: int, steps: int, every: int) -> Run:
    """Train, and measure the sharpness ratio every so many steps."""
    make, high, low = OPTIMIZERS[name]
    lr = high if inside else low
    torch.manual_seed(seed)
    model = mlp(width, depth)
    x, onehot = digits().tensors
    optimizer = make(list(model.parameters()), lr)
    raw = scaled = None
    ratios: list[tuple[int, float]] = []

    def loss_fn() -> torch.Tensor:
        return 0.5 * ((model(x) - onehot) ** 2).sum(1).mean()

    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = loss_fn()
        if not torch.isfinite(loss):
            break
        loss.backward()
        optimizer.step()
        if step % every == 0:
            curvature = hessian(loss_fn, model.parameters())
            raw = curvature_sharpness(curvature, start=None if raw is None else raw.vector)
            scalings = parameter_scalings([optimizer], curvature.params)
            assert scalings is not None
            scaled = scaled_sharpness(curvature, scalings, raw, start=None if scaled is None else scaled.vector)
            ratios.append((step, scaled.ratio))
    return Run(name, width, depth, lr, tuple(ratios))


def plan(runs: int) -> Iterator[tuple[str, tuple[int, int], int]]:
    """Optimizers in turn, each over all shapes."""
    combinations = itertools.product(SHAPES, OPTIMIZERS)
    for seed, (shape, name) in enumerate(itertools.islice(itertools.cycle(combinations), runs)):
        yield name, shape, seed


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="of each kind")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=10)
    arguments = parser.parse_args()
    began = time.perf_counter()
    rows = ["| optimizer | MLP | lr | truth | ratio: max | median at the edge | first >= 1 | entered | exits |"]
    rows.append("|---|---|---|---|---|---|---|---|---|")
    false_entries = misses = flips = n_inside = n_outside = 0
    delays: list[int] = []
    for inside in (True, False):
        for name, (width, depth), seed in plan(arguments.runs):
            run = train(name, width, depth, inside=inside, seed=seed, steps=arguments.steps, every=arguments.every)
            seen = replay([Measurement(k, 0, "sharpness", "", {"sharpness_ratio": v}) for k, v in run.ratios])
            entries = [e.step for e in seen.events if e.name == "edge_of_stability_enter"]
            exits = [e.step for e in seen.events if e.name == "edge_of_stability_exit"]
            first = next((step for step, value in run.ratios if value >= 1.0), None)
            after = [value for step, value in run.ratios if first is not None and step >= first + 50]
            n_inside += run.truth == "inside"
            n_outside += run.truth == "outside"
            false_entries += run.truth == "outside" and bool(entries)
            misses += run.truth == "inside" and not entries
            if run.truth == "inside" and entries:
                flips += len(entries) - 1 + len(exits)
                assert first is not None
                delays.append(entries[0] - first)
            middle = f"{statistics.median(after):.2f}" if after else ""
            rows.append(
                f"| {name} | {depth} x {width} | {run.lr:g} | {run.truth} | {max(v for _, v in run.ratios):.2f} "
                f"| {middle} | {first or ''} | {entries[0] if entries else ''} | {len(exits)} |"
            )
            print(rows[-1], flush=True)
    print("\n".join(["", *rows, ""]))
    print(f"{n_inside} runs inside, {n_outside} outside, {2 * arguments.runs - n_inside - n_outside} between.")
    print(f"False entries {false_entries}, misses {misses}, flips {flips}; delay in steps: ", end="")
    if delays:
        print(f"median {statistics.median(delays):.0f}, from {min(delays)} to {max(delays)};", end=" ")
    print(f"{time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
