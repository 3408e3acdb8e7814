"""What one measurement of sharpness takes of each process where parameters lie in shards.

    python -m benchmarks.distributed_sharpness [--width 1024] [--processes 1 2 4] [--kinds fsdp2 fsdp1 zero3 tp]

For 1, 2 and 4 processes (gloo, two cores), each of 12 Hessian products from differences of gradients, in vectors of
which each process holds its part: "sharpness" by a loss of one's own and the training's own backward pass, "products"
of the step as it was recorded, a unit gathered at a time, without either; and "critical", the critical sharpness of
that step by forward passes. "MB" is by how much the memory of the process that takes most rose at its peak: in a
training step, in the recorded step, and in one measurement of each kind. The values must not depend on the number of
processes, nor on how parameters lie. A loss of one's own has no products under FSDP1 and ZeRO-3, the recorded step none
under tensor parallel. ZeRO-3 needs DeepSpeed.
"""

import argparse
import gc
import importlib
import itertools
import math
import os
import time
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from benchmarks.distributed import forget_peak, launched, report, resident, stack
from lightning_topo._watch.recording import Recording
from lightning_topo._watch.training_loss import TrainingLoss
from lightning_topo.loops._training import LoopTraining
from lightning_topo.neurons._units import own_part
from lightning_topo.probes import Capture, StepSharpness
from lightning_topo.probes._curvature_in_shards import curvature_of_step
from lightning_topo.stability import by_autograd, by_backward, curvature_sharpness, finite_difference_hessian
from lightning_topo.stability._lanczos import LanczosSettings

BATCH = 64
SETTINGS = LanczosSettings(max_products=12)


SHARDING: dict[str, Any] = {"fsdp2": "fsdp2", "fsdp1": "fsdp1", "zero3": "zero3", "tp": "tensor_parallel"}


def in_shards(model: nn.Sequential, kind: str) -> nn.Module:
    """The model as one kind of training has it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy
    from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

    linear = [name for name, layer in model.named_children() if isinstance(layer, nn.Linear)]
    if kind == "fsdp1":
        policy, cpu = ModuleWrapPolicy({nn.Linear}), torch.device("cpu")
        return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=cpu, use_orig_params=True)
    if kind == "tp":
        plan: dict[str, ParallelStyle] = {
            name: RowwiseParallel() if k % 2 else ColwiseParallel() for k, name in enumerate(linear)
        }
        if len(linear) % 2:
            del plan[linear[-1]]  # it would leave a part of the output on each process
        return parallelize_module(model, init_device_mesh("cpu", (dist.get_world_size(),)), plan)
    for name in linear:
        fully_shard(model.get_submodule(name))
    fully_shard(model)
    return model


def by_deepspeed(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """DeepSpeed's engine around the model: nothing but what it computes with next is whole."""
    import deepspeed

    setattr(importlib.import_module("deepspeed.comm.torch"), "build_shm_op", lambda: None)  # noqa: B010 - it compiles
    deepspeed.init_distributed("gloo")
    stage = {"stage": 3, "stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}
    options = {
        "train_micro_batch_size_per_gpu": BATCH,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": stage,
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=options)[0]


def measure(width: int, layers: int, kind: str) -> dict[str, float]:
    """One row, as this process sees it."""
    model = stack(width, layers) if kind == "zero3" else in_shards(stack(width, layers), kind)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(BATCH, width, generator=generator), torch.randint(10, (BATCH,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    engine = by_deepspeed(model, optimizer) if kind == "zero3" else None
    forward = model if engine is None else engine

    def loss_fn() -> torch.Tensor:
        return F.cross_entropy(forward(x), y)

    def update() -> None:
        optimizer.step() if engine is None else engine.step()

    def differentiate(loss: torch.Tensor) -> None:
        loss.backward() if engine is None else engine.backward(loss)

    def clear() -> None:
        optimizer.zero_grad() if engine is None else engine.zero_grad()

    def step() -> None:
        clear()
        differentiate(loss_fn())
        update()

    row: dict[str, float] = {}
    for _ in range(3):
        step()
    row["step"], row["step_ms"], _ = taken(step)
    clear()
    params = tuple(model.parameters())

    def curvature() -> float:
        by = by_autograd if kind == "tp" else by_backward
        hessian = finite_difference_hessian(loss_fn, params, differentiate=by, obstacle="shards")
        return curvature_sharpness(hessian, settings=SETTINGS).value

    nothing = (math.nan,) * 3
    has_none = kind in ("fsdp1", "zero3")
    row["curvature"], row["curvature_ms"], row["sharpness"] = nothing if has_none else taken(curvature)
    training = LoopTraining.of(model, optimizer)
    training_loss = TrainingLoss(training, 0)
    recording = Recording(training, training_loss)

    def recorded_step() -> None:
        clear()
        recording.begin(None, 1, wanted=True)
        loss = loss_fn()
        recording.loss(loss, 1.0)
        differentiate(loss)
        recording.differentiated(goes_on=False)
        update()
        recording.end()

    def captured() -> Capture:
        lies = {"parameters_before": before, "sharding": SHARDING[kind]}
        return Capture(1, 0, training.module, (), {}, None, {}, (optimizer,), training_loss, **lies)

    def critical() -> float:
        capture = captured()
        asked = StepSharpness().measure(capture)
        return StepSharpness().measure(replace(capture, previous=asked)).values[""]["critical_sharpness"]

    def products() -> float:
        with curvature_of_step(captured()) as found:
            assert found is not None
            hessian, _, _ = found
            del found
            return curvature_sharpness(hessian, settings=SETTINGS).value

    step()  # gradients lie in memory before a recorded step as before a plain one
    before = {name: own_part(p).detach().clone() for name, p in training.module.named_parameters()}
    row["recorded"], row["recorded_ms"], _ = taken(recorded_step)
    clear()
    row["critical"], row["critical_ms"], row["critical_sharpness"] = taken(critical)
    row["products"], row["products_ms"], row["in_shards"] = nothing if kind == "tp" else taken(products)
    row["parameters"] = sum(p.numel() for p in stack(width, layers).parameters()) * 4 / 2**20
    return row


def taken(work: Any) -> tuple[float, float, Any]:
    """By how many MiB the process's memory rose at its peak, the milliseconds, and the result."""
    gc.collect()
    forget_peak()
    at_rest, began = resident("VmRSS"), time.perf_counter()
    result = work()
    return resident("VmHWM") - at_rest, 1e3 * (time.perf_counter() - began), result


def worker(options: argparse.Namespace) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    measure(16, 2, options.kind)  # what libraries take when first called is not of the measurement
    report(measure(options.width, options.layers, options.kind))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--kinds", nargs="+", choices=SHARDING, default=list(SHARDING))
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options)
    kinds = ("step", "recorded step", "sharpness", "products", "critical")
    values = ("sharpness", "sharpness by products", "critical sharpness")
    columns = (*(f"{kind} MB" for kind in kinds), *(f"{kind} ms" for kind in kinds), *values)
    print(f"| kind | processes | parameters MB | {' | '.join(columns)} |\n|{'---|' * (3 + len(columns))}")
    measured = ("step", "recorded", "curvature", "products", "critical")
    for kind, n in itertools.product(options.kinds, options.processes):
        arguments = ["--worker", f"--width={options.width}", f"--layers={options.layers}", f"--kind={kind}"]
        row = launched(n, arguments, module="benchmarks.distributed_sharpness")
        memory = " | ".join(f"{row[name]:.1f}" for name in ("parameters", *measured))
        times = " | ".join(f"{row[f'{name}_ms']:.0f}" for name in measured)
        found = " | ".join(f"{row[name]:.3f}" for name in ("sharpness", "in_shards", "critical_sharpness"))
        print(f"| {kind} | {n} | {memory} | {times} | {found} |".replace("nan", "none"), flush=True)
    return None


if __name__ == "__main__":
    main()
