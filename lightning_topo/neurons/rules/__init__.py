"""What each operator does to the axes of its tensors, by family; importing a family registers its rules."""

from lightning_topo.neurons.rules import (
    contractions,
    convolutions,
    indexing,
    joins,
    normalizations,
    reductions,
    views,
)

__all__ = ["contractions", "convolutions", "indexing", "joins", "normalizations", "reductions", "views"]
