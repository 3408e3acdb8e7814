"""Engines for homology in dimension 1 and up. Each is imported where it is used, and only here.

An engine takes a distance matrix (float32, symmetric, finite, zero diagonal, at least two points) and a
dimension, and returns one (k, 2) array of births and deaths per dimension 0, ..., max_dim.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Matrix = Float[np.ndarray, "n n"]
Intervals = list[np.ndarray]


class Engine(NamedTuple):
    """An engine: the module that must be installed, what installs it, and the call."""

    module: str
    requirement: str
    compute: Callable[[Matrix, int], Intervals]


def _giotto_ph(distances: Matrix, max_dim: int) -> Intervals:
    """No threshold and no edge collapse: both force the slower sparse path."""
    from gph import ripser_parallel

    return ripser_parallel(distances, maxdim=max_dim, metric="precomputed")["dgms"]


def _gudhi(distances: Matrix, max_dim: int) -> Intervals:
    from gudhi.sklearn import RipsPersistence

    engine = RipsPersistence(
        homology_dimensions=list(range(max_dim + 1)),
        input_type="full distance matrix",
        homology_coeff_field=2,
    )
    return engine.fit_transform([distances])[0]


def _redzed_tda(distances: Matrix, max_dim: int) -> Intervals:
    import redzed_tda

    intervals = redzed_tda.rips(distances, maxdim=max_dim)
    return [np.asarray(part) for part in intervals]


ENGINES: dict[str, Engine] = {
    "giotto-ph": Engine("gph", "giotto-ph", _giotto_ph),
    "gudhi": Engine("gudhi", "gudhi", _gudhi),
    "redzed-tda": Engine("redzed_tda", "redzed-tda", _redzed_tda),
}
"""Every known engine by name, the preferred one first."""


def available_engines() -> list[str]:
    """List the installed libraries that compute homology in dimension 1 and up, the preferred one first.

    `persistence` uses the first by default. The list is empty if none is installed.

    >>> set(available_engines()) <= set(ENGINES)
    True
    """
    return [name for name, engine in ENGINES.items() if find_spec(engine.module) is not None]


def choose_engine(name: str | None = None) -> str:
    """The named engine, or the first installed one.

    Raises:
        ValueError: no engine has that name.
        ModuleNotFoundError: it is not installed, or none is; the message says what to install.
    """
    installed = available_engines()
    if name is None:
        if installed:
            return installed[0]
        names = " or ".join(engine.requirement for engine in ENGINES.values())
        raise ModuleNotFoundError(f"homology in dimension 1 and up needs an engine: pip install {names}")
    if name not in ENGINES:
        raise ValueError(f"expected an engine of {', '.join(ENGINES)}, got {name!r}")
    if name not in installed:
        raise ModuleNotFoundError(f"{name} is not installed: pip install {ENGINES[name].requirement}")
    return name


def rips_intervals(distances: Matrix, max_dim: int, engine: str) -> Intervals:
    """Intervals of dimensions 1, ..., max_dim of a distance matrix, zero-length ones dropped, sorted.

    The matrix is scaled by a power of two so that no engine's float32 overflows or underflows.

    Raises:
        RuntimeError: the engine failed, or returned what no diagram holds.
    """
    diameter = float(distances.max(initial=0.0))
    if len(distances) < 3 or diameter == 0:
        return [np.empty((0, 2)) for _ in range(max_dim)]
    scale = 2.0 ** np.floor(np.log2(diameter))
    matrix = np.ascontiguousarray(distances / scale, dtype=np.float32)
    np.fill_diagonal(matrix, 0)
    try:
        intervals = ENGINES[engine].compute(matrix, max_dim)
    except Exception as error:
        raise RuntimeError(f"{engine} failed on {len(matrix)} points up to dimension {max_dim}: {error}") from error
    return [_cleaned(intervals[k], engine) * scale for k in range(1, max_dim + 1)]


def _cleaned(intervals: np.ndarray, engine: str) -> np.ndarray:
    """Intervals of positive length as float64, in ascending order."""
    array = np.asarray(intervals, dtype=np.float64).reshape(-1, 2)
    if np.isnan(array).any() or (array[:, 1] < array[:, 0]).any():
        raise RuntimeError(f"{engine} returned intervals that are NaN or die before they are born")
    array = array[array[:, 1] > array[:, 0]]
    return array[np.lexsort((array[:, 1], array[:, 0]))]
