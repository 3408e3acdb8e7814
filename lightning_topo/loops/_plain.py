"""The door for a training loop written by hand, and for Lightning Fabric."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor, nn

from lightning_topo._keywords import explains_keywords
from lightning_topo._watch import WatchSettings
from lightning_topo.loops._backward import when_backward_ends
from lightning_topo.loops._gate import LoopGate
from lightning_topo.loops._guard import LoopGuard
from lightning_topo.loops._options import WatchOptions, watch_settings
from lightning_topo.loops._session import LoopSession
from lightning_topo.loops._training import LoopTraining
from lightning_topo.loops._watched import Watched
from lightning_topo.outputs._gates import StopRules
from lightning_topo.probes import Probe


@explains_keywords
class TopologyWatch(Watched):
    """Watches a training whose loop you write yourself, in plain PyTorch or Lightning Fabric.

    Measures, records and reports as `TopologyMonitor` does, and leaves the training bitwise unchanged:

        with TopologyWatch(model, optimizer) as watch:
            for batch in batches:
                with watch.step():
                    watch.loss(loss_of(model, batch)).backward()
                    optimizer.step()
                    optimizer.zero_grad()

    A step is an iteration in which an optimizer has stepped. Leaving the outer `with` closes the record.

    Args:
        model: The module to train; `torch.compile`, DDP and Fabric may have wrapped it.
        optimizers: The optimizer, or a list of several.
        probes: The measurements to make; by default `Distortion()`, `Persistence()`, `Fate()` and
            `Sharpness(in_shards=False)`.
        dirpath: The run folder, by default `topology`; if it holds another run, `<dirpath>-v1`, `<dirpath>-v2`, ...
        loggers: Lightning's loggers, which get rows and figures.
        log_every_n_steps: The number of steps between two rows for the loggers; 0 for none.
        planned_steps: The number of steps of the whole training, if known: probes with the period "auto" plan with it.
        max_ratio: The largest critical ratio of an update, between 0 and 1. A larger update is shrunk to it (see
            `TopologyStepGuard`), and `guard.n_held` counts such updates. None leaves all updates as they are.
        stop_on: The event or events, by name, or `StopRules`, that make `should_stop` true. Your loop must check it.
        options: The other keyword arguments of `TopologyMonitor`.

    Raises:
        TypeError: A probe without a name or a `measure`, or an argument of another type than expected.
        ValueError: A parameter is out of its range; `max_ratio` with LBFGS or sharded parameters; `stop_on` waits for
            what none of the probes can see.
        RuntimeError: In a step with `max_ratio`: no neurons were found, or an update does not go through torch's
            `Optimizer.step`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Any,
        probes: Sequence[Probe] | None = None,
        *,
        dirpath: str | Path = "topology",
        loggers: Sequence[Any] = (),
        log_every_n_steps: int = 50,
        planned_steps: int | None = None,
        max_ratio: float | None = None,
        stop_on: str | Iterable[str] | StopRules | None = None,
        **options: Unpack[WatchOptions],
    ) -> None:
        self.settings: WatchSettings = watch_settings(probes, dirpath, **options)
        self.guard: LoopGuard | None = None if max_ratio is None else LoopGuard(max_ratio)
        self.gate: LoopGate | None = LoopGate.of(stop_on, self.settings.probes)
        self._loggers = tuple(loggers)
        self._training = LoopTraining.of(model, optimizers, log_every_n_steps, planned_steps)
        self._saved: Any = None
        self._has_iterated = False
        if self.guard is not None:
            self.guard.refuse(self._training)

    def __enter__(self) -> "TopologyWatch":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.close(in_haste=kind is not None)

    @contextmanager
    def step(self, batch: Any = None) -> Iterator[None]:
        """Surround one iteration of the loop as a context manager: its losses, backward passes and updates.

        `batch` is passed to the `loss_fn` of a probe that has one; nothing else needs it. If the block raises, the
        iteration counts as a step only if an optimizer has updated the parameters.
        """
        session = self._started()
        self._has_iterated = True
        session.begin(batch)
        try:
            yield
        except BaseException:
            session.break_off()
            raise
        session.end()

    def loss(self, loss: Tensor, *, scale: float = 1.0) -> Tensor:
        """Register a loss before its backward pass, and return it unchanged.

        Several losses in one iteration are added up.

        Args:
            loss: The tensor to differentiate, before any gradient scaler.
            scale: The factor by which `loss` was multiplied: 1 / k if it is divided by k accumulated batches. The
                record holds `loss / scale`.
        """
        session = self._started()
        session.loss(loss, scale, in_engine=True)
        when_backward_ends(loss, lambda: session.after_backward(goes_on=True, in_engine=True))
        return loss

    def end_epoch(self) -> None:
        """Make the measurements that are due at the end of an epoch, and count the epoch.

        All processes must call it after the same step.
        """
        self._started().end_epoch()

    def close(self, *, in_haste: bool = False) -> None:
        """Finish the record and the report; leaving the outer `with` calls it, and a second call does nothing.

        `in_haste` is for a training that broke off: measurements still under way are given up, and a process in the
        background writes `report.html`.
        """
        if self._session is None:
            return
        self._session.close(in_haste=in_haste)
        if not self._has_iterated:
            self._has_iterated = True
            message = "TopologyWatch has seen losses and no iteration: put each one into `with watch.step():`."
            warnings.warn(message, UserWarning, stacklevel=2)

    @property
    def should_stop(self) -> bool:
        """Whether a rule of `stop_on` is met; `self.gate.reason` is then the reason, as a sentence.

        Always False without `stop_on`.
        """
        return self.gate is not None and self.gate.reason is not None

    def state_dict(self) -> dict[str, Any]:
        """Return the watch's state for a checkpoint: plain numbers, strings and containers."""
        return dict(self._saved or {}) if self._session is None else self._session.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint, with the state that `TopologyWatch.state_dict` returned.

        Call it before the first step, with the model and the optimizers restored from the same checkpoint. Raises
        `RuntimeError` after the first step has begun.
        """
        if self._session is not None:
            raise RuntimeError("expected load_state_dict before the first step, got it later: make a new TopologyWatch")
        self._saved = state or None

    def _started(self) -> LoopSession:
        """The session, which begins with the first step."""
        if self._session is None:
            self._session = LoopSession(
                "TopologyWatch", self._training, self.settings, self._loggers, self.guard, self.gate, self._saved
            )
        return self._session
