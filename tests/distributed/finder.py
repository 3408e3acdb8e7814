"""One of two processes that look for a learning rate together; started by `test_finder.py` with its rank."""

import json
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_topo import Sharpness, TopologyLRFinder
from tests.distributed.models import Net, loader, trainer

BATCH = 8
"""Of one process."""


def finder(**options):
    """A short sweep across the critical point."""
    return TopologyLRFinder(**({"min_lr": 1e-2, "max_lr": 30.0, "num_training_steps": 8} | options))


def fit(folder, callbacks, rank, mode="ddp", **options):
    """One training of two processes; returns the trained module."""
    L.seed_everything(0, verbose=False)
    module = Net(mode)
    data = loader(2 * BATCH, parts=2, part=rank)
    trainer(mode, folder, callbacks, max_epochs=1, **options).fit(module, data)
    return module


def numbers(sweep):
    """A sweep by the names of its fields."""
    names = ("lrs", "losses", "critical_ratios", "first_step_ratios", "eta_lambdas", "sharpness_ratios")
    return {name: list(getattr(sweep, name)) for name in names}


def main(out, rank):
    warnings.simplefilter("ignore")
    os.environ["LOCAL_RANK"] = str(rank)
    meeting = (out / "meeting").as_uri()
    limit = timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=limit)
    setting = finder(sharpness=Sharpness(), update_attr=True)
    module = fit(out, [setting], rank)
    plain, swept = fit(out, [], rank), fit(out, [finder(sharpness=None)], rank)
    saw = {
        "sweep": numbers(setting.sweep),
        "suggestion": setting.sweep.suggestion,
        "lr": [module.lr, module.trainer.optimizers[0].param_groups[0]["lr"]],
        "weights": [{name: p.tolist() for name, p in one.named_parameters()} for one in (plain, swept)],
    }
    try:
        fit(out, [finder()], rank, "fsdp2")
    except MisconfigurationException as error:
        saw["refused"] = str(error)
    (out / f"rank-{rank}.json").write_text(json.dumps(saw))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
