"""What several tests of the engine begin with."""

import pytest

from tests.watch.driving import Watched


@pytest.fixture
def watched():
    made = Watched()
    yield made
    made.watch.close(in_haste=True)
