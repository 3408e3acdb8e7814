"""Times of the geometry, as ratios to what they must cost at least, side by side in one run.

    python benchmarks/geometry.py [--quick]

Step distortion against two bare matrix products X Xᵀ; pairwise distances against `torch.cdist`; the sampled
mode against a training step of a GPT-2-small-shaped model.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_topo.geometry import (
    distinct_neurons,
    farthest_point_landmarks,
    pairwise_distances,
    projected_step_distortion,
    sampled_step_distortion,
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
    print(f"\n{'step distortion':24}{'n':>6}{'d':>6}{'2 products':>13}{'exact':>11}{'ratio':>8}")
    generator = torch.Generator().manual_seed(0)
    for n, d in sizes:
        before = torch.randn(n, d, generator=generator).to(device)
        for kind, after in steps(before, generator).items():
            products, exact = interleaved(
                [
                    lambda x=before, y=after: (x @ x.T, y @ y.T),
                    lambda x=before, y=after: step_distortion(x, y),
                ],
                device,
            )
            line = f"{kind:24}{n:6}{d:6}{products * 1e3:10.1f} ms{exact * 1e3:8.1f} ms{exact / products:8.2f}"
            print(line)


def compare_others(sizes: list[tuple[int, int]], device: torch.device) -> None:
    names = ["torch.cdist", "pairwise_distances", "128 landmarks", "distinct_neurons", "projected to 128"]
    print(f"\n{'against torch.cdist':24}{'n':>6}{'d':>6}{'time':>13}{'ratio':>8}")
    for n, d in sizes:
        x = torch.randn(n, d, generator=torch.Generator().manual_seed(0)).to(device)
        calls: list[Callable[[], object]] = [
            lambda x=x: torch.cdist(x, x),
            lambda x=x: pairwise_distances(x),
            lambda x=x: farthest_point_landmarks(x, 128),
            lambda x=x: distinct_neurons(x),
            lambda x=x: projected_step_distortion(x, 1.01 * x + x.roll(1, 0) / 100, 128),
        ]
        times = interleaved(calls, device, repeats=3)
        for name, seconds in zip(names, times, strict=True):
            print(f"{name:24}{n:6}{d:6}{seconds * 1e3:10.1f} ms{seconds / times[0]:8.2f}")


def compare_training(device: torch.device, n_layers: int, tokens: int) -> None:
    """The sampled mode on all MLP groups against a step of the model they belong to."""
    width, vocabulary = 768, 50257
    layer = torch.nn.TransformerEncoderLayer(width, 12, 4 * width, batch_first=True, dropout=0.0)
    encoder = torch.nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
    model = torch.nn.Sequential(
        torch.nn.Embedding(vocabulary, width), encoder, torch.nn.Linear(width, vocabulary)
    )
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(vocabulary, (4, tokens), generator=generator).to(device)

    def train() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch).flatten(0, 1), batch.flatten()).backward()
        optimizer.step()

    clouds = [torch.randn(4 * width, 2 * width + 1, generator=generator).to(device) for _ in range(n_layers)]
    moved = [cloud + cloud.roll(1, 0) / 100 for cloud in clouds]

    def sample() -> None:
        for before, after in zip(clouds, moved, strict=True):
            sampled_step_distortion(before, after, n_rows=64)

    step, sampled = interleaved([train, sample], device, repeats=2)
    print(f"\nGPT-2-small-shaped step, {n_layers} layers, 4 x {tokens} tokens: {step * 1e3:.0f} ms")
    print(f"sampled mode on its {n_layers} MLP groups (n=3072, d=1537): {sampled * 1e3:.1f} ms")
    print(f"ratio: {100 * sampled / step:.2f} %")


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
    compare_training(device, n_layers=2 if arguments.quick else 12, tokens=64 if arguments.quick else 256)


if __name__ == "__main__":
    main()
