"""The page itself: one HTML file that needs nothing else, made from records alone."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from lightning_topo.outputs._machine import is_name_of_someone
from lightning_topo.outputs.page import _markup as markup
from lightning_topo.outputs.page._encode import to_json
from lightning_topo.outputs.page._model import Budget, RunView, page_json, run_view
from lightning_topo.outputs.page._parameters import parameter_section
from lightning_topo.outputs.record import RunRecord

_PLOTLY = "plotly-cartesian-4.1.1.min.js"
MAX_BYTES = 2_950_000
"""A page that would be larger is thinned further."""
_SCRIPTS = ("drawing.js", "figures.js", "fate.js", "compare.js", "page.js", "live.js")
_MANY_RUNS = 4
"""Of more, none is shown by itself, only together with the others."""
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True, slots=True)
class Live:
    """Of a page that will be written anew: which state of the run it shows, and in how many seconds the next is due."""

    stamp: str
    seconds: float


def write_report(records: Sequence[RunRecord], path: str | os.PathLike[str], *, live: Live | None = None) -> Path:
    """Write the page of one run, or of several side by side, to `path`; the path.

    The page of a run that goes on is `live`: where it stands open, it loads itself again when the next is due.

    The page is written under a temporary name in the same folder and then renamed, so that a reader sees a whole
    page or the one before it.

    Raises:
        ValueError: no record.
        OSError: the folder cannot be written.
    """
    page = render_page(records, live=live)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        # Never through a link that stands there: a stranger's folder may hold any.
        with temporary.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(page)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def render_page(records: Sequence[RunRecord], *, live: Live | None = None) -> str:
    """The page of the records, as text, of less than 3 MB: thinned as far as that takes; for `live` see `Live`.

    Raises `ValueError` if there is no record.
    """
    if not records:
        raise ValueError("expected at least one record, got none")
    detailed = len(records) <= _MANY_RUNS
    n_groups = sum(min(len(record.groups), Budget.of(1).groups) for record in records)
    labels = run_labels([record.dirpath for record in records])
    page, scale = "", 1.0
    while not page or (len(page.encode()) > MAX_BYTES and scale > 0.01):
        budget = Budget.of(n_groups, scale)
        views = [
            run_view(record, label, budget, detailed=detailed) for record, label in zip(records, labels, strict=True)
        ]
        page = _fill(views, live)
        scale *= min(0.85, MAX_BYTES / len(page.encode()))
    return page


def _fill(runs: Sequence[RunView], live: Live | None) -> str:
    parts = {
        "title": markup.text(runs[0].verdict if len(runs) == 1 else f"{len(runs)} runs compared"),
        "css": _asset("page.css"),
        "head": markup.head(runs[0]) if len(runs) == 1 else markup.comparison(runs),
        "events": "".join(markup.events(run, named=len(runs) > 1) for run in runs),
        "about": "".join(markup.about(run, named=len(runs) > 1) + parameter_section(run.parameters) for run in runs),
        "data": to_json(page_json(runs)),
        "plotly": _asset(_PLOTLY),
        "script": f"const LIVE = {to_json(live)};\n" + "".join(map(_asset, _SCRIPTS)),
    }
    return _PLACEHOLDER.sub(lambda match: parts[match[1]], _asset("page.html"))


def run_labels(dirpaths: Sequence[Path]) -> tuple[str, ...]:
    """Short names that tell run folders apart: the parts of their paths that are not the same.

    >>> run_labels([Path("logs/version_0/topology"), Path("logs/version_1/topology")])
    ('version_0', 'version_1')
    >>> run_labels([Path("logs/version_0/topology")])
    ('version_0/topology',)
    """
    parts = [path.resolve().parts for path in dirpaths]
    if len(set(parts)) == 1:
        # The folder of a home, or of a whole machine's homes, tells of a person, and so does the user's name.
        home = Path.home().resolve().parts
        last = [i for i in range(len(parts[0])) if i >= len(parts[0]) - 2 and parts[0][: i + 1] != home]
        name = "/".join(parts[0][i] for i in last if not is_name_of_someone(parts[0][i]))
        return tuple(name if i == 0 else f"{name} ({i + 1})" for i in range(len(parts)))
    shortest = min(map(len, parts))
    start = next(i for i in range(shortest + 1) if i == shortest or len({p[i] for p in parts}) > 1)
    end = next(i for i in range(shortest + 1) if i == shortest or len({p[-1 - i] for p in parts}) > 1)
    labels = ["/".join(p[start : len(p) - end] or p[-1:]) for p in parts]
    return tuple(label if labels.index(label) == i else f"{label} ({i + 1})" for i, label in enumerate(labels))


def _asset(name: str) -> str:
    return files("lightning_topo.outputs.page").joinpath("assets", name).read_text(encoding="utf-8")
