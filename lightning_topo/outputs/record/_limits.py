"""What a record may cost whoever reads it: a stranger's that asks for more is refused, with the limit it exceeds."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from lightning_topo.phases import TopologyEvent

MOST_BYTES = 1 << 32
"""Of lines, in one file."""
MOST_LINES = 5_000_000
"""In one file."""
MOST_UNREADABLE = 100_000
"""Lines in one file that are no measurement."""
MOST_GROUPS = 10_000
"""Of neurons."""
MOST_SERIES = 50_000
"""Of a probe's measurements of one group."""
MOST_NAMES = 5_000
"""Of values, over all lines."""
MOST_CAPTURES = 100_000
"""Files of diagrams."""
MOST_VALUES = 1_000
"""A line of more values is not read."""
LONGEST_NAME = 1_000
"""A line with a longer name, of a group, a probe or a value, is not read."""
LONGEST_TEXT = 10_000
"""An event with a longer message or remedy is not read."""
MOST_CAPTURE_BYTES = 1 << 26
"""Unpacked, of the diagrams of one capture."""
_PLACE = 6
"""So many fields of a line are no values."""


class RecordTooLarge(ValueError):
    """A record is larger than any training's; `limit` names what there is too much of."""

    def __init__(self, limit: str, most: int, found: int | None = None) -> None:
        more = "more" if found is None else f"{found:,}"
        super().__init__(f"expected a record of at most {most:,} {limit}, found {more}: it is not read")
        self.limit = limit


def check(limit: str, most: int, found: int) -> None:
    """Refuse what is too much.

    >>> check("lines", 3, 4)
    Traceback (most recent call last):
    ...
    lightning_topo.outputs.record._limits.RecordTooLarge: expected a record of at most 3 lines, found 4: it is not read
    """
    if found > most:
        raise RecordTooLarge(limit, most, found)


def check_size(path: Path) -> None:
    """Refuse a file of lines that is larger than any training's; one that is not there is none."""
    if path.is_file():
        check(f"bytes in {path.name}", MOST_BYTES, path.stat().st_size)


def unreadable(probe: str, group: str, values: Collection[str]) -> str:
    """Why a reader would leave a measurement of values with these names out; empty where it would not.

    >>> unreadable("mine", "", ["v" * 1001])
    'expected names of at most 1,000 characters, got one of 1,001'
    """
    if len(values) > MOST_VALUES - _PLACE:
        return f"expected at most {MOST_VALUES - _PLACE:,} values of a group, got {len(values):,}"
    longest = max(map(len, (probe, group, *values)))
    if longest > LONGEST_NAME:
        return f"expected names of at most {LONGEST_NAME:,} characters, got one of {longest:,}"
    return ""


def readable(event: TopologyEvent) -> TopologyEvent:
    """An event whose texts a reader takes: an error's words, which it may quote, have any length.

    >>> from lightning_topo.phases import EventName
    >>> len(readable(TopologyEvent(EventName.GAP, 1, 0, message="x" * 20_000)).message)
    10000
    """
    group, message, remedy = event.group, event.message, event.remedy
    if len(group) <= LONGEST_NAME and len(message) <= LONGEST_TEXT and len(remedy) <= LONGEST_TEXT:
        return event
    return replace(
        event,
        group=group[:LONGEST_NAME],
        message=_cut(message),
        remedy=_cut(remedy),
    )


def _cut(text: str) -> str:
    """The two ends of a text that is too long."""
    if len(text) <= LONGEST_TEXT:
        return text
    half = (LONGEST_TEXT - 3) // 2
    return f"{text[: LONGEST_TEXT - half - 3]}...{text[-half:]}"
