"""Plain English: constructions that were found, rewritten, and must not come back."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

RIDDLES = (
    r"as a function of nothing",
    r"\bdoes here; where it fails\b",
    r"\bclosed: it has stopped to listen",
    r"What is done inside is the monitor's",
    r"\"\"\"Since the beginning\.",
    r"holds no more than a message between",
    r"unless the last capture stands",
    r"what no other process waits for",
    r"\bHave something to tell\b",
    r"seems to take less than no time",
    r"\band of which of them\b",
    r"Whether it is one at all",
    r"up to a process of its own",
    r"what fails is reduced\b",
    r"Rows stand under\b",
    r"\b[Gg]uard and finder refuse\b",
    r"\b(merged|tore|torn)\b[^.]{0,30}\bstays? so\b",
    r"A value stands until the next",
    r"\bsmoothed phase\b.{0,30}\b(is|are) (none|a lie)\b",
    r"\b(is|are) only said\b",
    r"\b(is|are) made (of|from) them\b.{0,20}\bsaid\b",
)
"""The left column of the table of style, each as loosely as it can be without catching something else."""

TEXTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "lightning_topo/**/*.py", "examples/*.py", "benchmarks/**/*.py")
    for path in ROOT.glob(pattern)
)


@pytest.fixture(scope="module")
def texts():
    """Each on one line, so that a break within a sentence hides nothing."""
    return {path.name: re.sub(r"[\s#]+", " ", path.read_text()) for path in TEXTS}


@pytest.mark.parametrize("riddle", RIDDLES)
def test_no_text_speaks_in_riddles(riddle, texts):
    assert len(TEXTS) > 200
    assert not [name for name, text in texts.items() if re.search(riddle, text)]
