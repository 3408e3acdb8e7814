"""What must hold after any fault: nothing that was published is lost or there twice, and the report opens."""

import json
import math
from collections import Counter, defaultdict
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lightning_topo.outputs.page import render_page
from lightning_topo.outputs.record import MEASUREMENTS, RunRecord, read_record
from tests.faults.training import PUBLISHED

Key = tuple[str, int, str, str]
_OF_EARLIER_BATCHES = "step_edge"
"""Behind a resume it begins anew, with the batches that come: what it said there before may have no line again."""


class _Page(HTMLParser):
    """Reads a page as a browser would: the elements, and the text of the verdict and of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.text: dict[str, str] = defaultdict(str)
        self._inside: str | None = None

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self._inside = dict(attrs).get("id", self._inside)

    def handle_endtag(self, tag):
        if tag in ("script", "h1"):
            self._inside = None

    def handle_data(self, data):
        if self._inside in ("page-data", "verdict"):
            self.text[self._inside] += data


def published(root: Path) -> dict[Key, list[dict[str, float]]]:
    """What the monitor has told the other callbacks, by folder, step, probe and group: every time that it did."""
    found: dict[Key, list[dict[str, float]]] = defaultdict(list)
    for path in sorted((root / PUBLISHED).glob("??????")):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            found[line["folder"], line["step"], line["probe"], line["group"]].append(line["values"])
    return found


def audit(root: Path, *, n_kills: int = 0, destroyed: frozenset[Key] = frozenset(), home: Path | None = None) -> int:
    """Hold the records of `home`, or `root`, against what was published; the number of measurements that they lack.

    `n_kills` processes may have died between writing a line and publishing it. What the fault itself has `destroyed`
    on the disk is not counted as lost.
    """
    told, lost = published(root), 0
    assert told
    for folder in sorted({key[0] for key in told}):
        record = read_record((home or root) / folder)
        values = {(folder, m.step, m.probe, m.group): m.values for m in record.measurements}
        assert len(values) == len(record.measurements)
        resumed_at = min((e.step for e in record.events if e.name == "gap"), default=math.inf)
        lines = _raw_keys((home or root) / folder / MEASUREMENTS)
        for key in [key for key in told if key[0] == folder and key not in destroyed]:
            begins_anew = key[2] == _OF_EARLIER_BATCHES and key[1] > resumed_at
            lost += key not in values and not begins_anew
            times = len(told[key])
            assert times <= lines[key] <= times + n_kills, f"{key} was published {times} times: {lines[key]} lines"
            if key in values and lines[key] == times:
                expected = pytest.approx(told[key][-1], rel=0.0, abs=0.0, nan_ok=True)
                assert values[key] == expected, f"{key} is not what was published"
        opens(record)
    return lost


def opens(record: RunRecord) -> None:
    """The report can be made, and read as a page with the record's own numbers in it."""
    page = _Page()
    page.feed(render_page([record]))
    page.close()
    assert page.tags["script"] == 3
    assert page.tags["html"] == page.tags["main"] == 1
    assert page.text["verdict"]
    (run,) = json.loads(page.text["page-data"])["runs"]
    assert run["n_measurements"] == len(record.measurements)


def _raw_keys(path: Path) -> Counter[Key]:
    keys: Counter[Key] = Counter()
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
            keys[path.parent.name, line["step"], line["probe"], line["group"]] += 1
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return keys
