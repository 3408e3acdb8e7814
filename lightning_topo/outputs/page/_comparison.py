"""Several runs: where they lie, where their page goes, and their settings and outcomes as a table."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_topo._figures.rates import rate_limits
from lightning_topo.outputs.page._advice import advise
from lightning_topo.outputs.page._evidence import Evidence
from lightning_topo.outputs.page._outcome import history
from lightning_topo.outputs.page._page import run_labels
from lightning_topo.outputs.page._verdict import sentence
from lightning_topo.outputs.record import MEASUREMENTS, RunRecord

PLACE = "comparison.html"
_DEEPEST = 6
_MOST_RUNS = 64


def run_folders(path: Path) -> list[Path]:
    """The run folder itself, or those below a folder, in the order of their names.

    Raises `FileNotFoundError` where there is none, and `ValueError` for more than a page can show.
    """
    if (path / MEASUREMENTS).is_file():
        return [path]
    found = []
    for folder, inner, files in os.walk(path):
        depth = len(Path(folder).relative_to(path).parts)
        # A run's own folder holds no other run, only a copy of its parent's history.
        inner[:] = sorted(name for name in inner if not name.startswith(".")) if depth < _DEEPEST else []
        if MEASUREMENTS in files:
            found.append(Path(folder))
            inner[:] = []
    if not found:
        raise FileNotFoundError(
            f"expected a run folder, or a folder with runs below it, found no {MEASUREMENTS} in {path}"
        )
    if len(found) > _MOST_RUNS:
        raise ValueError(f"expected at most {_MOST_RUNS} runs for one page, found {len(found)} in {path}: name fewer")
    return found


def default_place(folders: Sequence[Path]) -> Path:
    """The page of several runs: in the folder that holds them all, never in a run's own.

    >>> default_place([Path("logs/a/topology"), Path("logs/b/topology")]).name
    'comparison.html'
    """
    above = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    while (above / MEASUREMENTS).is_file():
        above = above.parent
    return (above if above != Path(above.anchor) else Path()) / PLACE


def write_table(records: Sequence[RunRecord], path: Path) -> Path:
    """Write a line a run: its settings, and what it came to."""
    labels = run_labels([record.dirpath for record in records])
    lines = [{"run": label, **_line(record)} for label, record in zip(labels, records, strict=True)]
    names = list(dict.fromkeys(name for line in lines for name in line))
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(lines)
    return path


def _line(record: RunRecord) -> dict[str, Any]:
    outcome, evidence = history(record).outcome, Evidence.of_record(record)
    advice, coverage, training = advise(outcome, evidence), outcome.coverage, record.about.get("training")
    known: Mapping[str, Any] = training if isinstance(training, Mapping) else {}
    hparams = known.get("hparams")
    settings = {name: known.get(name) for name in ("optimizer", "optimizer_options", "scheduler", "batch_size")}
    return {
        **settings,
        **(hparams if isinstance(hparams, Mapping) else {}),
        "largest learning rate": rate_limits(record.measurements).largest,
        "steps": outcome.last_step,
        "highest phase": outcome.worst_phase.name.lower(),
        "first breakdown": outcome.breakdowns[0].step if outcome.breakdowns else None,
        "first edge": outcome.edge_step,
        "diverged": outcome.diverged_step,
        "largest r": None if outcome.peak_ratio is None else outcome.peak_ratio.value,
        "certified": None if coverage is None else coverage.certified / max(coverage.total, 1),
        "last loss": outcome.final_loss,
        "verdict": sentence(outcome),
        "next": None if advice is None else advice.decision,
    }
