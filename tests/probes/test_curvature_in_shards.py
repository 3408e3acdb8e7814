"""The curvature of a step in shards, here those of one process; with two `tests/distributed` measures it."""

import warnings
from dataclasses import replace

import pytest
import torch

from lightning_topo import Sharpness
from lightning_topo.probes import Capture, ProbeResult, ProbeUnavailable
from lightning_topo.probes._curvature_in_shards import curvature_of_step
from lightning_topo.stability import flatten, hessian, parameter_thresholds, sharpness
from tests.watch.shards import KINDS, Attends, recorded, tokens

pytestmark = pytest.mark.usefixtures("one_process")


def stepped(kind, make=lambda p: torch.optim.SGD(p, lr=0.1)):
    """A capture after a recorded step, and the same network whole, stepped alike."""
    net, alike = KINDS[kind](Attends().double()), Attends().double()
    loss, _ = recorded(net, tokens())
    training = loss._training
    before = {name: p.detach().clone() for name, p in training.module.named_parameters()}
    alike(tokens()).backward()
    optimizers = [make(list(one.parameters())) for one in (net, alike)]
    for optimizer in optimizers:
        optimizer.step()
    lies = {"parameters_before": before, "sharding": "fsdp2" if kind == "fsdp2" else "fsdp1"}
    return Capture(1, 0, training.module, (), {}, None, {}, (optimizers[0],), loss, **lies), alike, optimizers[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.1), lambda p: torch.optim.Adam(p, lr=0.01)])
def test_products_thresholds_and_step_are_those_of_whole_parameters(kind, make):
    capture, alike, optimizer = stepped(kind, make)
    own = list(alike.parameters())
    truth = hessian(lambda: alike(tokens()), own)
    with curvature_of_step(capture) as (curvature, thresholds, step):
        layout = curvature.layout
        assert curvature.loss == pytest.approx(truth.loss, rel=1e-9)
        assert layout.norm(curvature.gradient) == pytest.approx(float(truth.gradient.norm()), rel=1e-9)
        along = curvature @ curvature.gradient
        expected = truth @ truth.gradient
        assert layout.norm(along) == pytest.approx(float(expected.norm()), rel=1e-5)
        assert layout.dot(along, curvature.gradient) == pytest.approx(float(expected @ truth.gradient), rel=1e-5)
        known = parameter_thresholds([optimizer], own, truth.gradient).parameters
        found = layout.norm(layout.spread([one.stability for one in thresholds().parameters]) * curvature.gradient)
        dense = flatten(torch.as_tensor(one.stability).expand(p.shape) for one, p in zip(known, own, strict=True))
        assert found == pytest.approx(float((dense * truth.gradient).norm()), rel=1e-6)
        moved = sum(float((p.detach() - q.detach()).square().sum()) for p, q in zip(own, whole(), strict=True))
        assert layout.norm(step) ** 2 == pytest.approx(moved, rel=1e-9)


def whole():
    return Attends().double().parameters()


def test_the_parameters_are_where_they_were_also_if_a_product_fails(monkeypatch):
    capture, _, _ = stepped("fsdp2")
    kept = {name: p.to_local().clone() for name, p in capture.module.named_parameters()}
    with curvature_of_step(capture) as (curvature, _, _):
        curvature @ curvature.gradient
        monkeypatch.setattr(type(curvature._evaluate), "__call__", lambda self: {}["torn"])
        with pytest.raises(KeyError):
            curvature @ curvature.gradient
    assert all(torch.equal(p.to_local(), kept[name]) for name, p in capture.module.named_parameters())


def test_without_a_step_there_is_none():
    capture, _, _ = stepped("fsdp2")
    with curvature_of_step(replace(capture, parameters_before=None)) as found:
        assert found is None


def test_a_threshold_that_is_not_known_is_missing_with_its_reason():
    capture, _, _ = stepped("fsdp1", lambda p: torch.optim.Rprop(p, lr=1e-3))
    with curvature_of_step(capture) as (_, thresholds, _):
        found = thresholds()
    assert found.parameters is None
    assert found.reason.startswith("Rprop: its step follows the signs")
    probe = Sharpness(tolerance=1e-3)
    measured = probe.measure(replace(capture, previous=probe.measure(capture)))
    assert "sharpness_ratio" not in measured.values[""]
    assert measured.notes == (f"There is no sharpness_ratio and no eta_lambda: {found.reason}.",)


def test_the_probe_asks_for_a_recorded_step_and_then_measures_it():
    capture, alike, _ = stepped("fsdp1")
    probe = Sharpness(tolerance=1e-3)
    asked = probe.measure(capture)
    assert (asked.values, asked.wants_own_step, asked.again_after_step) == ({}, True, True)
    with warnings.catch_warnings(action="error"):
        found = probe.measure(replace(capture, previous=asked))
    values = found.values[""]
    truth = sharpness(lambda: alike(tokens()), alike.parameters(), tolerance=1e-4)
    assert found.wants_own_step
    assert values["sharpness"] == pytest.approx(truth.value, rel=2e-3)
    assert values["sharpness_ratio"] == pytest.approx(0.05 * truth.value, rel=2e-3)
    assert values["exact"] == 0.0
    assert probe.measure(replace(capture, previous=asked, parameters_before=None)).values == {}


@pytest.mark.parametrize(
    ("probe", "sharding", "message"),
    [
        (Sharpness(in_shards=False), "fsdp2", "only where they are asked for"),
        (Sharpness(in_shards=False), "zero3", "only where they are asked for"),
        (Sharpness(loss_fn=lambda module, batch: None), "zero3", "flat shards of DeepSpeed ZeRO-3"),
        (Sharpness(), "tensor_parallel", "under tensor parallel need a loss"),
        (Sharpness(swap_pairs=2), "fsdp1", "need whole parameters"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_its_reason(probe, sharding, message):
    capture, _, _ = stepped("fsdp2")
    with pytest.raises(ProbeUnavailable, match=message):
        probe.measure(replace(capture, sharding=sharding, previous=ProbeResult()))
