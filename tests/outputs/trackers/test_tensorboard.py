"""What TensorBoard receives, read back by its own reader."""

import re

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_topo import read_record
from lightning_topo.outputs.page import verdict
from lightning_topo.outputs.trackers._tensorboard import LAYOUT, tag_pattern
from lightning_topo.phases._edge import EDGE_QUANTITIES
from lightning_topo.quantities import QUANTITIES
from tests.outputs.driving import drive


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The events file of a training that breaks down, and its record."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root = tmp_path_factory.mktemp("tensorboard")
    logger = TensorBoardLogger(root)
    training = drive(root / "topology", hot={3, 4, 9}, loggers=[logger], log_groups=["net.0"])
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0, "images": 0, "scalars": 0})
    return events.Reload(), read_record(training.outputs.dirpath)


def texts(events, tag):
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(f"{tag}/text_summary")]


def test_scalars_are_the_record(run):
    events, record = run
    measured = {
        m.step - 1: m.values["critical_ratio"]
        for m in record.measurements
        if m.probe == "distortion" and m.group == "net.0"
    }
    scalars = events.Scalars("topology/net_0/critical_ratio")
    assert {e.step: e.value for e in scalars} == pytest.approx(measured, rel=1e-6)
    assert len(scalars) == len(measured)


def test_figures_of_the_worst_group_and_of_those_asked_for(run):
    events, _ = run
    names = ("diagram", "betti_curves", "crocker")
    assert set(events.Tags()["images"]) == {f"topology/{n}" for n in names} | {f"topology/net_0/{n}" for n in names}
    image = events.Images("topology/crocker")[-1]
    assert (image.width, image.height) == (550, 693)


def test_phases_and_events_are_text(run):
    events, record = run
    phases = texts(events, "topology/phase")
    assert [name for _, name in phases][-1] in ("BREAKDOWN", "EDGE_OF_STABILITY")
    assert "BREAKDOWN" in [name for _, name in phases]
    breakdowns = [event for event in record.events if event.name == "topology_breakdown"]
    groups = {event.group for event in breakdowns}
    assert len(groups) == 2
    for group in groups:  # each in its own place, at its own step: of one name and step only the last is kept
        own = [event for event in breakdowns if event.group == group]
        told = texts(events, f"topology/events/topology_breakdown/{group.replace('.', '_')}")
        assert [step for step, _ in told] == [event.step for event in own]
        assert all(event.message in text for event, (_, text) in zip(own, told, strict=True))


def test_the_verdict_is_told_at_the_end(run):
    events, record = run
    ((_, text),) = texts(events, "topology/verdict")
    assert verdict(record) in text


def test_every_chart_of_the_layout_finds_its_scalars(run):
    from tensorboard.plugins.custom_scalar import layout_pb2

    events, _ = run
    (stored,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(stored.tensor_proto.string_val[0])
    (category,) = layout.category
    assert [chart.title for chart in category.chart] == list(LAYOUT["topology"])
    scalars = events.Tags()["scalars"]
    wanted = {pattern for chart in category.chart for pattern in chart.multiline.tag}
    found = {pattern for pattern in wanted if any(re.match(pattern, tag) for tag in scalars)}
    # What this run does not measure: edge ratios of other optimizers, bounds, counts.
    others = {
        *("batch_sharpness_ratio", "directional_ratio", "critical_sharpness", "critical_ratio_bound"),
        *("independent_neurons", "vanishing_neurons", "aligned_clusters"),
    }
    assert others <= QUANTITIES.keys()
    assert wanted - found == {tag_pattern(name) for name in others}


def test_every_edge_ratio_is_among_the_charts():
    patterns = [pattern for _, patterns in LAYOUT["topology"].values() for pattern in patterns]
    for name in EDGE_QUANTITIES:
        assert any(re.match(pattern, f"topology/{name}") for pattern in patterns)
