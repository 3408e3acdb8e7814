"""Persistence, H0 and matching against other libraries: one row a size, one column a library, ratios only."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from benchmarks.stopwatch import clock
from lightning_topo.homology import PersistenceDiagram, bottleneck, h0_deaths, persistence, wasserstein
from lightning_topo.homology._engines import available_engines

Calls = dict[str, Callable[[], object]]
OURS = "lightning-topo"


def fastest(calls: Calls, turns: int, device: torch.device) -> dict[str, float]:
    """The best time of each call in seconds, after one that does not count; all take turns.

    A short call is repeated within its turn for a twentieth of a second.
    """
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    for _ in range(turns):
        for name, call in calls.items():
            began, count = clock(device), 0
            while count == 0 or (taken < 0.05 and count < 1000):
                call()
                count += 1
                taken = clock(device) - began
            best[name] = min(best[name], taken / count)
    return best


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def cloud(n: int, d: int, device: torch.device) -> Tensor:
    """Neurons of a random layer."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0)).to(device)


def h0_calls(x: Tensor) -> Calls:
    """H0 from a cloud: what each library is given is the cloud, and what it gives are n - 1 deaths."""
    calls: Calls = {OURS: lambda: h0_deaths(x)}
    if x.device.type == "cpu":
        from scipy.cluster.hierarchy import linkage
        from scipy.sparse.csgraph import minimum_spanning_tree
        from scipy.spatial.distance import pdist, squareform

        calls["scipy MST"] = lambda: minimum_spanning_tree(squareform(pdist(x.numpy())))
        calls["scipy single linkage"] = lambda: linkage(x.numpy(), "single")
    if find_spec("gph"):
        from gph import ripser_parallel

        calls["giotto-ph"] = lambda: ripser_parallel(
            torch.cdist(x, x).cpu().numpy(), maxdim=0, metric="precomputed", n_threads=1
        )
    if find_spec("ripser"):
        from ripser import ripser

        calls["ripser"] = lambda: ripser(torch.cdist(x, x).cpu().numpy(), maxdim=0, distance_matrix=True)
    return calls | {"torch.cdist alone": lambda: torch.cdist(x, x), "one product X Xᵀ": lambda: x @ x.T}


def h1_calls(x: Tensor) -> Calls:
    """Rips persistence up to H1, from a cloud."""
    ours = {f"{OURS}, {engine}": lambda e=engine: persistence(x, 1, engine=e) for engine in available_engines()}
    calls: Calls = dict(ours)
    if find_spec("gph"):
        from gph import ripser_parallel

        calls["giotto-ph"] = lambda: ripser_parallel(
            torch.cdist(x, x).cpu().numpy(), maxdim=1, metric="precomputed", n_threads=1
        )
    if find_spec("ripser"):
        from ripser import ripser

        calls["ripser"] = lambda: ripser(torch.cdist(x, x).cpu().numpy(), maxdim=1, distance_matrix=True)
    if find_spec("gudhi"):
        import gudhi

        def simplex_tree() -> object:
            tree = gudhi.RipsComplex(points=x.cpu().numpy()).create_simplex_tree(max_dimension=2)
            tree.compute_persistence()
            return tree

        if len(x) <= 128:  # every triangle is stored: at n = 512 there are 22 million
            calls["GUDHI simplex tree"] = simplex_tree
    return calls


def matching_calls(count: int) -> dict[str, Calls]:
    """Distances between two diagrams of `count` bars each, by each library."""
    rng = np.random.default_rng(0)
    arrays = []
    for _ in range(2):
        births = 1 + rng.random(count)
        arrays.append(np.stack([births, births + 0.3 * rng.random(count)], axis=1))
    a, b = (PersistenceDiagram.from_numpy([np.empty((0, 2)), x], count, 3.0) for x in arrays)
    exact: Calls = {OURS: lambda: bottleneck(a, b, 1)}
    transport: Calls = {OURS: lambda: wasserstein(a, b, 1)}
    if find_spec("gudhi"):
        from gudhi import bottleneck_distance, hera

        exact["GUDHI (GPL part)"] = lambda: bottleneck_distance(*arrays)
        exact["hera in GUDHI"] = lambda: hera.bottleneck_distance(*arrays, delta=0.0)
        transport["hera in GUDHI, to 1 %"] = lambda: hera.wasserstein_distance(*arrays, order=1.0)
    if find_spec("persim"):
        import persim

        exact["persim"] = lambda: persim.bottleneck(*arrays)
        if count <= 400:
            transport["persim"] = lambda: persim.wasserstein(*arrays)
    return {"bottleneck": exact, "Wasserstein": transport}


def sized(
    make: Callable[[Tensor], Calls], sizes: Sequence[tuple[int, int]], device: torch.device, turns: int
) -> tuple[str, str]:
    """Two tables over clouds of n points in d dimensions: each time over ours, and over its own at the first size."""
    measured = [(n, d, fastest(make(cloud(n, d, device)), turns, device)) for n, d in sizes]
    names = list(dict.fromkeys(name for _, _, times in measured for name in times))
    first, unit = measured[0][2], names[0]

    def row(n: int, d: int, times: dict[str, float], units: dict[str, float]) -> list[str]:
        cells = (f"{times[name] / units[name]:.2g}" if name in times and name in units else "" for name in names)
        return [str(n), str(d), *cells]

    against = [row(n, d, times, dict.fromkeys(names, times[unit])) for n, d, times in measured]
    growth = [row(n, d, times, first) for n, d, times in measured]
    head = ["n", "d", *names]
    return table(head, against), table(head, growth)


def matching(counts: Sequence[int], turns: int) -> str:
    """A table over numbers of bars, with ours = 1 for each distance."""
    cpu = torch.device("cpu")
    names: list[str] = []
    measured = []
    for count in counts:
        for distance, calls in matching_calls(count).items():
            times = fastest(calls, turns, cpu)
            names += [name for name in times if name not in names]
            measured.append((distance, count, times))
    rows = [
        [distance, str(count), *(f"{times[name] / times[OURS]:.2g}" if name in times else "" for name in names)]
        for distance, count, times in sorted(measured, key=lambda row: row[0])
    ]
    return table(["distance", "bars", *names], rows)
