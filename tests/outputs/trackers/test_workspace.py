"""The W&B workspace: valid by W&B's own models, for groups of any name, and pushed to a stand-in of the server."""

import json
import os
import re
import subprocess
import sys

import pytest

from lightning_topo._cli import main
from lightning_topo.outputs.trackers._workspace import workspace_json
from tests.outputs.trackers.wandb_stand_in import wandb_stand_in

internal = pytest.importorskip("wandb_workspaces.workspaces.internal")

KEYS = (
    "topology/net_0/critical_ratio",
    "topology/encoder_layers_11_self_attn/critical_ratio",
    "topology/a/b_2/contraction",
    "topology/net_0/expansion",
    "topology/net_0/total_contraction",
    "topology/net_0/total_expansion",
    "topology/net_0/distinct_neurons",
    "topology/net_0/independent_neurons",
    "topology/net_0/vanishing_neurons",
    "topology/net_0/aligned_clusters",
    "topology/net_0/effective_neurons",
    "topology/net_0/largest_multiplicity",
    "topology/net_0/betti_0",
    "topology/net_0/betti_1",
    "topology/net_0/log_bottleneck_1",
    "topology/net_0/log_bottleneck_bound",
    "topology/net_0/total_persistence_1",
)


def panels(spec):
    return [panel for s in spec["section"]["panelBankConfig"]["sections"] for panel in s["panels"]]


def test_written_offline_and_valid(tmp_path, capsys):
    out = tmp_path / "phase.json"
    assert main(["workspace", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    stored = json.loads(out.read_text())
    spec = internal.WorkspaceViewspec.model_validate(stored["spec"])
    again = spec.model_dump(by_alias=True, exclude_none=True, mode="json")
    assert again == stored["spec"]
    assert stored["displayName"] == "Topology: phase transitions"


def test_every_groups_values_are_on_a_panel_and_no_global_one_is_among_them():
    patterns = [p["config"]["metricRegex"] for p in panels(workspace_json()["spec"]) if p["config"].get("metricRegex")]
    for key in KEYS:
        assert sum(bool(re.search(pattern, key)) for pattern in patterns) == 1, key
    assert not any(re.search(pattern, "topology/critical_ratio") for pattern in patterns)
    shown = {m for p in panels(workspace_json()["spec"]) for m in p["config"].get("metrics") or ()}
    assert {"topology/phase", "topology/critical_ratio", "topology/sharpness_ratio", "topology/eta_lambda"} <= shown
    media = {key for p in panels(workspace_json()["spec"]) for key in p["config"].get("mediaKeys") or ()}
    assert media == {"topology/fate", "topology/crocker", "topology/betti_curves", "topology/diagram"}


def test_nothing_is_smoothed():
    lines = [p["config"] for p in panels(workspace_json()["spec"]) if p["viewType"] == "Run History Line Plot"]
    assert lines
    assert {(config["smoothingType"], config["smoothingWeight"], config["xAxis"]) for config in lines} == {
        ("none", 0.0, "trainer/global_step")
    }


def test_pushed_to_the_server(tmp_path):
    with wandb_stand_in() as (url, requests):
        own = {name: str(tmp_path) for name in ("HOME", "WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "NETRC")}
        done = subprocess.run(
            [sys.executable, "-m", "lightning_topo", "workspace", "--out", "w.json", "--push", "team/project"],
            env=os.environ
            | own
            | {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "NETRC": str(tmp_path / "netrc")}
            | {"PYTHONPATH": os.pathsep.join(path for path in (os.getcwd(), *sys.path) if path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    (pushed,) = [variables for name, variables in requests if name == "UpsertView2"]
    assert (pushed["entityName"], pushed["projectName"]) == ("team", "project")
    assert pushed["displayName"] == "Topology: phase transitions"
    sent = internal.WorkspaceViewspec.model_validate_json(pushed["spec"])
    stored = json.loads((tmp_path / "w.json").read_text())
    wanted = [p["config"] for p in panels(stored["spec"])]
    assert [p["config"] for p in panels(sent.model_dump(by_alias=True, exclude_none=True, mode="json"))] == wanted
    assert done.stdout.strip().splitlines()[-1].startswith(f"{url}/team/project")


@pytest.mark.parametrize("where", ["team", "/project", "team/", "a/b/c"])
def test_a_wrong_place_is_said(where, tmp_path, capsys):
    assert main(["workspace", "--out", str(tmp_path / "w.json"), "--push", where]) == 2
    assert "expected --push ENTITY/PROJECT" in capsys.readouterr().err


def test_without_the_extra_the_remedy_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert main(["workspace", "--out", str(tmp_path / "w.json")]) == 2
    assert 'pip install "lightning-topo[workspace]"' in capsys.readouterr().err
