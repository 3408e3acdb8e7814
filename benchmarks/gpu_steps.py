"""What the first steps of a training of usual size take on a GPU, without and with the default monitor.

    python -m benchmarks.gpu_steps [--only GPT-2] [--steps 40] [--out build/gpu_steps.txt]

Trainings of one model take turns in one process: with the monitor, without, with it again. The first one loads the
kernels, so that its first step is longer than any later one's. Times are wall times between steps after which the
device was waited for; "peak" is the most that torch has allocated. The kernels are those that users have.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch

from benchmarks.packages_models import Training
from benchmarks.packages_models_gpu import LARGE_TRAININGS
from lightning_topo import TopologyMonitor

EARLY, SETTLED = 4, 20
"""From the first of these steps to the second, and from there on, the device is not waited for in between."""


class _Clock(L.Callback):
    def __init__(self) -> None:
        self.at: dict[int, float] = {}

    def mark(self, step: int) -> None:
        torch.cuda.synchronize()
        self.at[step] = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.mark(0)

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step <= EARLY or trainer.global_step in (SETTLED, trainer.max_steps):
            self.mark(trainer.global_step)


def train(name: str, training: Training, steps: int, *, watched: bool) -> str:
    """One training; a line of what its steps took."""
    torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    module, data = training.build()
    monitor, clock = TopologyMonitor(verbose=False), _Clock()
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"default_root_dir": folder, "logger": L.pytorch.loggers.CSVLogger(folder)}
        quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        options |= {"max_steps": steps, "max_epochs": -1, "accelerator": "gpu", "devices": 1} | quiet | training.trainer
        L.Trainer(**options, callbacks=[*([monitor] if watched else []), clock]).fit(module, data)
    at = clock.at
    each = [1000 * (at[k + 1] - at[k]) for k in range(EARLY)]
    early, late = (
        1000 * (at[stop] - at[start]) / (stop - start) for start, stop in ((EARLY, SETTLED), (SETTLED, steps))
    )
    peak = torch.cuda.max_memory_allocated() / 2**20
    following = ", ".join(f"{ms:.0f}" for ms in each[1:])
    line = (
        f"{name}, {'with' if watched else 'without'}: first step {each[0]:.0f} ms, next {following}, "
        f"to step {SETTLED} {early:.1f} each, from there {late:.1f}, peak {peak:.0f} MB"
    )
    if not watched:
        return line
    verified = sum(group.status == "verified" for group in monitor.groups)
    failed = [event.message for event in monitor.events if event.name == "probe_failed"]
    return f"{line}, verified {verified} of {len(monitor.groups)}" + "".join(f"\n    {message}" for message in failed)


def main() -> None:
    """Train each model three times, and print the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="of the trainings those whose name holds this")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("build") / "gpu_steps.txt")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for name, training in LARGE_TRAININGS.items():
        if arguments.only not in name:
            continue
        for watched in (True, False, True):
            line = train(name, training, arguments.steps, watched=watched)
            print(line, flush=True)
            with arguments.out.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
