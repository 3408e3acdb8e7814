"""What the monitor costs, as a formula fitted to measurements, and what it predicts for large models.

    python -m benchmarks.cost_model [--quick]

1. Distortion and Persistence are timed on clouds of many sizes, beside a bare matrix product.
2. Per group, seconds = c0 + c1 * (n d 4 bytes) / bandwidth + kappa * (2 n^2 d) / rate is fitted by non-negative
   least squares on relative errors, with rate and bandwidth those of a bare product and a bare copy in the same run:
   kappa is how many products X X^T a measurement is worth, c1 how many times it goes through the cloud.
3. The same kappa and c1 at a GPU's rate and bandwidth give the cost for Llama-shaped models under FSDP2.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls

from lightning_topo import persistence
from lightning_topo.neurons import NeuronGroup, ParamSlice
from lightning_topo.probes import Capture, Clouds, Distortion

SIZES = ((64, 64), (64, 1024), (256, 256), (256, 2048), (512, 512), (1024, 256), (1024, 1024), (2048, 512))
QUICK = SIZES[:6]


@dataclass(frozen=True, slots=True)
class Machine:
    """`rate` of float32 products in FLOP/s, `memory` in byte/s read, `network` in byte/s received by one process."""

    name: str
    rate: float
    memory: float
    network: float


@dataclass(frozen=True, slots=True)
class Model:
    """A Llama-shaped model: groups per layer are the units of its MLP, the heads, and the dimensions inside heads."""

    name: str
    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    parameters: float

    def groups(self) -> list[tuple[int, int, int]]:
        """(blocks, n, d) of each group, in the order of the layers."""
        head = self.width // self.heads
        shared = self.heads // self.kv_heads
        in_layer = [
            (1, self.kv_heads, (2 * shared + 2) * head * self.width),  # a key-value head with its queries and outputs
            (self.kv_heads, head, (1 + shared) * self.width),  # value dimensions inside each head
            (1, self.hidden, 3 * self.width),  # gate, up and down of each unit
        ]
        return in_layer * self.layers


H100 = {
    "8 GPUs, one node": Machine("8 GPUs, one node", 30e12, 2.0e12, 200e9),
    "64 GPUs, 8 nodes": Machine("64 GPUs, 8 nodes", 30e12, 2.0e12, 40e9),
}
LLAMAS = (
    Model("7B", 32, 4096, 11008, 32, 32, 6.7e9),
    Model("70B", 80, 8192, 28672, 64, 8, 69e9),
)
TOKENS, UTILISED = 4 * 2**20, 400e12
"""Tokens in a global batch, and the FLOP/s that training reaches on each GPU."""


def seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """The median time of an action on one core, after one to warm up; what else the machine does is not counted."""
    action()
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        action()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def distortion_seconds(n: int, d: int) -> float:
    """One group's step, its total since the beginning, and its distinct neurons."""
    torch.manual_seed(0)
    group = NeuronGroup("g", "unit", n, (), (ParamSlice("w"),))
    reference, before, now = (torch.randn(n, d) for _ in range(3))
    before = reference + 0.05 * before
    now = before + 1e-3 * now
    clouds = [Clouds((), {}, {"g": cloud}) for cloud in (now, before, reference)]
    capture = Capture(1, 0, torch.nn.Identity(), [group], *clouds, (), lambda _: None)  # pyright: ignore[reportArgumentType]
    return seconds(lambda: Distortion().measure(capture))


def fitted(sizes: Sequence[tuple[int, int]], taken: Sequence[float], machine: Machine) -> tuple[np.ndarray, float]:
    """c0 (seconds), c1 and kappa, and the median relative error of what they say of the measured points."""
    terms = np.array([[1.0, 4.0 * n * d / machine.memory, 2.0 * n * n * d / machine.rate] for n, d in sizes])
    times = np.array(taken)
    coefficients, _ = nnls(terms / times[:, None], np.ones(len(times)))
    errors = np.abs(terms @ coefficients / times - 1.0)
    return coefficients, float(np.median(errors))


def busiest(model: Model, ranks: int, cost: Callable[[int, int, int], float]) -> float:
    """The largest sum over the groups of one process, group k on process k % ranks."""
    groups = model.groups()
    return max(sum(cost(*group) for group in groups[rank::ranks]) for rank in range(ranks))


def predict(model: Model, machine: Machine, ranks: int, c: np.ndarray, homology: float) -> dict[str, float]:
    """One capture with Distortion, one with Persistence, and the training step they are paid from."""
    received = 4.0 * model.parameters * (ranks - 1) / ranks
    measure = busiest(
        model,
        ranks,
        lambda blocks, n, d: (
            blocks * (c[0] + c[1] * 4.0 * n * d / machine.memory + c[2] * 2.0 * n * n * d / machine.rate)
        ),
    )
    clouds = busiest(model, ranks, lambda blocks, n, d: 4.0 * blocks * n * d)
    landmarks = busiest(model, ranks, lambda blocks, n, d: blocks * homology * min(1.0, (n / 512) ** 2))
    step = 6.0 * model.parameters * TOKENS / (ranks * UTILISED)
    capture = received / machine.network + measure
    # Half of 2 % of the whole for each probe: f / (1 - f) of the training alone.
    budget = 0.01 / 0.98 * step
    return {
        "step s": step,
        "received GB": received / 1e9,
        "gather s": received / machine.network,
        "distortion s": measure,
        "every": math.ceil(capture / budget),
        "persistence s": received / machine.network + landmarks,
        "persistence every": math.ceil((received / machine.network + landmarks) / budget),
        "clouds GB": 3 * clouds / 1e9,
        "largest parameter GB": 4.0 * model.hidden * model.width / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller clouds")
    sizes = QUICK if parser.parse_args().quick else SIZES
    torch.set_num_threads(1)
    square, long, room = torch.randn(1024, 1024), torch.randn(2**24), torch.empty(2**24)
    here = Machine(
        "here", 2 * 1024**3 / seconds(lambda: square @ square.T), 4 * 2**24 / seconds(lambda: room.copy_(long)), 1.0
    )
    print(f"here, one core: {here.rate / 1e9:.0f} GFLOP/s in float32 products, {here.memory / 1e9:.1f} GB/s copied\n")
    taken = [distortion_seconds(n, d) for n, d in sizes]
    c, error = fitted(sizes, taken, here)
    print("| n | d | measured ms | model ms |\n|---|---|---|---|")
    for (n, d), one in zip(sizes, taken, strict=True):
        model = c @ [1.0, 4.0 * n * d / here.memory, 2.0 * n * n * d / here.rate]
        print(f"| {n} | {d} | {1e3 * one:.2f} | {1e3 * model:.2f} |")
    print(f"\nc0 = {1e3 * c[0]:.2f} ms, c1 = {c[1]:.0f}, kappa = {c[2]:.1f}; median error {100 * error:.0f} %")
    cloud = torch.randn(512, 256)
    homology = seconds(lambda: persistence(cloud, max_dim=1), 3)
    print(f"persistence of 512 landmarks up to H1, on one core: {homology:.2f} s\n")
    rows = [
        (model, name, predict(model, machine, ranks, c, homology))
        for model in LLAMAS
        for ranks, (name, machine) in zip((8, 64), H100.items(), strict=True)
    ]
    keys = list(rows[0][2])
    print(f"| model | on | {' | '.join(keys)} |\n|---|---|{'---|' * len(keys)}")
    for model, name, row in rows:
        print(f"| {model.name} | {name} | {' | '.join(f'{row[key]:.3g}' for key in keys)} |")


if __name__ == "__main__":
    main()
