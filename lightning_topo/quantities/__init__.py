"""The table of all quantities that this package measures: what each is, which end is bad, and which value is kept.

Code that publishes, draws, thins or summarises a value looks it up here. A new quantity is one new row.
"""

from lightning_topo.quantities._asking import OUR_PROBES, direction, is_published, quantity
from lightning_topo.quantities._reserved import RESERVED_PROBES, RESERVED_VALUES, WORST
from lightning_topo.quantities._row import Direction, Keep, Quantity, Scope
from lightning_topo.quantities._table import QUANTITIES

__all__ = [
    "OUR_PROBES",
    "QUANTITIES",
    "RESERVED_PROBES",
    "RESERVED_VALUES",
    "WORST",
    "Direction",
    "Keep",
    "Quantity",
    "Scope",
    "direction",
    "is_published",
    "quantity",
]
