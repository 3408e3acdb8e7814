"""How often the O(n d) bound alone certifies a step, and how far above the exact critical ratio it lies.

    python benchmarks/coverage.py [--steps 200]

Small trainings under four optimizers. At every step all groups are bounded from the row norms of the parameters'
displacements; where the bound of the step or of the span since the last snapshot reaches 0.9, one exact pass over all
groups renews the snapshots. The exact ratio is computed at every step besides, to compare.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_topo import find_neuron_groups, step_distortion
from lightning_topo.demo import digits
from lightning_topo.geometry import BoundTable, Snapshot, pair_bounds, snapshot
from lightning_topo.neurons import DisplacementMeter, NeuronGroup, gather_rows

LIMIT = 0.9

Batch = tuple[Tensor, Tensor]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
        x = x + self.proj(attended)
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    def __init__(self, vocabulary: int, width: int = 32, heads: int = 4, layers: int = 2, length: int = 32) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def mlp() -> tuple[nn.Module, Callable[[torch.Generator], Batch]]:
    net = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10))
    return net, _images(flat=True)


def cnn() -> tuple[nn.Module, Callable[[torch.Generator], Batch]]:
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )
    return net, _images(flat=False)


def gpt() -> tuple[nn.Module, Callable[[torch.Generator], Batch]]:
    text = " ".join(str(k * k) for k in range(4000))
    alphabet = sorted(set(text))
    ids = torch.tensor([alphabet.index(letter) for letter in text])

    def batch(generator: torch.Generator) -> Batch:
        starts = torch.randint(len(ids) - 33, (16,), generator=generator)
        rows = torch.stack([ids[start : start + 33] for start in starts.tolist()])
        return rows[:, :-1], rows[:, 1:]

    return GPT(len(alphabet)), batch


def _images(flat: bool) -> Callable[[torch.Generator], Batch]:
    x, onehot = digits(1500).tensors
    x = x if flat else x.view(-1, 1, 8, 8)

    def batch(generator: torch.Generator) -> Batch:
        some = torch.randint(len(x), (64,), generator=generator)
        return x[some], onehot[some].argmax(1)

    return batch


def adamw(net: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(net.parameters(), 1e-3)]


def muon(net: nn.Module) -> list[torch.optim.Optimizer]:
    matrices = [p for p in net.parameters() if p.ndim == 2]
    rest = [p for p in net.parameters() if p.ndim != 2]
    return [torch.optim.Muon(matrices, 2e-3), torch.optim.AdamW(rest, 1e-3)]


OPTIMIZERS: dict[str, Callable[[nn.Module], list[torch.optim.Optimizer]]] = {
    "SGD 0.1": lambda net: [torch.optim.SGD(net.parameters(), 0.1)],
    "momentum 0.05": lambda net: [torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)],
    "AdamW 1e-3": adamw,
    "Muon 2e-3": muon,
}


@dataclass
class Watch:
    """The bounds of all groups of a model from step to step, as an engine would keep them."""

    groups: list[NeuronGroup]
    parameters: dict[str, Tensor]
    snapshots: list[Snapshot] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.meter = DisplacementMeter.of(self.groups, self.parameters)
        self.renew(self.copy())

    def copy(self) -> dict[str, Tensor]:
        return {name: p.clone() for name, p in self.parameters.items()}

    def renew(self, state: dict[str, Tensor]) -> None:
        self.origin = state
        self.snapshots = [snapshot(g.gather(state).unflatten(0, (g.n_blocks, g.n))) for g in self.groups]
        self.table = BoundTable.of(self.snapshots)
        self.since = torch.zeros(self.table.n_rows, dtype=torch.float64)

    def bounds(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Of the step and of the span since the snapshots, for each group."""
        moved, span = self.meter.lengths(before, after), self.meter.lengths(self.origin, after)
        step, whole = self.table.bounds(moved, self.since), self.table.bounds(span)
        self.since = span
        for k, (group, one) in enumerate(zip(self.groups, self.snapshots, strict=True)):
            if len(one.pairs):
                rows = [gather_rows(group, tensors, one.pairs) for tensors in (self.origin, before, after)]
                step[k] = torch.maximum(step[k], pair_bounds(one, rows[1], rows[2]))
                whole[k] = torch.maximum(whole[k], pair_bounds(one, rows[0], rows[2]))
        return step, whole


def exact_ratio(group: NeuronGroup, before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    clouds = zip(group.gather(before).split(group.n), group.gather(after).split(group.n), strict=True)
    return max(step_distortion(x, y).critical_ratio for x, y in clouds)


def train(network: str, optimizer: str, steps: int) -> str:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net, batch = {"MLP": mlp, "CNN": cnn, "GPT": gpt}[network]()
    groups = [group for group in find_neuron_groups(net, batch(generator)[0][:4]) if group.n > 1]
    optimizers = OPTIMIZERS[optimizer](net)
    watch = Watch(groups, {name: p.detach() for name, p in net.named_parameters()})
    ratios: list[float] = []
    certified: list[bool] = []
    passes: list[int] = []
    violations, seconds, before = 0, 0.0, watch.copy()
    for step in range(steps):
        x, y = batch(generator)
        for one in optimizers:
            one.zero_grad()
        F.cross_entropy(net(x).flatten(0, -2), y.flatten()).backward()
        for one in optimizers:
            one.step()
        after = watch.copy()
        start = time.process_time()
        bound, span = (values.tolist() for values in watch.bounds(before, after))
        seconds += time.process_time() - start
        exact = [exact_ratio(group, before, after) for group in groups]
        violations += sum(b < r for b, r in zip(bound, exact, strict=True))
        ratios += [b / r for b, r in zip(bound, exact, strict=True) if r > 0]
        certified.append(all(b < 1 for b in bound))
        if not all(b < LIMIT for b in (*bound, *span)):
            passes.append(step)
            watch.renew(after)
        before = after
    quantiles = statistics.quantiles(ratios, n=20)
    steady = sum(step >= steps // 2 for step in passes) / (steps - steps // 2)
    return (
        f"{network:5}{optimizer:15}{len(groups):7}{statistics.median(ratios):9.2f}{quantiles[-1]:9.2f}"
        f"{100 * statistics.mean(certified):11.1f} %{1000 * len(passes) / steps:9.0f}{1000 * steady:9.0f}"
        f"{violations:12}{1e3 * seconds / steps:10.2f}"
    )


def table(steps: int) -> Iterable[str]:
    yield f"{'':5}{'':15}{'':7}{'bound / exact':>18}{'by bound':>13}{'exact passes / 1000':>18}"
    yield (
        f"{'':5}{'':15}{'groups':>7}{'median':>9}{'p95':>9}{'alone':>13}{'all':>9}{'2nd half':>9}"
        f"{'violations':>12}{'ms / step':>10}"
    )
    for network in ("MLP", "CNN", "GPT"):
        for optimizer in OPTIMIZERS:
            yield train(network, optimizer, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    torch.set_num_threads(1)
    for line in table(parser.parse_args().steps):
        print(line, flush=True)


if __name__ == "__main__":
    main()
