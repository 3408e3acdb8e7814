"""Weights & Biases: summaries of the extremes, media, a table of events, alerts, the record as an artifact."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_topo.outputs.trackers._event_table import COLUMNS, cells, title
from lightning_topo.outputs.trackers._tracker import ARTIFACT_TYPE, RunFacts, Tracker, config_name, shortened
from lightning_topo.phases import Severity, TopologyEvent
from lightning_topo.phases._edge import EDGE_QUANTITIES
from lightning_topo.quantities import Direction, Scope, quantity

if TYPE_CHECKING:
    import wandb
    from matplotlib.figure import Figure

_STEP = "trainer/global_step"


def summaries(key: str) -> str:
    """The summaries of a key that mean something, as `define_metric` takes them.

    >>> summaries("topology/net_0/contraction"), summaries("topology/critical_ratio"), summaries("topology/overhead")
    ('min,last', 'max,last', 'last')
    """
    row = quantity(key.rpartition("/")[2])
    if row is None:
        return "max,last"
    if row.direction is Direction.NEUTRAL:
        return "last" if row.scope is Scope.NETWORK else "min,max,last"
    return "min,last" if row.direction is Direction.LOW_IS_BAD else "max,last"


CHARTS = frozenset(
    f"topology/{name}"
    for name in (
        "phase",
        "critical_ratio",
        "critical_ratio_bound",
        "learning_rate",
        "critical_learning_rate",
        *EDGE_QUANTITIES,
        "eta_lambda",
        "coverage",
        "worst/total_contraction",
        "worst/total_expansion",
        "worst/distinct_neurons",
    )
)
"""What W&B draws without being asked: one chart a key, and of a hundred nobody looks at any."""


class WandbTracker(Tracker):
    """A `WandbLogger`, online or offline.

    Every key is defined by its exact name before its first value. Rows carry `trainer/global_step`, as Lightning's
    own do, and never W&B's `step`, which may not go back.
    """

    takes_conclusions = True

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self._defined: set[str] = set()
        self._table: wandb.Table | None = None
        self._unsent: list[TopologyEvent] = []

    @property
    def _run(self) -> "wandb.Run":
        return self.logger.experiment  # pyright: ignore[reportAttributeAccessIssue]

    def began(self, run: RunFacts) -> None:
        self._run.config.update({config_name(self._run.config, run): run.config()}, allow_val_change=True)

    def row(self, values: Mapping[str, float], step: int, known: Collection[str] = ()) -> None:
        prefix = _key_prefix(self.logger)
        for key in values.keys() - self._defined:
            # Hidden keys have no chart of their own in the workspace; panels that name them show them.
            self._run.define_metric(
                f"{prefix}{key}", step_metric=_STEP, summary=summaries(key), hidden=key not in CHARTS or None
            )
            self._defined.add(key)
        super().row(values, step, known)

    def figure(self, key: str, figure: "Figure", step: int) -> None:
        from lightning_topo._figures.style import pixels

        # As pixels: W&B takes a matplotlib figure only where someone has imported pyplot.
        self.logger.log_image(shortened(key), [pixels(figure)], step=step)  # pyright: ignore[reportAttributeAccessIssue]

    def events(self, events: Sequence[TopologyEvent], step: int) -> None:
        self._unsent += events
        for event in events:
            if event.severity is not Severity.INFO:
                self._run.alert(
                    title=title(event),
                    text=f"Step {event.step}. {event.message} {event.remedy}",
                    level=event.severity.upper(),
                )

    def flush(self, step: int) -> None:
        import wandb

        if not self._unsent:
            return
        if self._table is None:
            self._table = wandb.Table(columns=list(COLUMNS), log_mode="INCREMENTAL")
        for event in self._unsent:
            self._table.add_data(*cells(event))
        self._unsent.clear()
        self._run.log({f"{_key_prefix(self.logger)}topology/events": self._table, _STEP: step})

    def concluded(self, found: Mapping[str, str | float], step: int) -> None:
        self._run.summary.update({f"{_key_prefix(self.logger)}{key}": value for key, value in found.items()})

    def closed(self, run: RunFacts, step: int) -> None:
        import wandb

        self.flush(step)
        if files := run.files():
            artifact = wandb.Artifact(f"{config_name(self._run.config, run)}-{self._run.id}", type=ARTIFACT_TYPE)
            for path, name in files:
                artifact.add_file(str(path), name=str(name))
            self._run.log_artifact(artifact)


def _key_prefix(logger: Any) -> str:
    """The prefix that a logger puts before every key of `log_metrics`; it has no public name."""
    prefix = getattr(logger, "_prefix", "")
    return f"{prefix}{logger.LOGGER_JOIN_CHAR}" if prefix else ""
