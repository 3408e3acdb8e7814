"""The rule for the edge where it is not that of full batches: minibatches, Muon, clipped gradients.

    python benchmarks/minibatch_edge.py run PART        # one of `PARTS`: appends to the data file
    python benchmarks/minibatch_edge.py table           # the counts and the rows, from the data file
    python benchmarks/minibatch_edge.py monitor         # the run with which this began, under a default monitor

A part goes on where it was stopped. Data file: docs/data/minibatch_edge.jsonl.

**Runs.** Tanh networks on 500 digits with the squared loss, `STEPS` steps; a run's seed fixes its network and its
batches (shuffled epochs). *minibatch*, 40: SGD, SGD with momentum 0.9, Adam; batches of 8, 32 and 128; each at four
fractions of the learning rate at which the ratio is 1 at the start (measured as in `benchmarks/edge.py`); and four of
the run with which this began, SGD 0.08 with momentum 0.9 and batches of 8. *calm*, 20: the same optimizers and batches
at a fiftieth. *muon*, 10: Muon on matrices with AdamW 1e-3 on biases, five learning rates, batches of 128 and of all.
*clipped*, 10: SGD on all samples, ten times the loss, gradients clipped to a norm, five learning rates, two norms.

**Measured** as the monitor's probes do, every 20 steps: `BatchWindow` of two fresh batches where batches are small,
the sharpness ratio of 256 samples (of all where all are one batch) every 60; for Muon `directional_ratio` and
`critical_sharpness` of the step taken, on its own batch.

**Truth** knows no threshold; it asks copies of the training, in two ways. *Displaced copies*: six times in a run model
and optimizer are copied twice, in float64. One copy is displaced by 1e-5 of its length, along the step that a batch's
gradient would make; both take the same 160 steps. With e_k the mean square, in the k-th window of 20 steps, of how
their distance vector changes from step to step, the disturbance *persists* if the root of e_8 / e_1 is at least 0.2.
*Held*: three times two copies go on for 200 steps on the same batches, one of them at half the rate. Far from the edge
the slower one's curvature (the mean of g^T H g / g^T g over 24 batches; the largest eigenvalue where all samples are
one batch) rises no faster; where the rate holds curvature down, it rises: *held* if it is 1.15 times the other's. A
run is *inside* if at least 3 of 6 disturbances persist or 2 of 3 times it is held, *outside* if neither is seen once,
*between* else, *diverged* if a loss exceeds 50 or is not finite. (From a pilot on other shapes and seeds: persistence
alone does not see what noise holds down; it was 0.03 to 0.1 far from the edge, 0.1 to 0.3 in the run with which this
began, about 1 with momentum and Adam at the linear boundary. The weight in `BatchWindow.ratio` is from it, too.)
Muon's step does not shrink with a displacement, nor does a clipped one along the gradient: copies do not close up. For
these parts the truth is the share of the last 600 steps that did not lower the loss of their own batch, *inside* from
0.3, *outside* up to 0.05.

**The truth was changed twice** after it was registered. After twelve of the calm runs: at a fiftieth
of the rate SGD's disturbances have no time to die down in 160 steps and "persist" for no other reason; a calm run is
outside by its rate. After two clipped runs, for the reason above: clipped runs were under copies, too.

**The rule was changed once**, after the first 11 of the minibatch runs: `BatchWindow.ratio` was
(n small + (1-n) large) / (1 - n/2), in from 0.75, and called SGD's edge too early (the file holds what it was then; the
table converts it). The part *again*, 40 runs with other seeds, was registered with the change, before any of them was
run.

**The bands were changed once**, after all of these parts: `sharpness` was in from 0.95, `batch` from 0.80,
`directional` from 0.90 and `critical` from 0.85, and either of the first two decided. By 0.98, 0.92, 0.95 and 0.95,
and by `batch` alone where it is measured, all runs inside of the parts above are still found, and fewer outside enter.
Three parts were registered with the change, before any of their runs was made. *third*: twice the forty of *again* with
other seeds. *muon again* and *clipped again*: other seeds and rates.

**Clipped runs had the wrong truth**: steps of a fixed length that alternate across a valley and go down along it lower
every loss. So for *clipped again*, and beside the other truth for *clipped*, the last 400 steps are compared with the
leading eigenvector of the Hessian, found anew every 50: a step *alternates* if its part along that vector is at least a
tenth of it and points against that of the step before. A run is *inside* if nine of ten steps alternate, *outside* if
one of ten does.

**Counts**: a false entry is an entry in a run outside, a miss a run inside that has not entered at the end, a flip an
exit of a run inside.
"""

import argparse
import copy
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_topo import TopologyMonitor
from lightning_topo.demo import DigitsMLP, digits
from lightning_topo.measurement import Measurement
from lightning_topo.phases import Replay, replay
from lightning_topo.probes._batch_window import BatchWindow, SeenBatch, see_batches
from lightning_topo.stability import (
    critical_sharpness,
    curvature_batch_sharpness,
    curvature_sharpness,
    directional_ratio,
    flatten,
    hessian,
    parameter_thresholds,
    scaled_sharpness,
)
from lightning_topo.stability._layout import Layout

DATA = Path(__file__).parents[1] / "docs" / "data" / "minibatch_edge.jsonl"
STEPS, EVERY, DISTURBED_EVERY, HARDLY = 1200, 20, 200, 1e-7
WINDOW, WINDOWS, PERSISTS = 20, 8, 0.2
HELD_EVERY, HELD_STEPS, HELD_BATCHES, HELD = 400, 200, 24, 1.15
SIZE = 500
PARTS = ("minibatch", "again", "calm", "muon", "clipped", "third", "muon again", "clipped again")
ALTERNATING_STEPS, ALTERNATING_EVERY, ALONG = 400, 50, 0.1
FRACTIONS = {"SGD": (0.1, 0.4, 1.0, 1.6), "momentum": (0.1, 0.4, 1.0, 1.6), "Adam": (0.1, 0.4, 1.0, 1.6)}
SHAPES = ((1, 48), (2, 32))


@dataclass(frozen=True, slots=True)
class Setting:
    """One training; `lr` is a fraction of the critical rate where `is_fraction`."""

    part: str
    optimizer: str
    batch: int
    lr: float
    seed: int
    shape: tuple[int, int]
    is_fraction: bool = True
    clip: float | None = None

    @property
    def factor(self) -> float:
        """Of the loss."""
        return 10.0 if self.clip is not None else 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """What came of it: each value by step, and the decay of each disturbance."""

    setting: Setting
    lr: float
    values: tuple[tuple[int, dict[str, float]], ...]
    decays: tuple[float, ...]
    rises: tuple[float, ...]
    raised: float | None
    diverged: bool
    alternating: float | None = None

    @property
    def persisting(self) -> int:
        """How many disturbances persist."""
        return sum(decay >= PERSISTS for decay in self.decays)

    @property
    def held(self) -> int:
        """How often the rate held curvature down."""
        return sum(rise >= HELD for rise in self.rises)

    @property
    def truth(self) -> str:
        """Inside, outside, between or diverged."""
        if self.diverged:
            return "diverged"
        if self.setting.part == "calm":
            return "outside"
        if self.setting.part == "clipped again" and self.alternating is not None:
            return "inside" if self.alternating >= 0.9 else "between" if self.alternating > 0.1 else "outside"
        if self.raised is not None:
            return "inside" if self.raised >= 0.3 else "between" if self.raised > 0.05 else "outside"
        if self.persisting >= 3 or self.held >= 2:
            return "inside"
        return "between" if self.persisting or self.held else "outside"

    def seen(self) -> Replay:
        """What the rule makes of the values."""
        return replay([Measurement(step, 0, "step_edge", "", values) for step, values in self.values])


def settings() -> Iterator[Setting]:
    """All trainings, each with a seed of its own."""
    yield from minibatches("minibatch", itertools.count(1000))
    seeds = itertools.count(1040)
    kinds = list(itertools.product(FRACTIONS, (8, 32, 128)))
    for k, (optimizer, batch) in zip(range(20), itertools.cycle(kinds), strict=False):
        yield Setting("calm", optimizer, batch, 0.02, next(seeds), SHAPES[k % 2])
    for batch, lr in itertools.product((128, SIZE), (0.0005, 0.002, 0.01, 0.03, 0.06)):
        yield Setting("muon", "Muon", batch, lr, next(seeds), (2, 32), is_fraction=False)
    for clip, lr in itertools.product((0.5, 2.0), (0.01, 0.05, 0.1, 0.2, 0.4)):
        yield Setting("clipped", "SGD", SIZE, lr, next(seeds), (2, 32), is_fraction=False, clip=clip)
    yield from minibatches("again", itertools.count(2000))
    seeds = itertools.count(3000)
    for _ in range(2):
        yield from minibatches("third", seeds)
    for batch, lr in itertools.product((128, SIZE), (0.0007, 0.0015, 0.004, 0.02, 0.045)):
        yield Setting("muon again", "Muon", batch, lr, next(seeds), (2, 32), is_fraction=False)
    for clip, lr in itertools.product((0.5, 2.0), (0.01, 0.03, 0.06, 0.15, 0.3)):
        yield Setting("clipped again", "SGD", SIZE, lr, next(seeds), (2, 32), is_fraction=False, clip=clip)


def minibatches(part: str, seeds: Iterator[int]) -> Iterator[Setting]:
    """Forty trainings of minibatches."""
    kinds = itertools.product(FRACTIONS, (8, 32, 128))
    for k, (optimizer, batch) in enumerate(kinds):
        for j, fraction in enumerate(FRACTIONS[optimizer]):
            yield Setting(part, optimizer, batch, fraction, next(seeds), SHAPES[(k + j) % 2])
    for _ in range(4):
        yield Setting(part, "momentum", 8, 0.08, next(seeds), (2, 64), is_fraction=False)


def network(depth: int, width: int) -> nn.Sequential:
    """A tanh network with `depth` hidden layers."""
    sizes = [64, *[width] * depth]
    hidden = itertools.chain.from_iterable((nn.Linear(a, b), nn.Tanh()) for a, b in itertools.pairwise(sizes))
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], 10))


def optimizers(setting: Setting, params: list[nn.Parameter], lr: float) -> list[torch.optim.Optimizer]:
    """Those of a run."""
    if setting.optimizer == "Muon":
        matrices, others = ([p for p in params if (p.ndim == 2) is wanted] for wanted in (True, False))
        return [torch.optim.Muon(matrices, lr=lr), torch.optim.AdamW(others, lr=1e-3)]
    if setting.optimizer == "Adam":
        return [torch.optim.Adam(params, lr=lr)]
    return [torch.optim.SGD(params, lr=lr, momentum=0.9 if setting.optimizer == "momentum" else 0.0)]


def batches(seed: int, size: int) -> Iterator[torch.Tensor]:
    """Rows of batches, in shuffled epochs."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randperm(SIZE, generator=generator)
        yield from rows[: SIZE - SIZE % size].split(size)


class Training:
    """One model with its optimizers, on given rows."""

    def __init__(self, setting: Setting, model: nn.Module, lr: float, dtype: torch.dtype = torch.float32) -> None:
        self.setting, self.model = setting, model.to(dtype)
        self.params = list(model.parameters())
        self.optimizers = optimizers(setting, self.params, lr)
        self.scale = 1.0
        self._x, self._y = (t.to(dtype) for t in digits(SIZE).tensors)

    def loss(self, rows: torch.Tensor) -> torch.Tensor:
        """The squared loss."""
        return self.setting.factor * 0.5 * ((self.model(self._x[rows]) - self._y[rows]) ** 2).sum(1).mean()

    def step(self, rows: torch.Tensor) -> float:
        """One update."""
        self.model.zero_grad()
        loss = self.loss(rows)
        loss.backward()
        if self.setting.clip is not None:
            length = nn.utils.clip_grad_norm_(self.params, self.setting.clip).item()
            self.scale = min(1.0, self.setting.clip / length)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()

    def ratio(self, rows: torch.Tensor) -> float:
        """The sharpness ratio, as the probe measures it."""
        curvature = hessian(lambda: self.loss(rows), self.params)
        thresholds = self.thresholds(curvature.gradient)
        return scaled_sharpness(curvature, thresholds, curvature_sharpness(curvature)).ratio

    def thresholds(self, gradient: torch.Tensor) -> tuple:
        """Of the step to come."""
        scales = [self.scale] * len(self.optimizers)
        found = parameter_thresholds(self.optimizers, self.params, gradient, gradient_scales=scales).parameters
        assert found is not None
        return found

    def batches_seen(self, rows: list[torch.Tensor]) -> tuple[SeenBatch, ...]:
        """The curvature of batches, as the probe measures it."""
        losses = [lambda r=r: self.loss(r) for r in rows]
        return see_batches(losses, lambda loss: hessian(loss, self.params), lambda c: self.thresholds(c.gradient))


def decay(training: Training, seed: int) -> float:
    """How much of a small disturbance is left after 160 steps."""
    setting = training.setting
    copies: list[Training] = []
    for _ in range(2):
        other = Training(setting, copy.deepcopy(training.model), 1.0, torch.float64)
        for mine, theirs in zip(other.optimizers, training.optimizers, strict=True):
            mine.load_state_dict(copy.deepcopy(theirs.state_dict()))
        copies.append(other)
    displaced = copies[1]
    rows = next(batches(seed + 7, setting.batch))
    gradient = flatten(torch.autograd.grad(displaced.loss(rows), displaced.params))
    direction = gradient
    if setting.optimizer == "Adam":
        totals = [threshold.total for threshold in displaced.thresholds(gradient)]
        direction = gradient * Layout.of(displaced.params).spread(totals)
    direction = direction * (1e-5 * flatten(p.detach() for p in displaced.params).norm() / direction.norm())
    with torch.no_grad():
        for p, part in zip(displaced.params, direction.split([p.numel() for p in displaced.params]), strict=True):
            p += part.view_as(p)
    energies, rows_of, before = [], batches(seed, setting.batch), None
    for _ in range(WINDOWS):
        energy = 0.0
        for _ in range(WINDOW):
            rows = next(rows_of)
            for one in copies:
                one.step(rows)
            apart = torch.cat([(a - b).detach().flatten() for a, b in zip(*(c.params for c in copies), strict=True)])
            energy += 0.0 if before is None else float((apart - before).square().sum())
            before = apart
        energies.append(energy)
    return math.sqrt(energies[-1] / energies[0]) if energies[0] > 0.0 else 0.0


def rise(training: Training, seed: int) -> float:
    """By which factor curvature is larger after 200 steps at half the rate than at the rate itself."""
    setting, found = training.setting, []
    for factor in (1.0, 0.5):
        other = Training(setting, copy.deepcopy(training.model), 1.0)
        for mine, theirs in zip(other.optimizers, training.optimizers, strict=True):
            mine.load_state_dict(copy.deepcopy(theirs.state_dict()))
            for group in mine.param_groups:
                group["lr"] *= factor
        rows_of, looked_at = batches(seed, setting.batch), batches(seed + 3, setting.batch)
        for _ in range(HELD_STEPS):
            other.step(next(rows_of))
        if setting.batch == SIZE:
            found.append(curvature_sharpness(hessian(lambda o=other: o.loss(torch.arange(SIZE)), other.params)).value)
            continue
        each = [
            curvature_batch_sharpness(hessian(lambda o=other, r=next(looked_at): o.loss(r), other.params)).value
            for _ in range(HELD_BATCHES)
        ]
        found.append(statistics.fmean(each))
    return found[1] / found[0] if found[0] > 0.0 else 1.0


def train(setting: Setting) -> Run:
    """One training, with its values and disturbances."""
    torch.manual_seed(setting.seed)
    training = Training(setting, network(*setting.shape), HARDLY)
    rows_of, looked_at = batches(setting.seed, setting.batch), batches(setting.seed + 1, setting.batch)
    lr, window = setting.lr, BatchWindow()
    values: list[tuple[int, dict[str, float]]] = []
    decays: list[float] = []
    rises: list[float] = []
    higher = 0
    is_small, has_threshold = setting.batch < 256, setting.optimizer != "Muon"
    asks_copies = setting.part in ("minibatch", "again", "third")
    asks_losses = setting.part.startswith(("muon", "clipped"))
    alternation = Alternation() if setting.clip is not None else None
    many = torch.arange(256 if is_small else SIZE)

    def look() -> BatchWindow:
        return window.followed_by(training.batches_seen([next(looked_at) for _ in range(2)]))

    if setting.is_fraction:
        for _ in range(20):
            training.step(next(rows_of))
        for _ in range(4):
            window = look()
        lr = HARDLY * setting.lr / max(window.ratio, training.ratio(many))
        window = BatchWindow()
    training.optimizers = optimizers(setting, training.params, lr)
    for step in range(1, STEPS + 1):
        rows = next(rows_of)
        looks = alternation is not None and step > STEPS - ALTERNATING_STEPS
        before = [p.detach().clone() for p in training.params] if looks or step % EVERY == 0 else []
        loss = training.step(rows)
        if looks and alternation is not None:
            alternation.see(training, before, rows, anew=step % ALTERNATING_EVERY == 1)
        if asks_losses and step > STEPS // 2:
            with torch.no_grad():
                higher += not training.loss(rows).item() < loss
        if not loss <= 50.0:
            return Run(setting, lr, tuple(values), tuple(decays), tuple(rises), None, diverged=True)
        if step % EVERY:
            continue
        found: dict[str, float] = {}
        if not has_threshold:
            found = of_step(training, before, rows)
        elif is_small:
            window = look()
            found = {"batch_sharpness_ratio": window.ratio, "batch_noise": window.noise}
        if has_threshold and (step % (3 * EVERY) == 0 or not is_small):
            found["sharpness_ratio"] = training.ratio(many)
        values.append((step, found))
        if asks_copies and step % DISTURBED_EVERY == 0:
            decays.append(decay(training, setting.seed + step))
        if asks_copies and step % HELD_EVERY == 0:
            rises.append(rise(training, setting.seed + step))
    raised = higher / (STEPS // 2) if asks_losses else None
    alternating = None if alternation is None else alternation.share
    return Run(setting, lr, tuple(values), tuple(decays), tuple(rises), raised, diverged=False, alternating=alternating)


@dataclass(slots=True)
class Alternation:
    """How many of the steps seen alternate along the leading eigenvector of the Hessian."""

    vector: torch.Tensor | None = None
    last: float = 0.0
    n_alternating: int = 0
    n_seen: int = 0

    @property
    def share(self) -> float | None:
        """Of the steps seen; None if there were none."""
        return self.n_alternating / self.n_seen if self.n_seen else None

    def see(self, training: Training, before: list[torch.Tensor], rows: torch.Tensor, *, anew: bool) -> None:
        """One step just taken; its eigenvector is found `anew`."""
        if anew or self.vector is None:
            self.vector = curvature_sharpness(hessian(lambda: training.loss(rows), training.params)).vector
            self.last = 0.0
        step = flatten(p.detach() - b for p, b in zip(training.params, before, strict=True))
        along = float(step @ self.vector / step.norm().clamp_min(1e-30))
        if self.last:
            self.n_seen += 1
            self.n_alternating += abs(along) >= ALONG and along * self.last < 0
        self.last = along


def of_step(training: Training, before: list[torch.Tensor], rows: torch.Tensor) -> dict[str, float]:
    """The directional ratio and the critical sharpness of the step just taken, on its own batch."""
    after = [p.detach().clone() for p in training.params]
    step = flatten(b - a for a, b in zip(before, after, strict=True))
    along = directional_ratio(hessian(lambda: training.loss(rows), training.params), step)

    def loss_at(multiple: float) -> torch.Tensor:
        with torch.no_grad():
            for p, a, b in zip(training.params, before, after, strict=True):
                p.copy_(a + multiple * (b - a))
            return training.loss(rows)

    found = {"critical_sharpness": critical_sharpness(loss_at).value}
    loss_at(1.0)
    return found if along is None else found | {"directional_ratio": along}


def saved() -> list[Run]:
    """The runs in the data file."""
    lines = DATA.read_text().splitlines() if DATA.exists() else []
    runs = [_read(json.loads(line)) for line in lines]
    return list({run.setting.seed: run for run in runs}.values())


def _read(line: dict) -> Run:
    setting = Setting(**line["setting"] | {"shape": tuple(line["setting"]["shape"])})
    values = tuple((int(step), _under_present_rule(setting, found)) for step, found in line["values"])
    rest = line["raised"], line["diverged"], line.get("alternating")
    return Run(setting, line["lr"], values, tuple(line["decays"]), tuple(line["rises"]), *rest)


def _under_present_rule(setting: Setting, found: dict[str, float]) -> dict[str, float]:
    """The values of the first series, which were recorded under the first rule, as the present one has them."""
    if setting.part != "minibatch" or "batch_noise" not in found:
        return found
    noise, large = found["batch_noise"], 1.0 if setting.optimizer == "SGD" else 1.0 / 19.0  # large / small
    small = found["batch_sharpness_ratio"] * (1.0 - noise / 2.0) / (noise + (1.0 - noise) * large)
    weight = min(noise * (1.0 + noise), 1.0)
    return found | {"batch_sharpness_ratio": small * (weight + (1.0 - weight) * large)}


def monitored(steps: int = 4000) -> str:
    """The run with which this began, under a default monitor: what it reports of the edge."""
    torch.manual_seed(0)
    module = DigitsMLP()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.08, momentum=0.9)
    with TemporaryDirectory() as folder:
        monitor = TopologyMonitor(verbose=False, report=False, dirpath=folder)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = L.Trainer(
            max_steps=steps, accelerator="cpu", callbacks=[monitor], enable_model_summary=False, **quiet
        )
        trainer.fit(module, DataLoader(digits(), batch_size=8, shuffle=True))
        told = [f"step {e.step}: {e.message}" for e in monitor.events if e.name.startswith("edge_of_stability")]
        return "\n".join([*told, f"phase at the end: {trainer.callback_metrics['topology/phase']:.0f}"])


def run_part(part: str, seconds: float) -> None:
    """Run what is missing of a part, until time is up."""
    began = time.perf_counter()
    DATA.parent.mkdir(exist_ok=True)
    for setting in sorted(settings(), key=lambda each: each.seed * 17 % 41):  # so that a piece has some of every kind
        if (
            setting.part != part
            or setting.seed in {run.setting.seed for run in saved()}
            or time.perf_counter() - began > seconds
        ):
            continue
        run = train(setting)
        line = asdict(run)
        line["values"] = [[step, {k: float(f"{v:.4g}") for k, v in found.items()}] for step, found in run.values]
        line["decays"], line["rises"] = ([float(f"{v:.4g}") for v in found] for found in (run.decays, run.rises))
        with DATA.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(row(_read(line)), flush=True)


def events(run: Run, kind: str) -> list[int]:
    """The steps at which the rule says that a run enters or leaves."""
    return [event.step for event in run.seen().detected if event.name == f"edge_of_stability_{kind}"]


def row(run: Run) -> str:
    """One line of the table."""
    s = run.setting
    name = (
        next(
            (n for n in ("batch_sharpness_ratio", "directional_ratio", "sharpness_ratio") if n in run.values[-1][1]), ""
        )
        if run.values
        else ""
    )
    late = statistics.median([found[name] for _, found in run.values[-15:] if name in found] or [math.nan])
    entries, exits = events(run, "enter"), events(run, "exit")
    clip = "" if s.clip is None else f", clip {s.clip:g}"
    return (
        f"| {s.part} | {s.optimizer}{clip} | {s.batch} | {run.lr:.2g} | {s.seed} | {run.truth} "
        f"| {run.persisting} | {run.held} | {'' if run.raised is None else f'{run.raised:.2f}'} "
        f"| {'' if run.alternating is None else f'{run.alternating:.2f}'} "
        f"| {late:.2f} | {entries[0] if entries else ''} | {len(exits)} |"
    )


def summary(name: str, runs: list[Run]) -> str:
    """The counts."""
    by_truth = {kind: [r for r in runs if r.truth == kind] for kind in ("inside", "outside", "between", "diverged")}
    false = [r for r in by_truth["outside"] if events(r, "enter")]
    missed = [r for r in by_truth["inside"] if not events(r, "enter")]
    flips = sum(len(events(r, "exit")) for r in by_truth["inside"])
    counts = " | ".join(str(len(found)) for found in by_truth.values())
    return (
        f"| {name} | {len(runs)} | {counts} | {len(false)} of {len(by_truth['outside'])} "
        f"| {len(missed)} of {len(by_truth['inside'])} | {flips} |"
    )


def table() -> str:
    """Counts and rows, as docs/edge.md has them."""
    runs = saved()
    lines = [
        "| part | runs | inside | outside | between | diverged | false entries | misses | flips |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    parts: dict[str, Callable[[Run], bool]] = {part: (lambda run, p=part: run.setting.part == p) for part in PARTS}
    lines += [summary(part, [run for run in runs if of(run)]) for part, of in parts.items()]
    lines += [
        "",
        "| part | optimizer | batch | lr | seed | truth | persist | held | raised | alternating | ratio late "
        "| entered | exits |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(row(run) for run in sorted(runs, key=lambda run: run.setting.seed))])


def main() -> None:
    """Run a part, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    command.add_argument("part", choices=PARTS)
    command.add_argument("--seconds", type=float, default=math.inf, help="begin no further run after so many")
    commands.add_parser("table")
    commands.add_parser("monitor", help="the run with which this began, under a default monitor")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "table":
        print(table())
    elif arguments.command == "monitor":
        print(monitored())
    else:
        run_part(arguments.part, arguments.seconds)


if __name__ == "__main__":
    main()
