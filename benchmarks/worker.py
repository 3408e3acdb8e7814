"""What a capture costs the training when its homology is computed by the worker, and when it is computed at once.

    python -m benchmarks.worker [--repeats 5]

The stall is the time of `Persistence.measure` with a lag (distances, and handing them over) and of taking the
result in when it is ready (summaries and the distance to the capture before). Beside it stand the worker's part alone,
handing over and fetching, and the whole measurement without a lag, of the same clouds in the same run. All are
processor times of the training process, which on an idle machine are wall times: nothing in them waits.
"""

import argparse
import statistics
import time
from contextlib import nullcontext

import torch
from torch import nn

from lightning_topo import NeuronGroup, Persistence
from lightning_topo.homology import Worker, available_engines
from lightning_topo.homology._engines import rips_intervals
from lightning_topo.neurons import ParamSlice
from lightning_topo.probes import Capture, Clouds, Pending


def capture(n: int, d: int, seed: int, worker: Worker | None) -> Capture:
    """One group of n neurons in R^d."""
    groups = [NeuronGroup("net", "unit", n, (), (ParamSlice("w"),))]
    cloud = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    clouds = Clouds(groups, {"w": cloud}).gather()
    return Capture(1, 0, nn.Identity(), groups, clouds, None, clouds, [], nullcontext, worker=worker)


def timed(call):
    """What a call gives, and the milliseconds of this process that it takes."""
    began = time.process_time()
    found = call()
    return found, (time.process_time() - began) * 1e3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    worker, engine = Worker(), available_engines()[0]
    began = time.perf_counter()
    worker.collect(worker.submit([torch.zeros(3, 3).numpy()], 1, engine, spanning=True), 60.0)
    ready = time.perf_counter() - began
    print(f"engine {engine}; the worker is ready after {ready:.1f} s of wall time, during which training goes on\n")
    print("| n | d | hand over | take in | stall | worker's part | homology alone | at once | stall / homology |")
    print("|---|---|---|---|---|---|---|---|---|")
    for n, d in ((512, 64), (512, 1024), (1024, 64), (1600, 64)):
        lagging, direct = (Persistence(max_landmarks=None, lag=lag) for lag in (1, 0))
        rows = []
        for seed in range(repeats + 1):
            given, here = capture(n, d, seed, worker), capture(n, d, seed, None)
            pending, hand_over = timed(lambda p=lagging, c=given: p.measure(c))
            assert isinstance(pending, Pending)
            worker.collect(worker.submit([torch.zeros(3, 3).numpy()], 1, engine, spanning=True), 600.0)  # it is ready
            _, take_in = timed(lambda p=pending: p.collect(None, None))
            distances = torch.cdist(here.neurons["net"], here.neurons["net"]).numpy()
            job, submit = timed(lambda m=distances: worker.submit([m], 1, engine, spanning=True))
            worker.collect(worker.submit([torch.zeros(3, 3).numpy()], 1, engine, spanning=True), 600.0)
            _, fetch = timed(lambda j=job: worker.collect(j, 60.0))
            _, homology = timed(lambda m=distances: rips_intervals(m, 1, engine))
            _, at_once = timed(lambda p=direct, c=here: p.measure(c))
            rows.append((hand_over, take_in, hand_over + take_in, submit + fetch, homology, at_once))
        # The first warms up; the least of the others is what it takes where nothing else takes the processor.
        best = [min(row[i] for row in rows[1:]) for i in range(6)]
        ratio = statistics.median(row[2] / row[4] for row in rows[1:])
        print(f"| {n} | {d} | " + " | ".join(f"{ms:.1f} ms" for ms in best) + f" | {ratio:.1%} |", flush=True)
    worker.close()


if __name__ == "__main__":
    main()
