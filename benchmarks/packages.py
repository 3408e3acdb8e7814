"""What the default monitor changes and costs in trainings of models that packages bring: bits, time, memory, events.

    python -m benchmarks.packages [--steps 100] [--repeats 3] [--only GPT2] [--out build/packages.jsonl] [--table]
    python -m benchmarks.packages --models rare [...]     # of less usual makes, for which more packages are needed
    python -m benchmarks.packages --device cuda --models large [...]     # models of their usual sizes
    python -m benchmarks.packages --device cuda --models large --kernels usual [...]     # as they train: no bits
    python -m benchmarks.packages --callback guard [...]

Each training runs in processes of its own, without and with `TopologyMonitor()`, from `fit` to its return. Bits are
those of the module's and optimizers' state, of all gradients and of the random states of torch, NumPy and Python; they
must be equal in all runs, unless the runs without us differ among themselves, as the usual kernels of a GPU have it.
Time is of the CPU, that of processes that we start included; memory is the peak of the process, on a GPU of what torch
has allocated there. Both are the least of the repeats: what other work on the machine adds differs from run to run.
Trainings in the file are not run again; it also holds what the monitor said of measurements that failed.
"""

import argparse
import gc
import hashlib
import importlib.util
import json
import math
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from benchmarks.packages_models import TRAININGS, Training
from benchmarks.packages_models_gpu import LARGE_TRAININGS
from benchmarks.packages_models_rare import RARE_TRAININGS
from lightning_topo import TopologyMonitor, TopologyStepGuard

ROOT = Path(__file__).resolve().parent.parent
SETTLED = 20
"""Steps from here on are timed apart: the start is over."""
EQUAL = {True: "yes", False: "NO", None: "cannot say"}
SETS = {"usual": TRAININGS, "rare": RARE_TRAININGS, "large": LARGE_TRAININGS}


@dataclass(frozen=True, slots=True)
class Setting:
    """What all trainings of a table have in common."""

    steps: int = 100
    device: str = "cpu"
    callback: str = "monitor"
    models: str = "usual"
    kernels: str = "deterministic"

    @property
    def trainings(self) -> dict[str, Training]:
        """By name."""
        return SETS[self.models]


@dataclass(frozen=True, slots=True)
class Run:
    """One training: what it ended with and what it took."""

    bits: str
    cpu_s: float
    wall_s: float
    peak_mb: float
    steps: int
    loss: float | None
    first_s: float = 0.0
    later_s: float = 0.0
    groups: int = 0
    verified: int = 0
    coverage: float | None = None
    events: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A training without and with the monitor."""

    name: str
    step_ms: float
    equal: bool | None
    cpu_ratio: float
    wall_ratio: float
    memory_ratio: float
    start_s: float
    start_steps: float
    later_ratio: float
    groups: int
    verified: int
    coverage: float | None
    events: dict[str, int]
    failures: tuple[str, ...] = ()


class _Course(L.Callback):
    """The last loss that a step returned, and the wall time at the end of a few steps."""

    def __init__(self) -> None:
        self.last: Any = None
        self.marks: dict[int, float] = {}

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: object) -> None:
        if isinstance(outputs, dict) and outputs.get("loss") is not None:
            self.last = outputs["loss"].detach()
        step = trainer.global_step if self.marks else 1  # several optimizers may have stepped in the first batch
        passed = [mark for mark in (1, SETTLED, trainer.max_steps) if mark <= step and mark not in self.marks]
        if passed:  # a batch may hold many steps
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            self.marks |= dict.fromkeys(passed, time.perf_counter())


def run(name: str, setting: Setting, watched: bool) -> Run:
    """Train once, here."""
    warnings.filterwarnings("ignore")
    on_gpu = setting.device == "cuda"
    if on_gpu and setting.kernels == "deterministic":
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True, warn_only=True)
    L.seed_everything(0, verbose=False)
    training = setting.trainings[name]
    module, loader = training.build()
    monitor = TopologyMonitor() if watched and setting.callback == "monitor" else None
    guard = TopologyStepGuard(0.9) if watched and setting.callback == "guard" else None
    course = _Course()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_steps=setting.steps,
            max_epochs=-1,
            accelerator="gpu" if on_gpu else "cpu",
            devices=1,
            logger=L.pytorch.loggers.CSVLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[*filter(None, [monitor, guard]), course],
            **training.trainer,
        )
        gc.collect()  # the imports' garbage is nobody's here, and to look at it takes longer than several steps
        began, cpu = time.perf_counter(), _cpu_seconds()
        trainer.fit(module, loader)
        wall, cpu = time.perf_counter() - began, _cpu_seconds() - cpu
    found: dict[str, Any] = {}
    if monitor is not None:
        found = {
            "groups": len(monitor.groups),
            "verified": sum(group.status == "verified" for group in monitor.groups),
            "coverage": _number(trainer.callback_metrics.get("topology/coverage")),
            "events": tuple(event.name for event in monitor.events),
            "failures": tuple(event.message for event in monitor.events if event.name == "probe_failed"),
        }
    return Run(
        _bits(trainer, module),
        cpu,
        wall,
        torch.cuda.max_memory_allocated() / 2**20 if on_gpu else _resident_mb(),
        trainer.global_step,
        _number(course.last),
        course.marks.get(1, began) - began,
        max(course.marks.values(), default=began) - course.marks.get(SETTLED, began),
        **found,
    )


def compare(name: str, setting: Setting, repeats: int) -> Row:
    """Train without and with the monitor, in turns, each time in a separate process."""
    runs = {mode: list[Run]() for mode in ("without", "with")}
    for _ in range(repeats):
        for mode, done in runs.items():
            done.append(_child(name, setting, watched=mode == "with"))
    watched = runs["with"][0]

    def ratio(field: str) -> float:
        with_monitor, without = (min(getattr(run, field) for run in runs[mode]) for mode in ("with", "without"))
        return with_monitor / without if without else math.nan  # no step is as late as that

    step_s = min(run.wall_s for run in runs["without"]) / max(watched.steps, 1)
    start_s = min(run.first_s for run in runs["with"]) - min(run.first_s for run in runs["without"])
    return Row(
        name,
        1000 * step_s,
        None
        if len({run.bits for run in runs["without"]}) > 1
        else len({r.bits for d in runs.values() for r in d}) == 1,
        ratio("cpu_s"),
        ratio("wall_s"),
        ratio("peak_mb"),
        start_s,
        start_s / step_s,
        ratio("later_s"),
        watched.groups,
        watched.verified,
        watched.coverage,
        {event: watched.events.count(event) for event in dict.fromkeys(watched.events)},
        watched.failures,
    )


def table(rows: list[Row]) -> Iterator[str]:
    """The rows as Markdown, with their medians."""
    heads = ["training", "ms a step", "bits equal", "CPU time", "wall time", "start, steps", "after step 20", "memory"]
    yield f"| {' | '.join([*heads, 'groups verified', 'certified', 'events'])} |"
    yield "|---" * (len(heads) + 3) + "|"
    for row in rows:
        events = ", ".join(f"{name} x {n}" if n > 1 else name for name, n in row.events.items()) or "none"
        covered = "" if row.coverage is None else f"{row.coverage:.3f}"
        yield (
            f"| {row.name} | {row.step_ms:.0f} | {EQUAL[row.equal]} | {row.cpu_ratio:.2f} | "
            f"{row.wall_ratio:.2f} | {row.start_steps:.1f} | {row.later_ratio:.2f} | "
            f"{row.memory_ratio:.2f} | {row.verified} of {row.groups} | {covered} | {events} |"
        )
    if not rows:
        return
    fields = ("cpu_ratio", "wall_ratio", "later_ratio", "memory_ratio")
    cpu, wall, later, memory = (statistics.median(getattr(row, field) for row in rows) for field in fields)
    equal = sum(row.equal is True for row in rows)
    ratios = f"{cpu:.2f} | {wall:.2f} | | {later:.2f} | {memory:.2f}"
    yield f"| median of {len(rows)} | | {equal} of {len(rows)} | {ratios} | | | |"


def _child(name: str, setting: Setting, *, watched: bool) -> Run:
    """A training in a separate process, forked from one that has imported what all need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning", "lightning_topo.callbacks", "benchmarks.packages_models"])
    receives, sends = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sends, name, setting, watched))
    process.start()
    sends.close()
    try:
        answer = receives.recv()
    except EOFError:
        answer = "its process ended"
    process.join()
    if not isinstance(answer, Run):
        raise RuntimeError(f"{name}, {'with' if watched else 'without'} the monitor, ended without a result: {answer}")
    return answer


def _answer(sends: Any, name: str, setting: Setting, watched: bool) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        answer: Run | str = run(name, setting, watched)
    except Exception:
        answer = traceback.format_exc()[-2000:]
    sends.send(answer)


def _resident_mb() -> float:
    """The most that this process has held; the fork server's own peak does not count."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _bits(trainer: L.Trainer, module: L.LightningModule) -> str:
    """One digest of everything that a monitor must leave as it was."""
    digest = hashlib.sha256()
    _add(digest, module.state_dict())
    _add(digest, {name: p.grad for name, p in module.named_parameters()})
    _add(digest, [optimizer.state_dict() for optimizer in trainer.optimizers])
    _add(digest, [torch.get_rng_state(), *_of_devices(), np.random.get_state()[1], random.getstate()])  # noqa: NPY002 - the state of all
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    """Take a value in, whatever it holds."""
    if isinstance(value, torch.Tensor):
        digest.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            if value.numel()
            else b"empty"
        )
    elif isinstance(value, dict):
        for key in value:
            digest.update(repr(key).encode())
            _add(digest, value[key])
    elif isinstance(value, (list, tuple)):
        for one in value:
            _add(digest, one)
    else:
        digest.update(repr(value).encode())


def _of_devices() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _cpu_seconds() -> float:
    """CPU time of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _kept(path: Path) -> list[Row]:
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="of the trainings those whose name holds this")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "packages.jsonl")
    parser.add_argument("--table", action="store_true", help="print what has been run")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--models", default="usual", choices=list(SETS))
    parser.add_argument("--callback", default="monitor", choices=["monitor", "guard"])
    parser.add_argument("--kernels", default="deterministic", choices=["deterministic", "usual"], help="of a GPU")
    arguments = parser.parse_args()
    setting = Setting(arguments.steps, arguments.device, arguments.callback, arguments.models, arguments.kernels)
    rows = _kept(arguments.out)
    for name, training in setting.trainings.items():
        missing = [package for package in training.requires if importlib.util.find_spec(package) is None]
        if arguments.table or arguments.only not in name or any(row.name == name for row in rows):
            continue
        if missing:
            print(f"{name}: left out, {', '.join(missing)} is not installed", file=sys.stderr)
            continue
        print(f"{name}: {2 * arguments.repeats} trainings of {arguments.steps} steps ...", file=sys.stderr)
        rows.append(compare(name, setting, arguments.repeats))
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("a") as file:
            file.write(json.dumps(asdict(rows[-1])) + "\n")
        print(f"{name}: {rows[-1].cpu_ratio:.2f} times the CPU time", file=sys.stderr)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
