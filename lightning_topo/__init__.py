"""Lightning callbacks that watch the topology of a network's neurons while it trains.

Names are imported when first used: `import lightning_topo` loads neither torch nor any tracker.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_topo.callbacks import (
        Findings,
        LRSweep,
        TopologyEarlyStopping,
        TopologyLRFinder,
        TopologyMonitor,
        TopologyStepGuard,
        TrackioLogger,
    )
    from lightning_topo.geometry import StepDistortion, step_distortion
    from lightning_topo.homology import PersistenceDiagram, persistence
    from lightning_topo.loops import TopologyTrainerCallback, TopologyWatch
    from lightning_topo.neurons import NeuronGroup, declare_neurons, find_neuron_groups, rows
    from lightning_topo.outputs.record import RunRecord, read_record
    from lightning_topo.phases import Phase, PhaseRules, TopologyEvent
    from lightning_topo.probes import Distortion, Fate, Period, Persistence, ProbeResult, ProbeUnavailable, Sharpness
    from lightning_topo.stability import SharpnessEstimate, sharpness

_HOMES = {
    "callbacks": (
        "Findings",
        "LRSweep",
        "TopologyEarlyStopping",
        "TopologyLRFinder",
        "TopologyMonitor",
        "TopologyStepGuard",
        "TrackioLogger",
    ),
    "geometry": ("StepDistortion", "step_distortion"),
    "homology": ("PersistenceDiagram", "persistence"),
    "loops": ("TopologyTrainerCallback", "TopologyWatch"),
    "neurons": ("NeuronGroup", "declare_neurons", "find_neuron_groups", "rows"),
    "phases": ("Phase", "PhaseRules", "TopologyEvent"),
    "probes": ("Distortion", "Fate", "Period", "Persistence", "ProbeResult", "ProbeUnavailable", "Sharpness"),
    "outputs.record": ("RunRecord", "read_record"),
    "stability": ("SharpnessEstimate", "sharpness"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Distortion",
    "Fate",
    "Findings",
    "LRSweep",
    "NeuronGroup",
    "Period",
    "Persistence",
    "PersistenceDiagram",
    "Phase",
    "PhaseRules",
    "ProbeResult",
    "ProbeUnavailable",
    "RunRecord",
    "Sharpness",
    "SharpnessEstimate",
    "StepDistortion",
    "TopologyEarlyStopping",
    "TopologyEvent",
    "TopologyLRFinder",
    "TopologyMonitor",
    "TopologyStepGuard",
    "TopologyTrainerCallback",
    "TopologyWatch",
    "TrackioLogger",
    "declare_neurons",
    "find_neuron_groups",
    "persistence",
    "read_record",
    "rows",
    "sharpness",
    "step_distortion",
]


def _version() -> str:
    """The installed version: the first lines of the metadata, since to parse the long rest takes many steps' time."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        metadata = distribution("lightning-topo").read_text("METADATA") or ""
    except PackageNotFoundError:  # from a folder of sources that was never installed
        metadata = ""
    return next((line[9:] for line in metadata.splitlines() if line.startswith("Version: ")), "0+unknown")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
