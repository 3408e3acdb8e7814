"""Experiment trackers: what each is given beside the values, by the type of Lightning's logger."""

from lightning_topo.outputs.trackers.by_type import tracker_of
from lightning_topo.outputs.trackers.output import TrackerOutput
from lightning_topo.outputs.trackers.tracker import RunFacts, Tracker

__all__ = ["RunFacts", "Tracker", "TrackerOutput", "tracker_of"]
