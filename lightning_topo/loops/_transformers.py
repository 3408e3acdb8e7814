"""The door for the `Trainer` of Hugging Face's transformers."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack

from lightning_topo._keywords import explains_keywords
from lightning_topo._watch import WatchSettings
from lightning_topo.loops._gate import LoopGate
from lightning_topo.loops._guard import LoopGuard
from lightning_topo.loops._options import WatchOptions, watch_settings
from lightning_topo.loops._session import LoopSession
from lightning_topo.loops._trainer_seams import TrainerLog, closing, wrap_backward
from lightning_topo.loops._training import LoopTraining
from lightning_topo.loops._watched import Watched
from lightning_topo.outputs._gates import StopRules
from lightning_topo.probes import Probe

try:
    from transformers.trainer_callback import TrainerCallback
except ImportError as error:
    raise ImportError(
        "TopologyTrainerCallback needs transformers and accelerate: pip install 'lightning-topo[transformers]'"
    ) from error

_STATE = "topology"
"""Where our state stands among those of callbacks in a checkpoint's `trainer_state.json`."""


@explains_keywords
class TopologyTrainerCallback(Watched, TrainerCallback):
    """Watches a training by `transformers.Trainer`; measures, records and reports as `TopologyMonitor` does.

        trainer = Trainer(model, args, train_dataset=...)
        trainer.add_callback(TopologyTrainerCallback(trainer))

    A callback of transformers sees neither the loss nor the backward pass nor an exception. So this one wraps the
    trainer's `accelerator.backward` during training, and its `train` permanently. A step is an optimizer step of the
    trainer. With `gradient_accumulation_steps` the recorded loss is the loss of the step's last batch. A checkpoint
    holds the callback's state in `trainer_state.json`.

    Args:
        trainer: The trainer to which the callback is added.
        probes: The measurements to make; by default `Distortion()`, `Persistence()`, `Fate()` and
            `Sharpness(in_shards=False)`.
        dirpath: The run folder; by default `topology` in the trainer's `output_dir`.
        loggers: Lightning's loggers, which get rows and figures every `logging_steps`. By default rows go through
            `trainer.log` to all trackers that the trainer reports to.
        max_ratio: The largest critical ratio of an update, between 0 and 1. A larger update is shrunk to it (see
            `TopologyStepGuard`), and `guard.n_held` counts such updates. None leaves all updates as they are.
        stop_on: The event or events that stop the training, by name, or `StopRules`; None: never.
        options: The other keyword arguments of `TopologyMonitor`.

    Raises:
        ImportError: On import of this class, without transformers and accelerate.
        TypeError: A probe without a name or a `measure`, or an argument of another type than expected.
        ValueError: A parameter is out of its range; `stop_on` waits for what none of the probes can see; in `train`,
            `max_ratio` with LBFGS or sharded parameters.
        RuntimeError: In a step with `max_ratio`: no neurons were found, or an update does not go through torch's
            `Optimizer.step`.
    """

    def __init__(
        self,
        trainer: Any,
        probes: Sequence[Probe] | None = None,
        *,
        dirpath: str | Path | None = None,
        loggers: Sequence[Any] | None = None,
        max_ratio: float | None = None,
        stop_on: str | Iterable[str] | StopRules | None = None,
        **options: Unpack[WatchOptions],
    ) -> None:
        folder = Path(trainer.args.output_dir) / "topology" if dirpath is None else dirpath
        self.settings: WatchSettings = watch_settings(probes, folder, **options)
        self.guard: LoopGuard | None = None if max_ratio is None else LoopGuard(max_ratio)
        self.gate: LoopGate | None = LoopGate.of(stop_on, self.settings.probes)
        self._trainer = trainer
        self._max_ratio, self._stop_on = max_ratio, stop_on
        self._loggers = (TrainerLog(trainer),) if loggers is None else tuple(loggers)
        self._release: Callable[[], None] = lambda: None
        trainer.train = closing(trainer.train, lambda: self._close(in_haste=True))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._close(in_haste=True)  # where the trainer starts anew with smaller batches
        trainer = self._trainer
        period = int(state.logging_steps or 0) if str(args.logging_strategy.value) == "steps" else 0
        planned = state.max_steps if state.max_steps > 0 else None
        training = LoopTraining.of(trainer.model, trainer.optimizer, period, planned)
        training.step, training.epoch = state.global_step, int(state.epoch or 0)
        saved = state.stateful_callbacks.get(_STATE) if state.global_step else None
        self.guard = None if self._max_ratio is None else LoopGuard(self._max_ratio)
        self.gate = LoopGate.of(self._stop_on, self.settings.probes)
        self._session = LoopSession(
            type(self).__name__, training, self.settings, self._loggers, self.guard, self.gate, saved
        )
        self._release = wrap_backward(trainer, self._session)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._session is not None:
            self._session.training.step = state.global_step
            self._session.begin()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._session is not None:
            self._session.end()
            self._session.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._session is not None:
            self._session.end()
        self._settle(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._session is not None:
            self._session.end_epoch()
        self._settle(state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._settle(state, control, saves=True)  # the best checkpoint is saved after this

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._close()

    def _settle(self, state: Any, control: Any, *, saves: bool = False) -> None:
        """Stop if the gate decides to, and put our state where the trainer will save it."""
        if self._session is None:
            return
        if self.gate is not None and self.gate.reason is not None:
            control.should_training_stop = True
        if saves or control.should_save:
            state.stateful_callbacks[_STATE] = self._session.state()

    def _close(self, *, in_haste: bool = False) -> None:
        release, self._release = self._release, lambda: None
        release()
        if self._session is not None:
            self._session.close(in_haste=in_haste)
