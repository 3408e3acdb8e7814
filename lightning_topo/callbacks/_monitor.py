"""The callback that a researcher adds to a Trainer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_topo._keywords import explains_keywords
from lightning_topo._watch import Watch, WatchSettings
from lightning_topo._watch.checkpoint import saved_place
from lightning_topo._watch.published_values import LogGroups
from lightning_topo._watch.settings import Groups, group_list, probe_list
from lightning_topo.callbacks._lightning_internals import run_folder
from lightning_topo.callbacks._trainer_printer import TrainerPrinter
from lightning_topo.callbacks._trainer_training import TrainerTraining
from lightning_topo.outputs._outputs import Outputs, open_outputs
from lightning_topo.outputs._watched import WatchedTraining
from lightning_topo.outputs.page._inline import inline_html
from lightning_topo.phases import PhaseRules
from lightning_topo.probes import Probe


@explains_keywords
class TopologyMonitor(WatchedTraining, Callback):
    """Watches the topology of the neurons while a network trains, and leaves the training bitwise unchanged.

    It measures the critical ratio r of each step, the persistence diagrams of every group of neurons, and the distance
    of the training from the edge of stability. From these it detects phases and events. It sends values to
    `trainer.callback_metrics` and to every logger under `topology/...`, and keeps a record and a report.

    The critical ratio r of a step is the largest |Δ_i - Δ_j| / |x_i - x_j| over pairs of neurons. x_i is neuron i
    before the step, Δ_i its displacement. r < 1 certifies that no two distinct neurons merged in the step.

    The neurons are found in the first training step as it runs; none of the module's code runs a second time. A trainer
    may have several monitors, each with its own `dirpath`; two with the same one are an error.

    Args:
        probes: The measurements to make; by default `Distortion()`, `Persistence()`, `Fate()` and
            `Sharpness(in_shards=False)`.
        groups: "auto" to find and verify the groups of neurons in the first step, or a list of `NeuronGroup` and
            `rows(...)`, which may contain "auto".
        dirpath: The run folder; by default `topology` beside Lightning's checkpoints.
        log_groups: Which groups' values go to the loggers besides the network's: "all"; "worst", the worst group of
            each quantity; or patterns, for the worst and the groups whose names match. "auto" is "all" for at most 4
            groups, else "worst". `callback_metrics` and the record hold all.
        max_overhead: The fraction of wall time that all probes with the period "auto" may take together; None sets no
            limit.
        report: Whether to write `report.html` into the run folder.
        on_error: "warn" and go on when a measurement fails, or "raise".
        seed: Seeds the monitor's own random choices: times of measurements, permutations that verify groups.
        verbose: Whether to show the phase and the critical ratio in the progress bar, a line for each event, and a
            summary at the end.
        max_record_mb: The size of the record in MiB above which older measurements are merged; their extremes and all
            events are kept. None (the default) keeps everything.
        rules: The thresholds of phases and events.

    Raises:
        TypeError: A probe without a name or a `measure`, or an argument of another type than expected.
        ValueError: A parameter is out of its range, two probes share a name, or a probe has the name of a built-in one.

    Source: Yang, Poggio, Chuang, Ziyin, *Topological Invariance and Breakdown in Learning*, arXiv:2510.02670.

    >>> TopologyMonitor(max_overhead=2.0)
    Traceback (most recent call last):
    ...
    ValueError: expected max_overhead between 0 and 1, or None, got 2.0
    """

    def __init__(
        self,
        probes: Sequence[Probe] | None = None,
        *,
        groups: Groups = "auto",
        dirpath: str | Path | None = None,
        log_groups: LogGroups = "auto",
        max_overhead: float | None = 0.02,
        report: bool = True,
        on_error: Literal["warn", "raise"] = "warn",
        seed: int = 0,
        verbose: bool = True,
        max_record_mb: float | None = None,
        rules: PhaseRules = PhaseRules(),
    ) -> None:
        self.settings: WatchSettings = WatchSettings(
            probes=probe_list(probes),
            groups=group_list(groups),
            dirpath=None if dirpath is None else Path(dirpath),
            log_groups=log_groups,
            max_overhead=max_overhead,
            report=report,
            on_error=on_error,
            seed=seed,
            verbose=verbose,
            max_record_mb=max_record_mb,
            rules=rules,
        )
        self._watch: Watch | None = None
        self._training: TrainerTraining | None = None
        self._outputs: Outputs | None = None
        self._losses: list[Tensor] = []
        self._logged_before: dict[str, Tensor] = {}
        self._saved: Any = None

    @property
    def watch(self) -> Watch | None:
        """The internal object that measures in the current fit, or in the last one; None before the first fit."""
        return self._watch

    @property
    def epochs_agree(self) -> bool:
        """Whether all processes end their epochs at the same step; True before the first fit."""
        return self.watch is None or self.watch.training.epochs_agree

    def _repr_html_(self) -> str | None:
        """The run so far, as notebooks show it; None (its plain name) where there is no record."""
        try:
            record = self.record
            return None if record is None else inline_html(record)
        except Exception:  # to show something must not end a notebook's cell
            return None

    def note_proposal(self, group: str, ratio: float) -> None:
        """Record the critical ratio that an update had in one group of neurons before a guard shrank it.

        `group` is the group's name. Nothing is recorded before a fit has begun.
        """
        if self.watch is not None:
            self.watch.proposed(group, ratio)

    def note_stop(self, values: Mapping[str, float]) -> None:
        """Record that a stopping callback ends the training; `values` are the numbers behind its decision, by name."""
        with self._guarded("could not note that training was stopped"):
            if self.watch is not None:
                self.watch.stopped(values)

    @property
    def state_key(self) -> str:
        """The key of this monitor's state in a checkpoint; it contains `dirpath`.

        The Trainer refuses two callbacks with the same key, so two monitors need different values of `dirpath`.
        """
        return self._generate_state_key(dirpath=str(self.settings.dirpath))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._saved = None  # of an earlier `test(ckpt_path=...)`: a fit resumes from its own checkpoint only

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # With another `dirpath` Lightning finds no state of this monitor: its run is a branch of the one that has none.
        states, present = checkpoint.get("callbacks", {}), {monitor.state_key for monitor in monitors(trainer)}
        name = type(self).__qualname__ + "{"
        left = [state for key, state in states.items() if str(key).startswith(name) and key not in present]
        if self.state_key not in states and len(left) == 1:
            self.load_state_dict(left[0])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        saved, self._saved, self._watch = self._saved, None, None
        with self._guarded("could not start, and does not watch this training"):
            training, settings = TrainerTraining(trainer, pl_module), self.settings
            opened = partial(
                open_outputs,
                settings.dirpath or run_folder(trainer) / "topology",
                loggers=trainer.loggers,
                is_first_rank=trainer.is_global_zero,
                resume=saved_place(saved),
                step=training.step,
                epoch=training.epoch,
                printer=TrainerPrinter(trainer),
                verbose=settings.verbose,
                report=settings.report,
                max_overhead=settings.max_overhead,
                max_record_bytes=settings.max_record_bytes,
                on_error=settings.on_error,
            )
            # Where one process cannot, none goes on to wait for it.
            outputs = training.ranks.together("opening the outputs", opened)
            self._training, self._outputs = training, outputs
            self._watch = Watch(training, settings, outputs, saved)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._losses = []
        with self._guarded("could not look at a step before it began"):
            if self.watch is not None:
                self.watch.before_batch(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        with self._guarded("could not look at a loss"):
            if self.watch is not None and self._training is not None:
                scale = self._training.loss_scale
                self._losses.append(loss.detach() if scale == 1.0 else loss.detach() / scale)
                self.watch.before_backward(loss, scale=scale)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self._guarded("could not look at a step after its gradient"):
            if self.watch is not None:
                self.watch.after_backward(goes_on=not pl_module.automatic_optimization)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with self._guarded("could not measure a step"):
            if self.watch is not None and self._training is not None:
                loss = self._training.batch_loss(outputs)
                if loss is None and self._losses:  # manual optimization: all that was differentiated
                    loss = sum(self._losses[1:], self._losses[0])
                self.watch.after_batch(loss)
        self._losses = []
        self._tell(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self._guarded("could not measure an epoch"):
            if self.watch is not None:
                self.watch.after_epoch()
        self._tell(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_fitting(trainer):
            self._logged_before = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        before, self._logged_before = self._logged_before, {}
        with self._guarded("could not note what validation has logged"):
            if self.watch is not None and is_fitting(trainer) and not trainer.sanity_checking:
                self.watch.validated(fresh_metrics(before, trainer.callback_metrics))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close(in_haste=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def state_dict(self) -> dict[str, Any]:
        if self.watch is not None:
            return self.watch.state()
        return dict(self._saved) if isinstance(self._saved, Mapping) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Whatever it is: the watch reads it with care, and reports in an event what it could not use.
        self._saved = state_dict or None

    def __getstate__(self) -> dict[str, Any]:
        # Neither the live watch nor what Lightning attaches (`log`, bound to the module) belongs to a copy.
        empty = {"_watch": None, "_training": None, "_outputs": None, "_losses": [], "_logged_before": {}}
        return {"settings": self.settings, "_saved": self._saved, **empty}

    def _tell(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give fresh findings to every callback that wants them."""
        findings = None
        with self._guarded("could not hand on what it has found"):
            findings = None if self._outputs is None else self._outputs.take()
        if findings is None:
            return
        for callback in _callbacks(trainer):
            listen = getattr(callback, "on_topology_findings", None)
            if listen is not None:
                listen(trainer, pl_module, findings)

    def _close(self, *, in_haste: bool = False) -> None:
        with self._guarded("could not finish its record and report"):
            if self.watch is not None:
                self.watch.close(in_haste=in_haste)

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Training goes on whatever happens here, unless the user wants to know."""
        try:
            yield
        except Exception as error:
            if self.settings.on_error == "raise":
                raise
            rank_zero_warn(f"TopologyMonitor {what} ({type(error).__name__}: {error}). Training goes on.")


def monitors(trainer: Trainer) -> list[TopologyMonitor]:
    """The trainer's monitors, in the order of its callbacks."""
    return [callback for callback in _callbacks(trainer) if isinstance(callback, TopologyMonitor)]


def is_fitting(trainer: Trainer) -> bool:
    """Whether a validation belongs to a training: after it, `trainer.validate` runs the same hooks."""
    return trainer.state.fn == TrainerFn.FITTING


def fresh_metrics(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """The metrics of the module's own that were logged in between: they hold another tensor now.

    >>> import torch
    >>> old = torch.tensor(1.0)
    >>> fresh_metrics({"a": old, "b": old}, {"a": old, "b": torch.tensor(2.0), "topology/phase": torch.tensor(0.0)})
    {'b': 2.0}
    """
    return {
        name: float(value)
        for name, value in after.items()
        if value is not before.get(name) and value.numel() == 1 and not name.startswith("topology/")
    }


def _callbacks(trainer: Trainer) -> list[Any]:
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]  # set without being declared
