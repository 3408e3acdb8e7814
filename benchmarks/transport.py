"""How many functions a number passes on its way from a probe to the record and the tracker.

    python -m benchmarks.transport [--step 5] [--list]

Traces a small fit: from the return of `Distortion.measure` at one step until the row of that step is in the logger's
`log_metrics` and the record has its line. Counts the package's functions that are called in between, and those on the
stack as `measure` returns, without what measures (probes, geometry, homology, neurons, tape, stability) and without the
tracker's own (outputs/trackers). A function is on the way if the number itself can be reached from its arguments, its
local variables or what it returns, or if it calls one of which that holds. All others are called meanwhile for other
reasons: clocks, budgets, periods, coverage, the detector's rules for other quantities.
"""

import argparse
import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import lightning as L
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch.utils.data import DataLoader

import lightning_topo
from lightning_topo import Distortion, TopologyMonitor
from lightning_topo.demo import DigitsMLP, digits

PACKAGE = Path(lightning_topo.__file__).parent
MEASURING = ("probes", "geometry", "homology", "neurons", "_tape", "stability")
TRACKERS = "outputs/trackers"
BRANCHES = {
    "outputs/record": "the record",
    "outputs/_about.py": "run.json",
    "outputs/_feed.py": "other callbacks",
    "phases": "the detector",
    "callbacks/_trainer_training.py": "trainer.callback_metrics",
}
"""Files that the number passes on its way to elsewhere than the tracker."""
WANTED = 50, 12
_DEPTH = 6
"""How far the number is looked for: Outcome -> values -> group -> name, or the same within a list in an object."""


@dataclass(frozen=True, slots=True)
class Function:
    """One function of the package: its file below it, and its name there."""

    file: str
    name: str


@dataclass(slots=True)
class Trace:
    """Follows one number through the functions of the package."""

    number: float | None = None
    on_the_way: dict[Function, None] = field(default_factory=dict)
    meanwhile: dict[Function, None] = field(default_factory=dict)
    arrived: bool = False

    def begin(self, number: float, frame: FrameType | None) -> None:
        """`measure` returns the number to the functions on the stack."""
        self.number = number
        self._mark(frame)
        sys.setprofile(self._profile)

    def end(self) -> None:
        """The number has arrived everywhere."""
        sys.setprofile(None)
        self.meanwhile = {function: None for function in self.meanwhile if function not in self.on_the_way}

    def _profile(self, frame: FrameType, event: str, returned: Any) -> None:
        if event not in ("call", "return") or (function := transport(frame)) is None:
            return
        self.meanwhile[function] = None
        assert self.number is not None
        if any(holds(value, self.number, _DEPTH) for value in (returned, *frame.f_locals.values())):
            self._mark(frame)

    def _mark(self, frame: FrameType | None) -> None:
        while frame is not None:
            if (function := transport(frame)) is not None:
                self.on_the_way[function] = None
            frame = frame.f_back


def transport(frame: FrameType) -> Function | None:
    """The function of a frame, where it is one of the package that neither measures nor belongs to a tracker."""
    path = Path(frame.f_code.co_filename)
    if not path.is_relative_to(PACKAGE):
        return None
    file = path.relative_to(PACKAGE).as_posix()
    if file.startswith((*(f"{name}/" for name in MEASURING), f"{TRACKERS}/", "demo.py")):
        return None
    return Function(file, frame.f_code.co_qualname.partition(".<locals>")[0])


def holds(value: Any, number: float, depth: int) -> bool:
    """Whether a number can be reached within a value, or stands in a text.

    >>> holds({"net.0": {"r": 0.1}}, 0.1, 3), holds({"net.0": {"r": 0.1}}, 0.1, 1), holds('{"r": 0.1}', 0.1, 0)
    (True, False, True)
    """
    match value:
        case float():
            return value == number
        case str():
            return repr(number) in value
        case torch.Tensor():
            return value.numel() == 1 and value.is_floating_point() and abs(float(value) / number - 1.0) < 1e-6
    if depth == 0:
        return False
    if isinstance(value, Mapping):
        return any(holds(item, number, depth - 1) for item in value.values())
    if isinstance(value, list | tuple):
        return any(holds(item, number, depth - 1) for item in value)
    if is_dataclass(value) and getattr(value, "__dataclass_params__").frozen:  # noqa: B009 - a message has no past
        return any(holds(getattr(value, entry.name, None), number, depth - 1) for entry in fields(value))
    return False


class Arrival(DummyLogger):
    """A logger that ends the trace as the row with the number arrives."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    @property
    def save_dir(self) -> None:
        """It writes nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Take a row."""
        trace = self.trace
        if trace.number is not None and not trace.arrived and trace.number in metrics.values():
            trace.arrived = True
            trace.end()


def traced(step: int, folder: Path) -> Trace:
    """The trace of the number that is measured at one step of a fit with a row at every step."""
    trace, measure = Trace(), Distortion.measure

    def watched(probe: Distortion, capture: Any) -> Any:
        result = measure(probe, capture)
        if capture.step == step:
            trace.begin(next(iter(result.values.values()))["critical_ratio"], sys._getframe(1))
        return result

    monitor = TopologyMonitor([Distortion(every_n_steps=1)], dirpath=folder / "topology", report=False, verbose=False)
    trainer = L.Trainer(
        max_steps=step + 2,
        accelerator="cpu",
        callbacks=[monitor],
        logger=Arrival(trace),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    torch.manual_seed(0)
    with mock.patch.object(Distortion, "measure", watched):
        trainer.fit(DigitsMLP(), DataLoader(digits(), batch_size=64))
    if not trace.arrived:
        raise RuntimeError("expected the number to arrive in the logger, but no row had it")
    lines = (folder / "topology" / "measurements.jsonl").read_text()
    if repr(trace.number) not in lines:
        raise RuntimeError(f"expected a line of the record with {trace.number!r}, found none")
    return trace


def on_branches(trace: Trace) -> list[Function]:
    """Functions that the number passes on its way to elsewhere than the tracker."""
    return [function for function in trace.on_the_way if function.file.startswith(tuple(BRANCHES))]


def main() -> None:
    """Trace, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, default=5, help="whose number is followed (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="name the functions")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        trace = traced(arguments.step, Path(folder))
    passed, meanwhile = Counter(f.file for f in trace.on_the_way), Counter(f.file for f in trace.meanwhile)
    print(f"{'file':34} {'on the way':>10} {'meanwhile':>9}")
    for file in sorted(passed | meanwhile):
        print(f"{file:34} {passed[file]:10} {meanwhile[file]:9}")
        for function in (*trace.on_the_way, *trace.meanwhile) if arguments.list else ():
            if function.file == file:
                print(f"    {'' if function in trace.on_the_way else '(meanwhile) '}{function.name}")
    branches = Counter(function.file for function in on_branches(trace))
    n_all, n_aside, both = len(trace.on_the_way), branches.total(), passed | meanwhile
    print(f"\nOn the way: {n_all} functions in {len(passed)} files (wanted: at most {WANTED[0]} in {WANTED[1]}).")
    print(f"To the tracker alone: {n_all - n_aside} in {len(passed) - len(branches)}.")
    print(f"The others lead to {', '.join(BRANCHES.values())}.")
    print(f"With what is called meanwhile: {n_all + len(trace.meanwhile)} functions in {len(both)} files.")


if __name__ == "__main__":
    main()
