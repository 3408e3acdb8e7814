"""Questions to the table, by the name of a value and the probe that measured it."""

import re

from lightning_topo.quantities._reserved import RESERVED_PROBES
from lightning_topo.quantities._row import Direction, Quantity
from lightning_topo.quantities._table import QUANTITIES

OUR_PROBES = frozenset(row.probe for row in QUANTITIES.values()) | RESERVED_PROBES
"""The names of the probes of this package: a probe of any other name is a user's own."""

_SUFFIX = re.compile(r"_\d+$")
_UNPUBLISHED_PROBES = frozenset({"validation", "schedule", "rewind", "record", "row"})


def quantity(name: str, probe: str | None = None) -> Quantity | None:
    """Return the description of a value by its name; None if there is none. `betti_2` is described as `betti_k`.

    `probe` is the name of the probe that measured the value. The values of a user's own probe have no description.

    >>> quantity("betti_2").title, quantity("residual", probe="my_fit"), quantity("weight_norm")
    ('Betti number b', None, None)
    """
    if probe is not None and probe not in OUR_PROBES:
        return None
    found = QUANTITIES.get(name)
    return found if found is not None else QUANTITIES.get(_SUFFIX.sub("_k", name))


def is_published(name: str, probe: str) -> bool:
    """Whether a probe's value goes to trackers and metrics, and not to the record alone.

    A user's probe publishes all its values. The probes of this package do not publish details of the computation, such
    as `residual`.

    >>> is_published("residual", "sharpness"), is_published("residual", "my_fit"), is_published("loss", "training")
    (False, True, False)
    """
    if probe in _UNPUBLISHED_PROBES:
        return False
    row = quantity(name, probe)
    return row.published if row is not None else probe not in RESERVED_PROBES


def direction(name: str, probe: str | None = None) -> Direction:
    """Return which end of a quantity's range is bad; `NEUTRAL` if `quantity(name, probe)` is None.

    >>> direction("total_contraction")
    <Direction.LOW_IS_BAD: 'low'>
    """
    row = quantity(name, probe)
    return Direction.NEUTRAL if row is None else row.direction
