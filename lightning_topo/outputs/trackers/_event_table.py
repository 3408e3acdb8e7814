"""Events as the rows of a tracker's table."""

import math
from typing import Any

from lightning_topo.phases import TopologyEvent

COLUMNS = ("step", "epoch", "event", "group", "severity", "value", "threshold", "message", "remedy")


def cells(event: TopologyEvent) -> tuple[Any, ...]:
    """One event's row, in the order of `COLUMNS`."""
    return (
        event.step,
        event.epoch,
        str(event.name),
        event.group,
        str(event.severity),
        _finite(event.value),
        _finite(event.threshold),
        event.message,
        event.remedy,
    )


def title(event: TopologyEvent) -> str:
    """An alert's title: the event, and the group it befell."""
    return f"{event.name}: {event.group}" if event.group else str(event.name)


def _finite(value: float | None) -> float | None:
    """A table is JSON, which has no infinity; the event's message says it."""
    return None if value is None or not math.isfinite(value) else value
