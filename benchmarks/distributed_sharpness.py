"""What one measurement of sharpness takes of each process where parameters lie in shards (FSDP2).

    python -m benchmarks.distributed_sharpness [--width 1024] [--layers 8] [--processes 1 2 4]

For 1, 2 and 4 processes (gloo, two cores): `Sharpness` with a loss of one's own, by 12 products from differences of
gradients, in vectors of which each process holds its part; and the critical sharpness of the last step, by forward
passes. "MB" is by how much the memory of the process that takes most rose at its peak: in a training step, in one
measurement of either kind. The values must not depend on the number of processes.
"""

import argparse
import gc
import time
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from benchmarks.distributed import forget_peak, launched, report, resident, stack
from lightning_topo.probes import Capture, StepSharpness
from lightning_topo.probes._probe import LossFn
from lightning_topo.stability import by_backward, curvature_sharpness, finite_difference_hessian
from lightning_topo.stability._lanczos import LanczosSettings

BATCH = 64
SETTINGS = LanczosSettings(max_products=12)


def measure(width: int, layers: int) -> dict[str, float]:
    """One row, as this process sees it."""
    from torch.distributed.fsdp import fully_shard

    model = stack(width, layers)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(BATCH, width, generator=generator), torch.randint(10, (BATCH,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def loss_fn() -> torch.Tensor:
        return F.cross_entropy(model(x), y)

    def step() -> None:
        optimizer.zero_grad()
        loss_fn().backward()
        optimizer.step()

    row: dict[str, float] = {}
    for _ in range(3):
        step()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    row["step"], row["step_ms"], _ = taken(step)
    optimizer.zero_grad()
    params = tuple(model.parameters())

    def curvature() -> float:
        hessian = finite_difference_hessian(loss_fn, params, differentiate=by_backward, obstacle="shards")
        return curvature_sharpness(hessian, settings=SETTINGS).value

    def critical() -> float:
        def training_loss(_: LossFn | None) -> Any:
            return nullcontext(loss_fn)

        capture = Capture(
            1, 0, model, (), {}, None, {}, (optimizer,), training_loss, parameters_before=before, sharding="fsdp2"
        )
        return StepSharpness().measure(capture).values[""]["critical_sharpness"]

    row["curvature"], row["curvature_ms"], row["sharpness"] = taken(curvature)
    row["critical"], row["critical_ms"], row["critical_sharpness"] = taken(critical)
    row["parameters"] = sum(p.numel() for p in params) * 4 / 2**20
    return row


def taken(work: Any) -> tuple[float, float, Any]:
    """By how many MiB the process's memory rose at its peak, the milliseconds, and the result."""
    gc.collect()
    forget_peak()
    at_rest, began = resident("VmRSS"), time.perf_counter()
    result = work()
    return resident("VmHWM") - at_rest, 1e3 * (time.perf_counter() - began), result


def worker(options: argparse.Namespace) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    measure(16, 2)  # what libraries take when first called is not of the measurement
    report(measure(options.width, options.layers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options)
    columns = ("processes", "parameters MB", "step MB", "sharpness MB", "critical MB", "step ms", "sharpness ms")
    print(f"| {' | '.join((*columns, 'critical ms', 'sharpness', 'critical sharpness'))} |\n|{'---|' * 10}")
    for n in options.processes:
        arguments = ["--worker", f"--width={options.width}", f"--layers={options.layers}"]
        row = launched(n, arguments, module="benchmarks.distributed_sharpness")
        memory = " | ".join(f"{row[name]:.1f}" for name in ("parameters", "step", "curvature", "critical"))
        times = " | ".join(f"{row[name]:.0f}" for name in ("step_ms", "curvature_ms", "critical_ms"))
        print(f"| {n} | {memory} | {times} | {row['sharpness']:.3f} | {row['critical_sharpness']:.3f} |", flush=True)
    return None


if __name__ == "__main__":
    main()
