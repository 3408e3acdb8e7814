"""A Weights & Biases workspace that shows phase transitions at a glance, as code: for all runs and groups of a project.

Made with W&B's own models, which are the extra `workspace`: `pip install "lightning-topo[workspace]"`.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_topo.phases import EdgeSource, Phase
from lightning_topo.quantities import QUANTITIES

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

NAME = "Topology: phase transitions"
_STEP = "trainer/global_step"
_GROUP = r"topology/.+/"
_COLUMNS = 3


def workspace_json() -> dict[str, Any]:
    """The workspace as its JSON: `displayName` and `spec`. Needs no network and no account.

    Raises `ImportError` where wandb-workspaces is missing.
    """
    # The package asks for a project when a workspace is made; the JSON holds none.
    spec = _workspace("entity", "project")._to_model().spec
    return {"displayName": NAME, "spec": spec.model_dump(by_alias=True, exclude_none=True, mode="json")}


def write_workspace(path: str | os.PathLike[str]) -> Path:
    """Write the workspace's JSON to a file."""
    out = Path(path)
    out.write_text(json.dumps(workspace_json(), indent=1), encoding="utf-8")
    return out


def push_workspace(entity: str, project: str) -> str:
    """Create the workspace as a saved view of a project, and return its address.

    Raises `ImportError` where wandb-workspaces is missing, and W&B's own errors without a login or network.
    """
    return _workspace(entity, project).save_as_new_view().url


def _workspace(entity: str, project: str) -> "Workspace":
    import wandb_workspaces.workspaces as ws

    # Do not smooth phase codes, nor peaks of the critical ratio.
    settings = ws.WorkspaceSettings(x_axis=_STEP, smoothing_weight=0, smoothing_type="none", ignore_outliers=False)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[_phase(), _distortion(), _fate(), _persistence(), _events()],
        settings=settings,
    )


def _phase() -> "Section":
    codes = ", ".join(f"{int(p)} {p.name.lower().replace('_', ' ')}" for p in Phase)
    panels = [
        _lines(f"Phase ({codes})", "topology/phase", low=-1.2, high=3.2),
        _lines("Critical ratio r = eta / eta*, critical at 1", "topology/critical_ratio", log_y=True),
        _lines("Learning rate and eta*", "topology/learning_rate", "topology/critical_learning_rate", log_y=True),
        _lines("Edge ratios, edge of stability at 1", *(f"topology/{source.quantity}" for source in EdgeSource)),
        _lines("eta K, the paper's condition needs < 1", "topology/eta_lambda", log_y=True),
        _lines(
            "Coverage: shares of steps certified, and spanned",
            "topology/coverage",
            "topology/coverage_span",
            low=0,
            high=1,
        ),
        _scalar("Peak of r", "topology/critical_ratio.max"),
        _scalar("Peak of the sharpness ratio", "topology/sharpness_ratio.max"),
        _scalar("Peak of the batch sharpness ratio", "topology/batch_sharpness_ratio.max"),
        _scalar(QUANTITIES["overhead"].title, "topology/overhead.last"),
    ]
    return _section("Topology: phase transitions", panels)


def _distortion() -> "Section":
    panels = [
        _groups("Critical ratio by group", "critical_ratio", log_y=True),
        *(_groups(QUANTITIES[name].title, name) for name in ("contraction", "expansion", "total_contraction")),
        _groups(QUANTITIES["total_expansion"].title, "total_expansion", log_y=True),
        _groups(QUANTITIES["distinct_neurons"].title, "distinct_neurons"),
    ]
    return _section("Topology: every group's step map", panels)


def _fate() -> "Section":
    import wandb_workspaces.reports.v2 as wr

    names = (
        "independent_neurons",
        "vanishing_neurons",
        "aligned_clusters",
        "effective_neurons",
        "largest_multiplicity",
    )
    panels: list[Any] = [
        wr.MediaBrowser(title="What becomes of the neurons", media_keys=["topology/fate"]),
        *(_groups(QUANTITIES[name].title, name) for name in names),
    ]
    return _section("Topology: what becomes of the neurons", panels)


def _persistence() -> "Section":
    import wandb_workspaces.reports.v2 as wr

    panels: list[Any] = [
        wr.MediaBrowser(title="CROCKER plot", media_keys=["topology/crocker"]),
        wr.MediaBrowser(title="Betti curves", media_keys=["topology/betti_curves"]),
        wr.MediaBrowser(title="Persistence diagram", media_keys=["topology/diagram"]),
        _groups("Betti number b0", "betti_0"),
        _groups("Betti number b1", "betti_1"),
        _groups("Change of the diagrams, and its bound", r"log_bottleneck_.*"),
        _groups("Total persistence", r"total_persistence_\d+"),
    ]
    return _section("Topology: persistence", panels)


def _events() -> "Section":
    import wandb_workspaces.reports.v2 as wr

    table = wr.WeavePanelSummaryTable(table_name="topology/events")
    return _section("Topology: events", [table])


def _section(name: str, panels: list[Any]) -> "Section":
    import wandb_workspaces.workspaces as ws

    layout = ws.SectionLayoutSettings(columns=_COLUMNS, rows=-(-len(panels) // _COLUMNS))
    settings = ws.SectionPanelSettings(x_axis=_STEP, smoothing_type="none", smoothing_weight=0)
    return ws.Section(name=name, panels=panels, is_open=True, layout_settings=layout, panel_settings=settings)


def _lines(
    title: str,
    *keys: str,
    low: float | None = None,
    high: float | None = None,
    log_y: bool = False,
) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        title=title,
        x=_STEP,
        y=list(keys),
        range_y=(low, high),
        log_y=log_y,
        smoothing_factor=0.0,
        smoothing_type="none",
    )


def _groups(title: str, name: str, *, log_y: bool = False) -> Any:
    """A quantity of every group, whatever the groups are called: its keys by pattern."""
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        title=title,
        x=_STEP,
        metric_regex=f"^{_GROUP}{name}$",
        log_y=log_y,
        smoothing_factor=0.0,
        smoothing_type="none",
    )


def _scalar(title: str, summary: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.ScalarChart(title=title, metric=wr.SummaryMetric(summary))
