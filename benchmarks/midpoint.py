"""Whether the sharpness varies less in the middle of a step than at its end, where training oscillates at the edge.

    python -m benchmarks.midpoint

At the edge of stability iterates jump from side to side of a valley. Others take the curvature in the middle of two
iterates, to see the valley's floor (Cohen et al., arXiv:2410.24206, central flows). Full-batch gradient descent on 500
digits, 600 steps, three networks at five settings of rate and momentum; those that diverge are left out. At each of
the last 200 steps the largest eigenvalue is measured at the end of the step and in its middle, in float64, to a
relative residual of 1e-4; both over the threshold 2 (1 + momentum) / lr. Some minutes on one core.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from lightning_topo.demo import digits
from lightning_topo.stability import sharpness

STEPS, LAST = 600, 200
NETWORKS = {"2 x 32": (64, 32, 32, 10), "1 x 64": (64, 64, 10), "3 x 24": (64, 24, 24, 24, 10)}
RULES = ((0.1, 0.0), (0.2, 0.0), (0.3, 0.0), (0.05, 0.5), (0.1, 0.5))


@dataclass(frozen=True, slots=True)
class Row:
    """The ratio's mean and standard deviation over the last steps, at their ends and in their middles."""

    network: str
    lr: float
    momentum: float
    loss: float
    end: tuple[float, float]
    middle: tuple[float, float]


def run(name: str, lr: float, momentum: float) -> Row:
    """One training."""
    torch.manual_seed(0)
    x, y = (tensor.double() for tensor in digits().tensors)
    sizes = NETWORKS[name]
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    net = nn.Sequential(*layers[:-1]).double()
    params, optimizer = list(net.parameters()), torch.optim.SGD(net.parameters(), lr, momentum)

    def loss() -> torch.Tensor:
        return (net(x) - y).square().sum(1).mean()

    starts: dict[str, torch.Tensor | None] = {"end": None, "middle": None}
    found: dict[str, list[float]] = {"end": [], "middle": []}
    value = loss()
    for step in range(STEPS):
        before = [p.detach().clone() for p in params]
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        if step < STEPS - LAST or not bool(value.isfinite()):
            continue
        after = [p.detach().clone() for p in params]
        for place, share in (("end", 1.0), ("middle", 0.5)):
            with torch.no_grad():
                for p, a, b in zip(params, before, after, strict=True):
                    p.copy_(torch.lerp(a, b, share))
            estimate = sharpness(loss, params, start=starts[place], tolerance=1e-4)
            starts[place] = estimate.vector
            found[place].append(estimate.value * lr / (2 * (1 + momentum)))
        with torch.no_grad():
            for p, b in zip(params, after, strict=True):
                p.copy_(b)
    spread = {place: (statistics.fmean(v), statistics.stdev(v)) if v else (0.0, 0.0) for place, v in found.items()}
    return Row(name, lr, momentum, float(value.detach()), spread["end"], spread["middle"])


def table(rows: list[Row]) -> Iterator[str]:
    """The rows as Markdown; runs that diverged are left out."""
    yield "| network | lr | momentum | loss | ratio at the end | in the middle | spread, middle over end |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        (end, wide), (middle, narrow) = row.end, row.middle
        yield (
            f"| {row.network} | {row.lr} | {row.momentum} | {row.loss:.3f} | {end:.3f} ± {wide:.3f} | "
            f"{middle:.3f} ± {narrow:.3f} | {narrow / wide:.2f} |"
        )


def main() -> None:
    """Run all and print the table."""
    rows = [run(name, lr, momentum) for name in NETWORKS for lr, momentum in RULES]
    print("\n".join(table([row for row in rows if row.end[1] > 0])))


if __name__ == "__main__":
    main()
