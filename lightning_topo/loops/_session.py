"""One training watched from its first step: the engine, its outputs, guard and gate, fenced from the training."""

import atexit
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_topo._watch import Watch, WatchSettings
from lightning_topo._watch.checkpoint import saved_place
from lightning_topo.loops._gate import LoopGate
from lightning_topo.loops._guard import LoopGuard
from lightning_topo.loops._training import LoopTraining
from lightning_topo.outputs._fence import fenced
from lightning_topo.outputs._outputs import Outputs, open_outputs

_STATE_VERSION = 1
_DAMAGED = (AttributeError, KeyError, TypeError, ValueError, OverflowError)


class LoopSession:
    """The steps of a door along a loop: `begin`, `loss`, `after_backward`, `end`, `end_epoch`, `close`.

    `saved` is an earlier session's `state()`. Where the watch itself fails, training goes on (unless `on_error` is
    "raise"); what the guard raises stops it.
    """

    def __init__(
        self,
        who: str,
        training: LoopTraining,
        settings: WatchSettings,
        loggers: Sequence[Any] = (),
        guard: LoopGuard | None = None,
        gate: LoopGate | None = None,
        saved: Any = None,
    ) -> None:
        self.training: LoopTraining = training
        self.settings: WatchSettings = settings
        self.guard: LoopGuard | None = guard
        self.gate: LoopGate | None = gate
        self.watch: Watch | None = None
        self._who, self._outputs = who, Outputs()
        self._losses: list[Tensor] = []
        if guard is not None:
            guard.refuse(training)
        with self._fenced("could not use the state in a checkpoint"):
            saved = self._restore(saved)
        with self._fenced("could not start, and does not watch this training", must=guard is not None):
            self._outputs = open_outputs(
                settings.dirpath or Path("topology"),
                loggers=loggers,
                is_first_rank=training.ranks.rank == 0,
                resume=saved_place(saved),
                step=training.step,
                epoch=training.epoch,
                verbose=settings.verbose,
                report=settings.report,
                max_overhead=settings.max_overhead,
                max_record_bytes=settings.max_record_bytes,
                on_error=settings.on_error,
            )
            self.watch = Watch(training, settings, self._outputs, saved)
            if guard is not None:
                guard.attach(self.watch)
        # A script that ends in an exception closes no door.
        atexit.register(self.close, in_haste=True)

    def begin(self, batch: Any = None) -> None:
        """An iteration begins."""
        self._losses = []
        with self._fenced("could not look at a step before it began"):
            if self.watch is not None:
                self.watch.before_batch(batch)

    def loss(self, loss: Tensor, scale: float, *, in_engine: bool = False) -> None:
        """A loss is about to be differentiated."""
        with self._fenced("could not look at a loss"):
            if self.watch is not None:
                if self.watch.steps.is_stepping:  # a closure, which may compute its loss several times
                    self._losses.clear()
                self._losses.append(loss.detach() / scale)
                self.watch.before_backward(loss, scale=scale, in_engine=in_engine)

    def after_backward(self, *, goes_on: bool, in_engine: bool = False) -> None:
        """The gradient is there; `goes_on` where the iteration may go on, `in_engine` where autograd itself calls."""
        with self._fenced("could not look at a step after its gradient"):
            if self.watch is not None:
                self.watch.after_backward(goes_on=goes_on, in_engine=in_engine)

    def end(self) -> None:
        """An iteration is over; it was a step where an optimizer has stepped."""
        with self._fenced("could not measure a step"):
            self._measure()
        if self.guard is not None and self.watch is not None:
            self.guard.check(self.training)
        self._decide()

    def break_off(self) -> None:
        """An iteration has ended in an exception; it was a step all the same if an optimizer has stepped.

        Of several processes the others have stepped too, and wait in the collectives of this step.
        """
        with self._fenced("could not leave a step that broke off"):
            if self._has_unmeasured_update():
                self._measure()
            elif self.watch is not None:
                self.watch.break_off()
        self._losses = []

    def end_epoch(self) -> None:
        """An epoch is over."""
        with self._fenced("could not measure an epoch"):
            if self.watch is not None:
                self.watch.after_epoch()
        self.training.epoch += 1
        self._decide()

    def close(self, *, in_haste: bool = False) -> None:
        """Finish the record and the report, once."""
        atexit.unregister(self.close)
        if in_haste and self.training.ranks.size == 1 and self._has_unmeasured_update():
            self.break_off()
        with self._fenced("could not finish its record and report"):
            if self.watch is not None:
                self.watch.close(in_haste=in_haste)

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint: plain numbers, strings and containers."""
        return {
            "version": _STATE_VERSION,
            "step": self.training.step,
            "epoch": self.training.epoch,
            "watch": None if self.watch is None else self.watch.state(),
            "guard": None if self.guard is None else self.guard.counts(),
            "gate": None if self.gate is None else self.gate.state(),
        }

    def _measure(self) -> None:
        losses, self._losses = self._losses, []
        if self.watch is not None:
            try:
                self.watch.after_batch(sum(losses[1:], losses[0]) if losses else None)
            finally:  # a step that could not be measured is one: all processes count alike
                self.training.step = max(self.training.step, self.watch.last_step)

    def _has_unmeasured_update(self) -> bool:
        """Whether the iteration that broke off has made an update."""
        return self.watch is not None and self.watch.is_in_update

    def _restore(self, saved: Any) -> Any:
        """Take over what a checkpoint holds; returns the engine's part of it."""
        if saved is None:
            return None
        try:
            if saved["version"] != _STATE_VERSION:
                raise ValueError(f"expected version {_STATE_VERSION}, got {saved['version']!r}")
            step, epoch, state = int(saved["step"]), int(saved["epoch"]), saved["watch"]
            if step < 0 or epoch < 0:
                raise ValueError(f"expected step >= 0 and epoch >= 0, got {step} and {epoch}")
            if self.guard is not None and isinstance(saved["guard"], Mapping):
                self.guard.restore(saved["guard"])
            if self.gate is not None and isinstance(saved["gate"], Mapping):
                self.gate.restore(saved["gate"])
        except _DAMAGED as error:
            # The engine says in an event that it begins anew.
            return {"damaged": f"{type(error).__name__}: {error}"}
        self.training.step, self.training.epoch = max(step, self.training.step), max(epoch, self.training.epoch)
        return state

    def _decide(self) -> None:
        findings = self._outputs.take()
        if self.gate is not None and self.watch is not None:
            with self._fenced("could not decide whether to stop"):
                self.gate.take(findings, self.watch)

    def _fenced(self, what: str, *, must: bool = False) -> AbstractContextManager[None]:
        on_error = "raise" if must else self.settings.on_error
        return fenced(self._who, what, on_error, is_first_rank=self.training.ranks.rank == 0)
