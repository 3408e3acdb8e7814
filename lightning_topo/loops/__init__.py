"""Doors to the engine for training loops other than Lightning's Trainer."""

from typing import TYPE_CHECKING, Any

from lightning_topo.loops._plain import TopologyWatch

if TYPE_CHECKING:
    from lightning_topo.loops._transformers import TopologyTrainerCallback

__all__ = ["TopologyTrainerCallback", "TopologyWatch"]


def __getattr__(name: str) -> Any:
    if name == "TopologyTrainerCallback":  # needs the extra `transformers`, which the other doors do not
        from lightning_topo.loops._transformers import TopologyTrainerCallback

        return TopologyTrainerCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
