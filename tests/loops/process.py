"""One of two processes that train together in a loop of their own; writes down what it saw."""

import json
import os
import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from lightning_topo import Distortion, TopologyWatch
from tests.loops.loops import Net, batches, options, sgd


def main(out):
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group("gloo", rank=rank, world_size=size)
    runs = ((0.1, None), (30.0, 0.9), (30.0, None))
    saw = {f"{lr}-{max_ratio}": trained(Path(out), lr, max_ratio, rank, size) for lr, max_ratio in runs}
    (Path(out) / f"rank-{rank}.json").write_text(json.dumps(saw))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def trained(out, lr, max_ratio, rank, size):
    """What one training saw; its wrapped model ends before the group of processes that it talks through."""
    bare = Net()
    model, optimizer = DistributedDataParallel(bare), sgd(bare, lr)
    asked = options(probes=[Distortion(every_n_steps=3)]) | {"max_ratio": max_ratio, "stop_on": "topology_breakdown"}
    n_steps = 0
    with TopologyWatch(model, optimizer, dirpath=out / f"{lr}-{max_ratio}" / "topology", **asked) as watch:
        for batch in batches():
            mine = {name: values[rank::size] for name, values in batch.items()}
            with watch.step():
                optimizer.zero_grad()
                watch.loss(model(**mine)["loss"]).backward()
                optimizer.step()
            n_steps += 1
            if watch.should_stop:
                break
        watch.end_epoch()
    return {
        "steps": n_steps,
        "events": [(str(event.name), event.step, event.group) for event in watch.events],
        "metrics": {k: v for k, v in watch.metrics.items() if k != "topology/overhead"},
        "held": None if watch.guard is None else watch.guard.n_held,
        "dirpath": watch.dirpath is not None,
        "weights": bare.net[0].weight.tolist(),
    }


if __name__ == "__main__":
    main(sys.argv[1])
