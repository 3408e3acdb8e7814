"""What a person sees in the terminal: values in the progress bar, a line for each event, a summary at the end."""

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_topo.measurement import GLOBAL
from lightning_topo.phases import Phase, TopologyEvent
from lightning_topo.record import RunRecord

_MOST_SPANS = 8
_LONGEST_NAME = 40


@dataclass(frozen=True, slots=True)
class Terminal:
    """Speaks on rank 0, above the progress bar of Lightning where there is one; if not `verbose`, not at all.

    Lines go through Lightning's own logger, so `logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)`
    silences them too.
    """

    trainer: Trainer
    verbose: bool = True

    def progress(self, phase: Phase, ratio: float | None) -> None:
        """Show the phase and the critical ratio in the progress bar."""
        if self.verbose and self._bar() is not None:
            # Lightning's bars also show text, and round numbers to three places: too coarse for a small ratio.
            cast(dict[str, Any], self.trainer.progress_bar_metrics).update(bar_values(phase, ratio))

    def event(self, event: TopologyEvent) -> None:
        """Say in one line what happened."""
        self._say(event_line(event))

    def closed(self, record: RunRecord, where: Path) -> None:
        """Say what the run came to, and where it can be looked at."""
        if self.verbose:
            self._say(f"{summary(record)}\n  look at   {where}")

    def _bar(self) -> Any:
        """Lightning's progress bar, if it shows; of its kinds only some say so."""
        bar = self.trainer.progress_bar_callback
        return bar if getattr(bar, "is_enabled", False) else None

    def _say(self, text: str) -> None:
        if not self.verbose:
            return
        bar = self._bar()
        with _above(bar):
            if any(cls.__name__ == "RichProgressBar" for cls in type(bar).__mro__):
                # Rich draws its bar anew below what is printed, but not below what is logged.
                if logging.getLogger("lightning.pytorch").isEnabledFor(logging.INFO):
                    bar.print(text)
            else:
                rank_zero_info(text)


def _above(bar: Any) -> AbstractContextManager[Any]:
    """While a line is written, a bar of tqdm is cleared away; others need no help."""
    try:
        return type(bar.train_progress_bar).external_write_mode()
    except (AssertionError, AttributeError, TypeError):  # no bar, another kind, or none drawn yet
        return nullcontext()


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
    """What a run came to, in a few lines: the verdict, the phases with their spans, the events, the worst group."""
    from lightning_topo.report.outcome import history
    from lightning_topo.report.verdict import sentence

    past = history(record)
    outcome = past.outcome
    lines = [f"Topology: {sentence(outcome)}"]
    if outcome.last_step is not None:
        lines.append(f"  phases    {_spans(past.replay.phases[GLOBAL], outcome.last_step)}")
    if past.events:
        counts = Counter(str(event.name) for event in past.events)
        lines.append("  events    " + ", ".join(f"{n} x {name}" if n > 1 else name for name, n in counts.items()))
    if (peak := outcome.peak_ratio) is not None:
        lines.append(f"  worst     {_shortened(peak.group)}: r = {peak.value:.3g} at step {peak.step:,}")
    return "\n".join(lines)


def _spans(changes: Sequence[tuple[int, Phase]], last: int) -> str:
    """Each phase with its first and last step, or, of many, how many steps each held.

    >>> _spans([(1, Phase.PRESERVED), (250, Phase.EDGE_OF_STABILITY)], 800)
    'preserved 1-250, edge of stability 250-800'
    """
    ends = [*(step for step, _ in changes), last][1:]
    spans = [(phase, step, end) for (step, phase), end in zip(changes, ends, strict=True)]
    if len(spans) <= _MOST_SPANS:
        return ", ".join(f"{_words(phase)} {step}-{end}" for phase, step, end in spans) or "none could be told"
    held: Counter[Phase] = Counter()
    for phase, step, end in spans:
        held[phase] += end - step
    shares = ", ".join(f"{_words(phase)} for {n:,} steps" for phase, n in sorted(held.items()))
    return f"{shares}; {len(spans) - 1} changes"


def _words(phase: Phase) -> str:
    return phase.name.lower().replace("_", " ")
