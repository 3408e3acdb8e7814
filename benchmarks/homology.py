"""Times of homology and matching against other libraries, side by side in one run.

    python benchmarks/homology.py [--quick]

H0 against `torch.cdist` alone, giotto-ph, ripser, scipy and scikit-learn; H1 by every installed engine;
bottleneck and Wasserstein distances against hera (gudhi). Libraries that are not installed are left out.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from lightning_topo.homology import (
    PersistenceDiagram,
    available_engines,
    bottleneck,
    h0_deaths,
    persistence,
    wasserstein,
)

PEAK_SCRIPT = """
import resource, sys, torch
from lightning_topo.homology import h0_deaths
n, d = int(sys.argv[1]), int(sys.argv[2])
points = torch.randn(n, d)
h0_deaths(points[:600], matrix_bytes=0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
h0_deaths(points, matrix_bytes=0)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def interleaved(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """The best wall and CPU time of each call in seconds; all take turns."""
    best = dict.fromkeys(calls, (float("inf"), float("inf")))
    for _ in range(repeats + 1):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = min(best[name][0], spent[0]), min(best[name][1], spent[1])
    return best


def h0_rivals(x: Tensor) -> dict[str, Callable[[], object]]:
    """Everything a user could call instead for H0 of a cloud."""
    calls: dict[str, Callable[[], object]] = {
        "torch.cdist alone": lambda: torch.cdist(x, x),
        "h0_deaths": lambda: h0_deaths(x),
        "h0_deaths, tiled": lambda: h0_deaths(x, matrix_bytes=0),
    }
    if find_spec("gph"):
        from gph import ripser_parallel

        calls["giotto-ph"] = lambda: ripser_parallel(
            torch.cdist(x, x).numpy(), maxdim=0, metric="precomputed"
        )
    if find_spec("ripser"):
        from ripser import ripser

        calls["ripser"] = lambda: ripser(torch.cdist(x, x).numpy(), maxdim=0, distance_matrix=True)
    from scipy.cluster.hierarchy import linkage
    from sklearn.cluster import AgglomerativeClustering

    calls["scipy single linkage"] = lambda: linkage(x.numpy(), "single")
    single = AgglomerativeClustering(n_clusters=None, distance_threshold=0, linkage="single")
    calls["sklearn single linkage"] = lambda: single.fit(x.numpy())
    return calls


def compare_h0(sizes: list[tuple[int, int]], repeats: int) -> None:
    print(f"\n{'H0':26}{'n':>6}{'d':>6}{'wall':>12}{'ratio':>8}{'cpu':>12}{'ratio':>8}")
    for n, d in sizes:
        x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
        times = interleaved(h0_rivals(x), repeats)
        wall_unit, cpu_unit = times["torch.cdist alone"]
        for name, (wall, cpu) in times.items():
            print(
                f"{name:26}{n:6}{d:6}{wall * 1e3:9.1f} ms{wall / wall_unit:8.2f}"
                f"{cpu * 1e3:9.1f} ms{cpu / cpu_unit:8.2f}"
            )


def report_peak(n: int, d: int) -> None:
    command = [sys.executable, "-c", PEAK_SCRIPT, str(n), str(d)]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"\npeak memory of tiled H0 at n={n}, d={d}, over the cloud itself: {peak:.0f} MB")


def compare_h1(sizes: list[tuple[int, int]], repeats: int) -> None:
    print(f"\n{'H1':26}{'n':>6}{'d':>6}{'wall':>12}{'ratio':>8}")
    for n, d in sizes:
        x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
        calls: dict[str, Callable[[], object]] = {
            name: lambda x=x, name=name: persistence(x, 1, engine=name) for name in available_engines()
        }
        if find_spec("ripser"):
            from ripser import ripser

            calls["ripser"] = lambda x=x: ripser(x.numpy(), maxdim=1)
        times = interleaved(calls, repeats)
        unit = next(iter(times.values()))[0]
        for name, (wall, _) in times.items():
            print(f"{name:26}{n:6}{d:6}{wall * 1e3:9.1f} ms{wall / unit:8.2f}")


def compare_matching(counts: list[int], repeats: int) -> None:
    print(f"\n{'matching':26}{'bars':>6}{'wall':>18}{'ratio to hera':>14}")
    rng = np.random.default_rng(0)
    for count in counts:
        arrays = []
        for _ in range(2):
            births = 1 + rng.random(count)
            arrays.append(np.stack([births, births + 0.3 * rng.random(count)], axis=1))
        a, b = (PersistenceDiagram.from_numpy([np.empty((0, 2)), x], count, 3.0) for x in arrays)
        calls: dict[str, Callable[[], object]] = {
            "bottleneck": lambda a=a, b=b: bottleneck(a, b, 1),
            "wasserstein": lambda a=a, b=b: wasserstein(a, b, 1),
        }
        if find_spec("gudhi"):
            from gudhi import hera

            calls["hera bottleneck"] = lambda x=arrays: hera.bottleneck_distance(*x, delta=0.0)
            calls["hera wasserstein (1 %)"] = lambda x=arrays: hera.wasserstein_distance(*x, order=1.0)
        times = interleaved(calls, repeats)
        for name, (wall, _) in times.items():
            rival = next((t for other, (t, _) in times.items() if other.startswith(f"hera {name}")), wall)
            print(f"{name:26}{count:6}{wall * 1e3:15.1f} ms{wall / rival:14.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    quick = parser.parse_args().quick
    print(f"torch {torch.__version__} on cpu, {torch.get_num_threads()} threads")
    repeats = 1 if quick else 4
    compare_h0([(512, 64)] if quick else [(1024, 64), (4096, 64), (4096, 1024)], repeats)
    report_peak(2048 if quick else 8192, 64)
    compare_h1([(128, 32)] if quick else [(256, 64), (512, 64), (512, 1024)], min(repeats, 1))
    compare_matching([50] if quick else [50, 200, 800], min(repeats, 2))


if __name__ == "__main__":
    main()
