"""What became of every parameter when the neurons were found: one file, written whole, and read without trust."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_topo._parameter_coverage import ParameterCoverage
from lightning_topo.outputs.record._archive import own_folder

if TYPE_CHECKING:
    from lightning_topo.neurons import NeuronGroup

PARAMETERS = "parameters.json"
SCHEMA = 1
MOST_BYTES = 1 << 26
"""A larger file is not read."""


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """A group as the record has it: `size` is `n`, after the number of blocks where there are several."""

    name: str
    kind: str
    size: str
    status: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ParameterTable:
    """The groups of a run, and for every parameter its groups or why it is in none."""

    groups: tuple[GroupFacts, ...]
    parameters: tuple[ParameterCoverage, ...]

    @property
    def uncovered(self) -> tuple[ParameterCoverage, ...]:
        """The parameters in no group, largest first."""
        return tuple(sorted((p for p in self.parameters if not p.groups), key=lambda p: -p.numel))

    def __str__(self) -> str:
        """Two tables: a line for each group, and one for each parameter."""
        from lightning_topo.neurons._table import aligned

        groups = [("group", "kind", "n", "verified"), *((g.name, g.kind, g.size, _verdict(g)) for g in self.groups)]
        parameters = [
            ("parameter", "entries", "groups"),
            *((p.param, f"{p.numel:,}", ", ".join(p.groups) or f"none: {p.reason}") for p in self.parameters),
        ]
        return "\n".join([*aligned(groups), "", *aligned(parameters)])


def write_parameters(folder: Path, groups: "Sequence[NeuronGroup]", coverage: Sequence[ParameterCoverage]) -> None:
    """Write the table into a run folder, under a temporary name first.

    Raises `OSError` where it cannot be written.
    """
    table = {
        "schema": SCHEMA,
        "groups": [
            {
                "name": g.name,
                "kind": g.kind,
                "n": g.n,
                "blocks": list(g.block_shape),
                "status": g.status,
                "reason": g.reason,
            }
            for g in groups
        ],
        "parameters": [
            {"name": p.param, "entries": p.numel, "groups": list(p.groups), "reason": p.reason} for p in coverage
        ],
    }
    own_folder(folder)
    path = folder / PARAMETERS
    temporary = path.with_name(f".{PARAMETERS}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            file.write(json.dumps(table, indent=1, ensure_ascii=False).encode(errors="backslashreplace"))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_parameters(folder: str | os.PathLike[str]) -> ParameterTable | None:
    """The table of a run folder; None where there is none that can be read, as in older records."""
    path = Path(folder) / PARAMETERS
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return None
        found = json.loads(path.read_bytes())
        if found["schema"] != SCHEMA:
            return None
        return ParameterTable(tuple(map(_group, found["groups"])), tuple(map(_parameter, found["parameters"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _group(line: Mapping[str, Any]) -> GroupFacts:
    size = " x ".join(str(int(k)) for k in [*line["blocks"], line["n"]])
    name, kind, status, reason = (_words(line, key) for key in ("name", "kind", "status", "reason"))
    return GroupFacts(name, kind, size, status, reason)


def _parameter(line: Mapping[str, Any]) -> ParameterCoverage:
    if not all(isinstance(name, str) for name in line["groups"]):
        raise TypeError("expected the names of groups")
    return ParameterCoverage(_words(line, "name"), int(line["entries"]), tuple(line["groups"]), _words(line, "reason"))


def _words(line: Mapping[str, Any], key: str) -> str:
    if not isinstance(line[key], str):
        raise TypeError(f"expected {key} as text")
    return line[key]


def _verdict(group: GroupFacts) -> str:
    words = "yes" if group.status == "verified" else group.status
    return f"{words}: {group.reason}" if group.reason else words
