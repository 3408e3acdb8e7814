"""A long training with everything on: is memory flat, are file handles, and what does the record take a step?

    python -m benchmarks.soak [--steps 50000] [--max-record-mb 20]

Every probe measures often, a logger takes rows, a worker computes homology, gates listen, checkpoints are saved. The
slope is that of a line through the resident memory after the first fifth of the steps, and over the last half of
them, where what fills up once has filled up; with its 95 % interval.
"""

import argparse
import ctypes
import gc
import logging
import math
import os
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_topo import Distortion, Persistence, Sharpness, TopologyEarlyStopping, TopologyMonitor, read_record


class Tiny(L.LightningModule):
    """A 4-8-6-3 tanh network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@dataclass
class Gauge(L.Callback):
    """Looks at the process every so many steps."""

    every: int
    steps: list[int] = field(default_factory=list)
    memory_kb: list[float] = field(default_factory=list)
    allocated_kb: list[float] = field(default_factory=list)
    handles: list[int] = field(default_factory=list)
    aloud: bool = False

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step % self.every == 0:
            gc.collect()
            self.steps.append(trainer.global_step)
            self.memory_kb.append(resident_kb())
            self.allocated_kb.append(allocated_kb())
            self.handles.append(open_handles())
            if self.aloud:
                row = f"{self.steps[-1]:>9,}{self.memory_kb[-1]:>12,.0f} KB{self.handles[-1]:>6} handles"
                print(row, file=sys.stderr, flush=True)


def resident_kb() -> float:
    """Memory of this process that is in use, in KB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


class _Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


def allocated_kb() -> float:
    """Memory that is handed out by glibc's malloc and not given back, and Python's own small objects, in KB.

    Unlike what is resident, it does not depend on which pages are kept for later. NaN where glibc does not tell.
    """
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return math.nan
    mallinfo.restype = _Mallinfo
    found = mallinfo()
    return (found.uordblks + found.hblkhd + _BLOCK_BYTES * sys.getallocatedblocks()) / 1024


_BLOCK_BYTES = 64
"""About the mean size of Python's small objects."""


def open_handles() -> int:
    """How many files, pipes and sockets this process has open, but for the fonts that matplotlib keeps."""
    return sum(not is_font(handle) for handle in Path("/proc/self/fd").iterdir())


def is_font(handle: Path) -> bool:
    """Whether a handle is that of a font, and not gone already."""
    try:
        return handle.readlink().suffix == ".ttf"
    except FileNotFoundError:  # the handle by which the folder is read
        return False


@dataclass(frozen=True, slots=True)
class Slope:
    """A least-squares line: KB per 1000 steps, half its 95 % interval, and how much of the variance it explains."""

    kb_per_1000: float
    within: float
    r2: float

    def __str__(self) -> str:
        return f"{self.kb_per_1000:.1f} ± {self.within:.1f} KB per 1000 steps (R² = {self.r2:.2f})"


def slope(steps: list[int], memory_kb: list[float]) -> Slope:
    """The line through memory over steps."""
    x, y = np.array(steps) / 1000.0, np.array(memory_kb)
    dx = x - x.mean()
    value = float(dx @ y / (dx @ dx))
    rest = y - y.mean() - value * dx
    total = float(((y - y.mean()) ** 2).sum())
    error = math.sqrt(float(rest @ rest) / max(len(x) - 2, 1) / float(dx @ dx))
    return Slope(value, 1.96 * error, 1.0 - float(rest @ rest) / total if total > 0.0 else 0.0)


def soak(
    root: Path,
    steps: int,
    samples: int = 100,
    max_record_mb: float | None = None,
    aloud: bool = False,
    seldom: int = 250,
) -> Gauge:
    """Train for so many steps with everything on; a row every `seldom` steps.

    Every row brings new figures, which cost a hundred steps each.
    """
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(64, 4), torch.randint(0, 3, (64,)))
    probes = [Distortion(every_n_steps=1), Persistence(every_n_steps=seldom, lag=5), Sharpness(every_n_steps=50)]
    gauge = Gauge(max(1, steps // samples), aloud=aloud)
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=TensorBoardLogger(root),
        log_every_n_steps=seldom,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
        callbacks=[
            TopologyMonitor(probes, verbose=False, max_overhead=None, log_groups="all", max_record_mb=max_record_mb),
            TopologyEarlyStopping("topology_breakdown", min_count=10**9),
            ModelCheckpoint(root / "checkpoints", every_n_train_steps=max(1, steps // 20)),
            gauge,
        ],
    )
    gc.collect()
    gc.freeze()  # what was there before need not be looked at again and again
    try:
        trainer.fit(Tiny(), DataLoader(data, batch_size=8))
    finally:
        gc.unfreeze()
    return gauge


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--max-record-mb", type=float)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        gauge = soak(Path(folder), arguments.steps, max_record_mb=arguments.max_record_mb, aloud=True)
        seconds = time.monotonic() - began
        settled, half = len(gauge.steps) // 5, len(gauge.steps) // 2
        settled_slope, last_slope = (slope(gauge.steps[k:], gauge.memory_kb[k:]) for k in (settled, half))
        (record,) = [path.parent for path in Path(folder).rglob("measurements.jsonl")]
        files = {path.name: path.stat().st_size for path in record.glob("*.jsonl")}
        diagrams = [path.stat().st_size for path in (record / "diagrams").iterdir()]
        seen = read_record(record)
        print(f"{arguments.steps:,} steps in {seconds:,.0f} s, {len(seen.events):,} events\n")
        print("| what | measured |\n|---|---|")
        print(f"| memory after the first fifth | {gauge.memory_kb[settled]:,.0f} KB |")
        print(f"| memory at the end | {gauge.memory_kb[-1]:,.0f} KB |")
        print(f"| slope after the first fifth | {settled_slope} |")
        print(f"| slope over the last half | {last_slope} |")
        print(f"| file handles, least and most after the first fifth | {min(gauge.handles[settled:])} to "
              f"{max(gauge.handles[settled:])} |")  # fmt: skip
        print(f"| measurements.jsonl | {files['measurements.jsonl'] / arguments.steps:,.0f} bytes per step |")
        print(f"| events.jsonl | {files['events.jsonl']:,} bytes |")
        print(f"| diagrams | {len(diagrams):,} of {np.mean(diagrams):,.0f} bytes each |")


if __name__ == "__main__":
    main()
