"""Which tracker a logger is given to."""

from typing import Any

from lightning_topo.outputs.trackers._csv import CSVTracker
from lightning_topo.outputs.trackers._mlflow import MLFlowTracker
from lightning_topo.outputs.trackers._tensorboard import TensorBoardTracker
from lightning_topo.outputs.trackers._tracker import Tracker
from lightning_topo.outputs.trackers._trackio import TrackioTracker
from lightning_topo.outputs.trackers._wandb import WandbTracker

_BY_CLASS: dict[str, type[Tracker]] = {
    "WandbLogger": WandbTracker,
    "TensorBoardLogger": TensorBoardTracker,
    "MLFlowLogger": MLFlowTracker,
    "TrackioLogger": TrackioTracker,
    "CSVLogger": CSVTracker,
}


def tracker_of(logger: Any) -> Tracker:
    """The tracker for a Lightning logger, chosen by the name of the logger's class or of one of its base classes.

    Names are compared, not classes, because `lightning` and `pytorch_lightning` each have their own.
    """
    for cls in type(logger).__mro__:
        if cls.__name__ in _BY_CLASS:
            return _BY_CLASS[cls.__name__](logger)
    return Tracker(logger)
