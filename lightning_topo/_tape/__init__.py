"""A training step, watched once: recorded as it runs, replayed afterwards, with none of the user's code."""

from lightning_topo._tape.acceptance import accepted, replayed_gradient, runs_compiled_code, unlike_recorded
from lightning_topo._tape.collectives import receives
from lightning_topo._tape.compiled import compiled_reason
from lightning_topo._tape.curvature import TapeLoss, tape_loss
from lightning_topo._tape.mode import outside_modes
from lightning_topo._tape.program import Call, HostRead, Slot, Tape
from lightning_topo._tape.recorder import StepRecorder
from lightning_topo._tape.replay import CannotReplay, replay

__all__ = [
    "Call",
    "CannotReplay",
    "HostRead",
    "Slot",
    "StepRecorder",
    "Tape",
    "TapeLoss",
    "accepted",
    "compiled_reason",
    "outside_modes",
    "receives",
    "replay",
    "replayed_gradient",
    "runs_compiled_code",
    "tape_loss",
    "unlike_recorded",
]
