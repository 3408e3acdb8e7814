"""What a capture costs where several processes train: time, memory and traffic, by processes and groups.

    python -m benchmarks.distributed [--width 256] [--processes 1 2 4]

For a stack of tanh layers of one width, whole on every process (as under DDP) and sharded by FSDP2, each row is one
capture with Distortion on 1, 2, 4 processes, which are started anew for it. The three times are those of the slowest
process: making whole (and taking apart into clouds), measuring (in CPU time, so that more processes than cores do not
lengthen it), and sharing what was found. Memory is what the process with the most holds: the bytes of its clouds (now,
before, reference), counted on the tensors between captures, and by how much its resident memory rose at its peak above
what it was with the model and before the first capture (Linux only; the larger the width, the less noise). Traffic is
what one process receives: counted from the sizes of the collectives that ran.
"""

import argparse
import gc
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_topo import Distortion, find_neuron_groups
from lightning_topo._watch.outcome import Outcome
from lightning_topo._watch.ranks import Ranks
from lightning_topo.neurons import NeuronGroup
from lightning_topo.neurons._capture import gather_clouds, sharding
from lightning_topo.probes import Capture, Clouds, ProbeResult


class Traffic(TorchDispatchMode):
    """Counts the bytes that this process receives by gathering."""

    def __init__(self) -> None:
        super().__init__()
        self.n_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "all_gather_into_tensor" in str(func) and isinstance(out, torch.Tensor):
            self.n_bytes += (out.numel() - args[0].numel()) * out.element_size()
        return out


def resident(name: str) -> float:
    """MiB of this process: VmRSS is what is resident, VmHWM the most that was since `forget_peak`."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def held(*clouds: Clouds | None) -> int:
    """Bytes of the storages that these clouds keep alive, each counted once."""
    tensors = [cloud for some in clouds if some is not None for cloud in some.values()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def stack(width: int, n_groups: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [layer for _ in range(n_groups) for layer in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def captured(model: nn.Module, own: list[NeuronGroup], now: Clouds, before: Clouds | None, first: Clouds) -> Capture:
    return Capture(1, 0, model, own, now, before, first, (), lambda _: None, sharding="fsdp2")


def measure(strategy: str, width: int, n_groups: int, repeats: int) -> dict[str, float]:
    """One row, as this process sees it."""
    model = stack(width, n_groups)
    groups = find_neuron_groups(model, torch.randn(2, width), verify=False)
    if strategy == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(model)
    ranks = Ranks()
    own = [group for k, group in enumerate(groups) if ranks.owns(k)]
    times: dict[str, list[float]] = {"whole": [], "measured": [], "shared": []}
    before: Clouds | None = None
    reference: Clouds | None = None
    received = message = 0
    gc.collect()
    forget_peak()
    at_rest = resident("VmRSS")
    for _ in range(repeats + 1):
        with torch.no_grad():  # a step of any kind: not one that scales all distances alike, which no bound can prune
            for p in model.parameters():
                here = p.to_local() if isinstance(p, DTensor) else p
                here.add_(torch.randn(here.shape), alpha=1e-4)
        dist.barrier()
        began = time.perf_counter()
        with Traffic() as traffic:
            if sharding(model) == "whole":
                now = Clouds(groups, dict(model.named_parameters())).gather(group.name for group in own)
            else:
                now = Clouds((), {}, gather_clouds(model, groups, [group.name for group in own])[0])
        at_whole, worked = time.perf_counter(), time.process_time()
        # In one expression: a capture that outlived its measurement would hold clouds of the step before.
        found = ProbeResult.of(Distortion().measure(captured(model, own, now, before, reference or now)))
        worked = time.process_time() - worked
        at_measured = time.perf_counter()
        sent = ranks.n_bytes
        ranks.all("distortion", [Outcome("distortion", 1, 0, found.values)])
        at_shared = time.perf_counter()
        if before is not None:  # the first warms up
            times["whole"].append(at_whole - began)
            times["measured"].append(worked)
            times["shared"].append(at_shared - at_measured)
        received, message = traffic.n_bytes, ranks.n_bytes - sent
        before, reference = now, reference or now
    peak, clouds = resident("VmHWM"), held(now, before, reference)
    largest = max(p.numel() * 4 for p in model.parameters()) if strategy == "fsdp2" else 0
    return {name: 1e3 * statistics.median(taken) for name, taken in times.items()} | {
        "clouds": clouds / 2**20,
        "peak": peak - at_rest,
        "parameter": largest / 2**20,
        "received": received / 2**20,
        "message": message / 2**10,
        "parameters": sum(p.numel() for p in model.parameters()) * 4 / 2**20,
    }


def worker(options: argparse.Namespace) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    strategy, [n_groups] = options.worker, options.groups
    measure(strategy, 16, 2, 1)  # what libraries take when first called is not of the capture
    report(measure(strategy, options.width, n_groups, options.repeats))


def report(row: dict[str, float]) -> None:
    """Print the largest value of any process, on the first one, and part."""
    rows: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(rows, row)
    if dist.get_rank() == 0:
        print(json.dumps({k: max(r[k] for r in rows) for k in row}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def launched(n: int, arguments: list[str], module: str = "benchmarks.distributed") -> dict[str, float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n)}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is let go is given back, and counts no more
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(n)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    return json.loads(outputs[0].splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--worker", choices=("ddp", "fsdp2"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options)
    columns = ("parameters", "groups", "processes", "whole ms", "measure ms", "share ms")
    sizes = ("clouds MB", "parameter MB", "peak MB", "received MB", "message kB")
    print(f"| {' | '.join(columns + sizes)} |\n|{'---|' * 11}")
    for n, strategy, n_groups in itertools.product(options.processes, ("ddp", "fsdp2"), options.groups):
        arguments = [f"--width={options.width}", f"--repeats={options.repeats}", f"--groups={n_groups}"]
        row = launched(n, [*arguments, f"--worker={strategy}"])
        times = " | ".join(f"{row[name]:.1f}" for name in ("whole", "measured", "shared"))
        memory = " | ".join(f"{row[name]:.2f}" for name in ("clouds", "parameter", "peak", "received", "message"))
        print(f"| {strategy}, {row['parameters']:.1f} MB | {n_groups} | {n} | {times} | {memory} |", flush=True)
    return None


if __name__ == "__main__":
    main()
