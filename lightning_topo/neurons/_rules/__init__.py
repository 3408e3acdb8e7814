"""Rules of what each operator does to the axes of its tensors, by family; importing a family registers them."""

from lightning_topo.neurons._rules import (
    complexes,
    contractions,
    convolutions,
    draws,
    indexing,
    joins,
    matrices,
    normalizations,
    quantizers,
    reductions,
    views,
)

__all__ = [
    "complexes",
    "contractions",
    "convolutions",
    "draws",
    "indexing",
    "joins",
    "matrices",
    "normalizations",
    "quantizers",
    "reductions",
    "views",
]
