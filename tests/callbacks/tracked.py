"""Monitors and trainings that give the trackers something to take."""

import torch

from lightning_topo import Distortion, Persistence, Sharpness, TopologyMonitor
from tests.callbacks.training import Classifier

STEPS = [Distortion(every_n_steps=1)]


def dense(**options):
    """A monitor that measures everything at every opportunity and sends all of it at once."""
    probes = [Distortion(every_n_steps=1), Persistence(every_n_epochs=1), Sharpness(every_n_steps=4)]
    defaults = {"probes": probes, "report": False, "on_error": "raise", "max_overhead": None, "log_groups": "all"}
    return TopologyMonitor(**(defaults | options))


def hot(**options):
    """A training that breaks down: every step is far beyond the critical point."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Classifier(**({"lr": 30.0} | options))
