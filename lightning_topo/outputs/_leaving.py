"""Select what may leave the machine: plain values by an allow-list, and the record's own files by name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lightning_topo.outputs._machine import impersonal
from lightning_topo.outputs.record._layout import EVENTS, MEASUREMENTS, REPORT, diagram_path, diagram_steps

_LONGEST_TEXT = 200
_OURS = "lightning_topo."
_SECRET = re.compile(
    r"(?:^|[\W_])(?:(?:api|access|private|secret)_?key|token|secret|password|passwd|credentials?)$", re.IGNORECASE
)


def plain(value: Any) -> Any:
    """A value as it may be sent: numbers, short texts, and mappings and lists of them; None for all else.

    A text that reveals something about the machine (an absolute path, the user's name) is None too, and so is a text
    whose name marks it as a secret.

    >>> plain({"lr": 0.1, "model": object(), "save_dir": "/home/someone/runs", "betas": (0.9, 0.99), "api_key": "sk-1"})
    {'lr': 0.1, 'model': None, 'save_dir': None, 'betas': [0.9, 0.99], 'api_key': None}
    """
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return value[:_LONGEST_TEXT] if impersonal(value) == value else None
        case Mapping():
            return {
                impersonal(str(key))[:_LONGEST_TEXT]: None if _is_secret(str(key), item) else plain(item)
                for key, item in value.items()
            }
        case list() | tuple():
            return [plain(item) for item in value]
    return None


def _is_secret(name: str, value: Any) -> bool:
    return isinstance(value, str) and _SECRET.search(name) is not None


def probe_facts(probe: Any) -> dict[str, Any]:
    """The description of a probe: of ours its class and plain fields, of a user's own only its name and period.

    Never its repr, which may hold anything that the user has bound to it.

    >>> from lightning_topo.probes import Distortion
    >>> probe_facts(Distortion(every_n_steps=5))
    {'name': 'distortion', 'class': 'Distortion', 'every_n_steps': 5}
    """
    facts: dict[str, Any] = {"name": plain(getattr(probe, "name", None))}
    cls = type(probe)
    if cls.__module__.startswith(_OURS) and is_dataclass(probe):
        facts["class"] = cls.__name__
        for field in fields(probe):
            value = getattr(probe, field.name)
            if field.name != "name" and field.init and isinstance(value, int | float | str | None):
                facts[field.name] = plain(value)
        return facts
    period = getattr(probe, "period", None)
    every, unit = getattr(period, "every", None), getattr(period, "unit", None)
    if isinstance(every, int) and unit in ("step", "epoch"):
        facts |= {"every": every, "unit": unit}
    return facts


def settings_facts(
    *, probes: Sequence[Any], log_groups: str | Sequence[str], max_overhead: float | None, seed: int
) -> dict[str, Any]:
    """The monitor's settings as `Run.settings` has them."""
    groups = log_groups if isinstance(log_groups, str) else list(log_groups)
    return {
        "probes": [probe_facts(probe) for probe in probes],
        "log_groups": plain(groups),
        "max_overhead": max_overhead,
        "seed": seed,
    }


def record_files(dirpath: Path | None) -> list[tuple[Path, PurePosixPath]]:
    """The record's files that go to trackers: where each lies, and its name; no links, and nothing else."""
    if dirpath is None:
        return []
    paths = [dirpath / name for name in (MEASUREMENTS, EVENTS, REPORT)]
    if not (dirpath / "diagrams").is_symlink():
        paths += [diagram_path(dirpath, step) for step in diagram_steps(dirpath)]
    own = [path for path in paths if path.is_file() and not path.is_symlink()]
    return [(path, PurePosixPath(path.relative_to(dirpath).as_posix())) for path in own]
