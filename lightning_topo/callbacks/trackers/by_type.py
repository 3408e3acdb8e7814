"""Which tracker a logger is given to."""

from lightning.pytorch.loggers import Logger

from lightning_topo.callbacks.trackers.csv import CSVTracker
from lightning_topo.callbacks.trackers.mlflow import MLFlowTracker
from lightning_topo.callbacks.trackers.tensorboard import TensorBoardTracker
from lightning_topo.callbacks.trackers.tracker import Tracker
from lightning_topo.callbacks.trackers.wandb import WandbTracker

_BY_CLASS: dict[str, type[Tracker]] = {
    "WandbLogger": WandbTracker,
    "TensorBoardLogger": TensorBoardTracker,
    "MLFlowLogger": MLFlowTracker,
    "CSVLogger": CSVTracker,
}


def tracker_of(logger: Logger) -> Tracker:
    """The tracker for a logger of Lightning, by the name of its class or of one that it extends.

    By name, because `lightning` and `pytorch_lightning` each have their own classes.
    """
    for cls in type(logger).__mro__:
        if cls.__name__ in _BY_CLASS:
            return _BY_CLASS[cls.__name__](logger)
    return Tracker(logger)
