"""Numbers in the docs are those of their data files.

`<!-- numbers: FILE ... -->` directly above a paragraph or a table says where its numbers come from: each must stand in
one of the files, to the digits shown.
"""

import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
MARK = re.compile(r"^<!-- numbers: (.+?) -->\n((?:.+\n)+)", flags=re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?![\w.]*\w)")


def numbers(text):
    """The numbers of a text as they stand, without those of code, links, file names and words."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|!\[[^\]]*\]", " ", text)
    return [found.replace(",", "") for found in NUMBER.findall(text)]


def leaves(data):
    """Every number in a JSON value, its lists' lengths too."""
    if isinstance(data, dict):
        return [number for value in data.values() for number in leaves(value)]
    if isinstance(data, list):
        return [len(data), *(number for value in data for number in leaves(value))]
    return [data] if isinstance(data, int | float) and not isinstance(data, bool) else []


def known(path):
    """All numbers of a data file: JSON by its structure, any other as text."""
    text = path.read_text()
    return leaves(json.loads(text)) if path.suffix == ".json" else [float(number) for number in numbers(text)]


def stands(shown, data):
    """Whether a number of the data, rounded to the digits shown, is the number shown."""
    mantissa, _, exponent = shown.partition("e")
    decimals = len(mantissa.partition(".")[2]) - int(exponent or 0)
    return any(abs(float(shown) - value) <= 0.5000001 * 10.0**-decimals for value in data)


MARKED = [
    pytest.param(page.name, files.split(), block, id=f"{page.name}-{number}")
    for page in sorted(DOCS.glob("*.md"))
    for number, (files, block) in enumerate(MARK.findall(page.read_text()), 1)
]


@pytest.mark.parametrize(("page", "files", "block"), MARKED)
def test_every_number_below_a_mark_stands_in_its_data_file(page, files, block):
    data = [number for name in files for number in known(DOCS / name)]
    shown = numbers(block)
    assert shown, f"{page}: no number below the mark of {files}"
    assert not [number for number in shown if not stands(number, data)], f"{page}, against {files}"


def test_what_counts_as_a_number():
    text = "At step 1,200 r was 0.25 (`r 9`), b1 too; see [there](x-4.md), 5x, -2.5e-3 and 7."
    assert numbers(text) == ["1200", "0.25", "-2.5e-3", "7"]


def test_a_wrong_number_is_seen():
    data = leaves({"a": 0.2549, "b": [{"step": 120}, {"step": 3}], "c": True})
    assert stands("0.25", data)
    assert stands("0.255", data)
    assert stands("2", data)  # two events
    assert stands("1.2e2", data)
    assert not stands("0.254", data)
    assert not stands("121", data)
    assert not stands("1", data)
