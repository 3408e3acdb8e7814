"""What a checkpoint holds of a session, read back with care: it may be damaged, or made by someone else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_topo.phases import DetectorState, EventName, Severity, TopologyEvent

STATE_VERSION = 1


@dataclass(frozen=True, slots=True)
class SavedSession:
    """The state of an earlier session of the same run.

    `dirpath` and `run_id` say where its record is, None where it had none; `every` holds the periods in force, and
    `awaited` the steps of captures, by probe, whose results had not come yet.
    """

    dirpath: Path | None
    run_id: str | None
    detector: DetectorState
    every: Mapping[str, int] = field(default_factory=dict)
    awaited: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def read(cls, state: Any) -> "SavedSession":
        """From a checkpoint's state; raises `ValueError` where it is none, with the reason."""
        if not isinstance(state, Mapping):
            raise ValueError(f"it is no mapping but a {type(state).__name__}")
        if state.get("version") != STATE_VERSION:
            raise ValueError(f"it has version {state.get('version')!r}, expected {STATE_VERSION}")
        try:
            dirpath, run_id = state["dirpath"], state["run_id"]
            every = {str(name): int(n) for name, n in state["every"].items()}
            detector = DetectorState.from_dict(state["detector"])
            awaited = {str(k): tuple(int(step) for step in steps) for k, steps in state.get("awaited", {}).items()}
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from error
        if not all(isinstance(text, str | None) for text in (dirpath, run_id)) or any(n < 1 for n in every.values()):
            raise ValueError("it is damaged (a folder that is no text, or a period below 1)")
        return cls(None if dirpath is None else Path(dirpath), run_id, detector, every, awaited)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and containers, for a checkpoint."""
        return {
            "version": STATE_VERSION,
            "dirpath": None if self.dirpath is None else str(self.dirpath),
            "run_id": self.run_id,
            "detector": self.detector.to_dict(),
            "every": dict(self.every),
            "awaited": {probe: list(steps) for probe, steps in self.awaited.items()},
        }

    def under_way(self) -> str:
        """A sentence about what was awaited when the checkpoint was made; nothing where nothing was."""
        if not self.awaited:
            return ""
        what = "; ".join(f"{probe} at step {', '.join(map(str, steps))}" for probe, steps in self.awaited.items())
        return f" Still being computed then, and lost unless the record has it: {what}."


def saved_session(state: Any, step: int, epoch: int) -> tuple[SavedSession | None, TopologyEvent | None]:
    """A checkpoint's state (None where there was none), or the event that says why it cannot be used."""
    try:
        return None if state is None else SavedSession.read(state), None
    except ValueError as error:
        return None, TopologyEvent(
            EventName.GAP,
            step,
            epoch,
            severity=Severity.WARN,
            message=f"The monitor's state in the checkpoint cannot be used: {error}. It begins anew at step {step}.",
            remedy="Earlier steps are in the record of the run before; another checkpoint may be whole.",
        )


def resumed(step: int, epoch: int, since: str) -> TopologyEvent:
    """The event of a run that goes on, with what is to be said of it."""
    return TopologyEvent(
        EventName.GAP,
        step,
        epoch,
        message=f"Resumed from a checkpoint at step {step}; later steps are measured again.{since}",
        remedy="Nothing to do.",
    )
