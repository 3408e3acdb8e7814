"""Doors to the engine for training loops other than Lightning's Trainer."""

from lightning_topo.loops.plain import TopologyWatch

__all__ = ["TopologyWatch"]
