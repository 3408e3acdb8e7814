"""The parameters of a watch, checked in one place."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_topo._watch.published_values import LogGroups, Readings
from lightning_topo._watch.schedule import Schedule
from lightning_topo.neurons import NeuronGroup, Rows
from lightning_topo.phases import PhaseRules
from lightning_topo.probes import Distortion, Fate, Period, Persistence, Probe, Sharpness
from lightning_topo.quantities import OUR_PROBES, RESERVED_PROBES

Groups = Literal["auto"] | Sequence[Any]

DEFAULT_PROBES: tuple[Probe, ...] = (Distortion(), Persistence(), Fate(), Sharpness(in_shards=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSettings:
    """What is measured, how often and where it goes: the parameters of `TopologyMonitor` and `TopologyWatch`.

    Raises `ValueError` where a parameter is out of its range, two probes share a name, or a name is the monitor's own.

    >>> WatchSettings(max_overhead=2.0)
    Traceback (most recent call last):
    ...
    ValueError: expected max_overhead between 0 and 1, or None, got 2.0
    """

    probes: tuple[Probe, ...] = DEFAULT_PROBES
    groups: Groups = "auto"
    dirpath: Path | None = None
    log_groups: LogGroups = "auto"
    max_overhead: float | None = 0.02
    report: bool = True
    on_error: Literal["warn", "raise"] = "warn"
    seed: int = 0
    verbose: bool = True
    max_record_mb: float | None = None
    rules: PhaseRules = field(default_factory=PhaseRules)

    def __post_init__(self) -> None:
        _check_probes(self.probes)
        _check_groups(self.groups)
        if self.max_overhead is not None and not isinstance(self.max_overhead, int | float):
            raise TypeError(f"expected max_overhead as a fraction between 0 and 1, or None, got {self.max_overhead!r}")
        if self.on_error not in ("warn", "raise"):
            raise ValueError(f'expected on_error "warn" or "raise", got {self.on_error!r}')
        if self.max_record_mb is not None and not self.max_record_mb > 0.0:
            raise ValueError(f"expected max_record_mb > 0 or None, got {self.max_record_mb}")
        if not isinstance(self.rules, PhaseRules):
            raise TypeError(f"expected rules=PhaseRules(...), got {type(self.rules).__name__}")
        _ = self.schedule(), Readings((), self.log_groups)

    @property
    def measured(self) -> tuple[Probe, ...]:
        """The probes, and those that they bring along (`companions`), as far as no other has the name."""
        found = {probe.name: probe for probe in self.probes}
        for probe in self.probes:
            for companion in getattr(probe, "companions", ()):
                found.setdefault(companion.name, companion)
        return tuple(found.values())

    @property
    def max_record_bytes(self) -> float:
        """How large measurements and diagrams may become; infinite without a limit."""
        return math.inf if self.max_record_mb is None else self.max_record_mb * 2**20

    @property
    def declared(self) -> tuple[Any, ...] | None:
        """The groups given by hand, None where they are to be found."""
        return None if isinstance(self.groups, str) else tuple(self.groups)

    def schedule(self, planned_steps: int | None = None) -> Schedule:
        """The times at which the probes measure."""
        default = Period(25, "step", adaptive=True)
        periods = {probe.name: getattr(probe, "period", default) for probe in self.measured}
        dense = frozenset(probe.name for probe in self.probes if isinstance(probe, Distortion))
        guesses = {
            p.name: float(cost) for p in self.measured if (cost := getattr(p, "expected_cost", None)) is not None
        }
        return Schedule(periods, self.max_overhead, self.seed, planned_steps, dense, guesses)

    def described(self) -> dict[str, Any]:
        """The parameters as plain values that may leave the machine: of a user's own probe no more than its name."""
        return {
            "probes": {probe.name: _described(probe) for probe in self.probes},
            "log_groups": self.log_groups if isinstance(self.log_groups, str) else list(self.log_groups),
            "max_overhead": self.max_overhead,
            "seed": self.seed,
        }


def probe_list(probes: object) -> tuple[Probe, ...]:
    """The probes of a parameter, which is a list of them; None is the default.

    >>> probe_list(Distortion())
    Traceback (most recent call last):
    ...
    TypeError: expected probes as a list, got one Distortion: write probes=[Distortion(...)]
    """
    if probes is None:
        return DEFAULT_PROBES
    if isinstance(probes, str) or not isinstance(probes, Iterable):
        kind = type(probes).__name__
        if isinstance(probes, Probe) and not isinstance(probes, type):
            raise TypeError(f"expected probes as a list, got one {kind}: write probes=[{kind}(...)]")
        raise TypeError(f"expected probes as a list such as [Distortion(), Sharpness()], got {probes!r}")
    return tuple(probes)


def group_list(groups: object) -> Groups:
    """The groups of a parameter: "auto", or a list of them.

    >>> group_list(None)
    Traceback (most recent call last):
    ...
    TypeError: expected groups="auto" or a list of NeuronGroup, got None
    """
    if groups == "auto":
        return "auto"
    if isinstance(groups, str):
        raise ValueError(f'expected groups "auto" or a list of NeuronGroup, got {groups!r}')
    if isinstance(groups, NeuronGroup | Rows) or not isinstance(groups, Iterable):
        one = f"one {type(groups).__name__}: write groups=[...]" if isinstance(groups, NeuronGroup | Rows) else groups
        raise TypeError(f'expected groups="auto" or a list of NeuronGroup, got {one}')
    return tuple(groups)


def _check_groups(groups: Groups) -> None:
    for group in () if group_list(groups) == "auto" else groups:
        if not isinstance(group, NeuronGroup | Rows) and group != "auto":
            raise TypeError(
                f'expected groups as a list of NeuronGroup, rows(...) and "auto", got {group!r} among them: make them '
                "with declare_neurons(module, name, {parameter: dimension}) or "
                "find_neuron_groups(module, example_inputs)"
            )


def _check_probes(probes: Sequence[Probe]) -> None:
    names = []
    for probe in probes:
        if not isinstance(probe, Probe) or isinstance(probe, type):
            what = f"the class {probe.__name__}" if isinstance(probe, type) else repr(probe)
            fix = f": write {probe.__name__}()" if isinstance(probe, type) else ", such as Distortion()"
            raise TypeError(f"expected probes with a name and a method measure(capture), got {what}{fix}")
        names.append(probe.name)
        is_ours = type(probe).__module__.startswith("lightning_topo.")
        if probe.name in RESERVED_PROBES or (probe.name in OUR_PROBES and not is_ours):
            raise ValueError(f"expected a probe whose name is not the monitor's own, got {probe.name!r}: rename it")
    if len(set(names)) != len(names):
        raise ValueError(f"expected probes with different names, got {names}")


def _described(probe: Probe) -> dict[str, Any]:
    kind = type(probe).__name__
    if not (type(probe).__module__.startswith("lightning_topo.") and is_dataclass(probe)):
        return {"class": kind}
    values = {f.name: getattr(probe, f.name) for f in fields(probe) if f.init}
    return {"class": kind} | {k: v for k, v in values.items() if v is None or isinstance(v, bool | int | float | str)}
