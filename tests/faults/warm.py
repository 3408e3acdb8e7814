"""Imported where trainings are forked from: a first one, so that nothing is left to be imported or compiled later."""

import sys
import tempfile
from pathlib import Path

from tests.faults.training import train

# The fork server is started by `python -c`; whoever else imports this (a search for doctests) wants no training.
if sys.argv[0] == "-c":
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), 5, report=True)  # so far that every probe has measured
