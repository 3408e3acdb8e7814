"""Figures that are sent, where what they show does not matter."""

import pytest

from tests.outputs.driving import empty_figures


@pytest.fixture
def small_figures():
    """The figures of this test's run, empty. By test and not by module: another test wants them drawn."""
    with empty_figures():
        yield
