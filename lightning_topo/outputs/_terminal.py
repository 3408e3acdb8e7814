"""The terminal: values in the progress bar, a line for each event, a summary at the end."""

import logging
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Protocol, runtime_checkable

from lightning_topo._figures.coverage import stretches, uncovered
from lightning_topo._watch.output import Run
from lightning_topo._watch.published_values import Readings
from lightning_topo.homology import PersistenceDiagram
from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.outputs.page._live import record_bytes
from lightning_topo.outputs.record import MEASUREMENTS, REPORT, RunRecord, read_record
from lightning_topo.phases import NOTES, Phase, Replay, TopologyEvent

_MOST_BYTES_HERE = 1 << 24
"""A larger record is not read into the training process: its page has the verdict."""
_MOST_SPANS = 8
_LONGEST_NAME = 40


@runtime_checkable
class Printer(Protocol):
    """Shows lines and progress, in whatever way the training loop does."""

    def say(self, text: str) -> None:
        """Show some lines."""
        ...

    def progress(self, values: Mapping[str, str]) -> None:
        """Show named values beside the training's own progress."""
        ...


class LoggingPrinter:
    """Logs lines under `lightning_topo`, and shows no progress.

    Where nobody has set up logging the lines go to stderr, as those of Lightning's own loggers do.
    """

    def __init__(self) -> None:
        self._logger = logging.getLogger("lightning_topo")
        if self._logger.level == logging.NOTSET:
            self._logger.setLevel(logging.INFO)
        if not any(isinstance(handler, _LastResort) for handler in self._logger.handlers):
            self._logger.addHandler(_LastResort())

    def say(self, text: str) -> None:
        """Log the lines."""
        self._logger.info(text)

    def progress(self, values: Mapping[str, str]) -> None:
        """Do nothing: a log has no progress bar."""


class _LastResort(logging.Handler):
    """Prints to stderr what no other handler of ours or of the root would take."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = logging.getLogger("lightning_topo")
        others = [handler for handler in logger.handlers if handler is not self]
        if logger.propagate:
            others += logging.getLogger().handlers
        if not others:
            print(self.format(record), file=sys.stderr)


class TerminalOutput:
    """Shows the phase and the critical ratio as progress, a line for each event, and a summary at the end."""

    name = "The terminal"

    def __init__(self, printer: Printer, dirpath: Path | None = None, *, has_page: bool = True) -> None:
        self._printer, self._dirpath, self._has_page = printer, dirpath, has_page
        self._readings: Readings | None = None
        self._phase = Phase.UNKNOWN
        self._shown: dict[str, str] = {}

    def start(self, run: Run) -> None:
        """Keep the readings, in which the critical ratio is looked up."""
        self._readings = run.readings

    def measurement(self, measurement: Measurement) -> None:
        """Show the phase and the critical ratio if they have changed, at most once a step."""
        if measurement.probe == "phase" and "phase" in measurement.values:
            self._phase = Phase(int(measurement.values["phase"]))
        elif measurement.probe not in ("training", "row"):
            return
        ratio = None if self._readings is None else self._readings.latest("topology/critical_ratio")
        if (values := bar_values(self._phase, ratio)) != self._shown:
            self._shown = values
            self._printer.progress(values)

    def event(self, event: TopologyEvent) -> None:
        """Print an event in one line; of one that needs no action, only the first sentence."""
        if event.name in NOTES:
            event = replace(event, message=f"{event.message.partition('. ')[0].rstrip('.')}.", remedy="")
        self._printer.say(event_line(event))

    def diagrams(self, step: int, diagrams: Mapping[str, PersistenceDiagram]) -> None:
        """Do nothing: diagrams are not printed."""

    def end(self, *, in_haste: bool = False) -> None:
        """Print a summary of the run, and the path of its page; nothing for a run without a step."""
        if self._dirpath is None or not self._dirpath.is_dir():  # of a run without a step nothing is left
            return
        where = self._dirpath / REPORT if self._has_page else self._dirpath
        if in_haste:
            made = ": its page is being written" if self._has_page else ""
            self._printer.say(f"Topology: the record is closed{made}\n  look at   {where}")
        elif record_bytes(self._dirpath) > _MOST_BYTES_HERE:
            found = _told_by(where) if self._has_page else "see the record"
            self._printer.say(f"{_headed(found)}\n  look at   {where}")
        else:
            self._printer.say(f"{summary(read_record(self._dirpath))}\n  look at   {where}")


def _told_by(page: Path) -> str:
    """The verdict in the title of a page, unless the page is older than the record's last line."""
    try:
        if page.is_file() and page.stat().st_mtime_ns < (page.parent / MEASUREMENTS).stat().st_mtime_ns:
            return "the page is being written"
        with page.open(encoding="utf-8", errors="replace") as file:
            found = re.search("<title>(.*?)</title>", file.read(1 << 16), re.DOTALL)
    except OSError:
        found = None
    return "see the record" if found is None else unescape(found[1])


def bar_values(phase: Phase, ratio: float | None) -> dict[str, str]:
    """The values of the progress bar.

    >>> bar_values(Phase.EDGE_OF_STABILITY, 0.01234)
    {'phase': 'edge of stability', 'r': '0.0123'}
    """
    return {"phase": _words(phase)} | ({} if ratio is None else {"r": f"{ratio:.3g}"})


def event_line(event: TopologyEvent) -> str:
    """An event in one line.

    >>> from lightning_topo.phases import EventName
    >>> event_line(TopologyEvent(EventName.GAP, 3, 0, "net.0", message="Resumed.", remedy="Nothing to do."))
    'gap at step 3 [net.0]: Resumed. Nothing to do.'
    >>> event_line(TopologyEvent(EventName.GAP, 3, 0, "n" * 99, message="No " + "n" * 99, remedy="Wait."))[:70]
    'gap at step 3 [nnnnnnnnnnnnnnnnnnn…nnnnnnnnnnnnnnnnnnnn]: No nnnnnnnnn'
    """
    where = f" [{_shortened(event.group)}]" if event.group else ""
    message = event.message.replace(event.group, _shortened(event.group)) if event.group else event.message
    end = "" if message.endswith((".", "!", "?", ":")) else "."
    return " ".join(f"{event.name} at step {event.step}{where}: {message}{end} {event.remedy}".split())


def _shortened(name: str) -> str:
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[: half - 1]}\u2026{name[-half:]}"


def summary(record: RunRecord) -> str:
    """A run in a few lines: the verdict, the coverage, the phases with their spans, the events, the worst group."""
    from lightning_topo.outputs.page._advice import advise
    from lightning_topo.outputs.page._evidence import Evidence
    from lightning_topo.outputs.page._outcome import history
    from lightning_topo.outputs.page._verdict import coverage_words, sentence

    past = history(record)
    outcome = past.outcome
    lines = [_headed(sentence(outcome, with_coverage=False))]
    if outcome.coverage is not None:
        lines.append(f"  coverage  {coverage_words(outcome.coverage, is_broken=bool(outcome.breakdowns))}")
    if outcome.last_step is not None:
        lines.append(f"  phases    {_spans(_phases(record, past.replay), outcome.last_step)}")
    if past.events:
        counts = Counter(str(event.name) for event in past.events)
        lines.append("  events    " + ", ".join(f"{n} x {name}" if n > 1 else name for name, n in counts.items()))
    if (peak := outcome.peak_ratio) is not None:
        lines.append(f"  worst     {_shortened(peak.group)}: r = {peak.value:.3g} at step {peak.step:,}")
    if (advice := advise(outcome, Evidence.of_record(record))) is not None:
        lines.append(f"  next      {advice.decision}")
        lines += [f"            {reason}" for reason in advice.reasons[:1]]
    return "\n".join(lines)


def _headed(verdict: str) -> str:
    """A verdict among lines that are not ours; one that names the topology already needs no head."""
    return verdict if verdict.startswith("Topology ") else f"Topology: {verdict}"


def _phases(record: RunRecord, seen: Replay) -> Sequence[tuple[int, Phase]]:
    """The network's phases, preserved only over certified steps."""
    return uncovered(seen.phases, stretches(record.measurements))[GLOBAL]


def _spans(changes: Sequence[tuple[int, Phase]], last: int) -> str:
    """Each phase with its first and last step, or, of many, how many steps each held.

    >>> _spans([(1, Phase.PRESERVED), (250, Phase.EDGE_OF_STABILITY)], 800)
    'preserved 1-249, edge of stability 250-800'
    """
    if not changes:
        return "none is known"
    ends = [*(step - 1 for step, _ in changes[1:]), last]
    spans = [(phase, step, end) for (step, phase), end in zip(changes, ends, strict=True)]
    if len(spans) <= _MOST_SPANS:
        named = (f"{_words(phase)} {step}{'' if step == end else f'-{end}'}" for phase, step, end in spans)
        return ", ".join(named)
    held: Counter[Phase] = Counter()
    for phase, step, end in spans:
        held[phase] += end - step + 1
    shares = ", ".join(f"{_words(phase)} for {n:,} steps" for phase, n in sorted(held.items()))
    return f"{shares}; {len(spans) - 1} changes"


def _words(phase: Phase) -> str:
    return phase.name.lower().replace("_", " ")
