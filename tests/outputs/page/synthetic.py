"""Runs that look like real ones, written through the record's own writer."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lightning_topo.homology import Bars, PersistenceDiagram
from lightning_topo.measurement import Measurement
from lightning_topo.outputs.record import RecordWriter, RunRecord, read_record
from lightning_topo.phases import EventName, Severity, TopologyEvent


def ring_diagram(n: int, radius: float, noise: float, seed: int, n_loops: int = 6) -> PersistenceDiagram:
    """The diagram of about a noisy ring of n neurons: short pieces, a few short loops and a long one."""
    rng = np.random.default_rng(seed)
    deaths = np.sort(radius * (0.3 + noise * rng.gamma(2.0, 0.5, n - 1)))
    births = radius * (0.5 + noise * rng.gamma(2.0, 0.4, n_loops))
    ends = births * (1.0 + 0.3 * rng.random(n_loops))
    ends[0] = 1.9 * radius
    h0 = torch.tensor(np.append(deaths, np.inf), dtype=torch.float32)
    h1 = Bars(torch.tensor(births, dtype=torch.float32), torch.tensor(ends, dtype=torch.float32))
    return PersistenceDiagram((Bars(torch.zeros(n), h0), h1), n_points=n, diameter=2.2 * radius)


def distortion(step: int, group: str, ratio: float, low: float, high: float, n_neurons: int = 64) -> Measurement:
    values = {
        "critical_ratio": ratio,
        "contraction": 1.0 - 0.8 * min(ratio, 1.0),
        "expansion": 1.0 + 0.9 * ratio,
        "log_distortion": math.log((1.0 + 0.9 * ratio) / max(1e-3, 1.0 - 0.8 * min(ratio, 1.0))),
        "critical_i": 3.0,
        "critical_j": 11.0,
        "total_contraction": low,
        "total_expansion": high,
        "total_log_distortion": math.log(high / low) if low > 0.0 else math.inf,
        "distinct_neurons": float(n_neurons),
    }
    return Measurement(step, step // 100, "distortion", group, values)


def persistence_values(step: int, group: str, diagram: PersistenceDiagram, change: float | None) -> Measurement:
    scale = 0.25 * diagram.diameter
    values = {f"betti_{k}": float(((diagram[k].births <= scale) & (scale < diagram[k].deaths)).sum()) for k in (0, 1)}
    values |= {"total_persistence_0": 20.0, "total_persistence_1": 2.0, "entropy_0": 3.9, "entropy_1": 1.2}
    if change is not None:
        values |= {"log_bottleneck_0": change, "log_bottleneck_1": 1.3 * change, "log_bottleneck_bound": 2.0 * change}
    return Measurement(step, step // 100, "persistence", group, values)


FATE = {
    "measured_neurons": 64.0, "independent_neurons": 60.0, "vanishing_neurons": 0.0, "aligned_clusters": 64.0,
    "effective_neurons": 41.0, "largest_multiplicity": 5.0, "merged_classes": 10.0, "merged_neurons": 27.0,
    **{f"multiplicity_{k}": size for k, size in enumerate((5.0, 4.0, 3.0, 3.0, 2.0, 2.0, 2.0, 2.0), start=1)},
}  # fmt: skip


def demo_run(
    folder: Path,
    *,
    groups: Sequence[str] = ("net.0", "net.2"),
    n_steps: int = 800,
    edge_at: int | None = 240,
    breakdown_at: int | None = None,
    every_capture: int = 25,
    seed: int = 0,
) -> RunRecord:
    """A run like the demo's: sharpening up to the edge of stability, r far below 1, or with a breakdown."""
    rng = np.random.default_rng(seed)
    writer = RecordWriter.open(folder)
    loss = 0.5
    for step in range(n_steps + 1):
        progress = step / max(1, n_steps)
        if step % 25 == 0:
            reach = min(1.03, 0.35 + 0.65 * step / edge_at) if edge_at else 0.12 + 0.28 * progress
            ratio = reach * (1.0 + 0.015 * rng.standard_normal())
            values = {
                "sharpness": ratio * 6.6, "sharpness_ratio": ratio, "eta_lambda": 2.0 * ratio,
                "residual": 0.01, "n_hvp": 5.0, "converged": 1.0,
            }  # fmt: skip
            writer.measurement(Measurement(step, step // 100, "sharpness", "", values))
        for i, group in enumerate(groups):
            r = (
                0.0
                if step == 0
                else 0.012 * (1 + i) * (0.4 + math.exp(-step / 60)) * math.exp(0.25 * rng.standard_normal())
            )
            if breakdown_at is not None and i == 0 and breakdown_at <= step < breakdown_at + 40:
                r = 1.31 * math.exp(0.1 * rng.standard_normal()) if step > breakdown_at else 1.31
            low, high = 1.0 - 0.35 * progress**0.5 / (1 + i), 1.0 + 2.8 * progress**0.7 / (1 + i)
            writer.measurement(distortion(step, group, r, low, high))
        if step % every_capture == 0:
            diagrams = {
                group: ring_diagram(64, 1.0 + 1.5 * progress * (i + 1), 0.25 + 0.3 * progress, 1000 * i + step, 5 + i)
                for i, group in enumerate(groups)
            }
            writer.diagrams(step, diagrams)
            for group, diagram in diagrams.items():
                change = None if step == 0 else 0.05 + 0.05 * rng.random()
                writer.measurement(persistence_values(step, group, diagram, change))
                writer.measurement(Measurement(step, step // 100, "fate", group, FATE))
        if step:
            loss = 0.5 * math.exp(-step / 130) + 0.004 + (0.004 * rng.random() if edge_at and step > edge_at else 0.0)
            rate = {"learning_rate": 0.3} if step == 1 else {}
            writer.measurement(Measurement(step, step // 100, "training", "", {"loss": loss} | rate))
            if step % 100 == 0:
                logged = {"val/loss": 1.2 * loss, "val/acc": 1.0 - loss}
                writer.measurement(Measurement(step, step // 100, "validation", "", logged))
    writer.close()
    return read_record(writer.dirpath)


def large_run(folder: Path, n_groups: int = 50, n_captures: int = 500, n_neurons: int = 64) -> RunRecord:
    """Many groups, captured often, r up to 0.3."""
    rng = np.random.default_rng(7)
    groups = [
        f"transformer.layers.{i // 3}.{('attention.heads', 'mlp.up', 'mlp.down')[i % 3]}" for i in range(n_groups)
    ]
    writer = RecordWriter.open(folder)
    for capture in range(n_captures):
        step = 20 * capture
        progress = capture / n_captures
        diagrams = {}
        for i, group in enumerate(groups):
            r = 0.01 * (1 + 0.3 * i) * math.exp(-4 * progress + 0.3 * rng.standard_normal())
            writer.measurement(distortion(step, group, r, 1 - 0.3 * progress, 1 + (1 + i / 5) * progress))
            diagrams[group] = ring_diagram(n_neurons, 1 + progress * i / 8, 0.3, capture * n_groups + i, 20)
            change = None if capture == 0 else 0.02 + 0.03 * rng.random()
            writer.measurement(persistence_values(step, group, diagrams[group], change))
        writer.diagrams(step, diagrams)
        ratio = min(0.9, 0.2 + progress)
        values = {"sharpness": 9.0, "sharpness_ratio": ratio, "eta_lambda": 0.4 * ratio, "residual": 0.1, "n_hvp": 4.0}
        writer.measurement(Measurement(step, capture // 10, "sharpness", "", values))
        writer.measurement(
            Measurement(step, capture // 10, "training", "", {"loss": 4.0 * math.exp(-3 * progress) + 1.0})
        )
    writer.close()
    return read_record(writer.dirpath)


HOSTILE = (
    "</script><script>alert(1)</script>",
    "<b>x</b> & &lt;i&gt; %{x}",
    "__proto__",
    "层.注意力/\u202eq",
    "n" * 300,
)


def hostile_run(folder: Path) -> RunRecord:
    """Names that are markup, or very long, and numbers that are not finite."""
    writer = RecordWriter.open(folder)
    for step in range(12):
        for i, group in enumerate(HOSTILE):
            ratio = (0.01, math.nan, math.inf, 0.5, 2.0)[(step + i) % 5] if step > 4 else 0.02 * (i + 1)
            low, high = ((0.9, 1.2), (1e-300, 1e300), (0.0, math.inf))[step // 4]
            writer.measurement(distortion(step, group, ratio, low, high))
        writer.measurement(Measurement(step, 0, "training", "", {"loss": math.nan if step == 6 else 1.0 / (step + 1)}))
    writer.diagrams(11, {group: ring_diagram(8, 1.0, 0.2, 3, 2) for group in HOSTILE})
    message = 'The queue was full </td><script>alert(2)</script> "quoted"'
    writer.event(TopologyEvent(EventName.GAP, 5, 0, HOSTILE[0], Severity.INFO, None, None, message, "<img src=x>"))
    writer.event(
        TopologyEvent(EventName.PROBE_FAILED, 7, 0, "", Severity.WARN, None, None, "NaN in the cloud", "Check it")
    )
    writer.close()
    return read_record(writer.dirpath)


def empty_run(folder: Path) -> RunRecord:
    """A run that has not measured anything."""
    writer = RecordWriter.open(folder)
    writer.close()
    return read_record(writer.dirpath)


def one_step_run(folder: Path) -> RunRecord:
    """The initial network alone, of one group."""
    writer = RecordWriter.open(folder)
    writer.measurement(distortion(0, "net.0", 0.0, 1.0, 1.0))
    writer.close()
    return read_record(writer.dirpath)
