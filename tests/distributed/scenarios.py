"""Trainings of several processes, each a function of its folder and the rank: what `worker.py` goes through."""

from torch import distributed

from lightning_topo import Distortion, Persistence, Sharpness, TopologyMonitor
from tests.distributed.models import Net, loader, parts, trainer


def size():
    return distributed.get_world_size()


def fit(folder, rank, mode, *, probes=None, module=None, data=None, callbacks=(), **options):
    """One training with a monitor."""
    from tests.distributed.worker import seen

    if probes is None:
        probes = [Distortion(every_n_steps=1), Persistence(every_n_epochs=1), Sharpness(every_n_steps=2)]
    monitor = TopologyMonitor(probes, verbose=False, report=False, max_overhead=None, **options.pop("monitor", {}))
    one = trainer(mode, folder, [monitor, *callbacks], size(), **options)
    n, part = parts(mode, rank, size())
    one.fit(module or Net(mode), loader(parts=n, part=part) if data is None else data)
    return seen(one, monitor)


def plain(folder, rank, mode):
    """The default probes under one strategy."""
    return fit(folder, rank, mode)
