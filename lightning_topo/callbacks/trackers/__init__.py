"""Experiment trackers: what each is given beside the values, by the type of Lightning's logger."""

from lightning_topo.callbacks.trackers.by_type import tracker_of
from lightning_topo.callbacks.trackers.tracker import RunFacts, Tracker

__all__ = ["RunFacts", "Tracker", "tracker_of"]
