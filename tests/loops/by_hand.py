"""A loop as a user writes it, watched or not, and what it does to the weights."""

import torch

from lightning_topo import TopologyWatch
from tests.loops.loops import GROUPS, batches, options

LIMIT = 0.9


def watching(model, optimizers, folder, **others):
    return TopologyWatch(model, optimizers, dirpath=folder / "topology", **options(**others))


def train(model, optimizer, watch=None, *, epochs=1, kicks=(), lr=0.1, accumulate=1):
    """The loop that a user writes."""
    step = 0
    for _ in range(epochs):
        for k, batch in enumerate(batches()):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = 3000.0 if step in kicks else lr
            if watch is None:
                iterate(model, optimizer, batch, k, accumulate, lambda loss: loss)
                continue
            with watch.step():
                iterate(model, optimizer, batch, k, accumulate, lambda loss: watch.loss(loss, scale=1 / accumulate))
            if watch.should_stop:
                return step
        if watch is not None:
            watch.end_epoch()
    return step


def iterate(model, optimizer, batch, k, accumulate, look):
    look(model(**batch)["loss"] / accumulate).backward()
    if (k + 1) % accumulate == 0:
        optimizer.step()
        optimizer.zero_grad()


def copies(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def ratio(before, after):
    """The worst group's r in float64, from what is stored."""
    found = []
    for group in GROUPS:
        x, y = (group.gather(tensors).double() for tensors in (before, after))
        i, j = torch.triu_indices(group.n, group.n, 1)
        found.append(float((((y - x)[i] - (y - x)[j]).norm(dim=1) / (x[i] - x[j]).norm(dim=1)).max()))
    return max(found)


def by_step(watch, probe):
    return [m.step for m in watch.record.measurements if m.probe == probe]


def lines(watch):
    """What does not depend on the captures before: those of a watch's first step, or where a bound asked for one."""
    return [
        (
            m.step,
            m.epoch,
            m.probe,
            m.group,
            {k: v for k, v in m.values.items() if not k.startswith(("log_bottleneck", "span_"))},
        )
        for m in watch.record.measurements
        if m.probe != "coverage" and (m.probe != "distortion" or m.step % 3 == 0)
    ]
