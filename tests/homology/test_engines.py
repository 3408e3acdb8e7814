"""Engines: identical diagrams, clear errors, and none imported before it is needed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_topo.homology import _engines as engines_module
from lightning_topo.homology import available_engines, persistence
from lightning_topo.homology._engines import ENGINES, Engine, choose_engine

INSTALLED = available_engines()


@pytest.mark.skipif(len(INSTALLED) < 2, reason="needs two engines to compare")
@given(
    kind=st.sampled_from(["plain", "tied", "duplicated", "clustered"]),
    n=st.integers(3, 22),
    d=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    max_dim=st.integers(1, 2),
)
@settings(deadline=None, max_examples=60)
def test_engines_agree(kind, n, d, seed, max_dim):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, d, generator=generator)
    if kind == "tied":
        points = points.round()
    elif kind == "duplicated":
        points = points[torch.randint(n, (n,), generator=generator)]
    elif kind == "clustered":
        points = 1e-4 * points + torch.randint(0, 2, (n, 1), generator=generator)
    first, *others = (persistence(points, max_dim, engine=name).to_numpy() for name in INSTALLED)
    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_default_is_the_first_installed():
    if not INSTALLED:
        pytest.skip("no engine is installed")
    assert choose_engine() == INSTALLED[0]
    assert next(iter(ENGINES)) == "giotto-ph"


def test_missing_engines_say_what_to_install(monkeypatch):
    missing = {name: engine._replace(module="no_such_module_here") for name, engine in ENGINES.items()}
    monkeypatch.setattr(engines_module, "ENGINES", missing)
    with pytest.raises(ModuleNotFoundError, match="pip install giotto-ph or gudhi or redzed-tda"):
        persistence(torch.zeros(4, 2))
    with pytest.raises(ModuleNotFoundError, match="redzed-tda is not installed: pip install redzed-tda"):
        persistence(torch.zeros(4, 2), engine="redzed-tda")
    assert len(persistence(torch.zeros(4, 2), max_dim=0)[0]) == 4


def engine_that(answer) -> dict[str, Engine]:
    return {"mock": Engine("numpy", "mock", lambda distances, max_dim: answer())}


def test_a_crash_is_reported_with_its_cause(monkeypatch):
    def crash():
        raise MemoryError("too many simplices")

    monkeypatch.setattr(engines_module, "ENGINES", engine_that(crash))
    with pytest.raises(RuntimeError, match="mock failed on 4 points up to dimension 1: too many simplices"):
        persistence(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), engine="mock")


@pytest.mark.parametrize("wrong", [[0.0, np.nan], [2.0, 1.0]])
def test_impossible_intervals_are_refused(monkeypatch, wrong):
    monkeypatch.setattr(engines_module, "ENGINES", engine_that(lambda: [np.empty((0, 2)), np.array([wrong])]))
    with pytest.raises(RuntimeError, match="mock returned intervals"):
        persistence(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), engine="mock")
