"""The parameters of the monitor, checked in one place."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_topo.neurons import NeuronGroup
from lightning_topo.probes import Pacer, Period, Probe
from lightning_topo.watch.readings import LogGroups, Publisher


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """The parameters of `TopologyMonitor`, checked."""

    probes: tuple[Probe, ...]
    groups: tuple[NeuronGroup, ...] | None
    dirpath: Path | None
    log_groups: LogGroups
    max_overhead: float | None
    report: bool
    on_error: Literal["warn", "raise"]
    seed: int
    verbose: bool = True
    max_record_mb: float | None = None

    @property
    def max_record_bytes(self) -> float:
        """How large measurements and diagrams may become; infinite without a limit."""
        return math.inf if self.max_record_mb is None else self.max_record_mb * 2**20

    def __post_init__(self) -> None:
        names = [probe.name for probe in self.probes]
        if len(set(names)) != len(names):
            raise ValueError(f"expected probes with different names, got {names}")
        if self.on_error not in ("warn", "raise"):
            raise ValueError(f'expected on_error "warn" or "raise", got {self.on_error!r}')
        if self.max_record_mb is not None and not self.max_record_mb > 0.0:
            raise ValueError(f"expected max_record_mb > 0 or None, got {self.max_record_mb}")
        _ = self.pacer(), Publisher((), self.log_groups)

    def described(self) -> dict[str, Any]:
        """The parameters as plain JSON values, for a tracker's configuration."""
        return {
            "probes": [repr(probe) for probe in self.probes],
            "log_groups": self.log_groups if isinstance(self.log_groups, str) else list(self.log_groups),
            "max_overhead": self.max_overhead,
            "seed": self.seed,
        }

    def pacer(self) -> Pacer:
        """The periods at the start."""
        default = Period(25, "step", adaptive=True)
        periods = {probe.name: getattr(probe, "period", default) for probe in self.probes}
        return Pacer(periods, self.max_overhead)
