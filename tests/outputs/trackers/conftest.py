"""Figures that are sent, where what they show does not matter."""

import pytest

from lightning_topo._figures import persistence
from lightning_topo._figures.style import new_figure


@pytest.fixture(scope="module")
def small_figures():
    """The figures of a run, empty: a hundred of them need not be drawn in full."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("diagram_figure", "betti_figure", "crocker_figure"):
            patch.setattr(persistence, name, lambda *_: new_figure(1, "", width=1.0, height=0.6)[0])
        yield
