"""What becomes of neurons: three known effects reproduced, and whether r >= 1 foretells a merging.

    python -m benchmarks.fate run      # trains what is not yet in docs/fate/runs.jsonl: minutes of one core
    python -m benchmarks.fate tables   # prints the tables of docs/fate.md from that file

The rule of the study is that of docs/fate.md; it was committed before the runs. A run that was broken off goes on.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_topo import step_distortion
from lightning_topo.geometry import neuron_fate

DATA = Path(__file__).parents[1] / "docs" / "fate" / "runs.jsonl"
EVERY = 20
"""Fates are counted every so many steps."""
FALLEN = 0.9
"""A layer has merged when so small a share of its neurons is independent, at two captures in a row."""
SPIKE, SPIKE_MEMORY = 1.5, 20
"""A loss spike: over so many times the median of so many losses before it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One training of a network with one hidden layer; `part` says which table it belongs to."""

    part: str
    family: str
    lr: float
    seed: int
    activation: str = "tanh"
    init: float = 1.0
    optimizer: str = "sgd"
    momentum: float = 0.0
    decay: float = 0.0
    label_noise: float = 0.0
    batch: int = 50
    width: int = 64
    steps: int = 600

    @property
    def key(self) -> str:
        """Tells this run from all others."""
        return json.dumps(asdict(self), sort_keys=True)


def reproductions() -> Iterator[Setting]:
    """Each effect beside its control, three seeds each."""
    for seed in range(3):
        for activation in ("tanh", "relu"):
            for init in (1.0, 1e-3):
                family = f"{activation}, initialised at {init:g}"
                yield Setting("condensation", family, 0.5, seed, activation, init, width=128)
        for lr, noise in ((0.01, 0.0), (0.01, 1.0), (0.1, 0.0), (0.1, 1.0), (0.3, 0.0), (0.3, 1.0)):
            family = f"lr {lr:g}, label noise {noise:g}"
            yield Setting("collapse", family, lr, seed, "relu", label_noise=noise, batch=10, steps=6000)
        for lr in (1e-3, 0.1, 0.3):
            for decay in (0.0, 0.1):
                family = f"AdamW lr {lr:g}, weight decay {decay:g}"
                yield Setting("dying", family, lr, seed, "relu", optimizer="adamw", decay=decay, steps=1000)


def study() -> Iterator[Setting]:
    """The 40 runs: five families, four learning rates, two seeds."""
    for seed in (10, 11):
        for lr in (0.05, 0.2, 0.5, 1.0):
            yield Setting("study", "SGD", lr, seed)
            yield Setting("study", "SGD, small initialisation", lr, seed, "relu", init=1e-3)
        for lr in (1e-3, 1e-2, 3e-2, 0.1):
            yield Setting("study", "Adam", lr, seed, optimizer="adamw")
            yield Setting("study", "Adam, small initialisation", lr, seed, "relu", init=1e-3, optimizer="adamw")
        for lr in (0.01, 0.03, 0.1, 0.3):
            yield Setting("study", "momentum, weight decay", lr, seed, "relu", momentum=0.9, decay=1e-3)


def train(setting: Setting) -> dict[str, Any]:
    """Train once: the fates at every capture, the loss of every step and, for the study, r of every step."""
    x, y = _digits()
    torch.manual_seed(setting.seed)
    act = {"tanh": nn.Tanh, "relu": nn.ReLU}[setting.activation]()
    net = nn.Sequential(nn.Linear(64, setting.width), act, nn.Linear(setting.width, 10))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(setting.init)
    if setting.optimizer == "sgd":
        optimizer: Any = torch.optim.SGD(net.parameters(), setting.lr, setting.momentum, weight_decay=setting.decay)
    else:
        optimizer = torch.optim.AdamW(net.parameters(), setting.lr, weight_decay=setting.decay)
    measures_r = setting.part == "study"
    losses: list[float] = []
    ratios: list[float] = []
    fates: list[dict[str, float]] = [_fate(net, x, 0)]
    cloud = _cloud(net)
    for step in range(1, setting.steps + 1):
        chosen = torch.randint(len(x), (setting.batch,))
        target = y[chosen] + setting.label_noise * torch.randn(setting.batch, 10)
        loss = F.mse_loss(net(x[chosen]), target, reduction="sum") / (2 * setting.batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        before, cloud = cloud, _cloud(net)
        if not (math.isfinite(losses[-1]) and bool(cloud.isfinite().all())):
            break
        if measures_r:
            ratios.append(step_distortion(before, cloud).critical_ratio)
        if step % EVERY == 0:
            fates.append(_fate(net, x, step))
    return {"fates": fates, "losses": losses, "ratios": ratios}


def _digits() -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32) / 16.0
    x = (x - x.mean(0)) / x.std()
    return x[:500], F.one_hot(torch.tensor(labels), 10).float()[:500]


def _cloud(net: nn.Sequential) -> Tensor:
    first, last = net[0], net[2]
    return torch.cat([first.weight, first.bias[:, None], last.weight.T], dim=1).detach()  # pyright: ignore[reportArgumentType, reportIndexIssue, reportCallIssue]


@torch.no_grad()
def _fate(net: nn.Sequential, x: Tensor, step: int) -> dict[str, float]:
    """The counts of one capture; `silent` ones are never active on any sample, which no weight alone can tell."""
    cloud = _cloud(net)
    found = neuron_fate(cloud, cloud[:, :65])
    silent = int((net[1](net[0](x)) == 0.0).all(dim=0).sum())
    return {
        "step": step,
        "independent": found.independent_neurons,
        "vanishing": found.vanishing_neurons,
        "clusters": found.aligned_clusters or 0,
        "effective": round(found.effective_neurons, 2),
        "silent": silent,
    }


def outcome(setting: Setting, found: dict[str, Any]) -> dict[str, Any]:
    """The line of a run in the data file: what the rule makes of its series, and the fates at both ends."""
    fates = found["fates"]
    line: dict[str, Any] = asdict(setting) | {"first": fates[0], "last": fates[-1]}
    line["finite"] = len(found["losses"]) == setting.steps and math.isfinite(found["losses"][-1])
    line["least_independent"] = min(fate["independent"] for fate in fates)
    line["least_clusters"] = min(fate["clusters"] for fate in fates)
    line["merged_at"] = merged_at(fates, setting.width)
    if setting.part == "study":
        line["r_at"] = next((k for k, r in enumerate(found["ratios"], 1) if r >= 1.0), None)
        line["peak_r"] = float(f"{max(found['ratios'], default=0.0):.4g}")
        line["spike_at"] = spike_at(found["losses"])
    return line


def merged_at(fates: Sequence[dict[str, float]], width: int) -> int | None:
    """The first of two captures in a row at which too few neurons are independent; None where there is none.

    >>> merged_at([{"step": s, "independent": i} for s, i in ((0, 10), (20, 8), (40, 10), (60, 9), (80, 9))], 10)
    60
    """
    for one, two in itertools.pairwise(fates):
        if max(one["independent"], two["independent"]) <= FALLEN * width:
            return int(one["step"])
    return None


def spike_at(losses: Sequence[float]) -> int | None:
    """The first step whose loss exceeds the median of the losses before it by the factor of a spike.

    >>> spike_at([1.0] * 20 + [1.4, 1.6])
    22
    """
    for k in range(SPIKE_MEMORY, len(losses)):
        if not losses[k] <= SPIKE * median(losses[k - SPIKE_MEMORY : k]):
            return k + 1
    return None


# --- tables -----------------------------------------------------------------------------------------------------------


def tables(lines: Sequence[dict[str, Any]]) -> str:
    """All tables, as Markdown."""
    parts = [
        _ends(lines, "condensation", "clusters", "aligned clusters"),
        _ends(lines, "collapse", "independent", "independent neurons"),
        _ends(lines, "dying", "silent", "silent ReLUs", also=("vanishing", "vanishing neurons")),
        _study(lines),
        _prediction(lines),
    ]
    return "\n\n".join(parts)


def _ends(
    lines: Sequence[dict[str, Any]], part: str, name: str, title: str, also: tuple[str, str] | None = None
) -> str:
    """The counts of one part of the runs, a row for each family."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line["part"] == part:
            rows.setdefault(line["family"], []).append(line)
    least = f"least_{name}"
    has_least = any(least in line for line in lines if line["part"] == part)
    more = " the least in between |" * has_least + (f" {also[1]} at the end |" if also else "")
    head = [
        f"| {part} | neurons | {title} at the start | at the end, each seed |{more}",
        "|---|---|---|---|" + "---|" * (has_least + bool(also)),
    ]
    for family, found in rows.items():
        first = ", ".join(f"{line['first'][name]:.0f}" for line in found)
        last = ", ".join(f"{line['last'][name]:.0f}" + ("" if line["finite"] else " (diverged)") for line in found)
        beside = [f"{line['last'][also[0]]:.0f}" for line in found] if also else []
        other = f" {', '.join(f'{line[least]:.0f}' for line in found)} |" if has_least else ""
        other += f" {', '.join(beside)} |" if also else ""
        head.append(f"| {family} | {found[0]['width']} | {first} | {last} |{other}")
    return "\n".join(head)


def _study(lines: Sequence[dict[str, Any]]) -> str:
    head = [
        "| family | lr | seed | peak r | r >= 1 at | spike at | least independent | merged at |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        if line["part"] == "study":
            at = [("-" if line[name] is None else f"{line[name]:,}") for name in ("r_at", "spike_at", "merged_at")]
            head.append(
                f"| {line['family']} | {line['lr']:g} | {line['seed']} | {line['peak_r']:.3g} | {at[0]} | {at[1]} | "
                f"{line['least_independent']} of {line['width']} | {at[2]} |"
            )
    return "\n".join(head)


def _prediction(lines: Sequence[dict[str, Any]]) -> str:
    from scipy.stats import fisher_exact

    runs = [line for line in lines if line["part"] == "study"]
    head = [
        "| alarm | hits | misses | false alarms | rightly quiet | median lead, steps | p (Fisher, one-sided) |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, name in (("r >= 1", "r_at"), ("loss spike", "spike_at")):
        judged = [judge(line[name], line["merged_at"]) for line in runs]
        hits, misses, false, quiet = (judged.count(kind) for kind in ("hit", "miss", "false alarm", "quiet"))
        leads = [line["merged_at"] - line[name] for line, kind in zip(runs, judged, strict=True) if kind == "hit"]
        p = fisher_exact([[hits, misses], [false, quiet]], alternative="greater")[1]
        lead = f"{median(leads):g}" if leads else "-"
        head.append(f"| {title} | {hits} | {misses} | {false} | {quiet} | {lead} | {p:.2g} |")
    return "\n".join(head)


def judge(alarm: int | None, merged: int | None) -> str:
    """What an alarm was worth: it counts only if it came before the merging.

    >>> judge(3, 40), judge(60, 40), judge(3, None), judge(None, None)
    ('hit', 'miss', 'false alarm', 'quiet')
    """
    if merged is None:
        return "quiet" if alarm is None else "false alarm"
    return "hit" if alarm is not None and alarm < merged else "miss"


def read(path: Path = DATA) -> list[dict[str, Any]]:
    """The lines of the data file, none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(settings: Sequence[Setting], path: Path = DATA, say: Callable[[str], None] = print) -> None:
    """Train what is missing in the data file; each run is a line, written when it is done."""
    names = Setting.__dataclass_fields__
    done = {Setting(**{name: line[name] for name in names}).key for line in read(path)}
    path.parent.mkdir(parents=True, exist_ok=True)
    for setting in settings:
        if setting.key in done:
            continue
        line = outcome(setting, train(setting))
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        say(f"{setting.part}: {setting.family}, lr {setting.lr:g}, seed {setting.seed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "tables"))
    torch.set_num_threads(1)
    if parser.parse_args().what == "run":
        run([*reproductions(), *study()])
    else:
        print(tables(read()))


if __name__ == "__main__":
    main()
