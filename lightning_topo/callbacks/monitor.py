"""The callback that a researcher adds to a Trainer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_topo.callbacks.ranks import Ranks
from lightning_topo.callbacks.session import Session
from lightning_topo.callbacks.settings import MonitorSettings
from lightning_topo.callbacks.training_loss import first_batch, sample_batch
from lightning_topo.neurons import NeuronGroup
from lightning_topo.outputs.record import RunRecord, read_record
from lightning_topo.phases import TopologyEvent
from lightning_topo.probes import Distortion, Persistence, Probe, Sharpness
from lightning_topo.watch.readings import LogGroups


class TopologyMonitor(Callback):
    """Watches the topology of the neurons while a network trains, and leaves the training bitwise unchanged.

    Measures how far each step bends the cloud of neurons (r = eta / eta*, critical at 1), the persistence diagrams of
    every group of neurons, and how close the training is to the edge of stability; detects phases and events; sends
    values to `trainer.callback_metrics` and to every logger under `topology/...`; keeps a record and a report.

    Args:
        probes: What to measure; by default `Distortion()`, `Persistence()` and `Sharpness()`.
        groups: The groups of neurons, or "auto" to find and verify them when training begins.
        dirpath: The run folder; by default `topology` beside Lightning's checkpoints.
        log_groups: Which groups' values go to the loggers beside the global ones: per quantity the "worst" group's,
            "all", or the worst and those whose name fits a pattern. `callback_metrics` and the record hold all.
        max_overhead: The fraction of wall time that periods set to "auto" may take together; None leaves them dense.
        report: Whether to write `report.html` into the run folder.
        on_error: "warn" and go on when a measurement fails, or "raise".
        seed: Of the monitor's own random choices (probe batch, dropout mask, verification).
        verbose: Whether to show the phase and the critical ratio in the progress bar, a line for each event, and a
            summary at the end.
        max_record_mb: Where the record's measurements and diagrams become larger, older ones are thinned, with their
            extremes kept; events are all kept. None (the default) keeps everything.

    Raises:
        ValueError: A parameter is out of its range, or two probes have the same name.

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
        groups: Literal["auto"] | Sequence[NeuronGroup] = "auto",
        dirpath: str | Path | None = None,
        log_groups: LogGroups = "worst",
        max_overhead: float | None = 0.02,
        report: bool = True,
        on_error: Literal["warn", "raise"] = "warn",
        seed: int = 0,
        verbose: bool = True,
        max_record_mb: float | None = None,
    ) -> None:
        if isinstance(groups, str) and groups != "auto":
            raise ValueError(f'expected groups "auto" or a list of NeuronGroup, got {groups!r}')
        self.settings = MonitorSettings(
            probes=(Distortion(), Persistence(), Sharpness()) if probes is None else tuple(probes),
            groups=None if isinstance(groups, str) else tuple(groups),
            dirpath=None if dirpath is None else Path(dirpath),
            log_groups=log_groups,
            max_overhead=max_overhead,
            report=report,
            on_error=on_error,
            seed=seed,
            verbose=verbose,
            max_record_mb=max_record_mb,
        )
        self._session: Session | None = None
        self._saved: Any = None
        self._waits_for_batch = False

    @property
    def events(self) -> Sequence[TopologyEvent]:
        """What has happened in the present or last fit, oldest first."""
        return () if self._session is None else self._session.events

    @property
    def groups(self) -> Sequence[NeuronGroup]:
        """The groups of neurons that are measured in the present or last fit."""
        return () if self._session is None else self._session.groups

    @property
    def epochs_agree(self) -> bool:
        """Whether all processes end their epochs at the same step."""
        return self._session is None or self._session.epochs_agree

    @property
    def dirpath(self) -> Path | None:
        """The run folder of the present or last fit; None before it, and where none could be written."""
        return None if self._session is None else self._session.dirpath

    @property
    def record(self) -> RunRecord | None:
        """The record of the present or last fit as it stands, read anew; None where `dirpath` is None."""
        return None if self.dirpath is None else read_record(self.dirpath)

    def note_proposal(self, group: str, ratio: float) -> None:
        """Take in the critical ratio of an update that a guard did not let pass as it was."""
        if self._session is not None:
            self._session.proposed(group, ratio)

    def note_stop(self, values: Mapping[str, float]) -> None:
        """Take in that a gate stops the training, with the numbers that made it."""
        with self._guarded("could not note that training was stopped"):
            if self._session is not None:
                self._session.stopped(values)

    @property
    def state_key(self) -> str:
        """Distinguishes several monitors in one checkpoint."""
        return self._generate_state_key(
            dirpath=str(self.settings.dirpath), probes=[probe.name for probe in self.settings.probes]
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._session, self._waits_for_batch = None, True
        ranks = Ranks(trainer)
        with self._guarded("could not draw a probe batch from the training data; takes the first training batch"):
            batch = ranks.together("a probe batch", lambda: sample_batch(trainer, self.settings.seed))
            if all(ranks.all("has batch", batch is not None)):
                self._begin(trainer, pl_module, batch, ranks)
        self._tell(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._waits_for_batch:
            self._waits_for_batch = False
            ranks = Ranks(trainer)
            with self._guarded("could not share the first training batch"):
                batch = first_batch(trainer, batch, ranks)
                self._begin(trainer, pl_module, batch, ranks)
        with self._guarded("could not capture the neurons before a step"):
            if self._session is not None:
                self._session.before_batch()
        self._tell(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with self._guarded("could not measure a step"):
            if self._session is not None:
                self._session.after_batch(outputs)
        self._tell(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self._guarded("could not measure an epoch"):
            if self._session is not None:
                self._session.after_epoch()
        self._tell(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close(in_haste=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def state_dict(self) -> dict[str, Any]:
        if self._session is not None:
            return self._session.state()
        return dict(self._saved) if isinstance(self._saved, Mapping) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Whatever it is: the session reads it with care, and says in an event what it could not use.
        self._saved = state_dict or None

    def __getstate__(self) -> dict[str, Any]:
        # Neither the live session nor what Lightning attaches (`log`, bound to the module) belongs to a copy.
        return {"settings": self.settings, "_session": None, "_saved": self._saved, "_waits_for_batch": False}

    def _tell(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give fresh findings to every callback that wants them."""
        findings = None if self._session is None else self._session.take_findings()
        if findings is None:
            return
        for callback in _callbacks(trainer):
            listen = getattr(callback, "on_topology_findings", None)
            if listen is not None:
                listen(trainer, pl_module, findings)

    def _begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any, ranks: Ranks) -> None:
        self._waits_for_batch = False
        saved, self._saved = self._saved, None
        with self._guarded("could not start, and does not watch this training"):
            self._session = Session(self.settings, trainer, pl_module, batch, saved, ranks)

    def _close(self, *, in_haste: bool = False) -> None:
        self._waits_for_batch = False
        with self._guarded("could not finish its record and report"):
            if self._session is not None:
                self._session.close(in_haste=in_haste)

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


def _callbacks(trainer: Trainer) -> list[Any]:
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]  # set without being declared
