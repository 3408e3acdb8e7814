"""Every quantity that this package measures, one row each: what it is, which end is bad, and what is kept of it.

Whoever publishes, draws, thins or summarises a value asks this table. A new quantity is one new row.
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
