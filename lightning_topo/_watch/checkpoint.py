"""The state of a watch in a checkpoint; reading checks it, as it may be damaged or of another program."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from lightning_topo._watch.coverage import Shares
from lightning_topo._watch.schedule import Slot
from lightning_topo.phases import DetectorState, EventName, Severity, TopologyEvent

STATE_VERSION = 2
_MOST_NAMED = 8


@dataclass(frozen=True, slots=True)
class SavedWatch:
    """The state of an earlier watch of the same run, after `step`.

    `dirpath` and `run_id` say where its record is, None where it had none; `slots` are those of adaptive probes,
    `awaited` the steps of captures, by probe, whose results had not come yet, `rate` the last recorded learning rate,
    and `carried` what probes go on from, by probe, in plain numbers.
    """

    dirpath: Path | None
    run_id: str | None
    step: int
    detector: DetectorState
    slots: Mapping[str, Slot] = field(default_factory=dict)
    shares: Shares = field(default_factory=Shares)
    awaited: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    rate: float | None = None
    carried: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, state: Any) -> "SavedWatch":
        """Read a checkpoint's state; raise `ValueError` with the reason where it cannot be used."""
        if not isinstance(state, Mapping):
            raise ValueError(f"expected a mapping, got {type(state).__name__}")
        version = state.get("version")
        if not isinstance(version, int) or version != STATE_VERSION:
            raise ValueError(f"expected version {STATE_VERSION}, got {version!r}")
        try:
            dirpath, run_id, step = state["dirpath"], state["run_id"], int(state["step"])
            slots = {str(name): Slot(*(int(n) for n in slot)) for name, slot in state["slots"].items()}
            detector = DetectorState.from_dict(state["detector"])
            shares = Shares(**{name: int(n) for name, n in state["shares"].items()})
            awaited = {str(k): tuple(int(step) for step in steps) for k, steps in state["awaited"].items()}
            rate = None if state.get("rate") is None else float(state["rate"])
            carried = {str(name): plain for name, plain in state.get("carried", {}).items()}
        # A tensor where a number or a mapping should be raises the last two.
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, IndexError, RuntimeError) as error:
            raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from error
        if not all(isinstance(text, str | None) for text in (dirpath, run_id)):
            raise ValueError("it is damaged (a folder or run that is not text)")
        if step < 0 or any(slot.stride < 1 for slot in slots.values()):
            raise ValueError("it is damaged (a negative step, or a stride below 1)")
        return cls(
            None if dirpath is None else Path(dirpath), run_id, step, detector, slots, shares, awaited, rate, carried
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and containers, for a checkpoint."""
        return {
            "version": STATE_VERSION,
            "dirpath": None if self.dirpath is None else str(self.dirpath),
            "run_id": self.run_id,
            "step": self.step,
            "detector": self.detector.to_dict(),
            "slots": {name: [slot.start, slot.stride, slot.at] for name, slot in self.slots.items()},
            "shares": self.shares.counts(),
            "awaited": {probe: list(steps) for probe, steps in self.awaited.items()},
            "rate": self.rate,
            "carried": dict(self.carried),
        }

    def under_way(self) -> str:
        """A sentence about what was awaited when the checkpoint was made; empty where nothing was."""
        if not self.awaited:
            return ""
        what = "; ".join(
            f"{probe} at step {_listed(steps)}" for probe, steps in islice(self.awaited.items(), _MOST_NAMED)
        )
        return f" Results that were still being computed are lost unless the record has them: {what}."


def _listed(steps: tuple[int, ...]) -> str:
    """The first of some steps: a damaged state may name a million.

    >>> _listed((1, 2)), _listed(tuple(range(20)))
    ('1, 2', '0, 1, 2, 3, 4, 5, 6, 7 and 12 more')
    """
    some = ", ".join(map(str, steps[:_MOST_NAMED]))
    return some if len(steps) <= _MOST_NAMED else f"{some} and {len(steps) - _MOST_NAMED} more"


def saved_place(state: Any) -> tuple[Path | None, str | None] | None:
    """The run folder and the run that a checkpoint's state names; None where it names none."""
    try:
        saved = SavedWatch.read(state)
    except ValueError:
        return None
    return None if saved.run_id is None else (saved.dirpath, saved.run_id)


def saved_watch(state: Any, step: int, epoch: int) -> tuple[SavedWatch | None, TopologyEvent | None]:
    """A checkpoint's state (None where there was none), or the event that says why it cannot be used."""
    try:
        return None if state is None else SavedWatch.read(state), None
    except ValueError as error:
        return None, TopologyEvent(
            EventName.GAP,
            step,
            epoch,
            severity=Severity.WARN,
            message=f"The monitor's state in the checkpoint cannot be used: {error}. It starts again at step {step}.",
            remedy="Earlier steps are in the previous run's record; another checkpoint may be intact.",
        )


def resumed(step: int, epoch: int, since: str) -> TopologyEvent:
    """The event of a resume from a checkpoint; `since` is a further sentence for its message."""
    return TopologyEvent(
        EventName.GAP,
        step,
        epoch,
        message=f"Resumed from a checkpoint at step {step}; later steps are measured again.{since}",
        remedy="Nothing to do.",
    )
