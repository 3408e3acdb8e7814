"""Imported where trainings are forked from: a first one, so that nothing is left to be imported or compiled later."""

import tempfile
from pathlib import Path

from tests.faults.training import train

with tempfile.TemporaryDirectory() as folder:
    train(Path(folder), 2)
