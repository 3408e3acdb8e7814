"""What an experiment hands back, and how it is written: figures as PNG, tables as markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure

Cell = str | float | int | bool | None
Row = Mapping[str, Cell]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with the same columns, below a caption."""

    caption: str
    rows: Sequence[Row]

    def markdown(self) -> str:
        """The table as it stands in a page."""
        columns = list(self.rows[0])
        lines = [columns, ["---"] * len(columns), *([cell_text(row[c]) for c in columns] for row in self.rows)]
        return "\n".join([self.caption, "", *(f"| {' | '.join(line)} |" for line in lines)])


@dataclass(frozen=True, slots=True)
class Outcome:
    """The evidence of one experiment: figures by the end of their file name ("" for the only one), and tables."""

    title: str
    figures: Mapping[str, Figure]
    tables: Sequence[Table]
    settings: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path, name: str, command: str) -> list[Path]:
        """Write `<name>*.png` and `<name>.md`; returns what was written."""
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for suffix, figure in self.figures.items():
            path = folder / f"{name}{f'-{suffix}' if suffix else ''}.png"
            figure.savefig(path, metadata={"Software": None})
            written.append(path)
        made = f"Made by `{command}` with torch {torch.__version__.split('+')[0]} on a CPU, one thread."
        settings = [f"- {key}: {text}" for key, text in self.settings.items()]
        parts = [f"# {self.title}", made, "\n".join(settings), *(table.markdown() for table in self.tables)]
        page = folder / f"{name}.md"
        page.write_text("\n\n".join(part for part in parts if part) + "\n")
        return [*written, page]


def cell_text(value: Cell) -> str:
    """A number with three figures, a truth as a word, nothing as a dash.

    >>> [cell_text(v) for v in (0.012345, 1234, True, None, "sgd")]
    ['0.0123', '1234', 'yes', '-', 'sgd']
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def spread(values: Sequence[float]) -> str:
    """The smallest and the largest of some seeds' values, as one text.

    >>> spread([0.5, 0.25]), spread([3.0])
    ('0.25 - 0.5', '3')
    """
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} - {high}"
