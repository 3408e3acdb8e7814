"""What a record may cost whoever reads it: a stranger's that asks for more is refused, with the limit it exceeds."""

from pathlib import Path

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
