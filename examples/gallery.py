"""Eight small trainings, each with one thing to see.

    python -m examples.gallery                          # what there is
    python -m examples.gallery edge                     # train it, print its events, draw edge.png
    python -m examples.gallery all --out docs/gallery   # the pictures and numbers of docs/gallery.md

Each takes seconds on a CPU: scikit-learn's digits (`grokking`: sums modulo 59), a plain PyTorch loop, `TopologyWatch`.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from examples.modular_addition import Adder, all_sums
from lightning_topo import Distortion, Fate, Period, Persistence, RunRecord, Sharpness, TopologyWatch, rows
from lightning_topo.demo import digits
from lightning_topo.probes import Capture

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart of a picture: a quantity over the steps, with a line at `limit`.

    `beside` is another quantity in the same chart; `groups` are the groups to draw, by default all.
    """

    quantity: str
    label: str
    limit: float | None = None
    log: bool = False
    beside: str = ""
    groups: tuple[str, ...] = ()

    def lines(self, record: RunRecord) -> dict[tuple[str, str], list[tuple[int, float]]]:
        """(step, value) by quantity and group; the network's own group is ""."""
        return {
            (quantity, group): points
            for quantity in filter(None, (self.quantity, self.beside))
            for group, points in series(record, quantity).items()
            if group in (self.groups or (group,))
        }


LOSS = Panel("loss", "loss")
RATIO = Panel("critical_ratio", "r", limit=1.0, log=True)
ROWS = ("tok_emb.rows",)
EDGE = Panel("sharpness_ratio", "sharpness ratio", limit=1.0)


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One training: `run(folder, steps)` makes it, `panels` show it."""

    title: str
    steps: int
    run: Callable[[Path, int], RunRecord]
    panels: tuple[Panel, ...]


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU, bias: bool = True, scale: float = 1.0) -> nn.Sequential:
    """A network of these widths, from seed 0, with its initial weights multiplied by `scale`."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= scale
    return model


def full_batch(steps: int) -> Batches:
    """The first 500 digits at every step."""
    x, onehot = digits().tensors
    return ((x, onehot) for _ in range(steps))


def minibatches(steps: int, size: int) -> Batches:
    """Random batches of the first 1500 digits."""
    x, onehot = digits(1500).tensors
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(x), (size,), generator=generator)
        yield x[chosen], onehot[chosen]


def squared_error(output: Tensor, onehot: Tensor) -> Tensor:
    """Half the squared distance to the one-hot label, averaged over the batch."""
    return 0.5 * (output - onehot).square().sum(1).mean()


def watch(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    probes: list[Any],
    loss_fn: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    warm_up: int = 1,
    groups: Sequence[Any] | Literal["auto"] = "auto",
) -> RunRecord:
    """Train under a watch, with a learning rate that rises over `warm_up` steps, and return the record."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, (k + 1) / warm_up))
    watching = TopologyWatch(model, optimizer, probes, dirpath=folder, verbose=False, report=False, groups=groups)
    with watching:
        for x, y in batches:
            with watching.step():
                watching.loss(loss_fn(model(x), y)).backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
    record = watching.record
    assert record is not None
    return record


def healthy(folder: Path, steps: int) -> RunRecord:
    """Adam at 1e-3 after a warm-up of 40 steps."""
    model = mlp(64, 64, 64, 64, 64, 10)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    return watch(folder, model, adam, minibatches(steps, 100), [Distortion(every_n_steps=1)], warm_up=40)


def breakdown(folder: Path, steps: int) -> RunRecord:
    """The same network, with Adam at 0.1 from the first step."""
    model = mlp(64, 64, 64, 64, 64, 10)
    adam = torch.optim.Adam(model.parameters(), lr=0.1)
    return watch(folder, model, adam, minibatches(steps, 100), [Distortion(every_n_steps=1)])


def edge(folder: Path, steps: int) -> RunRecord:
    """Full-batch gradient descent at 0.3: the training run of `lightning-topo demo`."""
    model = mlp(64, 64, 64, 10, activation=nn.Tanh)
    descent = torch.optim.SGD(model.parameters(), lr=0.3)
    probes = [Distortion(every_n_steps=5), Sharpness(every_n_steps=10)]
    return watch(folder, model, descent, full_batch(steps), probes, squared_error)


def minibatch_edge(folder: Path, steps: int) -> RunRecord:
    """SGD on batches of 8: the full-batch sharpness stays low, the batches' own reaches its edge."""
    model = mlp(64, 32, 10, activation=nn.Tanh)
    sgd = torch.optim.SGD(model.parameters(), lr=0.08, momentum=0.9)
    probes = [Distortion(), Sharpness(every_n_steps=20, batch_sharpness=8)]
    return watch(folder, model, sgd, minibatches(steps, 8), probes, squared_error)


def muon(folder: Path, steps: int) -> RunRecord:
    """Muon, for which no threshold is known: the directional ratio tells the edge."""
    model = mlp(64, 64, 64, 10, activation=nn.Tanh, bias=False)
    optimizer = torch.optim.Muon(model.parameters(), lr=0.02)
    probes = [Distortion(every_n_steps=5), Sharpness(every_n_steps=5)]
    return watch(folder, model, optimizer, full_batch(steps), probes, squared_error)


def condensation(folder: Path, steps: int) -> RunRecord:
    """A thousandth of the usual initialisation: neurons turn into a few directions before the loss falls."""
    model = mlp(64, 64, 10, activation=nn.Tanh, scale=0.001)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return watch(folder, model, sgd, minibatches(steps, 100), [Distortion(), Fate(every_n_steps=5)])


def dying_relus(folder: Path, steps: int) -> RunRecord:
    """AdamW with a large learning rate and weight decay: units die, and the decay shrinks them to nothing."""
    model = mlp(64, 64, 64, 10)
    adamw = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=1.0)
    return watch(folder, model, adamw, minibatches(steps, 100), [Distortion(), Fate(every_n_steps=10)])


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A probe: the share of sums that the network gets right, of those it trains on and of the others."""

    pairs: Tensor
    sums: Tensor
    trained: Tensor
    name: ClassVar[str] = "accuracy"
    period: ClassVar[Period] = Period(10)

    def measure(self, capture: Capture) -> dict[str, float]:
        with torch.no_grad():
            right = (capture.module(self.pairs).argmax(dim=1) == self.sums).float()
        shown, others = right[self.trained], right[~self.trained]
        return {"train_accuracy": float(shown.mean()), "test_accuracy": float(others.mean())}


def grokking(folder: Path, steps: int) -> RunRecord:
    """AdamW on six tenths of the sums modulo 59: it learns these by heart, and long after that to add the others."""
    torch.manual_seed(0)
    model = Adder(width=32, hidden=128, modulus=59)
    pairs, sums = all_sums(59)
    shown = torch.triu(torch.rand(59, 59) < 0.6)
    trained = (shown | shown.T).flatten()  # a + b is shown where b + a is, and gives nothing away
    adamw = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=1.0)
    probes = [
        Accuracy(pairs, sums, trained),
        Distortion(every_n_steps=5),
        Fate(every_n_steps=10),
        Persistence(every_n_steps=20),
    ]
    batches = ((pairs[trained], sums[trained]) for _ in range(steps))
    return watch(folder, model, adamw, batches, probes, groups=["auto", rows("tok_emb.weight")])


EXHIBITS = {
    "healthy": Exhibit("A healthy run: Adam 1e-3 with warm-up", 200, healthy, (LOSS, RATIO)),
    "breakdown": Exhibit("A breakdown: Adam 0.1 without warm-up", 200, breakdown, (LOSS, RATIO)),
    "edge": Exhibit("The edge of stability: gradient descent at 0.3", 450, edge, (LOSS, EDGE, RATIO)),
    "minibatch_edge": Exhibit(
        "The edge of small batches",
        800,
        minibatch_edge,
        (LOSS, EDGE, Panel("batch_sharpness_ratio", "batch sharpness ratio", limit=1.0)),
    ),
    "muon": Exhibit("Muon", 200, muon, (LOSS, Panel("directional_ratio", "directional ratio", limit=1.0), RATIO)),
    "condensation": Exhibit(
        "Condensation from a small initialisation",
        200,
        condensation,
        (LOSS, Panel("aligned_clusters", "directions"), Panel("effective_neurons", "effective neurons")),
    ),
    "dying_relus": Exhibit(
        "Dying ReLUs", 200, dying_relus, (LOSS, Panel("vanishing_neurons", "vanishing neurons"), RATIO)
    ),
    "grokking": Exhibit(
        "Grokking: sums modulo 59",
        1000,
        grokking,
        (
            Panel("train_accuracy", "right sums", beside="test_accuracy"),
            Panel("effective_neurons", "effective neurons", groups=("hidden", *ROWS)),
            Panel("betti_0", "clusters of hidden", groups=("hidden",)),
            Panel("total_persistence_1", "loops of the rows", log=True, beside="max_persistence_1", groups=ROWS),
            RATIO,
        ),
    ),
}


def series(record: RunRecord, quantity: str) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by group; the network's own under ""."""
    found: dict[str, list[tuple[int, float]]] = {}
    for m in record.measurements:
        if quantity in m.values:
            found.setdefault(m.group, []).append((m.step, m.values[quantity]))
    return {group: sorted(points) for group, points in found.items()}


def numbers(record: RunRecord, panels: Iterable[Panel]) -> dict[str, Any]:
    """What a text may say of a run: its events, and first, last, smallest and largest value of what is drawn."""
    drawn: dict[str, Any] = {}
    for panel in panels:
        for (quantity, group), points in panel.lines(record).items():
            values = [value for _, value in points]
            at = [step for step, _ in points]
            drawn[f"{quantity} {group}".strip()] = {
                "first": values[0],
                "last": values[-1],
                "least": min(values),
                "least_step": at[values.index(min(values))],
                "most": max(values),
                "most_step": at[values.index(max(values))],
            }
    happened = [
        {"step": event.step, "name": str(event.name), "group": event.group, "value": event.value}
        for event in record.events
        if event.name != "unwatched_parameters"
    ]
    return {"steps": max(m.step for m in record.measurements), "events": happened, "drawn": drawn}


def picture(record: RunRecord, exhibit: Exhibit) -> Any:
    """A chart for each panel, below each other; grey lines where something happened."""
    from matplotlib.figure import Figure

    n = len(exhibit.panels)
    figure = Figure(figsize=(6.4, 1.5 * n + 0.4), dpi=90, layout="constrained")
    figure.suptitle(exhibit.title, fontsize=10)
    charts = figure.subplots(n, 1, sharex=True, squeeze=False)[:, 0]
    for panel, chart in zip(exhibit.panels, charts, strict=True):
        for step in {event.step for event in record.events if event.name != "unwatched_parameters"}:
            chart.axvline(step, color="0.8", linewidth=1.0, zorder=0)
        for (quantity, group), points in panel.lines(record).items():
            name = f"group {group}" if group and not panel.beside else quantity.replace("_", " ")
            chart.plot(*zip(*points, strict=True), linewidth=1.0, label=name)
        if panel.limit is not None:
            chart.axhline(panel.limit, color="#B3123F", linewidth=1.0)
        if panel.log:
            chart.set_yscale("log")
        chart.set_ylabel(panel.label, fontsize=8)
        chart.tick_params(labelsize=8)
        chart.spines[["top", "right"]].set_visible(False)
        if 1 < len(chart.get_legend_handles_labels()[1]) <= 4:
            chart.legend(fontsize=7, frameon=False, ncols=4)
    charts[-1].set_xlabel("optimizer step", fontsize=8)
    return figure


def show(name: str, out: Path, steps: int | None = None) -> RunRecord:
    """Train an exhibit, print its events, and write `<name>.png` and `<name>.json` into `out`."""
    exhibit = EXHIBITS[name]
    record = exhibit.run(Path(tempfile.mkdtemp()) / "topology", steps or exhibit.steps)
    print(f"{exhibit.title}: {exhibit.run.__doc__}")
    for event in record.events:
        print(f"  step {event.step}: {event.name} {event.group} {event.message}")
    out.mkdir(parents=True, exist_ok=True)
    picture(record, exhibit).savefig(out / f"{name}.png")
    (out / f"{name}.json").write_text(json.dumps(numbers(record, exhibit.panels), indent=1) + "\n")
    print(f"  {out / name}.png")
    return record


def main() -> None:
    """List the exhibits, or show one or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", choices=[*EXHIBITS, "all"])
    parser.add_argument("--out", type=Path, default=Path(), help="where the pictures go (default: here)")
    parser.add_argument("--steps", type=int, help="fewer or more steps than usual")
    arguments = parser.parse_args()
    if arguments.name is None:
        for name, exhibit in EXHIBITS.items():
            print(f"{name:16} {exhibit.title}")
    for name in EXHIBITS if arguments.name == "all" else filter(None, [arguments.name]):
        show(name, arguments.out, arguments.steps)


if __name__ == "__main__":
    main()
