"""What an evaluation of the sharpness costs and how right it is, beside curvlinops, PyHessian and hessian-eigenthings.

    pip install --no-deps curvlinops-for-pytorch linear-operator mpmath einops einconv pyhessian hessian-eigenthings
    python benchmarks/sharpness.py

Three networks train full-batch on 500 digits; every 25 steps the sharpness is measured as the monitor does it (from
the last eigenvector, every tenth time without), and at four points by all: cold too, and by the peers, each at the
loosest setting that is still meant to find the value.
Costs are in training steps (forward, backward and optimizer step on the same batch), both in CPU seconds of one thread,
so that other work on the machine counts little. The truth is the largest eigenvalue in float64, to machine precision,
by ARPACK on exact products; at the last point it is held against the whole Hessian, built row by row. All look at the
loss in evaluation mode, since PyHessian cannot do otherwise.
Peers that are not installed are named and left out. Takes a few minutes on one core.
"""

import argparse
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_topo.demo import DigitsMLP, digits
from lightning_topo.stability import hessian, sharpness

EVERY, POINTS = 25, (100, 200, 300, 400)
COLD_EVERY = 10  # as `Sharpness` does


class Attention(nn.Module):
    """Two transformer blocks over the digits' eight rows."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(8, width)
        self.place = nn.Parameter(torch.zeros(8, width))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "before": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "mlp": nn.Sequential(
                        nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
                    ),
                }
            )
            for _ in range(2)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x.view(-1, 8, 8)) + self.place
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            q, k, v = (
                t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in block["qkv"](block["before"](x)).chunk(3, -1)
            )
            attended = nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + block["out"](attended.transpose(1, 2).flatten(2))
            x = x + block["mlp"](x)
        return self.head(x.mean(1))


def cnn() -> nn.Module:
    """Two convolutions with batch norm."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )


Make = Callable[[], nn.Module]
Optimizer = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
NETWORKS: dict[str, tuple[Make, Optimizer]] = {
    "MLP of the demo": (lambda: DigitsMLP().net, lambda p: torch.optim.SGD(p, lr=0.3)),
    "CNN with BatchNorm": (cnn, lambda p: torch.optim.SGD(p, lr=0.1)),
    "transformer": (Attention, lambda p: torch.optim.Adam(p, lr=3e-3)),
}


def criterion(output: torch.Tensor, onehot: torch.Tensor) -> torch.Tensor:
    """The demo's loss."""
    return 0.5 * ((output - onehot) ** 2).sum(1).mean()


Batch = tuple[torch.Tensor, torch.Tensor]
Measure = Callable[[nn.Module, Batch], float]


def by_curvlinops(model: nn.Module, batch: Batch) -> float:
    """ARPACK on curvlinops' operator, at our tolerance."""
    from curvlinops import HessianLinearOperator

    operator = HessianLinearOperator(model, nn.MSELoss(), list(model.parameters()), [batch], check_deterministic=False)
    found = eigsh(operator.to_scipy(), k=1, which="LA", tol=0.02, return_eigenvectors=False)
    return 5.0 * float(found[0])


def by_pyhessian(model: nn.Module, batch: Batch) -> float:
    """Power iteration until the value changes by less than 1 %."""
    from pyhessian import hessian as pyhessian

    values, _ = pyhessian(model, criterion, data=batch, cuda=False).eigenvalues(tol=1e-2)
    model.zero_grad()
    return float(values[0])


def by_eigenthings(model: nn.Module, batch: Batch) -> float:
    """Twelve steps of Lanczos' method: it does not stop by itself."""
    from hessian_eigenthings import HessianOperator, lanczos, supervised_loss

    operator = HessianOperator(model, [batch], supervised_loss(criterion))
    return float(lanczos(operator, k=1, max_iter=12, which="LA", seed=0).eigenvalues[0])


PEERS: dict[str, Measure] = {
    "curvlinops + eigsh": by_curvlinops,
    "PyHessian": by_pyhessian,
    "hessian-eigenthings": by_eigenthings,
}


@dataclass(frozen=True, slots=True)
class Found:
    """One evaluation: its value, and its cost in training steps."""

    value: float
    steps: float


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, with the attention that has second derivatives."""
    was = model.training
    model.eval()
    with sdpa_kernel(SDPBackend.MATH):
        yield
    model.train(was)


def seconds(function: Callable[[], object], repeats: int) -> float:
    """The median CPU time of a call."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return statistics.median(times)


def truth(make: Make, model: nn.Module, batch: Batch, *, dense: bool) -> float:
    """The largest eigenvalue in float64; if `dense`, held against the whole Hessian."""
    twin = make().double()
    twin.load_state_dict(model.state_dict())
    x, onehot = (t.double() for t in batch)
    with evaluating(twin):
        curvature = hessian(lambda: criterion(twin(x), onehot), twin.parameters())
        n = curvature.gradient.numel()
        operator = LinearOperator(
            (n, n), lambda v: (curvature @ torch.from_numpy(v.ravel().copy())).numpy(), dtype=float
        )
        value = float(eigsh(operator, k=1, which="LA", ncv=40, return_eigenvectors=False)[0])
        if dense:
            products = torch.func.vmap(lambda v: curvature @ v, chunk_size=16)
            matrix = products(torch.eye(n, dtype=torch.float64)).numpy()
            whole = float(eigsh(matrix, k=1, which="LA", ncv=40, return_eigenvectors=False)[0])
            assert abs(value - whole) <= 1e-8 * abs(whole), (value, whole)
    return value


def study(name: str, peers: dict[str, Measure]) -> dict[str, list[tuple[Found, float]]]:
    """By method, what it found at the points of a run, each beside the truth."""
    make, optimize = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    batch = digits().tensors
    x, onehot = batch
    optimizer = optimize(model.parameters())
    found: dict[str, list[tuple[Found, float]]] = defaultdict(list)
    vector: torch.Tensor | None = None

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(x), onehot).backward()
        optimizer.step()

    def ours(start: torch.Tensor | None) -> float:
        nonlocal vector
        with evaluating(model):
            estimate = sharpness(lambda: criterion(model(x), onehot), model.parameters(), start=start)
        vector = estimate.vector
        return estimate.value

    for count, k in enumerate(range(0, POINTS[-1] + 1, EVERY)):
        one_step = seconds(step, EVERY) if k else 1.0
        start = None if count % COLD_EVERY == 0 else vector
        value = ours(start)
        following = vector
        if k == 0:
            continue
        right = truth(make, model, batch, dense=k == POINTS[-1])
        # Again from the same start: the first call of a kind pays for caches.
        cost = seconds(lambda start=start: ours(start), 3) / one_step
        found["ours, in a training"].append((Found(value, cost), right))
        if k in POINTS:
            value = ours(None)
            found["ours, cold"].append((Found(value, seconds(lambda: ours(None), 3) / one_step), right))
        vector = following
        if k not in POINTS:
            continue
        for peer, measure in peers.items():
            with evaluating(model), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = measure(model, batch)
                cost = seconds(lambda measure=measure: measure(model, batch), 3) / one_step
            found[peer].append((Found(value, cost), right))
    return found


def installed() -> tuple[dict[str, Measure], list[str]]:
    """The peers that are here, and the names of those that are not."""
    here, missing = {}, []
    for name, module in zip(PEERS, ("curvlinops", "pyhessian", "hessian_eigenthings"), strict=True):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                __import__(module)
            here[name] = PEERS[name]
        except ImportError as error:
            missing.append(f"{name} ({error})")
    return here, missing


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(NETWORKS), help="one network")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    peers, missing = installed()
    for name in missing:
        print(f"Not installed: {name}.")
    print("| network | method | training steps: median (range) | error: median | largest |\n|---|---|---|---|---|")
    for name in [arguments.only] if arguments.only else NETWORKS:
        for method, points in study(name, peers).items():
            costs = [found.steps for found, _ in points]
            errors = [abs(found.value / right - 1.0) for found, right in points]
            print(
                f"| {name} | {method} | {statistics.median(costs):.1f} ({min(costs):.1f}-{max(costs):.1f}) "
                f"| {statistics.median(errors):.2%} | {max(errors):.2%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
