"""Numbers in the docs are those of their data files.

`<!-- numbers: FILE ... -->` directly above a paragraph or a table says where its numbers come from: each must stand in
one of the files, to the digits shown. In place of files stands `defined` above thresholds, defaults, versions and
arithmetic, `shown` above what examples of the page print or assert, which run in the tests, and `once` above what was
measured once, by the command that the page names, and stands in no file. `FILE; derived N ...` names those that are
sums, quotients or settings of what is in the file.
"""

import json
import re
import statistics
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
MARK = re.compile(r"^<!-- numbers: (.+?) -->\n((?:.+\n)+)", flags=re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?![\w.]*\w)")


def numbers(text):
    """The numbers of a text as they stand, without those of code, links, file names, words and dates."""
    text = re.sub(r"\b\d+ [JFMASOND][a-z]{2,8} \d{4}\b|arXiv:\S+", " ", text)
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|!\[[^\]]*\]", " ", text)
    return [found.replace(",", "") for found in NUMBER.findall(text)]


def without_names(block):
    """A block without the names of a table's columns and rows."""
    block = re.sub(r"^\|.*\n(?=\|[ |:-]+$)", "", block, flags=re.MULTILINE)
    return re.sub(r"^\|[^|]*[a-z]{3}[^|]*\|", "|", block, flags=re.MULTILINE)


def leaves(data):
    """Every number in a JSON value, those in its texts and its lists' lengths too."""
    if isinstance(data, dict):
        return [number for value in data.values() for number in leaves(value)]
    if isinstance(data, list):
        return [len(data), *(number for value in data for number in leaves(value))]
    if isinstance(data, str):
        return [float(number) for number in numbers(data)]
    return [data] if isinstance(data, int | float) and not isinstance(data, bool) else []


def known(path):
    """All numbers of a data file: JSON by its structure, of lines of it the medians too, any other as text."""
    text = path.read_text()
    if path.suffix == ".json":
        return leaves(json.loads(text))
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines()]
        columns = [[row[name] for row in rows if isinstance(row.get(name), float)] for name in rows[0]]
        return [len(rows), *leaves(rows), *(statistics.median(column) for column in columns if column)]
    return [float(number) for number in numbers(text)]


def stands(shown, data):
    """Whether a number of the data, rounded to the digits shown, is the number shown."""
    mantissa, _, exponent = shown.partition("e")
    decimals = len(mantissa.partition(".")[2]) - int(exponent or 0)
    return any(abs(float(shown) - value) <= 0.5000001 * 10.0**-decimals for value in data)


MARKED = [
    pytest.param(page.name, files, block, id=f"{page.name}-{number}")
    for page in sorted(DOCS.glob("*.md"))
    for number, (files, block) in enumerate(MARK.findall(page.read_text()), 1)
    if files not in ("defined", "shown", "once")
]


@pytest.mark.parametrize(("page", "files", "block"), MARKED)
def test_every_number_below_a_mark_stands_in_its_data_file(page, files, block):
    files, _, derived = files.partition("; derived ")
    data = [number for name in files.split() for number in known(DOCS / name)] + [float(n) for n in derived.split()]
    shown = numbers(without_names(block))
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


def measured(page):
    """The blocks of a page that show two or more decimal numbers as prose or in a table."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    blocks = re.split(r"\n\s*\n", text)
    return [
        block for block in blocks if not block.startswith("    ") and len([n for n in numbers(block) if "." in n]) > 1
    ]


PRINTED = ("peers.md",)
"""Pages that a command writes: their own data."""


@pytest.mark.parametrize(
    "page", [page for page in sorted(DOCS.glob("*.md")) if page.name not in PRINTED], ids=lambda page: page.name
)
def test_every_block_with_numbers_says_where_they_come_from(page):
    assert not [block[:100] for block in measured(page) if not block.startswith("<!-- numbers: ")]
