"""The keyword arguments that every door passes on to the engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from lightning_topo._watch import WatchSettings
from lightning_topo._watch.published_values import LogGroups
from lightning_topo._watch.settings import Groups, group_list, probe_list
from lightning_topo.phases import PhaseRules
from lightning_topo.probes import Probe


class WatchOptions(TypedDict, total=False):
    """The keyword arguments of `TopologyMonitor`, but for `dirpath`."""

    groups: Groups
    log_groups: LogGroups
    max_overhead: float | None
    report: bool
    on_error: Literal["warn", "raise"]
    seed: int
    verbose: bool
    max_record_mb: float | None
    rules: PhaseRules


def watch_settings(
    probes: Sequence[Probe] | None, dirpath: str | Path, **options: Unpack[WatchOptions]
) -> WatchSettings:
    """The settings of a watch; `probes=None` means the default ones.

    Raises `TypeError` or `ValueError` where one is not valid.

    >>> [probe.name for probe in watch_settings(None, "topology", seed=1).probes]
    ['distortion', 'persistence', 'fate', 'sharpness']
    """
    options["groups"] = group_list(options.get("groups", "auto"))
    return WatchSettings(probes=probe_list(probes), dirpath=Path(dirpath), **options)
