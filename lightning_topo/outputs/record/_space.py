"""How much room a run folder takes, and what of it can be given up before measurements are."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lightning_topo.outputs.record._layout import HISTORY, MEASUREMENTS, diagram_path, diagram_steps

_FIGURES = "figures"
_FEWEST_FIGURES = 8


def other_bytes(dirpath: Path) -> int:
    """How many bytes a folder takes besides its measurements and the captures that count: links are not followed."""
    own = {dirpath / MEASUREMENTS, *(diagram_path(dirpath, step) for step in diagram_steps(dirpath))}
    return sum(_size(path) for path in _files(dirpath) if path not in own)


def make_room(dirpath: Path, most: float) -> int:
    """Give up abandoned captures, then older figures, every second, then the parent's history, down to `most` bytes.

    Returns what the folder's other files then take, see `other_bytes`.
    """
    left = other_bytes(dirpath)
    if left > most:
        for folder in _abandoned(dirpath):
            shutil.rmtree(folder, ignore_errors=True)
        left = other_bytes(dirpath)
    while left > most and (older := _older_figures(dirpath)):
        for path in older:
            path.unlink(missing_ok=True)
        left = other_bytes(dirpath)
    if left > most and not (dirpath / HISTORY).is_symlink():
        shutil.rmtree(dirpath / HISTORY, ignore_errors=True)  # a copy: the parent has its own
        left = other_bytes(dirpath)
    return left


def _abandoned(dirpath: Path) -> list[Path]:
    folder = dirpath / "diagrams"
    if folder.is_symlink() or not folder.is_dir():
        return []
    return [path for path in folder.glob("abandoned-*") if path.is_dir() and not path.is_symlink()]


def _older_figures(dirpath: Path) -> list[Path]:
    """Of each series of pictures every second, but for the newest quarter and where there are few."""
    series: dict[Path, list[Path]] = {}
    for path in _files(dirpath / _FIGURES):
        if path.suffix == ".png":
            series.setdefault(path.parent, []).append(path)
    older: list[Path] = []
    for paths in series.values():
        if len(paths) > _FEWEST_FIGURES:
            older += sorted(paths)[1 : len(paths) * 3 // 4 : 2]
    return older


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_symlink():
        return
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
