"""How good the page's recommendation is: trainings that break, each trained again as its record advises.

    python -m benchmarks.advice --out advice.jsonl

Small networks on scikit-learn's digits under SGD, momentum and Adam, at learning rates of which many are too large. Of
each that breaks (a critical step, an instability, a loss that is not finite) the advice is applied, and again where
that run breaks too, up to three times. A line of the file is one training with its followers: what is there is not
trained again.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_topo import Distortion, Sharpness, TopologyWatch
from lightning_topo.outputs.page._advice import advise
from lightning_topo.outputs.page._evidence import Evidence
from lightning_topo.outputs.page._outcome import history
from lightning_topo.outputs.record import read_record

STEPS = 150
BATCH = 64
ROUNDS = 3
WANTED = 20

MODELS = {
    "MLP, tanh": lambda: nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)),
    "MLP, ReLU": lambda: nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)),
    "CNN": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 12, 3),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 10),
    ),
}
OPTIMIZERS = {
    "SGD": lambda parameters, lr: torch.optim.SGD(parameters, lr),
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
    "Adam": lambda parameters, lr: torch.optim.Adam(parameters, lr),
}
RATES = {"SGD": (16.0, 6.0, 3.0, 1.5), "momentum": (4.0, 1.5, 0.6, 0.3), "Adam": (0.3, 0.1, 0.03, 0.01)}


@dataclass(frozen=True, slots=True)
class Run:
    """One training: how it was set, whether it broke, the mean of its last losses, and the advice on it."""

    lr: float
    warmup: int
    broke: bool
    diverged: bool
    loss: float
    accuracy: float
    largest_ratio: float
    decision: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("advice.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = {line["name"]: line for line in _lines(arguments.out)}
    with arguments.out.open("a") as file:
        for name, model, optimizer, lr in _cases():
            if sum(line["runs"][0]["broke"] for line in known.values()) >= WANTED:
                break
            if name not in known:
                runs = [asdict(run) for run in followed(model, optimizer, lr)]
                known[name] = {"name": name, "runs": runs}
                file.write(json.dumps(known[name]) + "\n")
                file.flush()
    print(table([line for line in known.values() if line["runs"][0]["broke"]][:WANTED]))


def followed(model: str, optimizer: str, lr: float) -> Iterator[Run]:
    """A training, and while it breaks the one that is advised next."""
    warmup = 0
    for _ in range(ROUNDS + 1):
        run, advised_lr, advised_warmup = train(model, optimizer, lr, warmup)
        yield run
        if not run.broke:
            return
        lr, warmup = advised_lr or lr, advised_warmup or warmup


def train(model: str, optimizer: str, lr: float, warmup: int) -> tuple[Run, float | None, int | None]:
    """Train once, and read the advice from the record."""
    torch.manual_seed(0)
    net = MODELS[model]()
    rule = OPTIMIZERS[optimizer](net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(rule, lambda step: min(1.0, (step + 1) / warmup) if warmup else 1.0)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16.0, torch.tensor(digits.target)
    order = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        probes = [Distortion(every_n_steps=1), Sharpness(every_n_steps=10)]
        options: dict[str, Any] = {"max_overhead": None, "report": False, "verbose": False}
        with TopologyWatch(net, rule, probes, dirpath=Path(folder) / "run", **options) as watch:
            for _ in range(STEPS):
                batch = torch.randint(0, 1400, (BATCH,), generator=order)
                with watch.step():
                    watch.loss(nn.functional.cross_entropy(net(x[batch]), y[batch])).backward()
                    rule.step()
                    rule.zero_grad()
                schedule.step()
        record = read_record(Path(folder) / "run")
    outcome, evidence = history(record).outcome, Evidence.of(record.measurements)
    advice = advise(outcome, evidence)
    assert advice is not None
    last = [evidence.loss.losses[step] for step in sorted(evidence.loss.losses)[-20:]]
    with torch.no_grad():
        accuracy = (net(x[1400:]).argmax(1) == y[1400:]).float().mean().item()
    diverged = outcome.diverged_step is not None
    run = Run(
        lr,
        warmup,
        bool(outcome.breakdowns) or diverged,
        diverged,
        sum(last) / len(last),
        accuracy,
        max(evidence.ratios.values(), default=math.nan),
        advice.decision,
    )
    return run, advice.learning_rate, advice.warmup_steps


def table(lines: list[Mapping[str, Any]]) -> str:
    """A row for each training, and the counts."""
    rows = ["| training | largest r | loss | advice | clean then | its loss |", "|---|---|---|---|---|---|"]
    for line in lines:
        first, then = line["runs"][0], line["runs"][1]
        clean = next((k for k, run in enumerate(line["runs"]) if k and not run["broke"]), None)
        word = {None: "no", 1: "yes"}.get(clean, f"at the {clean}. advice")
        change = f"lr {then['lr']:.2g}" if then["warmup"] == first["warmup"] else f"warm-up {then['warmup']}"
        rows.append(
            f"| {line['name']} | {first['largest_ratio']:.3g} | {first['loss']:.3g} | {change} | {word} "
            f"| {line['runs'][-1]['loss']:.3g} |"
        )
    after = [run for line in lines for run in line["runs"][1:2]]
    clean, last = sum(not run["broke"] for run in after), [line["runs"][-1] for line in lines]
    better = sum(
        line["runs"][-1]["loss"] < line["runs"][0]["loss"] or math.isnan(line["runs"][0]["loss"]) for line in lines
    )
    rows += [
        "",
        f"{len(lines)} trainings broke. The next run was clean in {clean}, and after at most {ROUNDS} advices in "
        f"{sum(not run['broke'] for run in last)}. {sum(run['diverged'] for run in after)} of the next runs diverged. "
        f"The last run's loss is lower in {better}.",
    ]
    return "\n".join(rows)


def _cases() -> Iterator[tuple[str, str, str, float]]:
    for place in range(max(map(len, RATES.values()))):
        for optimizer in OPTIMIZERS:
            for model in MODELS:
                lr = RATES[optimizer][place]
                yield f"{model}, {optimizer}, lr {lr:g}", model, optimizer, lr


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


if __name__ == "__main__":
    main()
