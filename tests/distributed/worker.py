"""One process of several: goes through scenarios, one training after the other, and writes down what it saw.

Run by `processes.py` as `python worker.py OUT SCENARIO ...`, with the environment of a launched process.
"""

import dataclasses
import json
import os
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch

from tests.distributed import scenarios


def main(out, names):
    rank, size = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    warnings.simplefilter("ignore")
    launched = {name: os.environ[name] for name in ("WORLD_SIZE", "LOCAL_RANK", "RANK", "NODE_RANK")}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=60))
    for name in names:
        folder = Path(out) / name
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.update(launched)  # Lightning takes them away at the end of each training
        L.seed_everything(0, verbose=False)
        try:
            saw = getattr(scenarios, name.partition("-")[0])(folder, rank, *name.split("-")[1:])
        except Exception:
            saw = {"error": traceback.format_exc()}
        (folder / f"rank-{rank}.json").write_text(json.dumps(saw))
        torch.distributed.barrier()
    # gloo aborts a process that leaves while its peer still talks
    torch.distributed.destroy_process_group()


class End(L.Callback):
    """Takes a monitor's snapshots at the end of a training, before it lets them go."""

    def __init__(self, monitor):
        self.monitor, self.snapshots = monitor, None

    def on_train_end(self, trainer, module):
        if self.monitor.watch is not None:
            self.snapshots = self.monitor.watch._measuring.snapshots


def seen(trainer, monitor):
    """What a process knows at the end of a training; of snapshots only where it had an `End`."""
    snapshots = next((callback.snapshots for callback in trainer.callbacks if isinstance(callback, End)), None)
    before = None if snapshots is None else snapshots._sharded_before
    return {
        "metrics": {k: float(v) for k, v in sorted(trainer.callback_metrics.items()) if k.startswith("topology/")},
        "events": [dataclasses.asdict(event) for event in monitor.events],
        "groups": [group.name for group in monitor.groups],
        "status": [group.status for group in monitor.groups],
        "sharding": None if snapshots is None else snapshots.sharding,
        "reference": [] if snapshots is None else sorted(snapshots.reference or ()),
        "before": [] if before is None else sorted(before[1]),
        "steps": trainer.fit_loop.epoch_loop._batches_that_stepped,
    }


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
