"""Experiment trackers: what each is given beside the values, by the type of Lightning's logger."""

from lightning_topo.outputs.trackers._by_type import tracker_of
from lightning_topo.outputs.trackers._output import TrackerOutput
from lightning_topo.outputs.trackers._tracker import RunFacts, Tracker

__all__ = ["RunFacts", "Tracker", "TrackerOutput", "tracker_of"]
