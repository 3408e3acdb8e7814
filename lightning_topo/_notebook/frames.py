"""Measurements, events, phases and diagrams as tidy pandas frames: a row for each thing, a column for each property."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_topo._figures.captures import CapturedDiagram, block_of
from lightning_topo.measurement import Measurement
from lightning_topo.phases import Phase, TopologyEvent

if TYPE_CHECKING:
    from pandas import DataFrame

_INDEX = ("step", "epoch", "probe", "group")
_BARS: Mapping[str, Any] = {"step": int, "group": str, "block": int, "dimension": int, "birth": float, "death": float}


def measurements_frame(measurements: Iterable[Measurement]) -> "DataFrame":
    """A row for each measurement: `step`, `epoch`, `probe`, `group` ("" for the network), and a column per quantity.

    NaN stands for what a probe does not measure.
    """
    pd = _pandas()
    rows = [{**{name: getattr(m, name) for name in _INDEX}, **m.values} for m in measurements]
    quantities = dict.fromkeys(name for row in rows for name in row if name not in _INDEX)
    return pd.DataFrame(rows, columns=[*_INDEX, *quantities]).astype({"probe": str, "group": str})


def events_frame(events: Iterable[TopologyEvent]) -> "DataFrame":
    """A row for each event, a column for each of its fields; `name` and `severity` are plain strings."""
    pd = _pandas()
    rows = [asdict(event) | {"name": str(event.name), "severity": str(event.severity)} for event in events]
    frame = pd.DataFrame(rows, columns=[field.name for field in fields(TopologyEvent)])
    return frame.astype({"value": float, "threshold": float})


def phases_frame(phases: Mapping[str, Iterable[tuple[int, Phase]]]) -> "DataFrame":
    """A row for each change of phase: `step`, `group` ("" for the network), `phase` (its number), `name`."""
    pd = _pandas()
    rows = [(step, group, int(phase), phase.name.lower()) for group, found in phases.items() for step, phase in found]
    frame = pd.DataFrame(rows, columns=["step", "group", "phase", "name"])
    return frame.astype({"step": int, "group": str, "phase": int, "name": str})


def diagrams_frame(captures: Mapping[int, Mapping[str, CapturedDiagram]]) -> "DataFrame":
    """A row for each bar: `step`, `group`, `block`, `dimension`, `birth`, `death` (inf for a bar that never ends)."""
    pd = _pandas()
    parts = []
    for step, diagrams in captures.items():
        for name, diagram in diagrams.items():
            group, block = block_of(name, diagrams)
            parts += [(pairs, (step, group, block, k)) for k, pairs in enumerate(diagram.pairs)]
    counts = [len(pairs) for pairs, _ in parts]
    columns = {
        name: np.repeat(np.array([at[i] for _, at in parts], dtype=object), counts)
        for i, name in enumerate(("step", "group", "block", "dimension"))
    }
    pairs = np.concatenate([found for found, _ in parts]) if parts else np.zeros((0, 2))
    columns |= {"birth": pairs[:, 0], "death": pairs[:, 1]}
    return pd.DataFrame(columns).astype(_BARS)


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ImportError(f'{error}: pip install "lightning-topo[notebook]"') from error
    return pandas
