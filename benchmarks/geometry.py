"""Times of the geometry, as ratios to what they must cost at least, side by side in one run.

    python benchmarks/geometry.py [--quick]

Step distortion, alone and together with the map since a reference, against two bare matrix products X Xᵀ; pairwise
distances, landmarks and distinct neurons against `torch.cdist`.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_topo.geometry import (
    distinct_neurons,
    distortions,
    farthest_point_landmarks,
    pairwise_distances,
    step_distortion,
)

SIZES = [(256, 256), (1024, 64), (1024, 1024), (4096, 64), (4096, 1024)]
QUICK = [(256, 256), (1024, 64), (1024, 1024)]


def interleaved(calls: list[Callable[[], object]], device: torch.device, repeats: int = 5) -> list[float]:
    """The best time of each call in seconds; all take turns, so that a busy moment hits all."""
    best = [float("inf")] * len(calls)
    for _ in range(repeats + 1):
        for k, call in enumerate(calls):
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            best[k] = min(best[k], time.perf_counter() - start)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def steps(before: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Steps of several kinds: small, large, nearly tied (all ratios equal), and of nearly equal neurons."""
    noise = torch.randn(before.shape, generator=generator).to(before.device)
    return {"small": before + 1e-3 * noise, "large": before + 2 * noise, "decay": before * (1 - 1e-3)}


def compare_steps(sizes: list[tuple[int, int]], device: torch.device) -> None:
    print(
        f"\n{'step distortion':24}{'n':>6}{'d':>6}{'2 products':>13}{'step':>11}{'ratio':>8}"
        f"{'with total':>11}{'ratio':>8}"
    )
    generator = torch.Generator().manual_seed(0)
    for n, d in sizes:
        before = torch.randn(n, d, generator=generator).to(device)
        for kind, after in steps(before, generator).items():
            start = before + 0.5 * before.roll(1, 0)
            products, exact, both = interleaved(
                [
                    lambda x=before, y=after: (x @ x.T, y @ y.T),
                    lambda x=before, y=after: step_distortion(x, y),
                    lambda x=before, y=after, z=start: distortions(x[None], y[None], z[None]),
                ],
                device,
            )
            line = f"{kind:24}{n:6}{d:6}{products * 1e3:10.1f} ms{exact * 1e3:8.1f} ms{exact / products:8.2f}"
            print(f"{line}{both * 1e3:8.1f} ms{both / products:8.2f}")


def compare_others(sizes: list[tuple[int, int]], device: torch.device) -> None:
    names = ["torch.cdist", "pairwise_distances", "128 landmarks", "distinct_neurons"]
    print(f"\n{'against torch.cdist':24}{'n':>6}{'d':>6}{'time':>13}{'ratio':>8}")
    for n, d in sizes:
        x = torch.randn(n, d, generator=torch.Generator().manual_seed(0)).to(device)
        calls: list[Callable[[], object]] = [
            lambda x=x: torch.cdist(x, x),
            lambda x=x: pairwise_distances(x),
            lambda x=x: farthest_point_landmarks(x, 128),
            lambda x=x: distinct_neurons(x),
        ]
        times = interleaved(calls, device, repeats=3)
        for name, seconds in zip(names, times, strict=True):
            print(f"{name:24}{n:6}{d:6}{seconds * 1e3:10.1f} ms{seconds / times[0]:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    print(f"torch {torch.__version__} on {device}, {torch.get_num_threads()} threads")
    sizes = QUICK if arguments.quick else SIZES
    compare_steps(sizes, device)
    compare_others(sizes, device)


if __name__ == "__main__":
    main()
